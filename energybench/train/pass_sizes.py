"""How many samples each pass of a run had, forward and backward: what the run has paid for, whatever it learned by it.

A backward pass is billed the forward passes that it reaches (`graph_hooks.py`): a method that looks at a whole batch
and trains on half of it pays for a whole forward and half a backward, and a loss that leads nowhere pays for none.
Imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

Sizes = Counter[int]  # samples of a pass → how many passes had so many


class PassSizes:
    """Of one run.

    forward, backward: all passes so far
    """

    def __init__(self) -> None:
        self.forward, self.backward = Sizes(), Sizes()
        self._made = 0
        self._reached: dict[int, int] = {}  # forward pass → its samples, of the backward pass that runs

    def add_forward(self, samples: int) -> Callable[[], None]:
        """A forward pass of so many samples; what is given is called where a backward pass reaches it."""
        self.forward[samples] += 1
        self._made += 1
        return partial(self._reached.__setitem__, self._made, samples)

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
