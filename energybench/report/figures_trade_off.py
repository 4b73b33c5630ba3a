"""The picture of quality against cost: every block, the means, and the front of the means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from energybench.records.record import Trial
from energybench.report import axes as axis_kinds
from energybench.report.canvas import WIDTH_IN, Drawn, Sheet, legend, listed, place, savings_axis, sheet, short, svg
from energybench.report.figures_savings import MOST
from energybench.report.figures_trials import CellStyle, cells, styles
from energybench.report.palette import INK, MUTED
from energybench.verdict import wording
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Quality, Workload
from energybench.verdict.trade_off import CellTradeOff, front, quantity_of, trade_offs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT_IN = 2.3


@dataclass(frozen=True, slots=True)
class Point:
    """One cell against plain training: means over its blocks, and each block's own."""

    label: str
    x: float  # place of the saving
    change: float  # of quality, method − baseline
    blocks: tuple[tuple[float, float], ...]  # (place, change) of each
    interval: tuple[float, float] | None  # of the saving, as places
    bound: float | None  # the quality's, as bad as it may be


@dataclass(frozen=True, slots=True)
class Scale:
    """How changes of quality are drawn."""

    factor: float  # 100 for percentage points
    unit: str
    sign: int  # −1 where less is better


def _point(cell: CellTradeOff) -> Point:
    blocks = tuple((place(saving), change) for saving, change in cell.blocks)
    x, change = (math.fsum(axis) / len(blocks) for axis in zip(*blocks, strict=True))
    interval = cell.measured.interval if cell.measured else None
    quality = cell.row.quality if cell.row else None
    return Point(
        cell.label,
        x,
        change,
        blocks,
        interval=(place(interval[0]), place(interval[1])) if interval else None,
        bound=quality.bound if quality else None,
    )


def trade_off(
    workload: Workload, trials: Sequence[Trial], margin: float, examination: Examination, name: str
) -> Drawn | str:
    """Quality against cost, each block's pairs as dots, the mean as a mark, and the front of the means."""
    if workload.metric is None:
        return "no quality was recorded"
    compared_by = quantity_of(workload)
    if compared_by is None:
        return "the methods' energies see different parts of the machine"
    by_label = cells(trials)
    points = [_point(cell) for cell in trade_offs(workload, by_label, compared_by[0], examination)]
    if not points:
        return "no block has both a saving and a quality"
    quality = next((row.quality for row in workload.rows if row.quality), None)
    scale = _scale(quality)
    places = [(0.0, 0.0), *((p.x, scale.sign * p.change) for p in points)]
    best = front(places)
    names = [workload.baseline_name, *(p.label for p in points)]
    what = wording.what(*compared_by)
    alt = (
        f"{workload.metric} against {what} on {workload.name}. None is better in both than: "
        f"{listed([names[i] for i in best], 8)}. A front of means is no verdict."
    )
    shown = points[:MOST]
    with sheet(max(3.3, 0.75 + 0.19 * (len(shown) + 3))) as page:
        axes = _axes(page, [x for x, _ in places], shown, margin)
        if quality and quality.limit is not None:
            axes.axhline(scale.factor * quality.limit, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        _draw_front(axes, [places[i] for i in best], scale)
        entries = _draw_points(axes, workload.baseline_name, shown, styles(by_label), scale.factor)
        limit = quality.limit if quality else None
        apart = _changes(axes, shown, scale, () if limit is None else (scale.factor * limit,))
        if scale.sign < 0:
            axes.invert_yaxis()
        unit = f", {scale.unit}" if scale.unit else ""
        strips = f"; {axis_kinds.NOTE}" if apart else ""
        axes.set_title(f"{short(workload.metric)} against {workload.baseline_name}{unit} (up is better{strips})")
        axes.set_xlabel(
            f"{what} saved, log scale. Dashed: the loss that the suite accepts. Dotted: front of the means", loc="left"
        )
        legend(page, axes, entries, RIGHT_IN)
        drawing = svg(page, name, alt)
    return Drawn(drawing, f"{workload.metric} against {what}: blocks and means", alt)


def _scale(quality: Quality | None) -> Scale:
    if quality is None:
        return Scale(1.0, "", 1)
    sign = 1 if quality.better == "higher" else -1
    return Scale(100.0, "pp", sign) if quality.fraction else Scale(1.0, quality.unit, sign)


def _axes(page: Sheet, means: Sequence[float], shown: Sequence[Point], margin: float) -> Axes:
    axes = page.axes(0.75, 0.5, WIDTH_IN - 0.75 - RIGHT_IN, page.height_in - 0.8)
    inside = [*means, *(x for point in shown for x, _ in point.blocks)]
    savings_axis(axes, inside, [end for point in shown if point.interval for end in point.interval], margin)
    axes.grid(axis="y")
    axes.axhline(0, color=MUTED, linewidth=1.0, zorder=1)
    return axes


def _changes(axes: Axes, shown: Sequence[Point], scale: Scale, always: Sequence[float]) -> bool:
    """A strip for changes of quality that lie far from all the others; whether there is one."""
    means = [scale.factor * point.change for point in shown]
    apart = axis_kinds.outliers(means, [0.0, *always])
    if apart is None:
        return False
    bounds = [scale.factor * point.bound for point in shown if point.bound is not None]
    changes = [scale.factor * change for point in shown for _, change in point.blocks]
    every = [*means, *bounds, *changes]
    axis_kinds.strip(axes, "y", apart, (min(every), max(every)))
    return True


def _draw_front(axes: Axes, best: Sequence[tuple[float, float]], scale: Scale) -> None:
    axes.step(
        [x for x, _ in best],
        [scale.sign * y * scale.factor for _, y in best],
        where="pre",
        color=MUTED,
        linewidth=1.0,
        linestyle=(0, (1, 1.5)),
        zorder=2,
    )


def _draw_points(
    axes: Axes, baseline_name: str, shown: Sequence[Point], style_of: dict[str, CellStyle], factor: float
) -> list[tuple[Any, str]]:
    """Plain training at the origin, then each cell; gives the legend's entries."""
    (origin,) = axes.plot([0], [0], marker="*", color=INK, markersize=9, linestyle="none", zorder=4)
    return [(origin, baseline_name), *((_draw(axes, p, style_of[p.label], factor), p.label) for p in shown)]


def _draw(axes: Axes, point: Point, style: CellStyle, factor: float) -> Any:
    """A cell's blocks, the bounds of its means, and its mean, whose mark it gives."""
    axes.plot(
        [x for x, _ in point.blocks],
        [factor * y for _, y in point.blocks],
        marker=style.marker,
        color=style.color,
        markersize=2.5,
        linestyle="none",
        alpha=0.55,
        zorder=2,
    )
    y = factor * point.change
    if point.interval:
        axes.plot(point.interval, [y, y], color=style.color, linewidth=1.1, zorder=3)
    if point.bound is not None:
        axes.plot([point.x, point.x], [y, factor * point.bound], color=style.color, linewidth=1.1, zorder=3)
    (mark,) = axes.plot(
        [point.x],
        [y],
        marker=style.marker,
        color=style.color,
        markersize=7,
        markerfacecolor=style.face,
        linestyle="none",
        zorder=4,
    )
    return mark
