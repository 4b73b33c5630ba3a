"""A folder of images as a data set: train/<class>/* beside test/<class>/*, or one folder per class and a split of ours.

Labels are the training classes in the order of their names, in both parts; files come in the order of their names too,
so that a folder is the same data set on every machine. Imports no torch; the files are decoded by `datasets.prepare`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from energybench.common.errors import Problem, UsageError, nearest

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # whatever their case
TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there
MOST_NAMED = 5  # folders or files that a message lists
MOST_OPENED = 100_000  # files whose headers are read before a run
LAYOUT = "{folder}/train/<class>/*.png and {folder}/test/<class>/*.png"


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Paths of images, and for each the number of its class."""

    files: list[str]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class ImageParts:
    """What a folder holds. how: in words, which part of it is for testing."""

    classes: tuple[str, ...]
    train: LabelledFiles
    test: LabelledFiles
    how: str


def names_folder(use: str) -> bool:
    """Whether a suite's `use` is a path and no name: it has a slash, or begins with a dot or a tilde."""
    return "/" in use or use.startswith((".", "~"))


def resolve(use: str, base: Path) -> Path:
    """The path that a suite in the folder `base` means."""
    return base / os.path.expanduser(use)


def holds_parts(folder: Path) -> bool:
    """Whether it has a train/ and a test/ or val/ (of any case)."""
    parts = parts_of(folder)
    return "train" in parts and any(name in parts for name in TEST_NAMES)


def read_parts(folder: Path, shown: str, split: float | None = None, seed: int = 0) -> ImageParts:
    """The images of a folder, with their classes, for training and for testing.

    Args:
        shown: how a message names the folder: as the suite wrote it
        split: share of each class that is for testing, where the folder has no part for it
        seed:  of the split

    Raises:
        UsageError: E402, with what was found in the folder, and what to do.
    """
    shown = shown.rstrip("/").removeprefix("./") or "."
    parts = parts_of(folder)
    test = next((parts[name] for name in TEST_NAMES if name in parts), None)
    if "train" in parts and test:
        if split is not None:
            message = f"{shown}/ has a {test}/ of its own, so there is nothing to split"
            raise UsageError(Problem("E402", message, hint=f"take out split, or {test}/"))
        classes = class_folders(folder / parts["train"], f"{shown}/{parts['train']}", _two_parts_hint(shown))
        tested = class_folders(folder / test, f"{shown}/{test}", _two_parts_hint(shown))
        if strange := sorted(set(tested) - set(classes)):
            message = f"{shown}/{test} has a class that {shown}/{parts['train']} lacks: '{strange[0]}'"
            raise UsageError(Problem("E402", message, hint=nearest(strange[0], classes)))
        _refuse_one_class(classes, shown)
        label = {name: number for number, name in enumerate(classes)}
        trained, kept = (_labelled((label[name], files) for name, files in part.items()) for part in (classes, tested))
        return ImageParts(tuple(classes), trained, kept, f"{parts['train']}/ and {test}/")
    if split is None:
        raise UsageError(Problem("E402", _no_parts(folder, shown, parts), hint=_remedy(folder, shown, parts)))
    home, shown_home = (folder / parts["train"], f"{shown}/{parts['train']}") if "train" in parts else (folder, shown)
    if test:
        message = f"{shown}/ has {_listed(_folders(folder))} and no train/, so there is nothing to split"
        raise UsageError(Problem("E402", message, hint=f"take out split, and {_two_parts_hint(shown)}"))
    classes = class_folders(home, shown_home, _class_folders_hint(folder, shown))
    deeper = _one_level_down(folder)
    _refuse_one_class(classes, shown_home, _deeper_hint(shown, deeper) if deeper else "")
    trained, kept = _split(home, shown_home, classes, split, seed)
    how = f"{100 * split:g} % of each class for testing, split by seed {seed}"
    return ImageParts(tuple(classes), trained, kept, how)


def parts_of(folder: Path) -> dict[str, str]:
    """Lower-case name → the subfolder's own name, of those that are parts of a set."""
    found = {name.lower(): name for name in reversed(_folders(folder))}
    return {name: found[name] for name in ("train", *TEST_NAMES) if name in found}


def class_folders(folder: Path, shown: str, hint: str) -> dict[str, list[str]]:
    """Class → its images' paths, in the order of the names. Raises UsageError E402 where there is none, or one is
    empty."""
    classes = {name: list(images_below(folder / name)) for name in _folders(folder)}
    if not classes:
        raise UsageError(Problem("E402", f"{shown}/ {_found(folder)}", hint=hint))
    if empty := [name for name, files in classes.items() if not files]:
        others = sorted({Path(name).suffix.lower() or name for name in _files_below(folder / empty[0])})
        held = f"has only {_listed(others)}" if others else "is empty"
        message = f"{shown}/{empty[0]}/ {held}, so the class '{empty[0]}' has no image that can be read"
        raise UsageError(Problem("E402", message, hint=f"take it out; read are {', '.join(SUFFIXES)}"))
    return classes


def _refuse_one_class(classes: dict[str, list[str]], shown: str, hint: str = "") -> None:
    if len(classes) == 1:
        message = f"{shown}/ has one class, '{next(iter(classes))}', and a classifier needs two"
        raise UsageError(Problem("E402", message, hint=hint or "add another class's folder"))


def _split(
    home: Path, shown: str, classes: dict[str, list[str]], share: float, seed: int
) -> tuple[LabelledFiles, LabelledFiles]:
    """Of each class the same share, at least one image and not all, chosen by a hash of seed and name: no machine's
    order of files, and no library's random numbers, are in it."""
    parts: list[list[tuple[int, list[str]]]] = [[], []]
    for label, (name, files) in enumerate(classes.items()):
        if len(files) < 2:
            message = f"{shown}/{name}/ has one image, and a split needs two: one to train on, one to test"
            raise UsageError(Problem("E402", message, hint="add images, or take the class out"))
        count = min(len(files) - 1, max(1, int(len(files) * share + 0.5)))
        tested = set(sorted(files, key=lambda file: rank(seed, os.path.relpath(file, home)))[:count])
        for part, chosen in zip(parts, ([f for f in files if f not in tested], sorted(tested)), strict=True):
            part.append((label, chosen))
    return _labelled(parts[0]), _labelled(parts[1])


def rank(seed: int, name: str) -> bytes:
    """Where an image stands in the split's order; file systems spell an accent in two ways."""
    return hashlib.sha256(f"{seed}/{unicodedata.normalize('NFC', name)}".encode(errors="surrogateescape")).digest()


def _labelled(classes: Iterable[tuple[int, Sequence[str]]]) -> LabelledFiles:
    pairs = [(file, label) for label, files in classes for file in files]
    return LabelledFiles([file for file, _ in pairs], [label for _, label in pairs])


# ── what is there ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _names(folder: Path) -> list[str]:
    """What a folder holds, in order, less what editors and file managers leave. Raises UsageError E402."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(Problem("E402", f"cannot read it: {reason}", str(folder))) from None
    return sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")


def _folders(folder: Path) -> list[str]:
    return [name for name in _names(folder) if os.path.isdir(folder / name)]


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def images_below(folder: Path) -> Iterator[str]:
    """Every image in it and below, folder by folder in the order of their paths; links are followed, not in circles."""
    for place, names in sorted(_walk(folder, frozenset())):
        yield from (os.path.join(place, name) for name in names if _is_image(name))


def _files_below(folder: Path) -> Iterator[str]:
    for _, names in _walk(folder, frozenset()):
        yield from names


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, list[str]]]:
    """(folder, its files in order), this one and those below; above: the folders that led here."""
    facts = os.stat(folder)
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        return
    folders = _folders(folder)
    yield str(folder), [name for name in _names(folder) if name not in set(folders)]
    for name in folders:
        yield from _walk(folder / name, above | {here})


def refuse_unreadable(files: Sequence[str], folder: Path) -> None:
    """Reads the header of every file, or of so many spread over them. Raises UsageError E402, which names those that
    are no images."""
    files = files[:: -(-len(files) // MOST_OPENED) or 1]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = list(pool.map(_unreadable, files))
    report_unreadable(zip(files, reasons, strict=True), folder)


def report_unreadable(reasons: Iterable[tuple[str, str | None]], folder: Path) -> None:
    """Raises UsageError E402 for (file, why it cannot be read; None where it can)."""
    pairs = list(reasons)
    wrong = [(os.path.relpath(file, folder), reason) for file, reason in pairs if reason]
    if wrong:
        shown = ", ".join(f"{file} ({reason})" for file, reason in wrong[:MOST_NAMED])
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        message = f"{_count(len(wrong), 'image')} of {len(pairs):,} cannot be read: {shown}{more}"
        raise UsageError(Problem("E402", message, hint="take them out, or save them again"))


def _unreadable(file: str) -> str | None:
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would block, a device never ends
            return "no regular file"
        with Image.open(file) as image:
            return None if image.width and image.height else "it has no pixels"
    except Exception as error:
        return reason_of(error)


def reason_of(error: BaseException) -> str:
    """In a few words, why Pillow could not read an image."""
    if isinstance(error, FileNotFoundError):
        return "a link that leads nowhere"
    if type(error).__name__ == "UnidentifiedImageError":
        return "no image"
    return getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__


# ── what to say ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _no_parts(folder: Path, shown: str, parts: dict[str, str]) -> str:
    """ "pets/ has cat, dog and no train/" """
    if not _folders(folder):
        return f"{shown}/ {_found(folder)}"
    lacks = "test/ or val/" if "train" in parts else "train/"
    return f"{shown}/ has {_found(folder)} and no {lacks}"


def _remedy(folder: Path, shown: str, parts: dict[str, str]) -> str:
    """What to type for a folder without the two parts."""
    if "train" in parts:
        return "add split = 0.2, and a fifth of each class of train/ is kept for testing; or add a test/"
    if folder.name.lower() in ("train", *TEST_NAMES) and holds_parts(folder.parent):
        return f"it is a part of a set: use the folder that it lies in, {_written(str(Path(shown).parent))}"
    if parts:
        return f"what is trained on belongs in {shown}/train/<class>/"
    if deeper := _one_level_down(folder):
        return _deeper_hint(shown, deeper)
    return _class_folders_hint(folder, shown) if not _folders(folder) else _split_hint(shown)


def _split_hint(shown: str) -> str:
    return f"add split = 0.2, and a fifth of each class is kept for testing; or lay it out as {_layout(shown)}"


def _layout(shown: str) -> str:
    return LAYOUT.format(folder=shown)


def _two_parts_hint(shown: str) -> str:
    return f"lay it out as {_layout(shown)}"


def _class_folders_hint(folder: Path, shown: str) -> str:
    if deeper := _one_level_down(folder):
        return _deeper_hint(shown, deeper)
    return f"put the images of each class into a folder of its own: {shown}/<class>/*.png"


def _deeper_hint(shown: str, deeper: str) -> str:
    """Where to look instead."""
    return f"the classes are a folder further down: {_written(f'{shown}/{deeper}')}"


def _written(shown: str) -> str:
    """As a suite has it: below $ENERGYBENCH_DATA without that, else with what makes it a path."""
    path = shown.removeprefix("$ENERGYBENCH_DATA/")
    prefix = "" if path != shown or path.startswith(("/", "~", ".")) else "./"
    return f'use = "{prefix}{path}"'


def _one_level_down(folder: Path) -> str | None:
    """The only subfolder, where it holds folders and no image itself."""
    names = _folders(folder)
    if len(names) != 1:
        return None
    inside = folder / names[0]
    return names[0] if len(_folders(inside)) > 1 and not any(map(_is_image, _names(inside))) else None


def _found(folder: Path) -> str:
    """ "cat, dog"; of a folder without folders what else can be said: "is empty"."""
    names = _folders(folder)
    if names:
        return _listed([f"{name}/" if name.lower() in ("train", *TEST_NAMES) else name for name in names])
    files = _names(folder)
    images = sum(map(_is_image, files))
    if images:
        return f"has {_count(images, 'image')} and no folder of a class"
    return f"has {_count(len(files), 'file')}, no image and no folder" if files else "is empty"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
