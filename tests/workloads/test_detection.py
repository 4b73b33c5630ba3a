"""Detection: its losses, its boxes, its figures and its models, held against closed forms and enumeration."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import CPU, data_settings, make_run, run_or_refusal
from torch import Tensor, nn

from energybench.common.errors import EnergybenchError, UsageError
from energybench.flops.work import Work
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_task
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.images import Images
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import datasets
from energybench.workloads.metrics.detection import BoxPrecision
from energybench.workloads.models.detection import centre_net, rt_detr_v2, yolos
from energybench.workloads.tasks.centre_points import NARROWEST, SPREAD, CentrePoints
from energybench.workloads.tasks.detection import Detection
from energybench.workloads.tasks.set_prediction import SetPredictions, assigned, generalised_iou, iou

ROOT = Path(__file__).resolve().parents[2]
SIDE, CLASSES, STRIDE, NARROW = 32, 2, 4, 8
SEED = st.integers(0, 10**6)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes_of(count: int, most: int, seed: int, side: float = SIDE, least: int = 0) -> dict[str, Tensor]:
    """Targets of `count` images with `least` to `most` objects each, padded to `most`, in double precision."""
    random = generator(seed)
    corners = torch.rand(count, most, 2, 2, generator=random, dtype=torch.float64).sort(2).values * (side - NARROW)
    corners[:, :, 1] += NARROW
    labels = torch.randint(CLASSES, (count, most), generator=random)
    there = torch.arange(most) < torch.randint(least, most + 1, (count, 1), generator=random)
    boxes = torch.where(there[..., None], corners.flatten(2), 0.0)
    return {"boxes": boxes, "labels": torch.where(there, labels, -1)}


def in_order(boxes: Tensor, labels: Tensor) -> list[list[float]]:
    """Objects as rows of numbers that can be compared, whatever order they came in."""
    return sorted([*box, label] for box, label in zip(boxes.tolist(), labels.tolist(), strict=True))


def padded(targets: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """With rows of no object, whose boxes hold numbers that must not matter, before and after."""
    boxes, labels = targets["boxes"], targets["labels"]
    nothing = boxes.new_full((len(boxes), rows, 4), 7.0), torch.full((len(boxes), rows), -1)
    return {
        "boxes": torch.cat([nothing[0], boxes, nothing[0]], 1),
        "labels": torch.cat([nothing[1], labels, nothing[1]], 1),
    }


def pictures(count: int = 24, seed: int = 0, most: int = 3, augment: Sequence[str] = ()) -> Data:
    """Dark images with rectangles, of which class 0 is bright in red and class 1 in blue; some are empty."""
    random = generator(seed)
    images = torch.randint(0, 60, (count, 3, SIDE, SIDE), generator=random, dtype=torch.uint8)
    targets = boxes_of(count, most, seed)
    targets["boxes"] = targets["boxes"].round().float()
    for image, boxes, labels in zip(images, targets["boxes"], targets["labels"], strict=True):
        for (left, top, right, bottom), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            if label >= 0:
                image[2 * label, top:bottom, left:right] = 230
    prepare = Images([0.2] * 3, [0.25] * 3, augment, CPU, facts=Facts("boxes", CLASSES))
    return Data(Resident(images, targets, CPU), prepare, facts=Facts("boxes", CLASSES))


def tiny() -> nn.Module:
    return centre_net((3, SIDE, SIDE), CLASSES, widths=(8, 16), depth=0)


def tiny_rt_detr() -> nn.Module:
    return rt_detr_v2((3, SIDE, SIDE), CLASSES, queries=8)


def tiny_yolos() -> nn.Module:
    return yolos((3, SIDE, SIDE), CLASSES, width=16, layers=2, heads=2, patch=8, queries=8)


OF_TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {"rt_detr_v2": tiny_rt_detr, "yolos": tiny_yolos}


def every_model() -> list[Any]:
    return [pytest.param(tiny, id="centre_net")] + [
        pytest.param(model, id=name, marks=needs_transformers) for name, model in OF_TRANSFORMERS.items()
    ]


def installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


needs_transformers = pytest.mark.skipif(not installed("transformers"), reason="transformers is not installed")
needs_metric = pytest.mark.skipif(
    not (installed("torchmetrics") and installed("faster_coco_eval")),
    reason="torchmetrics or faster-coco-eval is not installed: pip install 'energybench[vision]'",
)


# ── centre points ─────────────────────────────────────────────────────────────────────────────────────────────────────


def perfect_maps(targets: dict[str, Tensor], sure: float = 30.0) -> Tensor:
    """Maps that say exactly this."""
    cells = SIDE // STRIDE
    maps = torch.zeros(len(targets["labels"]), CLASSES + 4, cells, cells, dtype=torch.float64)
    maps[:, :CLASSES] = -sure
    for image, (boxes, labels) in enumerate(zip(targets["boxes"], targets["labels"], strict=True)):
        for box, label in zip(boxes / STRIDE, labels.tolist(), strict=True):
            if label >= 0:
                centre, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
                across, down = (min(cells - 1, int(place)) for place in centre)
                maps[image, label, down, across] = sure
                offset = centre - torch.tensor([across, down])
                maps[image, CLASSES:, down, across] = torch.cat([offset, sides.log()])
    return maps


def distinct(targets: dict[str, Tensor]) -> bool:
    """Whether no two centres are in the same or in neighbouring cells, of which one peak would hide the other."""
    for boxes, labels in zip(targets["boxes"], targets["labels"], strict=True):
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).floor()[labels >= 0]
        apart = (centres[:, None] - centres[None]).abs().amax(-1)
        if (apart + 9 * torch.eye(len(centres))).lt(2).any():
            return False
    return True


@given(SEED, st.integers(1, 4))
def test_maps_that_say_exactly_the_truth_are_read_as_it(seed, most):
    targets = boxes_of(2, most, seed)
    if not distinct(targets):
        return
    boxes, scores, classes = CentrePoints(perfect_maps(targets), STRIDE).detections((SIDE, SIDE), 10)
    for image, real in enumerate(targets["labels"] >= 0):
        sure = scores[image] > 0.5
        found = in_order(boxes[image][sure], classes[image][sure])
        wanted = in_order(targets["boxes"][image][real], targets["labels"][image][real])
        assert np.allclose(found, wanted) if wanted else not found


@given(SEED, st.integers(1, 4))
def test_and_lose_next_to_nothing(seed, most):
    targets = boxes_of(3, most, seed)
    if distinct(targets):
        losses = CentrePoints(perfect_maps(targets), STRIDE).losses(targets, (SIDE, SIDE))
        assert losses.abs().max() < 1e-9


def loss_by_loops(maps: Tensor, boxes: Tensor, labels: Tensor) -> float:
    """One image, cell by cell, as the equations are written."""
    _, height, width = maps.shape
    objects = [(box / STRIDE, label) for box, label in zip(boxes, labels.tolist(), strict=True) if label >= 0]
    total = 0.0
    heat = np.zeros((CLASSES, height, width))
    for box, label in objects:
        centre, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        across, down = min(width - 1, int(centre[0])), min(height - 1, int(centre[1]))
        spread = [max(NARROWEST, SPREAD * float(side)) for side in sides]
        for y, x in itertools.product(range(height), range(width)):
            here = math.exp(-(((x - across) / spread[0]) ** 2 + ((y - down) / spread[1]) ** 2) / 2)
            heat[label, y, x] = max(heat[label, y, x], here)
        said = maps[CLASSES:, down, across]
        aims = [centre[0] - across, centre[1] - down, sides[0].log(), sides[1].log()]
        total += sum(abs(float(a) - float(b)) for a, b in zip(said, aims, strict=True))
    for label, y, x in itertools.product(range(CLASSES), range(height), range(width)):
        p = 1 / (1 + math.exp(-float(maps[label, y, x])))
        if heat[label, y, x] == 1:
            total -= (1 - p) ** 2 * math.log(p)
        else:
            total -= (1 - heat[label, y, x]) ** 4 * p**2 * math.log(1 - p)
    return total / max(1, len(objects))


@settings(max_examples=10)
@given(SEED)
def test_the_loss_of_centre_points_is_the_one_of_the_equations(seed):
    targets = boxes_of(3, 3, seed)
    maps = torch.randn(3, CLASSES + 4, SIDE // STRIDE, SIDE // STRIDE, generator=generator(seed), dtype=torch.float64)
    losses = CentrePoints(maps, STRIDE).losses(targets, (SIDE, SIDE))
    expected = [loss_by_loops(*each) for each in zip(maps, targets["boxes"], targets["labels"], strict=True)]
    assert losses.tolist() == pytest.approx(expected)


def random_answer(kind: str, count: int, seed: int) -> CentrePoints | SetPredictions:
    random = generator(seed)
    if kind == "centre":
        cells = SIDE // STRIDE
        return CentrePoints(
            torch.randn(count, CLASSES + 4, cells, cells, generator=random, dtype=torch.float64), STRIDE
        )
    background = kind == "background"
    logits = torch.randn(count, 3, 6, CLASSES + background, generator=random, dtype=torch.float64)
    boxes = torch.rand(count, 3, 6, 4, generator=random, dtype=torch.float64) * 0.5 + 0.2
    return SetPredictions(logits, boxes, background)


def part_of(answer: Any, index: list[int]) -> Any:
    return type(answer)(*(each[index] if isinstance(each, Tensor) else each for each in answer))


each_answer = pytest.mark.parametrize("kind", ["centre", "background", "scores"])


@each_answer
@settings(max_examples=15)
@given(seed=SEED, rows=st.integers(1, 5))
def test_rows_without_an_object_change_no_loss(kind, seed, rows):
    targets, answer = boxes_of(3, 3, seed), random_answer(kind, 3, seed)
    losses = answer.losses(targets, (SIDE, SIDE))
    assert torch.allclose(losses, answer.losses(padded(targets, rows), (SIDE, SIDE)))
    assert losses.isfinite().all()


@each_answer
@settings(max_examples=15)
@given(seed=SEED)
def test_an_images_loss_does_not_depend_on_the_others_so_that_micro_batches_add_up(kind, seed):
    targets, answer = boxes_of(4, 3, seed), random_answer(kind, 4, seed)
    whole = answer.losses(targets, (SIDE, SIDE))
    for index in ([0], [2, 1], [3, 3, 0]):
        some = {name: each[index] for name, each in targets.items()}
        assert torch.allclose(part_of(answer, index).losses(some, (SIDE, SIDE)), whole[index])


@each_answer
def test_an_image_without_objects_learns_that_there_are_none_and_no_box(kind):
    answer, targets = random_answer(kind, 2, 1), boxes_of(2, 3, 1)
    targets["labels"][:] = -1
    leaves = [each.requires_grad_() for each in answer if isinstance(each, Tensor)]
    answer.losses(targets, (SIDE, SIDE)).sum().backward()
    of_classes, of_boxes = (
        (leaves[0].grad[:, :CLASSES], leaves[0].grad[:, CLASSES:])
        if kind == "centre"
        else (leaves[0].grad, torch.zeros(1) if leaves[1].grad is None else leaves[1].grad)
    )
    assert (of_boxes == 0).all()
    if kind == "background":  # "no object" becomes likelier everywhere
        assert (of_classes[..., -1] < 0).all()
    else:
        assert (of_classes > 0).all()


@each_answer
def test_boxes_are_cut_at_the_border_scores_fall_and_no_more_come_than_are_asked_for(kind):
    answer = random_answer(kind, 3, 5)
    boxes, scores, classes = answer.detections((SIDE, SIDE), 4)
    assert boxes.shape == (3, 4, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= SIDE
    assert (scores.diff(dim=1) <= 0).all()
    assert ((classes >= 0) & (classes < CLASSES)).all()


def test_of_one_object_that_two_cells_see_the_likelier_one_is_kept():
    maps = torch.full((1, CLASSES + 4, 8, 8), -9.0)
    maps[0, 0, 3, 3], maps[0, 0, 3, 4], maps[0, 1, 3, 5] = 3.0, 2.0, 1.0
    _, scores, classes = CentrePoints(maps, STRIDE).detections((SIDE, SIDE), 3)
    assert scores[0, :2].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-1))])
    assert classes[0, :2].tolist() == [0, 1]
    assert scores[0, 2] < 0.01


# ── set prediction ────────────────────────────────────────────────────────────────────────────────────────────────────


def corners(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_overlaps_have_their_closed_forms():
    square = corners(0, 0, 2, 2)
    assert iou(square, square) == generalised_iou(square, square) == 1
    inner = corners(0, 0, 1, 1)  # a quarter, and nothing of the box around both is uncovered
    assert iou(square, inner) == generalised_iou(square, inner) == 0.25
    beside = corners(2, 0, 4, 2)  # they touch: no overlap, nothing uncovered
    assert iou(square, beside) == generalised_iou(square, beside) == 0
    apart = corners(6, 0, 8, 2)  # 8 of 16 are uncovered
    assert iou(square, apart) == 0
    assert generalised_iou(square, apart) == -0.5
    shifted = corners(1, 1, 3, 3)  # 1 of 7, 2 of 9 uncovered
    assert generalised_iou(square, shifted).item() == pytest.approx(1 / 7 - 2 / 9)
    point = corners(1, 1, 1, 1)
    assert iou(point, point) == 0


@given(SEED)
def test_generalised_overlap_is_symmetric_between_minus_one_and_the_overlap(seed):
    one, other = torch.rand(2, 50, 4, generator=generator(seed), dtype=torch.float64).unbind(0)
    one, other = (torch.cat([box[:, :2], box[:, :2] + box[:, 2:]], 1) for box in (one, other))
    value = generalised_iou(one, other)
    assert torch.allclose(value, generalised_iou(other, one))
    assert ((value > -1) & (value <= iou(one, other) + 1e-12)).all()


@settings(max_examples=20)
@given(SEED, st.integers(1, 4), st.integers(1, 4))
def test_a_match_is_the_cheapest_of_all(seed, queries, objects):
    random = generator(seed)
    cost = torch.randn(2, 2, queries, objects, generator=random, dtype=torch.float64)
    there = torch.rand(2, objects, generator=random) < 0.7
    chosen = assigned(cost, there)
    for image, stage in itertools.product(range(2), range(2)):
        real = there[image].nonzero()[:, 0].tolist()
        pairs = [(int(chosen[image, stage, k]), k) for k in range(objects) if chosen[image, stage, k] >= 0]
        assert {k for _, k in pairs} <= set(real)
        assert len({query for query, _ in pairs}) == len(pairs) == min(len(real), queries)
        size = len(pairs)
        every = (
            sum(cost[image, stage, q, k].item() for q, k in zip(rows, columns, strict=True))
            for rows in itertools.permutations(range(queries), size)
            for columns in itertools.combinations(real, size)
        )
        assert sum(cost[image, stage, q, k].item() for q, k in pairs) == pytest.approx(min(every))


def test_a_match_of_costs_that_are_no_numbers_is_still_one():
    cost = torch.full((1, 1, 3, 2), float("nan"))
    cost[0, 0, 1, 0] = 0.0
    chosen = assigned(cost, torch.tensor([[True, True]]))
    assert chosen[0, 0, 0] == 1
    assert chosen[0, 0, 1] in (0, 2)


def perfect_set(targets: dict[str, Tensor], background: bool, sure: float = 30.0) -> SetPredictions:
    """One stage whose first queries say exactly this, in reverse, and whose others say nothing."""
    count, most = targets["labels"].shape
    logits = torch.full((count, 1, most + 2, CLASSES + background), -sure, dtype=torch.float64)
    boxes = torch.full((count, 1, most + 2, 4), 0.5, dtype=torch.float64)
    if background:
        logits[..., -1] = sure
    for image, (each, labels) in enumerate(zip(targets["boxes"], targets["labels"], strict=True)):
        for row, (box, label) in enumerate(zip(each / SIDE, labels.tolist(), strict=True)):
            if label >= 0:
                query = most - 1 - row
                logits[image, 0, query] = -sure
                logits[image, 0, query, label] = sure
                boxes[image, 0, query] = torch.cat([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])
    return SetPredictions(logits, boxes, background)


@pytest.mark.parametrize("background", [True, False])
@settings(max_examples=20)
@given(seed=SEED, most=st.integers(1, 5))
def test_a_set_that_says_exactly_the_truth_loses_next_to_nothing_and_is_read_as_it(background, seed, most):
    targets = boxes_of(2, most, seed)
    answer = perfect_set(targets, background)
    assert answer.losses(targets, (SIDE, SIDE)).abs().max() < 1e-6
    boxes, scores, classes = answer.detections((SIDE, SIDE), 2 * most)
    for image, real in enumerate(targets["labels"] >= 0):
        sure = scores[image] > 0.5
        found = in_order(boxes[image][sure], classes[image][sure])
        wanted = in_order(targets["boxes"][image][real], targets["labels"][image][real])
        assert np.allclose(found, wanted) if wanted else not found


@settings(max_examples=10)
@given(SEED, st.booleans())
def test_the_loss_of_several_stages_is_the_sum_of_theirs(seed, background):
    targets, answer = boxes_of(2, 3, seed), random_answer("background" if background else "scores", 2, seed)
    each = [
        SetPredictions(answer.logits[:, s : s + 1], answer.boxes[:, s : s + 1], background).losses(
            targets, (SIDE, SIDE)
        )
        for s in range(3)
    ]
    assert torch.allclose(answer.losses(targets, (SIDE, SIDE)), sum(each))


def of_transformers(targets: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The one image's objects as transformers wants them."""
    real = targets["labels"][0] >= 0
    boxes = targets["boxes"][0][real].float() / SIDE
    centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    return [{"class_labels": targets["labels"][0][real], "boxes": centred}]


@needs_transformers
@pytest.mark.parametrize("seed", range(4))
def test_of_one_image_the_loss_is_the_one_of_transformers(seed):
    """It divides by the objects of the batch, which are those of the image then."""
    from energybench.common.torchvision_shim import import_torchvision

    import_torchvision()
    from transformers import RTDetrV2Config, YolosConfig
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
    from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

    targets = boxes_of(1, 4, seed, least=1)
    labels = of_transformers(targets)
    answer = random_answer("scores", 1, seed)
    logits, boxes = answer.logits.float(), answer.boxes.float()
    theirs, *_ = RTDetrForObjectDetectionLoss(
        logits[:, -1],
        labels,
        CPU,
        boxes[:, -1],
        RTDetrV2Config(num_labels=CLASSES, num_denoising=0),
        outputs_class=logits[:, 1:],
        outputs_coord=boxes[:, 1:],
        enc_topk_logits=logits[:, 0],
        enc_topk_bboxes=boxes[:, 0],
    )
    assert answer.losses(targets, (SIDE, SIDE)).item() == pytest.approx(theirs.item(), rel=1e-5)
    answer = random_answer("background", 1, seed)
    last = SetPredictions(answer.logits[:, -1:], answer.boxes[:, -1:], True)
    theirs, *_ = ForObjectDetectionLoss(
        last.logits[:, 0].float(), labels, CPU, last.boxes[:, 0].float(), YolosConfig(num_labels=CLASSES)
    )
    assert last.losses(targets, (SIDE, SIDE)).item() == pytest.approx(theirs.item(), rel=1e-5)


# ── mean average precision ────────────────────────────────────────────────────────────────────────────────────────────


def scored(
    found: list[list[tuple[Sequence[float], float, int]]], true: list[list[tuple[Sequence[float], int]]], pad: int = 0
) -> dict[str, float]:
    """Of images with as many predictions each; pad: rows without an object."""
    precision = BoxPrecision()
    most = max(1, *(len(image) for image in true)) + pad
    boxes, labels = torch.zeros(len(true), most, 4), torch.full((len(true), most), -1)
    for image, objects in enumerate(true):
        for row, (box, label) in enumerate(objects):
            boxes[image, row + pad], labels[image, row + pad] = torch.tensor(box), label
    for each, image_boxes, image_labels in zip(found, boxes, labels, strict=True):
        parts = (
            torch.tensor([list(map(float, box)) for box, _, _ in each]).view(1, -1, 4),
            torch.tensor([score for _, score, _ in each]).view(1, -1),
            torch.tensor([label for _, _, label in each], dtype=torch.long).view(1, -1),
        )
        precision.add(parts, {"boxes": image_boxes[None], "labels": image_labels[None]})
    return precision.result()


BOX, OTHER = (2, 2, 12, 12), (20, 20, 30, 30)


@needs_metric
def test_a_perfect_prediction_has_everything_and_rows_without_an_object_do_not_matter():
    true = [[(BOX, 0), (OTHER, 1)], [], [(OTHER, 0)]]
    found = [[(BOX, 0.9, 0), (OTHER, 0.8, 1)], [], [(OTHER, 0.7, 0)]]
    assert scored(found, true) == scored(found, true, pad=4) == {"map": 1.0, "map50": 1.0}


@needs_metric
def test_nothing_and_the_same_everywhere_have_nothing():
    true = [[(BOX, 0)], [(OTHER, 1)]]
    assert scored([[], []], true) == {"map": 0.0, "map50": 0.0}
    whole = ((0, 0, SIDE, SIDE), 0.9, 0)
    assert scored([[whole], [whole]], true) == {"map": 0.0, "map50": 0.0}
    assert scored([[(BOX, 0.9, 1)], []], [[(BOX, 0)], []]) == {"map": 0.0, "map50": 0.0}  # the wrong class


@needs_metric
def test_where_nothing_is_to_be_found_there_is_no_figure():
    assert all(math.isnan(value) for value in scored([[(BOX, 0.9, 0)], []], [[], []]).values())


@needs_metric
def test_average_precision_by_hand():
    true = [[(BOX, 0), (OTHER, 0)]]
    found = [[(BOX, 0.9, 0), ((0, 20, 8, 28), 0.8, 0), (OTHER, 0.7, 0)]]
    value = (51 + 50 * 2 / 3) / 101  # precision 1 up to a recall of 0.5, then 2 of 3
    assert scored(found, true) == {"map": pytest.approx(value, abs=1e-6), "map50": pytest.approx(value, abs=1e-6)}
    shifted = (2, 2, 12, 9.2)  # an IoU of 0.72: it counts at 0.5, 0.55, 0.6, 0.65, 0.7
    assert scored([[(shifted, 0.9, 0)]], [[(BOX, 0)]]) == {"map": pytest.approx(0.5), "map50": pytest.approx(1.0)}
    assert scored([[(BOX, 0.9, 0), (BOX, 0.8, 0)]], [[(BOX, 0)]])["map"] == 1.0  # twice the same: the second is wrong
    halves = [[(BOX, 0.9, 0)]], [[(BOX, 0), (OTHER, 1)]]  # one class of two
    assert scored(*halves) == {"map": pytest.approx(0.5), "map50": pytest.approx(0.5)}


def average_precision(found: list[Any], true: list[Any], label: int, threshold: float) -> float | None:
    """COCO's, of one class at one threshold; None where it has no object."""
    objects = sum(kind == label for image in true for _, kind in image)
    if not objects:
        return None
    ranked = sorted(
        ((score, number, box) for number, image in enumerate(found) for box, score, kind in image if kind == label),
        key=lambda each: -each[0],
    )
    taken: set[tuple[int, int]] = set()
    hits = []
    for _, number, box in ranked:
        overlaps = [
            (float(iou(corners(*box), corners(*real))), k)
            for k, (real, kind) in enumerate(true[number])
            if kind == label and (number, k) not in taken
        ]
        best = max(overlaps, default=(0.0, -1))
        hits.append(best[0] >= threshold)
        if hits[-1]:
            taken.add((number, best[1]))
    right = np.cumsum(hits)
    precision, recall = right / np.arange(1, len(hits) + 1), right / objects
    points = [
        max((p for p, r in zip(precision, recall, strict=True) if r >= at - 1e-12), default=0.0)
        for at in np.linspace(0, 1, 101)
    ]
    return float(np.mean(points))


@needs_metric
@pytest.mark.parametrize("seed", range(4))
def test_mean_average_precision_is_what_an_enumeration_gives(seed):
    random = np.random.default_rng(seed)
    true, found = [], []
    for _ in range(4):
        objects = [
            ((x, y, x + w, y + h), int(label))
            for x, y, w, h, label in random.integers(
                (0, 0, 6, 6, 0), (20, 20, 14, 14, CLASSES), (random.integers(0, 4), 5)
            )
        ]
        guesses = [
            (
                tuple(float(side + shift) for side, shift in zip(box, random.normal(0, 1.2, 4), strict=True)),
                random.random(),
                kind,
            )
            for box, kind in objects
            for _ in range(2)
        ]
        true.append(objects)
        found.append([*guesses, ((1.0, 1.0, 9.0, 7.0), random.random(), 0)])
    thresholds = [0.5 + 0.05 * step for step in range(10)]
    each = [[average_precision(found, true, label, at) for at in thresholds] for label in range(CLASSES)]
    present = [values for values in each if values[0] is not None]
    result = scored(found, true)
    assert result["map"] == pytest.approx(np.mean(present), abs=1e-5)
    assert result["map50"] == pytest.approx(np.mean([values[0] for values in present]), abs=1e-5)


@pytest.mark.parametrize("package", ["faster_coco_eval", "torchmetrics"])
def test_without_a_package_it_is_refused_with_the_line_to_type(package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError) as refused:
        BoxPrecision()
    (problem,) = refused.value.problems
    assert problem.code == "E403"
    assert "pip install 'energybench[vision]'" in problem.hint


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_small_net_has_the_size_that_its_card_says():
    model = centre_net((3, 128, 160), 3)
    assert 97_000 < sum(parameter.numel() for parameter in model.parameters()) < 99_000
    answer = model(torch.zeros(1, 3, 128, 160))
    assert answer.maps.shape == (1, 3 + 4, 16, 20)
    assert answer.stride == 8


@pytest.mark.parametrize("keys", [{"widths": ()}, {"depth": -1}, {"widths": (0,)}])
def test_the_small_net_refuses_sizes_that_make_no_net(keys):
    with pytest.raises(ValueError, match="widths"):
        centre_net((3, 8, 8), 2, **keys)
    with pytest.raises(ValueError, match="classes"):
        centre_net((3, 8, 8), None)  # type: ignore[arg-type]


@needs_transformers
def test_detectors_of_transformers_refuse_images_and_sizes_that_they_cannot_have():
    with pytest.raises(ValueError, match="multiples of 32"):
        rt_detr_v2((3, 40, 64), CLASSES)
    with pytest.raises(ValueError, match="places"):
        rt_detr_v2((3, 32, 32), CLASSES)  # 60 queries, and an image of 16 + 4 + 1 places
    with pytest.raises(ValueError, match="r18"):
        rt_detr_v2((3, 32, 32), CLASSES, backbone="r19")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patch"):
        yolos((3, 8, 32), CLASSES)


@needs_transformers
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_every_parameter_of_a_detector_of_transformers_learns(name):
    torch.manual_seed(0)
    model = OF_TRANSFORMERS[name]()
    images, targets = torch.randn(2, 3, SIDE, SIDE), boxes_of(2, 3, 3, least=1)
    for _ in range(2):  # heads of RT-DETR start at zero, which hides what is before them
        model.zero_grad()
        model(images).losses(targets, (SIDE, SIDE)).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
    still = {key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert {key for key in still if not key.endswith(("k_proj.bias", "key.bias"))} == set()  # no softmax sees these


@needs_transformers
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_a_checkpoint_of_transformers_own_class_fits_a_detector(name):
    model = OF_TRANSFORMERS[name]()
    kind = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    theirs = {key: value + 1 for key, value in kind(model.config).state_dict().items() if value.is_floating_point()}
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert all(not model.state_dict()[key].is_floating_point() for key in missing)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("model", every_model())
def test_the_ledger_is_what_is_counted(model):
    data, layer = pictures(14), StepCounter(10**9)
    run = make_run([], model, data, Detection(), epochs=1, batch=4, counter=layer, optimizer="adamw", lr=1e-3)
    batch = next(iter(data.load([torch.arange(3)])))
    traced = trace_task(Detection(), model(), Recipe(epochs=1, batch=4), batch, CPU)
    run.train()
    assert traced.note == ""
    assert traced.unknown == ()
    work = Work(traced.lines, epochs=1, samples=data.samples(4), batch=4)
    assert work.flop == pytest.approx(layer.result(run).counted_flop, rel=1e-3)


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SOURCES = {name: source for name, source in discovery.sources().items() if source.path.parent.name == "methods"}


def fresh(name: str) -> Method:
    kind = discovery.load(SOURCES[name])
    return discovery.build(kind, name, dict(kind.example))


# Of transformers' detectors, which take longest, by methods of each kind.
TRIED = {
    "yolos": ("gradsamp", "ssprop", "scotti", "importance", "mezo", "layer_freezing", "stochastic_depth", "lora"),
    "rt_detr_v2": ("gradsamp", "ssprop", "scotti", "importance", "ema", "layer_freezing"),
}


def every_pair() -> list[Any]:
    pairs = [pytest.param(tiny, name, id=f"centre_net-{name}") for name in SOURCES]
    for kind, model in OF_TRANSFORMERS.items():
        names = [name for name in SOURCES if name in TRIED[kind]]
        pairs += [pytest.param(model, name, id=f"{kind}-{name}", marks=needs_transformers) for name in names]
    return pairs


@pytest.mark.parametrize(("model", "name"), every_pair())
def test_every_method_trains_it(model, name):
    method = fresh(name)
    assert check_stack([method], Detection()) == []
    data, epochs = (pictures(8), 5) if model is tiny_rt_detr else (pictures(), 6)
    run = run_or_refusal(
        lambda: make_run([method], model, data, Detection(), epochs=epochs, batch=8, lr=0.01, clip=1.0)
    )
    if run is None:
        return
    run.train()
    assert run.uncalled_overrides() == []
    assert method.acted is not False
    assert all(math.isfinite(point["loss"]) for point in run.curve if point["loss"] is not None)
    run.finish()
    assert {key: type(each) for key, each in run.model.named_modules()} == {
        key: type(each) for key, each in model().named_modules()
    }


@pytest.mark.parametrize("model", every_model())
@pytest.mark.parametrize(
    "recipe",
    [{"precision": "bf16"}, {"precision": "fp16"}, {"accumulate": 2, "clip": 0.1}],
    ids=["bf16", "fp16", "accumulated"],
)
def test_it_trains_in_half_precision_and_in_micro_batches(model, recipe):
    run = make_run([], model, pictures(8), Detection(), epochs=7, batch=4, optimizer="adamw", lr=1e-3, **recipe)
    run.train()
    assert run.tally.updates + run.tally.updates_skipped == 14
    assert run.tally.updates > 0
    assert run.tally.updates == 14 or recipe.get("precision") == "fp16"  # where the first scale may be too large
    assert run.curve[-1]["loss"] < run.curve[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


class WithoutStatistics(nn.Module):
    """A detector of which a micro-batch's answer is a part of the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, CLASSES + 4, STRIDE, STRIDE)

    def forward(self, images: Tensor) -> CentrePoints:
        return CentrePoints(self.layer(images), STRIDE)


def test_micro_batches_learn_what_the_whole_batch_does():
    runs = [
        make_run([], WithoutStatistics, pictures(12), Detection(), epochs=2, batch=6, accumulate=pieces, lr=0.01)
        for pieces in (1, 3)
    ]
    for run in runs:
        run.train()
    one, other = (run.model.layer.weight for run in runs)
    assert torch.allclose(one, other, atol=1e-6)
    assert runs[0].curve[-1]["loss"] == pytest.approx(runs[1].curve[-1]["loss"], rel=1e-4)


@needs_metric
def test_a_small_net_learns_rectangles_with_boxes_that_are_mirrored_with_their_images():
    data, test = pictures(96, augment=["flip"], most=1), pictures(48, seed=1, most=1)
    run = make_run(
        [],
        lambda: centre_net((3, SIDE, SIDE), CLASSES, widths=(8, 16, 16), depth=1),
        data,
        Detection(),
        epochs=25,
        batch=12,
        optimizer="adamw",
        lr=0.01,
        schedule="cosine",
    )
    before = run.evaluate(test)
    run.train()
    after = run.evaluate(test)
    assert before["map50"] < 0.1
    assert after["map50"] > 0.5
    assert after["map"] < after["map50"]
    assert after["loss"] < before["loss"] / 2


def test_a_model_or_data_of_another_kind_is_told_in_words():
    run = make_run([], lambda: nn.Conv2d(3, 6, 4, 4), pictures(4), Detection(), batch=4)
    with pytest.raises(TypeError, match="CentrePoints"):
        run.train()
    labels = Data(Resident(torch.zeros(4, 3, SIDE, SIDE), torch.zeros(4, dtype=torch.long), CPU))
    with pytest.raises(EnergybenchError, match="boxes"):
        make_run([], tiny, labels, Detection(), batch=4).train()


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_bccd(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    images = []
    for number, split in enumerate(["train", "val", "test"]):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        boxes = [[4.0, 6.0, 12.0, 18.0], [0.0, 0.0, 8.0, 6.0]][: 2 - number % 2]
        images.append({"file": f"images/{number}.png", "split": split, "boxes": boxes, "labels": [2, 0][: len(boxes)]})
    content = {"classes": ["RBC", "WBC", "Platelets"], "size": [32, 24], "images": images}
    (folder / "boxes.json").write_text(json.dumps(content))


def test_blood_cells_are_read_at_any_size_with_their_boxes(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    write_bccd(tmp_path / "bccd")
    settings = data_settings({"use": "bccd", "batch": 2, "options": {"size": [12, 16]}})
    found = datasets.prepare(settings, tmp_path / "cache")
    train, test = datasets.open_data(found, settings, CPU)
    assert (found.train, found.test, found.classes, found.shape) == (2, 1, 3, (3, 12, 16))
    assert found.class_names == ("RBC", "WBC", "Platelets")
    targets = next(train.in_order()).targets
    assert targets["labels"].tolist() == [[2, 0], [2, -1]]
    assert targets["boxes"][0].tolist() == [[2, 3, 6, 9], [0, 0, 4, 3]]
    assert len(test) == 1


def test_blood_cells_that_are_not_there_or_broken_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    settings = data_settings({"use": "bccd", "batch": 2})
    with pytest.raises(UsageError, match="bccd"):
        datasets.prepare(settings, tmp_path / "cache")
    write_bccd(tmp_path / "bccd")
    (tmp_path / "bccd" / "boxes.json").write_text('{"size": [32, 24], "images": []}')
    with pytest.raises(UsageError, match="bccd cannot be read"):
        datasets.prepare(settings, tmp_path / "cache")


# ── suites ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As `energybench flops` plans it where there are no data."""
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    suite = load(ROOT / "suites" / f"{name}.toml")
    return planner.Plan(spec_of(suite, tmp_path, device="cpu", download=False, purpose="trace")).result()


def test_its_suite_is_traced_where_there_are_no_data(tmp_path, monkeypatch):
    found = planned("tasks-detection", tmp_path, monkeypatch)
    assert not found.problems
    known = found.workloads["centre-net-bccd"]
    assert (known.data.targets, known.data.classes, known.data.shape) == ("boxes", 3, (3, 128, 160))
    widths, cells = (3, 16, 32, 64, 64, 64), (64 * 80, 32 * 40, 16 * 20, 16 * 20, 16 * 20)
    expected = sum(2 * 9 * i * o * n for i, o, n in zip(widths, widths[1:], cells, strict=False)) + 2 * 64 * 7 * 320
    assert sum(line.flop for line in known.ledger if line.phase == "forward") == expected


@needs_transformers
def test_the_papers_setting_is_traced_at_its_published_costs_where_there_are_no_data(tmp_path, monkeypatch):
    """RT-DETR-R50 costs 136 GFLOPs at 640 pixels (Zhao et al. 2024, Table 2), and YOLOv7 104.7 (Wang et al. 2023)."""
    found = planned("paper-gradsamp-detection", tmp_path, monkeypatch)
    assert not found.problems
    published = {"rt-detr-v2-voc": 136e9, "centre-net-voc": 104.7e9}
    assert set(found.workloads) == set(published)
    for name, flop in published.items():
        known = found.workloads[name]
        assert sum(line.flop for line in known.ledger if line.phase == "forward") == pytest.approx(flop, rel=0.05)
        assert (known.data.shape, known.data.classes, known.data.train) == ((3, 640, 640), 20, 5717)
