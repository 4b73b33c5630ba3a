"""From image files to tensors where they fit, and from content to what the record says of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure

from energybench.common.errors import Problem, UsageError
from energybench.suite.tables import DataTable
from energybench.train.facts import Facts
from energybench.train.images import is_image, read_image, read_mask
from energybench.train.trees import paths
from energybench.workloads.datasets import image_folders
from energybench.workloads.datasets.data_facts import Content, Split, Told, are_files, size_of
from energybench.workloads.description import DataDescription, ImageMoments


def decoded(content: Content, use: str, settings: DataTable) -> Content:
    """With tensors in place of files where they fit into `resident`, and without a size then."""
    if not are_files(content.train[0]):
        return replace(content, size=None)
    size = content.size or _size(content.train[0], settings.options.get("size"))
    pixels = size[0] * size[1] * (3 + are_files(content.train[1]))
    decode_one = partial(_decode, size=size, zero_is_void=content.zero_is_void)
    if pixels * sum(map(size_of, content.parts.values())) > settings.resident:
        message = f"the further parts of '{use}' are kept on the device, and do not fit"
        raise UsageError(Problem("E402", message, hint="raise resident, or make them smaller"))
    content = replace(content, parts={name: decode_one(part) for name, part in content.parts.items()}, size=size)
    if pixels * (size_of(content.train) + size_of(content.test)) > settings.resident:
        return content
    return replace(content, train=decode_one(content.train), test=decode_one(content.test), size=None)


def _size(files: list[str], side: Any) -> tuple[int, int]:
    """(height, width) all images are brought to: the suite's `options.size`, or the first image's own."""
    if side:
        return int(side), int(side)
    from PIL import Image

    with Image.open(files[0]) as image:
        return image.height, image.width


def _decode(part: Split, size: tuple[int, int], zero_is_void: bool = False) -> Split:
    files, targets = part
    images = _read_all(files, lambda file: read_image(file, size)) if are_files(files) else files
    if are_files(targets):
        targets = _read_all(targets, lambda file: read_mask(file, size, zero_is_void))
    return images, targets


def _read_all(files: list[str], read_one: Callable[[Path], Tensor]) -> Tensor:
    def read(file: str) -> Tensor | str:
        try:
            return read_one(Path(file))
        except Exception as error:  # a header that is whole and pixels that are not
            return image_folders.reason_of(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter lock
        images = list(pool.map(read, files))
    reasons = (image if isinstance(image, str) else None for image in images)
    image_folders.report_unreadable(zip(files, reasons, strict=True), Path(os.path.commonpath(files)).parent)
    return torch.stack([image for image in images if isinstance(image, Tensor)])


def describe(content: dict[str, Any], source: str, facts: Facts, told: Told) -> DataDescription:
    """What is known of decoded content: train, test, the size of files, further parts."""
    inputs, _ = content["train"]
    streamed = content["size"] is not None
    first = tree_leaves(inputs)[0]
    shape = [3, *content["size"]] if streamed else list(first.shape[1:])
    images: dict[str, ImageMoments] = {}
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    if streamed:
        spread = inputs[:: -(-len(inputs) // 256)]  # files are in the order of their classes
        sample = torch.stack([read_image(Path(file), tuple(content["size"])) for file in spread])
        mean, std = _moments(sample)
    elif isinstance(inputs, Tensor):
        mean, std = _moments(inputs) if is_image(inputs) else (None, None)
    else:
        for path, leaf in zip(paths(inputs), tree_leaves(inputs), strict=True):
            if is_image(leaf):
                of_leaf = _moments(leaf)
                images[path] = ImageMoments(mean=of_leaf[0], std=of_leaf[1])
    return DataDescription(
        source=source,
        kind="streamed" if streamed else "resident",
        shape=tuple(shape),
        classes=facts.classes,
        mean=mean,
        std=std,
        images=images,
        targets=facts.targets,
        void=facts.void,
        class_names=facts.class_names,
        extra=dict(facts.extra),
        train=size_of(content["train"]),
        test=size_of(content["test"]),
        parts={name: size_of(part) for name, part in content.get("parts", {}).items()},
        sha256=_checksum(content, told),
    )


def layout(content: dict[str, Any]) -> str:
    """A few letters that tell trees of the same tensors apart; empty for plain tensors and files."""
    splits = {"train": content["train"], "test": content["test"], **content.get("parts", {})}
    plain = all(isinstance(tree, Tensor) or are_files(tree) for split in splits.values() for tree in split)
    if plain:
        return ""
    named = [
        (name, [None if tree is None else str(tree_structure(tree)) for tree in split])
        for name, split in splits.items()
    ]
    return "-" + hashlib.sha256(json.dumps(named).encode()).hexdigest()[:6]


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


def _checksum(content: dict[str, Any], told: Told) -> str:
    """Over the samples, their shapes and types; for streamed sets over the files' names, sizes and labels; and over
    the names of further parts and the facts that were told."""
    digest = hashlib.sha256(str(content["size"]).encode())
    further = content.get("parts", {})
    for name, (inputs, targets) in {"train": content["train"], "test": content["test"], **further}.items():
        if name in further:
            digest.update(f"part {name}{'' if targets is not None else ', no targets'};".encode())
        for file in [file for tree in (inputs, targets) if are_files(tree) for file in tree]:
            digest.update(f"{Path(file).parent.name}/{Path(file).name}:{Path(file).stat().st_size};".encode())
        trees = [tree for tree in (inputs, targets) if not are_files(tree) and tree is not None]
        for leaf in [leaf for tree in trees for leaf in tree_leaves(tree)]:
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype};".encode())
            digest.update(leaf.contiguous().numpy().tobytes())
    if told.given or content.get("zero_is_void"):
        digest.update(json.dumps([told.given, content.get("zero_is_void", False)], sort_keys=True).encode())
    return digest.hexdigest()
