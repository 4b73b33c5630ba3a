"""Small models of our own: a convolutional network, a multilayer perceptron, a small vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from energybench.common.torchvision_shim import import_torchvision

Shape = tuple[int, ...]


def cnn(shape: Shape, classes: int, channels: Sequence[int] = (16, 32), pool: bool = True) -> nn.Module:
    """3×3 convolution, BatchNorm, ReLU and 2×2 max-pool per entry of `channels`; global mean; one linear layer."""
    layers: list[nn.Module] = []
    width, side = shape[0], min(shape[1:])
    for out in channels:
        layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        if pool and side >= 4:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def mlp(shape: Shape, classes: int, hidden: Sequence[int] = (256, 256)) -> nn.Module:
    """Linear and ReLU per entry of `hidden`; one linear layer."""
    width = 1
    for extent in shape:
        width *= extent
    layers: list[nn.Module] = [nn.Flatten()]
    for out in hidden:
        layers += [nn.Linear(width, out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers, nn.Linear(width, classes))


def vit_tiny(
    shape: Shape, classes: int, patch: int = 4, layers: int = 12, heads: int = 3, width: int = 192
) -> nn.Module:
    """torchvision's VisionTransformer at DeiT-tiny's size (Touvron et al. 2021, Table 1) on small square images."""
    vision = import_torchvision().models.vision_transformer.VisionTransformer
    model = vision(shape[1], patch, layers, heads, width, 4 * width, num_classes=classes)
    if shape[0] != 3:
        model.conv_proj = nn.Conv2d(shape[0], width, patch, patch)
    return model
