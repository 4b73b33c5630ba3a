"""What goes in and out of one step: a batch of samples, and the forward pass of one. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples on the training device.

    inputs, targets: tensors or trees of tensors, the first dimension is the batch
    index:           positions in the data set, shape (B,)
    weights:         per-sample loss weights, shape (B,); None means 1
    part:            which optimizer it is for: "main", "critic", ...
    also:            other domains' batches of the same step
    """

    inputs: Any
    targets: Any
    index: Tensor
    weights: Tensor | None = None
    part: str = "main"
    also: Mapping[str, Batch] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)


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
