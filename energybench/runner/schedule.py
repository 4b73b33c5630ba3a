"""Which trial runs when: every cell once per block, workload by workload, in orders that balance over blocks.

A fixed order would charge drift to whoever always comes last: 3 % drift biases AAAAABBBBB by 1.66 %. Of two blocks the
first has a random order (of the workloads, and of the cells inside each, so that plain training and a method never lie
a suite apart) and the second its reverse: what drifts steadily cancels. Each run draws the seed of its order anew and
keeps it: replications of a suite do not share one order, and a run that is continued keeps its own.

A control comes after its method, of which it takes the budget: in a block the controls of a workload stand after its
other cells, so that a method is as likely to run before plain training as after it.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from energybench.common.hashing import stable_seed
from energybench.records.record import Cell, Trial
from energybench.suite.suite import cell_name

ORDER_SEED = "ENERGYBENCH_ORDER_SEED"  # repeats the order of another run


@dataclass(frozen=True, slots=True)
class Slot:
    """One trial to run. `group`: of trials that take turns, of which a block may have several for one workload."""

    cell: Cell
    block: int
    position: int
    invocation: int
    group: int = 0

    @property
    def trial(self) -> str:
        group = f"g{self.group}-" if self.group else ""
        return f"b{self.block}-i{self.invocation}-{group}{cell_name(self.cell.workload, self.cell.method)}"


def draw_order_seed() -> int:
    """The seed of a new run's order: another one each time, unless $ENERGYBENCH_ORDER_SEED names it."""
    given = os.environ.get(ORDER_SEED, "")
    return int(given) if given.isdecimal() and int(given) < 2**63 else secrets.randbits(32)


def order(cells: Sequence[Cell], block: int, seed: int) -> list[Cell]:
    """A block's cells in its own order; that of an odd block is the reverse of the one before it, controls apart."""
    chance = random.Random(stable_seed(seed, "schedule", block // 2))
    first: dict[str, list[Cell]] = {}
    last: dict[str, list[Cell]] = {}  # drawn after the others, whose order is the same without them
    for cell in (cell for cell in cells if not cell.skipped):
        first.setdefault(cell.workload, [])
        (last if waits_for_method(cell) else first).setdefault(cell.workload, []).append(cell)
    workloads = list(first)
    chance.shuffle(workloads)
    for inside in (*first.values(), *last.values()):
        chance.shuffle(inside)
    step = -1 if block % 2 else 1
    return [cell for name in workloads[::step] for part in (first, last) for cell in part.get(name, [])[::step]]


def waits_for_method(cell: Cell) -> bool:
    """Whether its budget is known only when its method's trial of the same block has ended."""
    return cell.role == "control"


def by_workload(slots: Sequence[Slot]) -> list[list[Slot]]:
    """The slots of each block's workloads, in their order."""
    found: dict[tuple[int, str], list[Slot]] = {}
    for slot in slots:
        found.setdefault((slot.block, slot.cell.workload), []).append(slot)
    return list(found.values())


def missing(
    cells: Sequence[Cell], blocks: int | Iterable[int], seed: int, done: Iterable[Trial], invocation: int
) -> list[Slot]:
    """What is left to run of so many blocks, or of these. A block that is resumed runs its baseline again: only one
    invocation's trials pair up, and of those that took turns only one group's.

    For the same reason a trial whose own invocation never got to the baseline of its block is not done, nor a control
    whose invocation never got to its method; and a method runs again beside a control that is left. None is left of a
    method that did not train less.
    """
    done = list(done)
    there = {(t.block, t.workload, t.invocation, t.method) for t in done}
    paired = {(t.block, t.workload, t.invocation, t.group) for t in done if t.role == "baseline"}
    have = {
        (t.block, t.workload, t.method)
        for t in done
        if (t.block, t.workload, t.invocation, t.group) in paired
        and (t.of is None or (t.block, t.workload, t.invocation, t.of) in there)
    }
    alone = {
        (t.block, t.workload, t.method)
        for t in done
        if t.role == "method" and not t.trained_less and (t.block, t.workload, t.invocation, t.group) in paired
    }
    slots: list[Slot] = []
    for block in range(blocks) if isinstance(blocks, int) else blocks:
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


def superseded(
    cells: Sequence[Cell], blocks: Iterable[int], seed: int, done: Iterable[Trial], is_here: Callable[[Trial], bool]
) -> list[Trial]:
    """What a block that is not whole has of another device: it starts anew on this one, with its baseline, since a
    block that is begun on one device and ended on another is one of neither. A block that is whole stays as it is.

    is_here: whether a trial was made on the device of this job
    """
    of_block: dict[int, list[Trial]] = {}
    for trial in done:
        of_block.setdefault(trial.block, []).append(trial)
    found: list[Trial] = []
    for block in blocks:
        elsewhere = [trial for trial in of_block.get(block, []) if not is_here(trial)]
        if elsewhere and missing(cells, [block], seed, of_block[block], 0):
            found += elsewhere
    return found
