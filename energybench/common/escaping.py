"""Text that others wrote, made harmless for a terminal: names come from suites and records of strangers."""

from __future__ import annotations

import json
import re
from typing import Any

NB = "\u00a0"


def inert(text: str) -> str:
    """One line without control characters: nothing moves the cursor, hides, or turns what stands beside it."""
    if text.replace(NB, " ").isprintable():
        return text
    return "".join(c if c.isprintable() or c == NB else " " for c in text)


def json_text(value: Any) -> str:
    """JSON in which every character that cannot be shown stands as its number: the same value, inert too."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return re.sub(r"[^\n\x20-\x7e]", lambda m: m[0] if m[0].isprintable() else json.dumps(m[0])[1:-1], text)
