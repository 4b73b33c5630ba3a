"""A workload's task by its name in a suite, or from a user's own file.

A task is a class of Task: what is learned, and how well. Start with `classification.py`. A task of its own is a file
here and a line of TASKS.
"""

from __future__ import annotations

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
from energybench.train.discovery import Source, load, names_file, no_file
from energybench.train.method import Task
from energybench.workloads.names import Names

# Name → "module:Class", imported when it is used.
TASKS = {
    "classification": "energybench.workloads.tasks.classification:Classification",
    "regression": "energybench.workloads.tasks.regression:Regression",
    "ddpm": "energybench.workloads.tasks.diffusion:DDPM",
    "top_k_classification": "energybench.workloads.tasks.classification:TopKClassification",
    "multi_label": "energybench.workloads.tasks.multi_label:MultiLabel",
    "ridge": "energybench.workloads.tasks.ridge:Ridge",
    "segmentation": "energybench.workloads.tasks.segmentation:Segmentation",
    "detection": "energybench.workloads.tasks.detection:Detection",
    "text_classification": "energybench.workloads.tasks.text:TextClassification",
    "language_model": "energybench.workloads.tasks.text:LanguageModel",
    "fedavg": "energybench.workloads.tasks.federated:FedAvg",
    "fedprox": "energybench.workloads.tasks.federated:FedProx",
    "fedspeed": "energybench.workloads.tasks.federated:FedSpeed",
    "source_only": "energybench.workloads.tasks.adaptation:SourceOnly",
    "mcc": "energybench.workloads.tasks.adaptation:MinimumClassConfusion",
    "mdd": "energybench.workloads.tasks.adaptation:MarginDisparity",
    "erm": "energybench.workloads.tasks.generalization:RiskMinimization",
    "vrex": "energybench.workloads.tasks.generalization:RiskExtrapolation",
    "group_dro": "energybench.workloads.tasks.generalization:GroupRobustness",
}
NEEDS: dict[str, str] = {"ddpm": "diffusion"}  # name → the extra of energybench that it needs
NAMES = Names("task", "E403", TASKS, NEEDS)


def task_named(task: str | TaskTable, base: Path, where: str = "", place: Callable[[str], str] | None = None) -> Task:
    """A workload's task with its parameters: by name, or the user's "file.py:Class".

    Args:
        task:  as the suite has it
        base:  the suite's folder
        where: the place of the task in the suite
        place: of one of its parameters

    Raises:
        UsageError: E403 for a name that nothing has, a file that is not there, a package's task that is none, or
            parameters that are not those that it takes; E302 for a file that cannot be used
    """
    use, parameters = (task, {}) if isinstance(task, str) else (task.use, task.parameters)
    kind = _from_file(use, base, where) if names_file(use) else _by_name(use, where)
    if not parameters and not _required(kind):
        return kind()  # as it makes itself
    shown = short(use) if names_file(use) else known_as(use, NAMES.known())
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


def _by_name(use: str, where: str) -> type[Task]:
    found = NAMES.load(use, where)
    if found is None:
        hint = f'{nearest(use, NAMES.known())}, or "file.py:Class"'
        raise UsageError(Problem("E403", f"no task is called '{use}'", where, hint))
    if not (isinstance(found, type) and issubclass(found, Task)):
        message = f"what an installed package offers as the task '{use}' is no class of Task: {found!r}"
        raise UsageError(Problem("E403", message, where, "energybench.Task is its base"))
    return found


def _from_file(use: str, base: Path, where: str) -> type[Task]:
    file, _, class_name = use.partition(":")
    if not os.path.isfile(base / file):
        raise UsageError(Problem("E403", no_file(file, base / file), where, f"looked at {base / file}"))
    path = (base / file).resolve()
    return load(Source(path.stem, path, "given", class_name or None), Task)
