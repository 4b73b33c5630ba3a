"""How many threads the trials of a run compute with: chosen once, from short timings under the load of the moment.

On a machine that others use, a step on two threads waits at every barrier for whichever lost its core: 216 ms have been
seen for a step that takes 6 ms on one. On a quiet one a large step is faster on more. Imports no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energybench.common.units import format_seconds
from energybench.runner.plan_spec import PlannedWorkload

GAIN = 0.1  # that more threads must bring, on average and in the middle, to be worth what may hold them up


def candidates(usable: int) -> tuple[int, ...]:
    """Numbers of threads to try: 1, 2, 4, … and as many as there are processors to use."""
    counts = []
    count = 1
    while count < usable:
        counts.append(count)
        count *= 2
    return (*counts, max(1, usable))


def choose(seconds: Mapping[int, Sequence[float]]) -> int:
    """The fewest threads that no larger number beats by more than a tenth.

    The mean is what a training pays, and one step in ten that waits for a core is in it; the median keeps one slow
    moment of the machine from deciding.

    Args:
        seconds: number of threads → of the same work, as often as it was timed; at least one number

    Raises:
        ValueError: for no number, or one that was never timed
    """
    best, *more = sorted(seconds)
    for count in more:
        faster = (
            value(seconds[count]) < (1 - GAIN) * value(seconds[best]) for value in (statistics.fmean, statistics.median)
        )
        if all(faster):
            best = count
    return best


def together(workloads: Sequence[tuple[float, Mapping[int, Sequence[float]]]]) -> dict[int, list[float]]:
    """The seconds of all workloads, round by round. workloads: (steps, number of threads → seconds of a step)."""
    counts = set.intersection(*(set(timed) for _, timed in workloads)) if workloads else set()
    rounds = min((len(timed[count]) for _, timed in workloads for count in counts), default=0)
    return {
        count: [sum(steps * timed[count][number] for steps, timed in workloads) for number in range(rounds)]
        for count in sorted(counts)
        if rounds
    }


@dataclass(frozen=True, slots=True)
class Choice:
    """threads: of every trial; facts: for the record; notes: for whoever runs it."""

    threads: int
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()

    def timed(self, workload: PlannedWorkload) -> PlannedWorkload:
        """The same, its steps as long as they are with these threads."""
        if self.threads not in workload.threads_s:
            return workload
        return workload.model_copy(update={"step_s": statistics.median(workload.threads_s[self.threads])})


def choice(workloads: Mapping[str, PlannedWorkload], counts: Sequence[int]) -> Choice | None:
    """One number for all workloads, by what all of plain training would take; None where there is none to choose.

    counts: those that may be chosen
    """
    if not counts:
        return None
    timed = [(float(known.steps * known.epochs), known.threads_s) for known in workloads.values() if known.threads_s]
    whole = together(timed)
    if not whole:
        return Choice(min(counts), {"usable": max(counts), "reason": "no step was timed"})
    threads = choose(whole)
    means = {count: statistics.fmean(seconds) for count, seconds in whole.items()}
    facts = {"usable": max(counts), "trainings_s": {str(count): seconds for count, seconds in means.items()}}
    if len(means) == 1:
        return Choice(threads, facts)
    told = ", ".join(f"{format_seconds(seconds)} on {count}" for count, seconds in means.items())
    return Choice(threads, facts, (f"threads: {threads}; plain trainings would take {told} now",))
