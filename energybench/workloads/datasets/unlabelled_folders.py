"""Images without labels, as a generator learns from them: any folder of images, and CelebA by its authors' partition.

    train/ beside test/ (or val/)                        the images in and below each, in whatever folders they lie
    images in and below the folder, or its train/        of which a share is kept for testing
    img_align_celeba/ beside list_eval_partition.txt     CelebA; or the same list as .csv

Files come in the order of their paths, and what is kept for testing is chosen by their names, so that a folder is the
same data set on every machine. They are decoded in decoding.py, in colour.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from energybench.common.errors import Problem, UsageError
from energybench.workloads.datasets import image_folders
from energybench.workloads.datasets.data_facts import Content, Told
from energybench.workloads.datasets.mask_folders import fitted_size

HOLDOUT = 0.1
SEED = 0  # of the choice of what is kept for testing
CELEBA_IMAGES = "img_align_celeba"
CELEBA_LISTS = tuple(f"{place}list_eval_partition.{ending}" for place in ("", "Eval/") for ending in ("txt", "csv"))
CELEBA_TRAIN, CELEBA_TEST = "0", "2"  # 1 is for validation, and in neither part


def unlabelled_folder(folder: str, size: int | list[int] | None = None, holdout: float | None = None) -> Content:
    """A folder of images without labels; those of folders inside it count alike.

    size:    side in pixels, or [height, width], to which they are fitted; else that of the first image
    holdout: share that is kept for testing where the folder has no test/; 0.1 if not given

    Raises UsageError E402 for what is not there or cannot be read.
    """
    place, into = Path(folder), fitted_size(size)
    parts = image_folders.parts_of(place)
    test = next((parts[name] for name in image_folders.TEST_NAMES if name in parts), None)
    if test and "train" not in parts:
        message = f"{place.name}/ has {test}/ and no train/"
        raise UsageError(Problem("E402", message, hint=f"name what is trained on {place.name}/train/"))
    if test and holdout is not None:
        message = f"{place.name}/ has {test}/ of its own, so holdout would keep nothing"
        raise UsageError(Problem("E402", message, hint=f"take out holdout, or {test}/"))
    home = place / parts["train"] if "train" in parts else place
    trained = _images_in(home, place)
    if test:
        return _content(trained, _images_in(place / test, place), place, into)
    kept = _kept(trained, home, HOLDOUT if holdout is None else holdout)
    return _content([file for file in trained if file not in kept], sorted(kept), place, into)


def celeba(folder: str = "celeba", size: int | list[int] | None = 64) -> Content:
    """CelebA's aligned faces (Liu et al. 2015) without their labels: 162,770 to train on and 19,962 to test.

    folder: with img_align_celeba/ and list_eval_partition.txt, or with train/ and test/
    size:   side in pixels, or [height, width], to which they are fitted: the middle is cut out and scaled

    Raises UsageError E402 for what is not there or cannot be read.
    """
    place, into = Path(folder), fitted_size(size)
    listed = next((place / name for name in CELEBA_LISTS if os.path.isfile(place / name)), None)
    if listed is None:
        if image_folders.holds_parts(place):
            return unlabelled_folder(folder, size)
        message = f"{place.name}/ has neither list_eval_partition.txt nor train/ and test/"
        hint = f"{place.name}/{CELEBA_IMAGES}/*.jpg beside {place.name}/list_eval_partition.txt, as its authors have it"
        raise UsageError(Problem("E402", message, hint=hint))
    files = {os.path.basename(file): file for file in _images_in(place / CELEBA_IMAGES, place)}
    parts: dict[str, list[str]] = {CELEBA_TRAIN: [], CELEBA_TEST: []}
    for name, number in _partition(listed):
        if number in parts:
            parts[number].append(name)
    named = [name for names in parts.values() for name in names]
    if lacking := [name for name in named if name not in files]:
        message = f"{listed.name} lists {len(named):,} images to train and test on, and {len(lacking):,} are not there"
        raise UsageError(Problem("E402", message, hint=f"the first of them is {CELEBA_IMAGES}/{lacking[0]}"))
    for number, purpose in ((CELEBA_TRAIN, "train on"), (CELEBA_TEST, "test")):
        if not parts[number]:
            message = f"{listed.name} lists no image to {purpose}: none has a {number} behind its name"
            raise UsageError(Problem("E402", message))
    train, test = ([files[name] for name in parts[number]] for number in (CELEBA_TRAIN, CELEBA_TEST))
    return _content(train, test, place, into)


def _partition(listed: Path) -> list[tuple[str, str]]:
    """(file's name, number of its part) of every line that has both; a heading has no number."""
    lines = (re.split(r"[,\s]+", line.strip()) for line in listed.read_text(encoding="utf-8").splitlines())
    return [(line[0], line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()]


def _images_in(folder: Path, place: Path) -> list[str]:
    """Every image in a folder and below. Raises UsageError E402 where there is none."""
    files = list(image_folders.images_below(folder)) if os.path.isdir(folder) else []
    if not files:
        shown = os.path.join(place.name, "" if folder == place else os.path.relpath(folder, place), "")
        hint = f"read are {', '.join(image_folders.SUFFIXES)}"
        raise UsageError(Problem("E402", f"there is no image in {shown}", hint=hint))
    return files


def _kept(files: Sequence[str], home: Path, share: float) -> set[str]:
    """Those of these files that are for testing: that share of them, at least one and not all."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        message = f"options.holdout is {share!r}; expected a share of the images between 0 and 1"
        raise UsageError(Problem("E402", message, hint="holdout = 0.1"))
    if len(files) < 2:
        message = f"{home.name}/ has one image, and one is trained on while another is for testing"
        raise UsageError(Problem("E402", message, hint="add images, or a test/"))
    count = min(len(files) - 1, max(1, int(len(files) * share + 0.5)))
    return set(sorted(files, key=lambda file: image_folders.rank(SEED, os.path.relpath(file, home)))[:count])


def _content(train: list[str], test: list[str], folder: Path, size: tuple[int, int] | None) -> Content:
    image_folders.refuse_unreadable([*train, *test], folder)
    return Content((train, None), (test, None), told=Told(targets="none"), size=size)
