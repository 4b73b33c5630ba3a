"""A number as a script prints it, caught by a pattern: whether it is one and whole, and else a pattern that works.

Half of a number is another number: "0" of "0,948", "1.2" of "1.2e-05", "8" of "94.8". So what stands beside the match
is looked at too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NUMBER = re.compile(r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?)", re.IGNORECASE | re.ASCII)
GROUP = r"([-+]?(?:\d*\.?\d+(?:[eE][-+]?\d+)?|nan|inf))"  # what catches one and nothing else
COLOURS = r"(?:\x1b\[[\d;]*m)*"
_COLOUR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_DECIMAL_COMMA = re.compile(r"[-+]?[\d.]*\d,\d")


@dataclass(frozen=True, slots=True)
class Printed:
    """What a match says: a figure, or None and why; `percent`: a percent sign stands behind it."""

    figure: float | None
    wrong: str = ""
    percent: bool = False


def printed(match: re.Match[str]) -> Printed:
    """The figure in group 1 of a match."""
    text, line = match[1], match.string
    if text is None:
        return Printed(None, f"the pattern matched '{_shown(match[0])}', and its group 1 nothing of that")
    start, stop = match.span(1)
    if NUMBER.fullmatch(text) is None:
        return Printed(None, f"the pattern matched '{_shown(text)}', which is no number{_remedy(match)}")
    if (whole := _cut(text, line[max(0, start - 40) : start], line[stop : stop + 40])) is not None:
        return Printed(None, f"the pattern matched '{text}', which is a part of '{whole}'{_remedy(match)}")
    return Printed(float(text), percent=re.match(r"\s?%", line[stop : stop + 2]) is not None)


def _cut(text: str, before: str, after: str) -> str | None:
    """The whole number that this is a part of; None where it is whole."""
    if not text[-1].isdigit() and text[-1] != ".":
        return None
    comma = "" if "." in text else ","  # behind a point a comma separates two numbers
    tail = re.match(rf"(?:\d|[.{comma}]\d|[eE][-+]?\d)[\d.,]*(?:[eE][-+]?\d+)?", after)
    head = re.search(rf"(?:[\d.,]*\d[.{comma}]?|[\d.]+[eE][-+]?|(?<![\w)\]])[-\N{{MINUS SIGN}}])$", before)
    if text[0] in "-+":
        head = re.search(r"\d[eE]$", before)
    if not tail and not head:
        return None
    return (head[0] if head else "") + text + (tail[0] if tail else "")


def _remedy(match: re.Match[str]) -> str:
    """What to type instead."""
    around = match.string[max(0, match.start(1) - 20) : match.end(1) + 20]
    near = match[1] + match.string[match.end(1) : match.end(1) + 20]
    if _DECIMAL_COMMA.match(_COLOUR.sub("", near)) or re.search(r"\d,$", match.string[: match.start(1)]):
        return "; numbers are read with a decimal point: print them so (LC_NUMERIC=C)"
    better = working(match.re.pattern, match.string)
    if better is None or not re.search(r"\d", around):
        return ""
    percent = ', and scale = "percent" beside the metric' if "%" in match[1] else ""
    return f"; this one works: pattern = {_toml(better)}{percent}"


def working(pattern: str, line: str) -> str | None:
    """The pattern with a group that catches the number in this line and nothing else; None where none is found."""
    span = _first_group(pattern)
    if span is None:
        return None
    before, after = pattern[: span[0]], pattern[span[1] :]
    for middle in (GROUP, COLOURS + GROUP, rf"\D*?{GROUP}"):
        for rest in (after, ""):
            try:
                found = [*re.finditer(before + middle + rest, line)][-1:]
            except re.error:
                continue
            if found and NUMBER.fullmatch(found[0][1] or "") and not _cut_in(found[0]):
                return before + middle + rest
    return None


def _cut_in(match: re.Match[str]) -> bool:
    start, stop = match.span(1)
    return _cut(match[1], match.string[max(0, start - 40) : start], match.string[stop : stop + 40]) is not None


def _first_group(pattern: str) -> tuple[int, int] | None:
    """Where the first capturing group of a regular expression begins and ends."""
    depth, start, in_class, at = 0, -1, False, 0
    while at < len(pattern):
        mark = pattern[at]
        if mark == "\\":
            at += 1
        elif in_class:
            in_class = mark != "]"
        elif mark == "[":
            in_class = True
            at += pattern[at + 1 : at + 2] in ("]", "^")
        elif mark == "(":
            depth += 1
            if start < 0 and (pattern[at + 1 : at + 2] != "?" or pattern[at + 1 : at + 4] == "?P<"):
                start, opened = at, depth
        elif mark == ")":
            if start >= 0 and depth == opened:
                return start, at + 1
            depth -= 1
        at += 1
    return None


def _toml(pattern: str) -> str:
    return f"'{pattern}'" if "'" not in pattern else f"'''{pattern}'''"


def _shown(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")[:80]
