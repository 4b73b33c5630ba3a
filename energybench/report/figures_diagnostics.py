"""Pictures of what methods say of themselves, by the shape of what they recorded: no method is known by name here.

"histograms": [{"name", "from", "to", "density": [...], "fitted": [...]}, ...]    bars, and the fitted line
    beside "tensors": [{"name", "ks", "ks_n", "ks_passes"}, ...]                  goodness of fit, in the title
"scatter": [{"name", "against", "x": [...], "y": [...], "rank_correlation"}, ...]   a point for each sample
"bounded": [{"epoch", "observed", bound, ...}, ...]                               a line below dashed ones, logarithmic
"...": [{"epoch", figure, ...}, ...]                                              a line for each figure that moves
"...": {"0.8": 120, "0.5": 40}                                                    a bar for each number
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energybench.records.record import Trial
from energybench.report import axes as axis_kinds
from energybench.report.canvas import WIDTH_IN, Drawn, Sheet, listed, sheet, short, svg
from energybench.report.palette import INK, MUTED, SERIES
from energybench.verdict import wording
from energybench.verdict.examination import Examination

PANELS, COLUMNS, BARS, BINS, POINTS = 9, 3, 12, 400, 2000
BARS_NAMED = 4  # of a panel's bars
EACH_IN, GAP_IN = 1.25, 0.62
BELOW_ABOVE = (("--", "top"), (":", "bottom"))  # a bound's line, and where its name stands


@dataclass(frozen=True, slots=True)
class Histogram:
    name: str
    edges: tuple[float, float]
    density: tuple[float, ...]
    fitted: tuple[float, ...]
    fit: str  # "KS 0.04 of n = 144: passes"; empty where nothing was tested


@dataclass(frozen=True, slots=True)
class OverEpochs:
    name: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ByNumber:
    name: str
    keys: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bounded:
    """What was observed, and bounds on its mean by name; all above 0, as they are drawn on a logarithmic axis."""

    epochs: tuple[float, ...]
    observed: tuple[float, ...]
    bounds: tuple[tuple[str, tuple[float, ...]], ...]
    name: str = "observed"


@dataclass(frozen=True, slots=True)
class Scatter:
    """One figure of each sample against another."""

    name: str
    against: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    rank_correlation: float | None = None


Panel = Histogram | OverEpochs | ByNumber | Bounded | Scatter


def number(value: object) -> float | None:
    """A finite number, else None; a truth value is no number."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if known and math.isfinite(value) else None  # type: ignore[arg-type]


def _numbers(values: object) -> tuple[float, ...]:
    """All of a list, or none of it."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return ()
    known = [number(value) for value in values]
    return tuple(value for value in known if value is not None) if None not in known else ()


def panels(diagnostics: object, name: str = "", depth: int = 0) -> Iterator[Panel]:
    """Everything in a method's diagnostics that has one of the shapes above."""
    if not isinstance(diagnostics, Mapping) or depth > 4:
        return
    for key, value in diagnostics.items():
        title = str(key).replace("_", " ")
        if key == "histograms" and isinstance(value, Sequence):
            yield from _histograms(value, diagnostics.get("tensors"))
        elif key == "scatter" and isinstance(value, Sequence):
            yield from _scatters(value)
        elif key == "bounded" and isinstance(value, Sequence):
            yield from _bounded(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from _over_epochs(value)
        elif isinstance(value, Mapping):
            bars = _by_number(title, value)
            if bars:
                yield bars
            else:
                yield from panels(value, title, depth + 1)


def _histograms(entries: Sequence[Any], tensors: object) -> Iterator[Histogram]:
    tested = (
        {t.get("name"): t for t in tensors if isinstance(t, Mapping) and isinstance(t.get("name"), str)}
        if isinstance(tensors, Sequence)
        else {}
    )
    for entry in entries:
        if not isinstance(entry, Mapping):
            continue
        low, high = number(entry.get("from")), number(entry.get("to"))
        density, fitted = _numbers(entry.get("density")), _numbers(entry.get("fitted"))
        if low is None or high is None or not low < high or not 1 < len(density) <= BINS:
            continue
        name = entry.get("name")
        fit = _fit(tested.get(name)) if isinstance(name, str) else ""
        yield Histogram(str(name or "?"), (low, high), density, fitted if len(fitted) == len(density) else (), fit)


def _fit(tested: Mapping[str, Any] | None) -> str:
    statistic = number(tested.get("ks")) if tested else None
    if tested is None or statistic is None:
        return ""
    n, passes = number(tested.get("ks_n")), tested.get("ks_passes")
    of = f", n {n:.0f}" if n is not None else ""
    fits = ", fits" if passes is True else ", does not fit" if passes is False else ""
    return f"KS {wording.number(statistic, 3)}{of}{fits}"


def _over_epochs(entries: Sequence[Any]) -> Iterator[OverEpochs]:
    rows = [entry for entry in entries if isinstance(entry, Mapping) and number(entry.get("epoch")) is not None]
    if len(rows) < 2 or len(rows) < len(entries):
        return
    for key in dict.fromkeys(key for row in rows for key in row if key != "epoch"):
        known = sorted(
            {
                x: y
                for row in rows
                if (x := number(row.get("epoch"))) is not None and (y := number(row.get(key))) is not None
            }.items()
        )
        if len(known) > 1 and len({y for _, y in known}) > 1:
            yield OverEpochs(str(key).replace("_", " "), tuple(x for x, _ in known), tuple(y for _, y in known))


def _bounded(entries: Sequence[Any]) -> Iterator[Bounded]:
    rows = [entry for entry in entries if isinstance(entry, Mapping)]
    keys = [key for key in rows[0] if key not in ("epoch", "observed")] if rows else []
    lines = {key: _numbers([row.get(key) for row in rows]) for key in ("epoch", "observed", *keys)}
    positive = [key for key in ("observed", *keys) if lines[key] and min(lines[key]) > 0]
    if len(rows) > 1 and lines["epoch"] and "observed" in positive and len(positive) > 1:
        bounds = tuple((str(key), lines[key]) for key in positive if key != "observed")
        yield Bounded(lines["epoch"], lines["observed"], bounds)


def _scatters(entries: Sequence[Any]) -> Iterator[Scatter]:
    for entry in entries:
        if not isinstance(entry, Mapping):
            continue
        x, y = _numbers(entry.get("x")), _numbers(entry.get("y"))
        if 1 < len(x) == len(y) <= POINTS:
            name, against = str(entry.get("name") or "?"), str(entry.get("against") or "?")
            yield Scatter(name, against, x, y, number(entry.get("rank_correlation")))


def _by_number(title: str, counts: Mapping[str, Any]) -> ByNumber | None:
    known = []
    for key, value in counts.items():
        try:
            at, size = float(key), number(value)
        except (TypeError, ValueError):
            return None
        if size is None or not math.isfinite(at):
            return None
        known.append((at, str(key), size))
    if not 1 < len(known) <= BARS:
        return None
    known.sort()
    return ByNumber(title, tuple(key for _, key, _ in known), tuple(size for _, _, size in known))


def diagnostics(workload: str, label: str, trials: Sequence[Trial], examination: Examination, name: str) -> Drawn | str:
    """The first usable trial's, of one cell."""
    usable = examination.usable(trial for trial in trials if trial.method == label)
    trial = min(usable, key=lambda t: (t.block, t.invocation), default=None)
    every = list(panels({"of": trial.diagnostics})) if trial else []
    if trial is None or not every:
        return "nothing in its diagnostics can be drawn"
    shown = every[:PANELS]
    more = f" The first {PANELS} of {len(every)} panels." if len(every) > PANELS else ""
    described = listed([_described(panel) for panel in shown])
    alt = f"What {label} recorded of itself on {workload}, block {trial.block}: {described}.{more}"
    rows = -(-len(shown) // COLUMNS)
    wide = (WIDTH_IN - 0.5 - 0.15 - (COLUMNS - 1) * 0.5) / COLUMNS
    with sheet(rows * (EACH_IN + GAP_IN) + 0.1) as page:
        for at, panel in enumerate(shown):
            row, column = divmod(at, COLUMNS)
            bottom = 0.3 + (rows - 1 - row) * (EACH_IN + GAP_IN)
            _draw(page, panel, (0.5 + column * (wide + 0.5), bottom, wide, EACH_IN))
        drawing = svg(page, name, alt)
    return Drawn(drawing, f"Diagnostics of {label}, block {trial.block}", alt)


def _described(panel: Panel) -> str:
    if isinstance(panel, Histogram):
        return f"{panel.name} {panel.fit or 'as a histogram'}"
    if isinstance(panel, OverEpochs):
        return f"{panel.name} from {panel.values[0]:.3g} to {panel.values[-1]:.3g} over epochs"
    if isinstance(panel, Bounded):
        ends = listed([f"{name} {values[-1]:.3g}" for name, values in panel.bounds])
        reached = f"{panel.observed[0]:.3g} to {panel.observed[-1]:.3g}"
        return f"{panel.name} from {reached}, where its mean is bounded by {ends}"
    if isinstance(panel, Scatter):
        return f"{panel.name} against {panel.against}, {_rank(panel)}"
    return f"{panel.name} " + ", ".join(f"{k}: {v:g}" for k, v in zip(panel.keys, panel.values, strict=True))


def _rank(panel: Scatter) -> str:
    known = panel.rank_correlation
    return "no rank correlation" if known is None else f"rank correlation {wording.number(known, 2)}"


def _draw(page: Sheet, panel: Panel, place: tuple[float, float, float, float]) -> None:
    axes = page.axes(*place)
    axes.locator_params(nbins=4)
    title = short(panel.name, 26)
    if isinstance(panel, Histogram):
        low, high = panel.edges
        width = (high - low) / len(panel.density)
        edges = [low + width * i for i in range(len(panel.density) + 1)]
        axes.locator_params(axis="x", nbins=3)
        axes.stairs(panel.density, edges, fill=True, color=SERIES[0], alpha=0.35, linewidth=0)
        if panel.fitted:
            middle = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
            axes.plot(middle, panel.fitted, color=INK, linewidth=1.2)
        if panel.fit:
            title += f"\n{panel.fit}"
    elif isinstance(panel, OverEpochs):
        axes.plot(panel.epochs, panel.values, color=SERIES[0], marker="o", markersize=3)
        axis_kinds.whole_numbers(axes, 4)
        title += "\nover epochs"
        if axis_kinds.spans_decades(panel.values):
            axis_kinds.log_axis(axes, "y", panel.values)
            title += ", log scale"
    elif isinstance(panel, Scatter):
        axes.plot(panel.x, panel.y, color=SERIES[0], marker=".", markersize=3, linestyle="none", alpha=0.6)
        axes.text(
            0.98, 0.04, short(panel.against, 26), transform=axes.transAxes, ha="right", color=MUTED, fontsize=7
        )  # along the horizontal axis
        title += f"\n{_rank(panel)}"
    elif isinstance(panel, Bounded):
        axes.set_yscale("log", subs=[])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.plot(panel.epochs, panel.observed, color=SERIES[0], linewidth=1.2)
        for (bound, values), (dashes, side) in zip(panel.bounds, itertools.cycle(BELOW_ABOVE), strict=False):
            axes.plot(panel.epochs, values, color=INK, linestyle=dashes, linewidth=1)
            axes.fill_between(panel.epochs, panel.observed, values, color=MUTED, alpha=0.12, linewidth=0)
            axes.annotate(bound, (panel.epochs[-1], values[-1]), ha="right", va=side, color=MUTED, fontsize=7)
        axis_kinds.whole_numbers(axes, 4)
        title += ", and bounds on\nits mean, over epochs, log scale"
    else:
        at = range(len(panel.keys))
        axes.bar(at, panel.values, color=SERIES[0], width=0.6)
        every = -(-len(panel.keys) // BARS_NAMED)
        axes.set_xticks(list(at)[::every], [f"{float(key):.3g}" for key in panel.keys[::every]])
    axes.set_title(title, color=MUTED, fontsize=8)
