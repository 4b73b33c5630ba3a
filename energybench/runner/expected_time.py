"""About how long a suite takes, by the plain steps that its check has timed. Imports no torch.

What a method makes steps dearer by (Dropout half, MeZO 2.7 times) is not in it: nobody has timed that yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from energybench.common.units import format_seconds
from energybench.records.record import Cell
from energybench.runner import turns
from energybench.runner.plan_request import Planned, is_counted_on
from energybench.trial.spec import REHEARSED_STEPS

AROUND_S = 0.5  # of a process: fork, data, model, record
COUNTED_SLOWER = 1.5  # than a training, under the counter of FLOPs
FORWARD_REL = 1 / 3  # of a step's time; a backward takes twice a forward


@dataclass(frozen=True)
class ExpectedTime:
    """In seconds: least_s with the trials that are sure, most_s with each control that a method's tally may ask for."""

    least_s: float
    most_s: float

    def __str__(self) -> str:
        least, most = (format_seconds(seconds, 2) for seconds in (self.least_s, self.most_s))
        return f"about {least}" if least == most else f"about {least} to {most}"


def expected_time(planned: Planned) -> ExpectedTime | None:
    """Of all blocks and counting runs; None with commands, of whose time nothing is known."""
    if any(cell.command and not cell.skipped for cell in planned.cells):
        return None
    counted_s = sum((cell.expected_s or 0.0) * COUNTED_SLOWER + AROUND_S for cell in planned.counting_runs)
    blocks_s = (
        planned.spec.blocks * sum(_of_a_block_s(planned, name, possible) for name in planned.workloads)
        for possible in (False, True)
    )
    return ExpectedTime(*(counted_s + each for each in blocks_s))


def _of_a_block_s(planned: Planned, name: str, possible: bool) -> float:
    """Of a workload's trials in one block, with the plain training that each further group has."""
    cells = [cell for cell in planned.cells if cell.workload == name and not cell.skipped]
    cells = [cell for cell in cells if is_counted_on(cell) or (possible and cell.control == "possible")]
    _, known = planned.workload(name)
    plain_s = known.steps * known.epochs * (known.step_s or 0.0)
    surround_s = _around_s(planned, name)
    again = _further_groups(planned, name, cells)
    return sum((cell.expected_s or 0.0) + surround_s for cell in cells) + again * (plain_s + surround_s)


def further_plain(planned: Planned) -> int:
    """Plain trainings beyond those of the cells: of groups that take turns, each further one has its own."""
    counted_on = [cell for cell in planned.cells if is_counted_on(cell)]
    of_a_block = (
        _further_groups(planned, name, [cell for cell in counted_on if cell.workload == name])
        for name in planned.workloads
    )
    return planned.spec.blocks * sum(of_a_block)


def _further_groups(planned: Planned, name: str, cells: Sequence[Cell]) -> int:
    """Beyond the first, of a workload's cells in a block."""
    if not _parts(planned, name):
        return 0
    roles = Counter(cell.role for cell in cells)
    return max(0, turns.group_count(roles["method"]) + turns.group_count(roles["control"]) - 1)


def _parts(planned: Planned, name: str) -> int:
    """Into how many parts its trainings are cut, as far as sensors ask for no longer ones; 0 where they are not."""
    _, known = planned.workload(name)
    steps = known.steps * known.epochs
    training_s = steps * (known.step_s or 0.0)
    parts = turns.parts_of(planned.suite.trials.turns, steps=steps, training_s=training_s, least_part_s=0.0)
    return parts if isinstance(parts, int) else 0


def _around_s(planned: Planned, name: str) -> float:
    """Of what surrounds a training: its process, the warm-up, the rehearsals before its parts, and the test set."""
    settings, known = planned.workload(name)
    warmup = planned.suite.trials.warmup
    evaluations = known.epochs if settings.train.evaluate == "every epoch" else 1
    steps = REHEARSED_STEPS * _parts(planned, name) + evaluations * FORWARD_REL * known.data.test / settings.data.batch
    asked_s = warmup.count
    if warmup.unit != "s":
        steps, asked_s = steps + warmup.count, 0.0
    return AROUND_S + asked_s + steps * (known.step_s or 0.0)
