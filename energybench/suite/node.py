"""A parsed TOML text as a tree of nodes that remember where they were written, before any type is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energybench.suite.toml_positions import Loc, Position


@dataclass(frozen=True, slots=True)
class Node:
    """A TOML value and where it was written.

    Attributes:
        value: A dict or list of nodes, or a scalar.
        place: "file:line:column", or "--set ...".
    """

    value: Any
    place: str

    def get(self, key: str) -> Node | None:
        """The node of a key of this table; None where there is none, or where this is no table."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def plain(self) -> Any:
        """The value without places, as tomllib gives it."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def find(self, loc: Sequence[str | int]) -> Node:
        """The node at `loc`, or its nearest ancestor."""
        node = self
        part: Any
        for part in loc:
            keys = range(len(node.value)) if isinstance(node.value, list) else node.value
            if not isinstance(node.value, dict | list) or part not in keys:
                break
            node = node.value[part]
        return node

    def items(self, key: str) -> list[Node]:
        """The tables of the array of tables `key`; empty where something else was written."""
        node = self.get(key)
        items = node.value if node is not None and isinstance(node.value, list) else []
        return [item for item in items if isinstance(item.value, dict)]

    def tables(self) -> list[tuple[str, Node]]:
        """The keys of a table and what they hold."""
        return list(self.value.items()) if isinstance(self.value, dict) else []

    def places(self, at: Loc = ()) -> list[tuple[Loc, str]]:
        """(loc, place) of this node and of every one in it."""
        children = self.tables() if isinstance(self.value, dict) else []
        inside: list[tuple[str | int, Node]] = [*children]
        if isinstance(self.value, list):
            inside = [*enumerate(self.value)]
        return [(at, self.place), *(each for key, node in inside for each in node.places((*at, key)))]

    def text(self, key: str) -> str | None:
        """The value of a key where it is a string, else None."""
        node = self.get(key)
        return node.value if node is not None and isinstance(node.value, str) else None


def build_tree(value: Any, places: Mapping[Loc, Position], file: str, at: Loc = ()) -> Node:
    """The tree of a parsed TOML text.

    Args:
        value: What tomllib made of it, or a part of that.
        places: Line and column by path from the root.
        file: As places name it.
        at: The path of `value` from the root.
    """
    place = f"{file}:{':'.join(map(str, places[at]))}" if at in places else file
    if isinstance(value, dict):
        return Node({key: build_tree(child, places, file, (*at, key)) for key, child in value.items()}, place)
    if isinstance(value, list):
        return Node([build_tree(child, places, file, (*at, i)) for i, child in enumerate(value)], place)
    return Node(value, place)


def single_place(value: Any, place: str) -> Node:
    """The tree of a value all of whose parts were written in one place."""
    return build_tree(value, {}, place)
