"""ultimate: the learning rate of SGD is learned while it trains, by SGD on the learning rate.

α_{t+1} = α_t + η·⟨g_t, d_{t−1}⟩, d the last step's direction: α grows while gradients agree with it. Then the weights
move with the new α. The first step leaves α alone. Momentum may be learned likewise.

Paper: Gradient Descent: The Ultimate Optimizer (Chandra et al. 2022), SGD over SGD. Promises no saving of its own; it
replaces the search for a learning rate, and SCoTTi's ablation needs it alone. What automatic differentiation through
the step gives is a dot product per tensor here, so there is no second backward and no graph.
Owns `update`: α starts at the recipe's learning rate, and the recipe's schedule and warm-up do not apply; momentum,
nesterov, decay and clip do. Composes with everything else that leaves `update` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from energybench import Data, TrainingRun, Work
from energybench.algorithms.hypergradient_sgd import LearnedRate, check_rates


@dataclass
class Ultimate(LearnedRate):
    """hyper_lr: η, the learning rate of the learning rate

    hyper_momentum: momentum of the steps on the learning rate; the authors' code has 0.9 by default
    learn_momentum: learn SGD's momentum too, with the same η
    """

    replaces: ClassVar[frozenset[str]] = frozenset({"update"})
    needs: ClassVar[frozenset[str]] = frozenset({"backward"})
    trains_less: ClassVar[bool | None] = False

    hyper_lr: Annotated[float, Field(gt=0)] = 1.5e-5
    hyper_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    learn_momentum: bool = False

    def __post_init__(self) -> None:
        check_rates(self.hyper_lr, self.hyper_momentum)

    def setup(self, run: TrainingRun) -> None:
        super().setup(run)
        self.acted = False
        self._given = 0  # samples of the epochs that trained, as they were given
        self._epochs: list[dict[str, float | int]] = []

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        steps, told = run.tally.steps, run.task.passes(run)
        inner(data)
        given = data.samples(run.recipe.batch) if told is None else told.forward
        self._given += given * (run.tally.steps > steps)
        self._epochs += [{"epoch": run.epoch_number} | self.learned(optimizer) for optimizer in self._optimizers]

    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        optimizer = self.clipped(run, part)
        before = optimizer.product_flop
        optimizer.step()
        if optimizer.product_flop > before:
            run.tally.mark(self, "hyper")

    def estimate(self, work: Work) -> Work:
        """What the inner products cost."""
        return work.add(self.inner_products_line(self._given))

    def diagnostics(self) -> dict[str, Any]:
        return {"epochs": self._epochs}
