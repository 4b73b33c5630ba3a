"""What to type instead of a `--set` that names no place of its suite, or sets of all what only one of them has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from energybench.common.errors import Problem, nearest, typed
from energybench.suite.node import Node
from energybench.suite.variants import method_label, short

_OF_ALL = re.compile(r"--set\s+method(\.([^.=\s]+).*)", re.DOTALL)
NOT_TAKEN = ("unknown key", "takes no parameter")  # by one method, and another may
WORKLOAD_KEYS = ("task", "model", "data", "train", "target", "options", "quality", "sweep")  # that a table may hold


def entries(tree: Node, table: str) -> list[tuple[str, Node]]:
    """Those of `workload` or `method` that have a name, as --set has it in brackets: a method's is without its
    sweep."""
    found = [
        (entry.text("name") if table == "workload" else method_label(entry.plain()), entry)
        for entry in tree.items(table)
    ]
    return [(name, entry) for name, entry in found if name]


def of_one(problems: Iterable[Problem], tree: Node) -> list[Problem]:
    """Where one of several methods does not take what a --set gives to all, the hint says how to address one alone.

    tree: before any --set
    """
    return [_of_one(problem, entries(tree, "method")) for problem in problems]


def _of_one(problem: Problem, methods: list[tuple[str, Node]]) -> Problem:
    match = _OF_ALL.fullmatch(problem.where)
    if match is None or len(methods) < 2 or not any(words in problem.message for words in NOT_TAKEN):
        return problem
    rest, key = match.groups()
    own = [name for name, entry in methods if _holds(entry, key)]
    chosen = own[0] if len(own) == 1 else "NAME"
    names = "" if len(own) == 1 else f", where NAME is {' or '.join(name for name, _ in methods)}"
    alone = f"this sets every method; of one alone: {_set('method', chosen, rest)}{names}"
    return replace(problem, hint=f"{problem.hint}; {alone}" if problem.hint else alone)


def _holds(entry: Node, key: str) -> bool:
    return entry.get(key) is not None or entry.find(["sweep"]).get(key) is not None


def entry_meant(tree: Node, table: str, keys: Sequence[str], written: str) -> str:
    """For `method.NAME.key=value`, where NAME is an entry and no key of one: what to type. Empty where it is none."""
    known = entries(tree, table)
    if len(keys) < 2 or keys[0] not in dict(known) or keys[0] in WORKLOAD_KEYS:
        return ""
    for _, entry in known:
        uses = entry.find(["use"]).plain()
        parts = [short(use) for use in uses if isinstance(use, str)] if isinstance(uses, list) else []
        if keys[0] in (*entry.value, *parts):
            return ""
    return _set(table, keys[0], f".{'.'.join(keys[1:])}={written}")


def place_meant(tree: Node, first: str, rest: str, written: str, tables: Iterable[str]) -> str:
    """For `gradsamp.skip=...`, `train.epochs=...` or `epochs=...`, which begin with no table: where this suite has
    the word."""
    for table in ("method", "workload"):
        if rest and first in dict(entries(tree, table)):
            return _set(table, first, f"{rest}={written}")
    for table in tables:
        node = tree.get(table)
        named = entries(tree, table)
        holders: list[tuple[str | None, Node]] = [*named] if named else [(None, node)] if node else []
        for name, entry in holders:
            for path in _paths(entry):
                if path[-1] == first:
                    alone = name if table == "method" and len(named) > 1 else None
                    return _set(table, alone, f".{'.'.join(path)}{rest}={written}")
    return nearest(first, tables)


def _paths(table: Node) -> Iterator[tuple[str, ...]]:
    """Of every key in a table, outer ones first."""
    level: list[tuple[tuple[str, ...], Node]] = [((), table)]
    while level:
        level = [((*path, key), inner) for path, node in level for key, inner in node.tables()]
        yield from (path for path, _ in level)


def _set(table: str, entry: str | None, rest: str) -> str:
    """ "--set 'method[gradsamp].skip=every:4'" """
    chosen = "" if entry is None else f"[{entry}]"
    return f"--set {typed(f'{table}{chosen}{rest}')}"
