"""Pictures of savings: the ladder of four numbers, and where the saving went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from energybench.report.canvas import (
    FARTHEST,
    WIDTH_IN,
    Drawn,
    distinct,
    listed,
    place,
    savings_axis,
    sheet,
    svg,
    whisker,
)
from energybench.report.palette import INK, MUTED, PAPER, SERIES
from energybench.stats import paired
from energybench.verdict import wording
from energybench.verdict.figures import Row, Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 24  # methods in one picture; the table has all
HEADING = 48  # characters of a method's name, which has a line to itself
LANE_IN, LEFT_IN, RIGHT_IN = 0.17, 1.05, 2.15
NOMINAL = (("claimed", "D", PAPER), ("estimated", "s", PAPER), ("counted", "s", INK))  # name, mark, its face
FOUR = (*(name for name, _, _ in NOMINAL), "measured")


def _some(rows: Sequence[Row], most: int = MOST) -> str:
    return f" The first {most} of {len(rows)} methods; the table has all." if len(rows) > most else ""


def _interval(row: Row) -> tuple[float, float] | None:
    return row.measured.interval if row.measured else None


def _nominal(row: Row) -> tuple[float | None, ...]:
    """The savings that were not measured, as NOMINAL has them."""
    return row.claimed_rel, row.estimated_rel, row.counted_rel


def _shown(row: Row) -> list[float]:
    """Everything that a ladder has a mark for."""
    measured = row.measured.saving_rel if row.measured else None
    return [value for value in (*_nominal(row), measured) if value is not None]


def _outcome(row: Row) -> str:
    if row.measured is None:
        return "not measured"
    of = wording.what(row.measured.quantity, row.measured.scope)
    return f"{wording.plain(wording.measured(row.measured))} {of}"


@dataclass(frozen=True, slots=True)
class Lanes:
    """Methods below each other, each with a heading and a lane for each of its figures."""

    axes: Axes
    y: list[list[float]]  # per method, per lane, from the top


def _headings(axes: Axes, rows: Sequence[Row], lanes: Sequence[Sequence[str]]) -> Lanes:
    """Names and verdicts over their lanes; the lanes' own names to the left."""
    at, y = 0.0, []
    for row, heading, names in zip(rows, distinct([row.method for row in rows], HEADING), lanes, strict=True):
        verdict = f"  {row.verdict}"
        axes.annotate(
            heading,
            (0, at),
            (-LEFT_IN * 72 + 6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            weight="bold",
            annotation_clip=False,
        )
        axes.annotate(
            verdict.strip(),
            (1, at),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            weight="bold",
            annotation_clip=False,
        )
        y.append([at + 1 + lane for lane in range(len(names))])
        for where, name in zip(y[-1], names, strict=True):
            axes.annotate(
                name,
                (0, where),
                (-6, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                ha="right",
                color=MUTED,
                size=8,
                annotation_clip=False,
            )
        at = y[-1][-1] + 1.6
    axes.set_ylim(at - 0.7, -0.7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    return Lanes(axes, y)


def _value(axes: Axes, y: float, text: str, color: str = INK) -> None:
    axes.annotate(
        text,
        (1, y),
        (8, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        size=8,
        color=color,
        annotation_clip=False,
    )


def _height(lanes: Sequence[Sequence[str]]) -> float:
    """Of the axes, in inches."""
    return LANE_IN * (sum(len(names) + 1.6 for names in lanes))


def ladder(workload: Workload, margin: float, name: str) -> Drawn | str:
    """Claimed, estimated, counted, measured: how far each promise came."""
    rows = [row for row in workload.rows if _shown(row)]
    if not rows:
        return "no method has a figure to show"
    alt = f"Savings on {workload.name}. {listed([_ladder_alt(row) for row in rows])}.{_some(rows)}"
    drawn = rows[:MOST]
    lanes = [FOUR] * len(drawn)
    height = _height(lanes)
    with sheet(height + 0.62) as page:
        axes = page.axes(LEFT_IN, 0.5, WIDTH_IN - LEFT_IN - RIGHT_IN, height)
        ends = [place(end) for row in drawn for end in _interval(row) or ()]
        limits = savings_axis(axes, [place(value) for row in drawn for value in _shown(row)], ends, margin)
        for row, heights in zip(drawn, _headings(axes, drawn, lanes).y, strict=True):
            for (_, marker, face), value, y in zip(NOMINAL, _nominal(row), heights[:-1], strict=True):
                _draw_nominal(axes, value, y, marker, face)
            _draw_measured(axes, row, heights[-1], limits)
        axes.set_xlabel(
            f"saved against {workload.baseline_name}, log scale; costs to the left. "
            f"Band: ±{wording.plain(wording.as_written(margin))} margin. Whisker: the interval",
            loc="left",
        )
        drawing = svg(page, name, alt)
    return Drawn(drawing, "Claimed, estimated, counted, measured", alt)


def _ladder_alt(row: Row) -> str:
    nominal = ", ".join(
        f"{name} {wording.plain(wording.percent(value))}"
        for (name, _, _), value in zip(NOMINAL, _nominal(row), strict=True)
    )
    return f"{row.method}: {nominal}, measured {_outcome(row)}, {row.verdict}"


def _draw_nominal(axes: Axes, value: float | None, y: float, marker: str, face: str) -> None:
    if value is None:
        _value(axes, y, wording.NOTHING, MUTED)
        return
    _mark(axes, value, y, marker, INK, face)
    _value(axes, y, wording.plain(wording.percent(value)), INK)


def _draw_measured(axes: Axes, row: Row, y: float, limits: tuple[float, float]) -> None:
    """With its whisker; a cross where a flag forbids a verdict."""
    if row.measured is None:
        _value(axes, y, wording.NOTHING, MUTED)
        return
    color, marker = (MUTED, "x") if row.verdict_forbidden else (SERIES[0], "o")
    if interval := _interval(row):
        whisker(axes, place(interval[0]), place(interval[1]), y, color, limits)
    _mark(axes, row.measured.saving_rel, y, marker, color, color)
    _value(axes, y, f"{wording.plain(wording.measured(row.measured))} {row.measured.quantity}", color)


def _mark(axes: Axes, saving_rel: float, y: float, marker: str, color: str, face: str) -> None:
    axes.plot(
        [place(saving_rel)],
        [y],
        marker=marker,
        color=color,
        markerfacecolor=face,
        markersize=5.5,
        linestyle="none",
        clip_on=False,
        zorder=4,
    )


def _ratios(row: Row) -> tuple[paired.Decomposition, float | None] | None:
    """The factors in logs, and the watts' where energy was measured; None where a figure is missing."""
    if row.counted_rel is None or row.time is None or row.measured is None or row.counted_rel >= 1:
        return None
    values = [1 - row.time.saving_rel, 1 - row.measured.saving_rel]
    if not all(math.isfinite(value) and value > 0 for value in values):
        return None
    joules = values[1] if row.measured.quantity == "energy" else None
    return paired.decompose(1 - row.counted_rel, values[0], joules), joules


def _times(log_ratio: float) -> str:
    return f"×{wording.NB}{wording.number(math.exp(min(log_ratio, 700)), 2)}"


def where(workload: Workload, margin: float, name: str) -> Drawn | str:
    """FLOPs × seconds per FLOP × watts: bars that end where the measured figure lies, because they must."""
    known = [(row, ratios[0]) for row in workload.rows if (ratios := _ratios(row)) is not None]
    if not known:
        return "no method has both counted FLOPs and a measured time"
    rows = [row for row, _ in known]
    alt = f"Where the saving went on {workload.name}. " + listed([row.explanation.rstrip(".") for row in rows], 4)
    alt += f".{_some(rows)}"
    drawn = [(row, _bars(row, parts)) for row, parts in known[:MOST]]
    lanes = [[what for what, _, _ in bars] for _, bars in drawn]
    height = _height(lanes)
    with sheet(height + 0.62) as page:
        axes = page.axes(LEFT_IN + 0.1, 0.5, WIDTH_IN - LEFT_IN - 0.1 - RIGHT_IN, height)
        ends = [max(-FARTHEST, min(FARTHEST, -end)) for _, bars in drawn for bar in bars for end in bar[1:]]
        reaches = [place(end) for row, _ in drawn for end in _interval(row) or ()]
        limits = savings_axis(axes, ends, reaches, margin)
        headings = _headings(axes, [row for row, _ in drawn], lanes)
        for (row, bars), heights in zip(drawn, headings.y, strict=True):
            _draw_bars(axes, row, bars, heights, limits)
        axes.set_xlabel(
            "each factor after the other, log scale; the last bar is their product. Green: less, orange: more",
            loc="left",
        )
        drawing = svg(page, name, alt)
    watts = " × watts" if any(parts.watts is not None for _, parts in known[:MOST]) else ""
    return Drawn(drawing, f"Where the saving went: FLOPs × seconds per FLOP{watts}", alt)


Bar = tuple[str, float, float]  # its name, from, to: logs of the cost ratio


def _draw_bars(
    axes: Axes, row: Row, bars: Sequence[Bar], heights: Sequence[float], limits: tuple[float, float]
) -> None:
    """The factors one after the other, each linked to the next, and below them their product."""
    *factors, (total, start, stop) = bars
    for (what, begins, ends), y in zip(factors, heights[:-1], strict=True):
        color = SERIES[2 if ends <= begins else 1]
        axes.barh(y, -(ends - begins), left=-begins, height=0.62, color=color, edgecolor=color, linewidth=0, zorder=2)
        _value(axes, y, wording.plain(f"{_times(ends - begins)} {_of(what, ends - begins)}"))
    y, color = heights[-1], MUTED if row.verdict_forbidden else INK
    axes.barh(y, -(stop - start), left=-start, height=0.62, color=PAPER, edgecolor=color, linewidth=1.2, zorder=2)
    if interval := _interval(row):
        whisker(axes, place(interval[0]), place(interval[1]), y, SERIES[0], limits)
    _value(axes, y, wording.plain(f"= {_times(stop - start)} {_of(total, stop - start)}"))
    for (_, _, ends), y in zip(factors[:-1], heights[:-2], strict=True):
        axes.plot([-ends, -ends], [y, y + 1], color=MUTED, linewidth=0.8, zorder=1.5)


def _bars(row: Row, parts: paired.Decomposition) -> list[Bar]:
    """Each begins where the last ended, the total at 0."""
    assert row.measured is not None
    steps = [("FLOPs", parts.flop), ("s per FLOP", parts.seconds_per_flop)]
    if parts.watts is not None:
        steps.append(("watts", parts.watts))
    bars, at = [], 0.0
    for what, size in steps:
        bars.append((what, at, at + size))
        at += size
    return [*bars, ("energy" if parts.watts is not None else "time", 0.0, at)]


def _of(what: str, log_ratio: float) -> str:
    share = wording.percent(abs(math.expm1(min(log_ratio, 700))))
    return f"({share} {'less' if log_ratio < 0 else 'more'})" if share != wording.percent(0.0) else "(the same)"
