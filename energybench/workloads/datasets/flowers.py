"""Oxford's 102 flowers (Nilsback & Zisserman 2008), as its authors lay them out, or in one folder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from energybench.common.errors import Problem, UsageError
from energybench.workloads.datasets import image_folders
from energybench.workloads.datasets.data_facts import Content, Split, read_told
from energybench.workloads.datasets.mask_folders import fitted_size
from energybench.workloads.stand_in import chosen_splits

CLASSES = 102
SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}  # as setid.mat calls them
LABELS, PARTS, IMAGES = "imagelabels.mat", "setid.mat", "jpg"
LAYOUT = f"{IMAGES}/image_00001.jpg …, {LABELS} and {PARTS}; or train/<class>/*.jpg and test/<class>/*.jpg"


def flowers102(
    folder: str = "flowers102",
    train: str | list[str] = "train",
    test: str | list[str] = "test",
    size: int | list[int] | None = 224,
) -> Content:
    """Oxford's 102 flowers: 1,020 images to train on, 1,020 for validation and 6,149 to test.

    folder: with jpg/, imagelabels.mat and setid.mat, or with train/<class>/ and test/<class>/
    train:  the split, or splits, to train on: "train", "val", "test"; papers that train on more take "test"
    test:   the split to test on
    size:   side in pixels, or [height, width], to which images are fitted; None: that of the first image

    Raises UsageError E402 for what is not there or cannot be read.
    """
    chosen = {"train": chosen_splits("train", train), "test": chosen_splits("test", test)}
    if both := sorted(set(chosen["train"]) & set(chosen["test"])):
        message = f"'flowers102' would be trained and tested on the same images: '{both[0]}'"
        raise UsageError(Problem("E402", message, hint='train = "test", test = "train"'))
    place, into = Path(folder), fitted_size(size)
    if image_folders.holds_parts(place):
        return _of_folders(place, chosen, into)
    labels, splits = _read(place)
    found = {part: _files(place, part, [splits[name] for name in names], labels) for part, names in chosen.items()}
    image_folders.refuse_unreadable([*found["train"][0], *found["test"][0]], place)
    told = read_told({"targets": "class", "classes": CLASSES}, "flowers102")
    return Content(found["train"], found["test"], told=told, size=into)


def _of_folders(place: Path, chosen: dict[str, list[str]], into: tuple[int, int] | None) -> Content:
    found = image_folders.read_parts(place, place.name)
    parts = {"train": found.train, "test": found.test}
    if lacking := [name for names in chosen.values() for name in names if len(names) > 1 or name not in parts]:
        message = f"{place.name}/ has folders of classes for train and test, and '{lacking[0]}' was asked for"
        raise UsageError(Problem("E402", message, hint=f"its splits are in {PARTS}: {LAYOUT}"))
    image_folders.refuse_unreadable([*found.train.files, *found.test.files], place)
    train, test = (parts[chosen[part][0]] for part in ("train", "test"))
    told = read_told({"targets": "class", "class_names": found.classes}, "flowers102")
    return Content(
        (train.files, torch.tensor(train.labels)), (test.files, torch.tensor(test.labels)), told=told, size=into
    )


def _read(place: Path) -> tuple[list[int], dict[str, list[int]]]:
    """The class of each image, from 1, and of each split the numbers of its images, from 1."""
    labels = _numbers(place / LABELS, "labels")
    if not labels or min(labels) < 1 or max(labels) > CLASSES:
        message = f"{LABELS} has a label that is none of 1 to {CLASSES}"
        raise UsageError(Problem("E402", message, hint=f"lay it out as {LAYOUT}"))
    splits = {name: _numbers(place / PARTS, key) for name, key in SPLITS.items()}
    for name, numbers in splits.items():
        if not numbers or min(numbers) < 1 or max(numbers) > len(labels) or len(set(numbers)) < len(numbers):
            message = f"{PARTS}: the split '{name}' is no list of different images of 1 to {len(labels):,}"
            raise UsageError(Problem("E402", message, hint=f"lay it out as {LAYOUT}"))
    return labels, splits


def _numbers(file: Path, key: str) -> list[int]:
    """Whole numbers of a file of MATLAB's."""
    from scipy.io import loadmat

    if not os.path.isfile(file):
        message = f"{file.parent.name}/ has no {file.name}"
        raise UsageError(Problem("E402", message, hint=f"lay it out as {LAYOUT}"))
    try:
        values: Any = loadmat(str(file), variable_names=[key])[key]
        return [int(value) for value in values.ravel()]
    except Exception as error:  # whatever a reader makes of bytes that are none of its own
        message = f"{file.name} has no table of whole numbers '{key}': {type(error).__name__}"
        raise UsageError(Problem("E402", message, hint=f"lay it out as {LAYOUT}")) from None


def _files(place: Path, part: str, splits: list[list[int]], labels: list[int]) -> Split:
    """The images of these splits in the order of their numbers, and their classes from 0."""
    numbers = sorted(number for split in splits for number in split)
    files = [str(place / IMAGES / f"image_{number:05d}.jpg") for number in numbers]
    if gone := [file for file in files if not os.path.isfile(file)]:
        message = f"{len(gone):,} of {len(files):,} images of {part} are not there: {IMAGES}/{Path(gone[0]).name}"
        raise UsageError(Problem("E402", message, hint=f"lay it out as {LAYOUT}"))
    return files, torch.tensor([labels[number - 1] - 1 for number in numbers])
