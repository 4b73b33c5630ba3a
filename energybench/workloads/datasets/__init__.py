"""Data sets by name: found, decoded once per run into a memory-mapped file, described for the record.

Order of looking: the functions of DATA_SETS, and those that installed packages offer; a folder whose path is given;
`$ENERGYBENCH_DATA/<name>` as an image folder or as torchvision lays it out; torchvision's download; else an error that
says what to do. Nothing is downloaded unless a run needs it. Names match whatever their capitals.

A set of its own is a function in a file here and a line of DATA_SETS: it takes the suite's `options`, finds its files
by `common.data_folder`, and returns {"train": (inputs, targets), "test": (inputs, targets)}. Start with `shipped.py`.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from energybench.common import data_folder
from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.names import known_as
from energybench.common.safe_read import list_folder
from energybench.common.torchvision_shim import import_torchvision
from energybench.suite.tables import DataTable
from energybench.train.data import Data, Resident, StandIn, Store, Streamed
from energybench.train.images import Images, read_image
from energybench.train.trees import take
from energybench.workloads import catalogue, stand_in
from energybench.workloads.datasets import image_folders
from energybench.workloads.description import DataDescription
from energybench.workloads.models import call
from energybench.workloads.names import Names

Part = Literal["train", "test"]
Split = tuple[Any, Any]  # inputs, targets: tensors or trees of tensors


# Name → "module:function", imported when it is used.
DATA_SETS = {
    "digits": "energybench.workloads.datasets.shipped:digits",
    "mnist5k": "energybench.workloads.datasets.shipped:mnist5k",
}
NEEDS: dict[str, str] = {}  # name → the extra of energybench that it needs
NAMES = Names("data", "E402", DATA_SETS, NEEDS)
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


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
    use = settings.use if function is not None else known_as(settings.use, [*DATA_SETS, *TORCHVISION, *stand_in.KNOWN])
    source = use
    if function is None and (function := NAMES.load(use)) is not None:
        source = _named_source(use)
        if use in DATA_SETS:
            _check_options(use, settings.options, tuple(inspect.signature(function).parameters))
    elif function is None:
        _check_options(use, settings.options, ("size",))
    if settings.split is not None and (function is not None or use in TORCHVISION):
        message = f"'{use}' has a test part of its own, and split is for a folder of images"
        raise UsageError(Problem("E402", message, hint="take it out"))
    try:
        if function is not None:
            splits = _from_user(function, use, settings.options)
        else:
            splits, source = _find(use, settings, base or Path.cwd(), download)
    except UsageError:
        described = stand_in.describe(settings) if known and not _is_here(use) else None
        if described is None:
            raise
        return described
    (train, test) = (
        _subset(part, count) for part, count in zip(splits, (settings.subset, settings.test_subset), strict=True)
    )
    streamed = isinstance(train[0], list)
    size = _size(train[0], settings.options.get("size")) if streamed else None
    if size and 3 * size[0] * size[1] * (len(train[0]) + len(test[0])) <= settings.resident:
        train, test, size = _decode(train, size), _decode(test, size), None
        streamed = False
    content = {"train": train, "test": test, "size": size}
    described = _describe(content, streamed, source)
    name = re.sub(r"[^\w.-]", "_", use, flags=re.ASCII)[-80:]  # a path may be longer than any name
    file = cache / f"{name}-{described.sha256[:12]}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(content, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    shape = described.shape
    if settings.resize:
        if described.mean is None:
            raise UsageError(Problem("E402", f"'{use}' holds no images that could be resized", hint="remove resize"))
        shape = (shape[0], settings.resize, settings.resize)
    return described.model_copy(update={"file": str(file), "shape": shape})


def open_data(described: DataDescription, settings: DataTable, device: torch.device) -> tuple[Data, Data]:
    """(train, test) from what `prepare` left, memory-mapped; small sets go to the training device whole."""
    return open_part(described, settings, device, "train"), open_part(described, settings, device, "test")


def open_part(described: DataDescription, settings: DataTable, device: torch.device, part: Part) -> Data:
    """One of the two alone: what trains need not hold what it is judged by."""
    absent = described.kind == stand_in.KIND
    content = {} if absent else torch.load(str(described.file), mmap=True, weights_only=True)
    images = None
    if described.mean is not None and described.std is not None:
        images = Images(described.mean, described.std, settings.augment, device, settings.resize)
    inputs, targets = content.get(part, (None, None))
    store: Store
    if absent:
        store = StandIn(described.stored or described.shape, getattr(described, part), device)
    elif described.kind == "streamed":
        store = Streamed(inputs, targets, tuple(content["size"]), settings.workers, device)
    else:
        store = Resident(inputs, targets, device)
    return Data(store, images, drop_last=part == "train" and settings.drop_last)


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


def _from_user(function: Callable[..., Any], use: str, options: dict[str, Any]) -> tuple[Split, Split]:
    result = call(function, use, {}, options)
    if not isinstance(result, dict) or set(result) != {"train", "test"}:
        raise UsageError(
            Problem("E402", f"'{use}' must return {{'train': (inputs, targets), 'test': (inputs, targets)}}")
        )
    return tuple(result["train"]), tuple(result["test"])


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
    inputs, targets = part
    size = len(tree_leaves(targets)[0])
    if count is None or count >= size:
        return part
    index = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count].sort().values
    chosen = [inputs[i] for i in index.tolist()] if isinstance(inputs, list) else take(inputs, index)
    return chosen, take(targets, index)


def _size(files: list[str], side: Any) -> tuple[int, int]:
    """(height, width) all images are brought to: the suite's `options.size`, or the first image's own."""
    if side:
        return int(side), int(side)
    from PIL import Image

    with Image.open(files[0]) as image:
        return image.height, image.width


def _decode(part: Split, size: tuple[int, int]) -> Split:
    files, targets = part

    def read(file: str) -> Tensor | str:
        try:
            return read_image(Path(file), size)
        except Exception as error:  # a header that is whole and pixels that are not
            return image_folders.reason_of(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter lock
        images = list(pool.map(read, files))
    reasons = (image if isinstance(image, str) else None for image in images)
    image_folders.report_unreadable(zip(files, reasons, strict=True), Path(os.path.commonpath(files)).parent)
    return torch.stack([image for image in images if isinstance(image, Tensor)]), targets


def _describe(content: dict[str, Any], streamed: bool, source: str) -> DataDescription:
    (inputs, targets), (_, test_targets) = content["train"], content["test"]
    labels = targets if isinstance(targets, Tensor) and not targets.is_floating_point() else None
    first = tree_leaves(inputs)[0]
    shape = [3, *content["size"]] if streamed else list(first.shape[1:])
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    if streamed:
        spread = inputs[:: -(-len(inputs) // 256)]  # files are in the order of their classes
        sample = torch.stack([read_image(Path(file), tuple(content["size"])) for file in spread])
        mean, std = _moments(sample)
    elif isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.dim() == 4:
        mean, std = _moments(inputs)
    return DataDescription(
        source=source,
        kind="streamed" if streamed else "resident",
        shape=tuple(shape),
        classes=int(torch.cat([labels, test_targets]).max()) + 1 if labels is not None else None,
        mean=mean,
        std=std,
        train=len(tree_leaves(targets)[0]),
        test=len(tree_leaves(test_targets)[0]),
        sha256=_checksum(content),
    )


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of the 0–1 range, from exact integer sums."""
    mean, std = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.flatten().long(), minlength=256).double()
        values = torch.arange(256).double() / 255
        centre = (counts * values).sum() / counts.sum()
        mean.append(float(centre))
        std.append(max(float(((counts * (values - centre) ** 2).sum() / counts.sum()).sqrt()), 1e-6))
    return tuple(mean), tuple(std)


def _checksum(content: dict[str, Any]) -> str:
    """Over the samples, their shapes and types; for streamed sets over the files' names, sizes and labels."""
    digest = hashlib.sha256(str(content["size"]).encode())
    for part in ("train", "test"):
        inputs, targets = content[part]
        if isinstance(inputs, list):
            for file in inputs:
                digest.update(f"{Path(file).parent.name}/{Path(file).name}:{Path(file).stat().st_size};".encode())
        for leaf in [*([] if isinstance(inputs, list) else tree_leaves(inputs)), *tree_leaves(targets)]:
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype};".encode())
            digest.update(leaf.contiguous().numpy().tobytes())
    return digest.hexdigest()


def __getattr__(name: str) -> Any:
    """A data set's function by its name, for scripts: `from energybench.workloads.datasets import digits`."""
    if name in DATA_SETS:
        return NAMES.load(name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
