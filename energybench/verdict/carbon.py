"""Energy and carbon of a run: per training run, and for many where a saving was measured and proven.

    CO2e = energy at the sensors × PUE × intensity of the zone's grid

Uncertainty is carried through: what a block saved is baseline − method in joules, Student's t over the blocks, and the
sensors' own error budgets of both sides added to it; where an error is not known there are no bounds. N runs to come
are a prediction: N times the mean, with the mean's uncertainty times N and the scatter of single runs times √N. Bounds
of differences of such figures are the worst case.
Modelled energy is listed as modelled and multiplied by nothing: no zone, no PUE, no number of runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energybench.common.renamed import as_data, renamed
from energybench.meter import combine
from energybench.meter.combine import Metered, added_error, metered
from energybench.meter.grid import J_PER_KWH
from energybench.meter.reading import Reading
from energybench.meter.zones import OWN, intensity, own_intensity
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.stats import paired
from energybench.verdict import devices, pairing, wording
from energybench.verdict.devices import Pooling
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Row, Summary, Workload
from energybench.verdict.pairing import EnergyFigure, Pair
from energybench.verdict.summary import plain_data, summarise

RUNS = 1000
NO_ZONE = 'The suite names no country, so there is no CO2e: add --zones FR, or --intensity "56 g/kWh".'
BASELINE = "baseline"
PARTS = {"gpu": "GPUs", "cpu": "processors", "dram": "memory"}
PROVEN = frozenset({"saves", "costs more"})  # verdicts that may be multiplied
WHOLE_COMMAND = frozenset({"command", "idle_before", "idle_after"})  # a command's phases that share no moment


@dataclass(frozen=True, slots=True)
class Zone:
    """Where the electricity comes from, and how much carbon comes with it: a yearly mean, or somebody's own figure.

    zone:    as meter/grid.py writes it: "FRA", "US-CA", "aws:eu-west-3"; "own" for an intensity that was given
    country: its name; empty for a figure of one's own
    basis:   what the intensity is the mean of, or where it was given; empty in records without it
    """

    zone: str
    country: str
    intensity_kg_j: float
    year: int | str | None
    source: str
    pue: float
    basis: str = ""
    country_iso: str = ""  # alpha-3
    place: str = ""  # in the country: "California"
    region: str = ""  # the same as codecarbon's emissions.csv names it
    cloud_provider: str = ""
    cloud_region: str = ""
    pue_basis: str = ""  # where a PUE was given that is not the run's own

    def kg(self, joules: Span) -> Span:
        return joules.times(self.intensity_kg_j * self.pue)


@dataclass(frozen=True, slots=True)
class Span:
    """A figure and its bounds, in one unit; None where too few blocks bound it, or a sensor's error is not known."""

    mean: float
    low: float | None = None
    high: float | None = None

    def times(self, factor: float) -> Span:
        """By a factor above 0."""
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Span(self.mean * factor, low, high)

    def less(self, other: Span) -> Span:
        """The difference, in the worst case of both bounds."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return Span(self.mean - other.mean)
        return Span(self.mean - other.mean, self.low - other.high, self.high - other.low)


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
    device: str = ""  # on which of several; empty where one ran everything


@renamed(because="reason")
@dataclass(frozen=True, slots=True)
class Gain:
    """What a method's proven saving means; negative where it costs more. None where nothing may be multiplied."""

    workload: str
    method: str
    verdict: str
    reason: str  # why nothing is multiplied; empty where it is
    per_run_j: Span | None
    runs_j: Span | None  # of RUNS runs
    tuned_trials: int | None  # None: the suite does not say
    tuning_j: Span | None
    net_j: Span | None  # of RUNS runs, less the tuning
    repaid: int | None  # runs that repay the tuning
    repaid_bounds: tuple[int, int | None] | None  # at best; at worst, None where that is never certain


@dataclass(frozen=True, slots=True)
class CarbonReport:
    """Everything the carbon report says."""

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
    device_note: str = ""  # which devices are pooled, or why none are


@dataclass(frozen=True, slots=True)
class Asked:
    """What whoever reads the report wants in place of what the run recorded.

    zones:          "FR", "US-CA", "aws:eu-west-3"; none for the run's own
    intensity_kg_j: of their own, beside those zones; kilograms of CO2e per joule
    pue:            in every zone; None for the run's own
    """

    zones: tuple[str, ...] = ()
    intensity_kg_j: float | None = None
    pue: float | None = None


def zones_of(run: RunFile, asked: Asked = Asked()) -> tuple[Zone, ...]:
    """The run's own zone, as recorded; or what is asked for, from codecarbon's tables. Raises UsageError E502."""
    recorded: Mapping[str, Any] = run.machine.get("carbon") or {}
    known = [_known(name, recorded) for name in asked.zones]
    if asked.intensity_kg_j is not None:
        known.append(own_intensity(asked.intensity_kg_j, "", "given by --intensity"))
    elif not known and recorded.get("zone"):
        known = [_known(str(recorded["zone"]), recorded)]
    zones = [_zone(each, recorded, asked.pue) for each in known]
    return tuple({zone.zone: zone for zone in zones}.values())


def _known(name: str, recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is known of a zone: the run's own keeps the figure that its record holds."""
    own = recorded.get("zone")
    if _kg_per_j(recorded) is None or own is None:
        return intensity(name)
    if name.strip() == own:
        return recorded
    known = intensity(name)
    return recorded if known["zone"] == own else known


def _kg_per_j(known: Mapping[str, Any]) -> float | None:
    """Kilograms of CO2e per joule; the first records had it per kilowatt-hour."""
    per_j, per_kwh = known.get("intensity_kg_per_j"), known.get("intensity_kg_per_kwh")
    return per_j if per_j is not None or per_kwh is None else per_kwh / J_PER_KWH


def _zone(known: Mapping[str, Any], recorded: Mapping[str, Any], pue: float | None) -> Zone:
    """With the PUE of the run, whatever the zone, unless another is asked for."""
    name, kg_per_j = str(known["zone"]), _kg_per_j(known)
    assert kg_per_j is not None
    facts = ("basis", "country_iso", "place", "region", "cloud_provider", "cloud_region")
    return Zone(
        name,
        country=str(known.get("country") or ("" if name == OWN else name)),
        intensity_kg_j=kg_per_j,
        year=known.get("year"),
        source=str(known.get("source") or ""),
        pue=float(recorded.get("pue", 1.0)) if pue is None else pue,
        pue_basis="" if pue is None else "given by --pue",
        **{fact: str(known.get(fact) or "") for fact in facts},
    )


def carbon_report(
    run: RunFile,
    trials: Sequence[Trial],
    counting_runs: Sequence[CountingRun],
    asked: Asked = Asked(),
    pooling: Pooling | None = None,
) -> CarbonReport:
    """Everything the carbon report says.

    Args:
        run: with the zone and the PUE of its suite
        trials: of the run, good and failed
        counting_runs: its unmetered, counted runs
        asked: zones, an intensity and a PUE in place of the run's own
        pooling: of its devices, as `run_parts` has it; joules of several are never pooled, and each has its own figures

    Raises:
        UsageError: E502 for a zone of which no intensity is known
    """
    examination = Examination(trials)
    pooling = pooling or devices.pooling(run, trials)
    summary = summarise(run, trials, counting_runs, examination, pooling)
    zones = zones_of(run, asked)
    judged = [t for t in pairing.order(trials) if t.block < summary.look.blocks]
    uses = [use for w in summary.workloads for use in _uses(w, judged, examination, pooling)]
    rows = [(w.name, row) for w in summary.workloads for row in w.rows]
    return CarbonReport(
        suite=run.suite,
        run=run.run,
        stamp=tuple(run.stamp),
        headline=_headline(summary),
        look_note=summary.look_note,
        zones=zones,
        no_zone="" if zones else NO_ZONE,
        energy_note=summary.energy_note,
        uses=tuple(uses),
        gains=tuple(
            gain
            for name, row in rows
            for gain in _gains(name, row, judged, run, summary.look.alpha_fraction, examination, pooling)
        ),
        device_note=summary.device_note,
        whole_j=_whole(trials),
        not_in_it=_not_in_it(summary, zones),
    )


def _headline(summary: Summary) -> str:
    proven = [row for w in summary.workloads for row in w.rows if row.verdict == "saves"]
    measured = any(row.measured and row.measured.quantity == "energy" for w in summary.workloads for row in w.rows)
    if proven or measured:
        return summary.headline
    return "No energy was measured on both sides of a comparison, so no energy and no CO2e was shown to be saved."


def _bounded(
    values: Sequence[float], error: float | None, runs: int | None = None, alpha_fraction: float = 1.0
) -> Span:
    """The mean of `values`, or their sum in runs to come, with its 95 % bounds.

    Args:
        values: joules, one per block
        error: of the sensors in one run, in joules; None where it is not known, and then there are no bounds
        runs: how many are to come; None for the mean of the blocks that were run
        alpha_fraction: of the chance of error, what the look may use
    """
    change = paired.differences(values, [0.0] * len(values), alpha_fraction=alpha_fraction)
    n, times = change.n, 1 if runs is None else runs
    if change.df <= 0 or error is None:
        return Span(times * change.mean)
    low, _ = change.interval()
    reach = (change.mean - low) * math.sqrt(n)  # t × sd
    variance = 1 / n if runs is None else runs**2 / n + runs
    half = reach * math.sqrt(variance) + times * error
    return Span(times * change.mean, times * change.mean - half, times * change.mean + half)


def _mean_error(errors: Sequence[float | None]) -> float | None:
    """Over blocks; None where one is not known."""
    total = added_error(errors)
    return None if total is None else total / len(errors)


def _metered(trials: Sequence[Trial]) -> list[Metered]:
    """Each trial's joules; empty unless all have the same sensors."""
    windows = [metered(trial.train) for trial in trials]
    same = len({each.channels for each in windows}) == 1 and all(each.sensors and each.joules > 0 for each in windows)
    return windows if same else []


def _uses(workload: Workload, trials: Sequence[Trial], examination: Examination, pooling: Pooling) -> list[Use]:
    """Of each cell; on each device, where there are several."""
    of_workload = [t for t in trials if t.workload == workload.name]
    cells = [(workload.baseline_name, BASELINE, [t for t in of_workload if t.role == BASELINE])]
    cells += [(row.method, row.method, [t for t in of_workload if t.method == row.method]) for row in workload.rows]
    if not pooling.several:
        return [
            _use(workload.name, name, label, pairing.newest(of_cell, examination.reason_unusable))
            for name, label, of_cell in cells
        ]
    return [
        _use(workload.name, f"{name}, {pooling.name(device)}", label, newest, device)
        for name, label, of_cell in cells
        for device, of_it in pooling.by_device(of_cell).items()
        if (newest := pairing.newest(of_it, examination.reason_unusable))
    ]


def _use(workload: str, method: str, label: str, trials: Sequence[Trial], device: str = "") -> Use:
    windows = _metered(trials)
    figure, sensors, reason = None, "", ""
    if windows:
        figure = _bounded([each.joules for each in windows], _mean_error([each.error_j for each in windows]))
        sensors = ", ".join(f"{scope} by {wording.sensor(source)}" for source, scope in sorted(windows[0].sensors))
    elif not trials:
        reason = "no usable trial"
    else:
        some = any(metered(trial.train).sensors for trial in trials)
        reason = "not every block had the same sensors" if some else "not measured"
    return Use(workload, method, label, len(trials), figure, sensors, reason, pairing.energies(trials), device)


def _gains(
    workload: str,
    row: Row,
    trials: Sequence[Trial],
    run: RunFile,
    alpha_fraction: float,
    examination: Examination,
    pooling: Pooling,
) -> list[Gain]:
    """Of a method; on each device, where there are several: the verdict is of them all, and joules are each one's."""
    whole, pairs = _gain(workload, row, trials, run, examination)
    if not pairs:
        return [whole]
    if not pooling.several:
        return [dataclasses.replace(whole, **_multiplied(pairs, whole.tuned_trials, alpha_fraction))]
    by_device: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_device.setdefault(pooling.device(pair.method), []).append(pair)
    return [
        dataclasses.replace(
            whole,
            method=f"{whole.method}, {pooling.name(device)}",
            **_multiplied(of_it, whole.tuned_trials, alpha_fraction),
        )
        for device, of_it in by_device.items()
    ]


def _gain(
    workload: str, row: Row, trials: Sequence[Trial], run: RunFile, examination: Examination
) -> tuple[Gain, list[Pair]]:
    """What is not multiplied, with the reason and no pair; else the pairs."""
    cell = next((c for c in run.cells if (c.workload, c.method) == (workload, row.method)), None)
    tuned = cell.tuned_trials if cell else None
    empty = Gain(workload, row.method, row.verdict, "", None, None, tuned, None, None, None, None)
    if row.measured is None or row.measured.quantity != "energy":
        return dataclasses.replace(empty, reason="its energy was not measured on both sides"), []
    if row.verdict not in PROVEN:
        detail = f": {row.reason}" if row.reason else ""
        return dataclasses.replace(empty, reason=f"{row.verdict}{detail}; nothing is multiplied"), []
    of_workload = [t for t in trials if t.workload == workload]
    pairs = pairing.pairs(
        [t for t in of_workload if t.method == row.method],
        [t for t in of_workload if t.role == BASELINE],
        examination.reason_unusable,
    )
    return empty, pairs


def _multiplied(pairs: Sequence[Pair], tuned: int | None, alpha_fraction: float) -> dict[str, Any]:
    windows = [pair.metered for pair in pairs]
    saved = [baseline.joules - method.joules for method, baseline in windows]
    error = _mean_error([added_error((baseline.error_j, method.error_j)) for method, baseline in windows])
    per_run, many = _bounded(saved, error, alpha_fraction=alpha_fraction), _bounded(saved, error, RUNS, alpha_fraction)
    figures: dict[str, Any] = {"per_run_j": per_run, "runs_j": many}
    if tuned is not None:
        took = [method.joules for method, _ in windows]
        tuning = _bounded(took, _mean_error([method.error_j for method, _ in windows]), tuned, alpha_fraction)
        figures |= {"tuning_j": tuning, "net_j": many.less(tuning)} | _repaid(tuning, per_run)
    return figures


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
    windows = [metered(reading) for trial in trials for reading in _windows(trial)]
    return math.fsum(each.joules for each in windows) if any(each.sensors for each in windows) else None


def _windows(trial: Trial) -> list[Reading]:
    """A trial's windows that lie in no other: a command holds its training and whatever else it marked."""
    inside = "command" in trial.phases
    return [reading for name, reading in trial.phases.items() if not inside or name in WHOLE_COMMAND]


def _not_in_it(summary: Summary, zones: Sequence[Zone]) -> tuple[str, ...]:
    pue = f" ({zones[0].pue:g}{': nothing of it' if zones[0].pue == 1 else ''})" if zones else ""
    baselines = [w.baseline for w in summary.workloads]
    every = [
        *(e for b in baselines for e in b.energies),
        *(e for b in baselines for d in b.on_devices for e in d.energies),
    ]
    scopes = {energy.scope for energy in every if energy.measured}
    seen = {*scopes, *(combine.IN_A_MODULE if combine.MODULE in scopes else ())}
    unseen = [name for scope, name in PARTS.items() if scope not in seen] + ["fans, disks and power supplies"]
    parts = "" if combine.MACHINE in scopes or not scopes else f"; what no sensor here sees: {', '.join(unseen)}"
    return (
        "making the machine and disposing of it (embodied emissions)",
        f"cooling, conversion and lighting of the data centre beyond the PUE{pue}",
        f"network, storage and other machines{parts}",
        "set-up, warm-up, evaluation, idling between trials and the counted runs: a run is its training window",
        "the hour and the place in the country: an intensity is a year's mean of a whole grid, given without an error",
        "what else the machine could have done, and what the trained model uses later",
    )


def to_json(report: CarbonReport) -> dict[str, Any]:
    """Plain data: joules as in the names, and kilograms of CO2e of each zone beside each proven figure."""

    def kg(span: Span | None) -> dict[str, Any] | None:
        return None if span is None else {zone.zone: as_data(zone.kg(span)) for zone in report.zones}

    facts = as_data(report)
    for use, use_facts in zip(report.uses, facts["uses"], strict=True):
        use_facts["measured_kg"] = kg(use.measured_j)
    for gain, gain_facts in zip(report.gains, facts["gains"], strict=True):
        for name in ("per_run", "runs", "tuning", "net"):
            gain_facts[f"{name}_kg"] = kg(getattr(gain, f"{name}_j"))
    return {"schema": 1, "runs": RUNS, **plain_data(facts)}
