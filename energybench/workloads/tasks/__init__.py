"""A workload's task by its name in a suite, or from a user's own file.

A task is a class of Task: what is learned, and how well. Start with `classification.py`. A task of its own is a file
here and a line of TASKS.
"""

from __future__ import annotations

import os
from pathlib import Path

from energybench.common.errors import Problem, UsageError, nearest
from energybench.train.discovery import Source, load, names_file, no_file
from energybench.train.method import Task
from energybench.workloads.names import Names

# Name → "module:Class", imported when it is used.
TASKS = {
    "classification": "energybench.workloads.tasks.classification:Classification",
    "ridge": "energybench.workloads.tasks.ridge:Ridge",
}
NEEDS: dict[str, str] = {}  # name → the extra of energybench that it needs
NAMES = Names("task", "E403", TASKS, NEEDS)


def task_named(use: str, base: Path, where: str = "") -> Task:
    """A workload's task by name, or the user's "file.py:Class".

    Raises:
        UsageError: E403 for a name that nothing has, a file that is not there, or a package's task that is none
    """
    kind = _from_file(use, base, where) if names_file(use) else _by_name(use, where)
    task: Task = kind()
    return task


def _by_name(use: str, where: str) -> type:
    found = NAMES.load(use, where)
    if found is None:
        hint = f'{nearest(use, NAMES.known())}, or "file.py:Class"'
        raise UsageError(Problem("E403", f"no task is called '{use}'", where, hint))
    if not (isinstance(found, type) and issubclass(found, Task)):
        message = f"what an installed package offers as the task '{use}' is no class of Task: {found!r}"
        raise UsageError(Problem("E403", message, where, "energybench.Task is its base"))
    return found


def _from_file(use: str, base: Path, where: str) -> type:
    file, _, class_name = use.partition(":")
    if not os.path.isfile(base / file):
        raise UsageError(Problem("E403", no_file(file, base / file), where, f"looked at {base / file}"))
    path = (base / file).resolve()
    return load(Source(path.stem, path, "given", class_name or None), Task)
