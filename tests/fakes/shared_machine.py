"""A machine that others use, on a clock that only its trainings move: drift, launches, caches, for trials in turns."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from energybench.runner.turns import Rest

Slowness = Callable[[float], float]  # seconds on the clock → by what a step takes longer


@dataclass
class Machine:
    """One processor. `slow`: what others do to it; the caches hold what the last training left there."""

    slow: Slowness = lambda now_s: 1.0
    now_s: float = 0.0
    holder: str = ""
    jerk: Callable[[], float] = lambda: 1.0  # of every single step

    def work(self, who: str, seconds: float, refill_s: float) -> float:
        """Seconds that it takes `who` to do the work of so many undisturbed ones, caches filled first."""
        if self.holder != who:
            seconds, self.holder = seconds + refill_s, who
        took_s = seconds * self.slow(self.now_s) * self.jerk()
        self.now_s += took_s
        return took_s


@dataclass
class Training:
    """One trial's planned steps, each with its cost; 0 is a step of an epoch that is skipped.

    launch:   what this process costs more for its life, by where its pages lie
    refill_s: what its first step costs more after another's: a dict says after whose
    """

    label: str
    machine: Machine
    steps_s: Sequence[float]
    launch: float = 1.0
    refill_s: float | dict[str, float] = 0.0
    done: int = 0
    parts_s: list[float] = field(default_factory=list)

    @property
    def total_s(self) -> float:
        return math.fsum(self.parts_s)

    def turn(self, until: float) -> Rest | None:
        times: list[float] = []
        before = self.machine.holder
        refill_s = self.refill_s.get(before, 0.0) if isinstance(self.refill_s, dict) else self.refill_s
        while self.done < len(self.steps_s) and self.done / len(self.steps_s) < until:
            cost_s = self.steps_s[self.done]
            self.done += 1
            if cost_s:
                times.append(self.machine.work(self.label, cost_s * self.launch, refill_s))
        self.parts_s.append(math.fsum(times))
        if self.done == len(self.steps_s):
            return None
        excess_s = times[0] - statistics.median(times[1:]) if len(times) > 3 else None
        return Rest(self.done / len(self.steps_s), self.parts_s[-1], excess_s)


def drifting(chance: random.Random, spread: float, seconds: float) -> Slowness:
    """Slow and fast stretches: log-normal, each as long as an exponential of that mean."""
    ends, factors = [0.0], [1.0]

    def slow(now_s: float) -> float:
        while ends[-1] <= now_s:
            ends.append(ends[-1] + chance.expovariate(1 / seconds))
            factors.append(math.exp(chance.gauss(0.0, spread)))
        place = len(ends) - 1
        while place > 1 and ends[place - 1] > now_s:
            place -= 1
        return factors[place]

    return slow
