"""How large a model may be that a suite asks for: refused while it is built, before time or memory is spent on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from energybench.common.errors import Problem, UsageError
from energybench.common.limits import MOST_PARAMETERS


@contextmanager
def bounded_models(use: str) -> Iterator[None]:
    """While a model is built, which is called `use` in its suite.

    Raises:
        UsageError: E207, it has more parameters (tensors: weights and biases) than MOST_PARAMETERS, or they take more
            memory than this machine has. Each is counted as a layer gets it, before it gets its first values.
    """
    count = size_b = 0
    memory_b = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def counted(_: nn.Module, __: str, parameter: nn.Parameter) -> None:
        nonlocal count, size_b
        count += 1
        if not is_lazy(parameter) and parameter.device.type == "cpu":
            size_b += parameter.numel() * parameter.element_size()
        refuse_too_many(use, count)
        if size_b > memory_b:
            message = (
                f"the weights of '{use}' take {size_b / 1e9:,.1f} GB or more; this machine has {memory_b / 1e9:,.1f}"
            )
            raise UsageError(Problem("E207", message, hint="fewer or narrower layers"))

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def refuse_too_many(use: str, count: int) -> None:
    """Raises UsageError E207 for more parameters than are allowed."""
    if count > MOST_PARAMETERS:
        message = f"'{use}' has more than {MOST_PARAMETERS:,} tensors of weights and biases, the most that are allowed"
        raise UsageError(Problem("E207", message, hint="fewer layers"))
