"""PointNet: a class for a cloud of points, the same in whatever order the points come.

Every point passes alone through one and the same perceptron, written as convolutions of kernel 1; the largest value of
each feature over all points describes the cloud, and linear layers tell its class by it (Qi et al. 2017, Figure 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
SHARED, HEAD = (64, 128, 1024), (512, 256)  # of what predicts a transform


def pointnet(
    shape: Shape,
    classes: int,
    before: Sequence[int] = (64, 64),
    shared: Sequence[int] = (64, 128, 1024),
    head: Sequence[int] = (512, 256),
    dropout: float = 0.3,
    transforms: bool = False,
) -> nn.Module:
    """PointNet for classification (Qi et al. 2017): (B, points, coordinates) → logits; by default of the paper's size.

    before:     widths of the perceptron that each point passes first
    shared:     widths of the second one, whose last is the largest over the points
    head:       widths of the linear layers on it; BatchNorm and ReLU follow all of these
    dropout:    share that is zeroed before the last layer
    transforms: also predict a transform of the coordinates and one of the features after `before` from the cloud. The
                paper's term of the loss that keeps the latter near a rotation, 0.001·‖I − AAᵀ‖², is left out
    """
    if classes is None:
        raise ValueError("the data have no classes")
    if not shared or min([*before, *shared, *head]) < 1:
        raise ValueError("widths are 1 at least, and `shared` has one")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a share in [0, 1), not {dropout}")
    if transforms and not before:
        raise ValueError("transforms are before and after `before`, which is empty")
    return PointNet(shape[-1], classes, before, shared, head, dropout, transforms)


class PointNet(nn.Module):
    """(B, points, coordinates) → logits (B, classes)."""

    def __init__(
        self,
        coordinates: int,
        classes: int,
        before: Sequence[int],
        shared: Sequence[int],
        head: Sequence[int],
        dropout: float,
        transforms: bool,
    ) -> None:
        super().__init__()
        width = before[-1] if before else coordinates
        self.of_inputs: nn.Module = Transform(coordinates) if transforms else nn.Identity()
        self.before = each_point(coordinates, before)
        self.of_features: nn.Module = Transform(width) if transforms else nn.Identity()
        self.shared = each_point(width, shared)
        self.head = fully_connected(shared[-1], head)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(head[-1] if head else shared[-1], classes)

    def forward(self, clouds: Tensor) -> Tensor:
        if clouds.dim() != 3:
            raise TypeError(f"PointNet takes clouds (samples, points, coordinates), and is given {tuple(clouds.shape)}")
        x = self.before(self.of_inputs(clouds.transpose(1, 2)))
        x = self.shared(self.of_features(x)).amax(2)
        logits: Tensor = self.classify(self.dropout(self.head(x)))
        return logits


class Transform(nn.Module):
    """(B, C, points) → the same, multiplied by a matrix C × C that is predicted from the cloud, at first by none."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.shared = each_point(channels, SHARED)
        self.head = fully_connected(SHARED[-1], HEAD)
        self.matrix = nn.Linear(HEAD[-1], channels**2)
        with torch.no_grad():
            self.matrix.weight.zero_()
            self.matrix.bias.copy_(torch.eye(channels).flatten())

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.head(self.shared(x).amax(2))).unflatten(1, (self.channels, self.channels))
        return matrix @ x


def each_point(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """The same perceptron for each point, (B, C, points): per width a convolution of kernel 1, BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv1d(channels, width, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


def fully_connected(features: int, widths: Sequence[int]) -> nn.Sequential:
    """(B, features): per width a linear layer, BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers)
