"""What the papers claim, counted again: printed on a terminal, or as the Markdown page docs/claims.md.

Takes the facts of published_tables.py as plain dicts and lists, and imports no torch. On a terminal too narrow for a
table its rows become lines; a number is never cropped and never broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energybench.common.escaping import wrapped
from energybench.common.outputs import Kind

TITLE = "What the papers claim, counted again"
ABOUT = (
    "Each paper's own counting rule, run on its own models, beside what it prints. A rule is not a measurement: what a "
    "claim is worth in seconds and joules is the meter's to say."
)
COMMAND = "energybench claims --markdown docs/claims.md"
KIND = Kind("the page of claims", lambda found: b"<!-- written by `energybench claims " in found)
LABEL_LEAST = 9  # cells that a column of words gets before a table becomes lines
STYLES = {"yes": "green", "no": "bold red"}


def print_claims(facts: dict[str, Any], console: Console) -> None:
    _say(console, TITLE, "bold")
    _say(console, f"{ABOUT} {_score(facts)}")
    for paper in facts["papers"]:
        console.print()
        _say(console, paper["name"], "bold underline")
        _say(console, paper["source"], "dim")
        _say(console, paper["rule"])
        for table in paper["tables"]:
            console.print()
            _say(console, table["title"], "bold")
            if _fits(table, console.width):
                console.print(_table(table))
            else:
                for style, line in _lines(table):
                    _say(console, line, style)
            _say(console, table["sentence"])


def markdown(facts: dict[str, Any]) -> str:
    """The page; the same facts give the same bytes."""
    page = [f"# {TITLE}", f"<!-- written by `{COMMAND}` -->", ABOUT, _score(facts)]
    for paper in facts["papers"]:
        page += [f"## {_escape(paper['name'])}", f"*{_escape(paper['source'])}*", _escape(paper["rule"])]
        for table in paper["tables"]:
            rule = ["---:" if heading in table["numbers"] else "---" for heading in table["headings"]]
            rows = [[_escape(cell) for cell in row] for row in (table["headings"], *table["rows"])]
            grid = "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
            page += [f"### {_escape(table['title'])}", grid, _escape(table["sentence"])]
    return "\n\n".join(page) + "\n"


def _score(facts: dict[str, Any]) -> str:
    return f"{facts['agree']} of {facts['figures']} printed rows agree, to their last digit or within their range."


def _fits(table: dict[str, Any], width: int) -> bool:
    least = 0
    for position, heading in enumerate(table["headings"]):
        cells = [heading, *(row[position] for row in table["rows"])]
        whole = max(map(cell_len, cells))
        number = heading in table["numbers"] or position == len(table["headings"]) - 1
        least += (whole if number else min(whole, LABEL_LEAST)) + 2
    return least <= width


def _table(table: dict[str, Any]) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in table["headings"]:
        number = heading in table["numbers"]
        whole = number or heading == table["headings"][-1]
        drawn.add_column(heading, justify="right" if number else "left", no_wrap=whole, overflow="fold")
    for row in table["rows"]:
        drawn.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    return drawn


def _lines(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(style, line): one label a row, under it one line for each figure."""
    for row in table["rows"]:
        cells = list(zip(table["headings"], row, strict=True))
        labels = [cell for heading, cell in cells if heading not in table["numbers"]]
        verdict = labels.pop() if labels[-1] in (*STYLES, "taken") else ""
        yield "", ", ".join(labels)
        for heading, cell in cells:
            if heading in table["numbers"]:
                yield "dim", f"  {heading}: {cell}"
        if verdict:
            yield STYLES.get(verdict, ""), f"  {table['headings'][-1]}: {verdict}"


def _escape(text: str) -> str:
    for mark in "\\*_|<~":
        text = text.replace(mark, f"\\{mark}")
    return text


def _say(console: Console, text: str, style: str = "") -> None:
    """A sentence, broken between words; a longer word, such as a number, stays whole."""
    indent = " " * (len(text) - len(text.lstrip()))
    for line in wrapped(text.strip(), console.width, indent):
        console.print(Text(line, style), soft_wrap=True)
