"""The models of the papers' tables on the meta device: shapes and no numbers, each built once."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from energybench.workloads import models

PHOTO, CIFAR, MNIST = (3, 224, 224), (3, 32, 32), (1, 28, 28)
FACES = (3, 64, 64)  # CelebA, as ssProp resizes it; Tiny ImageNet


@cache
def model(use: str, shape: tuple[int, ...], classes: int, **parameters: Any) -> nn.Module:
    """A shipped model; never to be changed by who asks for it."""
    with torch.device("meta"):
        return models.build(use, shape, classes, parameters)
