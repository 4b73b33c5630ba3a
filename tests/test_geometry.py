"""What belongs to an image moves with it: masks pixel by pixel, boxes as the pixels that they enclose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU
from torch import Tensor

from energybench.train import geometry
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.images import Images

SIDE = st.integers(2, 9)
SEED = st.integers(0, 999)
AUGMENT = st.lists(st.sampled_from(["flip", "crop1", "crop3"]), min_size=1, max_size=3)
VOID = 255


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepared(augment: list[str], facts: Facts, resize: int | None = None) -> Images:
    """Leaves the pixels what they are: mean 0, deviation 1/255."""
    return Images([0.0], [1 / 255], augment, CPU, resize, facts=facts)


def pictures(count: int, height: int, width: int, seed: int, least: int = 0) -> Tensor:
    return torch.randint(least, 200, (count, 1, height, width), generator=generator(seed), dtype=torch.uint8)


@given(st.integers(1, 5), SIDE, SIDE, SEED, AUGMENT)
def test_a_mask_that_is_its_image_stays_its_image(count, height, width, seed, augment):
    images = pictures(count, height, width, seed, least=1)
    masks = images[:, 0].clone()
    ready, moved = prepared(augment, Facts("mask", void=VOID)).with_targets(images, masks, generator(seed))
    assert moved.dtype == torch.int64
    black = ready[:, 0] == 0  # no image has black: this came in at the border
    assert torch.equal(moved == VOID, black)
    assert torch.equal(ready[:, 0].long()[~black], moved[~black])


@given(st.integers(1, 5), SIDE, SIDE, SEED, AUGMENT)
def test_the_images_of_moved_targets_are_those_of_classes_to_the_bit(count, height, width, seed, augment):
    images = pictures(count, height, width, seed)
    boxes = {"boxes": torch.zeros(count, 2, 4), "labels": torch.full((count, 2), -1)}
    alone = prepared(augment, Facts())(images, generator(seed))
    for facts, targets in ((Facts("mask", void=VOID), images[:, 0]), (Facts("boxes"), boxes), (Facts(), None)):
        assert torch.equal(prepared(augment, facts).with_targets(images, targets, generator(seed))[0], alone)


@st.composite
def boxed(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """height, width, and whole-numbered boxes within."""
    height, width = draw(SIDE), draw(SIDE)
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))))
    return height, width, boxes


@given(boxed(), SEED, st.sampled_from([["flip"], ["crop3"], ["flip", "crop2"], ["crop1", "flip"], ["crop9"]]))
def test_a_moved_box_encloses_the_moved_pixels_and_goes_when_its_centre_has_left(place, seed, augment):
    height, width, boxes = place
    count = len(boxes)  # one image for each box, in which its pixels are white
    images = torch.zeros(count, 1, height, width, dtype=torch.uint8)
    for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
        image[:, top:bottom, left:right] = 255
    targets = {"boxes": torch.tensor(boxes, dtype=torch.float32)[:, None], "labels": torch.arange(count)[:, None]}
    ready, moved = prepared(augment, Facts("boxes")).with_targets(images, targets, generator(seed))
    # The same moves on a canvas so large that nothing leaves it say where each box's centre went.
    room = 9
    moves = prepared(augment, Facts("boxes"))._draw(count, generator(seed))
    canvas = torch.nn.functional.pad(images, (room,) * 4)
    for move in moves:
        canvas = move.pixels(canvas)
    for number in range(count):
        rows, columns = (canvas[number, 0] > 0).nonzero(as_tuple=True)
        centre_x = (int(columns.min()) + int(columns.max()) + 1) / 2 - room
        centre_y = (int(rows.min()) + int(rows.max()) + 1) / 2 - room
        label, box = moved["labels"][number, 0], moved["boxes"][number, 0]
        if not (0 <= centre_x <= width and 0 <= centre_y <= height):
            assert label == -1
            assert box.tolist() == [0, 0, 0, 0]
            continue
        assert label == number
        rows, columns = (ready[number, 0] > 0).nonzero(as_tuple=True)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@given(boxed(), SEED)
def test_what_has_left_the_image_does_not_come_back_with_the_next_move(place, seed):
    height, width, boxes = place
    images = torch.zeros(len(boxes), 1, height, width, dtype=torch.uint8)
    for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
        image[:, top:bottom, left:right] = 255
    targets = {"boxes": torch.tensor(boxes).float()[:, None], "labels": torch.zeros(len(boxes), 1).long()}
    augment = ["crop3", "crop3", "flip", "crop2"]
    ready, moved = prepared(augment, Facts("boxes")).with_targets(images, targets, generator(seed))
    for pixels, box, label in zip(ready[:, 0], moved["boxes"][:, 0], moved["labels"][:, 0], strict=True):
        rows, columns = (pixels > 0).nonzero(as_tuple=True)
        if label == 0:
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_rows_without_an_object_stay_without_one():
    targets = {"boxes": torch.tensor([[[1.0, 1, 3, 3], [0, 0, 0, 0]]]), "labels": torch.tensor([[4, -1]])}
    for seed in range(8):
        images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        _, moved = prepared(["flip", "crop1"], Facts("boxes")).with_targets(images, targets, generator(seed))
        assert moved["labels"].tolist() == [[4, -1]]
        assert moved["boxes"][0, 1].tolist() == [0, 0, 0, 0]
        assert (moved["boxes"][0, 0, 2:] - moved["boxes"][0, 0, :2]).tolist() == [2, 2]


def test_half_of_many_boxes_are_mirrored_where_their_images_are():
    count = 400
    images = torch.zeros(count, 1, 4, 10, dtype=torch.uint8)
    images[..., 0] = 255
    targets = {"boxes": torch.tensor([[[0.0, 0, 1, 4]]]).repeat(count, 1, 1), "labels": torch.zeros(count, 1).long()}
    ready, moved = prepared(["flip"], Facts("boxes")).with_targets(images, targets, generator(0))
    mirrored = ready[:, 0, 0, 9] > 0
    assert 100 < int(mirrored.sum()) < 300  # ten standard deviations of a fair coin
    assert torch.equal(moved["boxes"][:, 0, 0] == 9, mirrored)
    assert torch.equal(moved["boxes"][:, 0, 0] == 0, ~mirrored)


# ── other sizes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), SEED)
def test_a_mask_made_larger_repeats_its_pixels(height, width, times, seed):
    masks = torch.randint(0, 20, (2, height, width), generator=generator(seed))
    larger = geometry.resize_masks(masks, (height * times, width * times))
    assert torch.equal(larger, masks.repeat_interleave(times, 1).repeat_interleave(times, 2))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), SEED)
def test_a_resized_mask_has_the_label_at_each_new_pixels_centre(height, width, side, seed):
    masks = torch.randint(0, 20, (1, height, width), generator=generator(seed))
    resized = geometry.resize_masks(masks, (side, side))
    for row in range(side):
        for column in range(side):
            old_row, old_column = int((row + 0.5) * height / side + 1e-9), int((column + 0.5) * width / side + 1e-9)
            assert resized[0, row, column] == masks[0, old_row, old_column]


def test_boxes_keep_their_share_of_a_resized_image():
    images = torch.zeros(1, 1, 10, 20, dtype=torch.uint8)
    targets = {"boxes": torch.tensor([[[2.0, 1, 10, 5]]]), "labels": torch.tensor([[0]])}
    ready, resized = prepared([], Facts("boxes"), 40).with_targets(images, targets, None)
    assert ready.shape[-2:] == (40, 40)
    assert resized["boxes"].tolist() == [[[4, 4, 20, 20]]]


def test_masks_and_images_come_out_in_one_size_whether_or_not_they_are_augmented():
    images = torch.zeros(3, 1, 6, 8, dtype=torch.uint8)
    data = Data(
        Resident(images, torch.full((3, 6, 8), 2, dtype=torch.uint8), CPU),
        prepared(["crop2"], Facts("mask", void=VOID), 5),
        facts=Facts("mask", void=VOID),
    )
    for random in (None, generator):
        batch = next(data.load([torch.arange(3)], random))
        assert (batch.inputs.shape, batch.targets.shape) == ((3, 1, 5, 5), (3, 5, 5))
        assert batch.targets.dtype == torch.int64
    assert next(data.in_order()).targets.unique().tolist() == [2]


# ── trees ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_image_of_a_tree_is_normalised_by_its_own_moments_and_moved_alike():
    left, right = pictures(4, 5, 6, 1), pictures(4, 5, 6, 2)
    inputs = {"left": left, "number": torch.arange(4.0), "pair": (right,)}
    leaves = {"left": ([0.0], [1 / 255]), "pair.0": ([0.5], [0.25])}
    images = Images((), (), ["flip", "crop2"], CPU, leaves=leaves)
    ready = images(inputs, generator(5))
    assert torch.equal(ready["number"], inputs["number"])
    assert torch.equal(ready["left"], prepared(["flip", "crop2"], Facts())(left, generator(5)))
    expected = Images([0.5], [0.25], ["flip", "crop2"], CPU)(right, generator(5))
    assert torch.equal(ready["pair"][0], expected)
    assert inputs["left"].dtype == torch.uint8  # as it was


@pytest.mark.parametrize("void", [255, 11, -1])
def test_what_comes_in_at_a_masks_border_is_the_void_that_was_said(void):
    images = torch.full((6, 1, 4, 4), 9, dtype=torch.uint8)
    masks = torch.full((6, 4, 4), 3, dtype=torch.uint8)
    ready, moved = prepared(["crop2"], Facts("mask", void=void)).with_targets(images, masks, generator(1))
    assert set(moved.unique().tolist()) == {3, void}
    assert torch.equal(moved == void, ready[:, 0] == 0)
