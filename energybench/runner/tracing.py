"""What one plain step costs before anything is measured: its FLOPs, traced, and about how long it takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from energybench.common.units import Quantity
from energybench.meter import devices
from energybench.train.batch import Batch
from energybench.train.data import Data, Resident
from energybench.train.first_steps import of_first_batch
from energybench.train.method import Task
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.train.traced_task import trace_batch
from energybench.trial.warmup import warm_up

if TYPE_CHECKING:
    from energybench.flops.ledger import Traced

TRACED_SAMPLES = 11  # an odd prime, so that what has no room for the batch can be told from what has
TIMED_STEPS = 3
ROUNDS, STEPS = 7, 3  # for each number of threads; in a round, after one that wakes the threads
LONGEST_S = 10.0  # of all of them together
WHOLE_STEPS, LONGEST_WHOLE_S = 8, 4.0
LONGEST_THREADS_S = 2.0  # after which no other round of timings of threads is begun


def trace_task(task: Task, model: nn.Module, recipe: Recipe, batch: Batch, device: torch.device) -> Traced:
    """The ledger of plain training, traced on these samples, which are the whole training set, for the recipe's batch.

    Raises UsageError E403 if the model cannot be traced.
    """
    place = next(leaf.device for leaf in tree_leaves(batch.inputs) if isinstance(leaf, torch.Tensor))
    parts = {name: Data(Resident(other.inputs, other.targets, place)) for name, other in batch.also.items()}
    data = Data(Resident(batch.inputs, batch.targets, place), indices=torch.arange(len(batch)), parts=parts)
    return trace_batch(Run(task, [], recipe, model, data, seed=0, device=place), batch, device)


def trace_run(run: Run, device: torch.device) -> Traced:
    """The ledger of plain training, on a few samples of the run's data, inside its task's epoch.

    Raises UsageError E403 if the model cannot be traced.
    """
    return of_first_batch(run, TRACED_SAMPLES, lambda batch: trace_batch(run, batch, device))


def time_step(run: Run, most: int | None = None) -> float:
    """Seconds of one plain gradient on a full batch: the smallest of a few, after one that starts everything up.

    most: time a batch of no more than so many samples, and multiply
    """
    return of_first_batch(run, most, lambda batch: _time_step(run, batch, most))


def _time_step(run: Run, batch: Batch, most: int | None) -> float:
    times_larger = 1.0 if most is None else max(1.0, min(run.recipe.batch, len(run.data)) / most)
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


def whole_step_rel(run: Run, gradient_s: float) -> float:
    """How many times as long as its gradient a plain step is with its batch and its update; trains the run.

    gradient_s: seconds of that; 1 where a few steps would take longer than LONGEST_WHOLE_S
    """
    if 2 * WHOLE_STEPS * gradient_s > LONGEST_WHOLE_S:
        return 1.0
    synchronise = partial(devices.synchronise, run.device)
    found = []
    try:
        warm_up(run, Quantity(WHOLE_STEPS, "steps"), synchronise)
        for _ in range(WHOLE_STEPS // 2):
            started = time.perf_counter()
            taken = warm_up(run, Quantity(2, "steps"), synchronise).steps
            synchronise()
            found.append((time.perf_counter() - started) / max(1, taken))
    except Exception:  # an update that fails is the trials' to tell
        return 1.0
    return max(1.0, min(found) / gradient_s)


def time_threads(run: Run, counts: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """Seconds of one plain gradient on a full batch with each number of threads, in turns; at least twice.

    A number that its neighbours hold up is timed under the load that does so.
    """
    return of_first_batch(run, None, lambda batch: _time_threads(run, batch, counts))


def _time_threads(run: Run, batch: Batch, counts: Sequence[int]) -> dict[int, tuple[float, ...]]:
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
