"""Sentences about a row, a target or a workload: why a verdict is this one, and what would change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from energybench.stats import paired, power
from energybench.stats.replication import FEWEST_DEVICES
from energybench.verdict import wording
from energybench.verdict.devices import plural

if TYPE_CHECKING:
    from energybench.verdict.devices import Unit
    from energybench.verdict.figures import (
        Control,
        Once,
        OnDevice,
        Phase,
        Roofline,
        Row,
        SideToTarget,
        ToTarget,
        Workload,
    )
    from energybench.verdict.pairing import EnergyFigure

Command = Callable[[int], str]  # so many blocks → what to type for them; empty where nothing is


def roofline(roof: Roofline) -> str:
    """How much of plain training waits for memory, and what that leaves of the formulas' saving."""
    waits = f"{wording.percent(roof.memory_bound_rel, 0)} of plain training's kernel time waits for memory"
    most = f"the formulas save at most {wording.percent(roof.saved_rel)} of it all"
    return f"At this machine's {wording.number(roof.balance_flop_b, 0)} FLOP per byte, {waits}, and {most}."


PHASE = {"method_overhead": "its own work", "own": "its own work", "data": "waiting for data", "loop": "the loop"}


def phases(profiled: Sequence[Phase]) -> str:
    """Which phases of a step take longer or less long, in shares of plain training's time."""
    if not profiled:
        return ""
    changed = [
        f"{PHASE.get(phase.name, phase.name)} "
        f"{wording.percent(phase.baseline_rel)} → {wording.percent(phase.method_rel)}"
        for phase in profiled
        if abs(phase.method_rel - phase.baseline_rel) >= wording.FEWER_APART
    ]
    return f"In profiled steps, of plain training's time: {', '.join(changed) or 'no phase changes by 1 %'}."


def side_to_target(side: SideToTarget, n: int) -> str:
    """What one side took to the target, and how often it arrived."""
    if not side.reached:
        return f"in none of {wording.blocks(n)}"
    if side.seconds is None:  # of several devices, whose seconds are never averaged
        steps = "" if side.steps is None else f"after {wording.number(side.steps.mean, 0)}{wording.NB}steps "
        return f"{steps}in {side.reached} of {wording.blocks(n)}"
    steps = "" if side.steps is None else f"{wording.number(side.steps.mean, 0)}{wording.NB}steps, "
    energy = "" if side.energy_j is None else f" and {wording.si(side.energy_j.mean, 'J')}"
    return f"after {steps}{wording.duration(side.seconds.mean)}{energy} in {side.reached} of {wording.blocks(n)}"


def to_target(target: ToTarget) -> str:
    """What each side took to reach the workload's target quality, and what is proven of it."""
    method, baseline = (side_to_target(side, target.n) for side in (target.method, target.baseline))
    text = f"Reaches {goal(target)} {method}, plain training {baseline}"
    if target.cost is not None:
        text += f": {wording.measured(target.cost)} {wording.what(target.cost.quantity, target.cost.scope)} saved"
    reason = f" ({target.reason})" if target.reason else ""
    return f"{text}; to that target {target.verdict}{reason}."


def goal(target: ToTarget) -> str:
    """ "accuracy 0.90", or "mse at most 0.02" where it is reached from above."""
    if target.at_most is not None:
        return f"{target.metric} at most {_level(target.at_most)}"
    return f"{target.metric} {_level(target.at_least or 0.0)}"


def _level(value: float) -> str:
    return wording.number(value, wording.decimals_of(value, 2))


def missed(method: int, baseline: int, n: int) -> str:
    """Which side did not arrive: in how many of n blocks each did."""
    if method == baseline == 0:
        return "neither side reached it in the epochs given"
    sides = [
        f"{who} missed it in {n - reached} of {wording.blocks(n)}"
        for who, reached in (("the method", method), ("plain training", baseline))
        if reached < n
    ]
    return f"{' and '.join(sides)}, so the saving is not known"


def ended(lost: int, n: int) -> str:
    """Training that ended before it could arrive, in blocks beside the n that have a pair."""
    return (
        f"training diverged or ran past its limit in {lost} of {wording.blocks(n + lost)}, so the saving is not known"
    )


def too_few(n: int, unit: Unit) -> str:
    """ "2 blocks, and 3 are the least"."""
    least = paired.FEWEST_BLOCKS if unit == "block" else FEWEST_DEVICES
    return f"{wording.units(n, unit)}, and {least} are the least"


def would_decide(
    needed: int | None, command: Command | None = None, unit: Unit = "block", each: float | None = None
) -> str:
    """How many blocks, and what to type to get there; where devices are counted, how many of them, with as many blocks
    on each as now: more blocks on the same devices decide little. each: of a device, the mean."""
    if needed is None and unit != "block":
        return f"more than {power.MOST_BLOCKS} {plural(unit)} would be needed"
    if needed is None:
        return f"more than {power.MOST_BLOCKS} blocks would be needed: not on this machine"
    if unit != "block":
        on_each = "" if each is None else f", a new run with {wording.blocks(max(1, round(each)))} on each,"
        return f"about {wording.units(needed, unit)}{on_each} would decide"
    typed = f" ({words})" if command and (words := command(needed)) else ""
    return f"about {wording.blocks(needed)} would decide{typed}"


def against_control(control: Control, metric: str) -> str:
    """The matched control: is it the method, or only less training?"""
    change = (
        f"{wording.measured(control.measured)} {wording.what(control.measured.quantity, control.measured.scope)} saved"
    )
    gain = "" if control.quality is None else f", {metric} {wording.quality_change(control.quality)}"
    judged = "better than" if control.better else "not proven better than"
    return f"Against plain training for {budget(control)}: {change}{gain}; {judged} training less."


def budget(control: Control) -> str:
    """What a matched control trained."""
    if control.steps is None:
        return "the kept epochs"
    steps = wording.number(control.steps.mean, 0 if float(control.steps.mean).is_integer() else 1)
    varying = " on average" if control.steps.sd else ""
    return f"the {steps}{wording.NB}of {control.planned_steps}{wording.NB}steps that it paid for{varying}"


def no_control(steps: int) -> str:
    """Why a suite that asks for a matched control has none."""
    return f"No matched control was run: its own tally paid for all {steps:,} steps of plain training."


def past_limit(row: Row) -> str:
    """Which side was ended at the suite's limit; empty where none was."""
    counts = (("the method", row.timed_out), ("plain training", row.baseline_timed_out))
    sides = [f"{who} ran past its limit in {wording.blocks(count)}" for who, count in counts if count]
    return f"{' and '.join(sides)}, so what it costs there is not known" if sides else ""


def verdict_reason(row: Row, margin: float, command: Command | None = None) -> str:
    """Why the verdict is this one, and what would change it. `command`: what to type for more blocks."""
    match row.verdict:
        case "inconclusive":
            return past_limit(row) or would_decide(row.blocks_needed, command, row.unit, row.blocks_on_each)
        case "no saving" | "no difference":
            return f"the whole interval lies within the saving margin, ±{wording.as_written(margin)}"
        case "no verdict" if row.units < paired.FEWEST_BLOCKS:
            if row.timed_out or row.baseline_timed_out:
                return past_limit(row)
            return too_few(row.units, row.unit)
        case "quality lost" | "quality unproven":
            return row.quality_reason
    return ""


def quality_reason(row: Row, command: Command | None = None) -> str:
    """Why quality is held, lost or open, and what would change it; empty where it is not judged."""
    quality = row.quality
    if row.unjudged or row.quality_verdict == "no verdict":
        return ""
    if row.diverged:
        return f"training diverged in {wording.blocks(row.diverged)}"
    if quality is None:
        return "no quality figure in every block, or no margin in the suite"
    told = wording.quality_interval(quality)
    if row.quality_verdict != "open":
        return told
    if quality.limit is None:
        return f"{told}; no quality margin in the suite"
    if quality.doubt:
        return f"{told}; {quality.doubt}"
    if row.units < paired.FEWEST_BLOCKS:
        return f"{told}; {too_few(row.units, row.unit)}"
    if row.timed_out:
        return f"{told}; {past_limit(row)}"
    return f"{told}; {would_decide(row.quality_blocks_needed, command, row.unit, row.blocks_on_each)}"


def _quality(row: Row) -> Iterator[str]:
    """The verdict on quality, where the reason of the row's verdict does not say it, and the metrics beside it."""
    if row.unjudged:
        yield UNJUDGED
    elif row.quality_reason and row.quality_reason != row.reason:
        yield f"Quality {row.quality_verdict}: {row.quality_reason}."
    elif row.quality is not None and not row.quality_reason:
        yield f"{row.quality.metric.capitalize()} {wording.quality_change(row.quality)}."
    if row.also:
        yield f"Beside it, deciding nothing: {'; '.join(map(wording.quality_interval, row.also))}."


def notes(row: Row, metric: str) -> list[str]:
    """What stands below the table about one method, a sentence each; flags apart."""
    sentences = [f"{row.verdict}: {row.reason.rstrip('.')}." if row.reason else f"{row.verdict}."]
    if row.cost_verdict not in (row.verdict, "no verdict"):
        of = wording.what(row.measured.quantity, row.measured.scope) if row.measured else "cost"
        sentences.append(f"Of {of} alone: {row.cost_verdict}.")
    sentences += _quality(row)
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
    if row.roofline is not None and abs(row.estimated_rel or 0) >= wording.FEWER_APART:
        sentences.append(roofline(row.roofline))
    if row.claim_of == "backward" and row.claim_rel is not None:
        of_all = "" if row.claimed_rel is None else f", {wording.percent(row.claimed_rel)} of the training"
        sentences.append(f"Claimed: {wording.percent(row.claim_rel)} of the backward pass{of_all}.")
    if row.claim_source:
        sentences.append(f"Claimed by: {row.claim_source}.")
    if row.to_target is not None:
        sentences.append(to_target(row.to_target))
    if row.control is not None:
        sentences.append(against_control(row.control, metric))
    if row.control_note:
        sentences.append(row.control_note)
    if row.detectable_rel is not None:
        none = wording.is_all(row.detectable_rel)
        seen = "no saving at all" if none else f"savings from {wording.percent(row.detectable_rel)}"
        sentences.append(f"{wording.repeated(row)} see {seen}.")
    return sentences


def once(cost: Once) -> str:
    """What the measured figure bills beside the window, and what is left of the saving once that is repaid."""
    share = wording.percent(cost.share_rel)
    seconds = "" if cost.seconds is None else f"{wording.duration(cost.seconds)}, "
    spent = f"Billed with it, spent once a run: {seconds}{share} of plain training"
    steady = f"without it {wording.measured(cost.steady)} {wording.what(cost.steady.quantity, cost.steady.scope)}"
    if cost.repaid_runs is None:
        return f"{spent}; {steady}, which never repays it."
    epochs = f" or {wording.number(cost.repaid_epochs, 1)} epochs" if cost.repaid_epochs else ""
    return f"{spent}; {steady}, which repays it after {wording.number(cost.repaid_runs, 1)} runs{epochs}."


def baseline(workload: Workload) -> str:
    """Plain training's own figures, how far it lies from itself, and what there is to say of its data."""
    figures = workload.baseline
    parts = [wording.blocks(figures.n)]
    if figures.seconds:
        spread = f" ± {wording.duration(figures.seconds.sd)}" if figures.seconds.sd else ""
        parts.append(f"{wording.duration(figures.seconds.mean)}{spread}".replace(" ", wording.NB))
    parts += _energies(figures.energies)
    parts += [_on_device(each) for each in figures.on_devices]
    if workload.metric and (metric := figures.quality.get(workload.metric)):
        parts.append(f"{workload.metric} {wording.number(metric.mean, 4)}")
    if figures.data_wait_rel is not None:
        parts.append(f"{wording.percent(figures.data_wait_rel.mean)} of the time waiting for data")
    if workload.twin is not None:
        twin = workload.twin
        parts.append(f"against itself {wording.measured(twin)} {wording.what(twin.quantity, twin.scope)}")
    own = f"{workload.baseline_name.capitalize()}: {'; '.join(parts)}."
    return " ".join([own, *(f"Its data: {note}." for note in workload.data_notes)])


def _energies(energies: Sequence[EnergyFigure]) -> Iterator[str]:
    for energy in energies:
        if energy.energy_j:
            how = "measured by" if energy.measured else "modelled by"
            of_what = f", {scope}" if (scope := wording.modelled_of(energy)) else ""
            yield (
                f"{wording.si(energy.energy_j.mean, 'J')} {energy.scope}, "
                f"{how} {wording.sensor(energy.source)}{of_what}"
            )


def _on_device(figures: OnDevice) -> str:
    """Seconds and joules on one of several devices, where none are averaged."""
    seconds = [wording.duration(figures.seconds.mean)] if figures.seconds else []
    return f"on {figures.device} {', '.join([*seconds, *_energies(figures.energies)]) or wording.NOTHING}"


UNJUDGED = "Quality is not judged: the suite says that there is none to lose."
