"""calflops' way of counting a forward pass: functions of torch, replaced by name while the model runs.

calflops (Ye 2023) replaces the functions themselves, so what it counts depends on how a model is written: `matmul` by
name is seen, `@` is not. The same is done here, and nothing of it is left when the block ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Callable[..., int]  # (output, *arguments of the function) → FLOPs


def _convolution(out: Tensor, input: Tensor, weight: Tensor, bias: Any = None, *_: Any, **__: Any) -> int:
    """2 per multiply-add, weight: (out, in / groups, kernel …); 1 per output for the bias."""
    return 2 * out.numel() * prod(weight.shape[1:]) + out.numel() * (bias is not None)


def _transposed(out: Tensor, input: Tensor, weight: Tensor, bias: Any = None, *_: Any, **__: Any) -> int:
    """weight: (in, out / groups, kernel …)"""
    return 2 * input.numel() * prod(weight.shape[1:]) + out.numel() * (bias is not None)


def _product(out: Tensor, input: Tensor, *_: Any, **__: Any) -> int:
    """(…, k) × (k, …): 2 per multiply-add; a linear layer's bias is free."""
    return 2 * out.numel() * input.shape[-1]


def _added_product(out: Tensor, input: Tensor, first: Tensor, *_: Any, **__: Any) -> int:
    return 2 * out.numel() * first.shape[-1] + input.numel()


def _einsum(out: Tensor, equation: str, *operands: Any) -> int:
    """2 · every index's extent where an index is summed over, else 1."""
    tensors = operands[0] if isinstance(operands[0], (list, tuple)) else operands
    left, arrow, result = equation.replace(" ", "").partition("->")
    extents: dict[str, int] = {}
    for term, tensor in zip(left.split(","), tensors, strict=True):
        before, _, after = term.partition("...")
        extents |= dict(zip(before, tensor.shape, strict=False))
        extents |= dict(zip(reversed(after), reversed(tensor.shape), strict=False))
    summed = [n for index, n in extents.items() if (index not in result if arrow else left.count(index) > 1)]
    return out.numel() * prod(summed) * (2 if summed else 1)


def _pooling(out: Any, input: Tensor, *_: Any, **__: Any) -> int:
    return input.numel()


def _elementwise(out: Tensor, *_: Any, **__: Any) -> int:
    return out.numel()


def _normalised(with_weight: int, position: int) -> Rule:
    """`with_weight` per element, 1 less without; the weight is the function's argument number `position`."""

    def rule(out: Tensor, *arguments: Any, **named: Any) -> int:
        weight = arguments[position] if len(arguments) > position else named.get("weight")
        return out.numel() * (with_weight - (weight is None))

    return rule


_DIMENSIONS = ("1d", "2d", "3d")
_RULES: list[tuple[Any, Rule, str]] = [
    (F, _convolution, "conv1d conv2d conv3d"),
    (F, _transposed, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    (F, _product, "linear"),
    (F, _elementwise, "relu relu6 leaky_relu prelu elu silu gelu softmax"),
    (F, _normalised(2, 3), "batch_norm"),
    (F, _normalised(5, 2), "layer_norm group_norm"),
    (F, _normalised(5, 3), "instance_norm"),
    *(
        (F, _pooling, " ".join(kind + dimension for dimension in _DIMENSIONS))
        for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")
    ),
    (torch, _product, "matmul mm bmm"),
    (torch, _added_product, "addmm baddbmm"),
    (torch, _einsum, "einsum"),
    (Tensor, _product, "matmul mm bmm"),
    (Tensor, _added_product, "addmm"),
]


class Calflops:
    """`with Calflops() as counter: model(x)`, then `counter.flop`."""

    def __init__(self) -> None:
        self.flop = 0
        self._inside = False  # meta kernels written in Python may call another of these functions
        self._undo = ExitStack()

    def __enter__(self) -> Calflops:
        try:
            for owner, rule, names in _RULES:
                for name in names.split():
                    self._replace(owner, name, rule)
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _replace(self, owner: Any, name: str, rule: Rule) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def counted(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return original(*arguments, **named)
            self._inside = True
            try:
                out = original(*arguments, **named)
            finally:
                self._inside = False
            self.flop += rule(out, *arguments, **named)
            return out

        inherited = name not in vars(owner)
        self._undo.callback(lambda: delattr(owner, name) if inherited else setattr(owner, name, original))
        setattr(owner, name, counted)
