"""What the papers claim, counted again: printed on a terminal, or as the Markdown page docs/claims.md.

Takes the facts of published_tables.py as plain dicts and lists, and imports no torch. On a terminal too narrow for a
table its rows become lines; a number is never cropped and never broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energybench.common.escaping import wrapped
from energybench.common.outputs import Kind
from energybench.papers.cells import NONE

TITLE = "What the papers claim, counted again"
ABOUT = (
    "Each paper's own counting rule, run on its own models, beside what it prints. A rule is not a measurement: what a "
    "claim is worth in seconds and joules is the meter's to say."
)
COMMAND = "energybench claims --markdown docs/claims.md"
KIND = Kind("the page of claims", lambda found: b"<!-- written by `energybench claims " in found)
LABEL_LEAST = 9  # cells that a column of words gets before a table becomes lines
STYLES = {"reproduced": "green", "differs": "bold red", "not held": "yellow", "fitted": "cyan", "ours": "dim"}


def print_claims(facts: dict[str, Any], console: Console) -> None:
    _say(console, TITLE, "bold")
    _say(console, ABOUT)
    for line in _score(facts):
        _say(console, line)
    for word, meaning in facts["words"].items():
        _say(console, f"  {word}: {meaning}", STYLES[word])
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
    words = "\n".join(f"- **{word}**: {_escape(meaning)}" for word, meaning in facts["words"].items())
    page = [f"# {TITLE}", f"<!-- written by `{COMMAND}` -->", ABOUT, " ".join(_score(facts)), words]
    for paper in facts["papers"]:
        page += [f"## {_escape(paper['name'])}", f"*{_escape(paper['source'])}*", _escape(paper["rule"])]
        for table in paper["tables"]:
            rule = ["---:" if heading in table["numbers"] else "---" for heading in table["columns"]]
            rows = [[_escape(cell) for cell in row] for row in (table["columns"], *table["rows"])]
            grid = "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
            page += [f"### {_escape(table['title'])}", grid, _escape(table["sentence"])]
    return "\n\n".join(page) + "\n"


def _score(facts: dict[str, Any]) -> list[str]:
    """A sentence for each kind: three counts, and no sum of them."""
    printed, fitted, ours = (facts["counts"][kind] for kind in ("printed", "fitted", "ours"))
    return [
        f"Of {printed['figures']} printed figures {printed['reproduced']} are reproduced and {printed['differ']} "
        f"differ{'s' * (printed['differ'] == 1)}; {printed['not_held']} are not held here.",
        f"{fitted['figures']} more were fitted, {ours['figures']} are ours.",
    ]


def _labels(table: dict[str, Any]) -> int:
    """How many columns of words there are before the figures, which are never broken over two lines."""
    return len(table["columns"]) - len(table["numbers"]) - 1


def _fits(table: dict[str, Any], width: int) -> bool:
    least = 0
    for position, heading in enumerate(table["columns"]):
        whole = max(map(cell_len, [heading, *(row[position] for row in table["rows"])]))
        least += (min(whole, LABEL_LEAST) if position < _labels(table) else whole) + 2
    return least <= width


def _table(table: dict[str, Any]) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    labels, last = _labels(table), len(table["columns"]) - 1
    for position, heading in enumerate(table["columns"]):
        justify: Literal["left", "right"] = "right" if labels <= position < last else "left"
        drawn.add_column(heading, justify=justify, no_wrap=position >= labels, overflow="fold")
    for *cells, word in table["rows"]:
        drawn.add_row(*(Text(cell) for cell in cells), Text(word, STYLES[word]))
    return drawn


def _lines(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(style, line): what a row is of and its kind, under it what is printed and counted, or a line for each figure."""
    labels = _labels(table)
    for *cells, word in table["rows"]:
        yield STYLES[word] if word != "ours" else "", f"{', '.join(cells[:labels])}: {word}"
        if table["compares"]:
            printed, counted, difference = cells[labels:]
            compared = "" if printed == NONE else f"{printed} {table['numbers'][0]}, {difference} apart, "
            yield "", f"  {compared}{counted} counted"
            continue
        for figure, cell in zip(table["numbers"], cells[labels:], strict=True):
            yield "dim", f"  {figure}: {cell}"


def _escape(text: str) -> str:
    for mark in "\\*_|<~":
        text = text.replace(mark, f"\\{mark}")
    return text


def _say(console: Console, text: str, style: str = "") -> None:
    """A sentence, broken between words; a longer word, such as a number, stays whole."""
    indent = " " * (len(text) - len(text.lstrip()))
    for line in wrapped(text.strip(), console.width, indent):
        console.print(Text(line, style), soft_wrap=True)
