"""Pictures of savings: the ladder of four numbers, and where the saving went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from energybench.report.canvas import (
    FARTHEST,
    INK,
    MUTED,
    PAPER,
    SERIES,
    WIDTH_IN,
    Drawn,
    listed,
    place,
    savings_axis,
    sheet,
    short,
    svg,
    whisker,
)
from energybench.stats import paired
from energybench.verdict import wording
from energybench.verdict.figures import Measured, Row, Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 24  # methods in one picture; the table has all
LANE_IN, LEFT_IN, RIGHT_IN = 0.17, 1.05, 2.15
FOUR = (("claimed", "D", PAPER), ("estimated", "s", PAPER), ("counted", "s", INK), ("measured", "o", SERIES[0]))


def _some(rows: Sequence[Row], most: int = MOST) -> str:
    return f" The first {most} of {len(rows)} methods; the table has all." if len(rows) > most else ""


def interval_of(figure: Measured | None) -> tuple[float, float] | None:
    """Shown where the table shows it: from three blocks on."""
    if figure is None or figure.low_rel is None or figure.high_rel is None or figure.n < paired.FEWEST_BLOCKS:
        return None
    return figure.low_rel, figure.high_rel


def _numbers(row: Row) -> list[float | None]:
    measured = row.measured.saving_rel if row.measured else None
    return [row.claimed_rel, row.estimated_rel, row.counted_rel, measured]


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
    for row, names in zip(rows, lanes, strict=True):
        verdict = f"  {row.verdict}"
        axes.annotate(
            short(row.method),
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
    rows = [row for row in workload.rows if any(value is not None for value in _numbers(row))]
    if not rows:
        return "no method has a figure to show"
    told = [
        f"{row.method}: "
        + ", ".join(
            f"{what} {wording.plain(wording.percent(value))}"
            for what, value in zip(("claimed", "estimated", "counted"), _numbers(row)[:3], strict=True)
        )
        + f", measured {_outcome(row)}, {row.verdict}"
        for row in rows
    ]
    alt = f"Savings on {workload.name}. {listed(told)}.{_some(rows)}"
    shown = rows[:MOST]
    lanes = [[what for what, _, _ in FOUR]] * len(shown)
    height = _height(lanes)
    with sheet(height + 0.62) as page:
        axes = page.axes(LEFT_IN, 0.5, WIDTH_IN - LEFT_IN - RIGHT_IN, height)
        intervals = [interval for row in shown if (interval := interval_of(row.measured))]
        limits = savings_axis(
            axes,
            [place(value) for row in shown for value in _numbers(row) if value is not None],
            [place(end) for interval in intervals for end in interval],
            margin,
        )
        for row, heights in zip(shown, _headings(axes, shown, lanes).y, strict=True):
            for (what, marker, face), value, y in zip(FOUR, _numbers(row), heights, strict=True):
                color = (MUTED if row.verdict_forbidden else SERIES[0]) if what == "measured" else INK
                text = wording.percent(value) if what != "measured" else wording.measured(row.measured)
                if value is None:
                    _value(axes, y, wording.NOTHING, MUTED)
                    continue
                if what == "measured" and (interval := interval_of(row.measured)):
                    whisker(axes, place(interval[0]), place(interval[1]), y, color, limits)
                if what == "measured" and row.verdict_forbidden:
                    marker = "x"
                fill = color if what == "measured" else face
                axes.plot(
                    [place(value)],
                    [y],
                    marker=marker,
                    color=color,
                    markerfacecolor=fill,
                    markersize=5.5,
                    linestyle="none",
                    clip_on=False,
                    zorder=4,
                )
                of = f" {row.measured.quantity}" if what == "measured" and row.measured else ""
                _value(axes, y, wording.plain(text) + of, color)
        axes.set_xlabel(
            f"saved against {workload.baseline_name} in the same block; costs to the left. "
            f"Band: ±{wording.plain(wording.as_written(margin))} margin. Whisker: the table's interval",
            loc="left",
        )
        drawing = svg(page, name, alt)
    return Drawn(drawing, "Claimed, estimated, counted, measured", alt)


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
    known = [(row, found[0]) for row in workload.rows if (found := _ratios(row)) is not None]
    if not known:
        return "no method has both counted FLOPs and a measured time"
    rows = [row for row, _ in known]
    alt = f"Where the saving went on {workload.name}. " + listed([row.explanation.rstrip(".") for row in rows], 4)
    alt += f".{_some(rows)}"
    known = known[:MOST]
    lanes = [[what for what, _, _ in _bars(row, parts)] for row, parts in known]
    height = _height(lanes)
    with sheet(height + 0.62) as page:
        axes = page.axes(LEFT_IN + 0.1, 0.5, WIDTH_IN - LEFT_IN - 0.1 - RIGHT_IN, height)
        ends = [end for row, parts in known for bar in _bars(row, parts) for end in bar[1:]]
        intervals = [interval for row, _ in known if (interval := interval_of(row.measured))]
        reaches = [place(end) for interval in intervals for end in interval]
        limits = savings_axis(axes, [max(-FARTHEST, min(FARTHEST, -end)) for end in ends], reaches, margin)
        for (row, parts), heights in zip(known, _headings(axes, rows[:MOST], lanes).y, strict=True):
            bars = _bars(row, parts)
            for (what, start, stop), y in zip(bars, heights, strict=True):
                total, less = what == bars[-1][0], stop <= start
                color = (MUTED if row.verdict_forbidden else INK) if total else SERIES[2 if less else 1]
                axes.barh(
                    y,
                    -(stop - start),
                    left=-start,
                    height=0.62,
                    color=PAPER if total else color,
                    edgecolor=color,
                    linewidth=1.2 if total else 0,
                    zorder=2,
                )
                if total and (interval := interval_of(row.measured)):
                    whisker(axes, place(interval[0]), place(interval[1]), y, SERIES[0], limits)
                _value(
                    axes, y, wording.plain(f"{'= ' if total else ''}{_times(stop - start)} {_of(what, stop - start)}")
                )
            for (_, _, stop), y in zip(bars[:-2], heights[:-2], strict=True):
                axes.plot([-stop, -stop], [y, y + 1], color=MUTED, linewidth=0.8, zorder=1.5)
        axes.set_xlabel(
            "each factor on its own, one after the other; the last bar is their product. Green: less, orange: more",
            loc="left",
        )
        drawing = svg(page, name, alt)
    return Drawn(
        drawing,
        "Where the saving went: FLOPs × seconds per FLOP"
        + (" × watts" if any(parts.watts is not None for _, parts in known) else ""),
        alt,
    )


def _bars(row: Row, parts: paired.Decomposition) -> list[tuple[str, float, float]]:
    """(name, from, to) in logs of the cost ratio: each begins where the last ended, the total at 0."""
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
