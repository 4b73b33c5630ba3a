"""Fingerprints of a training: of a model's weights, and of the samples that went forward, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """sha256 over every tensor of the state, in order."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        _add(digest, name, value)
    return digest.hexdigest()


def raw_fingerprint(model: nn.Module) -> str:
    """The same of parameters and lasting buffers as the modules hold them, asking no function of the model's own."""
    digest = hashlib.sha256()
    for name, value in _tensors(model, "", set()):
        _add(digest, name, value)
    return digest.hexdigest()


def parameters_fingerprint(model: nn.Module) -> str:
    """The same of the parameters alone."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        _add(digest, name, value)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Tensor) -> None:
    digest.update(name.encode())
    digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def _tensors(module: nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    held = vars(module)
    passing = held.get("_non_persistent_buffers_set", set())
    for kind in ("_parameters", "_buffers"):
        for name, value in held.get(kind, {}).items():
            if value is not None and name not in passing:
                yield f"{path}{name}", value
    for name, child in held.get("_modules", {}).items():
        if child is not None:
            yield from _tensors(child, f"{path}{name}.", seen)


def moved(model: nn.Module, start: nn.Module) -> float | None:
    """‖end − start‖₂ over the tensors of real numbers that both have; None where they share none.

    Args:
        model: after training, plain again
        start: built anew from the same seed, on any device
    """
    before, squares = start.state_dict(), []
    for name, value in model.state_dict().items():
        other = before.get(name)
        if other is not None and other.shape == value.shape and value.is_floating_point():
            squares.append((value.detach().cpu().double() - other.detach().cpu().double()).square().sum().item())
    return float(sum(squares)) ** 0.5 if squares else None


class SamplesSeen:
    """A running sha256 of the samples' numbers. Numbers of an epoch stay on the device until it ends."""

    def __init__(self) -> None:
        self._digest, self._indices = hashlib.sha256(), list[Tensor]()

    def add(self, index: Tensor) -> None:
        self._indices.append(index)

    def close_epoch(self) -> None:
        if self._indices:
            whole = torch.cat([index.reshape(-1) for index in self._indices]).to("cpu", torch.int64)
            self._digest.update(whole.numpy().tobytes())
            self._indices.clear()

    def sha256(self) -> str:
        return self._digest.hexdigest()
