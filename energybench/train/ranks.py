"""Processes that train one model together, a device each (DDP), as one of them sees the others.

What is said between them goes over gloo, and tensors on a card over NCCL. A rank that waits in gloo sleeps; one that
waits in NCCL keeps its card busy: so whatever is only agreed upon, and every barrier, is on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from energybench.train.batch import Batch, Forward, Share


class Ranks:
    """This process among `world` of them, once the process group is there.

    Args:
        number: its own, from 0
        world:  how many there are, at least two
        device: that it trains on; none has another's
    """

    def __init__(self, number: int, world: int, device: torch.device) -> None:
        self.number, self.world, self.device = number, world, device
        self._left = False

    @property
    def first(self) -> bool:
        """Whether it is the one that meters, judges and writes the record."""
        return self.number == 0

    def leave(self) -> None:
        """From now on wait for nobody: a rank failed, and what the others wait for will not come."""
        self._left = True

    def share(self, total: int) -> Share:
        """What this rank has of a batch of so many samples."""
        return Share(self.number, self.world, total)

    # ── what all ranks call together ──────────────────────────────────────────────────────────────────────────────

    def barrier(self) -> None:
        """Until every rank is here. Nothing waits for a card: synchronise before."""
        if not self._left:
            dist.all_reduce(torch.zeros(1))

    def agree(self, word: bool) -> bool:
        """The first rank's word, whatever the others say."""
        said = torch.tensor([float(word)])
        dist.broadcast(said, 0)
        return bool(said.item())

    def any(self, word: bool) -> bool:
        """Whether one of them says so."""
        said = torch.tensor([float(word)])
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said.item())

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks of tensors of one shape, the same to the bit on each."""
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def rows(self, own: Tensor, share: Share) -> Tensor:
        """(total, ...) of all ranks in the order of the whole batch, from each one's (count, ...)."""
        counts = share.counts()
        padded = own.new_zeros((max(counts), *own.shape[1:]))
        padded[: share.count] = own.detach()[: share.count]
        given = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(given, padded)
        return torch.cat([rows[:count] for rows, count in zip(given, counts, strict=True)])

    def gather(self, word: Any) -> list[Any]:
        """Each rank's word, in the order of their numbers: anything that JSON holds, and nothing that could run."""
        text = json.dumps(word).encode()
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(text)]))
        longest = max(int(size.item()) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        texts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(texts, padded)
        return [
            json.loads(given[: int(size.item())].numpy().tobytes()) for given, size in zip(texts, sizes, strict=True)
        ]


class Wrapper:
    """A model behind torch's DistributedDataParallel, for the forward passes that are trained on.

    What is wrapped is the task's forward pass and not the model: a task may call parts of it, or all of it twice, and
    `run.model` stays the plain model with the names of its parameters.

    find_unused_parameters is on in every cell, plain training's too. A method may leave layers without a gradient
    (frozen, masked or skipped ones), and torch would then wait for it; were it on for such methods alone, they would
    pay for walking the graph in every step, and plain training would not.

    Raises:
        RuntimeError: where the ranks' models have other parameters
    """

    def __init__(self, model: nn.Module) -> None:
        self._inside = _Inside(model)
        self.learns = learning(model)
        self._wrapped = DistributedDataParallel(self._inside, find_unused_parameters=True) if self.learns else None

    def forward(self, call: Callable[[], Forward], *, reduced: bool) -> Forward:
        """What `call` gives. reduced: whether the backward pass of this one is the step's last, after which gradients
        are averaged over the ranks; those before it add up here."""
        if self._wrapped is None:
            return call()
        with nullcontext() if reduced else self._wrapped.no_sync():
            self._wrapped(call)
        return self._inside.take()


def learning(model: nn.Module) -> tuple[int, ...]:
    """Which parameters learn, to be compared with those of another moment."""
    return tuple(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


class _Inside(nn.Module):
    """Called with a forward pass, which it makes. What torch looks for gradients in are the losses alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._given: Forward | None = None

    def forward(self, call: Callable[[], Forward]) -> list[Tensor]:
        self._given = given = call()
        return [given.value] if given.each is None else [given.value, given.each]

    def take(self) -> Forward:
        given, self._given = self._given, None
        assert given is not None
        return given


def weighted_mean(ranks: Ranks, value: Tensor, batch: Batch) -> Tensor:
    """The mean of a batch's samples, from each rank's mean () of its own."""
    weight = 1.0 if batch.share is None else batch.share.weight
    return ranks.sum(value * weight) / ranks.world
