"""Where two trees of JSON-able data differ, leaf by leaf. Whoever asks words what a difference means."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

PathPart = str | int


@dataclass(frozen=True, slots=True)
class Difference:
    """One leaf that is not the same in two trees.

    path:          keys and list indices that lead to it, from the root; empty where the roots themselves differ
    before, after: its values; None where a tree has no such key
    """

    path: tuple[PathPart, ...]
    before: Any
    after: Any


def differences(
    before: Any,
    after: Any,
    *,
    same: Callable[[Any, Any], bool] = operator.eq,
    ignored_keys: Collection[str] = (),
    into_lists: bool = True,
) -> Iterator[Difference]:
    """Every leaf in which two trees differ, in the order of `before`, then of what only `after` has.

    A key that a tree lacks counts as None there, so {} and {"a": None} do not differ. Lists of different lengths are
    one leaf: which of their items belong together is not known.

    Args:
        before, after: dicts, lists and scalars, as JSON has them.
        same:          whether two leaves are equal; by default ==.
        ignored_keys:  keys that are left out, with everything below them.
        into_lists:    whether lists of one length are compared item by item, or whole as one leaf.

    Returns:
        One Difference per leaf; none at all where the trees are equal.
    """
    return _walk((), before, after, same, ignored_keys, into_lists)


def _walk(
    path: tuple[PathPart, ...],
    before: Any,
    after: Any,
    same: Callable[[Any, Any], bool],
    ignored_keys: Collection[str],
    into_lists: bool,
) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            if key not in ignored_keys:
                yield from _walk((*path, key), before.get(key), after.get(key), same, ignored_keys, into_lists)
    elif into_lists and isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old_item, new_item) in enumerate(zip(before, after, strict=True)):
            yield from _walk((*path, index), old_item, new_item, same, ignored_keys, into_lists)
    elif not same(before, after):
        yield Difference(path, before, after)
