"""Pictures of trials: blocks over time, training curves over epochs, seconds and joules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energybench.meter import combine, trace
from energybench.records.curve import key_of
from energybench.records.record import Trial
from energybench.report import axes as axis_kinds
from energybench.report.canvas import WIDTH_IN, Drawn, legend, listed, sheet, short, svg
from energybench.report.palette import INK, MARKERS, PAPER, PLAIN, SERIES
from energybench.report.power_traces import power
from energybench.verdict import pairing, wording
from energybench.verdict.devices import devices_of
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELLS = 14  # in one picture
MARKED, SPARSE = 40, 12  # points of a curve with a mark each; a longer one has so many marks
RIGHT_IN = 2.3
GAP_IN = 0.5  # between two panels: the upper one's ticks, the lower one's title
OVER = (("epoch", "epochs"), ("wall_s", "seconds"), ("joules", "joules (integrated power)"))
LOSS = "loss"  # of an epoch, in a trial's curve


def over(trials: Sequence[Trial]) -> tuple[tuple[str, str], ...]:
    """What their curves may be drawn over; seconds and joules of several devices are never averaged."""
    return OVER if len(set(devices_of(trials).values())) < 2 else OVER[:1]


@dataclass(frozen=True, slots=True)
class CellStyle:
    """How a cell is drawn in every picture of its workload."""

    label: str
    color: str
    marker: str
    face: str
    line: Any
    width: float


def cells(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Plain training first, its twin, the methods, the controls; each cell's trials in order of block."""
    rank = {"baseline": 0, "twin": 1, "method": 2, "control": 3}
    by_label: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda t: (rank[t.role], t.method, t.block, t.invocation)):
        by_label.setdefault(trial.method, []).append(trial)
    return by_label


def styles(by_label: dict[str, list[Trial]]) -> dict[str, CellStyle]:
    """Colour, mark and line of each cell: plain training's are fixed, the others' go round."""
    result, number = {}, 0
    for label, trials in by_label.items():
        role = trials[0].role
        if role == "baseline":
            name = "the plain command" if "command" in trials[0].settings else "plain training"
            result[label] = CellStyle(name, INK, "o", INK, "-", 1.8)
        elif role == "twin":
            result[label] = CellStyle("its twin", PLAIN, "o", PAPER, (0, (4, 2)), 1.2)
        else:
            color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
            hollow = role == "control"
            result[label] = CellStyle(
                label, color, marker, PAPER if hollow else color, (0, (2, 1.5)) if hollow else "-", 1.3
            )
            number += 1
    return result


def _first(by_label: dict[str, list[Trial]]) -> tuple[dict[str, list[Trial]], str]:
    """As many cells as one picture holds, and the sentence on those that it does not."""
    if len(by_label) <= CELLS:
        return by_label, ""
    return dict(list(by_label.items())[:CELLS]), f" The first {CELLS} of {len(by_label)} cells."


def _moments(trials: Sequence[Trial]) -> tuple[dict[str, float], str]:
    """Where each trial stands in time: minutes since the first began, or its turn where no times were kept, or the
    clocks of several hosts kept them."""
    hosts = {t.placement.host for t in trials if t.placement}
    try:
        began = {} if len(hosts) > 1 else {t.trial: datetime.fromisoformat(t.started_at).timestamp() for t in trials}
    except (ValueError, OverflowError, OSError):
        began = {}
    if len(set(began.values())) > 1:
        first = min(began.values())
        return {name: (at - first) / 60 for name, at in began.items()}, "minutes since the first trial began"
    turns = sorted(trials, key=lambda t: (t.block, t.invocation, t.position, t.trial))
    return {t.trial: float(turn) for turn, t in enumerate(turns, 1)}, "turn"


def _joules(trial: Trial) -> float:
    return combine.metered(trial.train).joules


Panel = tuple[str, Callable[[Trial], float]]  # its title, and the figure of a trial


def blocks(workload: str, trials: Sequence[Trial], examination: Examination, name: str) -> Drawn | str:
    """Each trial's seconds, and joules where measured, when it ran: drift, outliers, what was set aside."""
    usable = examination.usable(trials)
    if not usable:
        return "no trial was usable"
    moments, when = _moments(trials)
    shown, cut = _first(cells(trials))
    style_of = styles(shown)
    panels: list[Panel] = [("seconds a trial", pairing.seconds)]
    if all(_joules(trial) > 0 for trial in usable):
        panels.append(("measured joules a trial", _joules))
    ran = {label: examination.usable(of_cell) for label, of_cell in shown.items()}
    set_aside = {
        label: [moments[trial.trial] for trial in of_cell if examination.reason_unusable(trial) is not None]
        for label, of_cell in shown.items()
    }
    alt = _blocks_alt(workload, ran, style_of, len(trials) - len(usable)) + cut
    if not any(trial.role == "baseline" for trial in usable):
        alt += " Plain training has no usable trial."
    each_in = 1.75 if len(panels) == 2 else 2.1
    height = max(0.6 + len(panels) * (each_in + GAP_IN), 0.8 + 0.17 * len(shown))
    with sheet(height) as page:
        for row, (title, value) in enumerate(panels):
            bottom = 0.5 + (len(panels) - 1 - row) * (each_in + GAP_IN)
            axes = page.axes(0.65, bottom, WIDTH_IN - 0.65 - RIGHT_IN, each_in)
            axes.grid(axis="y")
            entries = []
            for label, style in style_of.items():
                points = sorted((moments[t.trial], value(t)) for t in ran[label])
                line = _draw_cell(axes, style, points, set_aside[label])
                entries.append((line, style.label))
            notes = ["× set aside"] if len(usable) < len(trials) else []
            notes += _scaled(axes, [value(trial) for of_cell in ran.values() for trial in of_cell])
            axes.set_title(f"{title} ({'; '.join(notes)})" if notes else title)
            if row == 0:
                legend(page, axes, entries, RIGHT_IN)
        axes.set_xlabel(when, loc="left")
        drawing = svg(page, name, alt)
    return Drawn(drawing, "Blocks over time", alt)


def _scaled(axes: Axes, values: Sequence[float]) -> list[str]:
    """From 0 up, whatever lies far from all the rest in a strip of its own; what the title says of it."""
    apart = axis_kinds.outliers(values, [0.0])
    if apart is None:
        axes.set_ylim(bottom=0)
        return []
    axis_kinds.strip(axes, "y", apart, (0.0, 1.02 * max(values)))
    return [axis_kinds.NOTE]


def _blocks_alt(workload: str, ran: dict[str, list[Trial]], style_of: dict[str, CellStyle], set_aside: int) -> str:
    ranges = [
        f"{style_of[label].label} {_range([pairing.seconds(trial) for trial in trials])}"
        for label, trials in ran.items()
        if trials
    ]
    aside = f"{set_aside} set aside." if set_aside else "None was set aside."
    return f"Seconds of each trial of {workload} over time. {listed(ranges)}. {aside}"


def _draw_cell(axes: Axes, style: CellStyle, points: Sequence[tuple[float, float]], set_aside: Sequence[float]) -> Any:
    """A cell's trials as a line, and at the bottom when those ran that were set aside; gives the line."""
    (line,) = axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=style.color,
        marker=style.marker,
        markerfacecolor=style.face,
        markersize=4,
        linestyle=style.line,
        linewidth=style.width,
        zorder=4 if style.color == INK else 3,
    )
    if set_aside:
        axes.plot(
            set_aside,
            [0.0] * len(set_aside),
            marker="x",
            color=style.color,
            linestyle="none",
            markersize=6,
            clip_on=False,
            zorder=5,
        )
    return line


def _range(values: Sequence[float]) -> str:
    low, high = (wording.plain(wording.duration(value)) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


# ── curves ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Curve:
    """A cell's mean figure at the end of each epoch, over its blocks; x in epochs, seconds or joules."""

    label: str
    role: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curves(usable: Sequence[Trial], over: str, folder: Path | None = None, figure: str = LOSS) -> list[Curve]:
    """One per cell, from trials that comparisons may use.

    over:   "epoch", "wall_s" or "joules", which needs the run's folder for the power traces
    figure: of a curve's points: the training loss, or the key of a metric

    A block whose points lack `over` enters no mean; an epoch without a loss is no point. Over seconds and joules it is
    the mean of the epochs that all blocks have, where there are two: one block takes longer than another, and a mean
    now of these and now of those would jump. A metric is drawn of a cell whose every epoch was evaluated, in every
    block: where a target was reached the looking ends, and such a curve would end with it.
    """
    result = []
    for label, trials in cells(usable).items():
        if figure != LOSS and any(point.get(figure) is None for trial in trials for point in trial.curve):
            continue
        by_epoch: dict[float, list[tuple[float, float]]] = {}
        for trial in trials:
            for epoch, x, value in _along(trial, over, folder, figure):
                by_epoch.setdefault(epoch, []).append((x, value))
        rows = sorted(by_epoch.values(), key=lambda row: math.fsum(x for x, _ in row) / len(row))
        whole = [row for row in rows if len(row) == max(map(len, rows))]
        if over != "epoch" and len(whole) > 1:
            rows = whole
        if rows:
            result.append(
                Curve(
                    label,
                    trials[0].role,
                    tuple(math.fsum(x for x, _ in row) / len(row) for row in rows),
                    tuple(math.fsum(y for _, y in row) / len(row) for row in rows),
                    tuple(min(y for _, y in row) for row in rows),
                    tuple(max(y for _, y in row) for row in rows),
                )
            )
    return result


def _along(trial: Trial, over: str, folder: Path | None, figure: str) -> list[tuple[float, float, float]]:
    """(epoch, x, figure) of one trial, where all three are known and finite."""
    joules_at = joules_by(trial, folder) if over == "joules" else None
    if over == "joules" and joules_at is None:
        return []
    points = []
    for point in trial.curve:
        epoch, value, seconds = point.get("epoch"), point.get(figure), point.get("wall_s")
        x = epoch if over == "epoch" else seconds
        if x is not None and joules_at is not None:
            x = joules_at(x)
        if epoch is not None and x is not None and value is not None and all(map(math.isfinite, (epoch, x, value))):
            points.append((epoch, x, value))
    return points


def joules_by(trial: Trial, folder: Path | None) -> Callable[[float], float] | None:
    """Joules from the window's start to a moment in it, by integrated power over all devices.

    None without a trace, or where the window was paused: seconds in it are then no longer seconds of the trace.
    """
    if folder is None or trial.train is None or trial.train.pieces != 1:
        return None
    powers = power(trial, folder)
    if isinstance(powers, str):
        return None
    return lambda end_s: math.fsum(trace.integrate(times, watts, 0.0, end_s)[0] for times, watts in powers.values())


def training(
    workload: str, trials: Sequence[Trial], folder: Path | None, examination: Examination, name: str
) -> Drawn | str:
    """Loss over epochs; over seconds and joules where the records have them."""
    return _over_training(workload, trials, folder, examination, name, (LOSS, "Training loss", ""))


def quality(
    workload: Workload, trials: Sequence[Trial], folder: Path | None, examination: Examination, name: str
) -> Drawn | str:
    """The metric that decides, on the test set, over the same: of cells of which every epoch was evaluated."""
    if workload.metric is None:
        return "no quality was recorded"
    better = next((row.quality.better for row in workload.rows if row.quality), None)
    word = {"higher": ", up is better", "lower": ", down is better"}.get(str(better), "")
    metric = wording.plain(wording.clean(workload.metric))
    told = (key_of(workload.metric), f"{metric} on the test set", word)
    return _over_training(workload.name, trials, folder, examination, name, told)


def _over_training(
    workload: str,
    trials: Sequence[Trial],
    folder: Path | None,
    examination: Examination,
    name: str,
    told: tuple[str, str, str],
) -> Drawn | str:
    """One panel for epochs, seconds and joules each. told: a figure's key in a curve, its name, which way is better"""
    key, figure, better = told
    shown, cut = _first(cells(trials))
    style_of = styles(shown)
    usable = examination.usable([trial for of_cell in shown.values() for trial in of_cell])
    every = [(title, curves(usable, x, folder, key)) for x, title in over(usable)]
    panels = [(title, lines) for title, lines in every if any(len(curve.x) > 1 for curve in lines)]
    if not panels:
        return "no trial has the loss of two epochs" if key == LOSS else "not every epoch was evaluated"
    last = [f"{style_of[c.label].label} {wording.number(c.y[-1], 3)}" for c in panels[0][1]]
    alt = f"{figure} on {workload}; in the end {listed(last)}.{cut}"
    gap = 0.35
    wide = (WIDTH_IN - 0.65 - RIGHT_IN - gap * (len(panels) - 1)) / len(panels)
    with sheet(max(2.9, 0.8 + 0.17 * len(shown))) as page:
        row = [page.axes(0.65 + at * (wide + gap), 0.5, wide, page.height_in - 0.8) for at in range(len(panels))]
        for axes, (title, lines) in zip(row, panels, strict=True):
            axes.grid(axis="y")
            entries = []
            for curve in lines:
                style = style_of[curve.label]
                entries.append((_draw_curve(axes, style, curve), style.label))
            log_x, _ = axis_kinds.logarithms([(curve.x, curve.y) for curve in lines])
            if title == OVER[0][1]:
                axis_kinds.whole_numbers(axes)
            elif log_x:
                axis_kinds.log_axis(axes, "x", [x for curve in lines for x in curve.x], 5)
                title += ", log scale"
            axes.set_xlabel(title, loc="left")
            if axes is row[0]:
                legend(page, axes, entries, RIGHT_IN)
            else:
                axes.sharey(row[0])
                axes.tick_params(labelleft=False)
        values = [y for _, lines in panels for curve in lines for y in curve.y]
        if logarithmic := key == LOSS and axis_kinds.spans_decades(values):
            axis_kinds.log_axis(row[0], "y", values)  # once they share it: else the others stay linear
        scale = ", log scale" if logarithmic else ""
        heading = "training loss" if key == LOSS else short(figure)
        row[0].set_title(f"{heading}{better}{scale}, mean of the blocks; band: least to greatest")
        drawing = svg(page, name, alt)
    kind = "Training curves" if key == LOSS else figure
    return Drawn(drawing, f"{kind} over {' and '.join(title for title, _ in panels)}", alt)


def _draw_curve(axes: Axes, style: CellStyle, curve: Curve) -> Any:
    """The mean as a line, which it gives, and the band of the blocks."""
    (line,) = axes.plot(
        curve.x,
        curve.y,
        color=style.color,
        marker=style.marker,
        markevery=None if len(curve.x) <= MARKED else -(-len(curve.x) // SPARSE),
        markerfacecolor=style.face,
        markersize=3.5,
        linestyle=style.line,
        linewidth=style.width,
    )
    if curve.low != curve.high:
        axes.fill_between(curve.x, curve.low, curve.high, color=style.color, alpha=0.10, linewidth=0)
    return line
