"""Tables of the HTML page: what matters first, and a column that says the same in every row said once, above it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from energybench.verdict import sentences, wording
from energybench.verdict.figures import Row, Summary, Workload

Said = list[tuple[str, str]]  # (column, what it says in every row)


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table of results: a method on a workload, and where the page says more about it."""

    workload: Workload
    row: Row
    anchor: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """Of the table of results. `numbers`: what the cells are sorted by; empty where they are sorted as texts."""

    title: str
    kind: str  # how cells are drawn: workload, method, verdict, measured, quality, number, date, trial or text
    cells: tuple[str, ...]
    numbers: tuple[float | None, ...] = ()
    words: tuple[str, ...] = ()  # the verdict on each, beside it


@dataclass(frozen=True, slots=True)
class Listed:
    """A table of the index of all runs: its columns, and where each row leads to."""

    columns: tuple[Column, ...]
    said: Said
    hrefs: tuple[str, ...]
    rows: tuple[Row, ...] = ()  # whose figures are in it
    places: tuple[str, ...] = ()  # suite, workload and device of each, where a narrow screen has no columns for them


@dataclass(frozen=True, slots=True)
class Results:
    """The table of results, and what its rows have in common."""

    rows: tuple[Result, ...]
    columns: tuple[Column, ...]
    said: Said


def results(summary: Summary) -> Results:
    """Method, verdict, measured and quality first; then what was promised, one column where the promises agree."""
    rows = tuple(
        Result(workload, row, f"w{w}-m{m}", tuple(sentences.notes(row, workload.metric or "quality")))
        for w, workload in enumerate(summary.workloads)
        for m, row in enumerate(workload.rows)
    )
    figures_of = [result.row for result in rows]
    of = [measured_of(row) for row in figures_of]
    kinds = {each for each in of if each != wording.NOTHING}
    one = f" {kinds.pop()}" if len(kinds) == 1 else ""
    metrics = {workload.metric for workload in summary.workloads}
    quality = f"{(metrics.pop() if len(metrics) == 1 else None) or 'quality'} Δ"
    first = [
        Column("workload", "workload", tuple(r.workload.name for r in rows)),
        Column("method", "method", tuple(row.method for row in figures_of)),
        Column("verdict", "verdict", tuple(row.verdict for row in figures_of)),
        measured_column(f"measured{one} [95 %]", figures_of),
        quality_column(quality, figures_of),
    ]
    promised = [
        claimed_column(figures_of),
        _figures("estimated", figures_of, lambda r: wording.nominal(r.estimated_rel, r), lambda r: r.estimated_rel),
        _figures("counted", figures_of, wording.counted, lambda r: r.counted_rel),
    ]
    last = [
        _figures("realised", figures_of, wording.realised, lambda r: r.realised_rel),
        _figures("blocks", figures_of, lambda r: str(r.n), lambda r: float(r.n)),
    ]
    if not one:
        last.insert(0, Column("of", "text", tuple(of)))
    columns, said = without_constants(
        [*first, *_agreeing(promised), *last], keep={"method", "verdict", "measured", "quality"}, alone={"workload"}
    )
    return Results(rows, tuple(columns), said)


def _figures(
    title: str, rows: Sequence[Row], text: Callable[[Row], str], value: Callable[[Row], float | None]
) -> Column:
    return Column(title, "number", tuple(map(text, rows)), tuple(map(value, rows)))


def measured_of(row: Row) -> str:
    """In what a method was measured: "time", "energy (gpu)"."""
    return wording.NOTHING if row.measured is None else wording.what(row.measured.quantity, row.measured.scope)


def measured_column(title: str, rows: Sequence[Row]) -> Column:
    """Each saving with its interval."""
    savings = tuple(None if row.measured is None else row.measured.saving_rel for row in rows)
    return Column(title, "measured", tuple(wording.measured(row.measured) for row in rows), savings)


def quality_column(title: str, rows: Sequence[Row]) -> Column:
    """What each method changed of the quality, and whether it is held."""
    changes = tuple(row.quality.change if row.quality else None for row in rows)
    words = tuple(map(wording.quality_word, rows))
    return Column(title, "quality", tuple(wording.quality_change(row.quality) for row in rows), changes, words)


def claimed_column(rows: Sequence[Row]) -> Column:
    """What each method's authors promise."""
    return _figures("claimed", rows, lambda r: wording.percent(r.claimed_rel), lambda r: r.claimed_rel)


def _agreeing(columns: Sequence[Column]) -> list[Column]:
    """Neighbours that say the same in every row as one column."""
    merged = [columns[0]]
    for before, after in pairwise(columns):
        if before.cells == after.cells and any(cell != wording.NOTHING for cell in after.cells):
            known = merged[-1]
            merged[-1] = Column(f"{known.title} = {after.title}", known.kind, known.cells, known.numbers)
        else:
            merged.append(after)
    return merged


def without_constants(
    columns: Sequence[Column], keep: Collection[str], alone: Collection[str] = ()
) -> tuple[list[Column], Said]:
    """The columns whose rows differ, and what the others say in every row.

    Args:
        columns: of one table
        keep: kinds and titles that stay whatever they say
        alone: titles that go even where the table has a single row, in which nothing can differ
    """
    shown: list[Column] = []
    said: Said = []
    for column in columns:
        many = len(column.cells) > 1 or column.title in alone
        if many and len(set(column.cells)) == 1 and not {column.kind, column.title} & set(keep):
            said.append((column.title, column.cells[0]))
        else:
            shown.append(column)
    return shown, said


def trials(lines: Sequence[Mapping[str, Any]]) -> tuple[tuple[Column, ...], Said]:
    """Of the table of trials, a line each: its record, where it stands, and what it took."""
    numbers = ("block", "seconds", "joules", "quality")
    columns = [
        Column("trial", "trial", tuple(line["trial"] for line in lines)),
        *(_text(name, lines) for name in ("workload", "method")),
        *(
            Column(
                name,
                "number",
                tuple(str(line.get(f"{name}_text", line[name])) for line in lines),
                tuple(line[name] for line in lines),
            )
            for name in numbers
        ),
        *(_text(name, lines) for name in ("flags", "state")),
    ]
    shown, said = without_constants(columns, keep={"trial"})
    return tuple(shown), said


def _text(name: str, lines: Sequence[Mapping[str, Any]]) -> Column:
    return Column(name, "text", tuple(line[name] for line in lines))


@dataclass(frozen=True, slots=True)
class Texts:
    """A table of texts, less the columns that say the same in every row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    said: Said


def texts(head: Sequence[str], rows: Sequence[Sequence[str]], keep: Collection[str] = ()) -> Texts:
    """keep: columns that stay, since their figures are read one by one."""
    columns = [Column(title, "text", tuple(row[at] for row in rows)) for at, title in enumerate(head)]
    shown, said = without_constants(columns, keep)
    cells = tuple(zip(*(column.cells for column in shown), strict=True))
    return Texts(tuple(column.title for column in shown), cells, said)
