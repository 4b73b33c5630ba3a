"""Text that others wrote, made harmless for a terminal: names come from suites and records of strangers."""

from __future__ import annotations

NB = "\u00a0"


def inert(text: str) -> str:
    """One line without control characters: nothing moves the cursor, hides, or turns what stands beside it."""
    if text.replace(NB, " ").isprintable():
        return text
    return "".join(c if c.isprintable() or c == NB else " " for c in text)
