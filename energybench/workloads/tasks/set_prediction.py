"""A fixed number of boxes per image, each of which answers for one object or for none: DETR and what came of it.

Carion et al. 2020: predictions are matched one to one with the objects by the cheapest sum of a class cost, 5 times the
absolute error of the box and 2 times one minus its generalised IoU; matched boxes learn by the same two errors. Classes
learn by cross-entropy with a class "no object" that weighs 0.1 (YOLOS), or by the varifocal loss (RT-DETR, Zhao et al.
2024), for which a matched score aims at the IoU. Every stage of a decoder is matched and learns alike.

The loss of an image is divided by its own number of objects (DETR divides by the mean of the batch), so that a batch
cut into micro-batches learns the same. Sizes depend on no number: targets stay padded to (B, K), so a step costs the
same whatever it shows, and can be traced without numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from energybench.train.facts import NO_OBJECT
from energybench.workloads.tasks.centre_points import clipped, wide

ABSOLUTE, OVERLAP = 5.0, 2.0  # weights of the two errors of a box, in the match and in the loss
FOCAL_COST, FOCAL_ALPHA, FOCAL_GAMMA = 2.0, 0.25, 2.0  # of the class cost where scores are independent
VARIFOCAL_ALPHA, VARIFOCAL_GAMMA = 0.75, 2.0
NOTHING = 0.1  # weight of "no object" in the cross-entropy
TINY = 1e-8


class SetPredictions(NamedTuple):
    """A detector's answer, of each stage of its decoder, the last one being its word.

    logits:     (B, stages, Q, classes), or with one more, the last, for "no object"
    boxes:      (B, stages, Q, 4): centre across and down, width, height, in the image's own
    background: whether there is that class
    """

    logits: Tensor
    boxes: Tensor
    background: bool

    def losses(self, targets: dict[str, Any], size: tuple[int, int]) -> Tensor:
        """Of each image (B,), the sum over the stages.

        Args:
            targets: "boxes" (B, K, 4) in pixels and "labels" (B, K), −1 where there is no object
            size: (height, width) of the images
        """
        logits, boxes = wide(self.logits), wide(self.boxes)
        labels = targets["labels"]
        wanted = _centred(targets["boxes"].to(boxes), size)
        objects = (labels != NO_OBJECT).sum(1).clamp(min=1).unsqueeze(1)
        chosen = self._match(logits, boxes, labels, wanted)
        matched = chosen != NO_OBJECT
        query = chosen.clamp(min=0)
        found = boxes.gather(2, query.unsqueeze(-1).expand(*query.shape, 4))
        aims = wanted.unsqueeze(1).expand_as(found)
        errors = ABSOLUTE * (found - aims).abs().sum(-1)
        errors = errors + OVERLAP * (1 - generalised_iou(_cornered(found), _cornered(aims)))
        of_boxes = (errors * matched).sum(-1) / objects
        kinds = labels.clamp(min=0).unsqueeze(1).expand_as(query)
        place = torch.where(matched, query, logits.shape[2])  # those without an object go to a row that is left out
        if self.background:
            return (of_boxes + _cross_entropy(logits, place, kinds)).sum(1)
        overlap = iou(_cornered(found.detach()), _cornered(aims))
        return (of_boxes + _varifocal(logits, place, kinds, overlap * matched) / objects).sum(1)

    @torch.no_grad()
    def _match(self, logits: Tensor, boxes: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        """Which query answers for each object, (B, stages, K); −1 for none, as where there is no object."""
        kinds = labels.clamp(min=0)[:, None, None, :].expand(*logits.shape[:3], -1)
        if self.background:
            cost = -logits.softmax(-1).gather(-1, kinds)
        else:
            scores = logits.sigmoid().gather(-1, kinds)
            missed = FOCAL_ALPHA * (1 - scores) ** FOCAL_GAMMA * -(scores + TINY).log()
            false = (1 - FOCAL_ALPHA) * scores**FOCAL_GAMMA * -(1 - scores + TINY).log()
            cost = FOCAL_COST * (missed - false)
        ours, theirs = boxes.unsqueeze(3), wanted[:, None, None]
        cost = cost + ABSOLUTE * (ours - theirs).abs().sum(-1)
        cost = cost - OVERLAP * generalised_iou(_cornered(ours), _cornered(theirs))
        return assigned(cost, labels != NO_OBJECT)

    def detections(self, size: tuple[int, int], most: int) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest objects of each image: boxes (B, n, 4) in pixels, scores (B, n) falling, classes (B, n).

        Args:
            most: of an image, n
        """
        logits, boxes = wide(self.logits[:, -1]), wide(self.boxes[:, -1])
        if self.background:
            every, kinds = logits.softmax(-1)[..., :-1].max(-1)
            scores, query = every.topk(min(most, every.shape[1]))
            classes = kinds.gather(1, query)
        else:
            every = logits.sigmoid().flatten(1)
            scores, places = every.topk(min(most, every.shape[1]))
            query, classes = places // logits.shape[-1], places % logits.shape[-1]
        found = _cornered(boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 4)))
        return clipped(found * _scale(found, size), size), scores, classes


def assigned(cost: Tensor, there: Tensor) -> Tensor:
    """The cheapest match of each image and stage, one to one: queries (B, stages, K), −1 where none is matched.

    Where there are more objects than queries, as many are matched as there are queries.

    Args:
        cost: (B, stages, Q, K), of a query for an object
        there: (B, K), whether a column is an object
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    if cost.is_meta:  # a trace without numbers: any match costs the same
        return torch.zeros_like(cost[:, :, 0], dtype=torch.long)
    table = cost.detach().nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9).cpu().double().numpy()
    found = np.full((*table.shape[:2], table.shape[3]), NO_OBJECT)
    for image, real in enumerate(there.cpu().numpy()):
        numbers = real.nonzero()[0]
        for stage, each in enumerate(table[image]):
            rows, which = linear_sum_assignment(each[:, numbers])
            found[image, stage, numbers[which]] = rows
    return torch.from_numpy(found).to(cost.device)


def _cross_entropy(logits: Tensor, place: Tensor, kinds: Tensor) -> Tensor:
    """Mean over the queries, weighted by class, (B, stages); place: (B, stages, K) of the queries that are matched."""
    queries, absent = logits.shape[2], logits.shape[3] - 1
    classes = torch.full_like(logits[..., :1], absent, dtype=torch.long).squeeze(-1)
    classes = F.pad(classes, (0, 1)).scatter(2, place, kinds)[..., :queries]
    weights = torch.where(classes == absent, NOTHING, 1.0)
    each = -logits.log_softmax(-1).gather(-1, classes.unsqueeze(-1)).squeeze(-1)
    return (weights * each).sum(-1) / weights.sum(-1)


def _varifocal(logits: Tensor, place: Tensor, kinds: Tensor, overlap: Tensor) -> Tensor:
    """Sum over queries and classes, (B, stages); overlap: (B, stages, K), what a matched score aims at."""
    classes = logits.shape[3]
    where = place * classes + kinds
    blank = F.pad(torch.zeros_like(logits.detach().flatten(2)), (0, classes))
    aims = blank.scatter(2, where, overlap)[..., :-classes].view_as(logits)
    matched = blank.scatter(2, where, torch.ones_like(overlap))[..., :-classes].view_as(logits)
    weights = VARIFOCAL_ALPHA * logits.detach().sigmoid() ** VARIFOCAL_GAMMA * (1 - matched) + aims
    each = F.binary_cross_entropy_with_logits(logits, aims, weights, reduction="none")
    return each.flatten(2).sum(-1)


# ── boxes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _scale(like: Tensor, size: tuple[int, int]) -> Tensor:
    return like.new_tensor([size[1], size[0], size[1], size[0]])


def _centred(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners in pixels → centre, width and height in the image's own."""
    first, second = (boxes / _scale(boxes, size)).split(2, -1)
    return torch.cat([(first + second) / 2, second - first], -1)


def _cornered(boxes: Tensor) -> Tensor:
    """Centre, width and height → corners."""
    centres, sides = boxes.split(2, -1)
    return torch.cat([centres - sides / 2, centres + sides / 2], -1)


def _areas(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the intersection, of the union, and of the smallest box around both; boxes (..., 4) by corners."""
    both = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    around = (torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])).clamp(min=0)
    sides = [(box[..., 2:] - box[..., :2]).clamp(min=0) for box in (one, other)]
    own, theirs = (side[..., 0] * side[..., 1] for side in sides)
    shared = both[..., 0] * both[..., 1]
    return shared, own + theirs - shared, around[..., 0] * around[..., 1]


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) by corners, pair by pair; 0 where both are empty."""
    shared, union, _ = _areas(one, other)
    return shared / union.clamp(min=TINY)


def generalised_iou(one: Tensor, other: Tensor) -> Tensor:
    """Rezatofighi et al. 2019: the IoU less the share of the smallest box around both that neither covers; −1 to 1."""
    shared, union, around = _areas(one, other)
    return shared / union.clamp(min=TINY) - (around - union) / around.clamp(min=TINY)
