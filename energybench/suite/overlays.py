"""From a suite as written to a suite as run: `extends`, the quick overlay and `--set`.

Everything here works on a tree of nodes that remember where they were written, before any type is known, so
that a mistake inherited through three tables is still reported at the line that holds it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.limits import too_deep
from energybench.common.names import known_as
from energybench.suite.node import Node, single_place
from energybench.suite.renamed_keys import KeyRenamer
from energybench.suite.set_hints import entry_meant, place_meant
from energybench.suite.sweep_keys import at, flat, path_of
from energybench.suite.variants import method_label, toml

OVERLAID = ("trials", "measure", "accept", "workload", "skip")  # what [quick] may change
WORKLOAD_OVERLAID = ("task", "model", "data", "train", "target", "options")
OF_COMMANDS = ("options",)  # of these, what only a workload that is a command has
SETTABLE = ("suite", "about", "trials", "measure", "accept", "workload", "method")
# A choice, what it is where none is written, and its keys: whoever chooses anew does not inherit them.
BELONGS: dict[str, tuple[str, str | None, tuple[str, ...] | None]] = {
    "task": ("use", None, None),  # every key
    "model": ("use", None, None),
    "data": ("use", None, ("options", "split", "split_seed")),
    "train": ("optimizer", "sgd", ("momentum", "nesterov", "betas")),
    "quality": ("from", None, None),
}


def merge(base: Node, over: Node, name: str = "", *, keep_place: bool = False) -> Node:
    """`over` deep over `base`: its keys win, and `base` gives the others.

    Args:
        name: the table's own key, which tells what a choice in it discards (BELONGS).
        keep_place: a merged table stands where `base` was written, else where `over` was.
    """
    if name == "task" and dict in (type(base.value), type(over.value)):  # a name is a table with `use` alone
        base, over = (Node({"use": each}, each.place) if isinstance(each.value, str) else each for each in (base, over))
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    discarded = _discarded(name, base, over, base.value)
    merged = {key: node for key, node in base.value.items() if key not in discarded}
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node, key, keep_place=keep_place) if key in merged else node
    return Node(merged, base.place if keep_place else over.place)


def _discarded(name: str, base: Node, over: Node, keys: Collection[str]) -> set[str]:
    """Of the keys of the table `name`, those that belong to a choice which `over` makes anew."""
    choice, default, dependents = BELONGS.get(name, ("", None, ()))
    before, chosen = base.get(choice), over.get(choice)
    if chosen is None or chosen.plain() == (default if before is None else before.plain()):
        return set()
    return set(keys) if dependents is None else {*keys} & {*dependents}


def _give_way(base: Node, over: Node) -> Node:
    """`base` less what it sweeps and `over` sets, or discards by a new choice; and less what it sets and `over` sweeps.

    Both are workloads.
    """
    own, others = (each.get("sweep") for each in (base, over))
    if own is not None and isinstance(own.value, dict):
        left = {key: node for key, node in flat(own).items() if not _settled(base, over, path_of(key))}
        base = Node({key: node for key, node in base.value.items() if key != "sweep"}, base.place)
        base = Node({**base.value, "sweep": Node(left, own.place)}, base.place) if left else base
    for path in map(path_of, flat(others) if others is not None else ()):
        base = without(base, path) if at(base, path) is not None else base
    return base


def _settled(base: Node, over: Node, path: Sequence[str]) -> bool:
    """Whether what `base` sweeps at a path has no meaning any more beside `over`."""
    if at(over, path) is not None:
        return True
    name = path[0]
    before, after = (each.get(name) or Node({}, each.place) for each in (base, over))
    if name == "task":
        before, after = (Node({"use": e}, e.place) if isinstance(e.value, str) else e for e in (before, after))
    return len(path) > 1 and path[1] in _discarded(name, before, after, [path[1]])


def extend(tree: Node) -> tuple[Node, list[Problem], frozenset[str]]:
    """Each workload merged over the one that it extends.

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
            return merge(_give_way(Node(inherited, base.place), entry), entry)
        broken.add(child.place)
        return entry

    entries = [whole(entry, (), entry) for entry in tree.items("workload")]
    return _with(tree, "workload", entries), problems, frozenset(broken)


def apply_quick(tree: Node) -> Node:
    """The [quick] overlay merged over the suite; its `workload` over every workload."""
    quick = tree.get("quick")
    if quick is None or not isinstance(quick.value, dict):
        return tree
    for key, over in quick.value.items():
        if key == "workload" and isinstance(over.value, dict):
            known = {inner: node for inner, node in over.value.items() if inner in WORKLOAD_OVERLAID}
            commands = [entry.get("command") is not None for entry in tree.items(key)]
            new = []
            for entry, command in zip(tree.items(key), commands, strict=True):
                # What fits no workload at all is merged over every one, whose own check then tells.
                fits = {
                    inner: node
                    for inner, node in known.items()
                    if (inner in OF_COMMANDS) == command or (inner in OF_COMMANDS) not in commands
                }
                changes = Node(fits, over.place)
                new.append(merge(_give_way(entry, changes), changes, keep_place=True))
            tree = _with(tree, key, new)
        elif key == "skip" and isinstance(over.value, list):  # in addition to the suite's own
            base = tree.get(key)
            before = base.value if base is not None and isinstance(base.value, list) else []
            tree = Node({**tree.value, key: Node([*before, *over.value], over.place)}, tree.place)
        elif key in OVERLAID and key != "workload":
            tree = _merge_key(tree, key, over)
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


@dataclass(frozen=True, slots=True)
class Override:
    """One --set as written: `table[entry].keys=value`, and the tree that is merged over the table or its entries.

    entry: the name in brackets; None: there are none, and every entry is meant
    """

    text: str
    table: str
    entry: str | None
    keys: list[str]
    tree: Node

    def wrong(self, message: str, hint: str = "") -> UsageError:
        """E206, placed at this --set."""
        return _wrong_override(self.text, message, hint)

    @property
    def of_entries(self) -> bool:
        """Whether its table is an array of tables, whose entries have names."""
        return self.table in ("workload", "method")


def _wrong_override(text: str, message: str, hint: str = "") -> UsageError:
    return UsageError(Problem("E206", message, f"--set {text}", hint or "such as --set workload.train.epochs=2"))


def override(tree: Node, text: str, renamer: KeyRenamer) -> tuple[Node, list[Problem]]:
    """One `--set workload[NAME].train.epochs=2` merged over the suite; without [NAME], over every entry."""
    try:
        return _apply_override(tree, _read_override(tree, text, renamer)), []
    except UsageError as error:
        return tree, error.problems


def _read_override(tree: Node, text: str, renamer: KeyRenamer) -> Override:
    """Raises UsageError E206."""
    if len(text) > LONGEST_SET or too_deep(text):
        raise UsageError(Problem("E206", "longer or deeper than any key and its value", f"--set {text[:40]}…"))
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        raise _wrong_override(text, "expected KEY=VALUE with a dotted key")
    table, entry, rest, written = match.groups()
    if table not in SETTABLE:
        raise _wrong_override(text, f"'{table}' cannot be set", place_meant(tree, table, rest, written, SETTABLE))
    if not written:
        raise _wrong_override(text, "no value after the '='")
    try:
        keys = _dotted(rest)
    except ValueError:
        raise _wrong_override(text, f"'{table}{rest}' is not a dotted key") from None
    value: Any = _toml_value(written)
    for key in reversed([table, *keys]):
        value = {key: value}
    over = renamer.tree(single_place(value, f"--set {text}")).find([table])
    read = Override(text, table, entry, keys, over)
    if entry is not None and not read.of_entries:
        message = f"'{table}' has no entries to choose from by [{entry}]"
        raise read.wrong(message, "only workload[NAME] and method[NAME]")
    if read.of_entries and (not keys or keys[0] in ("name", "extends", "use")):
        raise read.wrong(f"'{table}{rest}' cannot be set: it says which entry this is", f"set {table}.KEY")
    return read


def _apply_override(tree: Node, wanted: Override) -> Node:
    """Raises UsageError E206 where the suite has no such entry."""
    if not wanted.of_entries:
        return _merge_key(tree, wanted.table, wanted.tree)
    entries = tree.items(wanted.table)
    names = [entry.text("name") if wanted.table == "workload" else method_label(entry.plain()) for entry in entries]
    known = [name for name in names if name]
    if not entries:
        raise wanted.wrong(f"this suite has no {wanted.table}")
    chosen = None if wanted.entry is None else known_as(wanted.entry, known)
    if chosen is not None and chosen not in known:
        raise wanted.wrong(f"no {wanted.table} is named '{wanted.entry}'", nearest(chosen, known))
    written = wanted.text.partition("=")[2].strip()
    if chosen is None and (meant := entry_meant(tree, wanted.table, wanted.keys, written)):
        raise wanted.wrong(f"'{wanted.keys[0]}' is the name of a {wanted.table}, and no key", meant)
    changed = [
        _set_entry(entry, wanted) if chosen in (None, name) else entry
        for entry, name in zip(entries, names, strict=True)
    ]
    return _with(tree, wanted.table, changed)


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


def _set_entry(entry: Node, wanted: Override) -> Node:
    """A parameter that is set is no longer swept; of a workload, one that is swept is no longer set."""
    over = wanted.tree
    sweep = entry.get("sweep")
    if wanted.table == "workload":
        entry = _give_way(entry, over)
    elif sweep is not None and isinstance(sweep.value, dict):
        left = {key: node for key, node in sweep.value.items() if key not in over.value}
        entry = Node({key: node for key, node in entry.value.items() if key != "sweep"}, entry.place)
        if left:
            entry = Node({**entry.value, "sweep": Node(left, sweep.place)}, entry.place)
    return merge(entry, over, keep_place=True)


def _merge_key(tree: Node, key: str, over: Node) -> Node:
    base = tree.get(key)
    new = over if base is None else merge(base, over, key, keep_place=True)
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
