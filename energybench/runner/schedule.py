"""Which trial runs when: every cell once per block, in a random order of the block's own.

A fixed order would charge drift to whoever always comes last: 3 % drift biases AAAAABBBBB by 1.66 %, a random order by
nothing. The order depends on the suite's seed and the block alone.

A control comes after its method, of which it takes the budget: in a block the controls of a workload stand after its
other cells, so that a method is as likely to run before plain training as after it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from energybench.common.hashing import stable_seed
from energybench.records.record import Cell, Trial
from energybench.suite.suite import cell_name


@dataclass(frozen=True, slots=True)
class Slot:
    """One trial to run."""

    cell: Cell
    block: int
    position: int
    invocation: int

    @property
    def trial(self) -> str:
        return trial_name(self.block, self.invocation, self.cell.workload, self.cell.method)


def trial_name(block: int, invocation: int, workload: str, method: str) -> str:
    """The file stem of a trial's record."""
    return f"b{block}-i{invocation}-{cell_name(workload, method)}"


def order(cells: Sequence[Cell], block: int, seed: int) -> list[Cell]:
    """A block's cells in its own random order; of the places of a workload's cells its controls take the last."""
    shuffled = [cell for cell in cells if not cell.skipped]
    random.Random(stable_seed(seed, "schedule", block)).shuffle(shuffled)
    by_workload: dict[str, list[Cell]] = {}
    for cell in shuffled:
        by_workload.setdefault(cell.workload, []).append(cell)
    turns = {name: iter(sorted(each, key=lambda cell: cell.role == "control")) for name, each in by_workload.items()}
    return [next(turns[cell.workload]) for cell in shuffled]


def missing(cells: Sequence[Cell], blocks: int, seed: int, done: Iterable[Trial], invocation: int) -> list[Slot]:
    """What is left to run. A block that is resumed runs its baseline again: only one invocation's trials pair up.

    For the same reason a trial whose own invocation never got to the baseline of its block is not done, nor a control
    whose invocation never got to its method; and a method runs again beside a control that is left. None is left of a
    method that did not train less.
    """
    done = list(done)
    there = {(t.block, t.workload, t.invocation, t.method) for t in done}
    paired = {(t.block, t.workload, t.invocation) for t in done if t.role == "baseline"}
    have = {
        (t.block, t.workload, t.method)
        for t in done
        if (t.block, t.workload, t.invocation) in paired
        and (t.of is None or (t.block, t.workload, t.invocation, t.of) in there)
    }
    alone = {
        (t.block, t.workload, t.method)
        for t in done
        if t.role == "method" and not t.trained_less and (t.block, t.workload, t.invocation) in paired
    }
    slots: list[Slot] = []
    for block in range(blocks):
        planned = order(cells, block, seed)
        left = [
            cell
            for cell in planned
            if (block, cell.workload, cell.method) not in have
            and not (cell.control and (block, cell.workload, cell.of) in alone)
        ]
        beside = {(cell.workload, cell.of) for cell in left}
        left = [cell for cell in planned if cell in left or (cell.workload, cell.method) in beside]
        resumed = {cell.workload for cell in left}
        for position, cell in enumerate(planned):
            if cell in left or (cell.role == "baseline" and cell.workload in resumed):
                slots.append(Slot(cell, block, position, invocation))
    return slots
