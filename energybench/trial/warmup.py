"""Steps before the window that nobody bills: caches fill, clocks rise, kernels are chosen.

They are taken inside the task's own epoch, in which it may build what its steps need; no method's epoch is entered.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from energybench.common.units import Quantity
from energybench.records.record import Warmup
from energybench.train.batch import Batch
from energybench.train.first_steps import EnoughSteps, task_epoch
from energybench.train.run import Run

ROUNDS = 5  # as many rounds of steps are held against as many before them
SETTLED_WITHIN = 0.05  # of each other's median


def warm_up(
    run: Run, amount: Quantity, synchronise: Callable[[], None], agree: Callable[[bool], bool] = bool
) -> Warmup:
    """Real steps, spread over the schedule so that every kind of step has run once.

    amount: in steps: exactly so many; in seconds: until the time of a round of steps settles, at most so long
    agree:  of several ranks the first one's word, whose clock decides for all
    """
    warming = _Warming(run, amount, synchronise, agree)
    while not warming.over:
        taken = warming.steps
        warming.place()
        task_epoch(run, warming.step)
        if warming.steps == taken:
            break  # a method that gives no batch in this epoch cannot be warmed up further
    return warming.result()


class _Warming:
    """Steps so far. over: that no further one is wanted; settled: that their time came to rest."""

    def __init__(
        self, run: Run, amount: Quantity, synchronise: Callable[[], None], agree: Callable[[bool], bool]
    ) -> None:
        self._run, self._amount, self._synchronise, self._agree = run, amount, synchronise, agree
        self._whole_step = run.step
        self._places = sorted({1, min(2, run.epochs), run.epochs // 2 + 1, run.epochs})
        self._rounds: list[float] = []  # seconds of one step at each place
        self._started = self._began = time.perf_counter()
        self.steps, self.over, self.settled = 0, False, False

    def place(self) -> None:
        """The epoch in which the next step is taken."""
        self._run.epoch_number = self._places[self.steps % len(self._places)]

    def step(self, batch: Batch) -> None:
        """One step, or the end."""
        so_far = self.steps if self._amount.unit == "steps" else time.perf_counter() - self._started
        self.over = self._agree(so_far >= self._amount.count)
        if self.over:
            raise EnoughSteps
        self._run.step_in_epoch = 0
        self._whole_step(batch)
        self.steps += 1
        self.place()
        if self.steps % len(self._places) == 0:
            self._end_round()

    def _end_round(self) -> None:
        self._synchronise()
        now = time.perf_counter()
        self._rounds.append(now - self._began)
        self._began = now
        if self._amount.unit == "s" and self._agree(at_rest(self._rounds)):
            self.over = self.settled = True
            raise EnoughSteps

    def result(self) -> Warmup:
        if self.over and self._amount.unit == "steps":
            return Warmup(steps=self.steps)
        step_s = statistics.median(self._rounds[-ROUNDS:]) / len(self._places) if self._rounds else None
        settled = self.settled if self._amount.unit == "s" else None
        return Warmup(steps=self.steps, settled=settled, step_s=step_s)


def at_rest(rounds: list[float]) -> bool:
    """Whether the last rounds took as long as those before them."""
    if len(rounds) < 2 * ROUNDS:
        return False
    before, last = statistics.median(rounds[-2 * ROUNDS : -ROUNDS]), statistics.median(rounds[-ROUNDS:])
    return abs(last / before - 1) <= SETTLED_WITHIN
