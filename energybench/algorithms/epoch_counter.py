"""Counts that a method keeps for its estimate, of each epoch apart: what two methods do in the same epochs multiplies
there, and not over the run's means. Where images are large in the epochs in which layers rest, more is saved than the
mean size times the mean share says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Generic, TypeVar

from energybench.flops.work import Work
from energybench.train.interface import TrainingRun

Key = TypeVar("Key")


class EpochCounter(Generic[Key]):
    """A Counter for each epoch of the run, the current one's being added to."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._of_epoch: defaultdict[int, Counter[Key]] = defaultdict(Counter)

    def add(self, key: Key, count: int = 1) -> None:
        self._of_epoch[self._run.epoch_number][key] += count

    def update(self, keys: Iterable[Key]) -> None:
        self._of_epoch[self._run.epoch_number].update(keys)

    def whole(self) -> Counter[Key]:
        """Of the run so far."""
        return sum(self._of_epoch.values(), Counter())

    def of(self, work: Work) -> Counter[Key]:
        """Of the epochs whose work it is; of the run, where the work is the run's."""
        if work.of_epochs is None:
            return self.whole()
        return sum((self._of_epoch.get(number, Counter()) for number in work.of_epochs), Counter())
