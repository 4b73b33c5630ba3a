"""Channel-sparse backward: drop-in layers whose gradients come from the most important part of ∂L/∂Y alone.

    importance of output channel c = mean over batch and positions of |∂L/∂Y|      Zhong et al., Fig. 2a
    K channels kept of C = max(⌊(1 − drop)·C⌋, 1); dX, dW, dB from those, the other rows of dW and dB are zero

The same as ordinary autograd with ∂L/∂Y masked; the arithmetic is in channel_sparse.py.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from energybench.algorithms.channel_sparse import Choice, Convolution, Geometry, Product, channels_kept
from energybench.algorithms.drop_in_layers import DropIn


class SparseLayer(DropIn):
    """What the drop-in layers share. The next backward drops a share `drop`; same constructor, same state_dict."""

    extra_attributes = frozenset({"drop", "choice", "stays_dense", "because", "log"})

    drop: float = 0.0
    choice: Choice = Choice()
    stays_dense: bool = False
    because: str = ""  # it stays dense
    log: Counter[float] | None = None  # drop rate → multiply-adds of the backward, had it been dense

    def logged(self) -> int:
        """Multiply-adds of all its backwards, had they been dense."""
        return sum(self.log.values()) if self.log else 0

    def sparse_share(self) -> float:
        """The share of them in backwards that dropped anything."""
        return 1 - self.log[0.0] / self.logged() if self.log else 0.0

    def kept_share(self) -> float:
        """The share of them that was left."""
        if not self.log or self.choice.dimension != "channel":
            return 1.0
        out = len(self.weight)
        return sum(count * channels_kept(out, drop) / out for drop, count in self.log.items()) / self.logged()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:  # a score of samples: dense, and no part of the backward that is thinned
            return super().forward(x)
        drop = self._rate(x)
        y: Tensor = self._sparse(x, drop) if drop else super().forward(x)
        if self.log is not None and y.requires_grad:
            gradients = x.requires_grad + self.weight.requires_grad
            self.log[drop] += y.numel() * self.weight[0].numel() * gradients
        return y

    def _rate(self, x: Tensor) -> float:
        """The share that the backward of this call drops: 0 if the layer is or stays dense."""
        if not self.drop or self.stays_dense or not torch.is_grad_enabled():
            return 0.0
        if self.choice.dimension == "channel":
            out = self.weight.shape[0]
            keep = channels_kept(out, self.drop)
            if keep == out:
                return 0.0
            if self.choice.refuse and (reason := self.choice.refuse(self, x, self._positions(x), keep)):
                self.because = reason
                return 0.0
        return self.drop

    def _positions(self, x: Tensor) -> int:
        """Batch × positions of dY: how often the weight is applied."""
        raise NotImplementedError

    def _sparse(self, x: Tensor, drop: float) -> Tensor:
        raise NotImplementedError


class SparseConv(SparseLayer):
    """Of one to three dimensions; any stride, padding and padding mode, dilation, groups and memory format."""

    def _sparse(self, x: Tensor, drop: float) -> Tensor:
        layer: Any = self
        padding = layer.padding
        around = layer._reversed_padding_repeated_twice
        if layer.padding_mode != "zeros":
            x, padding = F.pad(x, around, mode=layer.padding_mode), (0,) * len(layer.stride)
        elif isinstance(padding, str):
            if around[::2] == around[1::2]:  # as much before as behind
                padding = tuple(around[::-2])
            else:
                x, padding = F.pad(x, around), (0,) * len(layer.stride)
        geometry = Geometry(layer.stride, padding, layer.dilation, layer.groups)
        x, weight, bias = self._cast(x)
        single = x.dim() == weight.dim() - 1
        y: Tensor = Convolution.apply(x[None] if single else x, weight, bias, geometry, drop, self.choice)
        return y[0] if single else y

    def _positions(self, x: Tensor) -> int:
        layer: Any = self
        space = len(layer.stride)
        sizes = zip(x.shape[-space:], layer.stride, strict=True)  # as if padded to the "same" size
        return (len(x) if x.dim() == space + 2 else 1) * math.prod(-(-size // step) for size, step in sizes)


class SparseConv1d(SparseConv, nn.Conv1d):
    """A Conv1d whose next backward drops a share `drop` of its output channels."""


class SparseConv2d(SparseConv, nn.Conv2d):
    """A Conv2d whose next backward drops a share `drop` of its output channels."""


class SparseConv3d(SparseConv, nn.Conv3d):
    """A Conv3d whose next backward drops a share `drop` of its output channels."""


class SparseLinear(SparseLayer, nn.Linear):
    """A Linear whose next backward drops a share `drop` of its output features."""

    def _sparse(self, x: Tensor, drop: float) -> Tensor:
        y: Tensor = Product.apply(*self._cast(x), drop, self.choice)
        return y

    def _positions(self, x: Tensor) -> int:
        return x.numel() // x.shape[-1]


SPARSE: dict[type[nn.Module], type[SparseLayer]] = {
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.Conv3d: SparseConv3d,
    nn.Linear: SparseLinear,
}
