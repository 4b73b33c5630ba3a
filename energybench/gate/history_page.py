"""A history on a terminal: one row for each method, what moved and when, and whether the gate may be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from energybench.gate.comparable import devices_differ, told
from energybench.gate.history import FEWEST_RUNS, History, Point, Trend
from energybench.report import grid, terminal
from energybench.verdict import wording

BARS = "▁▂▃▄▅▆▇█"
RANKS = {"runs": 4, "of": 3, "scatter": 2, "saving, first to last": 1}
HEAD = ("method", "runs", "saving, first to last", "last [95 %]", "of", "scatter")
MEANS = {
    "rotating": "each comparison accuses other methods than the one before",
    "returning": "what one comparison flags the next ones take back",
    "one-sided": "all flags point one way, and yet the level has not moved that far",
}


def sparkline(points: Sequence[Point | None], least: float) -> str:
    """One bar per run, higher is a larger saving; "·" where there is none. `least`: the span that fills the height."""
    known = [point.saving_rel for point in points if point is not None]
    if not known:
        return "·" * len(points)
    low, high = min(known), max(known)
    span, last = max(high - low, least) or 1.0, len(BARS) - 1
    start = low - (span - (high - low)) * 3 / last  # a flat line lies in the middle
    return "".join("·" if p is None else BARS[round((p.saving_rel - start) / span * last)] for p in points)


def headline(found: History) -> str:
    """Whether the gate may be believed, first."""
    count = len(found.runs)
    if count < FEWEST_RUNS:
        return f"{count} run{'s' * (count != 1)}: a history needs {FEWEST_RUNS}, and a step four."
    moved = sum(bool(trend.steps) for trend in found.trends)
    steps = f" {moved} of {len(found.trends)} methods moved to another level." if moved else ""
    if found.noise_found:
        return f"The gate itself is noise: do not fail a build by it.{steps}"
    flags = sum(flag.lasting is False for flag in found.flags)
    if flags and not moved:
        steps = f" {flags} flag{'s' * (flags != 1)}, and no level that moved and stayed."
    return f"The gate holds.{steps}" if steps else f"The gate holds: no method's level moved in {count} runs."


def reasons(found: History) -> list[str]:
    """What speaks against the gate, and what would mend it."""
    if not found.noise_found:
        return []
    flags = [flag for flag in found.flags if flag.lasting is False]
    result = []
    if flags:
        runs = len({flag.run for flag in flags})
        chance = "" if found.chance is None else f", which chance gives {_chance(found.chance)}"
        result.append(
            f"{runs} of {found.comparisons} comparisons of neighbouring runs flagged something that did not "
            f"last{chance}."
        )
    result += [f"{kind}: {MEANS[kind]}." for kind in found.kinds]
    wide = [trend for trend in found.trends if trend.wide and trend.scatter]
    if wide:
        worst = max(wide, key=lambda trend: trend.scatter or 0.0)
        result.append(
            f"Runs lie further apart than their blocks explain: {len(wide)} of {len(found.trends)} methods, most "
            f"{worst.workload}: {worst.method}, {wording.number(worst.scatter or 0.0, 1)} times as far."
        )
    mend = "What to do: a machine of its own, longer trainings, energybench doctor --calibrate"
    if flags:
        margin = max(flag.margin_rel for flag in flags)
        above = math.ceil(1000 * margin - 1e-9) / 1000  # rounded down it would raise one again
        mend += f"; [accept] margin above {wording.percent(above)} would have raised none of these flags"
    return [*result, f"{mend}."]


def _chance(chance: float) -> str:
    return (
        "less than once in 10,000" if chance < 1e-4 else f"{wording.number(100 * chance, 2)}{wording.NB}% of the time"
    )


def steps(found: History) -> list[str]:
    """Where each level moved, and what else changed there."""
    result = []
    for trend in found.trends:
        for step in trend.steps:
            run = found.runs[step.run]
            change = f"{wording.number(100 * step.change_rel, 1, sign=True)}{wording.NB}%"
            word = "worse" if step.change_rel > 0 else "better"
            others = devices_differ(found.runs[step.run - 1].device, run.device)
            also = f" Not alike there: {told(others)}." if others else ""
            result.append(
                f"{trend.workload}: {trend.method} is {word} since {run.path}: its cost relative to plain "
                f"training changed by {change}.{also}"
            )
    return result


def flagged(found: History) -> list[str]:
    """Flags that no step explains: of the newest run, and the others where the gate may be believed."""
    result = []
    for flag in found.flags:
        change = f"{wording.number(100 * flag.change_rel, 1, sign=True)}{wording.NB}%"
        if flag.lasting is None:
            result.append(
                f"{flag.workload}: {flag.method} differs in the newest run by {change}: wait for another run "
                "to see whether it lasts."
            )
        elif not flag.lasting and not found.noise_found:
            result.append(
                f"{flag.workload}: {flag.method} cost {change} in {found.runs[flag.run].path} against the "
                "run before, and no lasting step explains it."
            )
    return result


def _row(trend: Trend, margin: float) -> list[str]:
    last = next((point for point in reversed(trend.points) if point is not None), None)
    figure = wording.NOTHING
    if last is not None:
        figure = wording.saving(last.saving_rel, last.low_rel, last.high_rel)
    scatter = wording.NOTHING if trend.scatter is None else f"{wording.number(trend.scatter, 1)}×{' wide' * trend.wide}"
    runs = sum(point is not None for point in trend.points)
    line = sparkline(trend.points, 2 * margin)
    return [f"{trend.workload}: {trend.method}", str(runs), line, figure, trend.of, scatter]


def render(found: History, console: Console) -> None:
    """For a terminal: narrow ones get a figure a line."""
    span = ""
    if found.runs:
        span = f" · {found.runs[0].started_at[:10]} to {found.runs[-1].started_at[:10]}"
    runs = f"{len(found.runs)} run{'s' * (len(found.runs) != 1)}"
    grid.say(console, f"{found.suite} · {runs}{span} · margin {wording.as_written(found.margin)}", "dim")
    grid.say(console, headline(found), "bold red" if found.noise_found else "bold")
    for line in reasons(found):
        grid.say(console, f"• {line}", "yellow")
    for line in [*steps(found), *flagged(found)]:
        grid.say(console, f"• {line}")
    if len(found.runs) >= FEWEST_RUNS:
        console.print()
        rows = [_row(trend, found.margin) for trend in found.trends]
        columns = [
            terminal.Column(name, tuple(Text(wording.plain(row[place])) for row in rows), RANKS.get(name, 0))
            for place, name in enumerate(HEAD)
            if place
        ]
        terminal.show(console, [row[0] for row in rows], columns)
        grid.say(
            console, "scatter: how far runs lie apart over how far their blocks explain; 1× is as it should be.", "dim"
        )
    for folder, why in found.left_out:
        grid.say(console, f"– {Path(folder)}: {why}", "dim")
