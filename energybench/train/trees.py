"""Batches whose inputs and targets are trees of tensors: cut them apart, put them together, move them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

from energybench.train.batch import Batch, Forward


def take(tree: Any, index: Tensor | slice) -> Any:
    """The samples at `index` of every tensor in a tree."""
    if isinstance(tree, Tensor):  # walking a tree of one leaf costs 15 µs a step
        return tree[index]
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, tree)


def to(tree: Any, device: torch.device) -> Any:
    """Every tensor of a tree on `device`."""
    return tree_map(lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf, tree)


def count(*trees: Any) -> int | None:
    """How many samples trees of tensors (N, ...) hold: N of the first tensor; None where there is none."""
    leaves = (leaf for tree in trees for leaf in tree_leaves(tree))
    return next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)


def paths(tree: Any) -> list[str]:
    """Where each leaf of a tree stands, in their order: "image", "0", "pair.1"; "" for a tree of one leaf."""
    found, _ = tree_flatten_with_path(tree)
    return [".".join(str(_name(key)) for key in keys) for keys, _ in found]


def _name(key: Any) -> Any:
    """Of a step into a tree, by whichever attribute its kind has."""
    return next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind))


def split(batch: Batch, pieces: int) -> list[Batch]:
    """A batch cut into `pieces` micro-batches of nearly equal size, fewer where one would be empty."""
    if pieces == 1:
        return [batch]
    pieces = max(1, min(pieces, len(batch), *(len(other) for other in batch.also.values())))
    return [_piece(batch, number, pieces) for number in range(pieces)]


def _piece(batch: Batch, number: int, pieces: int) -> Batch:
    """Other domains' batches are cut too, each by its own length."""
    where = slice(number * len(batch) // pieces, (number + 1) * len(batch) // pieces)
    return replace(
        batch,
        inputs=take(batch.inputs, where),
        targets=take(batch.targets, where),
        index=batch.index[where],
        weights=None if batch.weights is None else batch.weights[where],
        also={name: _piece(other, number, pieces) for name, other in batch.also.items()},
    )


def join(forwards: list[Forward], sizes: list[int]) -> Forward:
    """The forward passes of micro-batches as if they had been one."""
    if len(forwards) == 1:
        return forwards[0]
    total = sum(sizes)
    value = torch.stack([forward.value.detach() * size / total for forward, size in zip(forwards, sizes, strict=True)])
    each = [forward.each for forward in forwards if forward.each is not None]
    leaves = [torch.utils._pytree.tree_flatten(forward.outputs) for forward in forwards]
    joined = [
        torch.cat(parts) if isinstance(parts[0], Tensor) and parts[0].dim() else parts[0]
        for parts in zip(*(flat for flat, _ in leaves), strict=True)
    ]
    outputs = torch.utils._pytree.tree_unflatten(joined, leaves[0][1])
    return Forward(value.sum(), torch.cat(each) if len(each) == len(forwards) else None, outputs)
