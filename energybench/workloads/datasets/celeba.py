"""CelebA's faces with their 40 attributes, as the set is published and as torchvision lays it out.

    celeba/img_align_celeba/000001.jpg …      aligned and cropped, 178×218
    celeba/list_attr_celeba.txt               a count; the attributes' names; then a name and 40 times 1 or −1 a line
    celeba/list_eval_partition.txt            a name and 0, 1 or 2: for training, validation or testing

Nothing here downloads it: its licence lets nobody pass it on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from energybench.common.errors import Problem, UsageError
from energybench.workloads.datasets.data_facts import Content, Split, read_told
from energybench.workloads.datasets.mask_folders import fitted_size

IMAGES, ATTRIBUTES, PARTS = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
TRAIN, TEST = "0", "2"  # as the partition has them; 1, for validation, is neither trained on nor tested


def celeba_attributes(folder: str = "celeba", size: int | list[int] | None = 64) -> Content:
    """CelebA's faces (Liu et al. 2015) with 40 attributes that are true or not: $ENERGYBENCH_DATA/celeba.

    folder: with img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt
    size:   side in pixels, or [height, width], to which the images are fitted

    Raises UsageError E402 for what is not there or cannot be read.
    """
    place = Path(folder)
    names, attributes = _attributes(place / ATTRIBUTES)
    parts = {TRAIN: list[str](), TEST: list[str]()}
    for number, words in _lines(place / PARTS):
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise _refusal(f"{PARTS}:{number}: expected a name and 0, 1 or 2")
        if words[1] in parts:
            parts[words[1]].append(words[0])
    splits = [_split(place, part, attributes) for part in parts.values()]
    told = read_told({"targets": "value", "classes": len(names), "class_names": names}, "celeba_attributes")
    return Content(splits[0], splits[1], told=told, size=fitted_size(size))


def _attributes(file: Path) -> tuple[list[str], dict[str, list[int]]]:
    """The attributes' names; each image's values, 0 or 1."""
    names: list[str] = []
    values: dict[str, list[int]] = {}
    for number, words in _lines(file):
        if number == 1:  # how many there are
            continue
        if number == 2:
            names = words
            continue
        if len(words) != len(names) + 1 or not set(words[1:]) <= {"1", "-1"}:
            raise _refusal(f"{file.name}:{number}: expected a name and {len(names)} times 1 or -1")
        values[words[0]] = [int(word == "1") for word in words[1:]]
    if not values:
        raise _refusal(f"{file.name} has no image")
    return names, values


def _lines(file: Path) -> Iterable[tuple[int, list[str]]]:
    """The words of each line that has some, and its number."""
    try:
        with file.open(encoding="utf-8") as opened:
            for number, line in enumerate(opened, 1):
                if words := line.split():
                    yield number, words
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _refusal(f"{file.name} cannot be read: {reason}") from None


def _split(place: Path, images: list[str], attributes: dict[str, list[int]]) -> Split:
    """Files and their labels (N, attributes)."""
    if not images:
        raise _refusal(f"{PARTS} names no image for one of training and testing")
    if lacking := [name for name in images if name not in attributes]:
        raise _refusal(f"{ATTRIBUTES} lacks {len(lacking):,} images of {PARTS}: '{lacking[0]}'")
    there = set(os.listdir(place / IMAGES)) if os.path.isdir(place / IMAGES) else set()
    if gone := [name for name in images if name not in there]:
        raise _refusal(f"{IMAGES}/ lacks {len(gone):,} images of {PARTS}: '{gone[0]}'")
    labels = torch.tensor([attributes[name] for name in images], dtype=torch.uint8)
    return [str(place / IMAGES / name) for name in images], labels


def _refusal(message: str) -> UsageError:
    hint = f"a folder with {IMAGES}/, {ATTRIBUTES} and {PARTS}"
    return UsageError(Problem("E402", f"'celeba_attributes': {message}", hint=hint))
