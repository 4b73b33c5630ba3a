"""Endless passes over the further parts of a data set, of which each batch of training has as many samples beside it.

A part's passes are its own: each takes every sample once, in an order keyed by seed, part and number of the pass, and
the next begins where the last one ends, within a batch too. They go on over the epochs, whatever an epoch leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from energybench.train.batch import Batch

if TYPE_CHECKING:
    from energybench.train.data import Data


@dataclass
class _Stream:
    """rest: positions (n,) of the pass that is not over."""

    rest: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    passes: int = 0
    batches: int = 0


class PartStreams:
    """rng: gives a generator by name and key, as `run.rng` does; None: every pass in order, and no augmentation."""

    def __init__(self, rng: Callable[..., torch.Generator] | None = None) -> None:
        self._rng = rng
        self._streams: dict[str, _Stream] = {}

    def batch(self, name: str, part: Data, size: int) -> Batch:
        """The next `size` samples of a part, which is called `name`."""
        stream = self._streams.setdefault(name, _Stream())
        while len(stream.rest) < size:
            stream.passes += 1
            stream.rest = torch.cat([stream.rest, self._order(name, len(part), stream.passes)])
        positions, stream.rest = stream.rest[:size], stream.rest[size:]
        stream.batches += 1
        random = None if self._rng is None else partial(self._augmenting, name, stream.batches)
        return next(iter(part.load([positions], random)))

    def _augmenting(self, name: str, number: int, _: int) -> torch.Generator:
        assert self._rng is not None
        return self._rng("part", name, "augment", number)

    def _order(self, name: str, count: int, number: int) -> Tensor:
        if self._rng is None:
            return torch.arange(count)
        return torch.randperm(count, generator=self._rng("part", name, number))
