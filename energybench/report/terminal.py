"""The report on a terminal: the sentence that matters, one table per workload, what stands behind it.

Words carry the verdict and colour repeats it. A narrow terminal loses whole columns, never a digit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energybench.report import rows, run_lines
from energybench.verdict import sentences, wording
from energybench.verdict.figures import RaisedFlag, Row, Summary, Workload

STYLES = {
    "saves": "bold green",
    "faster": "bold green",
    "costs more": "red",
    "slower": "red",
    "quality lost": "red",
    "quality unproven": "yellow",
    "not reached": "yellow",
}
QUALITY_STYLES = {"held": "green", "lost": "bold red", "open": "yellow"}
LABEL_LEAST = 10  # cells that a method's name needs at the very least
LABEL_ENOUGH = 18  # before another column is given up for it
GAP = 2  # between columns: one cell of padding, one of rule


@dataclass(frozen=True, slots=True)
class Column:
    """A column of figures. `rank`: the highest goes first when the terminal is narrow; 0 always stays."""

    title: str
    cells: tuple[Text, ...]
    rank: int = 0
    justify: str = "right"

    @property
    def width(self) -> int:
        return max(line.cell_len for text in (Text(self.title), *self.cells) for line in text.split() or [Text()])


def _text(text: str, style: str = "") -> Text:
    return Text(wording.plain(wording.clean(text)), style=style)


def _nominal(value: float | None, row: Row) -> Text:
    """In two lines, so that words do not make a column of figures wide."""
    return Text(wording.plain(wording.nominal(value, row).replace(f"not{wording.NB}", "not\n")))


def _counted(row: Row) -> Text:
    """What sampling leaves open stands below."""
    return Text(wording.plain(wording.counted(row).replace(f"not{wording.NB}", "not\n").replace(" ±", "\n±")))


def _columns(workload: Workload, rows: Sequence[Row]) -> list[Column]:
    quantities = {(r.measured.quantity, r.measured.scope) for r in rows if r.measured}
    one = len(quantities) == 1
    title = f"measured {next(iter(quantities))[0]}\n[95 %]" if one else "measured\n[95 %]"

    def measured(row: Row) -> Text:
        text = wording.measured(row.measured)
        if row.measured and not one:
            text += wording.NB + row.measured.quantity
        return _text(text, "strike" if row.verdict_forbidden else "bold")

    def column(name: str, cell: Iterable[str], rank: int) -> Column:
        return Column(name, tuple(_text(text) for text in cell), rank)

    quality = f"{wording.clean(workload.metric or 'quality')} Δ"
    return [
        column("claimed", (wording.percent(r.claimed_rel) for r in rows), 3),
        Column("estimated", tuple(_nominal(r.estimated_rel, r) for r in rows), 1),
        Column("counted", tuple(_counted(r) for r in rows), 2),
        Column(title, tuple(measured(row) for row in rows)),
        column("realised", (wording.realised(r.realised_rel) for r in rows), 5),
        column(quality, (wording.quality_change(r.quality) for r in rows), 4),  # the notes say it too
        Column("quality", tuple(_quality(row) for row in rows), 0, "left"),
        Column("verdict", tuple(_text(r.verdict, STYLES.get(r.verdict, "")) for r in rows), 0, "left"),
    ]


def _quality(row: Row) -> Text:
    """Two words in two lines, so that the narrowest terminal keeps the column."""
    return Text(
        wording.quality_word(row).replace("not judged", "not\njudged"), QUALITY_STYLES.get(row.quality_verdict, "")
    )


def fold(label: str, width: int) -> str:
    """A name over several lines, broken after a separator where one is near, else anywhere."""
    lines = [""]
    for part in re.findall(r"[^ ,;+/_-]*[ ,;+/_-]?", wording.clean(label)):
        if cell_len(lines[-1]) + cell_len(part.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
        lines[-1:] = _chopped(lines[-1], width)
    return "\n".join(line.rstrip() for line in lines if line.strip()) or wording.NOTHING


def _chopped(word: str, width: int) -> list[str]:
    """A word in pieces of at most `width` cells, but at least one character."""
    if cell_len(word.rstrip()) <= width:
        return [word]
    pieces = [""]
    for character in word:
        if pieces[-1] and cell_len((pieces[-1] + character).rstrip()) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def wrap(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
    """Lines of at most `width` cells, broken at ordinary spaces; inside a word only where it is wider than `width`."""
    lines, begins = [indent if first is None else first], True
    used = cell_len(lines[0])
    for word in text.split(" "):
        wide = cell_len(word)
        if not begins and used + 1 + wide <= width:
            lines[-1] += f" {word}"
            used += 1 + wide
            continue
        if not begins:
            lines.append(indent)
            used = cell_len(indent)
        if used + wide > width >= wide:  # a figure that fits no indented line stands on one of its own, whole
            lines[-1:] = [lines[-1], word] if lines[-1].strip() else [word]
            begins, used = False, wide
            continue
        pieces = _chopped(word, max(1, width - used)) if used + wide > width else [word]
        lines[-1] += pieces[0]
        lines += [indent + piece for piece in pieces[1:]]
        begins, used = False, cell_len(lines[-1])
    return lines


def _table(
    console: Console, labels: Sequence[str], columns: Sequence[Column], head: str
) -> tuple[Table | None, list[str]]:
    """The widest table that fits, and the columns it had to leave out; None where not even the least fits."""
    longest = max((cell_len(wording.clean(label)) for label in labels), default=0)
    shown, dropped = list(columns), []
    while True:
        room = console.width - sum(column.width + GAP for column in shown)
        candidates = [column for column in shown if column.rank]
        if room >= max(min(longest, LABEL_ENOUGH), len(head)) or not candidates:
            break
        widest = max(candidates, key=lambda column: column.rank)
        shown.remove(widest)
        dropped.append(widest.title)
    if room < max(min(longest, LABEL_LEAST), len(head)):
        return None, dropped
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, GAP - 1, 0, 0))
    table.add_column(head, no_wrap=True)
    for column in shown:
        table.add_column(Text(column.title), no_wrap=True, justify=column.justify)  # type: ignore[arg-type]
    for index, label in enumerate(labels):
        table.add_row(Text(fold(label, max(room, 1))), *(column.cells[index] for column in shown))
    return table, dropped


def _say(console: Console, text: str, style: str = "", indent: str = "", first: str | None = None) -> None:
    """A paragraph, broken at ordinary spaces only."""
    lines = wrap(wording.clean(text), max(console.width, 20), indent, first)
    console.print(Text(wording.plain("\n".join(lines)), style=style), soft_wrap=True)


def show(console: Console, labels: Sequence[str], columns: Sequence[Column], head: str = "Method") -> None:
    """A table with a label per row; a narrow terminal loses columns, then the table."""
    table, dropped = _table(console, labels, columns, head)
    if table is not None:
        console.print(table)
    else:  # too narrow for any table: one figure a line
        for index, label in enumerate(labels):
            _say(console, label, "bold")
            for column in columns:
                title = " ".join(column.title.split())
                _say(console, f"{title}: {column.cells[index].plain.replace(' ', wording.NB)}", indent="  ")
    if table is not None and dropped:
        _say(console, f"Left out at this width: {', '.join(' '.join(title.split()) for title in dropped)}.", "dim")


def _flags(raised: Iterable[RaisedFlag]) -> list[str]:
    """One line per reason, naming every place."""
    by_code: dict[str, list[RaisedFlag]] = {}
    for flag in raised:
        by_code.setdefault(flag.code, []).append(flag)
    return [
        f"{flags[0].severity}: {flags[0].sentence} "
        + "; ".join(f"{flag.where}{f' ({flag.detail})' if flag.detail else ''}" for flag in flags)
        for flags in by_code.values()
    ]


def _workload(console: Console, workload: Workload) -> None:
    console.print()
    _say(console, workload.name, "bold underline")
    _say(console, sentences.baseline(workload), "dim")
    for method, command in rows.commands(workload):
        _say(console, f"{method}: {command}", "dim", indent="    ", first="  $ ")
    if workload.rows:
        console.print()
        show(console, [row.method for row in workload.rows], _columns(workload, workload.rows))
        console.print()
    for row in workload.rows:
        notes = sentences.notes(row, workload.metric or "quality")
        _say(console, f"{row.method}: {' '.join(notes)}", indent="  ", first="• ")
    for line in _flags([*workload.flags, *(flag for row in workload.rows for flag in row.flags)]):
        _say(console, line, "yellow", indent="  ", first="! ")


def render(summary: Summary, console: Console) -> None:
    """The whole report."""
    title = f"{summary.suite} · run {summary.run}"
    if not summary.finished:
        title += " · unfinished"
    _say(console, " · ".join([title, *summary.stamp]), "dim")
    _say(console, summary.headline, "bold")
    if summary.energy_note:
        _say(console, summary.energy_note, "yellow")
    if summary.look_note:
        _say(console, summary.look_note, "yellow")
    for flag in summary.flags:
        if flag.code != "modelled_energy":  # said above
            _say(console, flag.sentence, "yellow")
    for workload in summary.workloads:
        _workload(console, workload)
    for line, style in run_lines.requirements(summary):
        _say(console, line, style, indent="  ", first="§ ")
    extra = [*run_lines.overall(summary), *run_lines.added_blocks(summary)]
    if extra:
        console.print()
    for line in extra:
        _say(console, line, indent="  ", first="• ")
    for line in run_lines.uncounted(summary):
        _say(console, line, "dim", indent="  ", first="– ")
    lost = [failure for failure in summary.failures if not failure.repeated]
    if lost or summary.not_run:
        console.print()
    for failure in lost:
        _say(console, f"{failure.trial}: {failure.status}: {failure.reason}", "red", indent="  ", first="✗ ")
    for missing in summary.not_run:
        where = f"{missing.workload}: {missing.method}"
        _say(console, f"{where}: {missing.reason}", "dim", indent="  ", first="– ")


def partial(summary: Summary, console: Console) -> None:
    """After a block: what is known so far, without a verdict, for looking early proves too much."""
    for workload in summary.workloads:
        rows = [row for row in workload.rows if row.measured is not None]
        if not rows:
            continue
        _say(console, workload.name, "bold")
        so_far = tuple(_text(f"{row.n} of {summary.blocks}") for row in rows)
        columns = [c for c in _columns(workload, rows) if c.title.startswith("measured") or c.title.endswith("Δ")]
        show(console, [row.method for row in rows], [*columns, Column("blocks", so_far)])
