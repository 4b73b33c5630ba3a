"""A workload's task by its name in a suite, or from a user's own file."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.names import known_as
from energybench.train.discovery import Source, load, names_file, no_file
from energybench.train.method import Task

TASKS = {
    "classification": "energybench.workloads.classification:Classification",
    "ridge": "energybench.workloads.ridge:Ridge",
}


def task_named(use: str, base: Path, where: str = "") -> Task:
    """A workload's task by name, or the user's "file.py:Class"."""
    use = known_as(use, TASKS)
    if use in TASKS:
        module, _, name = TASKS[use].partition(":")
        return getattr(importlib.import_module(module), name)()
    if not names_file(use):
        raise UsageError(
            Problem("E403", f"no task is called '{use}'", where, nearest(use, TASKS) + ', or "file.py:Class"')
        )
    file, _, class_name = use.partition(":")
    if not os.path.isfile(base / file):
        raise UsageError(Problem("E403", no_file(file, base / file), where, f"looked at {base / file}"))
    path = (base / file).resolve()
    task: Task = load(Source(path.stem, path, "given", class_name or None), Task)()
    return task
