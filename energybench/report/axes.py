"""Axes that suit their figures: whole epochs, a logarithm over decades, a strip for what lies far from all the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from energybench.report.palette import BAND, MUTED

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

DECADE = 10.0  # over more than one, a linear axis has the lesser values in its last tenth
FAR = 3.0  # times the span of the rest: so wide is the gap before an outlier
MOST_FAR = 1 / 3  # of the values: more are no outliers
FEWEST = 4  # values among which one can lie out
CUTS = 8  # of the widest gaps, where the rest may end
STRIP, GAP = 0.14, 0.05  # of an axis' length
NOTE = "shaded: outliers, another scale"


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithm shows these better. Never of what is not all above 0."""
    return bool(values) and min(values) > 0 and max(values) > DECADE * min(values)


def logarithms(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[bool, bool]:
    """Of curves as (x, y): whether x is logarithmic, since some end far sooner than others; and whether y is."""
    ends = [xs[-1] for xs, _ in curves]
    positive = all(x > 0 for xs, _ in curves for x in xs)
    return positive and spans_decades(ends), spans_decades([y for _, ys in curves for y in ys])


def log_axis(axes: Axes, which: str, values: Sequence[float], most: int = 7) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each decade, or at 1 alone where there are many.

    Args:
        axes: of a picture
        which: "x" or "y"
        values: what is drawn, all above 0
        most: ticks that the axis has room for
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    decades = math.log10(max(values) / min(values))
    digits = (1.0, 2.0, 5.0) if 3 * decades < most else (1.0,)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=digits, numticks=most))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def whole_numbers(axes: Axes, nbins: int = 8) -> None:
    """Ticks of the horizontal axis at whole epochs alone."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=nbins, integer=True, min_n_ticks=1))


@dataclass(frozen=True, slots=True)
class Apart:
    """Where the rest lies, and what lies out below and above it, each from its least to its greatest."""

    below: tuple[float, float] | None
    rest: tuple[float, float]
    above: tuple[float, float] | None


def outliers(values: Sequence[float], always: Sequence[float] = ()) -> Apart | None:
    """What would flatten the rest of an axis; None where nothing does.

    Args:
        values: finite, of what is drawn
        always: what the rest spans anyway: zero, a margin
    """
    ordered = sorted(values)
    n = len(ordered)
    if n < FEWEST:
        return None
    most = int(n * MOST_FAR)
    lows, highs = _cuts(ordered, range(1, most + 1)), _cuts(ordered, range(n - most, n))
    best: tuple[int, int] | None = None
    for start in (0, *lows):
        for end in (n, *highs):
            if end - start >= n - most and _is_apart(ordered, start, end, always):
                best = min(best or (start, end), (start, end), key=lambda cut: cut[1] - cut[0])
    if best is None:
        return None
    start, end = best
    rest = [*ordered[start:end], *always]
    below, above = ordered[:start], ordered[end:]
    return Apart(
        (below[0], below[-1]) if below else None, (min(rest), max(rest)), (above[0], above[-1]) if above else None
    )


def _cuts(ordered: Sequence[float], places: range) -> list[int]:
    """The places with the widest gaps before them."""
    return sorted(places, key=lambda at: ordered[at - 1] - ordered[at])[:CUTS]


def _is_apart(ordered: Sequence[float], start: int, end: int, always: Sequence[float]) -> bool:
    n = len(ordered)
    if start == 0 and end == n:
        return False
    rest = (ordered[start], ordered[end - 1], *always)
    low, high = min(rest), max(rest)
    far = FAR * (high - low)
    below = start == 0 or low - ordered[start - 1] > far
    above = end == n or ordered[end] - high > far
    return below and above and high > low


def strip(
    axes: Axes,
    which: str,
    apart: Apart,
    limits: tuple[float, float],
    ticks: Callable[[float, float], Sequence[float]] | None = None,
    label: Callable[[float], str] = lambda value: f"{value:.3g}".replace("-", "\N{MINUS SIGN}"),
) -> None:
    """Gives outliers a shaded strip at the end of an axis, with a scale of its own.

    Args:
        axes: of a picture whose limits are not yet set
        which: "x" or "y"
        apart: what lies out
        limits: of everything that is drawn on the axis
        ticks: chooses those of the rest from its two ends; by default as matplotlib does
        label: how a tick is written
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

    places = _places(apart, limits)
    outer = places[0][0], places[-1][0]
    low, high = places[2 if apart.below else 0][0], places[-3 if apart.above else -1][0]
    getattr(axes, f"set_{which}scale")("function", functions=_piecewise(places))
    getattr(axes, f"set_{which}lim")(*outer)
    shade = axes.axvspan if which == "x" else axes.axhspan
    line = axes.axvline if which == "x" else axes.axhline
    for far, edges in ((apart.below, places[:2]), (apart.above, places[-2:])):
        if far:
            shade(edges[0][0], edges[1][0], color=BAND, linewidth=0, zorder=0.4)
            line(edges[1][0] if far is apart.below else edges[0][0], color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    chosen = list((ticks or (lambda a, b: MaxNLocator(5).tick_values(a, b)))(low, high))
    chosen = [tick for tick in chosen if low <= tick <= high]
    for far, outermost in ((apart.below, 0), (apart.above, 1)):
        if far:
            chosen += [far[outermost]] if which == "x" else sorted(set(far))
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(chosen))
    axis.set_major_formatter(FixedFormatter([label(tick) for tick in chosen]))


def _places(apart: Apart, limits: tuple[float, float]) -> list[tuple[float, float]]:
    """(value, where on the axis from 0 to 1), upwards: ends of the strip below, of the rest, of the strip above."""
    low, high = apart.rest
    pad = 0.06 * (high - low)
    low = low - pad if apart.below else min(limits[0], low) - pad
    high = high + pad if apart.above else max(limits[1], high) + pad
    places, begin, end = [], 0.0, 1.0
    if apart.below:
        least, most = apart.below
        room = max(0.25 * (most - least), pad)
        places = [(min(least - room, limits[0]), 0.0), (min(most + room, (most + low) / 2), STRIP)]
        begin = STRIP + GAP
    after = []
    if apart.above:
        least, most = apart.above
        room = max(0.25 * (most - least), pad)
        after = [(max(least - room, (least + high) / 2), 1.0 - STRIP), (max(most + room, limits[1]), 1.0)]
        end = 1.0 - STRIP - GAP
    return [*places, (low, begin), (high, end), *after]


def _piecewise(places: Sequence[tuple[float, float]]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Linear between the places, and on beyond them as at their ends."""
    import numpy as np

    known, drawn = np.array([value for value, _ in places]), np.array([at for _, at in places])

    def through(values: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        values = np.asarray(values, dtype=float)
        inside = np.interp(values, a, b)
        before = b[0] + (values - a[0]) * (b[1] - b[0]) / (a[1] - a[0])
        after = b[-1] + (values - a[-1]) * (b[-1] - b[-2]) / (a[-1] - a[-2])
        return np.where(values < a[0], before, np.where(values > a[-1], after, inside))

    return (lambda values: through(values, known, drawn)), (lambda values: through(values, drawn, known))
