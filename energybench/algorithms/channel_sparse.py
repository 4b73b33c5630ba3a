"""The channel-sparse backward of convolutions and linear layers, as functions of tensors.

dX, dW and dB from K of C output channels, by smaller matrices instead of zeros. What that costs beside them was found
by profiling and is kept small on a CPU: the importance is summed in pieces that stay in cache; the kept channels are
gathered once for dX, dW and dB; 1×1 convolutions are matrix products; where input and output have equal size, dX is
computed as the forward convolution that it is, and dW as that convolution's weight gradient, whose kernels are faster
for few channels; both are products with one matrix, the kept planes of dY laid out once, where that is small; large
inputs are computed in pieces of the batch, so that no temporary is as large as an activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PIECE = 1 << 20  # elements of x computed at once on a CPU if it has over 4 times as many: 4 MiB in float32
SUMMED = 1 << 20  # elements of dY whose absolute values are held at once: 4 MiB, which a cache holds
LANES = 16  # channels that a CPU's blocked layout rounds up to
WORTH_REORDERING = 48  # idle lanes × kernel positions
COLUMNS = 1 << 19  # elements of dY's planes, laid out once for each place of the kernel, that are held at once
# Kept channels and positions from which laying them out pays on two cores, and channels of x up to which it does.
FEWEST, SHORTEST, WIDEST = 6, 256, 64
MOST_ROWS = 2  # of what is laid out, for each channel of x
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions


class Geometry(NamedTuple):
    """Of a convolution: one number per dimension of space."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True, slots=True)
class Choice:
    """How layers choose what they keep; one object serves all layers of a model.

    dimension: "channel"; or "spatial" (positions, importance averaged over batch and channels) or "all" (elements,
               averaged over the batch), which mask ∂L/∂Y and leave the matrices as large as they were
    draw:      n → n random scores (n,) that stand for the importance; None: the importance itself
    refuse:    (layer, x, positions of dY in the batch, channels kept) → why the layer stays dense this time, or ""
    """

    dimension: str = "channel"
    draw: Callable[[int], Tensor] | None = None
    refuse: Callable[[nn.Module, Tensor, int, int], str] | None = None


@lru_cache(maxsize=4096)
def channels_kept(out: int, drop: float) -> int:
    """Channels kept of `out`: max(⌊(1 − drop)·out⌋, 1), in exact decimals (int(0.29·100) is 28)."""
    return max(math.floor((1 - Fraction(str(drop))) * out), 1)


class Convolution(torch.autograd.Function):
    """x (B, Cin, ...), weight (Cout, Cin/groups, k, ...), bias (Cout,) or None → y (B, Cout, ...)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, drop: float, choice: Choice
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.drop, ctx.choice = geometry, drop, choice
        return convolution(x, weight, bias, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        if ctx.choice.dimension != "channel":
            summed = (0, 1) if ctx.choice.dimension == "spatial" else (0,)
            dy = dy * mask(dy, summed, ctx.drop, ctx.choice)
            dx, dw = gradients(dy, x, weight, ctx.geometry, need_x, need_weight)
            db = dy.sum((0, *range(2, dy.dim()))) if need_bias else None
            return dx, dw, db, None, None, None
        channels = chosen(dy, (0, *range(2, dy.dim())), channels_kept(len(weight), ctx.drop), ctx.choice)
        rule = ungrouped if ctx.geometry.groups == 1 else grouped
        dx, dw, db = rule(dy, x, weight, channels, ctx.geometry, (need_x, need_weight, need_bias))
        dw, db = spread(dw, weight, channels), spread(db, dy.new_empty(len(weight)), channels)
        return dx, dw, db, None, None, None


class Product(torch.autograd.Function):
    """x (..., in), weight (out, in), bias (out,) or None → y (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, drop: float, choice: Choice) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.drop, ctx.choice = drop, choice
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        whole = dy if dy.dim() > 1 else dy[None]
        channels = None
        if ctx.choice.dimension == "channel":
            rows = whole.reshape(-1, whole.shape[-1])
            channels = chosen(rows, (0,), channels_kept(len(weight), ctx.drop), ctx.choice)
            rows, weight_kept = rows.index_select(1, channels), weight.index_select(0, channels)
        else:
            summed = (0, whole.dim() - 1) if ctx.choice.dimension == "spatial" else (0,)
            rows = (whole * mask(whole, summed, ctx.drop, ctx.choice)).reshape(-1, whole.shape[-1])
            weight_kept = weight
        dx = (rows @ weight_kept).view(x.shape) if need_x else None
        dw = rows.t() @ x.reshape(-1, x.shape[-1]) if need_weight else None
        db = rows.sum(0) if need_bias else None
        if channels is not None:
            dw, db = spread(dw, weight, channels), spread(db, dy.new_empty(len(weight)), channels)
        return dx, dw, db, None, None


def chosen(dy: Tensor, summed: tuple[int, ...], keep: int, choice: Choice) -> Tensor:
    """Positions (K,) of the largest importance of dY over the dimensions that are not `summed`, in no order."""
    if choice.draw is not None:
        count = math.prod(size for dimension, size in enumerate(dy.shape) if dimension not in summed)
        scores = choice.draw(count)
    else:
        scores = importance(dy, summed)
    return scores.flatten().topk(keep, sorted=False).indices


def mask(dy: Tensor, summed: tuple[int, ...], drop: float, choice: Choice) -> Tensor:
    """1 where the importance of dY is among the largest, else 0; `summed` dimensions have size 1."""
    shape = [1 if dimension in summed else size for dimension, size in enumerate(dy.shape)]
    count = math.prod(shape)
    flags = dy.new_zeros(count)
    return flags.index_fill_(0, chosen(dy, summed, channels_kept(count, drop), choice), 1).view(shape)


def importance(dy: Tensor, summed: tuple[int, ...]) -> Tensor:
    """Σ |dY| over the dimensions `summed`, of which the first is 0: the mean, but for a constant.

    On a CPU a norm in one pass takes three times as long as pieces that stay in cache, and |dY| in memory seven times.
    """
    if dy.is_cuda:
        total: Tensor = torch.linalg.vector_norm(dy, 1, summed, dtype=_wide(dy))
        return total
    total, held = dy.new_zeros(()), None
    for part in dy.split(max(1, SUMMED // max(1, math.prod(dy.shape[1:])))):
        if held is None or held.shape != part.shape:
            held = torch.empty_like(part)
        total = total + torch.abs(part, out=held).sum(summed, dtype=_wide(dy))
    return total


def _wide(x: Tensor) -> torch.dtype:
    """What sums of x are held in."""
    return torch.promote_types(x.dtype, torch.float32)


def spread(rows: Tensor | None, like: Tensor, channels: Tensor) -> Tensor | None:
    """`rows` at their channels, zeros elsewhere."""
    return None if rows is None else torch.zeros_like(like).index_copy_(0, channels, rows)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    y: Tensor = torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)
    return y


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = geometry
    wanted = [need_x, need_weight, False]
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups, wanted
    )
    return dx, dw


Needs = tuple[bool, bool, bool]  # dX, dW, dB
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, and the kept rows of those of weight and bias


def ungrouped(dy: Tensor, x: Tensor, weight: Tensor, channels: Tensor, geometry: Geometry, needs: Needs) -> Gradients:
    """dX, and the kept rows of dW and dB, in pieces of the batch."""
    if _is_product(x, weight, len(channels), geometry):
        return _pointwise(dy, x, weight, channels, needs)
    if _is_laid_out(x, dy, weight, len(channels), geometry):
        return _laid_out(dy, x, weight, channels, geometry, needs)
    need_x, need_weight, need_bias = needs
    weight = weight.index_select(0, channels)
    mirrored, layout = _mirrors(x, dy, weight, geometry), _layout(x, weight)
    space = tuple(range(2, x.dim()))
    if mirrored:
        weight = weight.flip(space).transpose(0, 1)
    weight = weight.contiguous(memory_format=layout)
    size = max(1, len(x) if x.is_cuda or x.numel() <= 4 * PIECE else PIECE // x[0].numel())
    whole = size >= len(x) and layout is memory_format(x)  # what the kernel returns is dX
    dx = torch.empty_like(x) if need_x and not whole else None
    dw = db = None
    for start in range(0, len(x), size):
        piece = slice(start, start + size)
        kept_rows = _gather(dy[piece], channels).contiguous(memory_format=layout)
        inputs = x[piece].contiguous(memory_format=layout)
        dx_piece, dw_piece = _of_piece(kept_rows, inputs, weight, geometry, (need_x, need_weight), mirrored)
        if whole:
            dx = dx_piece
        elif dx is not None and dx_piece is not None:
            dx[piece] = dx_piece
        dw = _added(dw, dw_piece, _wide(weight))
        db = _added(db, kept_rows.sum((0, *space), dtype=_wide(weight)) if need_bias else None, _wide(weight))
    if dw is not None:
        dw = (dw.transpose(0, 1).flip(space) if mirrored else dw).to(weight.dtype)
    return dx, dw, None if db is None else db.to(weight.dtype)


def _of_piece(
    kept_rows: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needs: tuple[bool, bool], mirrored: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dX and the kept rows of dW, both by the mirrored convolution where that was chosen. kept_rows: of dY."""
    if not mirrored:
        return gradients(kept_rows, x, weight, geometry, *needs)
    dx = convolution(kept_rows, weight, None, geometry) if needs[0] else None
    return dx, gradients(x, kept_rows, weight, geometry, False, True)[1] if needs[1] else None


def _added(total: Tensor | None, part: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A sum over pieces, in place."""
    if part is None:
        return total
    return part.to(dtype) if total is None else total.add_(part)


def _is_product(x: Tensor, weight: Tensor, keep: int, geometry: Geometry) -> bool:
    """Whether a convolution of kernel 1 in planes is computed as products of matrices: up to 1.6 times as fast.

    On two CPU cores it pays where a sample has no fewer positions than were kept channels, since the dW of each is
    written before they are added up. Not below float32: the sum over samples would be held in low precision.
    """
    if weight[0, 0].numel() > 1 or x[0, 0].numel() < keep:
        return False
    moves = any(step != 1 for step in geometry.stride) or any(geometry.padding)
    planes = not x.is_cuda and memory_format(x) is torch.contiguous_format and x.is_contiguous()
    return planes and not moves and x.dtype in (torch.float32, torch.float64)


def _pointwise(dy: Tensor, x: Tensor, weight: Tensor, channels: Tensor, needs: Needs) -> Gradients:
    """dX, and the kept rows of dW and dB, of a convolution with kernel 1: per sample dX = Wᵀ·dY and dW = dY·Xᵀ."""
    need_x, need_weight, need_bias = needs
    kept_rows = dy.index_select(1, channels).flatten(2)
    planes = x.flatten(2)
    dx = dw = None
    if need_x:
        matrix = weight.index_select(0, channels).flatten(1).t()
        dx = (matrix.expand(len(x), -1, -1) @ kept_rows).view(x.shape)
    if need_weight:
        size = max(1, PIECE // (len(channels) * weight.shape[1]))  # samples whose dW are held at once
        dw = weight.new_zeros(len(channels), weight.shape[1])
        for rows, inputs in zip(kept_rows.split(size), planes.split(size), strict=True):
            dw += (rows @ inputs.transpose(1, 2)).sum(0)
        dw = dw.view(-1, *weight.shape[1:])
    return dx, dw, kept_rows.sum((0, 2)) if need_bias else None


def _is_laid_out(x: Tensor, dy: Tensor, weight: Tensor, keep: int, geometry: Geometry) -> bool:
    """Whether dX and dW are products with the laid out planes of dY: 1.2 to 2.3 times as fast as kernels of
    convolution, which compute the few channels that were kept as if they were blocks of 16.

    It pays where the matrix has at most twice as many rows as x has channels, and these are few: from 128 on an AMD
    processor's kernels of convolution are 1.1 to 1.7 times as fast as its products, an Intel one's no slower. Measured
    on one and two threads. Not below float32, as of `_is_product`.
    """
    rows = keep * weight[0, 0].numel()
    if keep < FEWEST or rows == keep or rows > MOST_ROWS * x.shape[1]:
        return False
    if x.shape[1] > WIDEST or x[0, 0].numel() < SHORTEST:
        return False
    planes = not x.is_cuda and memory_format(x) is torch.contiguous_format and x.is_contiguous()
    alike = all(step == 1 for step in geometry.stride) and x.shape[2:] == dy.shape[2:]
    return planes and alike and x.dtype in (torch.float32, torch.float64) and torch.get_num_threads() <= 2


def _laid_out(dy: Tensor, x: Tensor, weight: Tensor, channels: Tensor, geometry: Geometry, needs: Needs) -> Gradients:
    """dX, and the kept rows of dW and dB, of a convolution whose output is as large as its input.

    With dY in a frame of zeros as wide as the padding p, 2p = d·(k − 1), M[(o, u), i] = dY[o, i + d·u − p] of a sample
    serves both: dX = W′·M and dW′ = M·Xᵀ, where W′ is W mirrored in space, W′[c, (o, u)] = W[o, c, k − 1 − u].
    """
    need_x, need_weight, need_bias = needs
    space, kernel = x.shape[2:], weight.shape[2:]
    mirrored = tuple(range(2, x.dim()))
    rows, positions = len(channels) * math.prod(kernel), math.prod(space)
    matrix = weight.index_select(0, channels).flip(mirrored).transpose(0, 1).reshape(1, -1, rows)
    frame = [width for padding in reversed(geometry.padding) for width in (padding, padding)]
    dx = torch.empty_like(x) if need_x else None
    dw = weight.new_zeros(rows, x.shape[1])
    db = weight.new_zeros(len(channels))
    size = max(1, COLUMNS // (rows * positions))
    for start in range(0, len(x), size):
        piece = slice(start, start + size)
        kept_rows = dy[piece].index_select(1, channels)
        framed = F.pad(kept_rows, frame)
        steps = framed.stride()[2:]
        strides = [*framed.stride()[:2], *(d * step for d, step in zip(geometry.dilation, steps, strict=True)), *steps]
        laid_out = framed.as_strided([*kept_rows.shape[:2], *kernel, *space], strides).reshape(-1, rows, positions)
        if dx is not None:
            torch.bmm(matrix.expand(len(laid_out), -1, -1), laid_out, out=dx[piece].flatten(2))
        if need_weight:
            dw += torch.bmm(laid_out, x[piece].flatten(2).transpose(1, 2)).sum(0)
        if need_bias:
            db += kept_rows.sum((0, *mirrored))
    if not need_weight:
        return dx, None, db if need_bias else None
    dw = dw.view(len(channels), *kernel, x.shape[1]).movedim(-1, 1).flip(mirrored)
    return dx, dw, db if need_bias else None


def _gather(dy: Tensor, channels: Tensor) -> Tensor:
    """dY (B, C, ...) → (B, K, ...) in its memory format; channels_last as rows of a matrix, far faster."""
    if memory_format(dy) is torch.contiguous_format:
        return dy.index_select(1, channels)
    rows = dy.movedim(1, -1)
    kept_rows = rows.reshape(-1, dy.shape[1]).index_select(1, channels)
    return kept_rows.view(*rows.shape[:-1], len(channels)).movedim(-1, 1)


def _mirrors(x: Tensor, dy: Tensor, kept_rows: Tensor, geometry: Geometry) -> bool:
    """Whether dX is computed as conv(dY, W mirrored in space, its channels swapped), whose dW is ours, mirrored.

    So it is with stride 1 and 2·padding = dilation·(k − 1). It pays on a CPU where x has no fewer channels than were
    kept of dY. kept_rows: of the weight.
    """
    if x.is_cuda or kept_rows.shape[1] < kept_rows.shape[0]:
        return False
    return all(step == 1 for step in geometry.stride) and x.shape[2:] == dy.shape[2:]


def memory_format(x: Tensor) -> torch.memory_format:
    """Planes, or channels_last."""
    last = CHANNELS_LAST.get(x.dim(), torch.contiguous_format)
    return last if not x.is_contiguous() and x.is_contiguous(memory_format=last) else torch.contiguous_format


def _layout(x: Tensor, kept_rows: Tensor) -> torch.memory_format:
    """The memory format to compute in: that of x, or channels_last where that is faster in spite of reordering x.

    A CPU computes planes in blocks of 16 channels, 51 as if they were 64, and channels_last without such a loss.
    kept_rows: of the weight.
    """
    idle = -len(kept_rows) % LANES * kept_rows[0, 0].numel()
    if not x.is_cuda and len(kept_rows) > LANES and idle >= WORTH_REORDERING:
        return CHANNELS_LAST.get(x.dim(), torch.contiguous_format)
    return memory_format(x)


def grouped(dy: Tensor, x: Tensor, weight: Tensor, channels: Tensor, geometry: Geometry, needs: Needs) -> Gradients:
    """Only groups with a kept channel are touched; groups with equally many are computed together."""
    need_x, need_weight, need_bias = needs
    groups = geometry.groups
    per_out, per_in = weight.shape[0] // groups, weight.shape[1]
    order = channels.argsort()
    group_of = channels[order] // per_out
    counts = torch.bincount(group_of, minlength=groups)
    dx = torch.zeros_like(x) if need_x else None
    dw = weight.new_empty((len(channels), *weight.shape[1:])) if need_weight else None
    db = weight.new_empty(len(channels)) if need_bias else None
    for size in counts.unique().tolist():
        if size == 0:
            continue
        groups_here = (counts == size).nonzero().flatten()
        rows = order[torch.isin(group_of, groups_here)]
        inputs = (groups_here[:, None] * per_in + torch.arange(per_in, device=x.device)).flatten()
        kept_rows, together = dy.index_select(1, channels[rows]), geometry._replace(groups=len(groups_here))
        dx_part, dw_part = gradients(
            kept_rows, x.index_select(1, inputs), weight[channels[rows]], together, need_x, need_weight
        )
        if dx is not None and dx_part is not None:
            dx.index_copy_(1, inputs, dx_part)
        if dw is not None and dw_part is not None:
            dw[rows] = dw_part
        if db is not None:
            db[rows] = kept_rows.sum((0, *range(2, dy.dim())))
    return dx, dw, db
