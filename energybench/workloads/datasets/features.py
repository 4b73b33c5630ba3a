"""Features as data: what a frozen backbone makes of another set's images, computed once and kept.

The images pass in batches of AT_ONCE, in their order, prepared as training would hand them over and not augmented,
through the backbone in evaluation mode, on the CPU. What comes out is kept in the user's cache under a key of all that
it depends on: the images, how they are prepared, the backbone's weights tensor by tensor, the layer, the versions of
torch, of torchvision and of energybench itself. A suite's cells all train on the same features.

The cost of this is no trial's: it is counted and told, in the notes of the data in the record, and is in no figure.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from energybench.common.hashing import digest
from energybench.common.units import format_flop
from energybench.flops.counter import Counter
from energybench.suite.tables import DataTable
from energybench.train.data import Data
from energybench.train.fingerprint import fingerprint
from energybench.workloads import datasets, stand_in
from energybench.workloads.datasets import kept_tensors
from energybench.workloads.datasets.backbones import (
    CPU,
    OF_A_SET,
    Backbone,
    backbone_of,
    decoded,
    read_table,
    refusal,
    versions,
)
from energybench.workloads.datasets.data_facts import Content, of_function
from energybench.workloads.datasets.kept_tensors import Kept
from energybench.workloads.description import DataDescription
from energybench.workloads.models.features import Extractor

KIND = "features"
AT_ONCE = 64  # images of a pass
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # per channel, as torchvision's files were trained
MOST_OF_MEMORY = 0.5
OUTER = ("batch", "subset", "test_subset")  # which the suite says of the features, and so of the images


def features(
    of: str | dict[str, Any],
    backbone: str | dict[str, Any] = "vgg_small",
    trained_on: str | dict[str, Any] | None = None,
    layer: str | None = None,
    pool: int | None = None,
    standardised_by: Literal["data", "imagenet"] = "data",
    seed: int = 0,
    *,
    _asked: datasets.Asked | None = None,
) -> Content | DataDescription:
    """What a frozen backbone makes of another data set's images, computed once, outside of every measured window.

    of:              the set: a name, a folder, or a table as `data` has it: use, options, split, split_seed, resize
    backbone:        a model by its name, or a table as `model` has it: use, its parameters, weights = "file.pt", and
                     classes, those of that file's head, by default 1000
    trained_on:      a set of images with classes on which the backbone is trained first, or a table as `data` has it,
                     with epochs and lr; without it, and without a file, its weights are random
    layer:           name of the layer whose output is taken; by default what the last linear layer is given
    pool:            side to which the layer's maps are averaged
    standardised_by: mean and deviation per channel: those of the set, or those of torchvision's files of ImageNet
    seed:            of the backbone's first weights, and of its training

    Raises UsageError E402 for what cannot be had, E401 for a backbone that cannot be.
    """
    _check_options(layer, pool, standardised_by, seed)
    if _asked is None:  # a script's
        with tempfile.TemporaryDirectory(prefix="energybench-features-") as folder:
            asked = datasets.Asked(DataTable(use=KIND, batch=1), Path(folder), Path.cwd())
            return features(of, backbone, trained_on, layer, pool, standardised_by, seed, _asked=asked)
    asked = _asked
    settings = read_table(DataTable, _with_subsets(of, asked), "of", (*OF_A_SET, *OUTER))
    described = _standardised(_images(decoded(settings, "of", asked), settings.use), standardised_by)
    found = backbone_of(backbone, trained_on, described.shape, seed, asked)
    extractor, shape, flop = _probed(found, layer, pool, described.shape)
    samples = described.train + described.test
    _refuse_too_large(shape, samples)
    name = f"features of {settings.use} by {found.words}"
    cost = _cost(flop * samples, samples, found.flop)
    lacking = f"'{settings.use}' is not on this machine" if described.kind == stand_in.KIND else found.lacking
    if lacking:
        return _standing_in(described, shape, f"{name}: {lacking}; {cost}")
    what = [described.sha256, described.shape, described.mean, described.std, found.use, dict(found.parameters)]
    weights = fingerprint(found.model)
    key = digest([KIND, kept_tensors.FORMAT, *what, weights, extractor.layer, layer, pool, AT_ONCE, *versions()])
    kept, how = kept_tensors.read(KIND, key), "read from the cache"
    if kept is None and asked.known:
        return _standing_in(described, shape, f"{name}: they are not computed yet; {cost}")
    if kept is None:
        kept, how = _computed(extractor, described, settings, shape), "computed now"
        unkept = kept_tensors.write(KIND, key, kept) or found.unkept
        how += f", and not kept for the next run: {unkept}" if unkept else ""
    tensors = kept.tensors
    result = {part: (tensors[f"{part}.inputs"], tensors[f"{part}.targets"]) for part in ("train", "test")}
    facts = {"targets": described.targets, "classes": described.classes, "class_names": described.class_names}
    content = of_function({**result, "facts": facts}, KIND)
    note = f"{name}: {cost}; {how}; sha256 of the backbone {weights[:12]}"
    return replace(content, source=f"features of {settings.use} by {found.use}", notes=(note,))


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _with_subsets(of: Any, asked: datasets.Asked) -> Any:
    """The table with the parts of the set that the suite keeps, so that no other image passes through the backbone."""
    values = {"use": of} if isinstance(of, str) else of
    if not isinstance(values, dict):
        return values
    if said := [key for key in (*OUTER, "augment") if key in values]:
        hint = "images are not augmented" if said[0] == "augment" else f'write it beside use = "{KIND}"'
        raise refusal(f"options.of takes no key '{said[0]}'", hint)
    outer = {key: getattr(asked.settings, key) for key in OUTER}
    return values | {key: value for key, value in outer.items() if value is not None}


def _check_options(layer: Any, pool: Any, standardised_by: Any, seed: Any) -> None:
    if layer is not None and not (isinstance(layer, str) and layer):
        raise refusal(f"options.layer is {layer!r}; expected the name of a layer", 'layer = "features"')
    if pool is not None and (isinstance(pool, bool) or not isinstance(pool, int) or pool < 1):
        raise refusal(f"options.pool is {pool!r}; expected a whole number, 1 at least", "pool = 2")
    if standardised_by not in ("data", "imagenet"):
        raise refusal(f"options.standardised_by is {standardised_by!r}", '"data", or "imagenet"')
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise refusal(f"options.seed is {seed!r}; expected a whole number, 0 at least", "seed = 0")


def _images(described: DataDescription, use: str) -> DataDescription:
    """Raises UsageError E402 for what a backbone cannot look at, or whose features nothing could be learned from."""
    if described.mean is None:
        raise refusal(f"'{use}' holds no images that a backbone could look at", "uint8 (N, channels, height, width)")
    if described.targets not in ("class", "value"):
        message = f"the targets of '{use}' are of the kind '{described.targets}'"
        raise refusal(f"{message}, and features are of whole images", "a set with one class for each image")
    if described.parts:
        parts = ", ".join(described.parts)
        raise refusal(f"'{use}' has further parts ({parts}), and features are made of train and test alone")
    return described


def _standardised(described: DataDescription, by: str) -> DataDescription:
    if by == "data":
        return described
    if described.shape[0] != len(IMAGENET[0]):
        raise refusal(f"images of ImageNet have 3 channels, and these {described.shape[0]}", 'standardised_by = "data"')
    return described.model_copy(update={"mean": IMAGENET[0], "std": IMAGENET[1]})


# ── what it is, and what it costs ─────────────────────────────────────────────────────────────────────────────────────


def _probed(
    found: Backbone, layer: str | None, pool: int | None, shape: tuple[int, ...]
) -> tuple[Extractor, tuple[int, ...], int]:
    """The frozen backbone up to its layer, the shape of an image's features, and the FLOPs that one takes."""
    try:
        extractor = Extractor(found.model, layer, pool)
        with Counter() as counter:
            one = extractor(torch.zeros(1, *shape))
        unlearned = extractor.uses(found.fresh, shape) if found.fresh else []
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        message = f"'{found.use}' gives no features of images of {'×'.join(map(str, shape))}: {reason}"
        raise refusal(message, 'a layer of it, such as layer = "features"; or resize in of') from None
    if unlearned:
        message = f"features would pass through weights that the file lacks: {', '.join(unlearned[:3])}"
        raise refusal(message, "a file that has them, or a layer before them")
    return extractor, tuple(one.shape[1:]), counter.total


def _refuse_too_large(shape: tuple[int, ...], samples: int) -> None:
    size_b = samples * torch.Size(shape).numel() * 4
    memory_b = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size_b > MOST_OF_MEMORY * memory_b:
        message = f"features of {samples:,} images take {size_b / 1e9:,.1f} GB; this machine has {memory_b / 1e9:,.1f}"
        raise refusal(message, "pool = 1, a later layer, or a subset")


def _cost(flop: float, samples: int, training_flop: float | None) -> str:
    """In words, whatever way the features are had this time."""
    trained = f" and {format_flop(training_flop)} to train the backbone" if training_flop else ""
    trained = " and the training of the backbone" if training_flop is None else trained
    return f"{format_flop(flop)} for {samples:,} images{trained}, once, for all cells alike and in none of the figures"


def _standing_in(described: DataDescription, shape: tuple[int, ...], note: str) -> DataDescription:
    """For `check` and `flops`: features that nobody has computed, of which all but the numbers is known."""
    return DataDescription(
        source=f"{note.partition(':')[0]}, of which no number is known here",
        kind=stand_in.KIND,
        stored=shape,
        shape=shape,
        classes=described.classes,
        targets=described.targets,
        class_names=described.class_names,
        train=described.train,
        test=described.test,
        sha256="unknown",
        notes=(f"{note}; zeros stand in for them",),
    )


def _computed(extractor: Extractor, described: DataDescription, settings: DataTable, shape: tuple[int, ...]) -> Kept:
    """Of every image, in order. Raises UsageError E402 for features that are no finite numbers."""
    parts = datasets.open_data(described, settings, CPU)
    tensors: dict[str, Tensor] = {}
    for name, data in zip(("train", "test"), parts, strict=True):
        tensors[f"{name}.inputs"], tensors[f"{name}.targets"] = _of_part(extractor, data, shape, name)
    return Kept(tensors, {})


def _of_part(extractor: Extractor, data: Data, shape: tuple[int, ...], name: str) -> tuple[Tensor, Tensor]:
    found, targets, filled = torch.empty(len(data), *shape), [], 0
    for batch in data.in_order(AT_ONCE):
        if not isinstance(batch.targets, Tensor):
            raise refusal("the targets are a tree", "one tensor of classes, (N,)")
        rows = extractor(batch.inputs)
        if not bool(rows.isfinite().all()):
            raise refusal(f"the backbone gives numbers that are not finite, of the part '{name}'", "another backbone")
        found[filled : filled + len(rows)] = rows
        filled += len(rows)
        targets.append(batch.targets)
    return found, torch.cat(targets)
