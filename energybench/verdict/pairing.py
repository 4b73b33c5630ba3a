"""From records to comparable values: which trials form pairs, which joules may be added, what was counted.

Functions that choose among trials take `reason_unusable`, which says of a trial why it enters no comparison: by
default it is examined anew, and `examination.Examination` remembers it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from energybench.meter.combine import Metered, Sensors, added_error, metered
from energybench.meter.modelled import loads_of
from energybench.meter.reading import Energy, Reading
from energybench.records.record import Counted, CountingRun, Estimate, Trial
from energybench.stats import paired
from energybench.verdict.devices import Pooling, where
from energybench.verdict.examination import examine


@dataclass(frozen=True)
class Pair:
    """A trial and what it is held against: one block, one invocation, one device, one group of those that take turns.

    beside: of two that took turns in different groups, a method and its control, each one's plain training of its own
            group, the method's first: they are compared by way of these
    """

    method: Trial
    baseline: Trial
    beside: tuple[Trial, Trial] | None = None

    @cached_property
    def metered(self) -> tuple[Metered, Metered]:
        """Of both training windows, the method's first; asked for many times."""
        return metered(self.method.train), metered(self.baseline.train)

    @cached_property
    def metered_beside(self) -> tuple[Metered, ...]:
        """Of the windows of the plain trainings by way of which the two are compared."""
        return tuple(metered(trial.train) for trial in self.beside or ())

    def costs(self, quantity: paired.Quantity) -> tuple[float, float]:
        """(method, baseline) in seconds or in measured joules; by way of plain training, the latter as it would have
        been in the method's group."""
        if quantity == "time":
            method, baseline = seconds(self.method), seconds(self.baseline)
            beside = [seconds(trial) for trial in self.beside or ()]
        else:
            method, baseline = (window.joules for window in self.metered)
            beside = [window.joules for window in self.metered_beside]
        return (method, baseline * beside[0] / beside[1]) if beside else (method, baseline)


@dataclass(frozen=True, slots=True)
class TrialMean:
    """Mean and standard deviation (None below two) of n trials."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True, slots=True)
class EnergyFigure:
    """One sensor's or model's joules in the training window; None with the reason when there is no figure."""

    source: str
    scope: str
    measured: bool
    energy_j: TrialMean | None
    reason: str | None
    error_j: float | None = None  # the largest error budget of a trial's sensors; None where a part's is not known
    net_j: TrialMean | None = None  # less what the machine drew idle, before and after
    load_rel: float | None = None  # of the machine, which codecarbon's model was given: mean over the trials


ReasonUnusable = Callable[[Trial], str | None]


def unusable(trial: Trial) -> str | None:
    """Why a trial enters no comparison; never because of its value."""
    return examine(trial).reason_unusable


def order(trials: Iterable[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda t: (t.workload, t.block, t.invocation, t.method, t.trial))


Partners = dict[tuple[int, int, str, int], Trial]  # (block, invocation, device, group) → a usable trial


def partners_of(baselines: Iterable[Trial], reason_unusable: ReasonUnusable = unusable) -> Partners:
    return {place(t): t for t in order(baselines) if reason_unusable(t) is None}


def place(trial: Trial) -> tuple[int, int, str, int]:
    """Its block, invocation, device and group."""
    return trial.block, trial.invocation, where(trial), trial.group


def pairs(
    trials: Iterable[Trial], baselines: Iterable[Trial] | Partners, reason_unusable: ReasonUnusable = unusable
) -> list[Pair]:
    """Each block once: its newest invocation in which both sides are usable, on the same device.

    Args:
        trials: of a method, a twin or a control
        baselines: what they are held against; or `partners_of` it, for whoever asks many times
        reason_unusable: why a trial enters no comparison

    Returns:
        By block, ascending; a block of which one side is missing has no pair.
    """
    partners = baselines if isinstance(baselines, dict) else partners_of(baselines, reason_unusable)
    by_block: dict[int, Pair] = {}
    for trial in order(trials):  # ascending invocations: the newest whole pair stays
        partner = partners.get(place(trial))
        if partner is not None and reason_unusable(trial) is None:
            by_block[trial.block] = Pair(trial, partner)
    return [by_block[block] for block in sorted(by_block)]


def pairs_with_controls(
    trials: Iterable[Trial], controls: Iterable[Trial], partners: Partners, reason_unusable: ReasonUnusable = unusable
) -> list[Pair]:
    """The same of a method and its control, which may have had their turns in different groups of a block.

    partners: plain training, by way of which such a pair is compared; without it there is none
    """
    controls = [t for t in order(controls) if reason_unusable(t) is None]
    by_block: dict[int, Pair] = {}
    for trial in order(trials):
        for control in controls if reason_unusable(trial) is None else ():
            if place(trial)[:3] != place(control)[:3]:
                continue
            if trial.group == control.group:
                by_block[trial.block] = Pair(trial, control)
                continue
            plain = (partners.get(place(trial)), partners.get(place(control)))
            if plain[0] is not None and plain[1] is not None:
                by_block[trial.block] = Pair(trial, control, (plain[0], plain[1]))
    return [by_block[block] for block in sorted(by_block)]


def newest(trials: Iterable[Trial], reason_unusable: ReasonUnusable = unusable) -> list[Trial]:
    """One usable trial per block: the newest."""
    return list({t.block: t for t in order(trials) if reason_unusable(t) is None}.values())


def seconds(trial: Trial) -> float:
    assert trial.train is not None
    return trial.train.wall_s


def error_rel(compared: Sequence[Pair]) -> float | None:
    """The widest error of a trial as a share of its energy; None where the error of any part of any is not known."""
    sums = [each for pair in compared for each in pair.metered if each.joules > 0]
    shares = [None if each.error_j is None else each.error_j / each.joules for each in sums]
    return None if None in shares else max((share for share in shares if share is not None), default=0.0)


def known_error_rel(compared: Sequence[Pair]) -> float:
    """The same of those parts alone whose error is known: the whole error is at least as wide."""
    shares = []
    for pair in compared:
        for trial, window in zip((pair.method, pair.baseline), pair.metered, strict=True):
            if window.joules > 0:
                shares.append(math.fsum(_known_errors(trial.train, window)) / window.joules)
    return max(shares, default=0.0)


def _known_errors(reading: Reading | None, window: Metered) -> list[float]:
    """In joules, of the figures that were added."""
    measured = [energy for energy in reading.energy if energy.measured] if reading else []
    parts = {(e.source, e.scope, e.device): e.error_j for e in reversed(measured)}  # the first of a channel counts
    return [error for channel in window.channels if (error := parts.get(channel)) is not None]


def sensors_of(compared: Sequence[Pair]) -> Sensors:
    """The measured sensors that every trial of these pairs shares; empty when any differs or has none.

    Inside a pair they watched the same devices: one card of two is half the joules, and no saving.
    """
    sums = [each for pair in compared for each in (*pair.metered, *pair.metered_beside)]
    sets, joules = {each.sensors for each in sums}, all(each.joules > 0 for each in sums)
    alike = all(len({each.channels for each in (*pair.metered, *pair.metered_beside)}) == 1 for pair in compared)
    return next(iter(sets)) if len(sets) == 1 and joules and alike else frozenset()


def devices_of(compared: Sequence[Pair], pooling: Pooling | None) -> list[str] | None:
    """Of each pair, as `stats` asks for them: None where one device ran everything, so that blocks are counted."""
    return None if pooling is None or not pooling.several else [pooling.device(pair.method) for pair in compared]


def change(
    compared: Sequence[Pair],
    quantity: paired.Quantity,
    pooled: paired.Spread | None = None,
    alpha_fraction: float = 1.0,
    pooling: Pooling | None = None,
) -> paired.Paired:
    """The paired log ratios ln(method / baseline) of seconds, or of measured joules.

    Args:
        compared: at least one pair; joules only where `sensors_of` the pairs is not empty
        quantity: "time" or "energy"
        pooled: the spread of all comparisons of the workload
        alpha_fraction: of every chance of error, what the interim analysis may use
        pooling: of the devices, where they may be several
    """
    costs = [pair.costs(quantity) for pair in compared]
    devices = devices_of(compared, pooling)
    return paired.paired([cost for cost, _ in costs], [cost for _, cost in costs], pooled, alpha_fraction, devices)


def pooled(
    comparisons: Sequence[Sequence[Pair]], pooling: Pooling | None = None
) -> dict[paired.Quantity, paired.Spread | None]:
    """One spread for all comparisons of a workload, by quantity; None where their variances differ."""
    bounded = [pairs for pairs in comparisons if len(pairs) > 1]
    groups: dict[paired.Quantity, list[Sequence[Pair]]] = {
        "time": bounded,
        "energy": [pairs for pairs in bounded if sensors_of(pairs)],
    }
    return {
        quantity: paired.pool([change(pairs, quantity, pooling=pooling).residuals for pairs in of])
        for quantity, of in groups.items()
    }


def same_weights(pair: Pair) -> bool:
    """Whether the method ended with plain training's very weights."""
    method, baseline = pair.method, pair.baseline
    return method.weights_sha256 is not None and method.weights_sha256 == baseline.weights_sha256


def mean_of(values: Iterable[float | None]) -> TrialMean | None:
    """Over what is known and finite; None of nothing."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1)) if len(known) > 1 else None
    return TrialMean(mean, sd, len(known))


def most_of(values: Iterable[int | None]) -> int | None:
    """Of what is known; None of nothing."""
    return max((value for value in values if value is not None), default=None)


Parts = Sequence[Energy]  # of one source and scope in one trial: a figure for each device


def energies(trials: Sequence[Trial]) -> tuple[EnergyFigure, ...]:
    """Every source's joules, devices of one source added within a trial, sources never.

    Returns:
        One figure for each (source, scope), sorted: the mean over those trials in which every device has a figure. Its
        error is that of the worst trial, and not known where that of any device of any trial is not.
    """
    by_source: dict[tuple[str, str], list[tuple[Trial, Parts]]] = {}
    for trial in trials:
        of_trial: dict[tuple[str, str], list[Energy]] = {}
        for energy in trial.train.energy if trial.train else ():
            of_trial.setdefault((energy.source, energy.scope), []).append(energy)
        for source, parts in of_trial.items():
            by_source.setdefault(source, []).append((trial, parts))
    return tuple(_energy_figure(source, scope, of_trials) for (source, scope), of_trials in sorted(by_source.items()))


def _energy_figure(source: str, scope: str, of_trials: Sequence[tuple[Trial, Parts]]) -> EnergyFigure:
    """A trial of which one device has no figure has no sum."""
    whole = [(trial, parts) for trial, parts in of_trials if all(part.energy_j is not None for part in parts)]
    missing = [part for _, parts in of_trials for part in parts if part.energy_j is None]
    measured = bool(whole) and all(part.measured for _, parts in whole for part in parts)
    return EnergyFigure(
        source,
        scope,
        measured,
        energy_j=mean_of(_joules(parts) for _, parts in whole),
        reason=missing[0].reason if missing else None,
        error_j=_widest([added_error(part.error_j for part in parts) for _, parts in whole]),
        net_j=mean_of(net_j(trial, parts) for trial, parts in whole) if measured else None,
        load_rel=None if measured else _mean_load([loads_of(parts) for _, parts in whole]),
    )


def _mean_load(by_trial: Sequence[Sequence[float]]) -> float | None:
    """Over the trials, of each one's mean over its pieces; None where one's is not known."""
    if not by_trial or not all(by_trial):
        return None
    return math.fsum(math.fsum(loads) / len(loads) for loads in by_trial) / len(by_trial)


def _joules(parts: Parts) -> float:
    return math.fsum(part.energy_j or 0.0 for part in parts)


def _widest(errors: Sequence[float | None]) -> float | None:
    """The largest; None where any is not known, or there is none."""
    known = [error for error in errors if error is not None]
    return max(known) if known and len(known) == len(errors) else None


def net_j(trial: Trial, parts: Parts) -> float | None:
    """Energy above what these sensors read while the process waited, before and after; may be negative."""
    powers = []
    for name in ("idle_before", "idle_after"):
        idle = trial.phases.get(name)
        sensors = {(e.source, e.scope, e.device): e.energy_j for e in idle.energy} if idle else {}
        known = [sensors.get((part.source, part.scope, part.device)) for part in parts]
        if idle and idle.wall_s > 0 and all(joules is not None for joules in known):
            powers.append(math.fsum(joules or 0.0 for joules in known) / idle.wall_s)
    if not powers or trial.train is None:
        return None
    return _joules(parts) - math.fsum(powers) / len(powers) * trial.train.wall_s


def counted_flop(trials: Sequence[Trial], counting_run: CountingRun | None) -> float | None:
    """Counted FLOPs of a metered run: Σ over kinds of steps, its samples × the counting run's FLOPs per sample.

    The mean over trials; the counting run's own total where no trial has a tally that it can price.
    """
    if counting_run is None or counting_run.status != "ok":
        return None
    totals = []
    for trial in trials:
        kinds = trial.passes.keys if trial.passes else {}
        if kinds and set(kinds) <= set(counting_run.keys):
            parts = [_priced(tally, counting_run.keys[key]) for key, tally in kinds.items()]
            totals.append(math.fsum(parts) + counting_run.outside_steps_flop)
    return math.fsum(totals) / len(totals) if totals else counting_run.counted_flop


def _priced(tally: dict[str, int], price: Counted) -> float:
    """FLOPs of the steps of one kind, by the samples that they sent forward where each sends any."""
    if price.flop_per_forwarded is not None:
        return tally.get("forwarded", tally.get("samples", 0)) * price.flop_per_forwarded
    return tally.get("samples", 0) * price.flop_per_sample


def reported_rel(compared: Sequence[Pair], kind: str) -> float | None:
    """1 − method / baseline of the FLOPs that both commands report of themselves, the mean over blocks.

    kind: "estimated" or "counted"
    """
    reported = [(pair.method.flop.get(kind), pair.baseline.flop.get(kind)) for pair in compared]
    ratios = [method / baseline for method, baseline in reported if method is not None and baseline]
    return 1 - math.fsum(ratios) / len(ratios) if ratios and len(ratios) == len(reported) else None


def estimates(trials: Sequence[Trial], counting_run: CountingRun | None) -> list[Estimate]:
    """The trials' own; the counting run's where they have none."""
    known = [trial.estimate for trial in trials if trial.estimate]
    if not known and counting_run and counting_run.estimate:
        known = [counting_run.estimate]
    return [estimate for estimate in known if estimate.plain_flop > 0]


def estimated_rel(trials: Sequence[Trial], counting_run: CountingRun | None) -> float | None:
    """1 − estimated / plain by the stack's own formulas, the mean over trials."""
    known = estimates(trials, counting_run)
    if not known:
        return None
    return 1 - math.fsum(e.estimated_flop / e.plain_flop for e in known) / len(known)
