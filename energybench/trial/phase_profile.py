"""Where the time goes: forward, backward, update, data, and what a stack does of its own.

Every border between two phases waits for the device, so this never happens in a metered trial. Two profiling runs,
plain training and the stack, take turns epoch by epoch, so that a slow minute of the machine meets both; each takes a
few steps of every epoch. What they say is scaled to the whole run by its tally.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from energybench.records.record import Estimate, ProfilingRun
from energybench.train.batch import Batch, Forward
from energybench.train.data import Data
from energybench.train.passes import every_epoch
from energybench.train.run import Run

STEPS, FEWEST_STEPS = 24, 3  # of a profiling run; and in each of its epochs, of which the first is cold

ALIKE = 0.02  # of plain training's FLOPs, by the stack's own formulas: a profiling run and the run that it stands for

METHOD_OVERHEAD = "method_overhead"  # the phase of what a stack does of its own

Seconds = dict[str, float]
Item = TypeVar("Item")


class Stopwatch:
    """Seconds by phase; a phase entered inside another stops the outer one."""

    def __init__(self, synchronise: Callable[[], None], now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._synchronise, self._now_ns = synchronise, now_ns
        self._phases: list[str] = []
        self._since = 0
        self.seconds: Seconds = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._switch()
        self._phases.append(name)
        try:
            yield
        finally:
            self._switch()
            self._phases.pop()

    def _switch(self) -> None:
        self._synchronise()
        now = self._now_ns()
        if self._phases:
            phase = self._phases[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + (now - self._since) / 1e9
        self._since = now


class TimedRun(Run):
    """A run whose every layer is timed; its epochs end after `limit` steps, where no method replaces `epoch`."""

    def __init__(self, *args: Any, watch: Stopwatch, limit: int, **kwargs: Any) -> None:
        self.watch, self.limit = watch, limit
        self.by_key: dict[str, list[Seconds]] = defaultdict(list)  # cost key → seconds of each such step
        self._cold: list[Seconds] = []  # an epoch's first steps: the other run has just had the caches
        super().__init__(*args, **kwargs)

    def train_epoch(self, number: int) -> None:
        with self.watch.phase("loop"):
            super().train_epoch(number)

    def forward(self, batch: Batch, mode: str = "train", grad: bool = True) -> Forward:
        with self.watch.phase("forward"):
            return super().forward(batch, mode, grad)

    def backward(self, loss: Tensor) -> None:
        with self.watch.phase("backward"):
            super().backward(loss)

    def outside(self) -> Seconds:
        """Seconds that belong to epochs and not to a step."""
        steps = [step for steps in self.by_key.values() for step in steps]
        return subtracted(self.watch.seconds, total([*steps, *self._cold]))

    def _epoch(self, data: Data) -> None:
        batches = iter(self.batches(data))
        for number in range(self.limit):
            before = self.watch.seconds.copy()
            batch = next(batches, None)
            if batch is None:
                return
            self.step(batch)
            cold = number == 0 and data.steps(self.recipe.batch) > 1
            steps = self._cold if cold else self.by_key[self.tally.cost_key()]
            steps.append(subtracted(self.watch.seconds, before))

    def load(self, data: Data, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """Loading is a wait for data, whoever asks; what chooses positions one by one is a method's own work."""
        chosen = batches if isinstance(batches, list) else self._timed(batches, METHOD_OVERHEAD)
        return self._timed(super().load(data, chosen), "data")

    def _update(self, part: str) -> None:
        with self.watch.phase("update"):
            super()._update(part)

    def _enter(self, key: tuple[str, str], call: Callable[..., Any], inner: Callable[..., Any], argument: Any) -> Any:
        if key[0] == self.task.name:
            return super()._enter(key, call, inner, argument)

        def rest(argument: Any) -> Any:
            with self.watch.phase("loop"):
                return inner(argument)

        with self.watch.phase(METHOD_OVERHEAD):
            result = super()._enter(key, call, rest, argument)
        return self._timed(result, METHOD_OVERHEAD) if key[1] == "batches" else result

    def _timed(self, items: Iterable[Item], phase: str) -> Iterator[Item]:
        """Most of a generator runs when an item is asked for."""
        given = iter(items)
        while True:
            with self.watch.phase(phase):
                item = next(given, None)
            if item is None:
                return
            yield item


def other_work(profiled: Estimate | None, whole: Estimate | None) -> str:
    """Why a profiling run does not stand for the run: what some methods do depends on how far an epoch has led."""
    if profiled is None or whole is None:
        return ""
    in_steps, in_run = (1 - e.estimated_flop / e.plain_flop for e in (profiled, whole))
    if abs(in_steps - in_run) <= ALIKE:
        return ""
    saves = f"in a few steps of each epoch it saves {100 * in_steps:.1f} % of the FLOPs"
    return f"{saves}, in the whole run {100 * in_run:.1f} %"


def steps_per_epoch(epochs: int) -> int:
    return max(FEWEST_STEPS, math.ceil(STEPS / epochs))


def in_turns(baseline: TimedRun, method: TimedRun, keys: dict[str, int]) -> ProfilingRun:
    """Both run in turns. keys: steps of the stack's whole run by cost key."""
    for number in range(1, max(baseline.epochs, method.epochs) + 1):
        for run in (baseline, method) if number % 2 else (method, baseline):
            if number <= run.epochs and run.stop_reason is None:
                run.train_epoch(number)
    rounds = every_epoch(baseline, range(1, baseline.epochs + 1))
    planned = sum(epoch.updates for epoch in rounds) or baseline.epochs * baseline.data.steps(baseline.recipe.batch)
    whole = {"plain": planned}
    return ProfilingRun(
        steps=sum(len(steps) for run in (baseline, method) for steps in run.by_key.values()),
        plain_s=dict(scaled(baseline, whole)),
        method_s=dict(scaled(method, keys)),
    )


def scaled(run: TimedRun, keys: dict[str, int]) -> Seconds:
    """Seconds of a whole run by phase: of each kind of step the median, times how many there are; and what lies
    outside of steps, as it was. A kind that the profiling run never met is taken for an average step."""
    every = [step for steps in run.by_key.values() for step in steps]
    seconds = run.outside()
    for key, count in keys.items():
        steps = run.by_key.get(key) or every
        for phase in {phase for step in steps for phase in step}:
            middle = statistics.median(step.get(phase, 0.0) for step in steps)
            seconds[phase] = seconds.get(phase, 0.0) + count * middle
    return seconds


def total(parts: Iterable[Seconds]) -> Seconds:
    sums: Seconds = {}
    for part in parts:
        for phase, seconds in part.items():
            sums[phase] = sums.get(phase, 0.0) + seconds
    return sums


def subtracted(one: Seconds, other: Seconds) -> Seconds:
    return {phase: seconds - other.get(phase, 0.0) for phase, seconds in one.items()}
