"""Numbers and sentences, one way of writing them. What must stay on one line is joined by no-break spaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from energybench.common.escaping import NB, printable
from energybench.meter.combine import in_short as in_short_device
from energybench.meter.modelled import MODEL, whole_machine
from energybench.meter.not_seen import in_short
from energybench.stats import paired

if TYPE_CHECKING:
    from energybench.meter.reading import Energy
    from energybench.verdict.figures import (
        Control,
        Measured,
        Once,
        Phase,
        Quality,
        Roofline,
        Row,
        SideToTarget,
        ToTarget,
        Workload,
    )
    from energybench.verdict.pairing import EnergyFigure

NOTHING = "–"
SHOWS = 0.0005  # of a share: less is 0.0 pp
FINEST = 6  # decimals, past which two figures are taken for the same
clean = printable
BETTER = frozenset({"saves", "faster"})
WORSE = frozenset({"costs more", "slower"})
SAME = frozenset({"no saving", "no difference"})


def plain(text: str) -> str:
    """Ordinary spaces, once lines are broken."""
    return text.replace(NB, " ")


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A typographic minus, no negative zero."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return f"−{text}" if value < 0 else f"+{text}" if sign else text


def percent(value: float | None, decimals: int = 1) -> str:
    return NOTHING if value is None else f"{number(100 * value, decimals)}{NB}%"


def interval(low: float, high: float, decimals: int) -> str:
    return f"[{number(100 * low, decimals)},{NB}{number(100 * high, decimals)}]"


def measured(figure: Measured | None) -> str:
    """31 % [27, 35]; the interval from three blocks on."""
    if figure is None:
        return NOTHING
    return saving(figure.saving_rel, figure.low_rel, figure.high_rel, figure.interval is not None)


def saving(share: float, low: float | None, high: float | None, bounded: bool = True) -> str:
    """A decimal only where the interval is narrow enough to deserve it. `bounded`: whether it is shown."""
    decimals = 1 if low is None or high is None or high - low < 0.04 else 0
    text = percent(share, decimals)
    return text if low is None or high is None or not bounded else f"{text}{NB}{interval(low, high, decimals)}"


def points(value: float, fraction: bool, decimals: int | None = None) -> str:
    """A change of quality: percentage points of a fraction, else the metric's own unit."""
    if fraction:
        return f"{number(100 * value, 1 if decimals is None else decimals, sign=True)}{NB}pp"
    return number(value, 3 if decimals is None else decimals, sign=True)


def _decimals(value: float, least: int) -> int:
    """As many as a margin was written with: 0.25 pp is not 0.2."""
    return max(least, len(f"{Decimal(f'{value:.6g}'):f}".partition(".")[2]))


def as_written(share: float) -> str:
    """A share that the suite's author chose, as it was written."""
    return percent(share, _decimals(100 * share, 1))


def accepted(limit: float, fraction: bool) -> str:
    """The worst change that the suite accepts, as it was written."""
    return points(limit, fraction, _decimals(100 * limit, 1) if fraction else _decimals(limit, 3))


def beside(change: float, limit: float, fraction: bool) -> tuple[str, str]:
    """A change and what is accepted, in as many decimals as tell the two apart."""
    decimals = _decimals(100 * limit, 1) if fraction else _decimals(limit, 3)
    return _apart(lambda value, digits: points(value, fraction, digits), change, limit, decimals)


def share_beside(share: float, limit: float) -> str:
    """A share that is held against a margin, in as many decimals as tell it from that."""
    return _apart(percent, share, limit, _decimals(100 * limit, 1))[0]


def _apart(show: Callable[[float, int], str], value: float, limit: float, decimals: int) -> tuple[str, str]:
    while show(value, decimals) == show(limit, decimals) and decimals < FINEST:
        decimals += 1
    return show(value, decimals), show(limit, decimals)


def quality_change(quality: Quality | None) -> str:
    return NOTHING if quality is None else points(quality.change, quality.fraction)


def realised(value: float | None) -> str:
    """Measured / estimated."""
    return NOTHING if value is None else percent(value, 0)


PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}  # of powers of 1000


def si(value: float, unit: str) -> str:
    """Three figures with a prefix: 1.25 kJ."""
    if value == 0 or not math.isfinite(value):
        return f"{number(value, 0)}{NB}{unit}"
    value = float(f"{value:.3g}")  # first, so that 999.6 becomes 1.00 k
    power = max(-3, min(5, math.floor(math.log10(abs(value)) / 3 + 1e-12)))
    scaled = value / 1000**power
    decimals = max(0, 2 - math.floor(math.log10(abs(scaled)) + 1e-12))
    return f"{number(scaled, decimals)}{NB}{PREFIXES[power]}{unit}"


def duration(value: float) -> str:
    """Seconds, minutes or hours."""
    if value < 1:
        return si(value, "s")
    if value < 120:
        return f"{number(value, 1)}{NB}s"
    return f"{number(value / 60, 1)}{NB}min" if value < 7200 else f"{number(value / 3600, 1)}{NB}h"


def blocks(n: int) -> str:
    return f"{n}{NB}block{'s' * (n != 1)}"


SENSORS = {
    "gpu_counter": "the card's energy counter",
    "gpu_power_integral": "the card's integrated power",
    "rapl": "RAPL",
}
ENERGY_OFF = "Energy was not asked for, so methods are compared by time."


def sensor(source: str) -> str:
    """A source as one says it."""
    if source.startswith("hwmon("):
        return source.replace("(", " (")
    return SENSORS.get(source, source.removeprefix("model(").removeprefix("meter(").removesuffix(")"))


def modelled_of(energy: EnergyFigure) -> str:
    """What codecarbon's figure is of, and at which load; empty for what was measured, or modelled by somebody else."""
    if energy.measured or energy.energy_j is None or not energy.source.startswith(MODEL):
        return ""
    return whole_machine([] if energy.load_rel is None else [energy.load_rel], mean=energy.energy_j.n > 1)


def energy_measured(
    sensors: Sequence[tuple[str, str]],
    everywhere: bool,
    missing: Sequence[Energy],
    devices: Sequence[str] = (),
    of: Mapping[tuple[str, str], Sequence[str]] = MappingProxyType({}),
) -> str:
    """Which parts of the machine were measured, by what; and which were not, and which devices.

    of: (source, scope) → the devices that it measured
    """
    measured_by = ", ".join(
        f"{scope} by {sensor(source)}{_listed(of.get((source, scope), ()))}" for source, scope in sensors
    )
    mixed = "" if everywhere else " In some trials only: pairs without the same sensors are compared by time."
    seen = {scope for _, scope in sensors}
    return f"Energy is measured: {measured_by}.{mixed}{_not_seen([e for e in missing if e.scope not in seen], devices)}"


def _listed(devices: Sequence[str]) -> str:
    """Where there are several, which: their joules are added."""
    return f" ({' + '.join(map(in_short_device, devices))})" if len(devices) > 1 else ""


def energy_not_measured(modelled: bool, missing: Sequence[Energy], devices: Sequence[str] = ()) -> str:
    not_seen = _not_seen(missing, devices)
    if not modelled:
        return f"Energy is not available, so methods are compared by time.{not_seen}"
    return (
        "Energy is modelled, not measured: this machine has no energy sensor that could be read. "
        f"A modelled figure is never a saving, so methods are compared by time.{not_seen}"
    )


def _not_seen(missing: Sequence[Energy], devices: Sequence[str]) -> str:
    """Each part that no sensor sees once, in short, then each device; a whole reason stands in the table of energies.

    missing: null figures, of which those that name a device are among `devices`, as `not_seen` words them
    """
    parts = [energy for energy in missing if not energy.device]
    short = dict.fromkeys((e.scope, in_short(e)) for e in parts)
    words = [*(f"{scope} ({reason})" for scope, reason in short), *devices]
    return f" Not seen: {', '.join(words)}." if words else ""


def what(quantity: str, scope: str) -> str:
    """In a table or a label: "time", "energy (cpu)"."""
    return "time" if quantity == "time" else f"energy ({scope})"


OWNERS = {
    "gpu": "the card's",
    "cpu": "the processor's",
    "dram": "the memory's",
    "module": "the module's",
    "machine": "the whole machine's",
}


def whose(scope: str) -> str:
    """In a sentence, of which part of the machine: "the processor's energy"; "cpu + gpu" names both."""
    owners = [OWNERS.get(part, f"{part}'s") for part in scope.split(" + ")]
    return f"{' and '.join(owners)} energy"


FEWER_APART = 0.01  # FLOPs and bytes saved, past which it is worth a word


def roofline(roof: Roofline) -> str:
    """How much of plain training waits for memory, and what that leaves of the formulas' saving."""
    waits = f"{percent(roof.memory_bound_rel, 0)} of plain training's kernel time waits for memory"
    most = f"the formulas save at most {percent(roof.saved_rel)} of it all"
    return f"At this machine's {number(roof.balance_flop_b, 0)} FLOP per byte, {waits}, and {most}."


PHASE = {"method_overhead": "its own work", "own": "its own work", "data": "waiting for data", "loop": "the loop"}


def phases(profiled: Sequence[Phase]) -> str:
    """Which phases of a step take longer or less long, in shares of plain training's time."""
    if not profiled:
        return ""
    changed = [
        f"{PHASE.get(phase.name, phase.name)} {percent(phase.baseline_rel)} → {percent(phase.method_rel)}"
        for phase in profiled
        if abs(phase.method_rel - phase.baseline_rel) >= FEWER_APART
    ]
    return f"In profiled steps, of plain training's time: {', '.join(changed) or 'no phase changes by 1 %'}."


def side_to_target(side: SideToTarget, n: int) -> str:
    """What one side took to the target, and how often it arrived."""
    if not side.reached or side.seconds is None:
        return f"in none of {blocks(n)}"
    steps = "" if side.steps is None else f"{number(side.steps.mean, 0)}{NB}steps, "
    energy = "" if side.energy_j is None else f" and {si(side.energy_j.mean, 'J')}"
    return f"after {steps}{duration(side.seconds.mean)}{energy} in {side.reached} of {blocks(n)}"


def to_target(target: ToTarget) -> str:
    """What each side took to reach the workload's target quality, and what is proven of it."""
    method, baseline = (side_to_target(side, target.n) for side in (target.method, target.baseline))
    text = f"Reaches {goal(target)} {method}, plain training {baseline}"
    if target.cost is not None:
        text += f": {measured(target.cost)} {what(target.cost.quantity, target.cost.scope)} saved"
    reason = f" ({target.reason})" if target.reason else ""
    return f"{text}; to that target {target.verdict}{reason}."


def goal(target: ToTarget) -> str:
    return f"{target.metric} {number(target.at_least, _decimals(target.at_least, 2))}"


def missed(method: int, baseline: int, n: int) -> str:
    """Which side did not arrive: in how many of n blocks each did."""
    if method == baseline == 0:
        return "neither side reached it in the epochs given"
    sides = [
        f"{who} missed it in {n - reached} of {blocks(n)}"
        for who, reached in (("the method", method), ("plain training", baseline))
        if reached < n
    ]
    return f"{' and '.join(sides)}, so the saving is not known"


def ended(lost: int, n: int) -> str:
    """Training that ended before it could arrive, in blocks beside the n that have a pair."""
    return f"training diverged or ran past its limit in {lost} of {blocks(n + lost)}, so the saving is not known"


def would_decide(needed: int | None) -> str:
    if needed is None:
        return "no number of blocks up to 10 000 would decide"
    return f"about {blocks(needed)} would decide"


def against_control(control: Control, metric: str) -> str:
    """The matched control: is it the method, or only less training?"""
    change = f"{measured(control.measured)} {what(control.measured.quantity, control.measured.scope)} saved"
    gain = "" if control.quality is None else f", {metric} {quality_change(control.quality)}"
    judged = "better than" if control.better else "not proven better than"
    return f"Against plain training for {budget(control)}: {change}{gain}; {judged} training less."


def budget(control: Control) -> str:
    """What a matched control trained."""
    if control.steps is None:
        return "the kept epochs"
    steps = number(control.steps.mean, 0 if float(control.steps.mean).is_integer() else 1)
    varying = " on average" if control.steps.sd else ""
    return f"the {steps}{NB}of {control.planned_steps}{NB}steps that it paid for{varying}"


def no_control(steps: int) -> str:
    """Why a suite that asks for a matched control has none."""
    return f"No matched control was run: its own tally paid for all {steps:,} steps of plain training."


def past_limit(row: Row) -> str:
    """Which side was ended at the suite's limit; empty where none was."""
    counts = (("the method", row.timed_out), ("plain training", row.baseline_timed_out))
    sides = [f"{who} ran past its limit in {blocks(count)}" for who, count in counts if count]
    return f"{' and '.join(sides)}, so what it costs there is not known" if sides else ""


def verdict_reason(row: Row, margin: float) -> str:
    """Why the verdict is this one, and what would change it."""
    quality, more = row.quality, would_decide(row.blocks_needed)
    match row.verdict:
        case "inconclusive":
            return past_limit(row) or more
        case "no saving" | "no difference":
            return f"the whole interval lies within ±{as_written(margin)}"
        case "no verdict" if row.n < paired.FEWEST_BLOCKS:
            if row.diverged:
                return f"training diverged in {blocks(row.diverged)}"
            if row.timed_out or row.baseline_timed_out:
                return past_limit(row)
            return f"{blocks(row.n)}, and {paired.FEWEST_BLOCKS} are the least"
        case "quality lost" if row.diverged:
            return f"training diverged in {blocks(row.diverged)}"
        case "quality lost" | "quality unproven":
            return _quality(quality, row.verdict, more)
    return ""


def _quality(quality: Quality | None, verdict: str, more: str) -> str:
    if quality is None or quality.limit is None or quality.bound is None:
        return "no quality figure in every block, or no margin in the suite"
    if verdict == "quality lost":
        change, limit = beside(quality.change, quality.limit, quality.fraction)
        return f"{quality.metric} changed by {change}, {limit} is accepted"
    bound, limit = beside(quality.bound, quality.limit, quality.fraction)
    return f"a change of {bound} {quality.metric} cannot be excluded, {limit} is accepted; {more}"


def notes(row: Row, metric: str) -> list[str]:
    """What stands below the table about one method, a sentence each; flags apart."""
    sentences = [f"{row.verdict}: {row.reason.rstrip('.')}." if row.reason else f"{row.verdict}."]
    if row.quality is not None:
        sentences.append(f"{metric.capitalize()} {quality_change(row.quality)}.")
    if row.unjudged:
        sentences.append(UNJUDGED)
    if row.once is not None:
        sentences.append(once(row.once))
    if row.explanation:
        sentences.append(row.explanation)
    if row.unavailable:
        sentences.append(f"Estimated and counted are not available: {row.unavailable}.")
    if row.phases:
        sentences.append(phases(row.phases))
    if row.untimed_reason:
        sentences.append(f"Where its time goes is not known: {row.untimed_reason}.")
    if row.bytes_note:
        sentences.append(row.bytes_note)
    if row.roofline is not None and abs(row.estimated_rel or 0) >= FEWER_APART:
        sentences.append(roofline(row.roofline))
    if row.claim_of == "backward" and row.claim_rel is not None:
        of_all = "" if row.claimed_rel is None else f", {percent(row.claimed_rel)} of the training"
        sentences.append(f"Claimed: {percent(row.claim_rel)} of the backward pass{of_all}.")
    if row.claim_source:
        sentences.append(f"Claimed by: {row.claim_source}.")
    if row.to_target is not None:
        sentences.append(to_target(row.to_target))
    if row.control is not None:
        sentences.append(against_control(row.control, metric))
    if row.control_note:
        sentences.append(row.control_note)
    if row.detectable_rel is not None:
        sentences.append(f"{blocks(row.n)} see savings from {percent(row.detectable_rel)}.")
    return sentences


def counted(row: Row) -> str:
    """The count, and what sampling some of the steps leaves open where that shows: half of a 95 % interval."""
    text, open_ = nominal(row.counted_rel, row), row.counted_error_rel
    return f"{text} ±{NB}{number(100 * open_, 1)}{NB}pp" if row.counted_rel is not None and open_ >= SHOWS else text


def once(cost: Once) -> str:
    """What the measured figure bills beside the window, and what is left of the saving once that is repaid."""
    spent = f"Billed with it, spent once a run: {duration(cost.seconds)}, {percent(cost.share_rel)} of plain training"
    steady = f"without it {measured(cost.steady)} {what(cost.steady.quantity, cost.steady.scope)}"
    if cost.repaid_runs is None:
        return f"{spent}; {steady}, which never repays it."
    epochs = f" or {number(cost.repaid_epochs, 1)} epochs" if cost.repaid_epochs else ""
    return f"{spent}; {steady}, which repays it after {number(cost.repaid_runs, 1)} runs{epochs}."


def baseline(workload: Workload) -> str:
    """Plain training's own figures, and how far it lies from itself."""
    figures = workload.baseline
    parts = [blocks(figures.n)]
    if figures.seconds:
        spread = f" ± {duration(figures.seconds.sd)}" if figures.seconds.sd else ""
        parts.append(f"{duration(figures.seconds.mean)}{spread}".replace(" ", NB))
    for energy in figures.energies:
        if energy.energy_j:
            how = "measured by" if energy.measured else "modelled by"
            of_what = f", {scope}" if (scope := modelled_of(energy)) else ""
            parts.append(f"{si(energy.energy_j.mean, 'J')} {energy.scope}, {how} {sensor(energy.source)}{of_what}")
    if workload.metric and (metric := figures.quality.get(workload.metric)):
        parts.append(f"{workload.metric} {number(metric.mean, 4)}")
    if figures.data_wait_rel is not None:
        parts.append(f"{percent(figures.data_wait_rel.mean)} of the time waiting for data")
    if workload.twin is not None:
        twin = workload.twin
        parts.append(f"against itself {measured(twin)} {what(twin.quantity, twin.scope)}")
    return f"{workload.baseline_name.capitalize()}: {'; '.join(parts)}."


UNJUDGED = "Quality is not judged: the suite says that there is none to lose."


def nominal(value: float | None, row: Row) -> str:
    """An estimate or a count; where none can be had that is said, and the notes say why."""
    return f"not{NB}available" if value is None and row.unavailable else percent(value)
