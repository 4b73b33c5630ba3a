"""Pictures of savings: the ladder of four numbers, where the saving went, quality against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from energybench.records.record import Trial
from energybench.report.canvas import (
    FARTHEST,
    INK,
    MUTED,
    PAPER,
    SERIES,
    WIDTH_IN,
    Drawn,
    legend,
    listed,
    place,
    savings_axis,
    sheet,
    short,
    svg,
    whisker,
)
from energybench.report.figures_trials import cells, looks
from energybench.stats import paired
from energybench.verdict import pairing, wording
from energybench.verdict.figures import Measured, Row, Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 24  # methods in one picture; the table has all
LANE_IN, LEFT_IN, RIGHT_IN = 0.17, 1.05, 2.15
FOUR = (("claimed", "D", PAPER), ("estimated", "s", PAPER), ("counted", "s", INK), ("measured", "o", SERIES[0]))


def _some(rows: Sequence[Row], most: int = MOST) -> str:
    return f" The first {most} of {len(rows)} methods; the table has all." if len(rows) > most else ""


def _interval(figure: Measured | None) -> tuple[float, float] | None:
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


def ladder(workload: Workload, noise: float, name: str) -> Drawn | str:
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
        intervals = [interval for row in shown if (interval := _interval(row.measured))]
        limits = savings_axis(
            axes,
            [place(value) for row in shown for value in _numbers(row) if value is not None],
            [place(end) for interval in intervals for end in interval],
            noise,
        )
        for row, heights in zip(shown, _headings(axes, shown, lanes).y, strict=True):
            for (what, marker, face), value, y in zip(FOUR, _numbers(row), heights, strict=True):
                color = (MUTED if row.struck else SERIES[0]) if what == "measured" else INK
                text = wording.percent(value) if what != "measured" else wording.measured(row.measured)
                if value is None:
                    _value(axes, y, wording.NOTHING, MUTED)
                    continue
                if what == "measured" and (interval := _interval(row.measured)):
                    whisker(axes, place(interval[0]), place(interval[1]), y, color, limits)
                if what == "measured" and row.struck:
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
            f"saved against {workload.plain} in the same block; costs to the left. "
            f"Band: ±{wording.plain(wording.margin(noise))} noise. Whisker: the table's interval",
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


def where(workload: Workload, noise: float, name: str) -> Drawn | str:
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
        intervals = [interval for row, _ in known if (interval := _interval(row.measured))]
        reaches = [place(end) for interval in intervals for end in interval]
        limits = savings_axis(axes, [max(-FARTHEST, min(FARTHEST, -end)) for end in ends], reaches, noise)
        for (row, parts), heights in zip(known, _headings(axes, rows[:MOST], lanes).y, strict=True):
            bars = _bars(row, parts)
            for (what, start, stop), y in zip(bars, heights, strict=True):
                total, less = what == bars[-1][0], stop <= start
                color = (MUTED if row.struck else INK) if total else SERIES[2 if less else 1]
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
                if total and (interval := _interval(row.measured)):
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
        pairs = [pair for pair in pairing.pairs(ours, plain) if pair.ours.block in judged]
        if energy and not pairing.sensors_of(pairs):
            continue
        each = []
        for pair in pairs:
            a, b = pair.ours.quality.get(metric), pair.plain.quality.get(metric)
            if a is not None and b is not None and math.isfinite(a) and math.isfinite(b):
                change = pairing.change([pair], "energy" if energy else "time")
                each.append((place(change.saving), a - b))
        if not each:
            continue
        row = rows.get(label)
        figure = row and (row.measured if energy else row.time)
        interval = _interval(figure or None)
        reach = (place(interval[0]), place(interval[1])) if interval else None
        mean = [math.fsum(axis) / len(each) for axis in zip(*each, strict=True)]
        found.append(Point(label, mean[0], mean[1], tuple(each), reach, row))
    return found


def trade_off(workload: Workload, trials: Sequence[Trial], noise: float, name: str) -> Drawn | str:
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
    names = [workload.plain, *(p.label for p in points)]
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
            noise,
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
        entries.append((origin, workload.plain))
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
        axes.set_title(f"{short(workload.metric)} against {workload.plain}{f', {unit}' if unit else ''} (up is better)")
        axes.set_xlabel(
            f"{what} saved. Dashed: the loss that the suite accepts. Dotted: front of the means", loc="left"
        )
        legend(page, axes, entries, right)
        drawing = svg(page, name, alt)
    return Drawn(drawing, f"{workload.metric} against {what}: blocks and means", alt)
