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

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from energybench import Line, Method
from energybench.algorithms.hypergradient_sgd import HyperSGD, check_rates, refusal


@dataclass
class Ultimate(Method):
    """hyper_lr: η, the learning rate of the learning rate

    hyper_momentum: momentum of the steps on the learning rate; the authors' code has 0.9 by default
    learn_momentum: learn SGD's momentum too, with the same η
    """

    replaces: ClassVar[frozenset[str]] = frozenset({"update"})
    needs: ClassVar[frozenset[str]] = frozenset({"backward"})

    hyper_lr: float = 1.5e-5
    hyper_momentum: float = 0.0
    learn_momentum: bool = False

    def __post_init__(self) -> None:
        check_rates(self.hyper_lr, self.hyper_momentum)

    def incompatible_recipe(self, train):
        return refusal(train, self.learn_momentum)

    def setup(self, run):
        recipe = run.recipe
        if why := self.incompatible_recipe({"optimizer": recipe.optimizer, "nesterov": recipe.nesterov}):
            raise ValueError(f"{self.name}: {why}")
        self.acted = False
        self._given = 0  # samples of the epochs that trained, as they were given
        self._built: list[HyperSGD] = []  # one per part, in the order of their first use
        self._epochs: list[dict[str, float | int]] = []

    def optimizer(self, run, params, inner):
        made = HyperSGD(
            params,
            run.recipe.lr,
            momentum=run.recipe.momentum,
            decay=run.recipe.decay,
            nesterov=run.recipe.nesterov,
            hyper_lr=self.hyper_lr,
            hyper_momentum=self.hyper_momentum,
            learn_momentum=self.learn_momentum,
        )
        self._built.append(made)
        return made

    def epoch(self, run, data, inner):
        steps = run.tally.steps
        inner(data)
        self._given += data.samples(run.recipe.batch) * (run.tally.steps > steps)
        for optimizer in self._built:
            rates = {"learning_rate": optimizer.rate.item(), "momentum": optimizer.momentum.item()}
            self._epochs.append({"epoch": run.epoch_number} | rates)

    def update(self, run, part, inner):
        optimizer = run.optimizer(part)
        if run.recipe.clip is not None:
            nn.utils.clip_grad_norm_(run.parameters(part), run.recipe.clip)
        before = optimizer.product_flop
        optimizer.step()
        if optimizer.product_flop > before:
            run.tally.mark(self, "hyper")

    def estimate(self, work):
        """What the inner products cost."""
        flop = sum(optimizer.product_flop for optimizer in self._built)
        return work.add(Line("hypergradient", "", "dot", flop / max(1, self._given)))

    def diagnostics(self):
        return {"epochs": self._epochs}
