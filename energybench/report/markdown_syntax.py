"""Markdown from text that others wrote: escaped, so that none can add a cell, a tag, a link or a code span."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from energybench.verdict import wording

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", "|": "&#124;", "`": "&#96;"}


def escape(text: object) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    line = wording.plain(wording.clean(str(text)))
    line = "".join(ENTITIES.get(character, character) for character in line)
    line = re.sub(r"([\\*_\[\]~$])", r"\\\1", line)
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")
    return re.sub(r"^(\s*)([#+\-=]|\d+[.)](?=\s))", lambda m: m[1] + m[2][:-1] + f"&#{ord(m[2][-1])};", line)


def brackets(text: str) -> str:
    """A figure with its interval: the brackets make no link."""
    return text.replace("[", "\\[").replace("]", "\\]")


def fence(text: str) -> str:
    """A code block that its content cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{text}\n{marks}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> str:
    """A pipe table; cells are escaped already. `right` names the columns of numbers by position, "1235"."""
    rule = ["---:" if str(index) in right else "---" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
