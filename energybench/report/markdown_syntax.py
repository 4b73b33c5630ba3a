"""Markdown from text that others wrote: escaped, so that none can add a cell, a tag, a link or a code span."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from energybench.verdict import wording

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", "|": "&#124;", "`": "&#96;"}


def escape(text: object) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    line = wording.plain(wording.clean(str(text)))
    line = "".join(ENTITIES.get(character, character) for character in line)
    line = re.sub(r"([\\*_\[\]~$])", r"\\\1", line)
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")
    return re.sub(r"^(\s*)([#+\-=]|\d+[.)](?=\s))", lambda m: m[1] + m[2][:-1] + f"&#{ord(m[2][-1])};", line)


def details(summary: str, parts: Sequence[str]) -> str:
    """What is folded away until it is asked for. `summary`: plain text; parts: paragraphs, escaped already."""
    return "\n\n".join([f"<details>\n<summary>{_in_tag(summary)}</summary>", *parts, "</details>"])


def _in_tag(text: str) -> str:
    """Text inside of a tag, where Markdown's own escapes would be printed: all but harmless signs are encoded."""
    line = wording.plain(wording.clean(text)).replace("www.", "www&#46;")
    return re.sub(r"[^\w &#;.,:+()%=−–-]|&(?!#46;)|_", lambda m: f"&#{ord(m[0])};", line)


def brackets(text: str) -> str:
    """A figure with its interval: the brackets make no link."""
    return text.replace("[", "\\[").replace("]", "\\]")


def fence(text: str) -> str:
    """A code block that its content cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{text}\n{marks}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: str | Collection[int] = "") -> str:
    """A pipe table; cells are escaped already. `right` names the columns of numbers by position, "1235"."""
    places = {int(place) for place in right if place != " "}
    rule = ["---:" if index in places else "---" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
