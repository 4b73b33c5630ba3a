"""One image as a data set: each pixel is a sample, from its place to its colour.

The same pixels are for training and for testing: a network is fitted to a signal, and judged by how near it has come.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from energybench.common import data_folder
from energybench.common.errors import Problem, UsageError, nearest
from energybench.train.images import read_image
from energybench.workloads.datasets.image_folders import reason_of
from energybench.workloads.datasets.mask_folders import fitted_size

IMAGES = ("china", "flower")  # of scikit-learn's wheel, 427×640 pixels each
PEAK = 1.0  # the largest difference of two values from 0 to 1


def photograph(image: str = "china", size: int | list[int] = 128, file: str | None = None) -> dict[str, Any]:
    """Every pixel of one image: its coordinates in [−1, 1]² → red, green and blue from 0 to 1. For testing, the same.

    image: "china" or "flower", which come with scikit-learn
    size:  side in pixels, or [height, width], to which it is fitted: its middle is cut to these proportions and scaled
    file:  an image of your own in place of them: a path from the suite's folder, or below $ENERGYBENCH_DATA

    Raises UsageError E402 for what is not there or is no image.
    """
    if image not in IMAGES:
        hint = nearest(str(image), IMAGES) or f'one of {", ".join(IMAGES)}; of your own: file = "./photo.png"'
        raise UsageError(Problem("E402", f"photograph has no image '{image}'", hint=hint))
    if file is not None and image != IMAGES[0]:
        raise UsageError(Problem("E402", "photograph has an image and a file, and shows one", hint="take one out"))
    into = fitted_size(size)
    if into is None:
        raise UsageError(Problem("E402", "photograph has no size", hint="size = 128"))
    if file is not None:
        pixels = _read(_found(file), file, into)
    else:
        with resources.as_file(resources.files("sklearn.datasets.images") / f"{image}.jpg") as path:
            pixels = _read(path, f"{image}.jpg", into)
    part = (coordinates(*into), colours(pixels))
    facts = {"targets": "value", "extra": {"outputs": pixels.shape[0], "peak": PEAK}}
    return {"train": part, "test": part, "facts": facts}


def coordinates(height: int, width: int) -> Tensor:
    """(height·width, 2), row by row: x to the right, y down, −1 and 1 at the centres of the outermost pixels.

    An image that is one pixel wide or high has 0 there.
    """
    y, x = (torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1) for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)


def colours(pixels: Tensor) -> Tensor:
    """uint8 (channels, height, width) → float32 (height·width, channels), from 0 to 1, in the coordinates' order."""
    return pixels.flatten(1).T.contiguous().float() / 255


def _found(file: str) -> Path:
    """The file of that path. Raises UsageError E402."""
    if not isinstance(file, str) or not file:
        hint = 'file = "./photo.png", from the suite\'s folder; or its name in $ENERGYBENCH_DATA'
        raise UsageError(Problem("E402", f"photograph: file is {file!r}, and no name of one", hint=hint))
    if not os.path.isfile(file):
        hint = f"looked below $ENERGYBENCH_DATA too, which is {data_folder.root() or 'not set'}"
        raise UsageError(Problem("E402", f"photograph: there is no file '{file}'", hint=hint))
    return Path(file)


def _read(path: Path, shown: str, size: tuple[int, int]) -> Tensor:
    try:
        return read_image(path, size)
    except Exception as error:  # whatever Pillow makes of bytes that are no image of its kinds
        raise UsageError(Problem("E402", f"photograph: '{shown}' cannot be read: {reason_of(error)}")) from None
