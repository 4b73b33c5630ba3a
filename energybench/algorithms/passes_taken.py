"""The sizes of the passes that a method really made, and what they make of the ledger of plain training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from energybench.flops.work import FORWARD, Line, Work, micro_batches


class PassesTaken:
    """Counts batches by their size. accumulated: they are cut into micro-batches, as a step's are."""

    def __init__(self, *, accumulated: bool = True) -> None:
        self._accumulated = accumulated
        self.sizes: Counter[int] = Counter()

    def add(self, samples: int) -> None:
        self.sizes[samples] += 1

    @property
    def samples(self) -> int:
        return sum(size * count for size, count in self.sizes.items())

    def over(self, work: Work) -> tuple[float, float, float]:
        """Samples, passes and pairs of samples within a pass, as multiples of those that a ledger's run has."""
        passes = pairs = 0.0
        for size, count in self.sizes.items():
            pieces = micro_batches(size, work.accumulate if self._accumulated else 1)
            passes, pairs = passes + count * len(pieces), pairs + count * sum(piece**2 for piece in pieces)
        plain_passes, plain_pairs = work.passes()
        samples, passes, pairs = (
            mine / (work.epochs * plain) if work.epochs * plain else 0.0
            for mine, plain in ((self.samples, work.samples), (passes, plain_passes), (pairs, plain_pairs))
        )
        return samples, passes, pairs

    def instead(self, work: Work) -> Work:
        """The ledger where these passes were made in place of its run's."""
        ratios = self.over(work)
        return replace(work, lines=tuple(line.times(*ratios) for line in work.lines))

    def looks(self, work: Work, phase: str) -> tuple[Line, ...]:
        """Lines of these passes as forwards alone, of a ledger before anything was changed in it."""
        ratios = self.over(work)
        return tuple(replace(line, phase=phase).times(*ratios) for line in work.lines if line.phase == FORWARD)
