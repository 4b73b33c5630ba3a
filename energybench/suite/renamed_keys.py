"""Keys of a suite that have another name now: read under the old one for one version, with a note that names the place.

To rename a key, change the model in `tables.py` and add a line to RENAMED; nothing else knows old names. They are
renamed in the tree of what was written, before anything is merged, so that of an old and a new key the nearer one wins.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from energybench.common.errors import Problem
from energybench.common.renamed import RenamedKeyWarning
from energybench.suite.messages import as_override_problem
from energybench.suite.node import Node

# The tables that lead to a key, and its old name → its new name.
RENAMED: dict[tuple[str, ...], str] = {("accept", "noise"): "margin"}


class KeyRenamer:
    """Renames the old keys of trees, and remembers where they were written.

    problems: tables that have a key under both names
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._places: dict[tuple[str, ...], list[str]] = {}

    def tree(self, tree: Node) -> Node:
        """A whole suite under its new keys, or a part of one that starts at its root; [quick] like the suite."""
        for path in RENAMED:
            tree = self._below(tree, path, path)
            tree = self._below(tree, ("quick", *path), path)
        return tree

    def _below(self, node: Node, way: Sequence[str], path: tuple[str, ...]) -> Node:
        """The node with the key at `way` renamed; in an array of tables, in each of them."""
        if isinstance(node.value, list):
            return Node([self._below(item, way, path) for item in node.value], node.place)
        child = node.get(way[0])
        if child is None:
            return node
        if len(way) > 1:
            return Node({**node.value, way[0]: self._below(child, way[1:], path)}, node.place)
        new = RENAMED[path]
        self._places.setdefault(path, []).append(child.place)
        if new in node.value:
            message = f"{'.'.join(path)} is called {new} now, and both are written"
            hint = f"keep {new}, take out {path[-1]}"
            self.problems.append(as_override_problem(Problem("E202", message, child.place, hint)))
            return Node({key: item for key, item in node.value.items() if key != path[-1]}, node.place)
        return Node({new if key == path[-1] else key: item for key, item in node.value.items()}, node.place)

    def warn(self, stacklevel: int) -> None:
        """One RenamedKeyWarning for each old key that was found, with every place of it."""
        for path, places in self._places.items():
            where = ", ".join(dict.fromkeys(places))
            text = f"{where}: {'.'.join(path)} is called {RENAMED[path]} now"
            warnings.warn(text, RenamedKeyWarning, stacklevel=stacklevel + 1)


def with_old_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """Resolved settings with each renamed key under its old name too, for readers of the version before."""
    settings = copy.deepcopy(settings)
    for path, new in RENAMED.items():
        for table in _tables(settings, path[:-1]):
            if new in table:
                table[path[-1]] = table[new]
    return settings


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
