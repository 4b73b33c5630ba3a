"""Keys of a suite that have another name now."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

# The tables that lead to a key, and its old name → its new name.
RENAMED: dict[tuple[str, ...], str] = {("accept", "noise"): "margin"}


def with_new_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """Resolved settings of any version under the new names alone, so that a mere renaming is no difference."""
    settings = copy.deepcopy(settings)
    for path, new in RENAMED.items():
        for table in _tables(settings, path[:-1]):
            if path[-1] in table:
                old_value = table.pop(path[-1])
                table.setdefault(new, old_value)
    return settings


def _tables(value: Any, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The tables at a path, each one of an array of them."""
    if isinstance(value, list):
        for item in value:
            yield from _tables(item, path)
    elif isinstance(value, dict):
        if not path:
            yield value
        else:
            yield from _tables(value.get(path[0]), path[1:])
