"""From a suite as written to a suite as run: `extends`, the quick overlay and `--set`.

Everything here works on a tree of nodes that remember where they were written, before any type is known, so
that a mistake inherited through three tables is still reported at the line that holds it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from energybench.common.errors import Problem, nearest
from energybench.common.limits import too_deep
from energybench.suite.node import Node, planted
from energybench.suite.variants import method_label, toml

OVERLAID = ("trials", "measure", "accept", "workload", "skip")  # what [quick] may change
WORKLOAD_OVERLAID = ("task", "model", "data", "train", "target", "options")
OF_COMMANDS = ("options",)  # of these, what only a workload that is a command has
SETTABLE = ("suite", "about", "trials", "measure", "accept", "workload", "method")
# A choice, what it is where none is written, and its keys: whoever chooses anew does not inherit them.
BELONGS: dict[str, tuple[str, str | None, tuple[str, ...] | None]] = {
    "model": ("use", None, None),  # every key
    "data": ("use", None, ("options",)),
    "train": ("optimizer", "sgd", ("momentum", "nesterov", "betas")),
    "quality": ("from", None, None),
}


def lay(base: Node, over: Node, name: str = "", *, keep_place: bool = False) -> Node:
    """`over` deep over `base`: its keys win, and `base` gives the others. `name` is the table's own key.

    A merged table stands where `over` was written, or with `keep_place` where `base` was.
    """
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    kept = dict(base.value)
    choice, otherwise, belonging = BELONGS.get(name, ("", None, ()))
    chosen = over.get(choice)
    if chosen is not None and chosen.plain() != (kept[choice].plain() if choice in kept else otherwise):
        gone = set(kept) if belonging is None else set(belonging)
        kept = {key: node for key, node in kept.items() if key not in gone}
    for key, node in over.value.items():
        kept[key] = lay(kept[key], node, key, keep_place=keep_place) if key in kept else node
    return Node(kept, base.place if keep_place else over.place)


def extend(tree: Node) -> tuple[Node, list[Problem], frozenset[str]]:
    """Each workload laid over the one it extends.

    Returns the new tree, what is wrong with names and references, and where the incomplete workloads stand.
    """
    problems: list[Problem] = []
    broken: set[str] = set()
    circles: set[frozenset[str]] = set()
    named: dict[str, Node] = {}
    for entry in tree.items("workload"):
        name = entry.text("name")
        if name in named:
            hint = f"the first is at {named[name].find(['name']).place}; give each its own name"
            place = entry.find(["name"]).place
            problems.append(Problem("E205", f"a second workload is named '{name}'", place, hint))
        elif name is not None:
            named[name] = entry

    def whole(entry: Node, chain: tuple[str, ...], child: Node) -> Node:
        name, parent = entry.text("name") or "", entry.text("extends")
        if parent is None:
            return entry
        place = entry.find(["extends"]).place
        if parent in (*chain, name) and parent:
            circle = (*chain, name)[(*chain, name).index(parent) :]
            if frozenset(circle) not in circles:
                spelled = " → ".join(f"'{one}'" for one in (*circle, parent))
                message = f"workloads extend each other in a circle: {spelled}"
                problems.append(Problem("E205", message, place, "one of them must stand on its own"))
            circles.add(frozenset(circle))
        elif parent not in named:
            hint = nearest(parent, set(named) - {name})
            problem = Problem("E205", f"extends '{parent}', but no workload has that name", place, hint)
            problems.extend([problem] if problem not in problems else [])
        else:
            base = whole(named[parent], (*chain, name), child)
            inherited = {key: node for key, node in base.value.items() if key not in ("name", "extends")}
            return lay(Node(inherited, base.place), entry)
        broken.add(child.place)
        return entry

    entries = [whole(entry, (), entry) for entry in tree.items("workload")]
    return _with(tree, "workload", entries), problems, frozenset(broken)


def quicken(tree: Node) -> Node:
    """The [quick] overlay laid over the suite; its `workload` over every workload."""
    quick = tree.get("quick")
    if quick is None or not isinstance(quick.value, dict):
        return tree
    for key, over in quick.value.items():
        if key == "workload" and isinstance(over.value, dict):
            known = {inner: node for inner, node in over.value.items() if inner in WORKLOAD_OVERLAID}
            commands = [entry.get("command") is not None for entry in tree.items(key)]
            new = []
            for entry, command in zip(tree.items(key), commands, strict=True):
                # What fits no workload at all is laid over every one, whose own check then tells.
                fits = {
                    inner: node
                    for inner, node in known.items()
                    if (inner in OF_COMMANDS) == command or (inner in OF_COMMANDS) not in commands
                }
                new.append(lay(entry, Node(fits, over.place), keep_place=True))
            tree = _with(tree, key, new)
        elif key == "skip" and isinstance(over.value, list):  # in addition to the suite's own
            base = tree.get(key)
            before = base.value if base is not None and isinstance(base.value, list) else []
            tree = Node({**tree.value, key: Node([*before, *over.value], over.place)}, tree.place)
        elif key in OVERLAID and key != "workload":
            tree = _lay_key(tree, key, over)
    return tree


def quick_problems(tree: Node) -> list[Problem]:
    """What [quick] holds that an overlay cannot change."""
    quick = tree.get("quick")
    if quick is None:
        return []
    problems = []
    tables = [("quick", quick, OVERLAID), ("quick.workload", quick.get("workload"), WORKLOAD_OVERLAID)]
    for spelled, table, words in tables:
        if table is None:
            continue
        if not isinstance(table.value, dict):
            message = f"{spelled} is {toml(table.plain())}; expected a table"
            problems.append(Problem("E202", message, table.place, "such as workload.train = { epochs = 2 }"))
            continue
        for key in [key for key in table.value if key not in words]:
            message = f"unknown key '{key}' in {spelled}, or one that it cannot change"
            problems.append(Problem("E201", message, table.value[key].place, nearest(key, words)))
    return problems


LONGEST_SET = 10_000  # characters of a --set
_OVERRIDE = re.compile(r"""\s*([A-Za-z_]+)(?:\[(.*?)\])?((?:\.(?:"[^"]*"|'[^']*'|[^.="'\s]+))*)\s*=\s*(.*?)\s*""")


def override(tree: Node, text: str) -> tuple[Node, list[Problem]]:
    """One `--set workload[NAME].train.epochs=2` laid over the suite; without [NAME], over every entry."""
    place = f"--set {text}"

    def wrong(message: str, hint: str = "") -> tuple[Node, list[Problem]]:
        return tree, [Problem("E206", message, place, hint or "such as --set workload.train.epochs=2")]

    if len(text) > LONGEST_SET or too_deep(text):
        return tree, [Problem("E206", "longer or deeper than any key and its value", f"--set {text[:40]}…")]
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        return wrong("expected KEY=VALUE with a dotted key")
    head, name, rest, written = match.groups()
    if head not in SETTABLE:
        return wrong(f"'{head}' cannot be set", nearest(head, SETTABLE))
    if not written:
        return wrong("no value after the '='")
    try:
        keys = _dotted(rest)
    except ValueError:
        return wrong(f"'{head}{rest}' is not a dotted key")
    several = head in ("workload", "method")
    if name is not None and not several:
        return wrong(f"'{head}' has no entries to choose from by [{name}]", "only workload[NAME] and method[NAME]")
    if several and (not keys or keys[0] in ("name", "extends", "use")):
        return wrong(f"'{head}{rest}' cannot be set: it says which entry this is", f"set {head}.KEY")
    value: Any = _toml_value(written)
    for key in reversed(keys):
        value = {key: value}
    if not several:
        return _lay_key(tree, head, planted(value, place)), []
    entries = tree.items(head)
    names = [entry.text("name") if head == "workload" else method_label(entry.plain()) for entry in entries]
    if not entries:
        return wrong(f"this suite has no {head}")
    if name is not None and name not in names:
        return wrong(f"no {head} is named '{name}'", nearest(name, [known for known in names if known]))
    changed = [
        _set_entry(entry, planted(value, place)) if name in (None, known) else entry
        for entry, known in zip(entries, names, strict=True)
    ]
    return _with(tree, head, changed), []


def _dotted(rest: str) -> list[str]:
    """ ".train.epochs" → ["train", "epochs"]; keys may be quoted."""
    keys: list[str] = []
    value: Any = tomllib.loads(f"{rest[1:]} = 0") if rest else 0
    while isinstance(value, dict):
        key, value = next(iter(value.items()))
        keys.append(key)
    return keys


def _toml_value(written: str) -> Any:
    """As TOML would read it; what TOML cannot read is a string, so that `limit=10 min` needs no quotes."""
    try:
        parsed = tomllib.loads(f"value = {written}")
    except (ValueError, RecursionError):  # a number of more digits than Python reads, brackets without end
        return written
    return parsed["value"] if len(parsed) == 1 else written


def _set_entry(entry: Node, over: Node) -> Node:
    """A parameter that is set is no longer swept."""
    sweep = entry.get("sweep")
    if sweep is not None and isinstance(sweep.value, dict):
        left = {key: node for key, node in sweep.value.items() if key not in over.value}
        entry = Node({key: node for key, node in entry.value.items() if key != "sweep"}, entry.place)
        if left:
            entry = Node({**entry.value, "sweep": Node(left, sweep.place)}, entry.place)
    return lay(entry, over, keep_place=True)


def _lay_key(tree: Node, key: str, over: Node) -> Node:
    base = tree.get(key)
    new = over if base is None else lay(base, over, key, keep_place=True)
    return Node({**tree.value, key: new}, tree.place)


def without(tree: Node, loc: Sequence[str | int]) -> Node:
    """The tree less what stands at `loc`, or less the table that lacks it."""
    if not loc:
        return tree
    key, rest = loc[0], loc[1:]
    if isinstance(tree.value, dict) and key in tree.value:
        child = tree.value[key]
        if rest and isinstance(child.value, (dict, list)) and _holds(child, rest[0]):
            return Node({**tree.value, str(key): without(child, rest)}, tree.place)
        return Node({name: node for name, node in tree.value.items() if name != key}, tree.place)
    if isinstance(tree.value, list) and isinstance(key, int) and key < len(tree.value):
        child = tree.value[key]
        if rest and isinstance(child.value, (dict, list)) and _holds(child, rest[0]):
            return Node([*tree.value[:key], without(child, rest), *tree.value[key + 1 :]], tree.place)
        return Node([*tree.value[:key], *tree.value[key + 1 :]], tree.place)
    return tree


def _holds(node: Node, key: str | int) -> bool:
    if isinstance(node.value, dict):
        return key in node.value
    return isinstance(key, int) and key < len(node.value)


def _with(tree: Node, key: str, entries: list[Node]) -> Node:
    """The tree with these tables in place of the tables of `key`; what is no table stays where it is."""
    node = tree.get(key)
    if node is None or not isinstance(node.value, list):
        return tree
    new = iter(entries)
    items = [next(new) if isinstance(item.value, dict) else item for item in node.value]
    return Node({**tree.value, key: Node(items, node.place)}, tree.place)
