"""The carbon report on a terminal and as FOLDER/carbon.md: `energybench report FOLDER --carbon`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energybench.common.outputs import Kind
from energybench.meter.grid import J_PER_KWH
from energybench.meter.modelled import MODEL, whole_machine
from energybench.meter.zones import OWN
from energybench.report.pages import write_beside
from energybench.report.rows import SEE_GLOSSARY
from energybench.verdict import wording
from energybench.verdict.carbon import RUNS, Asked, CarbonReport, Gain, Span, Use, Zone, carbon_report, to_json
from energybench.verdict.pairing import EnergyFigure

if TYPE_CHECKING:
    from rich.console import Console

    from energybench.verdict.run_parts import Part

WHAT_TO_DO = "energybench doctor says what this machine could measure; a run that measures has CO₂e on this page."
KIND = Kind("a page on carbon", lambda text: text.partition(b"\n")[0].endswith(b": energy and carbon"))
Table = tuple[list[str], list[list[str]]]  # head, rows; the first column is labels


def report_carbon(
    parts: Sequence[Part], asked: Asked, console: Console | None, folder: Path | None = None
) -> dict[str, Any]:
    """Print the page of each part, write that of the only one, and return the facts. Raises UsageError E502.

    folder: where the page is written; None for none
    """
    reports = [carbon_report(*part.records, asked, part.pooling) for part in parts]
    if folder is not None:
        write_beside(folder, "carbon.md", markdown(reports[0]), KIND)
    for number, (part, report) in enumerate(zip(parts, reports, strict=True), 1):
        if console is None:
            break
        if len(parts) > 1:
            _say_which(console, number, part)
        render(report, console)
    if len(parts) == 1:
        return to_json(reports[0])
    facts = [
        {"folders": list(p.folders), "device": p.device, "apart": p.apart or None, "report": to_json(r)}
        for p, r in zip(parts, reports, strict=True)
    ]
    return {"schema": 1, "runs": facts}


def _say_which(console: Console, number: int, part: Part) -> None:
    from energybench.report.grid import say

    if number > 1:
        console.print()
    apart = f" Apart: {part.apart}." if part.apart else ""
    say(console, f"{number}: {part.described}.{apart}", "bold")


def span(figure: Span | None, unit: str, zone_factor: float = 1.0) -> str:
    """ "150 J [140, 161]": three figures, the bounds with the same prefix and decimals; a missing one is a dash."""
    if figure is None:
        return wording.NOTHING
    values = [value * zone_factor for value in (figure.mean, figure.low, figure.high) if value is not None]
    size = max(abs(value) for value in values)
    if not size or not all(map(math.isfinite, values)):
        return wording.si(values[0], unit)
    power = max(-3, min(5, math.floor(math.log10(float(f"{size:.3g}")) / 3 + 1e-12)))
    scaled = [value / 1000**power for value in values]
    decimals = max(0, 2 - math.floor(math.log10(max(map(abs, scaled))) + 1e-12))
    mean, *bounds = (wording.number(value, decimals) for value in scaled)
    inside = f"{wording.NB}[{bounds[0]},{wording.NB}{bounds[1]}]" if len(bounds) == 2 else ""
    return f"{mean}{wording.NB}{wording.PREFIXES[power]}{unit}{inside}"


def _titles(report: CarbonReport) -> list[str]:
    return [f"CO₂e {zone.zone}" for zone in report.zones]


def _grams(report: CarbonReport, figure: Span | None) -> list[str]:
    return [span(figure and zone.kg(figure), "g", 1000.0) for zone in report.zones]


def _sources(energies: Sequence[EnergyFigure]) -> list[list[str]]:
    """What has a figure; the first screen says what was not seen, and why."""
    return [
        [
            f"{energy.scope}, {wording.sensor(energy.source)}",
            "measured" if energy.measured else "modelled",
            wording.si(energy.energy_j.mean, "J"),
        ]
        for energy in energies
        if energy.energy_j
    ]


def uses(report: CarbonReport, workload: str) -> Table:
    """A table: what one training run takes."""
    rows = [
        [use.method, span(use.measured_j, "J") if use.measured_j else use.reason, *_grams(report, use.measured_j)]
        for use in report.uses
        if use.workload == workload
    ]
    return ["one training run", "measured energy", *_titles(report)], rows


def sources(report: CarbonReport, workload: str) -> Table:
    """The same by source, each by itself: two may watch one device."""
    of_workload = [use for use in report.uses if use.workload == workload]
    rows = [[f"{use.method}: {name}", *rest] for use in of_workload for name, *rest in _sources(use.sources)]
    return ["by source", "kind", "energy"], rows


def gains(report: CarbonReport, gain: Gain) -> Table:
    """What a proven saving means, row by row."""
    figures = [("a training run", gain.per_run_j), (f"{RUNS:,} runs", gain.runs_j)]
    if gain.tuning_j:
        trials = f"{gain.tuned_trials} tuning trial{'s' * (gain.tuned_trials != 1)}"
        figures += [(f"{trials} took", gain.tuning_j), (f"{RUNS:,} runs less that", gain.net_j)]
    rows = [[name, span(figure, "J"), *_grams(report, figure)] for name, figure in figures]
    return [f"{gain.method}: saved", "energy", *_titles(report)], rows


def notes(gain: Gain) -> str:
    """What stands below a gain's table, or in its place."""
    if gain.per_run_j is None:
        return f"{gain.method}: {gain.reason}."
    costs = "it costs more, so what it saves is negative; " if gain.per_run_j.mean < 0 else ""
    if gain.tuned_trials is None:
        return f"{gain.method}: {costs}tuning is not in it: tuned = {{ trials = N }} in the suite adds it."
    if gain.repaid is None:
        return f"{gain.method}: {costs}no number of runs repays its tuning."
    text = f"{gain.method}: {_runs(gain.repaid)} repay the tuning"
    if gain.repaid_bounds is None:
        return f"{text}."
    best, worst = gain.repaid_bounds
    least = f"at best {_runs(best)}"
    return f"{text}: {least}, at worst {_runs(worst)}." if worst is not None else f"{text}: {least}, at worst never."


def _runs(count: int) -> str:
    return f"{count:,}{wording.NB}run{'s' * (count != 1)}"


def zone_lines(report: CarbonReport) -> list[str]:
    """Where each intensity comes from."""
    return [_zone_line(zone) for zone in report.zones] or [report.no_zone]


def _zone_line(zone: Zone) -> str:
    """The zone, its figure, what that is the mean of, its year and source, and the PUE."""
    grams = zone.intensity_kg_j * J_PER_KWH * 1000
    amount = f"{wording.number(grams, 1 if grams >= 1 else 4)} g CO₂e/kWh"
    year, by = zone.year or "an unnamed year", f"by {zone.source or 'an unnamed source'}"
    if zone.zone == OWN:
        text = f"{amount}, {zone.basis}, {by}"
    elif zone.basis:
        text = f"{amount}, {zone.basis}, {year}, {by}"
    else:  # a record of before there was a basis
        text = f"{zone.country}, {amount}, the mean of {year}, {by}"
    pue = f"PUE {zone.pue:g}{f' ({zone.pue_basis})' if zone.pue_basis else ''}"
    return f"{zone.zone}: {text}; {pue}, in every CO₂e."


def whole(report: CarbonReport) -> str:
    if report.whole_j is None:
        return "This benchmark's own energy was not measured."
    mass = ", ".join(f"{span(zone.kg(Span(report.whole_j)), 'g', 1000.0)} CO₂e in {zone.zone}" for zone in report.zones)
    took = f"This benchmark itself took {wording.si(report.whole_j, 'J')} in its metered windows"
    return f"{took}: {mass}." if mass else f"{took}."


def _workloads(report: CarbonReport) -> list[str]:
    return list(dict.fromkeys(use.workload for use in report.uses))


def _modelled_figures(use: Use) -> list[EnergyFigure]:
    return [figure for figure in use.sources if figure.energy_j and not figure.measured]


def _mean_load(figures: Iterable[EnergyFigure]) -> list[float]:
    """[the mean of the loads that they were modelled at], or nothing where none has one."""
    loads = [figure.load_rel for figure in figures if figure.load_rel is not None]
    return [math.fsum(loads) / len(loads)] if loads else []


def modelled(chosen: Sequence[Use]) -> str:
    """What the modelled figures in a table are; empty where it has none."""
    figures = [figure for use in chosen for figure in _modelled_figures(use)]
    if not figures:
        return ""
    of_what = f", {whole_machine(_mean_load(figures), mean=True)}" if _by_codecarbon(figures) else ""
    return (
        f"Modelled energy is time in another unit{of_what}: it is multiplied by nothing, neither by a grid nor by runs."
    )


def _by_codecarbon(figures: Iterable[EnergyFigure]) -> bool:
    return all(figure.source.startswith(MODEL) for figure in figures)


# ── where nothing was measured ────────────────────────────────────────────────────────────────────────────


def unmeasured(report: CarbonReport) -> list[str]:
    """The page in three sentences: why, what was modelled, what to do. Empty where a use has a measured figure."""
    if any(use.measured_j for use in report.uses):
        return []
    lines = [_why_unmeasured(report), _all_modelled(report), WHAT_TO_DO]
    return [line for line in lines if line]


def _why_unmeasured(report: CarbonReport) -> str:
    if report.energy_note == wording.ENERGY_OFF:
        return 'Nothing was measured, since energy was not asked for: energy = "off" in the suite.'
    reasons = dict.fromkeys(use.reason for use in report.uses if use.n)
    if not reasons:
        return "No trial is usable, so there is nothing to add up."
    if "not measured" not in reasons:
        return f"Nothing can be added up: {'; '.join(reasons)}."
    unseen = dict.fromkeys(
        f"{figure.scope} ({figure.reason.partition(': ')[0]})"
        for use in report.uses
        for figure in use.sources
        if figure.energy_j is None and figure.reason
    )
    return f"Nothing was measured: {', '.join(unseen) or 'no sensor could be read'}."


def _all_modelled(report: CarbonReport) -> str:
    """Every use's modelled energy, its parts added: codecarbon's are of different parts of the machine."""
    figures = [figure for use in report.uses for figure in _modelled_figures(use)]
    if not figures:
        return ""
    said = []
    for workload in _workloads(report):
        joules = [
            f"{use.method} {wording.si(math.fsum(each.energy_j.mean for each in of_use if each.energy_j), 'J')}"
            for use in report.uses
            if use.workload == workload and (of_use := _modelled_figures(use))
        ]
        said += [f"{workload}: {', '.join(joules)}"] if joules else []
    by = ", ".join(dict.fromkeys(wording.sensor(figure.source).partition(" ")[0] for figure in figures))
    of_what = f", {_of_machine(report)}" if _by_codecarbon(figures) else ""
    return f"Modelled by {by}{of_what}, time in another unit and multiplied by nothing: {'; '.join(said)}."


def _of_machine(report: CarbonReport) -> str:
    """ "of the whole machine at a mean load of 43 %", or of 40 to 45 % where the uses' loads differ."""
    loads = [load for use in report.uses for load in _mean_load(_modelled_figures(use))]
    low, high = (wording.percent(bound, 0) for bound in (min(loads, default=0.0), max(loads, default=0.0)))
    if low == high:
        return whole_machine(loads[:1], mean=True)
    return f"of the whole machine at mean loads from {low} to {high}"


def _rest(report: CarbonReport) -> list[str]:
    """What was measured nonetheless, of a benchmark whose uses have no figure: its own energy."""
    return [] if report.whole_j is None else [*zone_lines(report), whole(report)]


# ── the pages ─────────────────────────────────────────────────────────────────────────────────────────────


def render(report: CarbonReport, console: Console) -> None:
    """The whole page on a terminal."""
    from energybench.report.grid import grid, say

    say(console, " · ".join([f"{report.suite} · run {report.run}", "carbon", *report.stamp]), "dim")
    say(console, report.headline, "bold")
    if short := unmeasured(report):
        for line in (*short, *_rest(report)):
            say(console, line)
        return
    for line in (report.energy_note, report.device_note, report.look_note, *zone_lines(report)):
        if line:
            say(console, line, "yellow")
    for name in _workloads(report):
        console.print()
        say(console, name, "bold underline")
        grid(console, *uses(report, name))
        for gain in (gain for gain in report.gains if gain.workload == name):
            console.print()
            if gain.per_run_j is not None:
                grid(console, *gains(report, gain))
            say(console, notes(gain))
        console.print()
        grid(console, *sources(report, name))
        if note := modelled([use for use in report.uses if use.workload == name]):
            say(console, note, "yellow")
    console.print()
    say(console, whole(report))
    say(console, "Not in any figure here:")
    for line in report.not_in_it:
        say(console, f"– {line}", indent="  ")


def markdown(report: CarbonReport) -> str:
    """The page as FOLDER/carbon.md, ending in one newline."""
    from energybench.report.markdown_syntax import escape, table

    def pipe(made: Table) -> str:
        head, rows = ([escape(c) for c in made[0]], [[escape(c) for c in row] for row in made[1]])
        return table(head, rows, right="123456789")

    stamp = f" ({escape(', '.join(report.stamp))})" if report.stamp else ""
    text = [f"# {escape(report.suite)}{stamp}: energy and carbon", f"**{escape(report.headline)}**"]
    if short := unmeasured(report):
        text += [escape(line) for line in (*short, *_rest(report))]
        return wording.plain("\n\n".join([*text, SEE_GLOSSARY])) + "\n"
    text += [escape(line) for line in (report.energy_note, report.device_note, report.look_note) if line]
    text.append("\n".join(f"- {escape(line)}" for line in zone_lines(report)))
    for name in _workloads(report):
        text += [f"## {escape(name)}", pipe(uses(report, name))]
        for gain in (gain for gain in report.gains if gain.workload == name):
            if gain.per_run_j is not None:
                text.append(pipe(gains(report, gain)))
            text.append(escape(notes(gain)))
        text.append(pipe(sources(report, name)))
        if note := modelled([use for use in report.uses if use.workload == name]):
            text.append(escape(note))
    text += ["## What is not in it", "\n".join(f"- {escape(line)}" for line in report.not_in_it), escape(whole(report))]
    text += [escape(HOW), SEE_GLOSSARY]
    return wording.plain("\n\n".join(text)) + "\n"


HOW = (
    "Means of one training window over the blocks, with 95 % intervals (Student's t) that hold the sensors' error "
    "budgets too; a figure stands alone where a sensor does not say how far off it may be. "
    f"{RUNS:,} runs: {RUNS:,} times the mean, with its uncertainty and the scatter of single runs. Only a verdict is "
    "multiplied."
)
