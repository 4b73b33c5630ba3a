"""The counting run: an outermost layer that counts what really runs, attributed to kinds of steps.

Counting costs milliseconds a step, so it never happens in a metered trial. Above a budget a random sample of steps is
counted, stratified by epoch, and scaled up within each kind of step; the interval says what sampling left open.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch

from energybench.flops.counter import Counter
from energybench.records.record import Counted, Passes
from energybench.train.batch import Batch
from energybench.train.method import Method

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What a counting run's record says of its steps; the fields are those of `records.record.CountingRun`."""

    passes: Passes
    counted_flop: float | None = None
    counted_error_flop: float = 0.0
    outside_steps_flop: float = 0.0
    keys: dict[str, Counted] = field(default_factory=dict)
    by_op: dict[str, float] = field(default_factory=dict)
    uncounted_calls: dict[str, int] = field(default_factory=dict)
    reason: str | None = None


class CountingLayer(Method):
    """Counts up to about `budget` steps of the run; the rest runs uncounted, at full speed."""

    name = "counting"

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.counter = Counter()
        self._chosen: set[int] = set()
        self._seen: dict[str, list[tuple[int, int]]] = defaultdict(list)  # cost key → (FLOPs, samples) of each
        self._in_steps = 0

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        steps = run.steps_per_epoch
        share = min(1.0, self.budget / (steps * run.epochs))
        wanted = math.ceil(share * steps)
        order = torch.randperm(steps, generator=run.rng("witness", "steps", run.epoch_number))
        self._chosen = set(order[:wanted].tolist())
        with self.counter:
            inner(data)

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        if run.step_in_epoch not in self._chosen and run.tally.steps:
            with self.counter.paused():
                inner(batch)
            return
        before = self.counter.total
        inner(batch)
        flop = self.counter.total - before
        self._in_steps += flop
        self._seen[run.tally.cost_key()].append((flop, len(batch)))

    def result(self, run: TrainingRun) -> StepCounts:
        """What was counted. A kind of step that no sample met makes the total null."""
        passes = run.tally.passes()
        recorded = Passes(**asdict(passes))
        keys: dict[str, Counted] = {}
        total, variance = 0.0, 0.0
        for key, counts in passes.keys.items():
            seen = self._seen.get(key, [])
            if not seen:
                return StepCounts(recorded, reason=f"no step of the kind '{key}' was counted")
            mean, spread = per_sample(seen)
            keys[key] = Counted(
                steps=counts["steps"],
                samples=counts["samples"],
                counted_steps=len(seen),
                flop_per_sample=mean,
                flop_per_sample_sd=spread,
            )
            total += mean * counts["samples"]
            unseen = 1 - len(seen) / counts["steps"]  # finite population: nothing is open when all were counted
            variance += unseen * (spread * counts["samples"]) ** 2 / len(seen)
        outside = self.counter.total - self._in_steps
        return StepCounts(
            recorded,
            counted_flop=total + outside,
            counted_error_flop=1.96 * math.sqrt(variance),
            outside_steps_flop=float(outside),
            keys=keys,
            by_op={op: float(flop) for op, flop in self.counter.by_op.items()},
            uncounted_calls=dict(self.counter.uncounted),
        )


def per_sample(steps: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """(FLOPs per sample, their standard deviation from step to step) of steps with (FLOPs, samples).

    All FLOPs over all samples: a mean of the steps' own ratios would let a small last batch count as much as a whole
    one, and with it what costs the same in every step, such as an inner product of gradients.
    """
    flop, samples = (sum(column) for column in zip(*steps, strict=True))
    # In whole numbers up to here, so that equal prices have no spread.
    deviations = [(step_flop * samples - flop * size) / samples for step_flop, size in steps]
    spread = math.sqrt(math.fsum(x * x for x in deviations) / (len(steps) - 1)) if len(steps) > 1 else 0.0
    return flop / samples, spread * len(steps) / samples
