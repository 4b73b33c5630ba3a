"""What a workload sweeps: keys of its own tables, as "model.depth" or as tables in tables; and its name without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from energybench.suite.node import Node
from energybench.suite.variants import toml

Path = tuple[str, ...]


def path_of(key: str) -> Path:
    """ "model.depth" → ("model", "depth")."""
    return tuple(key.split("."))


def flat(sweep: Node) -> dict[str, Node]:
    """Dotted key → its node, whether it was written dotted in quotes or as tables in tables; a later one wins."""
    return dict(_leaves(sweep, ()))


def _leaves(node: Node, path: Path) -> Iterator[tuple[str, Node]]:
    if isinstance(node.value, dict):
        for key, inner in node.value.items():
            yield from _leaves(inner, (*path, key))
    elif path:
        yield ".".join(path), node


def at(table: Node, path: Sequence[str]) -> Node | None:
    """The node at a path of keys; None where there is none."""
    node: Node | None = table
    for key in path:
        node = None if node is None else node.get(key)
    return node


def mark(chosen: Mapping[str, Any]) -> str:
    """ "depth=2,lr=0.1": each key by its last part, or whole where two end alike."""
    last = [path_of(key)[-1] for key in chosen]
    names = (name if last.count(name) == 1 else key for name, key in zip(last, chosen, strict=True))
    return ",".join(f"{name}={shown(value)}" for name, value in zip(names, chosen.values(), strict=True))


def shown(value: Any) -> str:
    """As a label has it."""
    return value if isinstance(value, str) else toml(value)


def plain_name(name: str, chosen: Mapping[str, Any]) -> str:
    """A workload's name without its sweep: "vit" of "vit[depth=2]". chosen: dotted key → value; empty: no sweep"""
    return name.removesuffix(f"[{mark(chosen)}]") if chosen else name


def plain_names(workloads: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name → name without its sweep, of the workloads of a resolved suite."""
    found = {}
    for table in workloads:
        name, chosen = str(table.get("name")), table.get("sweep")
        found[name] = plain_name(name, chosen) if isinstance(chosen, dict) else name
    return found
