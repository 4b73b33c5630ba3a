"""A run that several ranks make together: each on its own samples of every batch, with one gradient for all.

    run      global batches, in the same order as in one process
    └─ load  this rank's samples of each: nothing else is read or augmented here
       └─ forward   through the wrapper; backward: of the loss times the weight of these samples
          └─ update the same gradient on every rank, so the same weights

What a rank alone must not decide is agreed upon: the losses of an epoch, so that all diverge together; whether an
update is left out; whether training ends early. Everything else is decided alike because it follows from the same
weights, the same generators and the same gradients; that the weights are the same is checked when training is over.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from energybench.train.batch import Batch, Forward
from energybench.train.data import Data, Random
from energybench.train.method import Method, Task
from energybench.train.ranks import Ranks, Wrapper, learning, weighted_mean
from energybench.train.run import Run

ANOTHER_ENDED = "another rank ended its training"


class RankRun(Run):
    """Stands before another kind of run among the bases of a class, or is used by itself.

    Args:
        ranks: this process among them
    """

    def __init__(self, *args: Any, ranks: Ranks, **kwargs: Any) -> None:
        self.ranks, self.world = ranks, ranks.world
        self.rank_key = (ranks.number,) if ranks.number else ()
        self._wrapper: Wrapper | None = None
        self._weight = 1.0  # of this rank's mean loss in the step that is taken
        self._in_step = False
        self._pieces_left = 0  # micro-batches of the step that have yet to go forward
        super().__init__(*args, **kwargs)
        self._may_skip = any(sets(type(layer), "skip_update") for layer in self.layers)
        self._may_thaw = any(sets(type(layer), "requires_grad", "requires_grad_") for layer in self.layers)
        self._wrapper = Wrapper(self.model)  # when every layer has swapped its modules in

    # ── samples ───────────────────────────────────────────────────────────────────────────────────────────────

    def _fetch(self, data: Data, batches: Iterable[Tensor], random: Random) -> Iterator[Batch]:
        return data.load(batches, random, self._part_streams, self.ranks.share)

    def all_rows(self, own: Tensor, batch: Batch) -> Tensor:
        return own if batch.share is None else self.ranks.rows(own, batch.share)

    def all_mean(self, value: Tensor, batch: Batch) -> Tensor:
        return weighted_mean(self.ranks, value, batch)

    # ── a step ────────────────────────────────────────────────────────────────────────────────────────────────

    def train_epoch(self, number: int) -> None:
        self._renew()
        super().train_epoch(number)

    def _renew(self) -> None:
        """Parameters that learn from now on, or no longer, are others to the wrapper: it is made anew on every rank."""
        if self._wrapper is None or learning(self.model) != self._wrapper.learns:
            self._wrapper = Wrapper(self.model)

    def _whole_step(self, chain: Callable[[Batch], None], batch: Batch) -> None:
        if self._may_thaw:
            self._renew()
        self._weight = 1.0 if batch.share is None else batch.share.weight
        self._in_step, self._pieces_left = True, 0
        try:
            super()._whole_step(chain, batch)
        finally:
            self._in_step, self._weight = False, 1.0

    def _gradients(self, batch: Batch) -> Forward:
        self._pieces_left = max(1, min(self.recipe.accumulate, len(batch)))
        return super()._gradients(batch)

    def _task_forward(self, batch: Batch, mode: str, grad: bool) -> Forward:
        """Of a pass that is trained on through the wrapper; a score's or an evaluation's is each rank's own affair."""
        call = partial(self.task.forward, self, batch)
        if self._wrapper is None or not self._in_step or not grad or mode == "eval":
            return call()
        self._pieces_left -= 1
        return self._wrapper.forward(call, reduced=self._pieces_left <= 0)

    def backward(self, loss: Tensor) -> None:
        super().backward(loss if self._weight == 1 else loss * self._weight)

    def add_loss(self, loss: Tensor) -> None:
        super().add_loss(loss if self._weight == 1 else loss.detach() * self._weight)

    def _whole_update(self, chain: Callable[[str], None], part: str) -> None:
        if self._may_skip:
            self.skip_update = self.ranks.any(self.skip_update)
        super()._whole_update(chain, part)

    def _close_epoch(self) -> None:
        """One sum over the ranks: of the mean losses of the epoch's steps, and of who ended the training."""
        own = torch.stack(self._losses) if self._losses else torch.zeros(0, device=self.device)
        ends = own.new_full((1,), float(self.stop_reason is not None))
        whole = self.ranks.sum(torch.cat([own / self.world, ends]))
        self._losses[:] = whole[:-1].unbind()
        if self.stop_reason is None and whole[-1].item() > 0:
            self.stop_reason = ANOTHER_ENDED
        super()._close_epoch()


def sets(kind: type, *names: str) -> bool:
    """Whether a class, or one that it is made from below Method and Task, has a function that sets an attribute of one
    of these names, or calls a method of that name which changes something in place.

    What follows from it takes a message between the ranks, or a look at every parameter, in each step: it is done where
    a layer may make use of it alone.
    """
    own = (base for base in kind.__mro__ if base not in (Method, Task, object))
    functions = (value for base in own for value in vars(base).values() if isinstance(value, FunctionType))
    return any(_sets(function.__code__, names) for function in functions)


def _sets(code: CodeType, names: Collection[str]) -> bool:
    for step in dis.get_instructions(code):
        if step.argval in names and (step.opname == "STORE_ATTR" or step.argval.endswith("_")):
            return True
    return any(_sets(inner, names) for inner in code.co_consts if isinstance(inner, CodeType))
