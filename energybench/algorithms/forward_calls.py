"""What modules are called with: one forward pass of two samples with hooks around every call, that trains nothing.

For what a method must know of a model before the first step: which modules run and in which order, what they take in
and give. The model is in evaluation mode, no statistic moves, no stream of random numbers moves, nothing is tallied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun

SAMPLES = 2
Before = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None]
After = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


def watch_forward(run: TrainingRun, before: Before | None = None, after: After | None = None) -> None:
    """Run the task's forward pass on the first samples, with a graph as in training.

    Args:
        run: set up or not
        before: told of every call of a module as it begins: its name in `named_modules`, itself, what it is given
        after: likewise as it ends, and what it returned
    """
    batch = next(iter(run.data.load([torch.arange(min(SAMPLES, len(run.data)))])))
    looking: Any = copy.copy(run)  # a task that is not set up yet is set up for this pass alone
    looking.task = copy.copy(run.task)
    training = {module: module.training for module in run.model.modules()}
    hooks = []
    for name, module in run.model.named_modules():
        if before is not None:
            hooks.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        if after is not None:
            hooks.append(module.register_forward_hook(partial(after, name), with_kwargs=True))
    try:
        with torch.random.fork_rng(), torch.enable_grad(), run.recipe.autocast(run.device):
            run.model.eval()
            looking.task.setup(looking)
            looking.task.forward(looking, batch)
    finally:
        for module, mode in training.items():
            module.training = mode
        for hook in hooks:
            hook.remove()


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first thing that a module is given, where that is a tensor."""
    given = args[0] if args else next(iter(kwargs.values()), None)
    return given if isinstance(given, Tensor) else None
