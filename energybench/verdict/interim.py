"""Interim analyses, the looks: when verdicts may be drawn, and how much of their chance of error each may spend.

Looking after every block until something shows calls "saves" where the saving is exactly the margin: from 3 to 30
blocks 7 times in 100 instead of one. So the looks are declared before the first block, and the chances of error (1 %
for a claim, 5 % for an interval) are spent in proportion to the blocks that a look adds: 25, 25 and 50 % of them after
5, 10 and 20 of 20.

Spending in proportion to what is known: Lan and DeMets, Biometrika 70 (1983) 659; the linear one: Kim and DeMets,
Biometrika 74 (1987) 149. Their boundaries are integrals of normal statistics of known variance, and three blocks have
neither; here the shares are levels of their own and Bonferroni's inequality adds them up, so what is promised holds for
Student's t, pooled spreads, lost blocks and looks that a --max-time puts in, for a few per cent more blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from energybench.common.renamed import renamed
from energybench.records.record import Cell, RunFile, Trial


@renamed(share="alpha_fraction")
@dataclass(frozen=True, slots=True)
class Look:
    """The look that a run's verdicts are of. Before the first, `number` is 0 and there is no verdict."""

    number: int
    of: int
    blocks: int  # trials of later blocks enter no figure
    next: int | None  # blocks after which the next look is, where the run goes on
    most: int  # blocks that were declared
    alpha_fraction: float  # of every chance of error, what this look may use

    @property
    def open(self) -> bool:
        """Whether there may be verdicts."""
        return self.number > 0


def whole_blocks(run: RunFile, trials: Iterable[Trial]) -> int:
    """How many blocks from the first have a trial, good or failed, of every cell that one is due of."""
    trials = list(trials)
    cells = [c for c in run.cells if c.skipped is None]
    without = missing_blocks(cells, trials, run.blocks)
    return min((missing[0] for missing in without.values() if missing), default=run.blocks) if cells else 0


def missing_blocks(cells: Iterable[Cell], trials: Iterable[Trial], blocks: int) -> dict[tuple[str, str], list[int]]:
    """(workload, method) → the blocks below `blocks` in which a trial of the cell is due and not there. A control's is
    due where the newest trial of its method trained less; in records of before, always."""
    newest: dict[tuple[str, str], dict[int, Trial]] = {}
    for trial in sorted(trials, key=lambda t: t.invocation):
        newest.setdefault((trial.workload, trial.method), {})[trial.block] = trial
    every = frozenset(range(blocks))

    def due(cell: Cell) -> Set[int]:
        if cell.control is None:
            return every
        method = newest.get((cell.workload, cell.of or ""), {})
        return every & {block for block, trial in method.items() if trial.trained_less}

    names = {(cell.workload, cell.method): cell for cell in cells}
    return {name: sorted(due(cell) - newest.get(name, {}).keys()) for name, cell in names.items()}


def current_look(run: RunFile, trials: Iterable[Trial]) -> Look:
    """The last look that was reached. A finished run is at its last one, whatever failed in it.

    Returns:
        Its number from 1, and the fraction of the chance of error that it may use: the share of the declared blocks
        that it adds. Before the first look the number is 0 and nothing may be called a verdict.
    """
    declared_at = set(run.looks.at) if run.looks else {run.blocks}
    taken = set(run.looks.taken) if run.looks else set()
    known = sorted(declared_at | taken | ({run.verdict_blocks} if run.finished else set()))
    there = run.verdict_blocks if run.finished else whole_blocks(run, trials)
    reached = [n for n in known if n <= there]
    if not reached:
        return Look(0, len(known), run.blocks, known[0], run.blocks, 1.0)
    last, before = reached[-1], reached[-2] if len(reached) > 1 else 0
    coming = next((n for n in known if n > last), None)
    return Look(
        len(reached), len(known), last, None if run.finished else coming, run.blocks, (last - before) / run.blocks
    )
