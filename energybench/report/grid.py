"""A small table on a terminal that never crops a figure: where it does not fit, each figure gets a line of its own."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energybench.verdict import wording

GAP = 2  # between columns


def say(console: Console, text: str, style: str = "", indent: str = "") -> None:
    """A paragraph, broken at ordinary spaces only; a longer word, such as a path, stays whole."""
    lines = textwrap.wrap(
        wording.clean(text),
        max(console.width, 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        console.print(Text(wording.plain(line), style), soft_wrap=True)


def _width(head: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    widest = [
        max(len(line) for cell in column for line in cell.split("\n")) for column in zip(head, *rows, strict=True)
    ]
    return sum(widest) + GAP * (len(widest) - 1)


def grid(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """`head` and the first cell of each row are labels; the other cells are figures."""
    rows = [[wording.plain(wording.clean(cell)) for cell in row] for row in rows]
    if _width(head, rows) > console.width:  # bounds below their figures
        rows = [[cell.replace(" [", "\n[") for cell in row] for row in rows]
    if _width(head, rows) > console.width:
        say(console, head[0], "underline")
        for row in rows:
            say(console, row[0], "bold")
            for title, cell in zip(head[1:], row[1:], strict=True):
                say(console, f"{title}: {cell.replace(chr(10), wording.NB)}", indent="  ")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, GAP - 1, 0, 0))
    for index, title in enumerate(head):
        table.add_column(Text(title), no_wrap=True, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
