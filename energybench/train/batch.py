"""What goes in and out of one step: a batch of samples, and the forward pass of one. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank has of a batch that several train on together: the first of them have one sample more, if any do.

    rank:  its number, from 0
    world: how many ranks there are
    total: samples of the whole batch

    A rank for which no sample is left takes one that another has too, whose loss weighs nothing: so every rank makes
    the same passes, with no rank that waits for ever and no mean of nothing.
    """

    rank: int
    world: int
    total: int

    def counts(self) -> list[int]:
        """How many samples of the batch each rank has of its own."""
        each, more = divmod(self.total, self.world)
        return [each + (rank < more) for rank in range(self.world)]

    @property
    def count(self) -> int:
        """Samples of this rank's own."""
        return self.counts()[self.rank]

    @property
    def rows(self) -> slice:
        """Which rows of the whole batch lie here, at least one."""
        start = sum(self.counts()[: self.rank])
        return slice(start, start + self.count) if self.count else slice(0, 1)

    @property
    def weight(self) -> float:
        """By which the mean loss of its samples is multiplied, so that the mean over the ranks is the batch's mean."""
        return self.count * self.world / self.total


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples on the training device.

    inputs, targets: tensors or trees of tensors, the first dimension is the batch
    index:           positions in the data set, shape (B,)
    weights:         per-sample loss weights, shape (B,); None means 1
    part:            which optimizer it is for: "main", "critic", ...
    also:            other domains' batches of the same step
    share:           what these samples are of a batch that several ranks train on; None: all of it
    """

    inputs: Any
    targets: Any
    index: Tensor
    weights: Tensor | None = None
    part: str = "main"
    also: Mapping[str, Batch] = field(default_factory=dict)
    share: Share | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def samples(self) -> int:
        """Of the whole batch, those of other ranks too."""
        return len(self.index) if self.share is None else self.share.total

    def own_rows(self, whole: Tensor) -> Tensor:
        """Of a tensor (samples, ...) with a row for each sample of the whole batch, the rows of these samples."""
        return whole if self.share is None else whole[self.share.rows]


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward pass: the scalar mean loss, the per-sample losses (B,) if the task has them, the outputs."""

    value: Tensor
    each: Tensor | None
    outputs: Any

    def weighted(self, weights: Tensor | None) -> Tensor:
        """Σ wᵢℓᵢ / B: by the number of samples, never by Σ wᵢ, or importance weights would not be unbiased."""
        if weights is None:
            return self.value
        if self.each is None:
            raise TypeError("this task has no per-sample losses, so its batches cannot be weighted")
        return (self.each * weights.to(self.each.dtype)).sum() / len(weights)
