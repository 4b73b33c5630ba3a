"""From pydantic's errors to Problems: what was written, where, what was expected, what to type instead."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from energybench.common.errors import Problem, nearest
from energybench.common.units import UnitError
from energybench.suite.node import Node
from energybench.suite.variants import toml

ONE_LINE = r"^[^\x00-\x1f\x7f]+$"
FOLDER_NAME = r"^[a-z0-9_][a-z0-9._-]{0,99}$"
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "string_too_short": "some text",
    "tuple_type": "an array [...]",
    "list_type": "an array [...]",
    "dict_type": "a table { ... }",
    "model_type": "a table { ... }",
    ONE_LINE: "text on one line",
    FOLDER_NAME: "lower-case letters, digits, '.', '_' and '-', for it names a folder",
}
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "max_length": "at most this long:"}


class KeyedError(ValueError):
    """A mistake that depends on other keys of the table.

    Attributes:
        key: Dotted, below the table: the key whose place is reported.
        hint: What to type instead.
    """

    def __init__(self, message: str, key: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.key, self.hint = key, hint


TAGS = frozenset({"WorkloadTable", "CommandWorkloadTable", "MethodTable", "CommandMethodTable"})
TASK_TAGS = frozenset({"TaskName", "TaskTable"})  # of a workload's task, which is either


def _is_tag(loc: Sequence[str | int], at: int) -> bool:
    return (at == 2 and loc[at] in TAGS) or (at == 4 and loc[3] == "task" and loc[at] in TASK_TAGS)


def untagged(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """A location without pydantic's tags of a discriminated union, which say which kind of table it is in."""
    return tuple(part for at, part in enumerate(loc) if not _is_tag(loc, at))


def explain(
    error: ValidationError, root: type[BaseModel], tree: Node, broken: Collection[str] = ()
) -> Iterator[Problem]:
    """One Problem per error of a validation.

    Args:
        error: Of `root`, validated with the plain values of `tree`.
        root: The model of the whole file.
        tree: Says where each value was written.
        broken: Places of workloads whose `extends` failed; that keys are missing there is not reported.
    """
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        if detail["type"] == "too_short" and detail["input"]:
            continue  # there are items, whose own mistakes are reported
        follows = detail["type"] == "missing" or isinstance(cause, KeyedError)
        if follows and tree.find(detail["loc"][:2]).place in broken:
            continue
        typed = (*detail["loc"], *(cause.key.split(".") if isinstance(cause, KeyedError) and cause.key else ()))
        loc = untagged(typed)
        table, place = _spelled(loc[:-1]) or "the suite", tree.find(loc).place
        if detail["type"] == "missing":
            hint = _mistyped(root, typed, detail["input"]) or _addition(root, typed)
            problem = Problem("E203", f"{table} lacks '{loc[-1]}'", place, hint)
        elif detail["type"] == "extra_forbidden":
            message = f"unknown key '{loc[-1]}' in {table}"
            problem = Problem("E201", message, place, _right_key(root, typed))
        elif isinstance(cause, UnitError):
            problem = Problem("E204", f"{_spelled(loc)}: {cause}", place, cause.hint)
        elif isinstance(cause, KeyedError):
            problem = Problem("E202", f"{_spelled(loc)}: {cause}", place, cause.hint)
        else:
            expected, hint = _expected(detail, loc)
            message = f"{_spelled(loc)} is {toml(detail['input'])}; expected {expected}"
            problem = Problem("E202", message, place, hint)
        yield as_override_problem(problem)


def unfit(tree: Node) -> Iterator[Problem]:
    """Values that TOML allows and a suite does not: nan, inf, dates, times, integers beyond 64 bits."""
    value = tree.value
    if isinstance(value, dict | list):
        for node in value.values() if isinstance(value, dict) else value:
            yield from unfit(node)
    elif (mistake := _unfit_scalar(value)) is not None:
        message, hint = mistake
        yield as_override_problem(Problem("E202", message, tree.place, hint))


def _unfit_scalar(value: Any) -> tuple[str, str] | None:
    """What is wrong with it, and what to write instead; None where nothing is."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number", "write a number"
    if isinstance(value, float) and abs(value) > 1e300:
        return f"{value} is too large to compute with", "write a smaller one"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a whole number of more than 64 bits", "write a smaller one"
    if isinstance(value, datetime.date | datetime.time):
        return f"{value} is a date or a time", f'put it in quotes: "{value}"'
    return None


def as_override_problem(problem: Problem) -> Problem:
    """Under the code of a wrong --set, where it was written in one."""
    if not problem.where.startswith("--set "):
        return problem
    return Problem("E206", problem.message, problem.where, problem.hint)


def _spelled(loc: Sequence[str | int]) -> str:
    """("workload", 0, "train", "lr") → "workload.train.lr", as --set has it."""
    return ".".join(part for part in loc if isinstance(part, str))


def _expected(detail: Any, loc: Sequence[str | int]) -> tuple[str, str]:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    key = str(loc[-1]) if loc else ""
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        if not choices:
            return context["expected"], f"write {key} = {context['expected']}"
        return "one of: " + ", ".join(choices), nearest(value, choices) if isinstance(value, str) else ""
    if kind == "too_short":
        return f"at least one [[{key}]]", ""
    for bound, words in BOUNDS.items():
        if bound in context:
            return f"{words} {context[bound]}", ""
    expected = EXPECTED.get(context.get("pattern", kind), detail["msg"])
    hint = ""
    if kind in ("int_type", "float_type", "bool_type") and isinstance(value, str) and value:
        bare = value.strip().lower()
        hint = f"without quotes: {key} = {bare}" if re.fullmatch(r"true|false|[-+]?[0-9.]+(e-?\d+)?", bare) else ""
    elif kind == "tuple_type" and isinstance(value, dict):
        hint = f"in double brackets: [[{key}]]"
    elif kind in ("model_type", "dict_type") and isinstance(value, list):
        hint = f"in single brackets: [{key}]"
    elif kind == "string_type":
        hint = f'in quotes: {key} = "{value}"' if isinstance(value, int | float) else ""
    return expected, hint


# ── what the models say of their keys ─────────────────────────────────────────────────────────────────────


def _keys(model: type[BaseModel] | None) -> dict[str, FieldInfo]:
    """A model's fields by their key in the file."""
    return {field.alias or name: field for name, field in (model.model_fields if model else {}).items()}


def _model(annotation: Any, name: str | None = None) -> type[BaseModel] | None:
    """The model inside `Model | None` or `tuple[Model, ...]`: the first, or the one of this name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if name in (None, annotation.__name__) else None
    return next((model for inner in get_args(annotation) if (model := _model(inner, name))), None)


def _model_at(root: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    annotation: Any = None
    for at, part in enumerate(loc):
        if _is_tag(loc, at):
            model = _model(annotation, str(part)) or model
        elif isinstance(part, str):
            field = _keys(model).get(part)
            annotation = field.annotation if field else None
            model = _model(annotation)
    return model


def model_name(root: type[BaseModel], tables: Sequence[str]) -> str:
    """The class of the table at a path of keys, as JSON Schema calls it."""
    model = _model_at(root, tables)
    assert model is not None, tables
    return model.__name__


def _right_key(root: type[BaseModel], loc: Sequence[str | int]) -> str:
    """Another table that has this key, else the nearest key of this one."""
    key = str(loc[-1])
    parts = [part for part in untagged(loc[:-1]) if isinstance(part, str)]
    if loc[2:3] and loc[2] in TAGS and str(loc[2]).startswith("Command"):
        return nearest(key, _keys(_model_at(root, loc[:-1])))
    for above in (parts, parts[:-1]):
        for name, field in _keys(_model_at(root, above)).items():
            if key in _keys(_model(field.annotation)):
                return f"'{key}' belongs in {'.'.join([*above, name])}"
    kinds = ["command"] if parts in (["workload"], ["method"]) else []  # the key that makes it the other kind
    return nearest(key, [*_keys(_model_at(root, parts)), *kinds])


def _mistyped(root: type[BaseModel], loc: Sequence[str | int], given: dict[str, Any]) -> str:
    """A key that is nearly the missing one, where a table takes it for a parameter. Other tables refuse it."""
    model = _model_at(root, loc[:-1])
    if model is None or model.model_config.get("extra") != "allow":
        return ""
    for key in (key for key in given if key not in _keys(model)):
        hint = nearest(key, [str(loc[-1]), "command"])  # a method's other kind
        if hint.startswith("did you mean"):
            return f"{hint.rstrip('?')} instead of '{key}'?"
    return ""


def _addition(root: type[BaseModel], loc: Sequence[str | int]) -> str:
    """What to type for a key that is missing."""
    field = _keys(_model_at(root, loc[:-1])).get(str(loc[-1]))
    if field is None:
        return ""
    if get_args(field.annotation) and _model(field.annotation):
        return f"add a [[{loc[-1]}]]"
    return f"add {loc[-1]} = {toml(_example(field))}"


def _example(field: FieldInfo) -> Any:
    model = _model(field.annotation)
    if model is not None:
        return {key: _example(inner) for key, inner in _keys(model).items() if inner.is_required()}
    if field.examples:
        return field.examples[0]
    return next(iter(get_args(field.annotation)), "...")  # a Literal's first
