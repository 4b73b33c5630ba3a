"""Data sets of images with boxes that have a layout of their own.

COCO's json is read by `coco_folder`, which says how it may lie.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from energybench.common.errors import Problem, UsageError
from energybench.train.facts import NO_OBJECT
from energybench.train.geometry import inside
from energybench.workloads.datasets.coco_folders import fit
from energybench.workloads.datasets.data_facts import Content, Split, Told
from energybench.workloads.datasets.mask_folders import fitted_size

PARTS = {"train": ("train", "val"), "test": ("test",)}


def bccd(folder: str = "bccd", size: int | list[int] | None = None) -> Content:
    """364 blood smears with boxes of red cells, white cells and platelets (BCCD): 292 for training, 72 for testing.

    folder: with images/ and boxes.json: "classes", the images' "size" [width, height], and "images", each with its
            "file", "split", "boxes" by their corners in pixels, and "labels"
    size:   side in pixels, or [height, width], to which images are fitted and their boxes with them; else their own

    Raises UsageError E402 for what is not there or cannot be read.
    """
    place, into = Path(folder), fitted_size(size)
    file = place / "boxes.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        width, height = (int(side) for side in content["size"])
        into = into or (height, width)
        names = tuple(str(name) for name in content["classes"])
        parts = {
            part: _part(place, [each for each in content["images"] if each["split"] in splits], (width, height), into)
            for part, splits in PARTS.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UsageError(Problem("E402", f"bccd cannot be read: {reason}", str(file))) from None
    told = Told(targets="boxes", classes=len(names), class_names=names)
    return Content(parts["train"], parts["test"], told=told, size=into)


def _part(folder: Path, images: list[dict[str, Any]], old: tuple[int, int], new: tuple[int, int]) -> Split:
    """Files, and boxes padded to those of the fullest image. old: (width, height), new: (height, width)."""
    if not images:
        raise ValueError("a part has no images")
    most = max(1, *(len(image["boxes"]) for image in images))
    boxes, labels = torch.zeros(len(images), most, 4), torch.full((len(images), most), NO_OBJECT)
    for number, image in enumerate(images):
        for row, ((left, top, right, bottom), label) in enumerate(zip(image["boxes"], image["labels"], strict=True)):
            boxes[number, row] = torch.tensor(fit((left, top, right - left, bottom - top), old, new))
            labels[number, row] = label
    boxes, labels = inside(boxes, labels, new)
    return [str(folder / str(image["file"])) for image in images], {"boxes": boxes, "labels": labels}
