"""Detectors: a small net of our own that finds centres, and transformers' RT-DETRv2 and YOLOS from a random start.

Each returns an answer that the task "detection" learns from. How the two of transformers are made stands in
transformers_detection.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from energybench.common.torchvision_shim import import_torchvision
from energybench.workloads.models import transformers_detection
from energybench.workloads.tasks.centre_points import CentrePoints

Shape = tuple[int, ...]
PRIOR = 0.1  # the heat that a fresh net expects everywhere, so that the first steps are not spent on emptiness


class CentreNet(nn.Module):
    """Convolutions that halve the image three times, some that do not, and one that makes the maps."""

    def __init__(self, channels: int, classes: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for out, stride in [(width, 2) for width in widths] + [(widths[-1], 1)] * depth:
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels, classes + 4, 1)
        self.stride = 2 ** len(widths)
        with torch.no_grad():
            bias = self.head.bias
            assert bias is not None
            bias[:classes] = math.log(PRIOR / (1 - PRIOR))
            bias[classes:] = torch.tensor([0.5, 0.5, math.log(2), math.log(2)])

    def forward(self, images: Tensor) -> CentrePoints:
        return CentrePoints(self.head(self.body(images)), self.stride)


def centre_net(shape: Shape, classes: int, widths: Sequence[int] = (16, 32, 64), depth: int = 2) -> nn.Module:
    """A small detector of our own: a heat map of centres for each class, offset and log size (Zhou et al. 2019).

    98,000 parameters and a stride of 8 as it stands: a 3×3 convolution, BatchNorm and ReLU per entry of `widths`, each
    halving the image, `depth` more at the last width, and one 1×1 convolution.
    """
    _needs_classes("centre_net", classes)
    if not widths or depth < 0 or min(widths) < 1:
        raise ValueError("widths are one whole number or more, and depth is 0 or more")
    return CentreNet(shape[0], classes, widths, depth)


def rt_detr_v2(
    shape: Shape,
    classes: int,
    backbone: Literal["nano", "r18", "r34", "r50", "r101"] = "nano",
    queries: int | None = None,
) -> nn.Module:
    """transformers' RT-DETRv2 (Lv et al. 2024, Apache-2.0) from a random start, without contrastive denoising.

    backbone: the published sizes r18, r34, r50 and r101, with 300 queries; or a nano of ours with 60, for small images.
    Images have sides that are multiples of 32.
    """
    _needs_classes("rt_detr_v2", classes)
    import_torchvision()  # transformers takes its operators, which may be missing
    return transformers_detection.rt_detr_v2(shape, classes, backbone, queries)


def yolos(
    shape: Shape, classes: int, width: int = 192, layers: int = 12, heads: int = 3, patch: int = 16, queries: int = 100
) -> nn.Module:
    """transformers' YOLOS (Fang et al. 2021, Apache-2.0) from a random start: a vision transformer with object tokens.

    YOLOS-Ti as it stands; YOLOS-S is width 384 and 6 heads.
    """
    _needs_classes("yolos", classes)
    import_torchvision()  # transformers takes its operators, which may be missing
    return transformers_detection.yolos(shape, classes, width, layers, heads, patch, queries)


def _needs_classes(use: str, classes: int | None) -> None:
    if classes is None:
        raise ValueError(f"{use} needs data with classes of boxes")
