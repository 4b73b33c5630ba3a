"""Data sets that are known by name: their shapes, so that a suite can be checked where their files are not.

For `check` and `flops` only. A run refuses to start without the data: nothing here is ever trained on for a record.
Imports no torch; the store that stands in for the samples is in train/data.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest
from energybench.flops.work import Line
from energybench.suite.tables import DataTable
from energybench.train.facts import Targets
from energybench.workloads import domain_sets, text_sets
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
    "flowers17": ((3, 128, 128), 17, 1_088, 272),  # a fifth of its 1,360 images for testing
    "domainnet-clipart": ((3, 224, 224), 345, 33_525, 14_604),  # its cleaned version
    "domainnet-painting": ((3, 224, 224), 345, 50_416, 21_850),
    "imagenet": ((3, 224, 224), 1000, 1_281_167, 50_000),  # at the size that its papers train on
}


@dataclass(frozen=True, slots=True)
class KnownFolder:
    """A published set that a reader of folders finds.

    shape:  of an image, where the suite gives no `size`
    splits: published ones, of which options may choose others to train and to test on than train and test say
    """

    use: str
    targets: Targets
    shape: tuple[int, int, int]
    classes: int | None
    train: int
    test: int
    void: int | None = None
    splits: Mapping[str, int] = field(default_factory=dict)

    def count(self, part: str, chosen: Any) -> int:
        """Of a part, where `chosen` are the splits that it is made of, in the options; None: its own."""
        if self.splits and chosen is not None:
            return sum(self.splits[name] for name in chosen_splits(part, chosen))
        own: int = getattr(self, part)
        return own


def chosen_splits(part: str, chosen: Any) -> list[str]:
    """The published splits that an option names for a part: one, or a list. Raises UsageError E402."""
    names = chosen if isinstance(chosen, list) else [chosen]
    unknown = next((name for name in names if name not in list(FLOWERS_102)), None)
    if not names or unknown is not None or len(set(names)) < len(names):
        message = f"options.{part} is {chosen!r}; expected one of the published splits, or several of them"
        hint = nearest(str(unknown), FLOWERS_102) if unknown is not None else ", ".join(FLOWERS_102)
        raise UsageError(Problem("E402", message, hint=hint))
    return names


FLOWERS_102 = {"train": 1_020, "val": 1_020, "test": 6_149}
# `folder` of `options`, as $ENERGYBENCH_DATA has it → the set as it was published; sizes are the usual ones
FOLDERS: dict[str, KnownFolder] = {
    "voc2012": KnownFolder("mask_folder", "mask", (3, 512, 512), 21, 1_464, 1_449, 255),
    "ade20k": KnownFolder("mask_folder", "mask", (3, 512, 512), 150, 20_210, 2_000, 255),
    "camvid": KnownFolder("mask_folder", "mask", (3, 360, 480), 11, 367, 233, 11),
    "coco2017": KnownFolder("coco_folder", "boxes", (3, 640, 640), 80, 118_287, 5_000),
    "voc2012-boxes": KnownFolder("coco_folder", "boxes", (3, 640, 640), 20, 5_717, 5_823),
    "celeba_attributes": KnownFolder("celeba_attributes", "value", (3, 64, 64), 40, 162_770, 19_962),
    "bccd": KnownFolder("bccd", "boxes", (3, 240, 320), 3, 292, 72),
    "celeba": KnownFolder("unlabelled_folder", "none", (3, 64, 64), None, 162_770, 19_962),
    "flowers102": KnownFolder("flowers102", "class", (3, 224, 224), 102, 1_020, 6_149, splits=FLOWERS_102),
}

# Those of them that a suite may `use` without a folder.
NAMED = ("ade20k", "bccd", "camvid", "celeba", "flowers102")

# Clouds of points by name → classes, training and test shapes, as ModelNet's own split has them
POINT_CLOUDS = {"modelnet10": (10, 3_991, 908), "modelnet40": (40, 9_843, 2_468)}
POINTS = 1024  # of a cloud, where the suite gives no `points`
MOST_POINTS = 1 << 20


def describe(settings: DataTable) -> DataDescription | None:
    """What `datasets.prepare` would say of a suite's `data` table, but for the content; None for an unknown set."""
    use, name = settings.use.casefold(), settings.use
    if use in text_sets.KNOWN:
        return text_sets.describe(use, settings.options, settings.subset, settings.test_subset)
    if use in POINT_CLOUDS:
        return _point_clouds(use, settings)
    key = str(settings.options.get("folder", settings.use))
    if use in domain_sets.KNOWN and use == key.casefold():
        return domain_sets.describe(use, settings)
    folder = FOLDERS.get(key.casefold())
    if folder is not None and (use == folder.use or (use in NAMED and use == key.casefold())):
        shape, classes = folder.shape, folder.classes
        train, test = (folder.count(part, settings.options.get(part)) for part in ("train", "test"))
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


def points_asked(points: Any) -> int:
    """Of each cloud. Raises UsageError E402 for what is no number of them."""
    if not isinstance(points, int) or isinstance(points, bool) or not 1 <= points <= MOST_POINTS:
        message = f"options.points is {points!r}; expected a whole number of points, 1 to {MOST_POINTS:,}"
        raise UsageError(Problem("E402", message, hint=f"points = {POINTS}"))
    return points


def _point_clouds(use: str, settings: DataTable) -> DataDescription | None:
    """None where they are looked for in a folder of another name."""
    if str(settings.options.get("folder", use)).casefold() != use:
        return None
    classes, train, test = POINT_CLOUDS[use]
    shape = (points_asked(settings.options.get("points", POINTS)), 3)
    return DataDescription(
        source=f"{use}, known by its name: the files are not on this machine",
        kind=KIND,
        stored=shape,
        shape=shape,
        classes=classes,
        targets="class",
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
