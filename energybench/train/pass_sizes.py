"""How many samples each pass of a run had, forward and backward: what the run has paid for, whatever it learned by it.

A backward pass is billed the forward passes that it reaches, found by hooks on what those gave: a method that looks at
a whole batch and trains on half of it pays for a whole forward and half a backward, and a loss that leads nowhere pays
for none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._pytree import tree_leaves

from energybench.train.batch import Forward

Sizes = Counter[int]  # samples of a pass → how many passes had so many


class PassSizes:
    """Of one run.

    forward, backward: all passes so far
    """

    def __init__(self) -> None:
        self.forward, self.backward = Sizes(), Sizes()
        self._made = 0
        self._reached: dict[int, int] = {}  # forward pass → its samples, of the backward pass that runs

    def add_forward(self, samples: int, given: Forward) -> None:
        """A forward pass of so many samples, and what it gave."""
        self.forward[samples] += 1
        self._made += 1
        number = self._made

        def reach(_: Tensor) -> None:
            self._reached[number] = samples

        for tensor in (given.value, given.each, *tree_leaves(given.outputs)):
            # What torch.func differentiates is no graph of a `backward`, and takes no hook.
            if isinstance(tensor, Tensor) and tensor.requires_grad and not is_functorch_wrapped_tensor(tensor):
                tensor.register_hook(reach)

    def add_backward(self, backward: Callable[[], None]) -> None:
        """`backward` is called, and is billed what it reaches."""
        self._reached.clear()
        backward()
        self.backward.update(self._reached.values())

    def add_vectorised(self, samples: int) -> None:
        """A forward of one sample, which torch.func made one of so many, with its gradients."""
        self.forward[1] -= 1
        self.forward[samples] += 1
        self.backward[samples] += 1
