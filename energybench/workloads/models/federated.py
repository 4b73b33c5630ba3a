"""Models of federated training, without BatchNorm, whose running statistics no two clients have alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from energybench.common.torchvision_shim import import_torchvision

Shape = tuple[int, ...]
KERNEL = 5


def lenet(
    shape: Shape, classes: int, channels: Sequence[int] = (64, 64), hidden: Sequence[int] = (384, 192), groups: int = 0
) -> nn.Module:
    """LeNet as federated learning has it: 5×5 convolutions with max-pooling, then linear layers.

    `channels` and `hidden` are their widths, by default those of GradSamp's public simulator, `groups` is that of a
    GroupNorm behind each convolution; 0: none.
    """
    layers: list[nn.Module] = []
    width, height, across = shape
    for out in channels:
        norm = [nn.GroupNorm(groups, out)] if groups else []
        layers += [nn.Conv2d(width, out, KERNEL), *norm, nn.ReLU(), nn.MaxPool2d(2)]
        width, height, across = out, (height - KERNEL + 1) // 2, (across - KERNEL + 1) // 2
    if min(height, across) < 1:
        raise ValueError(f"images of {shape[1]}×{shape[2]} are too small for {len(channels)} convolutions of {KERNEL}")
    layers.append(nn.Flatten())
    features = width * height * across
    for out in hidden:
        layers += [nn.Linear(features, out), nn.ReLU()]
        features = out
    return nn.Sequential(*layers, nn.Linear(features, classes))


def resnet18_groupnorm(shape: Shape, classes: int, groups: int = 2) -> nn.Module:
    """torchvision's ResNet-18 with GroupNorm in place of every BatchNorm, of two groups as in the public simulator.

    Its stem is the one for 224 px, at whatever size.
    """
    vision = import_torchvision()
    model: nn.Module = vision.models.resnet18(num_classes=classes, norm_layer=partial(nn.GroupNorm, groups))
    if shape[0] != 3:
        model.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model
