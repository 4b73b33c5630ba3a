"""The counting run: a run around whose layers a counter sees what really runs, attributed to kinds of steps.

Counting costs milliseconds a step, so it never happens in a metered trial. Above a budget a random sample of steps is
counted, stratified by epoch, and scaled up within each kind of step; the interval says what sampling left open.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypedDict

import torch

from energybench.common.hashing import stable_seed
from energybench.flops.counter import Counter
from energybench.records.record import Counted, Passes
from energybench.train.batch import Batch
from energybench.train.rank_run import RankRun
from energybench.train.run import Run


class StepSeen(NamedTuple):
    """A counted step: its FLOPs, its samples as they came to the outermost layer, and those that went forward."""

    flop: int
    samples: int
    forwarded: int


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


class RankCount(TypedDict):
    """What one rank of several counted: `seen` of its chosen steps by their kinds, `outside` of steps in FLOPs."""

    seen: dict[str, list[StepSeen]]
    outside: int
    by_op: dict[str, int]
    uncounted: dict[str, int]


# Where a layer does another thing in each pass, steps of one kind cost many prices: 48 of 441 steps that each drop
# layers by chance left 11 points of the total open, more than any gap between estimate and count may be.
MORE_STEPS = 20


class StepCounter:
    """Counts up to about `budget` steps of a run, MORE_STEPS times as many where a method's passes differ; the rest
    runs uncounted, at full speed."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.counter = Counter()
        self._chosen: set[int] = set()
        self._seen: dict[str, list[StepSeen]] = defaultdict(list)  # by cost key
        self._in_steps = 0
        self._others: list[RankCount] = []

    def told(self) -> RankCount:
        """For the first rank."""
        outside = self.counter.total - self._in_steps
        counter = self.counter
        return RankCount(seen=dict(self._seen), outside=outside, by_op=counter.by_op, uncounted=counter.uncounted)

    def add_ranks(self, others: Sequence[RankCount]) -> None:
        """What other ranks counted of the same steps: their FLOPs, and the samples that they sent forward, add up.

        Raises:
            ValueError: a rank counted other steps than this one
        """
        sizes = {key: len(seen) for key, seen in self._seen.items()}
        for other in others:
            if {key: len(seen) for key, seen in other["seen"].items()} != sizes:
                raise ValueError("the ranks took steps of other kinds")
            for key, seen in self._seen.items():
                self._seen[key] = [
                    StepSeen(own.flop + flop, own.samples, own.forwarded + forwarded)
                    for own, (flop, _, forwarded) in zip(seen, other["seen"][key], strict=True)
                ]
            self._others.append(other)

    @contextmanager
    def epoch(self, run: Run) -> Iterator[None]:
        """Around an epoch of the run."""
        steps = run.steps_per_epoch
        budget = self.budget * MORE_STEPS if any(m.passes_differ for m in run.methods) else self.budget
        share = min(1.0, budget / (steps * run.epochs))
        wanted = math.ceil(share * steps)
        # Of a stream that `run.rng` cannot give, whatever name it is asked for.
        generator = torch.Generator().manual_seed(stable_seed("counted steps", run.seed, run.epoch_number))
        self._chosen = set(torch.randperm(steps, generator=generator)[:wanted].tolist())
        with self.counter:
            yield

    def step(self, run: Run, step: Callable[[Batch], None], batch: Batch) -> None:
        """One step of the run, counted or not."""
        if run.step_in_epoch not in self._chosen and run.tally.steps:
            with self.counter.paused():
                step(batch)
            return
        before = self.counter.total
        step(batch)
        flop = self.counter.total - before
        self._in_steps += flop
        self._seen[run.tally.cost_key()].append(StepSeen(flop, batch.samples, run.tally.forwarded))

    def result(self, run: Run) -> StepCounts:
        """What was counted. A kind of step that no sample met makes the total null."""
        passes = run.tally.passes()
        recorded = Passes(**asdict(passes))
        keys: dict[str, Counted] = {}
        total, variance = 0.0, 0.0
        for key, counts in passes.keys.items():
            seen = self._seen.get(key, [])
            if not seen:
                return StepCounts(recorded, reason=f"no step of the kind '{key}' was counted")
            samples = counts["samples"]
            forwarded = counts.get("forwarded", samples)
            # A step's work follows the samples that it sends forward: a step may pool those of several batches.
            forwards = all(step.forwarded for step in seen) and forwarded > 0
            units = forwarded if forwards else samples
            mean, spread = per_sample([(step.flop, step.forwarded if forwards else step.samples) for step in seen])
            keys[key] = Counted(
                steps=counts["steps"],
                samples=samples,
                counted_steps=len(seen),
                flop_per_sample=mean * units / samples if samples else 0.0,
                flop_per_sample_sd=spread * units / samples if samples else 0.0,
                forwarded=forwarded,
                flop_per_forwarded=mean if forwards else None,
            )
            total += mean * units
            unseen = 1 - len(seen) / counts["steps"]  # finite population: nothing is open when all were counted
            variance += unseen * (spread * units) ** 2 / len(seen)
        every = [self.told(), *self._others]
        outside = sum(each["outside"] for each in every)
        by_op, uncounted = _sums(each["by_op"] for each in every), _sums(each["uncounted"] for each in every)
        return StepCounts(
            recorded,
            counted_flop=total + outside,
            counted_error_flop=1.96 * math.sqrt(variance),
            outside_steps_flop=float(outside),
            keys=keys,
            by_op={op: float(flop) for op, flop in by_op.items()},
            uncounted_calls=uncounted,
        )


def _sums(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for table in tables:
        for key, value in table.items():
            sums[key] += value
    return dict(sums)


class CountedRun(Run):
    """A run of which a counter sees every epoch and chosen steps, from outside of all layers: `run.methods` and
    `run.layers` are those of the metered run."""

    def __init__(self, *args: Any, counting: StepCounter, **kwargs: Any) -> None:
        self._counting = counting
        super().__init__(*args, **kwargs)

    def _train_epoch(self) -> None:
        with self._counting.epoch(self):
            super()._train_epoch()

    def _whole_step(self, chain: Callable[[Batch], None], batch: Batch) -> None:
        super()._whole_step(partial(self._counting.step, self, chain), batch)


class RankCountedRun(RankRun, CountedRun):
    """The same by several ranks, each of which counts its own."""


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
