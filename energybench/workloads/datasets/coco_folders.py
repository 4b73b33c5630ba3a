"""A folder of images with COCO's json of boxes.

    annotations/instances_train2017.json beside train2017/        COCO, likewise with images/train2017/
    annotations/train.json, annotations/test.json beside images/
    train/_annotations.coco.json beside its images                Roboflow's export

A test part comes before a val part. Categories are the classes in the order of their ids, in both parts alike. Crowds
and boxes without an area are left out. Images are fitted to one size, and their boxes with them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from energybench.common.errors import Problem, UsageError
from energybench.common.safe_read import list_folder
from energybench.train.facts import NO_OBJECT
from energybench.train.geometry import inside
from energybench.workloads.datasets import image_folders
from energybench.workloads.datasets.data_facts import Content, Told
from energybench.workloads.datasets.mask_folders import Header, fitted_size, headers

PARTS = {"train": ("train",), "test": image_folders.TEST_NAMES}
LAYOUT = "annotations/instances_train.json and annotations/instances_val.json beside images/"


@dataclass(frozen=True)
class Annotated:
    """One part. boxes: of each image, (x, y, width, height, category id)."""

    file: Path
    images: list[str]
    boxes: list[list[tuple[float, float, float, float, int]]]
    categories: dict[int, str]


def coco_folder(folder: str, size: int | list[int] | None = None) -> Content:
    """A folder of images with COCO's json of boxes: instances_train*.json, instances_val*.json.

    size: side in pixels, or [height, width], to which images are fitted and their boxes with them; else that of the
          first image

    Raises UsageError E402 for what is not there or cannot be read.
    """
    place = Path(folder)
    parts = {part: _read(place, part, names) for part, names in PARTS.items()}
    train, test = parts["train"], parts["test"]
    if strange := sorted(set(test.categories.items()) - set(train.categories.items())):
        message = f"{test.file.name} has a category that {train.file.name} lacks: {strange[0][0]}, '{strange[0][1]}'"
        raise UsageError(Problem("E402", message))
    sizes = {part: headers(each.images, place) for part, each in parts.items()}
    first = sizes["train"][0].size
    into = fitted_size(size) or (first[1], first[0])
    most = max(1, *(len(boxes) for each in parts.values() for boxes in each.boxes))
    number = {category: index for index, category in enumerate(sorted(train.categories))}
    made = {part: (each.images, _targets(each, sizes[part], into, most, number)) for part, each in parts.items()}
    names = tuple(train.categories[category] for category in sorted(train.categories))
    told = Told(targets="boxes", classes=len(names), class_names=names)
    return Content(made["train"], made["test"], told=told, size=into)


def fit(box: tuple[float, ...], old: tuple[int, int], new: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box x, y, width, height of an image (width, height), as x₁, y₁, x₂, y₂ of what `read_image` makes of it: the
    centre of the new (height, width)'s proportions, brought to that size."""
    width, height = min(old[0], old[1] * new[1] / new[0]), min(old[1], old[0] * new[0] / new[1])
    left, top = (old[0] - width) / 2, (old[1] - height) / 2
    across, down = new[1] / width, new[0] / height
    x, y = (box[0] - left) * across, (box[1] - top) * down
    return x, y, x + box[2] * across, y + box[3] * down


def _targets(
    part: Annotated, sizes: list[Header], into: tuple[int, int], most: int, number: dict[int, int]
) -> dict[str, torch.Tensor]:
    boxes = torch.zeros(len(part.images), most, 4)
    labels = torch.full((len(part.images), most), NO_OBJECT)
    for image, (found, size) in enumerate(zip(part.boxes, sizes, strict=True)):
        for row, (*box, category) in enumerate(found):
            boxes[image, row] = torch.tensor(fit(tuple(box), size.size, into))
            labels[image, row] = number[category]
    boxes, labels = inside(boxes, labels, into)
    return {"boxes": boxes, "labels": labels}


def _read(folder: Path, part: str, names: tuple[str, ...]) -> Annotated:
    """A part's images and boxes. Raises UsageError E402."""
    file = _annotations(folder, names)
    if file is None:
        there = sorted(path.name for path in list_folder(folder) if not path.name.startswith("."))
        found = ", ".join(there[: image_folders.MOST_NAMED]) or "nothing"
        message = f"{folder.name}/ has {found}, and no json of annotations for {part}"
        raise UsageError(Problem("E402", message, hint=f"lay it out as {LAYOUT}"))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
        boxes: dict[int, list[tuple[float, float, float, float, int]]] = {number: [] for number in images}
        for each in content["annotations"]:
            if not each.get("iscrowd") and _has_area(box := [float(side) for side in each["bbox"]]):
                boxes[int(each["image_id"])].append((*box, _category(int(each["category_id"]), categories)))  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UsageError(Problem("E402", f"it is no json of COCO's: {reason}", str(file))) from None
    order = sorted(images, key=lambda number: images[number])
    if not order:
        raise UsageError(Problem("E402", "it names no image", str(file)))
    places = [_find(folder, file, images[number]) for number in order]
    return Annotated(file, places, [boxes[number] for number in order], categories)


def _has_area(box: list[float]) -> bool:
    if len(box) != 4:
        raise ValueError(f"a bbox has {len(box)} numbers, not x, y, width, height")
    return box[2] > 0 and box[3] > 0


def _category(number: int, known: dict[int, Any]) -> int:
    if number not in known:
        raise ValueError(f"an annotation is of category {number}, and no category has that id")
    return number


def _annotations(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The json of the first of these parts that has one."""
    for name in names:
        beside = folder / name / "_annotations.coco.json"
        if os.path.isfile(beside):
            return beside
        for place in (folder / "annotations", folder):
            files = sorted(path for path in list_folder(place) if path.suffix.lower() == ".json")
            for begins in (f"instances_{name}", name):
                if found := next((path for path in files if path.name.lower().startswith(begins)), None):
                    return found
    return None


def _find(folder: Path, annotations: Path, name: str) -> str:
    """Where an image lies. Raises UsageError E402 where it does not, or where its name leads out of the folder."""
    part = annotations.stem.removeprefix("instances_")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(Problem("E402", f"the image '{name}' lies outside the folder", str(annotations)))
    for place in (annotations.parent, folder / "images" / part, folder / part, folder / "images", folder):
        if os.path.isfile(place / name):
            return str(place / name)
    message = f"there is no image '{name}', which {annotations.name} names"
    hint = f"looked in {annotations.parent.name}/, images/{part}/, {part}/, images/ and {folder.name}/"
    raise UsageError(Problem("E402", message, str(folder), hint))
