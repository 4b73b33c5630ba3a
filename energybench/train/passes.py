"""What one epoch of plain training is, where a task makes it another thing than one pass over the training set.

A federated round sends ten clients five times over their own samples; a task of two domains makes two passes a step.
The ledger, the estimate, the budget of a matched control, the plan and the counter go by this. Imports no torch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from energybench.common.errors import Problem, UsageError
from energybench.train.method import Task

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun
    from energybench.train.run import Run


@dataclass(frozen=True, slots=True)
class Passes:
    """One epoch of plain training, as `Task.passes` tells it.

    forward:  samples that go forward in it, in training passes: what `run.forward` is handed
    backward: those of them that a backward pass reaches
    updates:  steps, that is calls of `run.step`
    sizes:    samples of each step's batch; empty: all steps are of one size and make one pass. A model whose steps cost
              something whatever their size is only estimated exactly with them; `Passes.of` sets them

    Raises:
        ValueError: where an epoch has no step, or the sizes are not those of `updates` steps
    """

    forward: int
    backward: int
    updates: int
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.updates < 1 or self.forward < 1 or self.backward < 0:
            counts = f"{self.updates} updates, {self.forward} samples forward and {self.backward} backward"
            raise ValueError(f"an epoch has a step and a sample at least, not {counts}")
        if self.sizes and (len(self.sizes) != self.updates or min(self.sizes) < 1):
            raise ValueError(f"{len(self.sizes)} sizes for {self.updates} steps; each step has a size of 1 or more")

    @classmethod
    def of(cls, sizes: Iterable[int], forwards: int = 1, backwards: int = 1) -> Passes:
        """An epoch of steps of these sizes, whose samples each go forward and backward so many times.

        Args:
            sizes: of the steps' batches, such as `size for client in clients for size in client.sizes(batch)`
        """
        steps = tuple(sizes)
        return cls(forwards * sum(steps), backwards * sum(steps), len(steps), steps)

    @property
    def samples(self) -> int:
        """Of the steps, as they come to the outermost layer."""
        return sum(self.sizes) or self.forward


@dataclass(frozen=True, slots=True)
class MeanEpoch:
    """Several epochs' mean: what `flops.work.Work` and the plan are made of.

    sizes:        (samples of a step's batch, forward passes of that size in an epoch), a fraction where epochs differ
    updates:      steps of an epoch
    backward_rel: samples that go backward over those that go forward
    """

    sizes: tuple[tuple[float, float], ...]
    updates: float
    backward_rel: float


def mean_epoch(epochs: Sequence[Passes]) -> MeanEpoch:
    """Of one epoch or more."""
    passes: dict[float, float] = defaultdict(float)
    for each in epochs:
        if each.sizes:
            times = each.forward / sum(each.sizes)
            for size, steps in Counter(each.sizes).items():
                passes[size] += times * steps
        else:
            passes[each.forward / each.updates] += each.updates
    count = len(epochs)
    return MeanEpoch(
        sizes=tuple((size, times / count) for size, times in sorted(passes.items())),
        updates=sum(each.updates for each in epochs) / count,
        backward_rel=sum(each.backward for each in epochs) / sum(each.forward for each in epochs),
    )


def passes_of(run: Run, epoch: int) -> Passes | None:
    """What that epoch of plain training is by the task's word; None: one pass over the data for each of its parts.

    Raises:
        UsageError: E323, where the task gives anything else.
    """
    if type(run.task).passes is Task.passes:
        return None
    current, run.epoch_number = run.epoch_number, epoch
    try:
        passes = run.task.passes(cast("TrainingRun", run))
    finally:
        run.epoch_number = current
    if passes is None or isinstance(passes, Passes):
        return passes
    what = f"'{run.task.name}' gives a {type(passes).__name__} from `passes`"
    raise UsageError(Problem("E323", f"{what}, which must give an energybench.Passes, or None for one pass"))


def plain_steps(run: Run) -> int:
    """Of the current epoch of plain training, of one part where the task has several."""
    passes = passes_of(run, run.epoch_number)
    return run.data.steps(run.recipe.batch) if passes is None else passes.updates


def plain_samples(run: Run) -> int:
    """Of all steps of the current epoch of plain training."""
    passes = passes_of(run, run.epoch_number)
    return run.data.samples(run.recipe.batch) * len(run.task.parts) if passes is None else passes.samples


def every_epoch(run: Run, epochs: Iterable[int]) -> list[Passes]:
    """What these epochs of plain training are by the task's word; empty where all are one pass over the data."""
    if type(run.task).passes is Task.passes:  # there may be a million of them
        return []
    told = [passes_of(run, epoch) for epoch in epochs]
    if not any(told):
        return []
    one_pass = Passes.of(run.data.sizes(run.recipe.batch) * len(run.task.parts))
    return [passes or one_pass for passes in told]
