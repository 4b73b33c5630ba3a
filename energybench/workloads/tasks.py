"""A workload's task by its name in a suite, or from a user's own file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.names import known_as
from energybench.suite.tables import TaskTable
from energybench.suite.variants import short
from energybench.train import discovery
from energybench.train.discovery import MethodCard, Source, load, names_file, no_file
from energybench.train.method import Task

TASKS = {
    "classification": "energybench.workloads.classification:Classification",
    "ridge": "energybench.workloads.ridge:Ridge",
}


def task_named(task: str | TaskTable, base: Path, where: str = "", place: Callable[[str], str] | None = None) -> Task:
    """A workload's task with its parameters: by name, or the user's "file.py:Class".

    Args:
        task:  as the suite has it
        base:  the suite's folder
        where: the place of the task in the suite
        place: of one of its parameters

    Raises:
        UsageError: E403, it is not known, or its parameters are not those that it takes; E302, its file cannot be used.
    """
    use, parameters = (task, {}) if isinstance(task, str) else (task.use, task.parameters)
    kind = task_class(use, base, where)
    if not parameters and not _required(kind):
        return kind()  # as it makes itself
    shown = known_as(use, TASKS) if not names_file(use) else short(use)
    try:
        made: Task = discovery.build(kind, shown, parameters, place or (lambda key: where))
    except UsageError as error:  # in the words of a method's parameters, and no method's mistakes
        raise UsageError(replace(problem, code="E403") for problem in error.problems) from None
    object.__setattr__(made, "name", kind.name)  # its random stream and diagnostics go by the class's own
    return made


def _required(kind: type[Task]) -> bool:
    """Whether a parameter of it has no default."""
    given: tuple[Field[Any], ...] = fields(kind) if is_dataclass(kind) else ()
    return any(item.init and item.default is MISSING and item.default_factory is MISSING for item in given)


def task_class(use: str, base: Path, where: str = "") -> type[Task]:
    """Raises UsageError E403, E302."""
    use = known_as(use, TASKS)
    if use in TASKS:
        module, _, name = TASKS[use].partition(":")
        kind: type[Task] = getattr(importlib.import_module(module), name)
        return kind
    if not names_file(use):
        raise UsageError(
            Problem("E403", f"no task is called '{use}'", where, nearest(use, TASKS) + ', or "file.py:Class"')
        )
    file, _, class_name = use.partition(":")
    if not os.path.isfile(base / file):
        raise UsageError(Problem("E403", no_file(file, base / file), where, f"looked at {base / file}"))
    path = (base / file).resolve()
    return load(Source(path.stem, path, "given", class_name or None), Task)


def cards() -> list[MethodCard]:
    """What each named task says of itself and of its parameters, read without importing it."""
    package = Path(__file__).resolve().parents[2]
    found = []
    for name, target in TASKS.items():
        module, _, class_name = target.partition(":")
        file = package.joinpath(*module.split(".")).with_suffix(".py")
        found.append(discovery.card(Source(name, file, "shipped", class_name)))
    return found
