"""Folders of images with masks, and with COCO's json: what is read, fitted, streamed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import CPU, data_settings

from energybench.cli.suite_page import markdown
from energybench.common.errors import UsageError
from energybench.train.data import Data, Resident, Streamed
from energybench.train.images import read_image, read_mask
from energybench.workloads import catalogue, datasets
from energybench.workloads.datasets.coco_folders import fit
from energybench.workloads.description import DataDescription

WIDTH, HEIGHT = 8, 6


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))


def picture(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def labels(seed: int, classes: int = 4, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, classes, (size[1], size[0]), dtype=np.uint8))


def save(folder: Path, images: dict[str, Image.Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / name)


def write_pairs(images: Path, masks: Path, count: int, first: int = 0, mask_of: Any = labels) -> None:
    numbers = range(first, first + count)
    save(images, {f"{number}.png": picture(number) for number in numbers})
    save(masks, {f"{number}.png": mask_of(number) for number in numbers})


def camvid(folder: Path, mask_of: Any = labels) -> Path:
    for part, (count, first) in {"train": (4, 0), "val": (2, 10), "test": (3, 20)}.items():
        write_pairs(folder / part, folder / f"{part}annot", count, first, mask_of)
    return folder


def opened(use: str, cache: Path, resident: int = 10**9, **options: Any) -> tuple[DataDescription, Data, Data]:
    augment = options.pop("augment", ())
    settings = data_settings(
        {"use": use, "resident": resident, "options": options, "workers": 0, "augment": augment, "batch": 2}
    )
    found = datasets.prepare(settings, cache)
    return (found, *datasets.open_data(found, settings, CPU))


def refusal(use: str, cache: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as refused:
        opened(use, cache, **options)
    (problem,) = refused.value.problems
    assert problem.code == "E402"
    return f"{problem.where} {problem.message}; {problem.hint}"


# ── masks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def voc(folder: Path) -> None:
    write_pairs(folder / "JPEGImages", folder / "SegmentationClass", 9)
    save(folder / "JPEGImages", {"without-a-mask.png": picture(3)})
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n3\n")
    (lists / "val.txt").write_text("6\n7\n8\n")


LAYOUTS: dict[str, Any] = {
    "camvid": camvid,
    "ade20k": lambda folder: [
        write_pairs(folder / "images" / part, folder / "annotations" / part, count)
        for part, count in (("training", 4), ("validation", 3))
    ],
    "inside": lambda folder: [
        write_pairs(folder / part / "images", folder / part / "masks", count)
        for part, count in (("train", 4), ("val", 3))
    ],
    "voc": voc,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_masks_are_paired_by_their_names(layout, tmp_path):
    LAYOUTS[layout](tmp_path / layout)
    found, train, test = opened("mask_folder", tmp_path / "cache", folder=layout)
    assert (found.train, found.test, found.targets, found.classes, found.void) == (4, 3, "mask", 4, None)
    assert found.shape == (3, HEIGHT, WIDTH)
    for number, pixels in enumerate(train.store.inputs):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(picture(number)))
        assert np.array_equal(train.store.targets[number].numpy(), np.asarray(labels(number)))
    assert next(test.in_order()).targets.shape == (3, HEIGHT, WIDTH)
    assert f"$ENERGYBENCH_DATA/{layout}" in found.source


def test_a_palettes_numbers_are_the_labels_and_255_is_void(tmp_path):
    def coloured(seed: int) -> Image.Image:
        numbers = np.asarray(labels(seed, 3)).copy()
        numbers[0, 0] = 255
        image = Image.fromarray(numbers, mode="L").convert("P")
        image.putdata(numbers.flatten().tolist())
        image.putpalette([channel for colour in range(256) for channel in (colour, 255 - colour, 7)])
        return image

    camvid(tmp_path / "camvid", coloured)
    found, train, _ = opened("mask_folder", tmp_path / "cache", folder="camvid")
    assert (found.classes, found.void) == (3, 255)
    assert train.store.targets[:, 0, 0].tolist() == [255] * 4


def test_a_label_that_is_said_to_be_void_is_no_class(tmp_path):
    camvid(tmp_path / "camvid")
    found, *_ = opened("mask_folder", tmp_path / "cache", folder="camvid", void=3)
    assert (found.classes, found.void) == (3, 3)
    names = ["sky", "road", "car"]
    found, *_ = opened("mask_folder", tmp_path / "cache", folder="camvid", void=3, class_names=names)
    assert (found.classes, found.class_names) == (3, tuple(names))


@pytest.mark.parametrize("resident", [10**9, 0])
def test_zero_becomes_void_and_the_others_move_down(resident, tmp_path):
    camvid(tmp_path / "camvid")
    found, train, _ = opened("mask_folder", tmp_path / "cache", resident, folder="camvid", zero_is_void=True)
    assert (found.classes, found.void) == (3, 255)
    batch = next(train.load([torch.tensor([2])]))
    old = torch.from_numpy(np.array(labels(2))).long()
    assert torch.equal(batch.targets[0], torch.where(old == 0, 255, old - 1))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [None, 5, [4, 7]])
def test_streamed_masks_are_those_that_are_kept(size, workers, tmp_path):
    camvid(tmp_path / "camvid")
    options = {"folder": "camvid", "void": 3, "augment": ["flip", "crop1"]} | ({"size": size} if size else {})
    (kept, resident, _), (read, streamed, _) = (
        opened("mask_folder", tmp_path / name, space, **options) for name, space in (("a", 10**9), ("b", 0))
    )
    assert isinstance(resident.store, Resident)
    assert isinstance(streamed.store, Streamed)
    streamed.store.workers = workers
    assert (kept.classes, kept.mean, kept.shape) == (read.classes, read.mean, read.shape)
    batches = [torch.tensor([3, 0]), torch.tensor([1])]
    seeded = lambda number: torch.Generator().manual_seed(number)  # noqa: E731
    for one, other in zip(resident.load(batches, seeded), streamed.load(batches, seeded), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
        assert one.targets.dtype == other.targets.dtype == torch.int64


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_fitted_mask_shows_what_its_image_shows(tmp_path_factory, width, height, new_height, new_width):
    """Every column and row has a number of its own; the image's colour at a place and the mask's label there agree."""
    place = tmp_path_factory.mktemp("fit")
    numbers = np.repeat(np.arange(width, dtype=np.uint8)[None] * 20, height, 0)
    Image.fromarray(np.stack([numbers] * 3, -1)).save(place / "image.png")
    Image.fromarray(numbers).save(place / "mask.png")
    image = read_image(place / "image.png", (new_height, new_width))[0].int()
    mask = read_mask(place / "mask.png", (new_height, new_width)).int()
    assert mask.shape == image.shape == (new_height, new_width)
    assert (image - mask).abs().max() <= 20 * max(1, -(-width // new_width))  # between neighbours, or under one pixel
    assert set(mask.unique().tolist()) <= set(numbers.flatten().tolist())


def break_by(folder: Path, what: str) -> None:
    camvid(folder)
    if what == "no mask":
        (folder / "trainannot" / "2.png").unlink()
    elif what == "no image":
        (folder / "test" / "21.png").unlink()
    elif what == "size":
        save(folder / "trainannot", {"1.png": labels(1, size=(4, 3))})
    elif what == "colours":
        save(folder / "trainannot", {"1.png": picture(1)})
    elif what == "no picture":
        (folder / "trainannot" / "1.png").write_text("no picture")
    elif what == "no test":
        for part in ("test", "testannot", "val", "valannot"):
            for file in (folder / part).iterdir():
                file.unlink()
            (folder / part).rmdir()
    elif what == "only void":
        for part in ("trainannot", "testannot"):
            for file in (folder / part).iterdir():
                save(folder / part, {file.name: Image.new("L", (WIDTH, HEIGHT), 255)})


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no mask", "1 of 4 names of train lack a mask: '2'"),
        ("no image", "1 of 3 names of test lack an image: '21'"),
        ("size", "8×6 pixels, and its mask 4×3"),
        ("colours", "3 channels"),
        ("no picture", "no image"),
        ("no test", "no images with masks for test"),
        ("only void", "nothing but void"),
    ],
)
def test_a_folder_of_masks_is_refused_with_what_is_wrong(what, words, tmp_path):
    break_by(tmp_path / "camvid", what)
    assert words in refusal("mask_folder", tmp_path / "cache", folder="camvid")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "options name none"),
        ({"folder": 3}, "options name none"),
        ({"folder": "camvit"}, "did you mean 'camvid'"),
        ({"folder": "./nowhere"}, "looked at"),
        ({"folder": "camvid", "size": 0}, "[height, width]"),
        ({"folder": "camvid", "size": [3]}, "[height, width]"),
        ({"folder": "camvid", "size": True}, "[height, width]"),
        ({"folder": "camvid", "size": "big"}, "[height, width]"),
        ({"folder": "camvid", "void": "sky"}, "facts.void"),
        ({"folder": "camvid", "number_of_classes": 2}, "2 classes and a label 3"),
        ({"folder": "camvid", "zero_is_void": "yes"}, "true or false"),
        ({"folder": "camvid", "zero_is_void": True, "void": 3}, "makes label 0 into 255"),
    ],
)
def test_options_of_a_folder_of_masks_are_refused_in_words(options, words, tmp_path):
    camvid(tmp_path / "camvid")
    assert words in refusal("mask_folder", tmp_path / "cache", **options)


def test_an_unknown_option_is_told_with_the_nearest(tmp_path):
    camvid(tmp_path / "camvid")
    with pytest.raises(UsageError, match="takes no parameter 'siz'"):
        opened("mask_folder", tmp_path / "cache", folder="camvid", siz=3)


# ── boxes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

CATEGORIES = [{"id": 7, "name": "cell"}, {"id": 3, "name": "bead"}]


def annotation(image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def coco(
    file: Path, images: Path, annotations: list[dict[str, Any]], count: int = 2, categories: Any = CATEGORIES
) -> None:
    """Images 0 to count − 1, listed in the reverse of their names' order."""
    save(images, {f"{number}.png": picture(number) for number in range(count)})
    named = [{"id": number, "file_name": f"{number}.png"} for number in reversed(range(count))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": named, "annotations": annotations, "categories": categories}))


def cells(folder: Path, train: list[dict[str, Any]] | None = None) -> None:
    boxes = [annotation(0, 7, [1, 2, 3, 2]), annotation(0, 3, [0, 0, 8, 6]), annotation(1, 3, [5, 1, 2, 4])]
    coco(folder / "annotations" / "instances_train2017.json", folder / "train2017", train or boxes)
    coco(folder / "annotations" / "instances_val2017.json", folder / "val2017", [annotation(2, 7, [0, 0, 1, 1])], 3)


def test_boxes_are_corners_and_classes_are_categories_in_the_order_of_their_ids(tmp_path):
    cells(tmp_path / "cells")
    found, train, test = opened("coco_folder", tmp_path / "cache", folder="cells")
    assert (found.targets, found.classes, found.class_names) == ("boxes", 2, ("bead", "cell"))
    assert (found.train, found.test, found.shape) == (2, 3, (3, HEIGHT, WIDTH))
    batch = next(train.in_order())
    assert batch.targets["labels"].tolist() == [[1, 0], [0, -1]]
    assert batch.targets["boxes"].tolist() == [[[1, 2, 4, 4], [0, 0, 8, 6]], [[5, 1, 7, 5], [0, 0, 0, 0]]]
    assert next(test.in_order()).targets["labels"].tolist() == [[-1, -1], [-1, -1], [1, -1]]
    assert np.array_equal(train.store.inputs[0].permute(1, 2, 0).numpy(), np.asarray(picture(0)))


def test_crowds_and_boxes_without_an_area_are_left_out(tmp_path):
    boxes = [annotation(0, 7, [1, 1, 2, 2]), annotation(0, 7, [0, 0, 8, 6], iscrowd=1), annotation(1, 7, [3, 3, 0, 2])]
    cells(tmp_path / "cells", boxes)
    _, train, _ = opened("coco_folder", tmp_path / "cache", folder="cells")
    assert next(train.in_order()).targets["labels"].tolist() == [[1], [-1]]


@pytest.mark.parametrize("layout", ["roboflow", "images", "images by part"])
def test_other_places_of_the_json_are_found(layout, tmp_path):
    folder = tmp_path / "cells"
    for part in ("train", "test"):
        file, images = {
            "roboflow": (folder / part / "_annotations.coco.json", folder / part),
            "images": (folder / "annotations" / f"{part}.json", folder / "images"),
            "images by part": (folder / f"instances_{part}.json", folder / "images" / part),
        }[layout]
        coco(file, images, [annotation(0, 7, [1, 1, 2, 2])])
    found, *_ = opened("coco_folder", tmp_path / "cache", folder="cells")
    assert (found.train, found.test, found.classes) == (2, 2, 2)


@given(st.tuples(st.integers(2, 40), st.integers(2, 40)), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.data())
def test_a_fitted_box_is_the_same_share_of_what_is_kept_of_the_image(old, new, data):
    left, top = data.draw(st.floats(0, old[0] - 1)), data.draw(st.floats(0, old[1] - 1))
    x1, y1, x2, y2 = fit((left, top, 1.0, 1.0), old, new)
    # Images are scaled alike in both directions, and their centre stays the centre.
    assert x2 - x1 == pytest.approx(y2 - y1)
    scale = max(new[1] / old[0], new[0] / old[1])
    assert x2 - x1 == pytest.approx(scale)
    assert x1 - new[1] / 2 == pytest.approx((left - old[0] / 2) * scale, abs=1e-9)
    assert y1 - new[0] / 2 == pytest.approx((top - old[1] / 2) * scale, abs=1e-9)


@pytest.mark.parametrize("resident", [10**9, 0])
def test_boxes_are_where_their_pixels_are_when_images_are_fitted(resident, tmp_path):
    """A white square of 20×20 on black, in an image of 60×40 of which the middle 40×40 are brought to 20×20."""
    folder = tmp_path / "cells"
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[10:30, 20:40] = 255
    for part in ("train", "val"):
        boxes = [annotation(0, 7, [20, 10, 20, 20]), annotation(0, 3, [0, 0, 6, 40])]
        coco(folder / "annotations" / f"instances_{part}.json", folder / part, boxes, 1)
        Image.fromarray(pixels).save(folder / part / "0.png")
    _, train, _ = opened("coco_folder", tmp_path / "cache", resident, folder="cells", size=20)
    batch = next(train.in_order())
    assert batch.targets["labels"].tolist() == [[1, -1]]  # the other's centre is cut away
    assert batch.targets["boxes"].tolist() == [[[5, 5, 15, 15], [0, 0, 0, 0]]]
    bright = batch.inputs[0, 0] > batch.inputs[0, 0].mean()
    rows, columns = bright.nonzero(as_tuple=True)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (5, 5, 15, 15)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("not json", "no json of COCO's"),
        ("no categories", "it has no 'categories'"),
        ("category", "of category 9"),
        ("bbox", "a bbox has 3 numbers"),
        ("gone", "there is no image '9.png'"),
        ("outside", "lies outside the folder"),
        ("test category", "a category that instances_train2017.json lacks"),
        ("no test", "no json of annotations for test"),
        ("empty", "it names no image"),
    ],
)
def test_a_folder_of_boxes_is_refused_with_what_is_wrong(change, words, tmp_path):
    folder = tmp_path / "cells"
    cells(folder)
    train, val = (folder / "annotations" / f"instances_{part}2017.json" for part in ("train", "val"))
    content = json.loads(train.read_text())
    if change == "no categories":
        del content["categories"]
    elif change == "category":
        content["annotations"][0]["category_id"] = 9
    elif change == "bbox":
        content["annotations"][0]["bbox"] = [1, 2, 3]
    elif change == "gone":
        content["images"].append({"id": 9, "file_name": "9.png"})
    elif change == "outside":
        content["images"][0]["file_name"] = "../../secret.png"
    elif change == "empty":
        content |= {"images": [], "annotations": []}
    elif change == "no test":
        val.unlink()
    train.write_text("{" if change == "not json" else json.dumps(content))
    if change == "test category":
        coco(val, folder / "val2017", [], categories=[*CATEGORIES, {"id": 8, "name": "dust"}])
    assert words in refusal("coco_folder", tmp_path / "cache", folder="cells")


# ── how they are found ────────────────────────────────────────────────────────────────────────────────────────────────


def test_both_are_listed_with_their_options():
    named = {each.name: each for each in catalogue.data_sets()}
    assert [each.name for each in named["mask_folder"].parameters][:3] == ["folder", "size", "void"]
    assert [each.name for each in named["coco_folder"].parameters] == ["folder", "size"]
    page = markdown()
    assert "| `mask_folder` |" in page
    assert "| `coco_folder` |" in page


def test_a_split_of_ours_is_for_a_folder_of_images_alone(tmp_path):
    camvid(tmp_path / "camvid")
    settings = data_settings({"use": "mask_folder", "split": 0.2, "options": {"folder": "camvid"}})
    with pytest.raises(UsageError, match="has a test part of its own"):
        datasets.prepare(settings, tmp_path / "cache")
