"""A run's cells and records by workload, sorted once, so that no workload looks through those of all the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from energybench.records.record import Cell, CountingRun, RunFile, Trial

Part = TypeVar("Part", Cell, CountingRun, Trial)


class ByWorkload:
    """Attributes:
    run:           with the suite as it was resolved, and the cells that were planned
    cells:         workload → those planned of it, in the order of the run; so of the other two
    trials:        in the order in which they were given
    counting_runs: likewise
    twins:         workloads that are compared with themselves
    """

    def __init__(self, run: RunFile, trials: Iterable[Trial], counting_runs: Iterable[CountingRun]) -> None:
        self.run = run
        self.cells = _grouped(run.cells)
        self.trials = _grouped(trials)
        self.counting_runs = _grouped(counting_runs)
        self.twins = len({cell.workload for cell in run.cells if cell.role == "twin" and not cell.skipped})

    @property
    def names(self) -> list[str]:
        """Of the workloads: as planned, then those of which only trials are there."""
        return list(dict.fromkeys([*self.cells, *self.trials]))


def _grouped(parts: Iterable[Part]) -> dict[str, Sequence[Part]]:
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.workload, []).append(part)
    return dict(found)
