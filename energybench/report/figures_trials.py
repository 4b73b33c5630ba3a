"""Pictures of trials: blocks over time, training curves over epochs, seconds and joules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from energybench.meter import combine, trace
from energybench.records.record import Trial
from energybench.report.canvas import INK, MARKERS, PAPER, PLAIN, SERIES, WIDTH_IN, Drawn, legend, listed, sheet, svg
from energybench.report.power_traces import power
from energybench.verdict import pairing, wording

CELLS = 14  # in one picture
RIGHT_IN = 2.3
GAP_IN = 0.5  # between two panels: the upper one's ticks, the lower one's title
OVER = (("epoch", "epochs"), ("wall_s", "seconds"), ("joules", "joules (integrated power)"))


@dataclass(frozen=True, slots=True)
class Look:
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
    found: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda t: (rank[t.role], t.method, t.block, t.invocation)):
        found.setdefault(trial.method, []).append(trial)
    return found


def looks(found: dict[str, list[Trial]]) -> dict[str, Look]:
    result, number = {}, 0
    for label, trials in found.items():
        role = trials[0].role
        if role == "baseline":
            name = "the plain command" if "command" in trials[0].settings else "plain training"
            result[label] = Look(name, INK, "o", INK, "-", 1.8)
        elif role == "twin":
            result[label] = Look("its twin", PLAIN, "o", PAPER, (0, (4, 2)), 1.2)
        else:
            color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
            hollow = role == "control"
            result[label] = Look(
                label, color, marker, PAPER if hollow else color, (0, (2, 1.5)) if hollow else "-", 1.3
            )
            number += 1
    return result


def _cut(found: dict[str, list[Trial]]) -> tuple[dict[str, list[Trial]], str]:
    if len(found) <= CELLS:
        return found, ""
    return dict(list(found.items())[:CELLS]), f" The first {CELLS} of {len(found)} cells."


def _moments(trials: Sequence[Trial]) -> tuple[dict[str, float], str]:
    """Where each trial stands in time: minutes since the first began, or its turn where no times were kept."""
    try:
        began = {t.trial: datetime.fromisoformat(t.started_at).timestamp() for t in trials}
    except (ValueError, OverflowError, OSError):
        began = {}
    if len(set(began.values())) > 1:
        first = min(began.values())
        return {name: (at - first) / 60 for name, at in began.items()}, "minutes since the first trial began"
    turns = sorted(trials, key=lambda t: (t.block, t.invocation, t.position, t.trial))
    return {t.trial: float(turn) for turn, t in enumerate(turns, 1)}, "turn"


def _joules(trial: Trial) -> float:
    return combine.metered(trial.train).joules


def blocks(workload: str, trials: Sequence[Trial], name: str) -> Drawn | str:
    """Each trial's seconds, and joules where measured, when it ran: drift, outliers, what was set aside."""
    good = [t for t in trials if pairing.unusable(t) is None]
    if not good:
        return "no trial was usable"
    moments, when = _moments(trials)
    kept, cut = _cut(cells(trials))
    how = looks(kept)
    panels: list[tuple[str, Callable[[Trial], float]]] = [("seconds a trial", pairing.seconds)]
    if all(_joules(trial) > 0 for trial in good):
        panels.append(("measured joules a trial", _joules))
    lost = [t for t in trials if pairing.unusable(t) is not None]
    plain = [pairing.seconds(t) for t in good if t.role == "baseline"]
    told = [
        f"{how[label].label} {_range([pairing.seconds(t) for t in ts if pairing.unusable(t) is None])}"
        for label, ts in kept.items()
        if any(pairing.unusable(t) is None for t in ts)
    ]
    alt = f"Seconds of each trial of {workload} over time. {listed(told)}."
    alt += f" {len(lost)} set aside." if lost else " None was set aside."
    alt += cut + ("" if plain else " Plain training has no usable trial.")
    each_in = 1.75 if len(panels) == 2 else 2.1
    height = max(0.6 + len(panels) * (each_in + GAP_IN), 0.8 + 0.17 * len(kept))
    with sheet(height) as page:
        for row, (title, value) in enumerate(panels):
            bottom = 0.5 + (len(panels) - 1 - row) * (each_in + GAP_IN)
            axes = page.axes(0.65, bottom, WIDTH_IN - 0.65 - RIGHT_IN, each_in)
            axes.grid(axis="y")
            entries = []
            for label, ours in kept.items():
                look = how[label]
                here = sorted((moments[t.trial], value(t)) for t in ours if pairing.unusable(t) is None)
                (line,) = axes.plot(
                    [x for x, _ in here],
                    [y for _, y in here],
                    color=look.color,
                    marker=look.marker,
                    markerfacecolor=look.face,
                    markersize=4,
                    linestyle=look.line,
                    linewidth=look.width,
                    zorder=4 if look.color == INK else 3,
                )
                entries.append((line, look.label))
                gone = [moments[t.trial] for t in ours if pairing.unusable(t) is not None]
                if gone:
                    axes.plot(
                        gone,
                        [0.0] * len(gone),
                        marker="x",
                        color=look.color,
                        linestyle="none",
                        markersize=6,
                        clip_on=False,
                        zorder=5,
                    )
            axes.set_ylim(bottom=0)
            axes.set_title(title + (" (× set aside)" if lost else ""))
            if row == 0:
                legend(page, axes, entries, RIGHT_IN)
        axes.set_xlabel(when, loc="left")
        drawing = svg(page, name, alt)
    return Drawn(drawing, "Blocks over time", alt)


def _range(values: Sequence[float]) -> str:
    low, high = (wording.plain(wording.duration(value)) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


# ── curves ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean loss of a cell at the end of each epoch, over its blocks; x in epochs, seconds or joules."""

    label: str
    role: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curves(trials: Sequence[Trial], over: str, folder: Path | None = None) -> list[Curve]:
    """One per cell. `over`: "epoch", "wall_s" or "joules", which needs the run's folder for the power traces.

    A block whose points lack that figure enters no mean; an epoch without a loss is no point.
    """
    found = []
    for label, ours in cells(trials).items():
        by_epoch: dict[float, list[tuple[float, float]]] = {}
        for trial in ours:
            if pairing.unusable(trial) is None:
                for epoch, x, loss in _along(trial, over, folder):
                    by_epoch.setdefault(epoch, []).append((x, loss))
        if by_epoch:
            rows = [by_epoch[epoch] for epoch in sorted(by_epoch)]
            found.append(
                Curve(
                    label,
                    ours[0].role,
                    tuple(math.fsum(x for x, _ in row) / len(row) for row in rows),
                    tuple(math.fsum(y for _, y in row) / len(row) for row in rows),
                    tuple(min(y for _, y in row) for row in rows),
                    tuple(max(y for _, y in row) for row in rows),
                )
            )
    return found


def _along(trial: Trial, over: str, folder: Path | None) -> list[tuple[float, float, float]]:
    """(epoch, x, loss) of one trial, where all three are known and finite."""
    points = []
    spent = spending(trial, folder) if over == "joules" else None
    if over == "joules" and spent is None:
        return []
    for point in trial.curve:
        epoch, loss, seconds = point.get("epoch"), point.get("loss"), point.get("wall_s")
        x = epoch if over == "epoch" else seconds
        if x is not None and spent is not None:
            x = spent(x)
        if epoch is not None and x is not None and loss is not None and all(map(math.isfinite, (epoch, x, loss))):
            points.append((epoch, x, loss))
    return points


def spending(trial: Trial, folder: Path | None) -> Callable[[float], float] | None:
    """Joules from the window's start to a moment in it, by integrated power over all devices.

    None without a trace, or where the window was paused: seconds in it are then no longer seconds of the trace.
    """
    if folder is None or trial.train is None or trial.train.pieces != 1:
        return None
    powers = power(trial, folder)
    if isinstance(powers, str):
        return None
    return lambda end_s: math.fsum(trace.integrate(times, watts, 0.0, end_s)[0] for times, watts in powers.values())


def training(workload: str, trials: Sequence[Trial], folder: Path | None, name: str) -> Drawn | str:
    """Loss over epochs; over seconds and joules where the records have them."""
    kept, cut = _cut(cells(trials))
    how = looks(kept)
    shown = [t for ours in kept.values() for t in ours]
    every = [(title, curves(shown, over, folder)) for over, title in OVER]
    panels = [(title, found) for title, found in every if any(len(curve.x) > 1 for curve in found)]
    if not panels:
        return "no trial has the loss of two epochs"
    last = [f"{how[c.label].label} {wording.number(c.y[-1], 3)}" for c in panels[0][1]]
    alt = f"Training loss on {workload}; in the end {listed(last)}.{cut}"
    gap = 0.35
    wide = (WIDTH_IN - 0.65 - RIGHT_IN - gap * (len(panels) - 1)) / len(panels)
    with sheet(max(2.9, 0.8 + 0.17 * len(kept))) as page:
        first = None
        for column, (title, found) in enumerate(panels):
            axes = page.axes(0.65 + column * (wide + gap), 0.5, wide, page.height_in - 0.8)
            axes.grid(axis="y")
            entries = []
            for curve in found:
                look = how[curve.label]
                many = len(curve.x) > 40
                (line,) = axes.plot(
                    curve.x,
                    curve.y,
                    color=look.color,
                    marker=None if many else look.marker,
                    markerfacecolor=look.face,
                    markersize=3.5,
                    linestyle=look.line,
                    linewidth=look.width,
                )
                if curve.low != curve.high:
                    axes.fill_between(curve.x, curve.low, curve.high, color=look.color, alpha=0.10, linewidth=0)
                entries.append((line, look.label))
            axes.set_xlabel(title, loc="left")
            if first is None:
                first = axes
                axes.set_title("training loss, mean of the blocks; band: least to greatest")
                legend(page, axes, entries, RIGHT_IN)
            else:
                axes.sharey(first)
                axes.tick_params(labelleft=False)
        drawing = svg(page, name, alt)
    return Drawn(drawing, f"Training curves over {' and '.join(title for title, _ in panels)}", alt)
