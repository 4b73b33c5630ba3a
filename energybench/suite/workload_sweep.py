"""From a [[workload]] with a sweep to the workloads that are trained: one for each choice of its swept keys.

Done on the tree, when `extends`, the quick overlay and `--set` are in it and before any type is known, so that all that
follows sees workloads like any other: "vit[depth=2]", with model.depth = 2 from the place where the 2 was written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from energybench.common.errors import Problem, nearest
from energybench.common.limits import SUITE_ENTRIES
from energybench.suite.messages import as_override_problem
from energybench.suite.node import Node
from energybench.suite.sweep_keys import at, flat, mark, path_of, shown
from energybench.suite.variants import counted, toml

TRAINED = ("task", "model", "data", "train")  # tables that say what is trained; the others judge it
OF_COMMANDS = ("options",)
LONGEST_NAME = 200  # as table.Name


def expand_workloads(tree: Node, *, quick: bool = False) -> tuple[Node, list[Problem]]:
    """The suite with each workload once for every choice of its sweep, and the mistakes in sweeps.

    Args:
        tree: the whole suite
        quick: each sweep keeps its first value only
    """
    node = tree.get("workload")
    entries = tree.items("workload")
    if node is None or not any(entry.get("sweep") for entry in entries):
        return tree, []
    problems = [problem for entry in entries for problem in _problems(entry)]
    count = sum(1 if quick else _count(entry) for entry in entries)
    if count > SUITE_ENTRIES:
        place = max(entries, key=_count).find(["sweep"]).place
        message = f"the sweeps make {counted(count)} workloads; at most {SUITE_ENTRIES} are allowed"
        problems.append(Problem("E207", message, place, "sweep fewer keys, or fewer values"))
    items: list[Node] = []
    if not problems:
        for entry in node.value:
            items += _expanded(entry, quick) if isinstance(entry.value, dict) else [entry]
        problems = _clashes(items)
    if problems:  # the rest of each is checked all the same
        items = [_without_sweep(entry) if isinstance(entry.value, dict) else entry for entry in node.value]
    made = Node({**tree.value, "workload": Node(items, node.place)}, tree.place)
    return made, list(dict.fromkeys(map(as_override_problem, problems)))


def _choices(entry: Node) -> dict[str, Node]:
    """What an entry sweeps; nothing where its types are wrong, which is reported with the others."""
    sweep = entry.get("sweep")
    return flat(sweep) if sweep is not None and isinstance(sweep.value, dict) else {}


def _count(entry: Node) -> int:
    return math.prod(len(each.value) for each in _choices(entry).values() if isinstance(each.value, list))


def _without_sweep(entry: Node) -> Node:
    if not isinstance(entry.find(["sweep"]).value, dict):
        return entry
    return Node({key: node for key, node in entry.value.items() if key != "sweep"}, entry.place)


def _expanded(entry: Node, quick: bool) -> list[Node]:
    choices, name = _choices(entry), entry.text("name")
    if not choices or name is None:
        return [_without_sweep(entry)]
    values: list[Sequence[Node]] = [each.value[:1] if quick else each.value for each in choices.values()]
    return [_with_choice(entry, name, dict(zip(choices, chosen, strict=True))) for chosen in itertools.product(*values)]


def _with_choice(entry: Node, name: str, chosen: Mapping[str, Node]) -> Node:
    label = f"{name}[{mark({key: node.plain() for key, node in chosen.items()})}]"
    made = {
        **entry.value,
        "name": Node(label, entry.find(["name"]).place),
        "sweep": Node(dict(chosen), entry.find(["sweep"]).place),
    }
    for key, node in chosen.items():
        made = _put(Node(made, entry.place), path_of(key), node).value
    return Node(made, entry.place)


def _put(table: Node, path: Sequence[str], value: Node) -> Node:
    """The table with this value at a path. A task that is a mere name gets parameters beside it."""
    if not path:
        return value
    inner = table.get(path[0])
    if inner is None:
        inner = Node({}, value.place)
    elif len(path) > 1 and path[0] == "task" and isinstance(inner.value, str):
        inner = Node({"use": inner}, inner.place)
    if len(path) > 1 and not isinstance(inner.value, dict):
        return table  # no table can be there, which is reported
    return Node({**table.value, path[0]: _put(inner, path[1:], value)}, table.place)


def _problems(entry: Node) -> list[Problem]:
    problems = []
    choices = _choices(entry)
    roots = OF_COMMANDS if entry.get("command") is not None else TRAINED

    def report(message: str, place: str, hint: str) -> None:
        problems.append(Problem("E207", message, place, hint))

    for key, node in choices.items():
        path, values = path_of(key), node.value
        if not isinstance(values, list):
            message = f"sweep: '{key}' is {toml(node.plain())}; expected an array of values"
            report(message, node.place, f'"{key}" = [{toml(node.plain())}]')
        elif not values:
            report(f"sweep: '{key}' is empty, so no workload is left", node.place, "list its values, or remove it")
        elif len({shown(value.plain()) for value in values}) < len(values):
            report(f"sweep: '{key}' names a value twice", node.place, "name each value once")
        if not all(path) or path[0] not in roots or (len(path) < 2 and path != ("task",)):
            report(f"'{key}' cannot be swept: it is no key of what is trained", node.place, _sweepable(path, roots))
        elif at(entry, path) is not None:
            report(f"'{key}' is both fixed and swept", node.place, "keep one of the two")
    return problems


def _sweepable(path: Sequence[str], roots: Sequence[str]) -> str:
    """What to write in place of a key that cannot be swept."""
    example = {"options": "options.epochs", "data": "data.batch", "train": "train.lr"}.get(path[0], "model.depth")
    if len(path) == 1 and path[0] and path[0] not in TRAINED:
        example = f"{'options' if roots == OF_COMMANDS else 'model'}.{path[0]}"
    elif roots == OF_COMMANDS:
        example = "options.epochs"
    near = nearest(path[0], roots) if len(path) > 1 and path[0] not in roots else ""
    return f'{near} A key is written with its table: "{example}" = [...]'.strip()


def _clashes(items: Sequence[Node]) -> list[Problem]:
    """Names that a sweep made and that cannot be: too long, or another workload's."""
    problems: list[Problem] = []
    seen: dict[str, Node] = {}
    for item in items:
        name, place = item.text("name"), item.find(["name"]).place
        if name is None:
            continue
        first = seen.setdefault(name, item)
        if item.get("sweep") is None and first.get("sweep") is None:
            continue  # their own names, which are checked with the others
        if len(name) > LONGEST_NAME or not name.isprintable():
            message = f"the name '{name[:40]}…' is {len(name):,} characters long; {LONGEST_NAME} are allowed"
            if not name.isprintable():
                message = f"the name '{name[:40]}…' holds a character that cannot be shown"
            problems.append(Problem("E205", message, place, "sweep shorter values, or choose a shorter name"))
        elif first is not item:
            hint = f"the other is at {first.find(['name']).place}; give each its own name"
            problems.append(Problem("E205", f"a second workload is named '{name}'", place, hint))
    return problems
