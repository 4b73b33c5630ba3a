"""What one plain step costs before anything is measured: its FLOPs, traced, and about how long it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from energybench.train.batch import Batch
from energybench.train.interface import TrainingRun
from energybench.train.method import Task
from energybench.train.recipe import Recipe
from energybench.train.run import Run

if TYPE_CHECKING:
    from energybench.flops.ledger import Traced

TIMED_STEPS = 3
ROUNDS, STEPS = 7, 3  # for each number of threads; in a round, after one that wakes the threads
LONGEST_S = 10.0  # of all of them together
LONGEST_THREADS_S = 2.0  # after which no other round of timings of threads is begun


class TracedTask(nn.Module):
    """A task's forward pass to its loss, as a module of tensors, so that any task can be traced."""

    def __init__(self, task: Task, model: nn.Module, recipe: Recipe, batch: Batch) -> None:
        super().__init__()
        self.model = model
        self.leaves, structure = tree_flatten((batch.inputs, batch.targets))
        # A function, because the tracer copies this module deeply and functions are not copied.
        self._rebuild = lambda leaves: tree_unflatten(list(leaves), structure)
        self._task, self._recipe = task, recipe

    def forward(self, *leaves: torch.Tensor) -> torch.Tensor:
        inputs, targets = self._rebuild(leaves)
        # A forward pass may ask for no more of a run than this.
        run = SimpleNamespace(model=self.model, recipe=self._recipe, device=leaves[0].device)
        return self._task.forward(cast(TrainingRun, run), Batch(inputs, targets, torch.arange(len(leaves[0])))).value


def trace_task(task: Task, model: nn.Module, recipe: Recipe, batch: Batch, device: torch.device) -> Traced:
    """The ledger of plain training, traced on these samples for the recipe's batch.

    Raises UsageError E403 if the model cannot be traced.
    """
    from energybench.flops.ledger import trace

    module = TracedTask(task, model, recipe, batch)
    once = math.ceil(recipe.batch / recipe.accumulate)
    traced = trace(module, tuple(module.leaves), device, recipe.precision, once)
    lines = (replace(line, module=line.module.removeprefix("model").removeprefix(".")) for line in traced.lines)
    return replace(traced, lines=tuple(lines))


def time_step(run: Run, most: int | None = None) -> float:
    """Seconds of one plain gradient on a full batch: the smallest of a few, after one that starts everything up.

    most: time a batch of no more than so many samples, and multiply
    """
    positions = run.data.cut(torch.arange(len(run.data)), run.recipe.batch)[0]
    times_larger = 1.0 if most is None else max(1.0, len(positions) / most)
    positions = positions[:most]
    batch = next(iter(run.data.load([positions])))
    times = []
    for _ in range(TIMED_STEPS + 1):
        started = time.perf_counter()
        run.gradients(batch)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        times.append(time.perf_counter() - started)
        if sum(times) > LONGEST_S:  # of a step this long starting up is a small part
            break
    return min(times[1:] or times) * times_larger


def time_threads(run: Run, counts: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """Seconds of one plain gradient on a full batch with each number of threads, in turns; at least twice.

    A number that its neighbours hold up is timed under the load that does so.
    """
    positions = run.data.cut(torch.arange(len(run.data)), run.recipe.batch)[0]
    batch = next(iter(run.data.load([positions])))
    before = torch.get_num_threads()
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    run.gradients(batch)  # what the first one allocates is nobody's
    began = time.perf_counter()
    try:
        for number in range(ROUNDS):
            for count in counts if number % 2 else reversed(counts):
                torch.set_num_threads(count)
                run.gradients(batch)
                started = time.perf_counter()
                for _ in range(STEPS):
                    run.gradients(batch)
                seconds[count].append((time.perf_counter() - started) / STEPS)
            if number and time.perf_counter() - began > LONGEST_THREADS_S:
                break
    finally:
        torch.set_num_threads(before)
    return {count: tuple(each) for count, each in seconds.items()}
