"""The picture of a sweep over two keys: the quality of every cell of the grid, of plain training and of each method.

Cells are told by the names that a sweep gives its workloads, "cnn[depth=2,lr=0.1]", so that old records have it too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from energybench.records.record import Trial
from energybench.report.canvas import WIDTH_IN, Drawn, listed, sheet, short, svg
from energybench.report.figures_trials import cells
from energybench.report.palette import INK, MUTED, SERIES
from energybench.verdict import wording
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SWEPT = re.compile(r"(?P<name>.+)\[(?P<row>[\w.]+)=(?P<y>[^,=\[\]]+),(?P<column>[\w.]+)=(?P<x>[^,=\[\]]+)\]", re.DOTALL)
PANELS, ACROSS = 4, 2  # plain training and three methods
NUMBERED = 12  # columns in which there is room for figures
FAINT, FULL = 0.06, 0.75  # of the worst and of the best cell


@dataclass(frozen=True, slots=True)
class Grid:
    """A workload's name without its sweep; what is swept downwards and across; whose cells these are."""

    name: str
    row: str
    column: str
    places: dict[tuple[float, float], Workload]  # (y, x) → the workload


def grids(workloads: Sequence[Workload]) -> list[Grid]:
    """Of those workloads that a sweep over two numbers has made, two values of each at least."""
    found: dict[tuple[str, str, str], dict[tuple[float, float], Workload]] = {}
    for workload in workloads:
        if (parts := SWEPT.fullmatch(workload.name)) is None:
            continue
        y, x = _finite(parts["y"]), _finite(parts["x"])
        if y is not None and x is not None:
            found.setdefault((parts["name"], parts["row"], parts["column"]), {})[y, x] = workload
    every = [Grid(*key, places) for key, places in found.items()]
    return [grid for grid in every if all(len({place[side] for place in grid.places}) > 1 for side in (0, 1))]


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def draw(grid: Grid, trials: Sequence[Trial], examination: Examination, name: str) -> Drawn | str:
    """Mean quality over the usable blocks, cell by cell; the best cell of each panel is framed."""
    first = next(iter(grid.places.values()))
    metric = next((workload.metric for workload in grid.places.values() if workload.metric is not None), None)
    if metric is None:
        return "no quality was recorded"
    better = next((row.quality.better for workload in grid.places.values() for row in workload.rows if row.quality), "")
    at = {workload.name: place for place, workload in grid.places.items()}
    of_grid = [trial for trial in trials if trial.workload in at and trial.role in ("baseline", "method")]
    panels: dict[str, dict[tuple[float, float], float]] = {}
    for label in cells(of_grid):
        values: dict[tuple[float, float], list[float]] = {}
        for trial in examination.usable(trial for trial in of_grid if trial.method == label):
            if (value := trial.quality.get(metric)) is not None:
                values.setdefault(at[trial.workload], []).append(value)
        if values:
            panels[label] = {place: math.fsum(each) / len(each) for place, each in values.items()}
    if not panels:
        return f"no trial of it has a quality '{wording.clean(metric)}'"
    shown = dict(list(panels.items())[:PANELS])
    cut = f" The first {PANELS} of {len(panels)} methods." if len(panels) > PANELS else ""
    best = {label: _best(values, lower=better == "lower") for label, values in shown.items()}
    names = {label: first.baseline_name if label == "baseline" else label for label in shown}
    told = [
        f"{names[label]} {wording.number(shown[label][place], 3)} at {_at(grid, place)}"
        for label, place in best.items()
    ]
    same = f" The best cell {'is the same' if len({*best.values()}) == 1 else 'differs'}." if len(best) > 1 else ""
    alt = f"{metric} of {grid.name} by {grid.row} and {grid.column}; best: {listed(told)}.{same}{cut}"
    ys, xs = (sorted({place[side] for place in grid.places}) for side in (0, 1))
    down = -(-len(shown) // ACROSS)
    wide = (WIDTH_IN - 0.75 - 0.2 - 0.55) / ACROSS
    high = min(max(0.26 * len(ys), 1.2), 4.5)
    ends = [value for values in shown.values() for value in values.values()]
    with sheet(down * (high + 0.95) + 0.05) as page:
        for number, (label, means) in enumerate(shown.items()):
            line, column = divmod(number, ACROSS)
            bottom = 0.6 + (down - 1 - line) * (high + 0.95)
            axes = page.axes(0.75 + column * (wide + 0.55), bottom, wide, high)
            _fill(axes, (ys, xs), means, (min(ends), max(ends)), better == "lower")
            row, across = ys.index(best[label][0]), xs.index(best[label][1])
            _frame(axes, across, row)
            axes.set_title(f"{short(names[label])}: best at {_at(grid, best[label])}", fontsize=8.5)
            axes.set_xlabel(short(grid.column), loc="left")
            if column == 0:
                axes.set_ylabel(short(grid.row), loc="bottom")
        drawing = svg(page, name, alt)
    return Drawn(drawing, f"{metric} by {grid.row} and {grid.column}, the best cell framed", alt)


def _best(values: dict[tuple[float, float], float], *, lower: bool) -> tuple[float, float]:
    """Of equal ones the first."""
    places = sorted(values)
    return min(places, key=values.__getitem__) if lower else max(places, key=values.__getitem__)


def _at(grid: Grid, place: tuple[float, float]) -> str:
    return f"{grid.row} {place[0]:g}, {grid.column} {place[1]:g}"


def _fill(
    axes: Axes,
    places: tuple[list[float], list[float]],
    values: dict[tuple[float, float], float],
    ends: tuple[float, float],
    reverse: bool,
) -> None:
    """Every cell as dark as it is good, on one scale for all panels; what was not run stays empty."""
    ys, xs = places
    low, high = ends
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            if (value := values.get((y, x))) is None:
                continue
            share = (value - low) / (high - low) if high > low else 1.0
            alpha = FAINT + (FULL - FAINT) * (1 - share if reverse else share)
            corners = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]
            axes.fill(*zip(*corners, strict=True), color=SERIES[0], alpha=alpha, linewidth=0)
            if len(xs) <= NUMBERED:
                axes.text(column + 0.5, row + 0.5, _digits(value), ha="center", va="center", fontsize=6, color=INK)
    axes.set_xlim(0, len(xs))
    axes.set_ylim(0, len(ys))
    axes.set_xticks([n + 0.5 for n in range(len(xs))], [f"{x:g}" for x in xs], rotation=40, fontsize=7)
    axes.set_yticks([n + 0.5 for n in range(len(ys))], [f"{y:g}" for y in ys], fontsize=7)
    axes.tick_params(colors=MUTED)


def _digits(value: float) -> str:
    """Three figures, without the zero before a point: .431"""
    text = f"{value:.3g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _frame(axes: Axes, column: int, row: int) -> None:
    edges = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
    axes.plot([column + x for x, _ in edges], [row + y for _, y in edges], color=INK, linewidth=1.6, clip_on=False)
