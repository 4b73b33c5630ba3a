"""The figures of a report, as typed values: `summary` computes them, the printers read them. SI units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from energybench.common.metrics import Better
from energybench.common.renamed import renamed
from energybench.stats import paired
from energybench.verdict import flag_codes
from energybench.verdict.accept import Accept
from energybench.verdict.devices import Unit
from energybench.verdict.interim import Look
from energybench.verdict.pairing import EnergyFigure, TrialMean

Result = Literal["clear", "raised", "not checked"]
QualityWord = Literal["held", "lost", "open", "not judged", "no verdict"]


@dataclass(frozen=True, slots=True)
class Measured:
    """A saving against plain training: positive is less. The bounds are the 95 % interval, if n > 1.

    n:      what the interval counts, and `unit` what that is: blocks on one device, or devices with blocks on each
    blocks: that are in it
    """

    quantity: paired.Quantity
    scope: str  # "gpu", "cpu + gpu"; empty for time
    saving_rel: float
    low_rel: float | None
    high_rel: float | None
    sd_log: float | None
    df: float
    n: int
    unit: Unit = "block"
    blocks: int = 0

    @classmethod
    def of(cls, change: paired.Paired, quantity: paired.Quantity, scope: str = "", unit: Unit = "block") -> Measured:
        low, high = change.saving_interval() if change.df > 0 else (None, None)
        sd = change.sd if math.isfinite(change.sd) else None
        return cls(quantity, scope, change.saving, low, high, sd, change.df, change.n, unit, change.blocks)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The bounds where they are worth printing: from as many blocks on as a verdict needs."""
        if self.low_rel is None or self.high_rel is None or self.n < paired.FEWEST_BLOCKS:
            return None
        return self.low_rel, self.high_rel


@dataclass(frozen=True, slots=True)
class Once:
    """What a method spends once in a run, beyond plain training: proxies, compilation, profiling; and undoing it.

    seconds:    the mean over the blocks; None where those ran on several devices
    share_rel:  of plain training's window, in what the verdict is of, with its 95 % interval
    steady:     the windows alone
    repaid_*:   after so many runs, or epochs of plain training, it is repaid; None where it never is
    """

    seconds: float | None
    share_rel: float
    low_rel: float | None
    high_rel: float | None
    steady: Measured
    repaid_runs: float | None
    repaid_epochs: float | None


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality against plain training, method − baseline.

    bound, best: as bad and as good as it may be, each at 95 %, one-sided
    """

    metric: str
    baseline: float
    method: float
    change: float
    bound: float | None
    limit: float | None  # the worst change that the suite accepts
    fraction: bool  # print in percentage points
    sd: float | None = None  # of the paired changes, or of their means on each device; None below two
    n: int = 0  # of what sd is: blocks, or devices
    best: float | None = None
    better: Better = "higher"
    unit: str = ""  # of what is no fraction
    doubt: str = ""  # why the figures prove nothing, whatever they are

    @property
    def gain(self) -> float:
        """The change, positive where it is better."""
        return self.change if self.better == "higher" else -self.change

    @property
    def allowed(self) -> float | None:
        """The quality margin, as a gain: at most 0."""
        return self.limit if self.limit is None or self.better == "higher" else -self.limit


@dataclass(frozen=True, slots=True)
class Control:
    """The method against plain training at the budget that it paid for."""

    method: str
    measured: Measured
    quality: Quality | None
    better: bool  # costs less at no less quality, or gains quality at no more cost; by the verdict's bounds
    steps: TrialMean | None = None  # of the budget; None in records of before, which kept epochs
    planned_steps: int | None = None  # of plain training


@dataclass(frozen=True, slots=True)
class RaisedFlag:
    """A flag as the report shows it; `where` says of what."""

    code: str
    severity: flag_codes.Severity
    sentence: str
    detail: str
    where: str


@dataclass(frozen=True, slots=True)
class Check:
    """One entry of the list of reasons, applied to one place."""

    code: str
    where: str
    result: Result
    severity: flag_codes.Severity
    sentence: str
    detail: str


@dataclass(frozen=True, slots=True)
class OnDevice:
    """A cell's own figures on one of several devices: seconds and joules of different devices are never pooled."""

    device: str  # as one says it
    n: int  # trials
    seconds: TrialMean | None
    energies: tuple[EnergyFigure, ...]


@dataclass(frozen=True, slots=True)
class SideToTarget:
    """What one side took to reach a target quality: the blocks that reached it, and the means over those."""

    reached: int
    steps: TrialMean | None
    seconds: TrialMean | None
    energy_j: TrialMean | None  # measured only


@renamed(ours="method", plain="baseline", because="reason")
@dataclass(frozen=True, slots=True)
class ToTarget:
    """What the workload's target quality took, to the end of the epoch that first reached it.

    The savings are None where a side missed it in any block: a cost that is known only to exceed something enters no
    mean, and leaving the block out would keep the lucky ones.
    """

    metric: str
    at_least: float | None
    n: int  # pairs
    method: SideToTarget
    baseline: SideToTarget
    steps: Measured | None
    cost: Measured | None  # energy if measured throughout, else time
    verdict: paired.Verdict
    reason: str  # for the verdict, and what would change it
    at_most: float | None = None
    unit: Unit = "block"  # what the verdict counts


@renamed(plain_rel="baseline_rel")
@dataclass(frozen=True, slots=True)
class Phase:
    """Seconds of one phase in profiling runs of plain training and of the method, as shares of plain training's."""

    name: str
    baseline_rel: float
    method_rel: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """What the formulas' FLOPs and bytes come to on this machine: each line takes the longer of its two times."""

    balance_flop_b: float
    memory_bound_rel: float  # share of plain training's time
    saved_rel: float  # a ceiling, while every kernel runs as well as before


@renamed(
    kept_rel="realised_rel",
    struck="verdict_forbidden",
    because="reason",
    plain_timed_out="baseline_timed_out",
    moved="bytes_note",
    untimed="untimed_reason",
)
@dataclass(frozen=True, slots=True)
class Row:
    """One method on one workload: the four numbers and what they are worth."""

    method: str
    role: str
    stack: tuple[str, ...]
    n: int
    blocks: tuple[int, ...]
    records: tuple[str, ...]  # file stems, one per block
    claimed_rel: float | None  # of the whole training
    claim_rel: float | None  # as stated
    claim_of: str | None
    claim_source: str
    estimated_rel: float | None
    counted_rel: float | None
    counted_error_rel: float
    measured: Measured | None
    time: Measured | None
    realised_rel: float | None  # measured / estimated saving
    quality: Quality | None
    diverged: int  # blocks whose newest trial diverged
    verdict_forbidden: bool  # printed struck through: a flag of this row, or of its workload, forbids a verdict
    verdict: paired.Verdict
    reason: str  # for the verdict, and what would change it
    detectable_rel: float | None
    blocks_needed: int | None
    explanation: str
    bytes_note: str  # what the formulas say of bytes; empty where they say nothing
    roofline: Roofline | None
    phases: tuple[Phase, ...]  # where the time went; empty where no step was timed
    untimed_reason: str  # why not
    to_target: ToTarget | None
    flags: tuple[RaisedFlag, ...]
    control: Control | None
    seconds: TrialMean | None
    energies: tuple[EnergyFigure, ...]
    command: str = ""  # what ran instead of our loop
    unavailable: str = ""  # why there is neither an estimate nor a count
    unjudged: bool = False  # the suite says that there is no quality to lose
    timed_out: int = 0  # blocks whose newest trial ran past the suite's limit, and what it costs is not known
    baseline_timed_out: int = 0  # the same of plain training
    control_note: str = ""  # why there is no matched control, where the suite asks for one
    cost_verdict: paired.Verdict = "no verdict"  # as if quality were held
    quality_verdict: QualityWord = "no verdict"  # as if nothing were asked of the cost
    quality_reason: str = ""
    quality_forbidden: bool = False  # a flag says that what was trained is not what is judged
    quality_blocks_needed: int | None = None
    also: tuple[Quality, ...] = ()  # metrics beside the one that decides
    once: Once | None = None  # what `measured` bills beside the window; None where it is below the margin
    unit: Unit = "block"  # what its verdicts, intervals and promises count; `blocks_needed` is of these too
    units: int = 0  # how many of them have a pair
    on_devices: tuple[OnDevice, ...] = ()  # of several that are pooled; then there are no seconds and energies of all

    @property
    def blocks_on_each(self) -> float | None:
        """Of its devices, where they are what is counted; the mean."""
        return None if self.unit == "block" or not self.units else self.n / self.units


@dataclass(frozen=True, slots=True)
class Baseline:
    """Plain training's own figures."""

    n: int
    seconds: TrialMean | None
    energies: tuple[EnergyFigure, ...]
    quality: dict[str, TrialMean]
    data_wait_rel: TrialMean | None
    memory_device_b: int | None
    memory_resident_b: int | None
    counted_flop: float | None
    plain_flop: float | None
    on_devices: tuple[OnDevice, ...] = ()  # of several that are pooled; then there are no seconds and energies of all


@renamed(plain="baseline_name")
@dataclass(frozen=True, slots=True)
class Workload:
    """One workload: plain training's figures, and a row for each method."""

    name: str
    metric: str | None
    baseline: Baseline
    twin: Measured | None  # plain training against itself
    rows: tuple[Row, ...]
    flags: tuple[RaisedFlag, ...]
    baseline_name: str = "plain training"  # what its methods are held against
    command: str = ""  # and what that ran, where it is a command
    percent: bool = False  # the metric was recorded as a percentage; changes of it are fractions here
    data_notes: tuple[str, ...] = ()  # what the record says of how its data were made


@renamed(kept_quality="quality_within_margin")
@dataclass(frozen=True, slots=True)
class Overall:
    """One method over the workloads on which it was compared: the geometric mean of its ratios, and no verdict."""

    method: str
    quantity: paired.Quantity
    scope: str
    workloads: tuple[str, ...]
    left_out: tuple[str, ...]  # workloads whose comparison gets no verdict, or has no pair
    saving_rel: float
    least_rel: float  # over the workloads
    most_rel: float
    low_rel: float | None  # 95 % for workloads like these; None with too few of them
    high_rel: float | None
    quality_within_margin: int | None  # workloads whose mean quality lies within the margin; None without a margin


@dataclass(frozen=True, slots=True)
class Added:
    """A comparison over all blocks, those too that were added to a finished run: exploratory."""

    workload: str
    method: str
    blocks: int  # added
    measured: Measured


@renamed(because="reason")
@dataclass(frozen=True, slots=True)
class Required:
    """One [[require]] of the suite, held against one method on one workload."""

    workload: str
    method: str
    asks: str  # "saves at least 5.0 % of the time"
    outcome: Literal["met", "not met", "undecided"]
    reason: str
    least_rel: float | None  # the saving asked for
    saving_rel: float | None
    low_rel: float | None  # one-sided 99 % bounds, each by itself
    high_rel: float | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A trial that enters no comparison."""

    trial: str
    workload: str
    method: str
    block: int
    status: str
    reason: str
    repeated: bool  # a later invocation has a usable trial of this block


@dataclass(frozen=True, slots=True)
class NotRun:
    """A cell, or some of its blocks, of which there is no trial or no count."""

    workload: str
    method: str
    reason: str


@dataclass(frozen=True, slots=True)
class Uncounted:
    """Calls of operators without a FLOP count in a cell's counted steps, by their names."""

    workload: str
    method: str
    calls: dict[str, int]
    may_hide_products: tuple[str, ...] | None  # those that make the count less than the whole; None: nobody looked


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything there is to say about a run. SI units; shares are fractions."""

    suite: str
    about: str
    run: str
    stamp: tuple[str, ...]
    finished: bool
    blocks: int
    headline: str
    energy_note: str  # the first screen's word on energy: measured by what, or modelled, or missing, and why
    accept: Accept
    workloads: tuple[Workload, ...]
    flags: tuple[RaisedFlag, ...]  # of the whole run
    checks: tuple[Check, ...]
    failures: tuple[Failure, ...]
    not_run: tuple[NotRun, ...]
    machine: dict[str, Any]
    invocations: tuple[tuple[str, ...], ...]  # each call's argv
    digest: str
    sources: dict[str, str]
    look: Look
    look_note: str  # which look the verdicts are of; empty where there is one
    overall: tuple[Overall, ...]
    added: tuple[Added, ...]
    uncounted: tuple[Uncounted, ...] = ()  # of every cell that was counted and called one
    required: tuple[Required, ...] = ()  # of the suite's [[require]]; empty where it has none
    decide: str = ""  # what to type for as many blocks as would decide what is open; empty where none would
    device_note: str = ""  # which devices are pooled, or why none are; empty where one ran everything
