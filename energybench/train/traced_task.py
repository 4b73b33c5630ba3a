"""A task's forward pass as a module of tensors, and the ledger of plain training that a trace of it gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from energybench.train.batch import Batch

if TYPE_CHECKING:
    from energybench.flops.ledger import Traced
    from energybench.train.interface import TrainingRun


class TracedTask(nn.Module):
    """A task's forward pass to its loss, as a module of tensors, so that any task can be traced."""

    def __init__(self, run: TrainingRun, batch: Batch) -> None:
        super().__init__()
        self.model = run.model
        leaves, structure = tree_flatten(_contents(batch))
        self.leaves = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

        def rebuilt(tensors: Iterable[torch.Tensor]) -> Any:
            """The tree with other tensors; what is none of them, such as a target that is None, stays."""
            given = iter(tensors)
            return tree_unflatten(
                [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], structure
            )

        # Functions, because the tracer copies this module deeply and functions are not copied.
        self._batch = lambda tensors: _with_contents(batch, rebuilt(tensors))
        self._loss = lambda model, batch, device: run.task.forward(traced_run(run, model, device), batch).value

    def forward(self, *leaves: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self._loss(self.model, self._batch(leaves), leaves[0].device)
        return loss


def _contents(batch: Batch) -> Any:
    """Its inputs and targets, and those of other domains, as a tree."""
    return [batch.inputs, batch.targets, {name: _contents(other) for name, other in batch.also.items()}]


def _with_contents(batch: Batch, contents: Any) -> Batch:
    inputs, targets, also = contents
    first = next(leaf for leaf in tree_leaves([inputs, targets]) if isinstance(leaf, torch.Tensor))
    return replace(
        batch,
        inputs=inputs,
        targets=targets,
        index=torch.arange(len(first), device=first.device),
        weights=None,
        also={name: _with_contents(other, also[name]) for name, other in batch.also.items()},
    )


def traced_run(run: TrainingRun, model: nn.Module, device: torch.device) -> TrainingRun:
    """The same run with its model, or a copy of it, on the device where it is traced."""
    other = copy.copy(run)
    other.model, other.device = model, device
    if device.type == "meta":  # which has no generator, and no numbers that could differ by one
        other.rng = lambda name, *key, device="cpu": run.rng(name, *key)  # type: ignore[method-assign]
    return cast("TrainingRun", other)


def trace_batch(run: TrainingRun, batch: Batch, device: torch.device) -> Traced:
    """The ledger of plain training of `run.model`, on these samples.

    Args:
        run: its task's epoch has begun, where the task has one of its own
        batch: some samples, whose sizes alone are looked at where the model lets them
        device: where training runs

    Raises:
        EnergybenchError: E403 if the model cannot be traced.
    """
    from energybench.flops.ledger import trace

    recipe, module = run.recipe, TracedTask(run, batch)
    once = math.ceil(recipe.batch / recipe.accumulate)
    traced = trace(module, tuple(module.leaves), device, recipe.precision, once)
    lines = (replace(line, module=line.module.removeprefix("model").removeprefix(".")) for line in traced.lines)
    return replace(traced, lines=tuple(lines))
