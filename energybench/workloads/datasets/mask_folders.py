"""A folder of images with a mask each: a picture of the same size, whose numbers are labels of pixels.

Layouts, by the folders that are there; a test/ comes before a val/:

    train/ beside trainannot/, test/ beside testannot/               CamVid, as SegNet has it
    images/train/ beside masks/train/ (or annotations/, labels/)     ADE20K: images/training, annotations/validation
    train/images/ beside train/masks/
    JPEGImages/, SegmentationClass/, ImageSets/Segmentation/*.txt    VOC

An image and its mask have one name but for its ending. The files are decoded in decoding.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from energybench.common.errors import Problem, UsageError
from energybench.common.safe_read import list_folder
from energybench.workloads.datasets import image_folders
from energybench.workloads.datasets.data_facts import VOID, Content, read_told

TRAIN_NAMES, TEST_NAMES = ("train", "training"), image_folders.TEST_NAMES
IMAGES, MASKS = ("images", "imgs"), ("masks", "annotations", "labels", "annots")
BESIDE = ("annot", "_annot", "_masks", "_labels")  # of a part's folder, the ending that its masks' folder has
VOC = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
LAYOUT = "train/ beside trainannot/ and test/ beside testannot/; or images/train/ beside masks/train/"
Pairs = tuple[list[str], list[str]]  # images, and their masks


@dataclass(frozen=True, slots=True)
class Header:
    """Of an image file. size: (width, height)."""

    size: tuple[int, int]
    channels: int


def mask_folder(
    folder: str,
    size: int | list[int] | None = None,
    void: int | None = None,
    number_of_classes: int | None = None,
    class_names: list[str] | None = None,
    zero_is_void: bool = False,
) -> Content:
    """A folder of images with a mask each: CamVid's, ADE20K's or VOC's layout.

    size:              side in pixels, or [height, width], to which both are fitted; else that of the first image
    void:              the label of pixels that belong to no class; else 255 where it occurs
    number_of_classes: else one more than the largest label of all masks, which are read for it
    class_names:       of each class, in order
    zero_is_void:      label 0 is void and the others move one down, as ADE20K has them

    Raises UsageError E402 for what is not there or cannot be read.
    """
    if not isinstance(zero_is_void, bool) or (zero_is_void and void not in (None, VOID)):
        message = (
            f"zero_is_void is {zero_is_void!r} and void {void!r}; it is true or false, and makes label 0 into {VOID}"
        )
        raise UsageError(Problem("E402", message, hint="take one of them out"))
    classes = number_of_classes or (len(class_names) if class_names else None)
    said = {"targets": "mask", "class_names": class_names or (), "classes": classes, "void": void}
    read_told(said, "mask_folder")
    place, into = Path(folder), fitted_size(size)
    train, test = (
        _read_part(place, part, _pairs(place, names)) for part, names in (("train", TRAIN_NAMES), ("test", TEST_NAMES))
    )
    if classes is None:
        classes, void = _labels_of([*train[1], *test[1]], place, void, zero_is_void)
    elif void is None:
        void = VOID
    told = read_told(said | {"classes": classes, "void": void}, "mask_folder")
    return Content(train, test, told=told, size=into, zero_is_void=zero_is_void)


def fitted_size(size: int | list[int] | None) -> tuple[int, int] | None:
    """(height, width) of an option. Raises UsageError E402 for what is none."""
    sides = [size, size] if isinstance(size, int) else size
    if sides is None:
        return None
    whole = isinstance(sides, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if isinstance(size, bool) or not whole or len(sides) != 2 or min(sides) < 1:
        message = f"options.size is {size!r}; expected a whole number of pixels, or [height, width]"
        raise UsageError(Problem("E402", message, hint="size = 96, or size = [96, 128]"))
    return sides[0], sides[1]


def _pairs(folder: Path, names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]] | None:
    """Name without its ending → the file, of the images and of the masks of a part; None where no layout has one."""
    there = [folder / part for part in VOC]
    if all(map(os.path.isdir, there)):
        lists = [there[2] / f"{name}.txt" for name in (*names, "val") if os.path.isfile(there[2] / f"{name}.txt")]
        chosen = set(lists[0].read_text(encoding="utf-8").split()) if lists else set()
        if not chosen:
            return None
        images, masks = (_by_name(place) for place in there[:2])
        return tuple({name: file for name, file in kind.items() if name in chosen} for kind in (images, masks))  # type: ignore[return-value]
    for images_at, masks_at in _candidates(folder, names):
        if os.path.isdir(images_at) and os.path.isdir(masks_at):
            return _by_name(images_at), _by_name(masks_at)
    return None


def _candidates(folder: Path, names: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    for name in names:
        yield from ((folder / name, folder / f"{name}{ending}") for ending in BESIDE)
        for images in IMAGES:
            yield from ((folder / images / name, folder / masks / name) for masks in MASKS)
            yield from ((folder / name / images, folder / name / masks) for masks in MASKS)


def _by_name(folder: Path) -> dict[str, str]:
    files = sorted(path for path in list_folder(folder) if path.name.lower().endswith(image_folders.SUFFIXES))
    return {path.stem: str(path) for path in files if not path.name.startswith(".")}


def _read_part(folder: Path, part: str, pairs: tuple[dict[str, str], dict[str, str]] | None) -> Pairs:
    """The files of a part, in the order of their names. Raises UsageError E402."""
    if pairs is None:
        names = sorted(path.name for path in list_folder(folder) if not path.name.startswith("."))
        found = ", ".join(names[: image_folders.MOST_NAMED]) or "nothing"
        message = f"{folder.name}/ has {found}, and no images with masks for {part}"
        raise UsageError(Problem("E402", message, hint=f"lay it out as {LAYOUT}"))
    images, masks = pairs
    for what, lacking in (("a mask", images.keys() - masks.keys()), ("an image", masks.keys() - images.keys())):
        if lacking:
            first = min(lacking)
            message = f"{len(lacking):,} of {len(images | masks):,} names of {part} lack {what}: '{first}'"
            raise UsageError(Problem("E402", message, hint="an image and its mask have one name but for its ending"))
    if not images:
        raise UsageError(Problem("E402", f"{folder.name}/ has no image for {part}", hint=f"lay it out as {LAYOUT}"))
    files, labels = list(images.values()), [masks[name] for name in images]
    for file, image, mask in zip(files, headers(files, folder), headers(labels, folder), strict=True):
        name, hint = os.path.relpath(file, folder), ""
        if image.size != mask.size:
            message = f"{name} has {_shown(image.size)} pixels, and its mask {_shown(mask.size)}"
            hint = "save the masks at their images' size"
        elif mask.channels != 1:
            message = f"the mask of {name} has {mask.channels} channels, and labels have one"
            hint = "save the number of each pixel's class, not its colour"
        if hint:
            raise UsageError(Problem("E402", message, hint=hint))
    return files, labels


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def headers(files: Sequence[str], folder: Path) -> list[Header]:
    """Of each file. Raises UsageError E402, which names those that are no images."""
    from PIL import Image

    image_folders.refuse_unreadable(files, folder)

    def read(file: str) -> Header:
        with Image.open(file) as image:
            return Header((image.width, image.height), len(image.getbands()))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(read, files))


def _labels_of(files: Sequence[str], folder: Path, void: int | None, zero_is_void: bool) -> tuple[int, int | None]:
    """How many classes the masks have, and the label that is void: what was said, else 255 where it occurs."""
    import numpy as np
    from PIL import Image

    def present(file: str) -> set[int] | str:
        try:
            with Image.open(file) as image:
                labels = {int(label) for label in np.unique(np.array(image))}
        except Exception as error:
            return image_folders.reason_of(error)
        return labels if min(labels) >= 0 and max(labels) <= 255 else "a label is none of 0 to 255"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(present, files))
    reasons = (each if isinstance(each, str) else None for each in found)
    image_folders.report_unreadable(zip(files, reasons, strict=True), folder)
    labels = {label for each in found if isinstance(each, set) for label in each}
    if zero_is_void:
        labels = {label - 1 if 0 < label < VOID else VOID for label in labels}
    unsaid = VOID if VOID in labels else None
    void = unsaid if void is None else void
    kept = labels - {void}
    if not kept:
        raise UsageError(Problem("E402", f"the masks of {folder.name}/ hold nothing but void"))
    return max(kept) + 1, void
