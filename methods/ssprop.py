"""ssprop: in the backward of every Conv2d keep only the output channels whose gradient is largest.

Importance of channel c is the mean over batch, height and width of |∂L/∂Y|; ∂L/∂X, ∂L/∂W and ∂L/∂B come from the K
most important channels alone, by smaller matrices, not by multiplying zeros. The same as ordinary autograd with ∂L/∂Y
masked to those channels.

Paper: Zhong et al., ssProp, Eq. 6–9. Promises its mean drop rate of the convolutions' backward FLOPs (80 % in every
second epoch: 40 %). Gathering and scattering are not free: narrow layers can come out slower than dense. Composes with
everything that leaves a backward pass.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from energybench import Method
from energybench.units import Period, Quantity

SCHEDULES = ("constant", "linear", "cosine", "bar", "alternate")


@dataclass
class SsProp(Method):
    """drop: share of channels dropped, 0–1, at full rate

    schedule:  "constant" | "linear" | "cosine" (growing over training) | "bar" (full in the second half) |
               "alternate" (dense in the first half of each period, full in the second: the paper's choice)
    period:    of "alternate": "2 epochs", "300 steps"
    """

    needs: ClassVar[frozenset[str]] = frozenset({"backward"})

    drop: float = 0.8
    schedule: str = "alternate"
    period: Period = Quantity(2, "epochs")

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is a share of channels in [0, 1), not {self.drop}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is one of {', '.join(SCHEDULES)}, not '{self.schedule}'")

    def setup(self, run):
        self.acted = False
        self._samples: Counter[float] = Counter()
        self._layers: dict[str, SparseConv2d] = {}
        sparse: dict[nn.Module, SparseConv2d] = {}
        for name, module in list(run.model.named_modules(remove_duplicate=False)):
            if name and type(module) is nn.Conv2d:
                if module not in sparse:  # a layer under two names stays one, known by the first
                    sparse[module] = self._layers[name] = SparseConv2d.from_dense(module)
                replace_module(run.model, name, sparse[module])

    def gradients(self, run, batch, inner):
        drop = round(self._rate(run), 6)
        for layer in self._layers.values():
            layer.drop = drop
        if drop and self._layers:
            run.tally.mark(self, f"drop={drop:g}")
        self._samples[drop] += len(batch)
        return inner(batch)

    def _rate(self, run) -> float:
        if self.schedule == "constant":
            return self.drop
        per_epoch = run.data.steps(run.recipe.batch)
        if self.schedule == "alternate":
            steps = self.period.count * (per_epoch if self.period.unit == "epochs" else 1)
            now = (run.epoch_number - 1) * per_epoch + run.step_in_epoch
            return self.drop if now % steps >= steps / 2 else 0.0
        if self.schedule == "bar":
            return self.drop if run.epoch_number > run.epochs / 2 else 0.0
        progress = (run.epoch_number - 1) / max(1, run.epochs - 1)
        return self.drop * (progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2)

    def estimate(self, work):
        """Backward FLOPs of each convolution × the mean share of its channels kept."""
        total = sum(self._samples.values())
        if not total:
            return work

        def share(line):
            if line.op != "conv" or line.phase == "forward" or line.module not in self._layers:
                return 1.0
            out = line.shape["out"]
            return sum(count * kept(out, drop) / out for drop, count in self._samples.items()) / total

        return work.change(share)

    def claims(self):
        mean = self.drop if self.schedule == "constant" else self.drop / 2
        return mean, "backward", "ssProp, the schedule's mean drop rate"

    def finish(self, run):
        dense: dict[nn.Module, nn.Conv2d] = {layer: layer.dense() for layer in self._layers.values()}
        for name, module in list(run.model.named_modules(remove_duplicate=False)):
            if module in dense:
                replace_module(run.model, name, dense[module])

    def diagnostics(self):
        return {
            "layers": len(self._layers),
            "samples_by_drop_rate": {f"{k:g}": v for k, v in sorted(self._samples.items())},
        }


class SparseConv2d(nn.Conv2d):
    """A Conv2d whose next backward drops a share `drop` of its output channels; same constructor, same state_dict."""

    drop: float = 0.0

    @classmethod
    def from_dense(cls, conv: nn.Conv2d) -> SparseConv2d:
        """Shares parameters, buffers and hooks with `conv`; draws nothing."""
        sparse = cls.__new__(cls)
        sparse.__dict__.update(conv.__dict__)
        return sparse

    def dense(self) -> nn.Conv2d:
        conv = nn.Conv2d.__new__(nn.Conv2d)
        conv.__dict__.update({key: value for key, value in self.__dict__.items() if key != "drop"})
        return conv

    def forward(self, x):
        if not self.drop or not torch.is_grad_enabled():
            return super().forward(x)
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
            padding = (0, 0)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):  # a custom function is not cast by autocast
            low = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(low), weight.to(low), None if bias is None else bias.to(low)
        single = x.dim() == 3
        y = SparseBackward.apply(x[None] if single else x, weight, bias,
                                 self.stride, padding, self.dilation, self.groups, self.drop)  # fmt: skip
        return y[0] if single else y


class SparseBackward(torch.autograd.Function):
    """x (B, Cin, H, W), weight (Cout, Cin/groups, k, k) → conv2d; backward from the top-K channels of ∂L/∂Y."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, groups, drop):
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.groups, ctx.drop = (stride, padding, dilation), groups, drop
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        out = weight.shape[0]
        channels = dy.abs().mean((0, 2, 3)).topk(kept(out, ctx.drop)).indices.sort().values
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        if ctx.groups == 1:
            dx, dw = _conv_backward(
                dy[:, channels], x, weight[channels], ctx.geometry, 1, need_x, need_weight
            )
        else:
            dx, dw = _grouped(dy, x, weight, channels, ctx.geometry, ctx.groups, need_x, need_weight)
        if need_weight:
            dw = torch.zeros_like(weight).index_copy_(0, channels, dw)
        db = None
        if need_bias:
            db = dy.new_zeros(out).index_copy_(0, channels, dy[:, channels].sum((0, 2, 3)))
        return dx, dw, db, None, None, None, None, None


def kept(out: int, drop: float) -> int:
    """Channels kept of `out`: max(⌊(1 − drop)·out⌋, 1), in exact decimals (int(0.29·100) is 28)."""
    return max(math.floor((1 - Fraction(str(drop))) * out), 1)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _conv_backward(dy, x, weight, geometry, groups, need_x, need_weight):
    stride, padding, dilation = geometry
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [need_x, need_weight, False]
    )
    return dx, dw


def _grouped(dy, x, weight, channels, geometry, groups, need_x, need_weight):
    """Only groups with a kept channel are touched; groups with equally many are computed together."""
    per_out, per_in = weight.shape[0] // groups, weight.shape[1]
    group_of = channels // per_out
    counts = torch.bincount(group_of, minlength=groups)
    dx = torch.zeros_like(x) if need_x else None
    dw = weight.new_empty((len(channels), *weight.shape[1:])) if need_weight else None
    for size in counts.unique().tolist():
        if size == 0:
            continue
        groups_here = (counts == size).nonzero().flatten()
        rows = torch.isin(group_of, groups_here).nonzero().flatten()
        inputs = (groups_here[:, None] * per_in + torch.arange(per_in, device=x.device)).flatten()
        part = channels[rows]
        dx_part, dw_part = _conv_backward(
            dy[:, part], x[:, inputs], weight[part], geometry, len(groups_here), need_x, need_weight
        )
        if dx is not None:
            dx[:, inputs] = dx_part
        if dw is not None:
            dw[rows] = dw_part
    return dx, dw
