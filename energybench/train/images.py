"""From uint8 images to what a model sees: normalised and augmented, per batch, on the device the images are on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

AUGMENTATIONS = ("flip", "crop<N>, such as crop4")


class Images:
    """uint8 (B, C, H, W) → float32, normalised per channel; augmented when given a generator.

    mean, std: per channel, in units of the 0–1 range
    augment:   "flip" mirrors half of the images; "cropN" shifts by up to N pixels over a black border
    resize:    side in pixels that the result is brought to, bilinear; None leaves it
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Sequence[str],
        device: torch.device,
        resize: int | None = None,
    ) -> None:
        self.resize = resize
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255
        self.scale = 1 / (torch.tensor(std, device=device).view(1, -1, 1, 1) * 255)
        self.augment = [parse(name) for name in augment]

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is not None:
            for kind, amount in self.augment:
                images = flip(images, generator) if kind == "flip" else crop(images, amount, generator)
        ready = images.to(torch.float32).sub_(self.mean).mul_(self.scale)
        if self.resize is None or ready.shape[-2:] == (self.resize, self.resize):
            return ready
        return F.interpolate(ready, size=(self.resize, self.resize), mode="bilinear", align_corners=False)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), generator=generator).lt(0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def crop(images: Tensor, amount: int, generator: torch.Generator) -> Tensor:
    """Each image shifted by its own offset in 0..2·amount after padding every side by `amount` black pixels."""
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * amount + 1, (2, count, 1), generator=generator).to(images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    padded = F.pad(images, (amount,) * 4)
    samples = torch.arange(count, device=images.device).view(-1, 1, 1)
    # Advanced indices around a slice put the channel last: bring it back.
    return padded[samples, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def read_image(path: Path, size: tuple[int, int]) -> Tensor:
    """A file as uint8 (3, *size): the shorter side resized, the centre kept."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        fitted = image.convert("RGB")
        if fitted.size != size[::-1]:
            fitted = ImageOps.fit(fitted, size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def parse(name: str) -> tuple[str, int]:
    """("flip", 0) or ("crop", N). Raises ValueError for another name."""
    if name == "flip":
        return "flip", 0
    if match := re.fullmatch(r"crop([1-9]\d?)", name):
        return "crop", int(match.group(1))
    raise ValueError(f"unknown augmentation '{name}'; there are: {', '.join(AUGMENTATIONS)}")
