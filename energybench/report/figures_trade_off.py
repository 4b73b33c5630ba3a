"""The picture of quality against cost: every block, the means, and the front of the means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from energybench.records.record import Trial
from energybench.report.canvas import (
    INK,
    MUTED,
    WIDTH_IN,
    Drawn,
    legend,
    listed,
    place,
    savings_axis,
    sheet,
    short,
    svg,
)
from energybench.report.figures_savings import MOST, interval_of
from energybench.report.figures_trials import cells, looks
from energybench.verdict import pairing, wording
from energybench.verdict.figures import Row, Workload


@dataclass(frozen=True, slots=True)
class Point:
    """One cell against plain training: means over its blocks, and each block's own."""

    label: str
    x: float  # place of the saving
    change: float  # of quality, method − baseline
    each: tuple[tuple[float, float], ...]
    reach: tuple[float, float] | None
    row: Row | None  # None for a control


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that none is better than: no other saves at least as much with at least that quality
    and more of one. By saving, least first."""

    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(a >= x and b >= y and (a > x or b > y) for a, b in points)

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: points[i])


def _points(workload: Workload, trials: Sequence[Trial], energy: bool) -> list[Point]:
    metric = workload.metric or ""
    plain = [t for t in trials if t.role == "baseline"]
    others = {label: ours for label, ours in cells(trials).items() if ours[0].role in ("method", "control")}
    rows = {row.method: row for row in workload.rows}
    judged = {block for row in workload.rows for block in row.blocks}  # not those that were added later
    found = []
    for label, ours in others.items():
        pairs = [pair for pair in pairing.pairs(ours, plain) if pair.method.block in judged]
        if energy and not pairing.sensors_of(pairs):
            continue
        each = []
        for pair in pairs:
            a, b = pair.method.quality.get(metric), pair.baseline.quality.get(metric)
            if a is not None and b is not None and math.isfinite(a) and math.isfinite(b):
                change = pairing.change([pair], "energy" if energy else "time")
                each.append((place(change.saving), a - b))
        if not each:
            continue
        row = rows.get(label)
        figure = row and (row.measured if energy else row.time)
        interval = interval_of(figure or None)
        reach = (place(interval[0]), place(interval[1])) if interval else None
        mean = [math.fsum(axis) / len(each) for axis in zip(*each, strict=True)]
        found.append(Point(label, mean[0], mean[1], tuple(each), reach, row))
    return found


def trade_off(workload: Workload, trials: Sequence[Trial], margin: float, name: str) -> Drawn | str:
    """Quality against cost, each block's pairs as dots, the mean as a mark, and the front of the means."""
    if workload.metric is None:
        return "no quality was recorded"
    compared = [row.measured for row in workload.rows if row.measured is not None]
    energy = bool(compared) and all(m.quantity == "energy" for m in compared)
    scopes = {m.scope for m in compared} if energy else set()
    if len(scopes) > 1:
        return "the methods' energies see different parts of the machine"
    points = _points(workload, trials, energy)
    if not points:
        return "no block has both a saving and a quality"
    quality = next((row.quality for row in workload.rows if row.quality), None)
    scale, unit = (100.0, "pp") if quality and quality.fraction else (1.0, "")
    sign = 1 if pairing.higher_is_better(workload.metric) else -1
    places = [(0.0, 0.0), *((p.x, sign * p.change) for p in points)]
    best = front(places)
    names = [workload.baseline_name, *(p.label for p in points)]
    what = wording.what("energy" if energy else "time", next(iter(scopes), ""))
    alt = (
        f"{workload.metric} against {what} on {workload.name}. None is better in both than: "
        f"{listed([names[i] for i in best], 8)}. A front of means is no verdict."
    )
    shown, how, right = points[:MOST], looks(cells(trials)), 2.3
    with sheet(max(3.3, 0.75 + 0.19 * (len(shown) + 3))) as page:
        axes = page.axes(0.75, 0.5, WIDTH_IN - 0.75 - right, page.height_in - 0.8)
        savings_axis(
            axes,
            [x for x, _ in places] + [x for p in shown for x, _ in p.each],
            [end for p in shown if p.reach for end in p.reach],
            margin,
        )
        axes.grid(axis="y")
        axes.axhline(0, color=MUTED, linewidth=1.0, zorder=1)
        if quality and quality.limit is not None:
            axes.axhline(scale * quality.limit, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        steps = [(places[i][0], sign * places[i][1] * scale) for i in best]
        axes.step(
            [x for x, _ in steps],
            [y for _, y in steps],
            where="pre",
            color=MUTED,
            linewidth=1.0,
            linestyle=(0, (1, 1.5)),
            zorder=2,
        )
        entries: list[tuple[Any, str]] = []
        (origin,) = axes.plot([0], [0], marker="*", color=INK, markersize=9, linestyle="none", zorder=4)
        entries.append((origin, workload.baseline_name))
        for point in shown:
            color, marker = how[point.label].color, how[point.label].marker
            axes.plot(
                [x for x, _ in point.each],
                [scale * y for _, y in point.each],
                marker=marker,
                color=color,
                markersize=2.5,
                linestyle="none",
                alpha=0.55,
                zorder=2,
            )
            if point.reach:
                axes.plot(point.reach, [scale * point.change] * 2, color=color, linewidth=1.1, zorder=3)
            if point.row and point.row.quality and point.row.quality.bound is not None:
                axes.plot(
                    [point.x] * 2,
                    [scale * point.change, scale * point.row.quality.bound],
                    color=color,
                    linewidth=1.1,
                    zorder=3,
                )
            (mark,) = axes.plot(
                [point.x],
                [scale * point.change],
                marker=marker,
                color=color,
                markersize=7,
                markerfacecolor=how[point.label].face,
                linestyle="none",
                zorder=4,
            )
            entries.append((mark, point.label))
        if sign < 0:
            axes.invert_yaxis()
        axes.set_title(
            f"{short(workload.metric)} against {workload.baseline_name}{f', {unit}' if unit else ''} (up is better)"
        )
        axes.set_xlabel(
            f"{what} saved. Dashed: the loss that the suite accepts. Dotted: front of the means", loc="left"
        )
        legend(page, axes, entries, right)
        drawing = svg(page, name, alt)
    return Drawn(drawing, f"{workload.metric} against {what}: blocks and means", alt)
