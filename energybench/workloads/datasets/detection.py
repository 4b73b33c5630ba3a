"""Data sets of images with boxes that a reader of folders does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from energybench.common import data_folder
from energybench.common.errors import Problem, UsageError
from energybench.train.facts import NO_OBJECT
from energybench.train.geometry import inside
from energybench.train.images import read_image
from energybench.workloads.coco_folders import fit
from energybench.workloads.mask_folders import fitted_size

PARTS = {"train": ("train", "val"), "test": ("test",)}


def bccd(size: int | list[int] | None = None) -> dict[str, Any]:
    """364 blood smears with boxes of red cells, white cells and platelets: 292 for training, 72 for testing.

    $ENERGYBENCH_DATA/bccd has images/*.jpg and boxes.json: "classes", the "size" [width, height] of the images, and
    "images", each with "file", "split", "boxes" by corners and "labels".

    size: side in pixels, or [height, width], to which images are fitted and their boxes with them; else their own

    Raises UsageError E402 where it is not there or cannot be read.
    """
    folder = data_folder.needed("bccd", "boxes.json and images/")
    file = folder / "boxes.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        width, height = (int(side) for side in content["size"])
        into = fitted_size(size) or (height, width)
        parts = {
            name: _part(
                folder, [image for image in content["images"] if image["split"] in splits], (width, height), into
            )
            for name, splits in PARTS.items()
        }
        names = [str(name) for name in content["classes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UsageError(Problem("E402", f"bccd cannot be read: {reason}", str(file))) from None
    return {**parts, "facts": {"targets": "boxes", "class_names": names}}


def _part(folder: Path, images: list[dict[str, Any]], old: tuple[int, int], new: tuple[int, int]) -> tuple[Any, Any]:
    """Pixels, and boxes padded to those of the fullest image. old: (width, height), new: (height, width)."""
    if not images:
        raise ValueError("a part has no images")
    pixels = torch.stack([read_image(folder / image["file"], new) for image in images])
    most = max(1, *(len(image["boxes"]) for image in images))
    boxes, labels = torch.zeros(len(images), most, 4), torch.full((len(images), most), NO_OBJECT)
    for number, image in enumerate(images):
        for row, ((left, top, right, bottom), label) in enumerate(zip(image["boxes"], image["labels"], strict=True)):
            boxes[number, row] = torch.tensor(fit((left, top, right - left, bottom - top), old, new))
            labels[number, row] = label
    boxes, labels = inside(boxes, labels, new)
    return pixels, {"boxes": boxes, "labels": labels}
