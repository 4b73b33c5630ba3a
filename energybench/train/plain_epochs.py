"""What epochs of plain training are in a run: as its task says, or one pass over the training set. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from energybench.common.errors import Problem, UsageError
from energybench.train.method import Task
from energybench.train.passes import Passes

if TYPE_CHECKING:
    from energybench.train.interface import TaskInterface, TrainingRun


def _plain(task: TaskInterface) -> bool:
    """Whether a task leaves its epochs what they are."""
    return type(task).passes is Task.passes


def passes_of(run: TrainingRun, epoch: int) -> Passes | None:
    """What that epoch of plain training is by the task's word; None: one pass over the data for each of its parts.

    Raises:
        UsageError: E323, where the task gives anything else.
    """
    if _plain(run.task):
        return None
    current, run.epoch_number = run.epoch_number, epoch
    try:
        passes = run.task.passes(run)
    finally:
        run.epoch_number = current
    if passes is None or isinstance(passes, Passes):
        return passes
    what = f"'{run.task.name}' gives a {type(passes).__name__} from `passes`"
    raise UsageError(Problem("E323", f"{what}, which must give an energybench.Passes, or None for one pass"))


def plain_steps(run: TrainingRun) -> int:
    """Of the current epoch of plain training, of one part where the task has several."""
    passes = passes_of(run, run.epoch_number)
    return run.data.steps(run.recipe.batch) if passes is None else passes.updates


def plain_samples(run: TrainingRun) -> int:
    """Of all steps of the current epoch of plain training."""
    passes = passes_of(run, run.epoch_number)
    return run.data.samples(run.recipe.batch) * len(run.task.parts) if passes is None else passes.samples


def every_epoch(run: TrainingRun, epochs: Iterable[int]) -> list[Passes]:
    """What these epochs of plain training are by the task's word; empty where all are one pass over the data."""
    if _plain(run.task):  # there may be a million of them
        return []
    told = [passes_of(run, epoch) for epoch in epochs]
    if not any(told):
        return []
    one_pass = Passes.of(run.data.sizes(run.recipe.batch) * len(run.task.parts))
    return [passes or one_pass for passes in told]
