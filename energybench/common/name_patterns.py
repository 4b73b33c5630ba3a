"""Patterns of `*` and `?` that pick names: of workloads, of methods, of a model's parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern of `*` and `?` fits one of the names; brackets, which labels have, are themselves."""
    fits = _regex(pattern).fullmatch
    return any(fits(name) for name in names)


@lru_cache(1000)
def _regex(pattern: str) -> re.Pattern[str]:
    """Atomic groups: what each `*` has matched is not tried again, so that no pattern takes exponential time."""
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in pattern.split("*"))
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(first + (f"{middle}.*{rest[-1]}" if rest else ""), re.DOTALL)
