"""What a member of a method must give, and the error that names the method whose member gives something else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.optim import Optimizer

from energybench.common.errors import Problem, UsageError
from energybench.train.batch import Forward

# What a member must give, and how that is said to whoever wrote one that gives something else.
RESULTS: dict[str, tuple[type, str]] = {
    "batches": (Iterable, "batches: `return inner(data)`, or `yield` each"),
    "gradients": (Forward, "the batch's Forward: `return inner(batch)`, or what `run.forward` gave"),
    "optimizer": (Optimizer, "a torch.optim.Optimizer: `return inner(params)`, or one of its own"),
    "forward_context": (AbstractContextManager, "a context manager"),
    "eval_context": (AbstractContextManager, "a context manager"),
}


def call_checked(key: tuple[str, str], call: Callable[..., Any], argument: Any, inner: Callable[..., Any]) -> Any:
    """A hook that must give something, called: in every step, so what is right is let through at once."""
    result = call(argument, inner)
    return result if isinstance(result, RESULTS[key[1]][0]) else checked(*key, result)


def checked(name: str, member: str, result: Any) -> Any:
    """`result`, if it is what the member must give. Raises UsageError E323 that names the method and the member."""
    kind, wanted = RESULTS[member]
    if isinstance(result, kind):
        return result
    what = "None" if result is None else f"a {type(result).__name__}"
    raise UsageError(Problem("E323", f"'{name}' gives {what} from `{member}`, which must give {wanted}"))


def check_losses(task: str, forward: Forward) -> None:
    """That a batch's loss is the mean of its samples' losses: a method that weighs samples trains on those alone, and
    what the task added beside them would be lost without a word. Waits for the device, so once a run.

    Raises UsageError E403.
    """
    if forward.each is None:
        return
    value, mean = forward.value.detach().float(), forward.each.detach().float().mean()
    if not torch.isclose(value, mean, rtol=1e-2, atol=1e-6, equal_nan=True):
        message = (
            f"'{task}': the loss is {value.item():.4g}, and the mean of the losses of its samples {mean.item():.4g}"
        )
        hint = "add what belongs to the batch as a whole to each sample's loss; or give no losses per sample"
        raise UsageError(Problem("E403", message, hint=hint))
