"""Whether a backward pass reaches what a forward pass gave."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._pytree import tree_leaves

from energybench.train.batch import Forward


def on_backward(given: Forward, reached: Callable[[], None]) -> None:
    """Call `reached` whenever a gradient arrives at the loss, the losses or the outputs of a forward pass."""

    def hook(_: Tensor) -> None:
        reached()

    for tensor in (given.value, given.each, *tree_leaves(given.outputs)):
        # What torch.func differentiates is no graph of a `backward`, and takes no hook.
        if isinstance(tensor, Tensor) and tensor.requires_grad and not is_functorch_wrapped_tensor(tensor):
            tensor.register_hook(hook)
