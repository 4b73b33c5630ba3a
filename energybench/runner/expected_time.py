"""About how long a suite takes, by the plain steps that its check has timed. Imports no torch.

What a method makes steps dearer by (Dropout half, MeZO 2.7 times) is not in it: nobody has timed that yet.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from energybench.common.units import format_seconds
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
    step_s, steps = known.step_s or 0.0, known.steps * known.epochs
    parts = turns.parts_of(planned.suite.trials.turns, steps=steps, training_s=steps * step_s, least_part_s=0.0)
    surround_s = _around_s(planned, name, parts if isinstance(parts, int) else 0)
    again = 0
    if isinstance(parts, int):
        roles = Counter(cell.role for cell in cells)
        again = max(0, turns.group_count(roles["method"]) + turns.group_count(roles["control"]) - 1)
    return sum((cell.expected_s or 0.0) + surround_s for cell in cells) + again * (steps * step_s + surround_s)


def _around_s(planned: Planned, name: str, parts: int) -> float:
    """Of what surrounds a training: its process, the warm-up, the rehearsals before its parts, and the test set."""
    settings, known = planned.workload(name)
    warmup = planned.suite.trials.warmup
    evaluations = known.epochs if settings.train.evaluate == "every epoch" else 1
    steps = REHEARSED_STEPS * parts + evaluations * FORWARD_REL * known.data.test / settings.data.batch
    asked_s = warmup.count
    if warmup.unit != "s":
        steps, asked_s = steps + warmup.count, 0.0
    return AROUND_S + asked_s + steps * (known.step_s or 0.0)
