"""Steps before the window that nobody bills: caches fill, clocks rise, kernels are chosen."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from energybench.common.units import Quantity
from energybench.records.record import Warmup
from energybench.train.run import Run

ROUNDS = 5  # as many rounds of steps are held against as many before them
SETTLED_WITHIN = 0.05  # of each other's median


def warm_up(run: Run, amount: Quantity, synchronise: Callable[[], None]) -> Warmup:
    """Real steps, spread over the schedule so that every kind of step has run once.

    amount: in steps: exactly so many; in seconds: until the time of a round of steps settles, at most so long
    """
    places = sorted({1, min(2, run.epochs), run.epochs // 2 + 1, run.epochs})
    rounds: list[float] = []  # seconds of one step at each place
    steps, started = 0, time.perf_counter()
    began, settled = started, False
    while not settled:
        run.epoch_number = places[steps % len(places)]
        taken = steps
        for batch in run.batches(run.data):
            if amount.unit == "steps" and steps >= amount.count:
                return Warmup(steps=steps)
            if amount.unit == "s" and time.perf_counter() - started >= amount.count:
                return Warmup(steps=steps, settled=False, step_s=_median(rounds, len(places)))
            run.step_in_epoch = 0
            run.step(batch)
            steps += 1
            run.epoch_number = places[steps % len(places)]
            if steps % len(places) == 0:
                synchronise()
                now = time.perf_counter()
                rounds.append(now - began)
                began = now
                if amount.unit == "s" and at_rest(rounds):
                    settled = True
                    break
        if steps == taken:
            break  # a method that gives no batch in this epoch cannot be warmed up further
    return Warmup(steps=steps, settled=settled if amount.unit == "s" else None, step_s=_median(rounds, len(places)))


def at_rest(rounds: list[float]) -> bool:
    """Whether the last rounds took as long as those before them."""
    if len(rounds) < 2 * ROUNDS:
        return False
    before, last = statistics.median(rounds[-2 * ROUNDS : -ROUNDS]), statistics.median(rounds[-ROUNDS:])
    return abs(last / before - 1) <= SETTLED_WITHIN


def _median(rounds: list[float], places: int) -> float | None:
    return statistics.median(rounds[-ROUNDS:]) / places if rounds else None
