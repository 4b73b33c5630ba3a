"""Data sets by name: found, decoded once per run into a memory-mapped file, described for the record.

What a set's targets are, and whether a function returned a set at all, is read in data_facts.py.

Order of looking: the functions of DATA_SETS, and those that installed packages offer; a folder whose path is given;
`$ENERGYBENCH_DATA/<name>` as an image folder or as torchvision lays it out; torchvision's download; else an error that
says what to do. Nothing is downloaded unless a run needs it. Names match whatever their capitals.

A set of its own is a function in a file here and a line of DATA_SETS: it takes the suite's `options` and returns
{"train": (inputs, targets), "test": (inputs, targets)}. One that takes a `folder` gets it as a path: the suite writes
one, or a name in $ENERGYBENCH_DATA; one that takes `_asked` is told what else was asked for. Start with `shipped.py`.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves

from energybench.common import data_folder
from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.names import known_as
from energybench.common.safe_read import list_folder
from energybench.common.torchvision_shim import import_torchvision
from energybench.suite.tables import DataTable
from energybench.train.data import Data, Resident, StandIn, Store, Streamed
from energybench.train.facts import Facts, Targets
from energybench.train.images import Images, is_image
from energybench.train.trees import take
from energybench.workloads import catalogue, stand_in
from energybench.workloads.datasets import image_folders
from energybench.workloads.datasets.data_facts import (
    Content,
    Split,
    are_files,
    facts_of,
    of_function,
    refuse_augmentation,
    size_of,
)
from energybench.workloads.datasets.decoding import decoded, describe, layout
from energybench.workloads.description import DataDescription
from energybench.workloads.models import call
from energybench.workloads.names import Names

Part = Literal["train", "test"]

# Name → "module:function", imported when it is used.
DATA_SETS = {
    "digits": "energybench.workloads.datasets.shipped:digits",
    "mnist5k": "energybench.workloads.datasets.shipped:mnist5k",
    "celeba_attributes": "energybench.workloads.datasets.celeba:celeba_attributes",
    "mask_folder": "energybench.workloads.datasets.mask_folders:mask_folder",
    "coco_folder": "energybench.workloads.datasets.coco_folders:coco_folder",
    "ade20k": "energybench.workloads.datasets.segmentation:ade20k",
    "camvid": "energybench.workloads.datasets.segmentation:camvid",
    "unlabelled_folder": "energybench.workloads.datasets.unlabelled_folders:unlabelled_folder",
    "celeba": "energybench.workloads.datasets.unlabelled_folders:celeba",
    "bccd": "energybench.workloads.datasets.detection:bccd",
    "imdb": "energybench.workloads.datasets.text:imdb",
    "sst2": "energybench.workloads.datasets.text:sst2",
    "rte": "energybench.workloads.datasets.text:rte",
    "jsonl_text": "energybench.workloads.datasets.text:jsonl_text",
    "hub_text": "energybench.workloads.datasets.text:hub_text",
    "tinyshakespeare": "energybench.workloads.datasets.text:tinyshakespeare",
    "running_text": "energybench.workloads.datasets.text:running_text",
    "photograph": "energybench.workloads.datasets.regression:photograph",
    "modelnet10": "energybench.workloads.datasets.points:modelnet10",
    "modelnet40": "energybench.workloads.datasets.points:modelnet40",
    "flowers102": "energybench.workloads.datasets.flowers:flowers102",
    "features": "energybench.workloads.datasets.features:features",
    "domain_folder": "energybench.workloads.datasets.domains:domain_folder",
    "pacs": "energybench.workloads.datasets.domains:pacs",
    "office31": "energybench.workloads.datasets.domains:office31",
    "mnist_to_digits": "energybench.workloads.datasets.domains:mnist_to_digits",
    "coloured_mnist": "energybench.workloads.datasets.domains:coloured_mnist",
}
NEEDS: dict[str, str] = {}  # name → the extra of energybench that it needs
NAMES = Names("data", "E402", DATA_SETS, NEEDS)
OF_THE_RUN = "_asked"  # an argument that no suite sets
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a data set that is made of another one must know beside its options; as `prepare` is given it."""

    settings: DataTable
    cache: Path
    base: Path
    download: bool = True
    known: bool = False


def prepare(
    settings: DataTable,
    cache: Path,
    *,
    base: Path | None = None,
    function: Callable[..., Any] | None = None,
    download: bool = True,
    known: bool = False,
) -> DataDescription:
    """Decode the data set of a suite's `data` table into `cache` and describe it.

    Args:
        base:     the suite's folder, from which paths are read; by default the one that we are in
        function: the user's own, where `use` names one
        download: whether torchvision may fetch it
        known:    describe a set whose shape is known by its name without its content, as kind "stand-in"

    Raises UsageError E402 when the data cannot be had.
    """
    found = decode(settings, cache, base=base, function=function, download=download, known=known)
    return fitted(found, settings)


def decode(
    settings: DataTable,
    cache: Path,
    *,
    base: Path | None = None,
    function: Callable[..., Any] | None = None,
    download: bool = True,
    known: bool = False,
) -> DataDescription:
    """As `prepare`, but for what is done batch by batch: of workloads that differ in that the content is the same."""
    use = settings.use if function is not None else known_as(settings.use, [*DATA_SETS, *TORCHVISION, *stand_in.KNOWN])
    own = function is None and use in DATA_SETS
    source, options = use, settings.options
    if function is None and (function := NAMES.load(use)) is not None:
        source = _named_source(use)
    takes: Mapping[str, Any] = {"size": None} if function is None else dict(inspect.signature(function).parameters)
    takes = {name: each for name, each in takes.items() if name != OF_THE_RUN}
    if own or function is None:
        _check_options(use, options, tuple(takes))
    if settings.split is not None and (function is not None or use in TORCHVISION):
        message = f"'{use}' has a test part of its own, and split is for a folder of images"
        raise UsageError(Problem("E402", message, hint="take it out"))
    looked_for: Any = options.get("folder", takes["folder"].default) if own and "folder" in takes else use
    try:
        if function is None:
            splits, source = _find(use, settings, base or Path.cwd(), download)
            content = Content(*splits)
        else:
            if own and "folder" in takes:
                folder, source = _named_folder(use, looked_for, base or Path.cwd())
                options = {**options, "folder": str(folder)}
            if own and "download" in takes and not download:  # `check` and `flops`, whatever a run may do
                options = {**options, "download": False}
            if own and image_folders.names_folder(tokenizer := str(options.get("tokenizer", ""))):
                options = {**options, "tokenizer": str(image_folders.resolve(tokenizer, base or Path.cwd()))}
            if own and isinstance(given := options.get("file"), str) and given:
                options = {**options, "file": str(_named_file(given, base or Path.cwd()))}
            asked = Asked(settings, cache, base or Path.cwd(), download, known)
            made = call(function, use, {OF_THE_RUN: asked} if own else {}, options)
            if own and isinstance(made, DataDescription):  # of what is known by its name alone
                return made
            content = made if isinstance(made, Content) else of_function(made, use)
    except UsageError:
        absent = known and isinstance(looked_for, str) and not _is_here(looked_for)
        described = stand_in.describe(settings) if absent else None
        if described is None:
            raise
        return described
    content = replace(
        content, train=_subset(content.train, settings.subset), test=_subset(content.test, settings.test_subset)
    )
    content = decoded(content, use, settings)
    facts = facts_of(content, use)
    kept: dict[str, Any] = {"train": content.train, "test": content.test, "size": content.size}
    kept |= {"parts": dict(content.parts)} if content.parts else {}
    kept |= {"zero_is_void": True} if content.zero_is_void else {}
    described = describe(kept, content.source or source, facts, content.told)
    name = re.sub(r"[^\w.-]", "_", use, flags=re.ASCII)[-80:]  # a path may be longer than any name
    file = cache / f"{name}-{described.sha256[:12]}{layout(kept)}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(kept, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    return described.model_copy(update={"file": str(file), "notes": content.notes})


def fitted(described: DataDescription, settings: DataTable) -> DataDescription:
    """What `decode` found, as this workload's `resize` and `augment` have it. Raises UsageError E402 where the set has
    nothing that they could be done to."""
    use, shape = settings.use, described.stored or described.shape
    if settings.resize and not described.has_images:
        raise UsageError(Problem("E402", f"'{use}' holds no images that could be resized", hint="remove resize"))
    inputs: Any = None
    if described.file is not None and (settings.augment or described.images):
        inputs, targets = torch.load(described.file, mmap=True, weights_only=True)["train"]
        refuse_augmentation(use, described.facts, settings.augment, inputs, targets)
    if settings.resize and (not described.images or is_image(tree_leaves(inputs)[0])):
        shape = (shape[0], settings.resize, settings.resize)
    return described.model_copy(update={"shape": shape})


def open_data(described: DataDescription, settings: DataTable, device: torch.device) -> tuple[Data, Data]:
    """(train, test) from what `prepare` left, memory-mapped; small sets go to the training device whole."""
    return open_part(described, settings, device, "train"), open_part(described, settings, device, "test")


def open_part(described: DataDescription, settings: DataTable, device: torch.device, part: Part) -> Data:
    """One of the two alone: what trains need not hold what it is judged by."""
    absent = described.kind == stand_in.KIND
    content = {} if absent else torch.load(str(described.file), mmap=True, weights_only=True)
    inputs, targets = content.get(part, (None, None))
    store: Store
    if absent:
        store = _stand_in(described, getattr(described, part), described.targets, device)
    elif described.kind == "streamed":
        masks_shifted = content.get("zero_is_void", False)
        store = Streamed(inputs, targets, tuple(content["size"]), settings.workers, device, masks_shifted)
    else:
        store = Resident(inputs, targets, device)
    facts, training = described.facts, part == "train"
    further: dict[str, tuple[Store, Targets]] = {}
    if training and absent:
        further = {name: (_stand_in(described, n, "none", device), "none") for name, n in described.parts.items()}
    elif training:
        further = {
            name: (Resident(of_part, labels, device), "none" if labels is None else facts.targets)
            for name, (of_part, labels) in content.get("parts", {}).items()
        }
    parts = {name: _further(*each, described, settings, device) for name, each in further.items()}
    images = _images(described, facts, settings, device)
    return Data(store, images, drop_last=training and settings.drop_last, facts=facts, parts=parts)


def _further(
    store: Store, targets: Targets, described: DataDescription, settings: DataTable, device: torch.device
) -> Data:
    """A further part, prepared and augmented as the training part is."""
    facts = replace(described.facts, targets=targets)
    return Data(store, _images(described, facts, settings, device), facts=facts)


def _stand_in(described: DataDescription, count: int, targets: Targets, device: torch.device) -> StandIn:
    numbers = torch.uint8 if described.has_images else torch.float32
    dtype = torch.long if "vocabulary" in described.extra else numbers
    shape = described.stored or described.shape
    domains = "domains" in described.extra
    return StandIn(shape, count, device, targets, dtype, domains=domains, labels=described.classes)


def _images(described: DataDescription, facts: Facts, settings: DataTable, device: torch.device) -> Images | None:
    """How its images are prepared; None where there are none."""
    if not described.has_images:
        return None
    leaves = {path: (each.mean, each.std) for path, each in described.images.items()}
    mean, std = described.mean or (), described.std or ()
    return Images(mean, std, settings.augment, device, settings.resize, facts=facts, leaves=leaves)


def _is_here(use: str) -> bool:
    """Whether a folder of this name holds something: then what is wrong with it is the mistake to tell."""
    return image_folders.names_folder(use) or any(list_folder(folder) for folder in _kept_as(use))


def _kept_as(use: str) -> list[Path]:
    """The folder of $ENERGYBENCH_DATA with that name; none where there is none."""
    folder = data_folder.of(use)
    return [folder] if folder else []


def _named_source(use: str) -> str:
    """Where a set comes from that a function makes, for the record."""
    if use in DATA_SETS:
        return f"{use}, shipped with a dependency" if ".shipped:" in DATA_SETS[use] else use
    offer = catalogue.offer("data", use)
    return f"{use}, of the package {offer.package}" if offer else use


def _check_options(use: str, options: dict[str, Any], taken: tuple[str, ...]) -> None:
    """Raises UsageError E402 for one that would change nothing."""
    if unknown := [key for key in options if key not in taken]:
        hint = nearest(unknown[0], taken) or "it takes none"
        raise UsageError(Problem("E402", f"'{use}' takes no option '{unknown[0]}'", hint=hint))
    side = options.get("size", 1) if taken == ("size",) else 1
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        message = f"options.size is {side!r}; expected a whole number of pixels, 1 at least"
        raise UsageError(Problem("E402", message, hint="size = 64"))


def _named_folder(use: str, folder: Any, base: Path) -> tuple[Path, str]:
    """The folder that the options name, by a path or in $ENERGYBENCH_DATA, and what it is in words."""
    if not isinstance(folder, str) or not folder:
        hint = 'options = { folder = "camvid" }: in $ENERGYBENCH_DATA; or a path, "./camvid"'
        raise UsageError(Problem("E402", f"'{use}' reads a folder, and options name none", hint=hint))
    written = image_folders.resolve(folder, base)
    is_path = image_folders.names_folder(folder)
    place = [path for path in [written] if os.path.isdir(path)] if is_path else _kept_as(folder)
    if not place:
        hint = f"looked at {written}" if is_path else nearest(folder, data_folder.names())
        hint = hint or 'a folder of $ENERGYBENCH_DATA by its name, or a path such as "./camvid"'
        raise UsageError(Problem("E402", f"'{use}': there is no folder '{folder}'", hint=hint))
    return place[0], f"{folder if is_path else f'$ENERGYBENCH_DATA/{place[0].name}'}, read by {use}"


def _named_file(file: str, base: Path) -> Path:
    """A path from the suite's folder where it leads to a file, else below $ENERGYBENCH_DATA."""
    written, root = image_folders.resolve(file, base), data_folder.root()
    below = written if root is None else root / file
    return below if os.path.isfile(below) and not os.path.isfile(written) else written


def _find(use: str, settings: DataTable, base: Path, download: bool) -> tuple[tuple[Split, Split], str]:
    written = image_folders.resolve(use, base)
    if image_folders.names_folder(use) and os.path.isdir(written):
        return _folder(written, use, settings)
    kept = _kept_as(use)
    for folder in kept:
        if use not in TORCHVISION or image_folders.holds_parts(folder):
            return _folder(folder, f"$ENERGYBENCH_DATA/{folder.name}", settings)
    if use not in TORCHVISION:
        raise UsageError(_not_found(use, written))
    place = data_folder.root()
    for folder in [*kept, place] if place else []:
        try:
            return _torchvision(use, folder, download=False), f"$ENERGYBENCH_DATA, {use} as torchvision lays it out"
        except RuntimeError:
            continue
    target = place or Path("~/.cache/energybench/data").expanduser()
    folder = target / use
    try:
        return _torchvision(use, folder, download=download), f"{use}, downloaded by torchvision"
    except (RuntimeError, OSError) as error:
        reason = "it is not on this machine" if not download else f"the download failed: {str(error).splitlines()[0]}"
        raise UsageError(
            Problem(
                "E402",
                f"the data set '{use}' cannot be had: {reason}",
                hint=f"lay it out as <folder>/{use}/train/<class>/*.png and <folder>/{use}/test/<class>/*.png, then: "
                "export ENERGYBENCH_DATA=<folder>",
            )
        ) from None


def _torchvision(use: str, folder: Path, download: bool) -> tuple[Split, Split]:
    kind = getattr(import_torchvision().datasets, TORCHVISION[use])
    parts = []
    for train in (True, False):
        source = kind(str(folder), train=train, download=download)
        images = torch.as_tensor(source.data)
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
        parts.append((images, torch.as_tensor(source.targets, dtype=torch.int64)))
    return parts[0], parts[1]


def _not_found(use: str, written: Path) -> Problem:
    """No data set has this name, or there is no folder at this path."""
    if image_folders.names_folder(use):
        if os.path.exists(written):
            return Problem("E402", f"'{use}' is a file, and images are read from a folder", hint="unpack it first")
        here = Path(os.path.expanduser(use)).absolute()
        beside = [path for path in list_folder(written.parent) if path.name[0] != "." and os.path.isdir(path)]
        hint = nearest(written.name, [path.name for path in beside])
        if os.path.isdir(here):
            hint = f'paths are read from the suite\'s folder; the one that you are in has it: use = "{here}"'
        return Problem("E402", f"there is no folder '{use}'", hint=f"looked at {written}; {hint}".removesuffix("; "))
    message = f"no data set is called '{use}'"
    if os.path.isdir(written):
        return Problem("E402", message, hint=f'the folder beside the suite is use = "./{use}"')
    hint = nearest(use, [*NAMES.known(), *TORCHVISION, *data_folder.names()])
    layout = image_folders.LAYOUT.format(folder=f"$ENERGYBENCH_DATA/{use}")
    return Problem("E402", message, hint=f'{hint}; a folder of images is use = "./{use}"; or lay it out as {layout}')


def _folder(folder: Path, shown: str, settings: DataTable) -> tuple[tuple[Split, Split], str]:
    """The images of a folder, their labels, and what it is in words. Raises UsageError E402."""
    found = image_folders.read_parts(folder, shown, settings.split, settings.split_seed)
    image_folders.refuse_unreadable([*found.train.files, *found.test.files], folder)
    split = f", {found.how}" if settings.split is not None else ""
    train, test = ((part.files, torch.tensor(part.labels)) for part in (found.train, found.test))
    return (train, test), f"{shown}, an image folder{split}"


def _subset(part: Split, count: int | None) -> Split:
    """The first `count` of one fixed shuffle: the same samples in every trial, whatever its seed."""
    size = size_of(part)
    if count is None or count >= size:
        return part
    index = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count].sort().values
    inputs, targets = ([tree[i] for i in index.tolist()] if are_files(tree) else take(tree, index) for tree in part)
    return inputs, targets


def __getattr__(name: str) -> Any:
    """A data set's function by its name, for scripts: `from energybench.workloads.datasets import digits`."""
    if name in DATA_SETS:
        return NAMES.load(name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
