"""How a workload is trained: the resolved `[train]` table, its optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from energybench.flops.autocast import NARROW


@dataclass(frozen=True, slots=True)
class Recipe:
    """`batch` samples per update in `accumulate` micro-batches; `decay` is weight decay as the optimizer defines it."""

    epochs: int
    batch: int
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] | None = None
    decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    warmup_epochs: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    precision: str = "fp32"
    label_smoothing: float = 0.0
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)  # pattern of names → multiple of the rate

    def lr_at(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1] of the planned epochs: a pure function, so skipping advances it.

        A warm-up multiplies whatever the schedule says by a ramp from 0 to 1. Milestones are in planned epochs;
        "exponential" multiplies by the factor after each of them.
        """
        rate, epoch = self.lr, progress * self.epochs
        if self.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * progress)) / 2
        elif self.schedule == "linear":
            rate *= 1 - progress
        elif self.schedule == "step":
            rate *= self.factor ** sum(epoch > milestone - 1e-9 for milestone in self.milestones)
        elif self.schedule == "exponential":
            rate *= self.factor ** math.floor(epoch + 1e-9)
        return rate * min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else rate

    def in_precision(self, precision: str | None) -> Recipe:
        """The same recipe in another precision; None: in its own."""
        return self if precision is None else replace(self, precision=precision)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        narrow = NARROW.get(self.precision)
        return nullcontext() if narrow is None else torch.autocast(device.type, getattr(torch, narrow))

    def build_optimizer(self, params: list[nn.Parameter]) -> Optimizer:
        """torch's own optimizer of that name; the learning rate is set before each update."""
        common: dict[str, Any] = {"lr": self.lr, "weight_decay": self.decay}
        if self.optimizer == "sgd":
            return torch.optim.SGD(params, momentum=self.momentum, nesterov=self.nesterov, **common)
        if self.betas is not None:
            common["betas"] = tuple(self.betas)
        kinds = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "adagrad": torch.optim.Adagrad,
            "adadelta": torch.optim.Adadelta,
        }
        return kinds[self.optimizer](params, **common)


def add_parameters(optimizer: Optimizer, params: list[nn.Parameter], recipe: Recipe) -> None:
    """Let an optimizer move parameters that were frozen when it was built, with its first group's settings."""
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    optimizer.add_param_group({"params": params, **settings})
    fresh = recipe.build_optimizer(params)
    if type(fresh) is type(
        optimizer
    ):  # Adagrad makes its state when it is built, and for a group that comes later none
        for parameter, state in fresh.state.items():
            optimizer.state.setdefault(parameter, state)
