"""Steps outside of training, for tracing, timing and warming up: inside the task's own epoch, where it has one.

A task may build in `epoch` what its steps need: the weights that a round's clients started from, a schedule of noise.
No method's epoch is entered, since some leave epochs out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from energybench.train.batch import Batch
from energybench.train.data import Data
from energybench.train.method import overrides
from energybench.train.run import Run
from energybench.train.trees import take

Result = TypeVar("Result")


class EnoughSteps(BaseException):
    """No more steps are wanted of this epoch. No error, so that no task's `except Exception` goes on."""


def task_epoch(run: Run, step: Callable[[Batch], None]) -> None:
    """One epoch as the task alone makes it, with `step` in place of the run's; ended where that raises EnoughSteps."""

    def default(data: Data) -> None:
        for batch in run.batches(data):
            run.step(batch)

    whole, run.step = run.step, step
    try:
        run.task.epoch(run, run.data, default)
    except EnoughSteps:
        pass
    finally:
        run.step = whole


def of_first_batch(run: Run, most: int | None, visit: Callable[[Batch], Result]) -> Result:
    """What `visit` gives of one batch of plain training, called inside the task's epoch; nothing is trained by this.

    The first samples in their own order, not augmented; of a task that makes its own epochs, or batches of more than
    one part, the first batch of an epoch.

    Args:
        most: samples of it; None: a whole batch

    Raises:
        ValueError: the task's epoch makes no step
    """
    task = run.task
    if not (overrides(task, "epoch") or overrides(task, "batches") or getattr(task, "batch_parts", ())):
        size = min(run.recipe.batch, len(run.data)) if most is None else min(most, len(run.data))
        return visit(next(iter(run.data.load([torch.arange(size)]))))
    results: list[Result] = []
    errors: list[Exception] = []

    def step(batch: Batch) -> None:
        try:
            results.append(visit(batch if most is None else shorter(batch, most, run.recipe.accumulate)))
        except Exception as error:  # not into the task's own hands
            errors.append(error)
        raise EnoughSteps

    task_epoch(run, step)
    if errors:
        raise errors[0]
    if not results:
        raise ValueError(f"an epoch of the task '{task.name}' makes no step")
    return results[0]


def shorter(batch: Batch, samples: int, pieces: int = 1) -> Batch:
    """The first samples of a batch. Other domains' batches that are as large as it are cut alike; of those of another
    size is left what a micro-batch of `pieces` has, since nobody knows how they grow with it."""

    def first(one: Batch, count: int) -> Batch:
        where = slice(count)
        return replace(
            one,
            inputs=take(one.inputs, where),
            targets=take(one.targets, where),
            index=one.index[where],
            weights=None if one.weights is None else one.weights[where],
        )

    also = {
        name: first(other, samples if len(other) == len(batch) else -(-len(other) // pieces))
        for name, other in batch.also.items()
    }
    return replace(first(batch, samples), also=also)
