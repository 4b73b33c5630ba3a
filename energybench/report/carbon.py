"""Energy and carbon of a run: per training run, and for many where a saving was measured and proven.

    CO2e = energy at the sensors × PUE × intensity of the zone's grid

Uncertainty is carried through: what a block saved is baseline − method in joules, Student's t over the blocks, and the
sensors' own error budgets of both sides added to it. N runs to come are a prediction: N times the mean, with the mean's
uncertainty times N and the scatter of single runs times √N. Bounds of differences of such figures are the worst case.
Modelled energy is listed as modelled and multiplied by nothing: no zone, no PUE, no number of runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from energybench.meter import combine
from energybench.meter.combine import Metered, metered
from energybench.meter.reading import Reading
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.stats import paired
from energybench.verdict import pairing, wording
from energybench.verdict.figures import Row, Summary, Workload
from energybench.verdict.pairing import EnergyFigure, Pair
from energybench.verdict.summary import plain_data, summarise

RUNS = 1000
BASELINE = "baseline"
PARTS = {"gpu": "GPUs", "cpu": "processors", "dram": "memory"}
PROVEN = frozenset({"saves", "costs more"})  # verdicts that may be multiplied
WHOLE_COMMAND = frozenset({"command", "idle_before", "idle_after"})  # a command's phases that share no moment


@dataclass(frozen=True, slots=True)
class Zone:
    """Where the electricity comes from: the yearly mean of a country's grid."""

    zone: str
    country: str
    intensity_kg_j: float
    year: int | None
    source: str
    pue: float

    def kg(self, joules: Span) -> Span:
        return joules.times(self.intensity_kg_j * self.pue)


@dataclass(frozen=True, slots=True)
class Span:
    """A figure and its bounds, in one unit; None where too few blocks bound it."""

    mean: float
    low: float | None = None
    high: float | None = None

    def times(self, factor: float) -> Span:
        """By a factor above 0."""
        return Span(*(None if v is None else v * factor for v in (self.mean, self.low, self.high)))  # type: ignore[arg-type]

    def less(self, other: Span) -> Span:
        """The difference, in the worst case of both bounds."""
        bounded = None not in (self.low, self.high, other.low, other.high)
        low, high = (self.low - other.high, self.high - other.low) if bounded else (None, None)  # type: ignore[operator]
        return Span(self.mean - other.mean, low, high)


@dataclass(frozen=True, slots=True)
class Use:
    """What one training run takes: the training window, mean over the blocks."""

    workload: str
    method: str  # as the page says it: "plain training"
    label: str  # in the records: "baseline"
    n: int
    measured_j: Span | None  # one channel per device, everything that was seen
    sensors: str  # "gpu by the card's energy counter"
    reason: str  # why there is no measured figure
    sources: tuple[EnergyFigure, ...]  # each by itself, modelled ones too


@dataclass(frozen=True, slots=True)
class Gain:
    """What a method's proven saving means; negative where it costs more. None where nothing may be multiplied."""

    workload: str
    method: str
    verdict: str
    because: str
    per_run_j: Span | None
    runs_j: Span | None  # of RUNS runs
    tuned_trials: int | None  # None: the suite does not say
    tuning_j: Span | None
    net_j: Span | None  # of RUNS runs, less the tuning
    repaid: int | None  # runs that repay the tuning
    repaid_bounds: tuple[int, int | None] | None  # at best; at worst, None where that is never certain


@dataclass(frozen=True, slots=True)
class Page:
    suite: str
    run: str
    stamp: tuple[str, ...]
    headline: str
    look_note: str
    zones: tuple[Zone, ...]
    no_zone: str  # why there is no CO2e; empty where there is
    energy_note: str
    uses: tuple[Use, ...]
    gains: tuple[Gain, ...]
    whole_j: float | None  # every metered window of the run
    not_in_it: tuple[str, ...]


def zones_of(run: RunFile, asked: Sequence[str] = ()) -> tuple[Zone, ...]:
    """The run's own zone, as recorded; or those asked for, from codecarbon's table. Raises UsageError E502."""
    own = run.machine.get("carbon") or {}
    pue = float(own.get("pue", 1.0))
    found = []
    for name in dict.fromkeys(asked or ([own["zone"]] if own.get("zone") else [])):
        known = own
        if name != own.get("zone"):
            from energybench.meter.carbon import intensity

            known = intensity(name)
        per_j = known["intensity_kg_per_j"]
        found.append(
            Zone(name, str(known.get("country", name)), per_j, known.get("year"), str(known.get("source", "")), pue)
        )
    return tuple(found)


def page(
    run: RunFile, trials: Sequence[Trial], counting_runs: Sequence[CountingRun], asked: Sequence[str] = ()
) -> Page:
    """Everything the carbon report says."""
    summary = summarise(run, trials, counting_runs)
    zones = zones_of(run, asked)
    counted = [t for t in pairing.order(trials) if t.block < summary.look.blocks]
    uses = [use for w in summary.workloads for use in _uses(w, counted)]
    rows = [(w.name, row) for w in summary.workloads for row in w.rows]
    return Page(
        suite=run.suite,
        run=run.run,
        stamp=tuple(run.stamp),
        headline=_headline(summary),
        look_note=summary.look_note,
        zones=zones,
        no_zone="" if zones else "The suite names no country, so there is no CO2e: add --zones FRA.",
        energy_note=summary.energy_note,
        uses=tuple(uses),
        gains=tuple(_gain(name, row, counted, run, summary.look.alpha_fraction) for name, row in rows),
        whole_j=_whole(trials),
        not_in_it=_not_in_it(summary, zones),
    )


def _headline(summary: Summary) -> str:
    proven = [row for w in summary.workloads for row in w.rows if row.verdict == "saves"]
    measured = any(row.measured and row.measured.quantity == "energy" for w in summary.workloads for row in w.rows)
    if proven or measured:
        return summary.headline
    return "No energy was measured on both sides of a comparison, so no energy and no CO2e was shown to be saved."


def _bounded(values: Sequence[float], error: float, runs: int | None = None, alpha_fraction: float = 1.0) -> Span:
    """The mean of `values`; with `runs`, their sum in so many runs to come. `error`: the sensors', of one run."""
    change = paired.differences(values, [0.0] * len(values), alpha_fraction=alpha_fraction)
    n, times = change.n, 1 if runs is None else runs
    if change.df <= 0:
        return Span(times * change.mean)
    low, _ = change.interval()
    reach = (change.mean - low) * math.sqrt(n)  # t × sd
    variance = 1 / n if runs is None else runs**2 / n + runs
    half = reach * math.sqrt(variance) + times * error
    return Span(times * change.mean, times * change.mean - half, times * change.mean + half)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _metered(trials: Sequence[Trial]) -> list[Metered]:
    """Each trial's joules; empty unless all have the same sensors."""
    found = [metered(trial.train) for trial in trials]
    same = len({each.channels for each in found}) == 1 and all(each.sensors and each.joules > 0 for each in found)
    return found if same else []


def _uses(workload: Workload, trials: Sequence[Trial]) -> list[Use]:
    here = [t for t in trials if t.workload == workload.name]
    plain = _use(workload.name, workload.plain, BASELINE, [t for t in here if t.role == BASELINE])
    return [
        plain,
        *(
            _use(workload.name, row.method, row.method, [t for t in here if t.method == row.method])
            for row in workload.rows
        ),
    ]


def _use(workload: str, method: str, label: str, trials: Sequence[Trial]) -> Use:
    trials = pairing.newest(trials)
    found = _metered(trials)
    figure, sensors, reason = None, "", ""
    if found:
        error = _mean([each.error_j for each in found])
        figure = _bounded([each.joules for each in found], error)
        sensors = ", ".join(f"{scope} by {wording.sensor(source)}" for source, scope in sorted(found[0].sensors))
    elif not trials:
        reason = "no usable trial"
    else:
        some = any(metered(trial.train).sensors for trial in trials)
        reason = "not every block had the same sensors" if some else "not measured"
    return Use(workload, method, label, len(trials), figure, sensors, reason, pairing.energies(trials))


def _gain(workload: str, row: Row, trials: Sequence[Trial], run: RunFile, alpha_fraction: float) -> Gain:
    cell = next((c for c in run.cells if (c.workload, c.method) == (workload, row.method)), None)
    tuned = cell.tuned_trials if cell else None
    empty = Gain(workload, row.method, row.verdict, "", None, None, tuned, None, None, None, None)
    if row.measured is None or row.measured.quantity != "energy":
        return dataclasses.replace(empty, because="its energy was not measured on both sides")
    if row.verdict not in PROVEN:
        told = f": {row.because}" if row.because else ""
        return dataclasses.replace(empty, because=f"{row.verdict}{told}; nothing is multiplied")
    here = [t for t in trials if t.workload == workload]
    found = pairing.pairs([t for t in here if t.method == row.method], [t for t in here if t.role == "baseline"])
    return dataclasses.replace(empty, **_multiplied(found, tuned, alpha_fraction))


def _multiplied(found: Sequence[Pair], tuned: int | None, alpha_fraction: float) -> dict[str, Any]:
    both = [(metered(pair.plain.train), metered(pair.ours.train)) for pair in found]
    saved = [plain.joules - ours.joules for plain, ours in both]
    error = _mean([plain.error_j + ours.error_j for plain, ours in both])
    per_run, many = _bounded(saved, error, alpha_fraction=alpha_fraction), _bounded(saved, error, RUNS, alpha_fraction)
    result: dict[str, Any] = {"per_run_j": per_run, "runs_j": many}
    if tuned is not None:
        own = [ours.joules for _, ours in both]
        tuning = _bounded(own, _mean([ours.error_j for _, ours in both]), tuned, alpha_fraction)
        result |= {"tuning_j": tuning, "net_j": many.less(tuning)} | _repaid(tuning, per_run)
    return result


def _repaid(tuning: Span, per_run: Span) -> dict[str, Any]:
    """How many runs save what the tuning took; nothing where a run saves nothing."""
    if per_run.mean <= 0:
        return {}
    runs = math.ceil(tuning.mean / per_run.mean)
    if tuning.low is None or tuning.high is None or per_run.low is None or not per_run.high:
        return {"repaid": runs}
    worst = math.ceil(tuning.high / per_run.low) if per_run.low > 0 else None
    return {"repaid": runs, "repaid_bounds": (max(0, math.ceil(tuning.low / per_run.high)), worst)}


def _whole(trials: Sequence[Trial]) -> float | None:
    """Joules of every metered window of every trial, failed ones too; None where nothing was measured."""
    found = [metered(reading) for trial in trials for reading in _windows(trial)]
    return math.fsum(each.joules for each in found) if any(each.sensors for each in found) else None


def _windows(trial: Trial) -> list[Reading]:
    """A trial's windows that lie in no other: a command holds its training and whatever else it marked."""
    inside = "command" in trial.phases
    return [reading for name, reading in trial.phases.items() if not inside or name in WHOLE_COMMAND]


def _not_in_it(summary: Summary, zones: Sequence[Zone]) -> tuple[str, ...]:
    told = f" ({zones[0].pue:g}{': nothing of it' if zones[0].pue == 1 else ''})" if zones else ""
    scopes = {e.scope for w in summary.workloads for e in w.baseline.energies if e.measured}
    unseen = [name for scope, name in PARTS.items() if scope not in scopes] + ["fans, disks and power supplies"]
    parts = "" if combine.MACHINE in scopes or not scopes else f"; what no sensor here sees: {', '.join(unseen)}"
    return (
        "making the machine and disposing of it (embodied emissions)",
        f"cooling, conversion and lighting of the data centre beyond the PUE{told}",
        f"network, storage and other machines{parts}",
        "set-up, warm-up, evaluation, idling between trials and the counted runs: a run is its training window",
        "the hour and the place in the country: an intensity is a year's mean of a whole grid, given without an error",
        "what else the machine could have done, and what the trained model uses later",
    )


def to_json(found: Page) -> dict[str, Any]:
    """Plain data: joules as in the names, and kilograms of CO2e of each zone beside each proven figure."""

    def kg(span: Span | None) -> dict[str, Any] | None:
        return None if span is None else {zone.zone: dataclasses.asdict(zone.kg(span)) for zone in found.zones}

    facts = dataclasses.asdict(found)
    for use, told in zip(found.uses, facts["uses"], strict=True):
        told["measured_kg"] = kg(use.measured_j)
    for gain, told in zip(found.gains, facts["gains"], strict=True):
        for name in ("per_run", "runs", "tuning", "net"):
            told[f"{name}_kg"] = kg(getattr(gain, f"{name}_j"))
    return {"schema": 1, "runs": RUNS, **plain_data(facts)}
