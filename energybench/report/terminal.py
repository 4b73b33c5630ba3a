"""The report on a terminal: the sentence that matters, the table, a sentence for each method, what fired; with
`verbose` all that stands behind it.

Words carry the verdict and colour repeats it. A narrow terminal loses whole columns, never a digit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energybench.report import run_lines
from energybench.report.rows import commands
from energybench.verdict import briefly, sentences, wording
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
RANKS = {"counted": 1, "estimated": 2, "claimed": 4}  # of columns, by the last thing that they say
LABEL_LEAST = 10  # cells that a method's name needs at the very least
LABEL_ENOUGH = 18  # before another column is given up for it
GAP = 2  # between columns: one cell of padding, one of rule
NAMED = 3  # places of one reason
INDENT = "  "  # of a method below its workload


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


def _columns(rows: Sequence[Row], metric: str) -> list[Column]:
    """Verdict, measured and quality always; what was promised, in one column where that agrees; what arrived of it."""
    quantities = {(r.measured.quantity, r.measured.scope) for r in rows if r.measured}
    one = len(quantities) == 1
    title = f"measured {next(iter(quantities))[0]}\n[95 %]" if one else "measured\n[95 %]"

    def measured(row: Row) -> Text:
        text = wording.measured(row.measured)
        if row.measured and not one:
            text += wording.NB + row.measured.quantity
        return _text(text, "strike" if row.verdict_forbidden else "bold")

    columns = [
        Column("verdict", tuple(_text(r.verdict, STYLES.get(r.verdict, "")) for r in rows), 0, "left"),
        Column(title, tuple(measured(row) for row in rows)),
        Column("quality", tuple(_quality(row) for row in rows), 0, "left"),
        Column(f"{metric} Δ", tuple(_text(wording.quality_change(r.quality)) for r in rows), 3),  # -v says it too
    ]
    for titles, cells in wording.nominal_columns(rows):
        # In two lines, so that words do not make a column of figures wide.
        lines = (cell.replace(f"not{wording.NB}", "not\n").replace(" ±", "\n±") for cell in cells)
        columns.append(
            Column("\n= ".join(titles), tuple(Text(wording.plain(line)) for line in lines), RANKS[titles[-1]])
        )
    realised = [wording.realised(row) for row in rows]
    if any(cell != wording.NOTHING for cell in realised):
        columns.append(Column("realised", tuple(map(_text, realised)), 5))
    return columns


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
        indent = INDENT if label.startswith(INDENT) else ""
        lines = fold(label.removeprefix(indent), max(room - len(indent), 1)).split("\n")
        table.add_row(Text("\n".join(f"{indent}{line}" for line in lines)), *(column.cells[index] for column in shown))
    return table, dropped


def _say(console: Console, text: str, style: str = "", indent: str = "", first: str | None = None) -> None:
    """A paragraph, broken at ordinary spaces only."""
    lines = wrap(wording.clean(text), max(console.width, 20), indent, first)
    console.print(Text(wording.plain("\n".join(lines)), style=style), soft_wrap=True)


def show(console: Console, labels: Sequence[str], columns: Sequence[Column], head: str = "Method") -> bool:
    """A table with a label per row; a narrow terminal loses columns, then the table. Whether it said so below it."""
    table, dropped = _table(console, labels, columns, head)
    if table is not None:
        console.print(table)
    else:  # too narrow for any table: one figure a line
        for index, label in enumerate(labels):
            _say(console, label, "bold")
            for column in columns:
                title = " ".join(column.title.split())
                if not column.cells[index].plain:  # of a line that only names a workload
                    continue
                _say(console, f"{title}: {column.cells[index].plain.replace(' ', wording.NB)}", indent="  ")
    if table is not None and dropped:
        _say(console, f"Left out at this width: {', '.join(' '.join(title.split()) for title in dropped)}.", "dim")
        return True
    return False


def _flags(raised: Iterable[RaisedFlag], verbose: bool) -> list[str]:
    """One line per reason, naming the first places, or with `verbose` every one."""
    by_code: dict[str, list[RaisedFlag]] = {}
    for flag in raised:
        by_code.setdefault(flag.code, []).append(flag)
    return [
        f"{flags[0].severity}: {flags[0].sentence} "
        + "; ".join(
            f"{flag.where}{f' ({flag.detail})' if flag.detail else ''}" for flag in flags[: _named(flags, verbose)]
        )
        + (f"; and {rest} more" if (rest := len(flags[_named(flags, verbose) :])) else "")
        for flags in by_code.values()
    ]


def _named(flags: Sequence[RaisedFlag], verbose: bool) -> int:
    """How many places stand in its line."""
    return len(flags) if verbose or len(flags) <= NAMED else NAMED - 1


def _behind(console: Console, workload: Workload) -> None:
    """What stands behind the figures of a workload."""
    console.print()
    _say(console, workload.name, "bold underline")
    _say(console, sentences.baseline(workload), "dim")
    for method, command in commands(workload):
        _say(console, f"{method}: {command}", "dim", indent="    ", first="  $ ")
    for row in workload.rows:
        notes = sentences.notes(row, workload.metric or "quality")
        _say(console, f"{row.method}: {' '.join(notes)}", indent="  ", first="• ")


def _results(console: Console, workloads: Sequence[Workload]) -> bool:
    """One table, with a line for the name of each workload where there are several; as `show`."""
    metrics = {workload.metric for workload in workloads}
    metric = wording.clean((metrics.pop() if len(metrics) == 1 else None) or "quality")
    rows = [row for workload in workloads for row in workload.rows]
    methods = list(dict.fromkeys(row.method for row in rows))
    head, rest = wording.without_common_prefix(methods)
    if not head or cell_len(head) > LABEL_ENOUGH:
        head, rest = "Method", methods
    short = dict(zip(methods, rest, strict=True))
    columns = _columns(rows, metric)
    if len(workloads) == 1:
        return show(console, [short[row.method] for row in rows], columns, head)
    labels, of = [], list[int | None]()
    for workload in workloads:
        labels.append(workload.name)
        of.append(None)
        for row in workload.rows:
            labels.append(f"{INDENT}{short[row.method]}")
            of.append(rows.index(row))
    blank = Text()
    spaced = [
        dataclasses.replace(column, cells=tuple(blank if i is None else column.cells[i] for i in of))
        for column in columns
    ]
    return show(console, labels, spaced, head)


def _sentences(console: Console, summary: Summary) -> None:
    for method, places in briefly.by_method(summary).items():
        _say(console, f"{method}: {briefly.method(places)}", indent="  ", first="• ")
    if summary.decide:
        _say(console, f"To decide what is open: {summary.decide}", "dim", indent="  ")


def render(summary: Summary, console: Console, verbose: bool = False) -> None:
    """The report on one screen; verbose: and all that stands behind it."""
    title = f"{summary.suite} · run {summary.run}"
    if not summary.finished:
        title += " · unfinished"
    _say(console, " · ".join([title, *summary.stamp]), "dim")
    _say(console, summary.headline, "bold")
    for note in (summary.energy_note, summary.device_note, summary.look_note):
        if note:
            _say(console, note, "yellow")
    for flag in summary.flags:
        if flag.code != "modelled_energy":  # said above
            _say(console, flag.sentence, "yellow")
    compared = [workload for workload in summary.workloads if workload.rows]
    if compared:
        console.print()
        if not _results(console, compared):
            console.print()
        _sentences(console, summary)
    flags = [flag for w in summary.workloads for flag in (*w.flags, *(f for row in w.rows for f in row.flags))]
    for line in _flags(flags, verbose):
        _say(console, line, "yellow", indent="  ", first="! ")
    for line, style in run_lines.requirements(summary):
        _say(console, line, style, indent="  ", first="§ ")
    for line in run_lines.added_blocks(summary):
        _say(console, line, indent="  ", first="• ")
    _what_is_missing(console, summary)
    if summary.checks:
        _say(console, f"{briefly.checks(summary)}{'.' if verbose else '; energybench report -v tells all.'}", "dim")
    if verbose:
        _all_of_it(console, summary)


def _all_of_it(console: Console, summary: Summary) -> None:
    for workload in summary.workloads:
        _behind(console, workload)
    extra = run_lines.overall(summary)
    if extra:
        console.print()
    for line in extra:
        _say(console, line, indent="  ", first="• ")
    for line in run_lines.uncounted(summary):
        _say(console, line, "dim", indent="  ", first="– ")


def _what_is_missing(console: Console, summary: Summary) -> None:
    for failure in summary.failures:
        if not failure.repeated:
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
        metric = wording.clean(workload.metric or "quality")
        columns = [c for c in _columns(rows, metric) if c.title.startswith("measured") or c.title.endswith("Δ")]
        show(console, [row.method for row in rows], [*columns, Column("blocks", so_far)])
