"""What a run says after each block of what is there so far: no verdict, and no work that grows with what is done.

Each comparison is kept as the moments of its blocks' figures, so that a block costs what its own trials cost. Figures
and intervals are those that a report of the same blocks would print: tests/report/test_glance.py holds both together.
A figure is struck where a flag of a single trial, or of a pair, forbids its verdict; flags that need all trials side by
side wait for the report, as verdicts do for their looks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from energybench.meter.combine import Sensors
from energybench.records.record import RunFile, Trial
from energybench.stats import paired
from energybench.verdict import cell_records, flag_codes, flags, outside, pairing, quality
from energybench.verdict.accept import Accept
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Measured, Quality
from energybench.verdict.pairing import Pair


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations, value by value (Welford, Technometrics 4 (1962) 419)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        apart = value - self.mean
        self.mean += apart / self.n
        self.squares += apart * (value - self.mean)

    @property
    def spread(self) -> paired.Spread:
        if self.n < 2:
            return paired.Spread(math.nan, 0)
        return paired.Spread(math.sqrt(self.squares / (self.n - 1)), self.n - 1)

    @property
    def as_mean(self) -> paired.Mean:
        return paired.Mean(self.n, self.mean, self.spread.sd, self.spread.df)

    def as_paired(self, pooled: paired.Spread | None = None) -> paired.Paired:
        spread = paired.lent(self.spread, pooled)
        return paired.Paired(self.n, self.mean, spread.sd, spread.df)


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """What one block says of one comparison.

    logs:    ln(method / baseline) of the windows, by quantity; energy where both were measured by the same sensors
    once:    by quantity: what is spent once, as a share of plain training's window, and the log ratio with it
    quality: metric → (method, baseline), as recorded
    """

    sensors: Sensors
    logs: dict[paired.Quantity, float]
    once: dict[paired.Quantity, tuple[float, float]]
    quality: dict[str, tuple[float, float]]
    struck: bool


@dataclass(slots=True)
class Comparison:
    """A method, or the twin, against plain training: the sums over its blocks."""

    blocks: dict[int, BlockFigures] = field(default_factory=dict)
    logs: dict[paired.Quantity, Moments] = field(default_factory=dict)
    shares: dict[paired.Quantity, Moments] = field(default_factory=dict)
    with_once: dict[paired.Quantity, Moments] = field(default_factory=dict)
    sensors: Counter[Sensors] = field(default_factory=Counter)
    quality: dict[str, QualitySums] = field(default_factory=dict)
    struck: int = 0

    def put(self, block: int, figures: BlockFigures, run: RunFile, workload: str) -> None:
        """A block's figures; those of a block that was run again take the place of the old ones."""
        again = block in self.blocks
        self.blocks[block] = figures
        if again:
            every, self.blocks = self.blocks, {}
            self.logs, self.shares, self.with_once, self.quality = {}, {}, {}, {}
            self.sensors, self.struck = Counter(), 0
            for number, each in every.items():
                self.put(number, each, run, workload)
            return
        self.sensors[figures.sensors] += 1
        self.struck += figures.struck
        for quantity, log in figures.logs.items():
            self.logs.setdefault(quantity, Moments()).add(log)
        for quantity, (share, log) in figures.once.items():
            self.shares.setdefault(quantity, Moments()).add(share)
            self.with_once.setdefault(quantity, Moments()).add(log)
        for name, values in figures.quality.items():
            if name not in self.quality:
                self.quality[name] = QualitySums(quality.known(run, workload, name))
            self.quality[name].add(*values)

    @property
    def n(self) -> int:
        return len(self.blocks)

    @property
    def quantity(self) -> paired.Quantity:
        """Energy where every block was measured by the same sensors."""
        return "energy" if len(self.sensors) == 1 and next(iter(self.sensors)) else "time"

    def measured(self, pooled: paired.Spread | None, margin: float) -> Measured:
        """As `WorkloadComparison` measures it. pooled: the workload's spread of this quantity"""
        quantity = self.quantity
        scope = " + ".join(sorted({scope for _, scope in next(iter(self.sensors))})) if quantity == "energy" else ""
        change, shares = self.logs[quantity].as_paired(pooled), self.shares.get(quantity)
        if shares is not None and shares.n == self.n and outside.is_billed(shares.as_mean, margin):
            change = self.with_once[quantity].as_paired()
        return Measured.of(change, quantity, scope)


@dataclass(slots=True)
class QualitySums:
    """The differences of one metric, and what decides in which unit they are printed."""

    known: quality.Known | None
    change: Moments = field(default_factory=Moments)
    below_one: bool = True
    in_range: bool = True

    def add(self, method: float, baseline: float) -> None:
        metric = self.known.metric if self.known else quality.UNDECLARED
        of_method, of_baseline = metric.fraction(method), metric.fraction(baseline)
        self.change.add(of_method - of_baseline)
        self.below_one &= 0 <= of_method <= 1 and 0 <= of_baseline <= 1
        self.in_range &= not metric.outside(method) and not metric.outside(baseline)

    @property
    def fraction(self) -> bool:
        metric = self.known.metric if self.known else quality.UNDECLARED
        guessed = self.known is not None and self.known.guessed
        return self.in_range and (metric.better == "higher" and self.below_one if guessed else metric.in_points)


@dataclass(frozen=True, slots=True)
class Glimpse:
    """One method so far."""

    method: str
    n: int
    measured: Measured
    quality: Quality | None  # its change, and the unit that it is printed in
    verdict_forbidden: bool


@dataclass(frozen=True, slots=True)
class WorkloadSoFar:
    """One workload: every method that was compared."""

    name: str
    metric: str | None
    rows: tuple[Glimpse, ...]


class Glance:
    """The sums of a run's blocks. run: with its cells and its metrics, which no call changes"""

    def __init__(self, run: RunFile) -> None:
        self._run = run
        self._comparisons: dict[str, dict[str, Comparison]] = {}  # workload → label → of methods and of the twin
        self._twins: set[tuple[str, str]] = set()
        self._metrics: dict[str, set[str]] = {}  # that plain training's trials recorded, by workload
        for cell in run.cells:
            of_workload = self._comparisons.setdefault(cell.workload, {})
            if cell.role == "method" and cell.skipped is None:
                of_workload[cell.method] = Comparison()

    def block(self, block: int, trials: Sequence[Trial]) -> None:
        """All trials of a block, those of earlier invocations too, once there are new ones."""
        examination = Examination(trials)
        by_workload: dict[str, list[Trial]] = {}
        for trial in trials:
            by_workload.setdefault(trial.workload, []).append(trial)
        for name, of_workload in by_workload.items():
            baselines = [trial for trial in of_workload if trial.role == "baseline"]
            self._metrics.setdefault(name, set()).update(*(trial.quality for trial in baselines))
            partners = pairing.partners_of(baselines, examination.reason_unusable)
            by_label: dict[str, list[Trial]] = {}
            for trial in of_workload:
                if trial.role in ("method", "twin"):
                    by_label.setdefault(trial.method, []).append(trial)
            for label, of_label in by_label.items():
                if of_label[0].role == "twin":
                    self._twins.add((name, label))
                comparison = self._comparisons.setdefault(name, {}).setdefault(label, Comparison())
                for pair in pairing.pairs(of_label, partners, examination.reason_unusable):
                    comparison.put(block, _figures(pair, examination), self._run, name)

    def so_far(self) -> tuple[WorkloadSoFar, ...]:
        """Every workload with what is known of its methods."""
        return tuple(self._workload(name) for name in self._comparisons)

    def _workload(self, name: str) -> WorkloadSoFar:
        accept, comparisons = Accept.of(self._run, name), self._comparisons[name]
        recorded = self._metrics.get(name, set())
        metric = None if cell_records.is_unjudged(self._run, name) else accept.metric or quality.main_of(recorded)
        known = [each for each in comparisons.values() if each.n]
        pooled = {quantity: _pooled(known, quantity) for quantity in paired.WORDS}
        rows = tuple(
            Glimpse(
                label,
                each.n,
                each.measured(pooled[each.quantity], accept.margin),
                _quality(each, metric),
                each.struck > 0,
            )
            for label, each in comparisons.items()
            if each.n and (name, label) not in self._twins
        )
        return WorkloadSoFar(name, metric, rows)


def _pooled(comparisons: Iterable[Comparison], quantity: paired.Quantity) -> paired.Spread | None:
    """One spread for all comparisons of a workload: of energy, those that are measured in it."""
    of = (each for each in comparisons if each.n > 1 and (quantity == "time" or each.quantity == quantity))
    return paired.pool_spreads([each.logs[quantity].spread for each in of])


def _figures(pair: Pair, examination: Examination) -> BlockFigures:
    sensors = pairing.sensors_of([pair])
    logs: dict[paired.Quantity, float] = {}
    once: dict[paired.Quantity, tuple[float, float]] = {}
    quantities: tuple[paired.Quantity, ...] = ("time", "energy") if sensors else ("time",)
    for quantity in quantities:
        method, baseline = pair.costs(quantity)
        logs[quantity] = math.log(method) - math.log(baseline)
        if outside.holds_once(pair):
            of_method, of_baseline = outside.costs_of(pair, quantity)
            share = (of_method[1] - of_baseline[1]) / of_baseline[0]
            once[quantity] = share, math.log(sum(of_method)) - math.log(sum(of_baseline))
    return BlockFigures(sensors, logs, once, dict(_both(pair)), _struck(pair, examination))


def _both(pair: Pair) -> Iterator[tuple[str, tuple[float, float]]]:
    """The metrics that both sides recorded."""
    for name in pair.method.quality:
        yield from ((name, values) for values in quality.values([pair], name))


def _struck(pair: Pair, examination: Examination) -> bool:
    of_trials = (*examination.flags(pair.method), *examination.flags(pair.baseline))
    return flag_codes.worst([*of_trials, *flags.check_pair(pair.method, pair.baseline)]) == "struck"


def _quality(comparison: Comparison, metric: str | None) -> Quality | None:
    sums = comparison.quality.get(metric) if metric is not None else None
    if sums is None or metric is None:
        return None
    unit = sums.known.metric.unit if sums.known else ""
    unknown = math.nan  # of the sides' own means nobody prints anything before a report
    return Quality(metric, unknown, unknown, sums.change.mean, None, None, sums.fraction, n=sums.change.n, unit=unit)
