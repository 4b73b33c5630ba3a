"""Text from suites and records of others, made safe to print: control characters escaped, lines wrapped."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

NB = "\u00a0"


def printable(text: str) -> str:
    """The text on one line, each control or formatting character replaced by a space.

    So that no name can move the cursor, hide text or change its direction.
    """
    if text.replace(NB, " ").isprintable():
        return text
    return "".join(c if c.isprintable() or c == NB else " " for c in text)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width` characters, broken between words; a longer word, such as a path, stays whole."""
    lines = textwrap.wrap(
        text.replace(" %", f"{NB}%"),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(NB, " ") for line in lines]


def json_text(value: Any) -> str:
    """JSON, indented, in which each character that is not printable is escaped as \\uXXXX: the same value.

    So is a # or an _ that would make a command of a build server (build_logs.py); neither stands outside of strings.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    text = re.sub(r"##(?=[A-Za-z]*\[)|_(?=(?:start|end|fold|time):)", _escaped, text, flags=re.IGNORECASE)
    return re.sub(r"[^\n\x20-\x7e]", lambda m: m[0] if m[0].isprintable() else json.dumps(m[0])[1:-1], text)


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"\\u{ord(sign):04x}" for sign in found[0])
