"""How a batch of images is moved, and with it what belongs to the images: masks pixel by pixel, boxes by their corners.

What a move does is drawn once for a batch, so that every image of a sample and its targets move alike. A mask has any
dimensions between those of the batch and of the pixels. Boxes are (B, K, 4), x₁ y₁ x₂ y₂ in pixels from the image's top
left corner, with labels (B, K) of which −1 means that the row holds no object; such a row is all zeros when it moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from energybench.train.facts import NO_OBJECT

Size = tuple[int, int]  # height, width


class Move(Protocol):
    """One of a batch."""

    def pixels(self, pixels: Tensor, fill: int = 0) -> Tensor:
        """Of (B, C, H, W), with `fill` where the image did not reach."""

    def boxes(self, boxes: Tensor, size: Size) -> Tensor:
        """(B, K, 4) of images of that size; what lies outside is not cut here."""

    def of(self, rows: slice) -> Move:
        """The same of some of the batch's samples."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Left to right. mirrored: (B,) of bool."""

    mirrored: Tensor

    def pixels(self, pixels: Tensor, fill: int = 0) -> Tensor:
        mirrored = self.mirrored.to(pixels.device)
        return torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)

    def boxes(self, boxes: Tensor, size: Size) -> Tensor:
        left, top, right, bottom = boxes.unbind(-1)
        other = torch.stack([size[1] - right, top, size[1] - left, bottom], -1)
        return torch.where(self.mirrored.to(boxes.device).view(-1, 1, 1), other, boxes)

    def of(self, rows: slice) -> Mirror:
        return Mirror(self.mirrored[rows])


@dataclass(frozen=True, slots=True)
class Shift:
    """Each image by its own offset, 0..2·amount down and right in the image padded by `amount` at every side.

    offsets: (2, B, 1) of rows and columns
    """

    offsets: Tensor
    amount: int

    def pixels(self, pixels: Tensor, fill: int = 0) -> Tensor:
        count, _, height, width = pixels.shape
        offsets = self.offsets.to(pixels.device)
        rows = offsets[0] + torch.arange(height, device=pixels.device)
        columns = offsets[1] + torch.arange(width, device=pixels.device)
        padded = F.pad(pixels, (self.amount,) * 4, value=fill)
        samples = torch.arange(count, device=pixels.device).view(-1, 1, 1)
        # Advanced indices around a slice put the channel last: bring it back.
        return padded[samples, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)

    def boxes(self, boxes: Tensor, size: Size) -> Tensor:
        down, right = (self.amount - self.offsets.to(boxes.device)).unbind(0)  # (B, 1) each
        return boxes + torch.stack([right, down, right, down], -1).to(boxes.dtype)

    def of(self, rows: slice) -> Shift:
        return Shift(self.offsets[:, rows], self.amount)


def draw_mirror(count: int, generator: torch.Generator) -> Mirror:
    """Each with a chance of one half."""
    return Mirror(torch.rand(count, generator=generator).lt(0.5))


def draw_shift(count: int, amount: int, generator: torch.Generator) -> Shift:
    """Every offset alike."""
    return Shift(torch.randint(0, 2 * amount + 1, (2, count, 1), generator=generator), amount)


def move_masks(masks: Tensor, moves: Sequence[Move], void: int | None) -> Tensor:
    """(B, ..., H, W), with `void` where the image did not reach."""
    flat = masks.reshape(len(masks), -1, *masks.shape[-2:])
    for move in moves:
        flat = move.pixels(flat, 0 if void is None else void)
    return flat.reshape(masks.shape)


def resize_masks(masks: Tensor, size: Size) -> Tensor:
    """(B, ..., *size): of each pixel the label at its centre, so that no label is made up."""
    rows, columns = (
        torch.div((2 * torch.arange(new, device=masks.device) + 1) * old, 2 * new, rounding_mode="floor")
        for old, new in zip(masks.shape[-2:], size, strict=True)
    )
    return masks[..., rows[:, None], columns]


def move_boxes(targets: dict[str, Any], moves: Sequence[Move], size: Size) -> dict[str, Any]:
    """Boxes and labels of images of that size: cut at the border, dropped where a box's centre has left the image.

    After each move, as the pixels are: what has left the image does not come back with the next one.
    """
    boxes, labels = targets["boxes"], targets["labels"]
    for move in moves:
        boxes, labels = inside(move.boxes(boxes, size), labels, size)
    return {**targets, "boxes": boxes, "labels": labels}


def inside(boxes: Tensor, labels: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Boxes (..., 4) cut at an image's border, and labels (...); both are those of no object where the centre is
    outside."""
    limits = boxes.new_tensor([size[1], size[0]])
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    kept = (labels != NO_OBJECT) & ((centres >= 0) & (centres <= limits)).all(-1)
    cut = torch.minimum(boxes.clamp(min=0), limits.repeat(2))
    return torch.where(kept.unsqueeze(-1), cut, 0.0), torch.where(kept, labels, NO_OBJECT)


def resize_boxes(targets: dict[str, Any], old: Size, new: Size) -> dict[str, Any]:
    """Of images brought from one size to another."""
    scale = targets["boxes"].new_tensor([new[1] / old[1], new[0] / old[0]])
    return {**targets, "boxes": targets["boxes"] * scale.repeat(2)}
