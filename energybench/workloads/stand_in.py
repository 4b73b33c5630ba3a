"""Data sets that are known by name: their shapes, so that a suite can be checked where their files are not.

For `check` and `flops` only. A run refuses to start without the data: nothing here is ever trained on for a record.
Imports no torch; the store that stands in for the samples is in train/data.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from energybench.flops.work import Line
from energybench.suite.tables import DataTable
from energybench.train.facts import Targets
from energybench.workloads import text_sets
from energybench.workloads.description import DataDescription

KIND = "stand-in"
FEWEST, MOST, ABOUT_FLOP = 2, 8, 2e11  # samples of a step that is timed, and its FLOPs: seconds on a few CPU cores

# name → (channels, height, width), classes, training and test images
KNOWN: dict[str, tuple[tuple[int, int, int], int, int, int]] = {
    "mnist": ((1, 28, 28), 10, 60_000, 10_000),
    "fashion-mnist": ((1, 28, 28), 10, 60_000, 10_000),
    "cifar10": ((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": ((3, 32, 32), 100, 50_000, 10_000),
    "tiny-imagenet": ((3, 64, 64), 200, 100_000, 10_000),
    "domainnet-clipart": ((3, 224, 224), 345, 33_525, 14_604),  # its cleaned version
    "domainnet-painting": ((3, 224, 224), 345, 50_416, 21_850),
    "imagenet": ((3, 224, 224), 1000, 1_281_167, 50_000),  # at the size that its papers train on
}


@dataclass(frozen=True, slots=True)
class KnownFolder:
    """A published set that a reader of folders finds. shape: of an image, where the suite gives no `size`."""

    use: str
    targets: Targets
    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    void: int | None = None


# `folder` of `options`, as $ENERGYBENCH_DATA has it → the set as it was published; sizes are the usual ones
FOLDERS: dict[str, KnownFolder] = {
    "voc2012": KnownFolder("mask_folder", "mask", (3, 512, 512), 21, 1_464, 1_449, 255),
    "ade20k": KnownFolder("mask_folder", "mask", (3, 512, 512), 150, 20_210, 2_000, 255),
    "camvid": KnownFolder("mask_folder", "mask", (3, 360, 480), 11, 367, 233, 11),
    "coco2017": KnownFolder("coco_folder", "boxes", (3, 640, 640), 80, 118_287, 5_000),
    "voc2012-boxes": KnownFolder("coco_folder", "boxes", (3, 640, 640), 20, 5_717, 5_823),
    "celeba_attributes": KnownFolder("celeba_attributes", "value", (3, 64, 64), 40, 162_770, 19_962),
    "bccd": KnownFolder("bccd", "boxes", (3, 240, 320), 3, 292, 72),
}

NAMED = ("ade20k", "bccd", "camvid")  # those of them that a suite may `use` without a folder


def describe(settings: DataTable) -> DataDescription | None:
    """What `datasets.prepare` would say of a suite's `data` table, but for the content; None for an unknown set."""
    use, name = settings.use.casefold(), settings.use
    if use in text_sets.KNOWN:
        return text_sets.describe(use, settings.options, settings.subset, settings.test_subset)
    key = str(settings.options.get("folder", settings.use))
    folder = FOLDERS.get(key.casefold())
    if folder is not None and (use == folder.use or (use in NAMED and use == key.casefold())):
        shape, classes, train, test = folder.shape, folder.classes, folder.train, folder.test
        targets, void, name = folder.targets, folder.void, key
    elif use in KNOWN:
        shape, classes, train, test = KNOWN[use]
        targets, void = "class", None
    else:
        return None
    if size := settings.options.get("size"):
        height, width = size if isinstance(size, list) else (size, size)
        shape = (shape[0], int(height), int(width))
    side = settings.resize
    return DataDescription(
        source=f"{name}, known by its name: the files are not on this machine",
        kind=KIND,
        stored=shape,
        shape=(shape[0], side, side) if side else shape,
        classes=classes,
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        targets=targets,
        void=void,
        train=min(train, settings.subset or train),
        test=min(test, settings.test_subset or test),
        sha256="unknown",
    )


def timed_samples(lines: Iterable[Line]) -> int:
    """How many of them to time a step with: fewer where one image is large and its net deep.

    lines: the ledger of one sample; empty where there is none
    """
    flop = sum(line.flop for line in lines)
    return MOST if flop <= 0 else max(FEWEST, min(MOST, int(ABOUT_FLOP / flop)))
