"""The sizes of the passes that a method was handed and of those that it made, and what they make of a ledger.

A ledger reaches a method's `estimate` as the layers further in have left it, and layers further out change it after
that. So a method says by how much it changed what came to it, never how much was trained in all: the ratios of a stack
multiply, whichever of its layers leave samples out, and what has been left out is counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from energybench.algorithms.epoch_counter import EpochCounter
from energybench.flops.work import FORWARD, LOOK, PROBE, Line, Work, micro_batches
from energybench.train.interface import TrainingRun


class PassesTaken:
    """Counts batches by their size, in each epoch.

    handed: that came to the method, from plain training or from a layer further out
    given:  that it handed on in their place
    looked: of its own forward passes
    in_steps: it does all that in steps, in which looks are cut into micro-batches as steps are; otherwise it chooses
              data, and looks at samples outside of steps
    """

    def __init__(self, run: TrainingRun, *, in_steps: bool = False) -> None:
        self._in_steps = in_steps
        self.handed: EpochCounter[int] = EpochCounter(run)
        self.given: EpochCounter[int] = EpochCounter(run)
        self.looked: EpochCounter[int] = EpochCounter(run)

    def replaced(self, handed: Iterable[int], given: Iterable[int]) -> None:
        """Batches of these sizes came, and batches of those were handed on."""
        self.handed.update(handed)
        self.given.update(given)

    def instead(self, work: Work) -> Work:
        """The ledger with the passes that were given in place of those that were handed."""
        handed = self.handed.of(work)
        if not handed:  # nothing was trained on
            return work
        ratios = _ratios(self.given.of(work), handed, work.accumulate, work.accumulate)
        stays = PROBE if self._in_steps else ""  # looks outside of steps are not fewer for fewer steps
        lines = tuple(line if line.phase == stays else line.times(*ratios) for line in work.lines)
        return replace(work, lines=lines)

    def looks(self, work: Work) -> tuple[Line, ...]:
        """Lines of the looks, in evaluation: whole, whatever layers further in make of the passes that train.

        Looks outside of steps cost the same whenever they are, also in an epoch that a layer further in has skipped:
        each epoch has the same share of all.
        """
        if self._in_steps:
            phase, pieces, looked, handed = LOOK, work.accumulate, self.looked.of(work), self.handed.of(work)
        else:
            phase, pieces, looked, handed = PROBE, 1, self.looked.whole(), self.handed.whole()
        ratios = _ratios(looked, handed, pieces, work.accumulate)
        return tuple(replace(line, phase=phase).times(*ratios) for line in work.plain if line.phase == FORWARD)


def samples_of(sizes: Counter[int]) -> int:
    """Of all batches together."""
    return sum(size * count for size, count in sizes.items())


def _ratios(of: Counter[int], to: Counter[int], of_pieces: int, to_pieces: int) -> tuple[float, float, float]:
    """Samples, passes and pairs of samples within a pass, of some batches as multiples of those of others."""
    some, others = _sums(of, of_pieces), _sums(to, to_pieces)
    samples, passes, pairs = (one / other if other else 0.0 for one, other in zip(some, others, strict=True))
    return samples, passes, pairs


def _sums(sizes: Counter[int], accumulate: int) -> tuple[float, float, float]:
    passes = pairs = 0.0
    for size, count in sizes.items():
        pieces = micro_batches(size, accumulate)
        passes, pairs = passes + count * len(pieces), pairs + count * sum(piece**2 for piece in pieces)
    return samples_of(sizes), passes, pairs
