"""From the [[method]] tables of a suite to the variants that are run: stacks, sweeps and labels."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from energybench.common.errors import Problem, nearest
from energybench.common.limits import NAME
from energybench.common.names import known_as
from energybench.suite.toml_positions import Loc

if TYPE_CHECKING:
    from energybench.suite.node import Node

RESERVED = ("baseline", "twin", "plain training", "the plain command")  # "... matched" is a control's label
KNOWN_KEYS = (
    "use",
    "name",
    "sweep",
    "claims",
    "control",
    "tuned",
    "command",
)  # every other key of a [[method]] is a parameter
MOST_CELLS = 100_000
LONGEST_LABEL = NAME - 100  # a control's label is longer, and so is a trial's name


class StackItem(NamedTuple):
    """One method of a stack: what to use, its parameters as TOML values, and the table that holds them."""

    use: str
    parameters: dict[str, Any]
    loc: Loc


@dataclass(frozen=True, slots=True)
class Variant:
    """One method or stack (outermost first) with one choice of its swept parameters.

    label: "mine[skip=every:5]", unique in the suite;  entry: the same without its sweep, "mine"
    claim: fields of record.Claim, or None
    """

    label: str
    entry: str
    stack: tuple[StackItem, ...]
    loc: Loc
    claim: dict[str, Any] | None = None
    control: str = "auto"
    tuned: int | None = None  # full trainings that choosing its parameters took
    command: str | dict[str, str] | None = None  # in place of a stack: what runs instead, or workload → what
    values: dict[str, Any] = field(default_factory=dict)  # what is swept of a command

    def command_for(self, workload: str, plain_name: str = "") -> str | None:
        """What runs in place of this workload's own command; None where nothing does.

        plain_name: the workload's without its sweep, for which there may be one
        """
        if not isinstance(self.command, dict):
            return self.command
        return self.command.get(workload, self.command.get(plain_name))


def short(use: str) -> str:
    """The readable name of a `use`: "mine" as it is, "here/my.py" → "my", "here/my.py:Mine" → "Mine"."""
    path, _, name = use.rpartition(":")
    if path.endswith(".py"):
        return name
    return Path(use).stem if use.endswith(".py") else use


def method_label(entry: Mapping[str, Any]) -> str | None:
    """A method entry's name, or what it uses joined by "+"; None where neither can be told."""
    name, uses = entry.get("name"), _uses(entry)
    if isinstance(name, str) and name:
        return name
    return "+".join(map(short, uses)) or None


def _uses(entry: Mapping[str, Any]) -> list[str]:
    """What an entry uses, outermost first; nothing where the types are wrong."""
    uses = entry.get("use")
    uses = uses if isinstance(uses, list) else [uses]
    return uses if all(isinstance(use, str) and use for use in uses) else []


def expand(tree: Node, *, quick: bool = False) -> tuple[list[Variant], list[Problem]]:
    """Every variant of every method, and the mistakes in labels, stacks and sweeps.

    Args:
        tree: The whole suite.
        quick: Each sweep keeps its first value only.
    """
    variants: list[Variant] = []
    problems: list[Problem] = []
    methods = tree.get("method")
    entries = methods.value if methods and isinstance(methods.value, list) else []
    count = variants_of(tree)
    if count > MOST_CELLS and not quick:  # reported before the first is made
        largest = max(entries, key=_count)
        made = f"this sweep makes {counted(_count(largest))} variants"
        if _count(largest) <= MOST_CELLS:
            made = f"all sweeps make {counted(count)} variants"
        message, place = f"{made}; at most {MOST_CELLS:,} are allowed", largest.find(("sweep",)).place
        return [], [Problem("E207", message, place, "sweep fewer parameters, or fewer values")]
    for index, entry in enumerate(entries):
        of_entry, more = _expand_entry(entry, ("method", index), quick)
        variants += of_entry
        problems += more
    seen: dict[str, Loc] = {}
    for variant in variants:
        place = tree.find((*variant.loc, "name")).place
        first = seen.setdefault(variant.label, variant.loc)
        if len(variant.label) > LONGEST_LABEL or not variant.label.isprintable():
            shown = f"{variant.label[:40]}…"
            message = f"the label '{shown}' is {len(variant.label):,} characters long; {LONGEST_LABEL} can be shown"
            if not variant.label.isprintable():
                message = f"the label '{shown}' holds a character that cannot be shown"
            problems.append(Problem("E205", message, place, 'add name = "...", or write shorter values'))
        elif variant.entry in RESERVED or variant.entry.endswith(" matched"):
            message = f"a method cannot be named '{variant.entry}': every suite has one of its own"
            problems.append(Problem("E205", message, place, "give it another name"))
        elif first != variant.loc:
            hint = f'add name = "..." to tell it from the one at {tree.find((*first, "name")).place}'
            problems.append(Problem("E205", f"a second method is named '{variant.label}'", place, hint))
    return variants, list(dict.fromkeys(problems))


def variants_of(tree: Node) -> int:
    """How many variants `expand` would make, without making one."""
    methods = tree.get("method")
    return sum(map(_count, methods.value)) if methods and isinstance(methods.value, list) else 0


def counted(number: int) -> str:
    """1,000,000, or "about 10^300" from 31 digits on."""
    return f"{number:,}" if number < 10**30 else f"about 10^{math.log10(number):.0f}"


def _count(entry: Node) -> int:
    """How many variants an entry's sweep makes."""
    sweep = entry.get("sweep")
    choices = sweep.value.values() if sweep is not None and isinstance(sweep.value, dict) else ()
    return math.prod(len(each.value) for each in choices if isinstance(each.value, list))


def _expand_entry(entry: Node, loc: Loc, quick: bool) -> tuple[list[Variant], list[Problem]]:
    table = entry.plain()
    label = method_label(table) if isinstance(table, dict) else None
    command = table.get("command") if label is not None else None
    if label is None or not (command or _uses(table)):
        return [], []  # the types are wrong, and are reported with the others
    parameters = {key: value for key, value in table.items() if key not in KNOWN_KEYS}
    sweep = table.get("sweep", {})
    if not command and isinstance(table["use"], list):
        problems = _stack_problems(entry, table["use"], parameters, sweep)
        stack = tuple(StackItem(use, *_stack_table(use, parameters, loc)) for use in table["use"])
        return ([] if problems else [Variant(label, label, stack, loc)]), problems

    def variant(mark: str, chosen: dict[str, Any]) -> Variant:
        shown = f"{label}[{mark}]" if mark else label
        if command:
            return Variant(shown, label, (), loc, command=command, values=chosen)
        return Variant(shown, label, (StackItem(table["use"], {**parameters, **chosen}, loc),), loc)

    if not isinstance(sweep, dict):
        return [variant("", {})], []
    problems = _sweep_problems(entry, parameters, sweep)
    if problems:
        return [], problems
    values = [choices[:1] if quick else choices for choices in sweep.values()]
    variants = []
    for choice in itertools.product(*values):
        chosen = dict(zip(sweep, choice, strict=True))
        mark = ",".join(f"{key}={_shown(value)}" for key, value in chosen.items())
        variants.append(variant(mark, chosen))
    return variants, []


def _stack_table(use: str, parameters: Mapping[str, Any], loc: Loc) -> tuple[dict[str, Any], Loc]:
    key = use if use in parameters else known_as(short(use), parameters)
    return parameters.get(key, {}), (*loc, key)


def _stack_problems(entry: Node, uses: list[str], parameters: Mapping[str, Any], sweep: Any) -> list[Problem]:
    problems = []

    def report(code: str, loc: Loc, message: str, hint: str = "") -> None:
        problems.append(Problem(code, message, entry.find(loc).place, hint))

    names = [short(use) for use in uses]
    lower = [name.casefold() for name in names]
    for position, name in enumerate(names):
        if lower[position] in lower[:position]:
            report("E205", ("use", position), f"'{name}' is twice in one stack", "name it once")
    if sweep:
        report("E207", ("sweep",), "a stack cannot be swept", "write one [[method]] per combination")
    for key, value in parameters.items():
        if key.casefold() not in lower and key not in uses:
            hint = f"{names[0]} = {{ {key} = {toml(value)} }}"
            hint = nearest(key, [*names, *KNOWN_KEYS]) if isinstance(value, dict) else hint
            report("E201", (key,), f"unknown key '{key}': a stack's parameters stand in a table per method", hint)
        elif not isinstance(value, dict):
            message = f"'{key}' is {toml(value)}; expected a table of its parameters"
            report("E202", (key,), message, f"{key} = {{ parameter = value }}")
    return problems


def _sweep_problems(entry: Node, parameters: Mapping[str, Any], sweep: Mapping[str, Any]) -> list[Problem]:
    problems = []

    def report(key: str, message: str, hint: str) -> None:
        problems.append(Problem("E207", message, entry.find(("sweep", key)).place, hint))

    for key, choices in sweep.items():
        if not isinstance(choices, list):
            message = f"sweep.{key} is {toml(choices)}; expected an array of values"
            report(key, message, f"{key} = [{toml(choices)}]")
        elif not choices:
            report(key, f"sweep.{key} is empty, so no variant is left", "list its values, or remove it")
        elif len(set(map(_shown, choices))) < len(choices):
            report(key, f"sweep.{key} names a value twice", "name each value once")
        if key in KNOWN_KEYS:
            report(key, f"'{key}' cannot be swept: it is not a parameter", "sweep the method's parameters")
        if key in parameters:
            report(key, f"'{key}' is both fixed and swept", "keep one of the two")
    return problems


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else toml(value)


def toml(value: Any) -> str:
    """A value as one would type it, shortened."""
    if isinstance(value, dict):
        text = f"{{ {', '.join(f'{key} = {toml(item)}' for key, item in value.items())} }}" if value else "{}"
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
