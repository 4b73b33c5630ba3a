"""The sheet that a picture is drawn on: colours for light and dark, an axis of savings, SVG of stable bytes.

Text stays text, so that it can be read aloud, searched and shown in any script; it is set in DejaVu Sans, whose widths
the layout assumes, with narrower fallbacks. Coordinates have two decimals, a hundredth of a point. A page that is dark
turns ink and paper by CSS; the colours of series are seen on both.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from energybench.report import axes as axis_kinds
from energybench.report.palette import BAND, DARK, GRID, INK, MUTED, PAPER
from energybench.report.palette import SERIES as SERIES
from energybench.verdict import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 8.0
LONGEST = 10_000  # characters of a name that anybody compares
KEY = re.compile(r"(?<=[\[,])[\w.-]+=")  # of a parameter in a method's name: gradsamp[skip=every:5]
NAME = 30  # characters of a name inside a picture; the tables have it whole
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "energybench",
    "svg.id": None,
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "path.simplify": False,
    "axes.axisbelow": True,
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished drawing and the words for it."""

    svg: str
    caption: str
    alt: str


@dataclass(slots=True)
class Sheet:
    """A figure whose margins are given in inches, so that nothing depends on how wide a font is drawn."""

    figure: Figure
    height_in: float
    used: list[Axes] = field(default_factory=list)

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """All four in inches from the lower left corner."""
        w, h = WIDTH_IN, self.height_in
        axes = self.figure.add_axes((left / w, bottom / h, max(width, 0.2) / w, max(height, 0.2) / h))
        self.used.append(axes)
        return axes


def legend(sheet: Sheet, axes: Axes, entries: Sequence[tuple[Any, str]], right_in: float) -> None:
    """To the right of the axes, from the top; `right_in`: the margin there."""
    handles, labels = [handle for handle, _ in entries], distinct([label for _, label in entries], 26)
    box = axes.get_position()
    sheet.figure.legend(
        handles,
        labels,
        loc="upper left",
        borderaxespad=0.0,
        handlelength=1.4,
        labelspacing=0.35,
        bbox_to_anchor=(1 - (right_in - 0.12) / WIDTH_IN, box.y1),
    )


@cache
def _parameters() -> dict[str, Any]:
    """matplotlib's own style and ours upon it, validated once: half of drawing a small picture is reading the style."""
    from matplotlib import rcParams, style

    with style.context(["default", STYLE]):
        return {key: dict.__getitem__(rcParams, key) for key in dict.keys(rcParams) if key != "backend"}


@contextmanager
def sheet(height_in: float) -> Iterator[Sheet]:
    """A sheet of 8 inches by `height_in`, under our style and nobody's matplotlibrc."""
    from matplotlib import rc_context, rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(), warnings.catch_warnings():
        dict.update(cast("dict[str, Any]", rcParams), _parameters())
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's own fonts have it
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure = Figure(figsize=(WIDTH_IN, height_in))
        FigureCanvasSVG(figure)
        yield Sheet(figure, height_in)


def svg(drawing: Sheet, name: str, title: str) -> str:
    """The drawing as one `<svg>` element. `name`: what its ids begin with, so that a page can hold many.

    Must be called inside the `sheet` block. The same drawing gives the same text.
    """
    out = io.StringIO()
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawing.figure.savefig(out, format="svg", metadata=bare)
    return _tidy(out.getvalue(), name, title)


SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
FONTS = "'DejaVu Sans', Verdana, Arial, sans-serif"
GEOMETRY = ("d", "x", "y", "width", "height", "transform", "points")


def _tidy(text: str, name: str, title: str) -> str:
    """Two decimals, ids of its own, a title for who hears it, and the colours of a dark page."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(text)
    wanted = {
        value
        for element in root.iter()
        for key, value in element.attrib.items()
        if key in (f"{{{XLINK}}}href", "clip-path")
    }
    wanted = {value.removeprefix("url(").strip("#)") for value in wanted}
    for element in root.iter():
        for key in GEOMETRY:
            if key in element.attrib and element is not root:
                element.set(
                    key,
                    re.sub(
                        r"-?\d+\.\d+",
                        lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."),
                        " ".join(element.get(key, "").split()),
                    ),
                )
        link = f"{{{XLINK}}}href"
        if element.get("id") in wanted:
            element.set("id", f"{name}-{element.get('id')}")
        else:
            element.attrib.pop("id", None)
        if link in element.attrib:
            element.set(link, f"#{name}-{element.get(link, '')[1:]}")
        if "clip-path" in element.attrib:
            element.set("clip-path", element.get("clip-path", "").replace("url(#", f"url(#{name}-"))
        if element.tag == f"{{{SVG}}}text":
            element.set("style", element.get("style", "").replace("'DejaVu Sans'", FONTS))
    for old in [child for child in root if child.tag.endswith(("metadata", "title"))]:
        root.remove(old)
    heading = ElementTree.Element(f"{{{SVG}}}title")
    heading.text = wording.clean(title)
    rules = ElementTree.Element(f"{{{SVG}}}style")
    rules.text = DARK_RULES
    root[:0] = [heading, rules]
    root.set("role", "img")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _dark_rules() -> str:
    """Only on a screen: what is printed stays light."""
    rules = [
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    ]
    return f"@media screen and (prefers-color-scheme:dark){{{''.join(rules)}}}"


DARK_RULES = _dark_rules()


def short(name: str, most: int = NAME) -> str:
    """A name in one line of a picture."""
    text = wording.plain(wording.clean(name)).strip() or wording.NOTHING
    return text if len(text) <= most else f"{text[: most - 1]}…"


def distinct(names: Sequence[str], most: int = NAME) -> list[str]:
    """Names in one line each, no two the same: a long one loses its keys, then its middle; twins are numbered."""
    whole = [short(name, LONGEST) for name in names]
    keyless = [KEY.sub("", name) for name in whole]
    if any(len(name) > most for name in whole) and len({*keyless}) == len({*whole}):
        whole = keyless
    tails = ((most - 1) * 3 // 4, most - 1, 1)  # characters kept of the end: names differ there more often than before
    tail = next(
        (tail for tail in tails if len({_squeezed(name, most, tail) for name in whole}) == len({*whole})), tails[0]
    )
    shown: list[str] = []
    for name in whole:
        text = _squeezed(name, most, tail)
        number = 2
        while text in shown:
            mark = f"·{number}"
            text = _squeezed(name, most - len(mark), tail - len(mark)) + mark
            number += 1
        shown.append(text)
    return shown


def _squeezed(text: str, most: int, tail: int) -> str:
    """At most so many characters, of which `tail` are the end's."""
    tail = max(tail, 1)
    return text if len(text) <= most else f"{text[: max(most - 1 - tail, 0)]}…{text[-tail:]}"


def listed(parts: Sequence[str], most: int = 6) -> str:
    """Some sentences' parts, and how many more there are."""
    more = f"; and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more


# ── the axis of savings ───────────────────────────────────────────────────────────────────────────────────────

FARTHEST = math.log(1000)  # a thousand times more or less lies at the edge
TICKS = (
    0,
    50,
    -100,
    75,
    -300,
    25,
    -50,
    90,
    -900,
    10,
    -10,
    95,
    -25,
    99,
    35,
    -200,
    5,
    -5,
    65,
    15,
    -15,
    2,
    -2,
    1,
    -1,
    0.5,
    -0.5,
)


def place(saving_rel: float) -> float:
    """−ln(1 − saving): half the cost lies as far to the right as twice the cost to the left."""
    if math.isnan(saving_rel):
        return 0.0
    cost = 1 - saving_rel
    if cost <= 0:
        return FARTHEST
    return max(-FARTHEST, min(FARTHEST, -math.log(cost))) if math.isfinite(cost) else -FARTHEST


def savings_axis(axes: Axes, points: Iterable[float], reaches: Iterable[float], margin: float) -> tuple[float, float]:
    """Limits, ticks, the line of no saving and the band of the margin; in places. Returns the limits.

    points: always inside, outliers in a strip of their own; reaches: ends of whiskers, inside up to a factor of 3
    beyond the points
    """
    band = place(margin) if 0 < margin < 1 else 0.0
    points = list(points)
    least = [-3 * band, 3 * band, -0.05, 0.05]
    low, high = min([*points, *least]), max([*points, *least])
    ends = list(reaches)
    low = max(low - math.log(3), min([low, *ends]))
    high = min(high + math.log(3), max([high, *ends]))
    pad = 0.05 * (high - low)
    low, high = low - pad, high + pad
    apart = axis_kinds.outliers(points, least)
    if apart is None:
        axes.set_xlim(low, high)
        chosen = _savings_ticks(low, high)
        axes.set_xticks(chosen, [_saving_at(tick) for tick in chosen])
    else:
        axis_kinds.strip(axes, "x", apart, (low, high), _savings_ticks, _saving_at)
    axes.grid(axis="x")
    axes.axvspan(-band, band, color=BAND, linewidth=0, zorder=0.5)
    axes.axvline(0, color=MUTED, linewidth=1.0, zorder=1)
    return low, high


def _savings_ticks(low: float, high: float) -> list[float]:
    """Places of round savings, far enough from each other."""
    chosen: list[float] = []
    for tick in TICKS:
        at = place(tick / 100)
        if low <= at <= high and all(abs(at - other) > (high - low) / 9 for other in chosen):
            chosen.append(at)
    return chosen


def _saving_at(at: float) -> str:
    """A place as the saving that lies there: -50 %."""
    percent = float(f"{-100 * math.expm1(-at):.3g}") + 0.0  # without a negative zero
    return f"{percent:g} %".replace("-", "\N{MINUS SIGN}")


def whisker(axes: Axes, low: float, high: float, y: float, color: str, limits: tuple[float, float]) -> None:
    """A horizontal interval; an arrow where it goes on beyond the picture."""
    left, right = limits
    inside = max(low, left), min(high, right)
    axes.plot(inside, (y, y), color=color, linewidth=1.6, solid_capstyle="butt", zorder=3)
    for end, beyond, arrow in ((inside[0], low < left, "<"), (inside[1], high > right, ">")):
        axes.plot(
            [end],
            [y],
            marker=arrow if beyond else "|",
            color=color,
            markersize=5 if beyond else 6,
            clip_on=False,
            zorder=3,
            linestyle="none",
        )
