"""Features of images by a small net that is trained from the same images, for the Fréchet distance of generated ones.

No net is downloaded, so distances of one data set compare with each other and with nothing else: the one of Inception's
features is called FID, and this is none. Features are scaled so that those of the training images vary by 1 in all: a
generator that always made the mean image of that space would be at a distance of 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 32
STEPS, BATCH, LR, MOMENTUM = 300, 64, 0.05, 0.9
MOST_IMAGES = 10_000  # that it is trained on: its time shall not grow with the data


class FeatureNet(nn.Module):
    """Images (B, C, H, W) in −1 … 1 → features (B, FEATURES): three convolutions of stride 2, and the mean of places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 16, 32, FEATURES)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths, widths[1:], strict=False))
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


def trained_on(images: Tensor, labels: Tensor | None, classes: int | None) -> Trained:
    """A net that tells the classes of these images apart; without two of them, by how much they were turned.

    It is the same for the same images, on the CPU, whatever the run's seed, so that all models of a suite are measured
    alike. Turned are squares by quarters, other images by halves.

    Args:
        images: (N, C, H, W), float32 in −1 … 1
        labels: (N,), int64, or None
    """
    images = images.cpu()
    by_class = labels is not None and labels.dim() == 1 and not labels.is_floating_point() and (classes or 0) > 1
    turns = 4 if images.shape[-1] == images.shape[-2] else 2
    outputs = int(classes or 0) if by_class else turns
    # An own update instead of an optimizer of torch: a trial takes a step of one for training in an evaluation.
    with torch.random.fork_rng([]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        net, head = FeatureNet(images.shape[1]), nn.Linear(FEATURES, outputs)
        parameters = [*net.parameters(), *head.parameters()]
        moving = [torch.zeros_like(parameter) for parameter in parameters]
        for step in range(STEPS):
            index = torch.randint(len(images), (BATCH,))
            shown, wanted = _shown(images[index], labels[index].cpu() if by_class and labels is not None else None, turns)
            loss = F.cross_entropy(head(net(shown)), wanted)
            lr = LR * (1 - step / STEPS)
            for parameter, buffer, gradient in zip(
                parameters, moving, torch.autograd.grad(loss, parameters), strict=True
            ):
                buffer.mul_(MOMENTUM).add_(gradient)
                parameter.data.sub_(lr * buffer)
        shown, wanted = _shown(images, labels.cpu() if by_class and labels is not None else None, turns)
    net.requires_grad_(False)
    with torch.no_grad():
        right = torch.cat([head(net(piece)).argmax(1) for piece in shown.split(512)]) == wanted
        spread = features(net, images.split(512)).double().var(0).sum().sqrt().item()
    net.scale = 1 / spread if spread > 0 else 1.0
    return Trained(net, "classes" if by_class else "turns", right.double().mean().item())


def _shown(images: Tensor, labels: Tensor | None, turns: int) -> tuple[Tensor, Tensor]:
    """What the net is shown, and shall say."""
    if labels is not None:
        return images, labels
    wanted = torch.arange(len(images)) % turns
    turned = [torch.rot90(image, int(turn) * 4 // turns, (1, 2)) for image, turn in zip(images, wanted, strict=True)]
    return torch.stack(turned), wanted


def features(net: FeatureNet, images: Iterable[Tensor]) -> Tensor:
    """Of batches of images, (N, FEATURES), float32 on the CPU: whatever device they were made on."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return torch.cat([net(piece.float().cpu()) for piece in images])
