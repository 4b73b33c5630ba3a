"""Features of images by a small net that is trained from the same images, for the Fréchet distance of generated ones.

No net is downloaded, so distances of one data set compare with each other and with nothing else: the one of Inception's
features is called FID, and this is none. Features are scaled so that those of the training images vary by 1 in all: a
generator that always made one image, whose features are their mean, would be at a distance of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 32
STEPS, BATCH, LR, MOMENTUM = 300, 64, 0.05, 0.9
MOST_IMAGES, MOST_NUMBERS = 10_000, 1 << 24  # that it is trained on: its time and memory do not grow with the data
AT_ONCE = 512  # images of one pass without gradients


class FeatureNet(nn.Module):
    """Images (B, C, H, W) in −1 … 1 → features (B, FEATURES): three convolutions of stride 2, the mean of places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 16, 32, FEATURES)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.scale = 1.0  # of the features, so that they vary by 1

    def forward(self, images: Tensor) -> Tensor:
        for conv in self.convs:
            images = F.relu(conv(images))
        return images.mean((2, 3)) * self.scale


@dataclass(frozen=True, slots=True)
class Trained:
    """net: with its head gone; what it was trained for, and the share of the training images that it has right."""

    net: FeatureNet
    told_apart: Literal["classes", "turns"]
    accuracy: float


def how_many(images: int, shape: Sequence[int]) -> int:
    """Of so many images (C, H, W) those that it is trained on: what memory has room for, two at least."""
    return min(images, MOST_IMAGES, max(2, MOST_NUMBERS // math.prod(shape)))


def trained_on(images: Tensor, labels: Tensor | None = None, classes: int | None = None) -> Trained:
    """A net that tells the classes of these images apart; without two of them, by how much they were turned (Gidaris et
    al. 2018).

    It is the same for the same images, on the CPU, whatever the run's seed, so that all models of a suite are measured
    alike. Turned are squares by quarters, other images by halves.

    Args:
        images: (N, C, H, W), float32 in −1 … 1
        labels: (N,), int64, or None
    """
    by_class = labels is not None and labels.dim() == 1 and not labels.is_floating_point() and (classes or 0) > 1
    turns = 4 if images.shape[-1] == images.shape[-2] else 2
    task = _Classes(labels, int(classes or 0)) if by_class and labels is not None else _Turns(turns)
    # An own update instead of an optimizer of torch: a trial takes a step of one for training in an evaluation.
    with torch.random.fork_rng([]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        net, head = FeatureNet(images.shape[1]), nn.Linear(FEATURES, task.outputs)
        parameters = [*net.parameters(), *head.parameters()]
        moving = [torch.zeros_like(parameter) for parameter in parameters]
        for step in range(STEPS):
            shown, wanted = task.show(images, torch.randint(len(images), (BATCH,)))
            gradients = torch.autograd.grad(F.cross_entropy(head(net(shown)), wanted), parameters)
            for parameter, buffer, gradient in zip(parameters, moving, gradients, strict=True):
                buffer.mul_(MOMENTUM).add_(gradient)
                parameter.data.sub_(LR * (1 - step / STEPS) * buffer)
    net.requires_grad_(False)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        right = 0
        for index in torch.arange(len(images)).split(AT_ONCE):
            shown, wanted = task.show(images, index)
            right += int((head(net(shown)).argmax(1) == wanted).sum())
    spread = features(net, images.split(AT_ONCE)).double().var(0).sum().sqrt().item()
    net.scale = 1 / spread if spread > 0 else 1.0
    return Trained(net, "classes" if by_class else "turns", right / len(images))


class _Classes:
    """What the net is shown of images, and shall say: their classes."""

    def __init__(self, labels: Tensor, outputs: int) -> None:
        self._labels, self.outputs = labels, outputs

    def show(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return images[index], self._labels[index]


class _Turns:
    """The same images turned, each by the next of so many turns of a circle's parts; which it was."""

    def __init__(self, turns: int) -> None:
        self.outputs = turns

    def show(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        shown, wanted = images[index], torch.arange(len(index)) % self.outputs
        for turn in range(1, self.outputs):
            shown[wanted == turn] = torch.rot90(shown[wanted == turn], turn * 4 // self.outputs, (2, 3))
        return shown, wanted


def features(net: FeatureNet, images: Iterable[Tensor]) -> Tensor:
    """Of batches of images, (N, FEATURES), float32 on the CPU: whatever device they were made on."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return torch.cat([net(piece.float().cpu()) for piece in images])
