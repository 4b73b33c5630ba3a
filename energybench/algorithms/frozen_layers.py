"""What stands still costs no gradient: layers that compute dW for live neurons alone, and rows that no update moves.

    neuron = row of the weight and of the bias = output channel
    dW, dB   from the live rows of dY alone, zeros elsewhere
    dX       from all of dY: a frozen neuron still hands the gradient on. It is skipped where nothing further up learns,
             which autograd sees by itself once the parameters up there require no gradient

The same as ordinary autograd with the frozen rows of dW and dB set to 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from energybench.algorithms.channel_sparse import Geometry, convolution, gradients, grouped, spread, ungrouped
from energybench.algorithms.drop_in_layers import DropIn

# State of an optimizer that adds gradients up, which a neuron at rest has none of, and the buffer before ("before", of
# HyperSGD), by which its last step would have moved with momentum; other state waits as it is.
MOMENTA = ("momentum_buffer", "before", "direction", "exp_avg")


class FrozenLayer(DropIn):
    """What the drop-in layers share: the next backward computes the rows `live` of dW and dB alone."""

    extra_attributes = frozenset({"live", "planned", "weighed", "handed_on", "read"})

    live: Tensor | None = None  # positions of the live rows, in order; None: all
    # Elements of dY so far, and of those how many met a row of dW that was computed, and a dX that was.
    planned: int = 0
    weighed: float = 0.0
    handed_on: int = 0
    read: int = 0  # elements of dY of the calls that computed any row

    def share(self, what: str) -> float:
        """Of the work of plain training, of what ran so far: "weight_gradient", "input_gradient", "read"."""
        done = {"weight_gradient": self.weighed, "input_gradient": self.handed_on, "read": self.read}[what]
        return done / self.planned if self.planned else 1.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:  # a score of samples: nothing that learns
            return super().forward(x)
        layer: Any = self
        learns = torch.is_grad_enabled() and (
            self.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad)
        )
        live = self.live if learns else None
        y: Tensor = super().forward(x) if live is None else self._partly(x, live)
        if torch.is_grad_enabled():
            share = (1.0 if live is None else len(live) / len(self.weight)) * self.weight.requires_grad
            self.planned += y.numel()
            self.weighed += y.numel() * share
            self.read += y.numel() * (share > 0)
            self.handed_on += y.numel() * x.requires_grad
        return y

    def _partly(self, x: Tensor, live: Tensor) -> Tensor:
        raise NotImplementedError


class FrozenConv(FrozenLayer):
    """Of one to three dimensions; any stride, padding and padding mode, dilation, groups and memory format."""

    def _partly(self, x: Tensor, live: Tensor) -> Tensor:
        layer: Any = self
        padding = layer.padding
        if layer.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), (0,) * len(layer.stride)
        x, weight, bias = self._cast(x)
        single = x.dim() == weight.dim() - 1
        geometry = Geometry(layer.stride, padding, layer.dilation, layer.groups)
        y: Tensor = _Convolution.apply(x[None] if single else x, weight, bias, geometry, live)
        return y[0] if single else y


class FrozenConv1d(FrozenConv, nn.Conv1d):
    """A Conv1d whose next backward computes dW for its live rows alone."""


class FrozenConv2d(FrozenConv, nn.Conv2d):
    """A Conv2d whose next backward computes dW for its live rows alone."""


class FrozenConv3d(FrozenConv, nn.Conv3d):
    """A Conv3d whose next backward computes dW for its live rows alone."""


class FrozenLinear(FrozenLayer, nn.Linear):
    """A Linear whose next backward computes dW for its live rows alone."""

    def _partly(self, x: Tensor, live: Tensor) -> Tensor:
        y: Tensor = _Product.apply(*self._cast(x), live)
        return y


FROZEN: dict[type[nn.Module], type[FrozenLayer]] = {
    nn.Conv1d: FrozenConv1d,
    nn.Conv2d: FrozenConv2d,
    nn.Conv3d: FrozenConv3d,
    nn.Linear: FrozenLinear,
}


# ── gradients ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Convolution(torch.autograd.Function):
    """x (B, Cin, ...), weight (Cout, Cin/groups, k, ...), bias (Cout,) or None, live (K,) → y (B, Cout, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, live: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.live = geometry, live
        return convolution(x, weight, bias, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx = gradients(dy, x, weight, ctx.geometry, True, False)[0] if need_x else None
        rule = ungrouped if ctx.geometry.groups == 1 else grouped
        _, dw, db = rule(dy, x, weight, ctx.live, ctx.geometry, (False, need_weight, need_bias))
        return dx, spread(dw, weight, ctx.live), spread(db, dy.new_empty(len(weight)), ctx.live), None, None


class _Product(torch.autograd.Function):
    """x (..., in), weight (out, in), bias (out,) or None, live (K,) → y (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, live: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.live = live
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        rows = dy.reshape(-1, dy.shape[-1])
        kept_rows = rows.index_select(1, ctx.live)
        dx = (rows @ weight).view(x.shape) if need_x else None
        dw = kept_rows.t() @ x.reshape(-1, x.shape[-1]) if need_weight else None
        db = kept_rows.sum(0) if need_bias else None
        return dx, spread(dw, weight, ctx.live), spread(db, dy.new_empty(len(weight)), ctx.live), None


# ── rows that stay ────────────────────────────────────────────────────────────────────────────────────────────────


def zero_gradient(parameter: nn.Parameter, dim: int, rows: Tensor) -> None:
    """Of the rows (K,) in dimension `dim`; a gradient that is not finite becomes 0 there too."""
    if parameter.grad is not None:
        parameter.grad.index_fill_(dim, rows, 0)


class Held:
    """Rows of one parameter that stay where they are, whatever an optimizer does: its decay, its momentum, its noise.

    Zeroing their gradient is not enough: weight decay and momentum still move them. So they are put back after each
    update, and with them the optimizer's state of them, but for its momenta, which become 0.

    rows:  positions (K,) in dimension `dim`
    state: what the optimizer keeps for this parameter
    """

    def __init__(self, parameter: nn.Parameter, dim: int, rows: Tensor, state: Mapping[str, Any]) -> None:
        self.parameter, self.dim, self.rows, self.state = parameter, dim, rows, state
        alike = {key: value for key, value in state.items() if self._is_alike(value) and key not in MOMENTA}
        tensors = [parameter.detach(), *alike.values()]
        self._saved = [(tensor, tensor.index_select(dim, rows)) for tensor in tensors]

    def restore(self) -> None:
        """Put them back. Always: a fused step, or `_foreach_` operators under a counter of operators, leave a
        parameter's `_version` as it was."""
        for tensor, saved in self._saved:
            tensor.index_copy_(self.dim, self.rows, saved)
        for key in MOMENTA:
            momentum = self.state.get(key)
            if momentum is not None and self._is_alike(momentum):
                momentum.index_fill_(self.dim, self.rows, 0)

    def _is_alike(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == self.parameter.shape
