"""What products of sparse tensors cost: a multiply-add for each pair of elements that the kernel brings together.

A sparse matrix is billed by the elements that it holds, zeros among them and, in blocks, the whole of each block. Where
torch computes with dense operands, as it does for the gradient of a COO matrix, the operator that does so is billed as
dense. Which kernel runs was found out for torch 2.13 on a CPU: no product of a sparse operand is computed as dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

_SPARSE = frozenset(
    {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
)  # layouts


def multiply_add(*operands: Tensor) -> int:
    """FLOPs of one: 2, of complex numbers 8 (four real products, four real sums)."""
    return 8 if any(operand.is_complex() for operand in operands) else 2


def is_sparse(x: Tensor) -> bool:
    return x.layout in _SPARSE


def held(x: Tensor) -> int:
    """Elements that a sparse tensor holds."""
    return (x._values() if x.layout == torch.sparse_coo else x.values()).numel()


def product(a: Tensor, b: Tensor) -> int:
    """a (..., m, k) @ b (..., k, n) or a @ vector, where a, b or both are sparse."""
    each = multiply_add(a, b)
    if not is_sparse(b):
        return each * held(a) * (b.shape[-1] if b.dim() > 1 else 1)
    if not is_sparse(a):
        return each * (a.shape[-2] if a.dim() > 1 else 1) * held(b)
    return each * _pairs(a, b)


def _pairs(a: Tensor, b: Tensor) -> int:
    """Σ over k of what column k of a holds times what row k of b holds."""
    of_a, of_b = (_indices(x)[place] for x, place in ((a, 1), (b, 0)))
    inner = a.shape[-1]
    return int((torch.bincount(of_a, minlength=inner) * torch.bincount(of_b, minlength=inner)).sum())


def _indices(x: Tensor) -> Tensor:
    return (x if x.layout == torch.sparse_coo else x.to_sparse_coo())._indices()


def sampled(held_places: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """a (m, k) @ b (k, n), at the places alone that the first tensor holds."""
    return multiply_add(a, b) * held(held_places) * a.shape[-1]


def reduced(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """A product whose terms are summed, averaged or compared."""
    return product(a, b)


def reduced_backward(
    a: Tensor, grad: Tensor, b: Tensor, reduce: str, places: Tensor, mask: Sequence[bool], **_: Any
) -> int:
    return product(a, b) * (bool(mask[0]) + bool(mask[1]))


# ── 2:4: of four elements in a row two are held, and their places beside them ─────────────────────────────────────


def half_full(a: Tensor, places: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """a (m, k / 2) @ b (k, n)."""
    return multiply_add(a, b) * prod(a.shape) * b.shape[-1]


def added_half_full(added: Tensor, a: Tensor, places: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return half_full(a, places, b)


def half_full_linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """x (..., k), weight (n, k / 2)."""
    return multiply_add(x, weight) * prod(x.shape[:-1]) * prod(weight.shape)


def compressed(packed: Tensor, b: Tensor, *_: Any, result: Tensor, **__: Any) -> int:
    """cuSPARSELt's own packing tells no shape: half of k terms for each element of the result."""
    return multiply_add(b) * prod(result.shape) * b.shape[0] // 2
