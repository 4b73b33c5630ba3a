"""A figure counted here beside the one that a paper prints, and what may be said of the two.

Three kinds, never in one count: "printed" stands in the paper, "fitted" is a figure from which our rule was read off,
"ours" is printed nowhere. A printed figure that this project does not hold is null with its reason and is compared with
nothing. page.py prints tables of these; no torch is needed to read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

CellKind = Literal["printed", "fitted", "ours"]
NOT_HELD = "the paper prints it; this project holds no copy of that figure"
NOT_PRINTED = "no paper prints it"
NONE = "–"  # in a table, where there is no figure

# What a row is, in a word, and what the word means.
WORDS = {
    "reproduced": "the paper prints it, and our functions give it to its last digit",
    "differs": "the paper prints another figure than our functions give",
    "not held": "the paper prints it, but this project holds no copy of it: counted, and compared with nothing",
    "fitted": "our rule was read off this very figure, so that they agree says nothing",
    "ours": NOT_PRINTED,
}


@dataclass(frozen=True)
class Cell:
    """One figure.

    counted: what our functions give, with as many digits as the paper prints
    value:   the same, not rounded
    printed: the paper's text of it; of a fitted one what was read off the paper; None: `reason` says why there is none
    differs: it is known that the paper has another figure, though not which
    """

    counted: str
    value: float
    kind: CellKind
    printed: str | None
    reason: str | None
    differs: bool = False

    @property
    def difference(self) -> str | None:
        """counted − printed, of the figures as they are printed; None where nothing is compared."""
        if self.printed is None:
            return None
        apart = _decimal(self.counted) - _decimal(self.printed)
        return f"{apart:+}" if apart else f"{abs(apart)}"

    @property
    def agrees(self) -> bool | None:
        """Whether both are the same to the last printed digit; None where that is not known."""
        if self.printed is None:
            return False if self.differs else None
        return _decimal(self.counted) == _decimal(self.printed)

    @property
    def word(self) -> str:
        """One of WORDS."""
        if self.kind == "ours":
            return "ours"
        if self.agrees is None:
            return "not held"
        if not self.agrees:
            return "differs"
        return "fitted" if self.kind == "fitted" else "reproduced"


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


def printed(
    value: float, figure: str | None, decimals: int = 0, reason: str = NOT_HELD, *, differs: bool = False
) -> Cell:
    """A figure that a paper prints.

    Args:
        value:    what our functions give
        figure:   the paper's text; None: it is not held here
        decimals: how many digits behind the point the table has, for a figure that is not held
        reason:   why it is not held
        differs:  that it is known to be another, though it is not held
    """
    if figure is None:
        return Cell(f"{value:.{decimals}f}", float(value), "printed", None, reason, differs)
    return _held(value, "printed", figure)


def fitted(value: float, figure: str) -> Cell:
    """A figure of which our rule was read off."""
    return _held(value, "fitted", figure)


def ours(value: float, decimals: int = 0, thousands: bool = False) -> Cell:
    """A figure that no paper prints."""
    return Cell(f"{value:{',' * thousands}.{decimals}f}", float(value), "ours", None, NOT_PRINTED)


def _held(value: float, kind: CellKind, figure: str) -> Cell:
    return Cell(f"{value:.{len(figure.partition('.')[2])}f}", float(value), kind, figure, None)


@dataclass(frozen=True)
class Row:
    """labels: what its figures are of, a text for each of the table's headings; cells: one for each of its figures."""

    labels: Sequence[str]
    cells: Sequence[Cell]

    @property
    def word(self) -> str:
        """One of WORDS: a table's rows are of one kind each."""
        (word,) = {cell.word for cell in self.cells}
        return word


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper, or a table about it, as counted here.

    headings: of the labels of a row
    figures:  of its cells; a table with printed or fitted figures has a single one, and so a row for each of them
    unit:     of every figure; empty where the headings say it
    """

    title: str
    headings: Sequence[str]
    figures: Sequence[str]
    rows: Sequence[Row]
    sentence: str
    unit: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if (len(row.labels), len(row.cells)) != (len(self.headings), len(self.figures)):
                raise ValueError(f"{self.title}: {row.labels} has other columns than the table")
        if self.compares and len(self.figures) != 1:
            raise ValueError(f"{self.title}: a figure that is compared has a row of its own")

    @property
    def compares(self) -> bool:
        return any(cell.kind != "ours" for row in self.rows for cell in row.cells)

    @property
    def numbers(self) -> list[str]:
        """The headings of its figures: of one that is compared what the paper has, what is counted, and the rest."""
        if not self.compares:
            return [*self.figures]
        read_off = all(cell.kind == "fitted" for row in self.rows for cell in row.cells)
        return ["read off" if read_off else "printed", "counted", "difference"]

    def facts(self) -> dict[str, Any]:
        """As `energybench claims --json` has it: every figure by itself, in `cells`."""
        cells = [
            {
                "labels": dict(zip(self.headings, row.labels, strict=True)),
                "figure": figure,
                "kind": cell.kind,
                "word": cell.word,
                "printed": cell.printed,
                "counted": cell.counted,
                "difference": cell.difference,
                "agrees": cell.agrees,
                "value": cell.value,
                "reason": cell.reason,
            }
            for row in self.rows
            for figure, cell in zip(self.figures, row.cells, strict=True)
        ]
        return {
            "title": self.title,
            "unit": self.unit,
            "columns": [*self.headings, *self.numbers, "kind"],
            "numbers": self.numbers,
            "compares": self.compares,
            "rows": [[*row.labels, *_texts(row, self.compares), row.word] for row in self.rows],
            "cells": cells,
            "sentence": self.sentence,
        }


def _texts(row: Row, compares: bool) -> list[str]:
    """printed, counted and difference of the one figure, or every figure of a row that compares nothing."""
    if not compares:
        return [cell.counted for cell in row.cells]
    (cell,) = row.cells
    return [cell.printed or NONE, cell.counted, cell.difference or NONE]


@dataclass(frozen=True)
class PublishedPaper:
    """A paper, its own counting rule, and its tables."""

    name: str
    source: str
    rule: str  # how it counts
    tables: Sequence[PublishedTable]

    def facts(self) -> dict[str, Any]:
        tables = [table.facts() for table in self.tables]
        return {"name": self.name, "source": self.source, "rule": self.rule, "tables": tables}


def counts(papers: Iterable[PublishedPaper]) -> dict[str, dict[str, int]]:
    """How many figures of each kind there are, and what became of them: one count for each kind, and no sum of them."""
    words = [cell.word for paper in papers for table in paper.tables for row in table.rows for cell in row.cells]
    kinds = [cell.kind for paper in papers for table in paper.tables for row in table.rows for cell in row.cells]
    both = list(zip(kinds, words, strict=True))
    return {
        "printed": {
            "figures": kinds.count("printed"),
            "reproduced": words.count("reproduced"),
            "differ": both.count(("printed", "differs")),
            "not_held": words.count("not held"),
        },
        "fitted": {"figures": kinds.count("fitted"), "differ": both.count(("fitted", "differs"))},
        "ours": {"figures": kinds.count("ours")},
    }
