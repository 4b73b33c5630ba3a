"""batch_growth: multiply the batch instead of dividing the learning rate, or train with large batches from the start.

At the shares `at` of training the batch is multiplied by `factor`, at a learning rate that stays: the noise of the
gradient, ∝ rate/batch, falls as it would with the rate divided by as much. With `large` = k every batch is k times the
recipe's from the first step on, and the rate k times ("linear") or √k times ("sqrt", for adaptive optimizers) the
recipe's, reached by a linear warm-up from it.

Papers: Smith et al. 2018, Don't Decay the Learning Rate, Increase the Batch Size, §3; Goyal et al. 2017, Accurate,
Large Minibatch SGD, §2.1 (linear scaling) and §2.2 (gradual warm-up); Hoffer et al. 2017 for the square root. Promises
no FLOPs: as many samples, in fewer updates and larger products, which use a device better. Costs memory, in proportion.
Owns `batches`. Composes with what leaves the choice of samples to it. Give it a recipe with a constant rate for `at`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from energybench import Batch, Data, Method, TrainingRun, Work
from energybench.algorithms.passes_taken import PassesTaken

SCALES = ("linear", "sqrt", "none")


@dataclass
class BatchGrowth(Method):
    """factor: by which the batch is multiplied at each of `at`

    at:     shares of training after which it is, in order
    large:  by which it is multiplied from the start
    scale:  of the learning rate with `large`: "linear" | "sqrt" | "none"
    warmup: share of training in which the rate rises to that
    """

    by_epoch: ClassVar[bool] = True
    replaces: ClassVar[frozenset[str]] = frozenset({"batches"})
    trains_less: ClassVar[bool | None] = False
    example: ClassVar[Mapping[str, Any]] = {"at": [0.5]}

    factor: Annotated[int, Field(ge=1)] = 2
    at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    large: Annotated[int, Field(ge=1)] = 1
    scale: Literal["linear", "sqrt", "none"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        self.at = tuple(self.at)
        if min(self.factor, self.large) < 1:
            raise ValueError(f"factor and large multiply the batch, by 1 or more, not {min(self.factor, self.large)}")
        if any(not 0 < share < 1 for share in self.at) or list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at are different shares of training in (0, 1), in order, not {list(self.at)}")
        if self.scale not in SCALES:
            raise ValueError(f"scale is one of {', '.join(SCALES)}, not '{self.scale}'")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of training in [0, 1), not {self.warmup}")

    def times(self, epoch: int, epochs: int) -> int:
        """By what the recipe's batch is multiplied in an epoch, counted from 1."""
        return int(self.large * self.factor ** sum((epoch - 1) / epochs >= share - 1e-9 for share in self.at))

    def incompatible_run(self, run: TrainingRun) -> str | None:
        if "epoch" in run.task.replaces:
            return "the task makes its own rounds, of batches of its own"
        largest = run.recipe.batch * self.times(run.epochs, run.epochs)
        if largest > len(run.data):
            return f"its batch grows to {largest:,} samples, and there are {len(run.data):,}"
        return None

    def setup(self, run: TrainingRun) -> None:
        acts = {self.times(epoch, run.epochs) for epoch in range(1, run.epochs + 1)} != {1}
        self.acted = False if acts else None
        self._passes = PassesTaken(run)
        self._sizes: list[int] = []

    def steps_per_epoch(self, run: TrainingRun) -> int | None:
        times = self.times(run.epoch_number, run.epochs)
        return run.data.steps(run.recipe.batch * times) if times > 1 else None

    def lr_factor(self, run: TrainingRun) -> float:
        whole = {"linear": float(self.large), "sqrt": math.sqrt(self.large), "none": 1.0}[self.scale]
        if not self.warmup:
            return whole
        progress = (run.epoch_number - 1 + min(1.0, run.step_in_epoch / run.steps_per_epoch)) / run.epochs
        return 1 + (whole - 1) * min(1.0, progress / self.warmup)

    def batches(self, run: TrainingRun, data: Data, inner: Callable[[Data], Iterable[Batch]]) -> Iterable[Batch]:
        size = run.recipe.batch * self.times(run.epoch_number, run.epochs)
        self._sizes.append(size)
        self._passes.replaced(data.sizes(run.recipe.batch), data.sizes(size))
        return run.load(data, data.cut(run.order(data), size))

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        if self.times(run.epoch_number, run.epochs) > 1:
            run.tally.mark(self)
        inner(batch)

    def estimate(self, work: Work) -> Work:
        """As many samples, in fewer steps: what a step costs once is paid less often, what pairs cost more often."""
        return self._passes.instead(work)

    def diagnostics(self) -> dict[str, Any]:
        return {"batch_by_epoch": self._sizes}
