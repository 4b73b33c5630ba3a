"""From uint8 images to what a model sees: normalised and augmented, per batch, on the device the images are on.

What belongs to the images goes with them: masks and boxes are mirrored, shifted and resized as their image is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from energybench.train import geometry
from energybench.train.batch import Share
from energybench.train.facts import Facts
from energybench.train.geometry import Move, Size
from energybench.train.trees import paths

AUGMENTATIONS = ("flip", "crop<N>, such as crop4")
Moments = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel


class Images:
    """uint8 (B, C, H, W) → float32, normalised per channel; augmented when given a generator.

    mean, std: per channel, in units of the 0–1 range
    augment:   "flip" mirrors half of the images; "cropN" shifts by up to N pixels over a black border
    resize:    side in pixels that the result is brought to, bilinear; None leaves it
    facts:     of the data, whose targets move with the images
    leaves:    of inputs that are a tree: each image's path in it → its mean and deviation, in place of the two above
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Sequence[str],
        device: torch.device,
        resize: int | None = None,
        *,
        facts: Facts | None = None,
        leaves: Mapping[str, Moments] | None = None,
    ) -> None:
        self.resize, self.facts = resize, facts or Facts()
        self.augment = [parse(name) for name in augment]
        self.scales = {path: _scales(*moments, device) for path, moments in (leaves or {"": (mean, std)}).items()}
        self._at: list[tuple[int, tuple[Tensor, Tensor]]] | None = None  # of a tree's leaves, those that are images

    def __call__(self, images: Any, generator: torch.Generator | None) -> Any:
        """The inputs alone."""
        return self.with_targets(images, None, generator)[0]

    def with_targets(
        self, inputs: Any, targets: Any, generator: torch.Generator | None, share: Share | None = None
    ) -> tuple[Any, Any]:
        """The inputs and the targets of a batch, moved alike. A mask comes out as int64, as losses want it.

        share: what they are of a batch that others have the rest of: they move as they would in the whole of it
        """
        leaves, structure = ([inputs], None) if isinstance(inputs, Tensor) else tree_flatten(inputs)
        images = self._images(inputs)
        first = leaves[images[0][0]]
        moves: list[Move] = []
        if generator is not None:
            moves = self._draw(len(first) if share is None else share.total, generator)
            moves = moves if share is None else [move.of(share.rows) for move in moves]
        for number, scales in images:
            leaves[number] = self._ready(leaves[number], scales, moves)
        size: Size = (first.shape[-2], first.shape[-1])
        return (
            leaves[0] if structure is None else tree_unflatten(leaves, structure),
            self._targets(targets, moves, size),
        )

    def _images(self, inputs: Any) -> list[tuple[int, tuple[Tensor, Tensor]]]:
        if self._at is None:
            named = [""] if isinstance(inputs, Tensor) else paths(inputs)
            self._at = [(number, self.scales[path]) for number, path in enumerate(named) if path in self.scales]
        return self._at

    def _draw(self, count: int, generator: torch.Generator) -> list[Move]:
        return [
            geometry.draw_mirror(count, generator) if kind == "flip" else geometry.draw_shift(count, amount, generator)
            for kind, amount in self.augment
        ]

    def _ready(self, images: Tensor, scales: tuple[Tensor, Tensor], moves: Sequence[Move]) -> Tensor:
        for move in moves:
            images = move.pixels(images)
        ready = images.to(torch.float32).sub_(scales[0]).mul_(scales[1])
        if self.resize is None or ready.shape[-2:] == (self.resize, self.resize):
            return ready
        return F.interpolate(ready, size=(self.resize, self.resize), mode="bilinear", align_corners=False)

    def _targets(self, targets: Any, moves: Sequence[Move], size: Size) -> Any:
        resized = None if self.resize is None or size == (self.resize, self.resize) else (self.resize, self.resize)
        if self.facts.targets == "mask":

            def moved(leaf: Any) -> Any:
                if not is_mask(leaf, size):
                    return leaf
                mask = geometry.move_masks(leaf, moves, self.facts.void)
                return geometry.resize_masks(mask, resized) if resized else mask

            return tree_map(moved, as_masks(targets))
        if self.facts.targets == "boxes" and isinstance(targets, dict):
            targets = geometry.move_boxes(targets, moves, size) if moves else targets
            return geometry.resize_boxes(targets, size, resized) if resized else targets
        return targets


def _scales(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """What is taken away from a uint8 image (B, C, H, W), and what the rest is multiplied by."""
    return (
        torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255,
        1 / (torch.tensor(std, device=device).view(1, -1, 1, 1) * 255),
    )


def is_image(leaf: Any) -> bool:
    """Whether inputs hold images here: uint8 (N, C, H, W)."""
    return isinstance(leaf, Tensor) and leaf.dtype == torch.uint8 and leaf.dim() == 4


def is_mask(leaf: Any, size: Size) -> bool:
    """Whether targets hold a label of each pixel here: whole numbers (N, ..., H, W) of images of that size."""
    if not isinstance(leaf, Tensor) or leaf.is_floating_point() or leaf.is_complex() or leaf.dim() < 3:
        return False
    return tuple(leaf.shape[-2:]) == size


def as_masks(targets: Any) -> Any:
    """Labels of pixels as int64, whatever they are kept as: a mask of uint8 is an eighth of that."""

    def labels(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.dim() > 2 and not leaf.is_floating_point()
        return leaf.long() if whole else leaf

    return tree_map(labels, targets)


def image_size(inputs: Any) -> Size | None:
    """(height, width) of the images of a batch or a set; None where there is none."""
    leaf = next(filter(is_image, tree_leaves(inputs)), None)
    return None if leaf is None else (leaf.shape[-2], leaf.shape[-1])


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored with a chance of one half."""
    return geometry.draw_mirror(len(images), generator).pixels(images)


def crop(images: Tensor, amount: int, generator: torch.Generator) -> Tensor:
    """Each image shifted by its own offset in 0..2·amount after padding every side by `amount` black pixels."""
    return geometry.draw_shift(len(images), amount, generator).pixels(images)


def read_image(path: Path, size: tuple[int, int]) -> Tensor:
    """A file as uint8 (3, *size): the shorter side resized, the centre kept."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        fitted = image.convert("RGB")
        if fitted.size != size[::-1]:
            fitted = ImageOps.fit(fitted, size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def read_mask(path: Path, size: tuple[int, int], zero_is_void: bool = False) -> Tensor:
    """A file of one channel as uint8 labels *size, fitted as `read_image` fits its image, each label from one pixel.

    zero_is_void: 0 becomes 255, and each other label one less

    Raises ValueError for what holds no labels.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if len(image.getbands()) != 1:
            raise ValueError(f"a mask has one channel, and it has {len(image.getbands())}: labels, not colours")
        fitted = image if image.size == size[::-1] else ImageOps.fit(image, size[::-1], Image.Resampling.NEAREST)
        labels = np.array(fitted)  # of a palette its numbers
    if labels.dtype.kind == "f" or labels.min() < 0 or labels.max() > 255:
        raise ValueError("a label is none of 0 to 255")
    labels = labels.astype(np.uint8)
    if zero_is_void:
        labels = np.where(labels == 255, labels, labels - np.uint8(1))  # 0 − 1 is 255
    return torch.from_numpy(labels)


def parse(name: str) -> tuple[str, int]:
    """("flip", 0) or ("crop", N). Raises ValueError for another name."""
    if name == "flip":
        return "flip", 0
    if match := re.fullmatch(r"crop([1-9]\d?)", name):
        return "crop", int(match.group(1))
    raise ValueError(f"unknown augmentation '{name}'; there are: {', '.join(AUGMENTATIONS)}")
