"""The matched control's run: plain training for as many steps as its method's own tally paid for.

Whole epochs, then a part of one; the schedule of the learning rate is that of all of them, so it ends where the steps
do. A budget of whole epochs is plain training planned for so many epochs, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from energybench.train.batch import Batch
from energybench.train.data import Data
from energybench.train.method import Task
from energybench.train.plain_epochs import every_epoch
from energybench.train.rank_run import RankRun
from energybench.train.recipe import Recipe
from energybench.train.run import Run


class BudgetSpent(BaseException):
    """The last step was taken. No error, so that no task's `except Exception` trains on."""


class ControlRun(Run):
    """Plain training of `steps` steps. Takes what `Run` takes, whose `epochs` are as many as hold them."""

    def __init__(self, task: Task, methods: list[Any], recipe: Recipe, *args: Any, steps: int, **kwargs: Any) -> None:
        super().__init__(task, methods, recipe, *args, **kwargs)
        if rounds := every_epoch(self, range(1, recipe.epochs + 1)):
            whole, self._rest, one_epoch = _cut(steps, [epoch.updates for epoch in rounds])
            self.schedule_epochs = whole + self._rest / one_epoch
        else:
            one_epoch = steps_per_epoch(task, self.data, recipe)
            whole, self._rest = divmod(steps, one_epoch)
            self.schedule_epochs = steps / one_epoch
        self._in_rounds, self.epochs = bool(rounds), whole + (self._rest > 0)

    @property
    def epochs_of_work(self) -> float:
        return float(self.tally.epochs_trained)

    @property
    def _in_part(self) -> bool:
        """Whether the epoch is the one of which a part is trained."""
        return self._rest > 0 and self.epoch_number == self.epochs

    def train_epoch(self, number: int) -> None:
        super().train_epoch(number)
        if self._in_rounds:
            self.tally.epochs_trained = number - 1 + self.step_in_epoch / self.steps_per_epoch
            return
        one_pass = self.data.samples(self.recipe.batch) * len(self.task.parts)
        self.tally.epochs_trained = self.tally.samples / one_pass

    def _train_epoch(self) -> None:
        self._training = True
        try:
            super()._train_epoch()
        except BudgetSpent:
            pass
        finally:
            self._training = False

    def _batches(self, data: Data) -> Iterable[Batch]:
        batches = data.cut(self.order(data), self.recipe.batch)
        return self.load(data, batches[: self._rest] if self._in_part else batches)  # none is read for nobody

    _training = False  # a warm-up takes steps of its own

    def _whole_step(self, chain: Callable[[Batch], None], batch: Batch) -> None:
        super()._whole_step(chain, batch)
        if self._training and self._in_part and self.step_in_epoch == self._rest:
            raise BudgetSpent


class RankControlRun(RankRun, ControlRun):
    """The same by several ranks."""


def _cut(steps: int, updates: Sequence[int]) -> tuple[int, int, int]:
    """Whole epochs, what is left of the steps behind them, and the steps of the epoch in which these lie.

    updates: of every planned epoch
    """
    for whole, each in enumerate(updates):
        if steps < each:
            return whole, steps, each
        steps -= each
    return len(updates), 0, updates[-1]


def steps_per_epoch(task: Task, data: Data, recipe: Recipe) -> int:
    """Of plain training: one pass for each part of the task."""
    return data.steps(recipe.batch) * len(task.parts)
