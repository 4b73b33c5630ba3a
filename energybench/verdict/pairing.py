"""From records to comparable values: which trials form pairs, which joules may be added, what was counted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from energybench.meter.combine import Metered, Sensors, metered
from energybench.meter.reading import Energy
from energybench.records.record import CountingRun, Estimate, Trial
from energybench.stats import paired
from energybench.verdict import flag_codes, flags

LOWER_IS_BETTER = re.compile(  # anywhere in a name; or as a word of it: docs/commands.md has the list
    r"loss(?!less)|error|perplexity|entropy|mae|mse|fid(?!e)|bits_per"
    r"|(?<![a-z])(ppl|nll|wer|cer|eer|bpb|bpc|bpd|kid|lpips|mape)(?![a-z])"
)


@dataclass(frozen=True)
class Pair:
    """A trial and what it is held against: one block, one invocation, one device."""

    ours: Trial
    plain: Trial

    @cached_property
    def metered(self) -> tuple[Metered, Metered]:
        """Of both training windows; asked for many times."""
        return metered(self.ours.train), metered(self.plain.train)


@dataclass(frozen=True, slots=True)
class Figure:
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
    energy_j: Figure | None
    reason: str | None
    error_j: float | None = None  # the largest error budget of a trial's sensors
    net_j: Figure | None = None  # less what the machine drew idle, before and after


def unusable(trial: Trial) -> str | None:
    """Why a trial enters no comparison; never because of its value."""
    if trial.status != "ok":
        return trial.reason or trial.status
    for flag in flags.check_trial(trial):
        if flag_codes.kind(flag.code).severity == "invalid":
            return f"{flag_codes.kind(flag.code).sentence} {flag.detail}".strip()
    if trial.train is None or not trial.train.wall_s > 0:
        return "the record holds no training window"
    return None


def order(trials: Iterable[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda t: (t.workload, t.block, t.invocation, t.method, t.trial))


Partners = dict[tuple[int, int, str], Trial]  # (block, invocation, device) → a usable trial


def partners_of(plain: Iterable[Trial]) -> Partners:
    return {(t.block, t.invocation, t.device): t for t in order(plain) if unusable(t) is None}


def pairs(ours: Iterable[Trial], plain: Iterable[Trial] | Partners) -> list[Pair]:
    """Each block once: its newest invocation in which both sides are usable, on the same device."""
    partners = plain if isinstance(plain, dict) else partners_of(plain)
    found: dict[int, Pair] = {}
    for trial in order(ours):  # ascending invocations: the newest whole pair stays
        partner = partners.get((trial.block, trial.invocation, trial.device))
        if partner is not None and unusable(trial) is None:
            found[trial.block] = Pair(trial, partner)
    return [found[block] for block in sorted(found)]


def newest(trials: Iterable[Trial]) -> list[Trial]:
    """One usable trial per block: the newest."""
    return list({t.block: t for t in order(trials) if unusable(t) is None}.values())


def seconds(trial: Trial) -> float:
    assert trial.train is not None
    return trial.train.wall_s


def error_rel(found: Sequence[Pair]) -> float:
    """The widest error budget of a trial, as a share of its energy."""
    sums = [each for pair in found for each in pair.metered]
    return max((each.error_j / each.joules for each in sums if each.joules > 0), default=0.0)


def sensors_of(found: Sequence[Pair]) -> Sensors:
    """The measured sensors that every trial of these pairs shares; empty when any differs or has none.

    Inside a pair they watched the same devices: one card of two is half the joules, and no saving.
    """
    sums = [each for pair in found for each in pair.metered]
    sets, joules = {each.sensors for each in sums}, all(each.joules > 0 for each in sums)
    alike = all(ours.channels == plain.channels for ours, plain in (pair.metered for pair in found))
    return next(iter(sets)) if len(sets) == 1 and joules and alike else frozenset()


def change(
    found: Sequence[Pair], quantity: paired.Quantity, pooled: paired.Spread | None = None, alpha_fraction: float = 1.0
) -> paired.Paired:
    both = [
        (seconds(p.ours), seconds(p.plain)) if quantity == "time" else (p.metered[0].joules, p.metered[1].joules)
        for p in found
    ]
    return paired.paired([ours for ours, _ in both], [plain for _, plain in both], pooled, alpha_fraction)


def higher_is_better(metric: str) -> bool:
    return LOWER_IS_BETTER.search(metric.lower()) is None


def figure(values: Iterable[float | None]) -> Figure | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1)) if len(known) > 1 else None
    return Figure(mean, sd, len(known))


def energies(trials: Sequence[Trial]) -> tuple[EnergyFigure, ...]:
    """Every source's joules, devices of one source added within a trial, sources never."""
    by_source: dict[tuple[str, str], list[tuple[Trial, list[Energy]]]] = {}
    for trial in trials:
        here: dict[tuple[str, str], list[Energy]] = {}
        for energy in trial.train.energy if trial.train else ():
            here.setdefault((energy.source, energy.scope), []).append(energy)
        for key, parts in here.items():
            by_source.setdefault(key, []).append((trial, parts))
    result = []
    for (source, scope), per_trial in sorted(by_source.items()):
        whole = [(t, parts) for t, parts in per_trial if all(part.energy_j is not None for part in parts)]
        reason = next((part.reason for _, parts in per_trial for part in parts if part.energy_j is None), None)
        joules = figure(math.fsum(part.energy_j or 0.0 for part in parts) for _, parts in whole)
        measured = bool(whole) and all(part.measured for _, parts in whole for part in parts)
        budgets = [
            math.fsum(p.error_j or 0.0 for p in parts)
            for _, parts in whole
            if any(p.error_j is not None for p in parts)
        ]
        net = figure(net_j(trial, parts) for trial, parts in whole) if measured else None
        result.append(EnergyFigure(source, scope, measured, joules, reason, max(budgets, default=None), net))
    return tuple(result)


def net_j(trial: Trial, parts: Sequence[Energy]) -> float | None:
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
    gross = math.fsum(part.energy_j or 0.0 for part in parts)
    return gross - math.fsum(powers) / len(powers) * trial.train.wall_s


def counted_flop(trials: Sequence[Trial], counting_run: CountingRun | None) -> float | None:
    """Counted FLOPs of a metered run: Σ over kinds of steps, its samples × the witness's FLOPs per sample.

    The mean over trials; the witness's own total where no trial has a tally that it can price.
    """
    if counting_run is None or counting_run.status != "ok":
        return None
    totals = []
    for trial in trials:
        kinds = trial.passes.keys if trial.passes else {}
        if kinds and set(kinds) <= set(counting_run.keys):
            parts = [tally.get("samples", 0) * counting_run.keys[k].flop_per_sample for k, tally in kinds.items()]
            totals.append(math.fsum(parts) + counting_run.outside_steps_flop)
    return math.fsum(totals) / len(totals) if totals else counting_run.counted_flop


def reported_rel(found: Sequence[Pair], kind: str) -> float | None:
    """1 − ours / plain of the FLOPs that both commands report of themselves, the mean over blocks.

    kind: "estimated" or "counted"
    """
    both = [(pair.ours.flop.get(kind), pair.plain.flop.get(kind)) for pair in found]
    ratios = [ours / plain for ours, plain in both if ours is not None and plain]
    return 1 - math.fsum(ratios) / len(ratios) if ratios and len(ratios) == len(both) else None


def estimates(trials: Sequence[Trial], counting_run: CountingRun | None) -> list[Estimate]:
    """The trials' own; the witness's where they have none."""
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
