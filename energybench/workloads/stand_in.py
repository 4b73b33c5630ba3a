"""Data sets that are known by name: their shapes, so that a suite can be checked where their files are not.

For `check` and `flops` only. A run refuses to start without the data: nothing here is ever trained on for a record.
Imports no torch; the store that stands in for the samples is in train/data.py.
"""

from __future__ import annotations

from energybench.suite.tables import DataTable
from energybench.workloads.description import DataDescription

KIND = "stand-in"

# name → (channels, height, width), classes, training and test images
KNOWN: dict[str, tuple[tuple[int, int, int], int, int, int]] = {
    "mnist": ((1, 28, 28), 10, 60_000, 10_000),
    "fashion-mnist": ((1, 28, 28), 10, 60_000, 10_000),
    "cifar10": ((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": ((3, 32, 32), 100, 50_000, 10_000),
    "tiny-imagenet": ((3, 64, 64), 200, 100_000, 10_000),
    "imagenet": ((3, 224, 224), 1000, 1_281_167, 50_000),  # at the size that its papers train on
}


def describe(settings: DataTable) -> DataDescription | None:
    """What `datasets.prepare` would say of a suite's `data` table, but for the content; None for an unknown set."""
    use = settings.use.casefold()
    if use not in KNOWN:
        return None
    shape, classes, train, test = KNOWN[use]
    if side := settings.options.get("size"):
        shape = (shape[0], int(side), int(side))
    side = settings.resize
    return DataDescription(
        source=f"{settings.use}, known by its name: the files are not on this machine",
        kind=KIND,
        stored=shape,
        shape=(shape[0], side, side) if side else shape,
        classes=classes,
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        train=min(train, settings.subset or train),
        test=min(test, settings.test_subset or test),
        sha256="unknown",
    )
