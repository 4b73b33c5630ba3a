"""Objects as points: one heat map a class, and at each object's centre its offset and the logarithm of its size.

What Zhou et al. 2019 ("Objects as Points") predict, with the heat of Liu et al. 2020 (TTFNet, section 3.2), whose width
follows both sides of a box. The loss of an image, divided by its number of objects (their Eq. 1), so that it is its own
and cutting a batch into micro-batches changes nothing: the penalty-reduced focal loss of its heat maps, plus the
absolute errors of offsets and of log sizes at the centres.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from energybench.train.facts import NO_OBJECT

FOCUS, DISTANCE = 2, 4  # α and β of their Eq. 1
SPREAD, NARROWEST = 0.54 / 6, 1 / 3  # deviation of a heat in sides of its box; and at least, in cells
PEAK = 3  # cells across which one peak is kept
FEWEST = 1e-3  # cells: of a side whose logarithm is taken


class CentrePoints(NamedTuple):
    """A detector's answer.

    maps:   (B, classes + 4, h, w): logits of heat; offset of the centre in its cell across and down, in cells;
            logarithms of width and height in cells
    stride: pixels of the image in a cell
    """

    maps: Tensor
    stride: int

    def losses(self, targets: dict[str, Any], size: tuple[int, int]) -> Tensor:
        """Of each image (B,).

        Args:
            targets: "boxes" (B, K, 4) in pixels and "labels" (B, K), −1 where there is no object
            size: (height, width) of the images
        """
        maps = wide(self.maps)
        heat, sides = maps[:, :-4], maps[:, -4:]
        there = targets["labels"] != NO_OBJECT
        objects = there.sum(1).clamp(min=1)
        wanted, cells, values = self._wanted(targets, there)
        warm = wanted == 1
        logits = F.logsigmoid(heat), F.logsigmoid(-heat)
        missed = warm * logits[1].exp() ** FOCUS * logits[0]
        false = (1 - wanted) ** DISTANCE * logits[0].exp() ** FOCUS * logits[1]
        found = sides.flatten(2).gather(2, cells.unsqueeze(1).expand(-1, 4, -1))
        errors = (found - values).abs().sum(1) * there
        return (errors.sum(1) - (missed + false).flatten(1).sum(1)) / objects

    @torch.no_grad()
    def _wanted(self, targets: dict[str, Any], there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heat (B, classes, h, w), each object's cell (B, K), and offset and log size (B, 4, K)."""
        boxes, labels = targets["boxes"].to(wide(self.maps)) / self.stride, targets["labels"].clamp(min=0)
        height, width = (int(side) for side in self.maps.shape[-2:])
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=FEWEST)
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2
        last = boxes.new_tensor([width - 1, height - 1])
        corner = torch.minimum(centres.floor().clamp(min=0), last)  # of the cell, (B, K, 2): across, down
        spread = (sides * SPREAD).clamp(min=NARROWEST)
        across = (torch.arange(width, device=boxes.device) - corner[..., :1]) / spread[..., :1]
        down = (torch.arange(height, device=boxes.device) - corner[..., 1:]) / spread[..., 1:]
        squares = down.square().unsqueeze(-1) + across.square().unsqueeze(-2)  # (B, K, h, w)
        each = (-squares / 2).exp() * there[..., None, None]
        heat = torch.zeros_like(wide(self.maps)[:, :-4])
        heat = heat.scatter_reduce(1, labels[..., None, None].expand_as(each), each, "amax")
        cells = (corner[..., 1] * width + corner[..., 0]).long()
        return heat, cells, torch.cat([centres - corner, sides.log()], -1).transpose(1, 2)

    def detections(self, size: tuple[int, int], most: int) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest objects of each image: boxes (B, n, 4) in pixels, scores (B, n) falling, classes (B, n).

        Args:
            most: of an image, n
        """
        maps = wide(self.maps)
        heat, sides = maps[:, :-4].sigmoid(), maps[:, -4:].flatten(2)
        heat = heat * (F.max_pool2d(heat, PEAK, 1, PEAK // 2) == heat)
        height, width = heat.shape[-2:]
        scores, places = heat.flatten(1).topk(min(most, heat[0].numel()))
        classes, cells = places // (height * width), places % (height * width)
        found = sides.gather(2, cells.unsqueeze(1).expand(-1, 4, -1)).transpose(1, 2)
        corner = torch.stack([cells % width, cells // width], -1)
        centres, half = corner + found[..., :2], found[..., 2:].clamp(max=20).exp() / 2
        boxes = torch.cat([centres - half, centres + half], -1) * self.stride
        return clipped(boxes, size), scores, classes


def wide(x: Tensor) -> Tensor:
    """In single precision or better, for losses of what was computed in half."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) in pixels, cut at the border of images of that (height, width)."""
    limits = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(boxes.clamp(min=0), limits)
