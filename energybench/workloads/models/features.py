"""A small VGG that learns in seconds, and any classifier up to one of its layers, frozen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from energybench.common.errors import nearest

Shape = tuple[int, ...]


def vgg_small(shape: Shape, classes: int, widths: Sequence[int] = (16, 32, 64)) -> nn.Module:
    """VGG's pattern (Simonyan & Zisserman 2015) in small: two 3×3 convolutions with BatchNorm and ReLU and a 2×2
    max-pool per entry of `widths`, which are its layer "features"; global mean; one linear layer."""
    if len(shape) != 3 or min(shape[1:]) < 2 ** len(widths) or not widths:
        raise ValueError(f"{len(widths)} widths need images of {2 ** len(widths)} pixels at least, and one is {shape}")
    layers: list[nn.Module] = []
    before = shape[0]
    for width in widths:
        for _ in range(2):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    parts = [("features", nn.Sequential(*layers)), ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    return nn.Sequential(OrderedDict([*parts, ("head", nn.Linear(before, classes))]))


class Extractor:
    """A frozen model up to one of its layers: images (B, C, H, W) → features (B, ...).

    layer: name of the layer whose output they are; None: what the last linear layer is given
    pool:  side to which maps (B, channels, height, width) are averaged; None leaves them

    The model is left in evaluation mode, and none of its parameters learns. Nothing behind the layer is computed.

    Raises ValueError for a layer that is not there, is not reached, or gives what are no features.
    """

    def __init__(self, model: nn.Module, layer: str | None = None, pool: int | None = None) -> None:
        self.model, self.pool = model.eval().requires_grad_(False), pool
        self.takes_input = layer is None
        named = dict(model.named_modules())
        if layer is None:
            layer = next((name for name, module in reversed(named.items()) if isinstance(module, nn.Linear)), None)
            if layer is None:
                raise ValueError("it has no linear layer whose input could be taken: name a layer")
        if layer not in named or not layer:
            outer = [name for name in named if name and name.count(".") < 2]
            raise ValueError(f"it has no layer '{layer}'; {nearest(layer, outer)}".removesuffix("; "))
        self.layer, self._module = layer, named[layer]

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self._features(images)

    def uses(self, names: Iterable[str], shape: Shape) -> list[str]:
        """Which of the model's tensors, by their names, the features of an image of that shape depend on."""
        self.model.requires_grad_(True)
        try:
            with torch.enable_grad():
                found = self._features(torch.zeros(1, *shape))
                parameters = dict(self.model.named_parameters())
                gradients = torch.autograd.grad(found.sum(), list(parameters.values()), allow_unused=True)
        finally:
            self.model.requires_grad_(False)
        pairs = zip(parameters, gradients, strict=True)
        places = {name.rpartition(".")[0] for name, gradient in pairs if gradient is not None}
        return [name for name in names if name.rpartition(".")[0] in places]  # a layer's buffers with its parameters

    def _features(self, images: Tensor) -> Tensor:
        taken: list[Any] = []

        def take_output(module: nn.Module, arguments: Any, output: Any) -> None:
            taken.append(output)
            raise _Reached

        def take_input(module: nn.Module, arguments: Any) -> None:
            taken.append(arguments[0])
            raise _Reached

        module = self._module
        hook = module.register_forward_pre_hook(take_input) if self.takes_input else None
        hook = hook or module.register_forward_hook(take_output)
        try:
            self.model(images)
        except _Reached:
            pass
        finally:
            hook.remove()
        if not taken:
            raise ValueError(f"its layer '{self.layer}' is not called in a forward pass")
        return self._pooled(taken[0], len(images))

    def _pooled(self, found: Any, count: int) -> Tensor:
        if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != count or not found.is_floating_point():
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"its layer '{self.layer}' gives {shown} for {count} images, and not a row of numbers each"
            )
        if self.pool is None:
            return found
        if found.dim() != 4 or self.pool > min(found.shape[2:]):
            raise ValueError(
                f"its layer '{self.layer}' gives {tuple(found.shape[1:])}, which is not pooled to {self.pool}"
            )
        return F.adaptive_avg_pool2d(found, self.pool)


class _Reached(BaseException):
    """The layer has been computed. No error, so that no model's `except Exception` goes on."""
