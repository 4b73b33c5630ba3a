"""Names that a user types: one that is there but for its capitals is meant."""

from __future__ import annotations

from collections.abc import Iterable


def known_as(typed: str, names: Iterable[str]) -> str:
    """`typed`, or the one of these names that it is but for capitals; the name itself goes before."""
    known = list(names)
    alike = {name.casefold(): name for name in reversed(known)}
    return typed if typed in known else alike.get(typed.casefold(), typed)
