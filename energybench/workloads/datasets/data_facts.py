"""What a data function returned: checked before anything is kept of it, and what its targets are.

A function says what it knows in "facts"; the rest is read from the tensors. What only a person can know, such as
whether an image may be mirrored without changing its number, is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from energybench.common.errors import Problem, UsageError, nearest
from energybench.train.facts import NO_OBJECT, TARGETS, Facts, Targets
from energybench.train.images import image_size, is_image, is_mask, parse
from energybench.train.trees import count, paths

Split = tuple[Any, Any]  # inputs, targets: tensors or trees of tensors; or paths of images, and of masks
OWN = ("train", "test", "facts")  # what a data function's mapping has of its own; other keys are further parts
VOID = 255  # of a mask, where nothing else is said: as VOC, Cityscapes and ADE20K's readers have it
SHAPE = "{'train': (inputs, targets), 'test': (inputs, targets)}"
RESERVED = ("shape", "classes", "void")  # what a model function is told beside `extra`


class Told(BaseModel):
    """The "facts" that a data function may return; `void = None` says that every label is a class."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    targets: Targets | None = None
    classes: int | None = Field(default=None, ge=1)
    void: int | None = None
    class_names: tuple[str, ...] = ()
    extra: dict[str, int | float | str] = Field(default_factory=dict)

    @property
    def given(self) -> dict[str, Any]:
        """What was said, as a checksum takes it."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


@dataclass(frozen=True)
class Content:
    """A data set before it is decoded.

    size:   (height, width) that files are brought to; None: the first one's
    source: what it is in words, where its name does not say it
    notes:  what else there is to say of how it was made, a sentence each
    """

    train: Split
    test: Split
    parts: Mapping[str, Split] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    size: tuple[int, int] | None = None
    zero_is_void: bool = False
    source: str = ""
    notes: tuple[str, ...] = ()


def of_function(result: Any, use: str) -> Content:
    """What a function returned. Raises UsageError E402 for what is no data set."""
    if not isinstance(result, Mapping) or not {"train", "test"} <= set(result):
        raise UsageError(Problem("E402", f"'{use}' must return {SHAPE}"))
    told = read_told(result.get("facts", {}), use)
    splits: dict[str, Split] = {}
    for name, part in result.items():
        if name == "facts":
            continue
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            hint = nearest(str(name), OWN)
            hint = hint if hint.startswith("did") and name not in OWN else "targets may be None"
            message = f"'{use}' must return {SHAPE}, and its part '{name}' is {_kind(part)}, not (inputs, targets)"
            raise UsageError(Problem("E402", message, hint=hint))
        splits[str(name)] = (part[0], part[1])
    for name, part in splits.items():
        _check_part(use, name, part)
    content = Content(splits.pop("train"), splits.pop("test"), splits, told)
    _check_alike(use, content)
    return content


def _kind(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else f"of type {type(value).__name__}"


def read_told(given: Any, use: str) -> Told:
    """What `use` says of its targets. Raises UsageError E402 for what cannot be said."""
    if not isinstance(given, Mapping):
        raise UsageError(Problem("E402", f"'{use}': facts are {_kind(given)}, not a mapping", hint="see Facts"))
    values = dict(given)
    if isinstance(values.get("class_names"), list):
        values["class_names"] = tuple(values["class_names"])
    try:
        told = Told.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        hint = nearest(where, Told.model_fields) if first["type"] == "extra_forbidden" else ""
        hint = hint or (f"one of {', '.join(TARGETS)}" if where == "targets" else "")
        raise UsageError(Problem("E402", f"'{use}': facts.{where}: {first['msg']}", hint=hint)) from None
    if told.class_names and told.classes not in (None, len(told.class_names)):
        message = f"'{use}': facts have {told.classes} classes and {len(told.class_names)} class_names"
        raise UsageError(Problem("E402", message))
    if taken := [name for name in told.extra if name in RESERVED or not name.isidentifier()]:
        message = f"'{use}': facts.extra cannot have '{taken[0]}'"
        hint = "a model function takes it by its name, and is told shape, classes and void itself"
        raise UsageError(Problem("E402", message, hint=hint))
    return told


def are_files(tree: Any) -> bool:
    """Whether they are paths, one a sample, and no tree of tensors."""
    return isinstance(tree, list) and bool(tree) and all(isinstance(item, str) for item in tree)


def size_of(split: Split) -> int:
    """How many samples it has."""
    inputs, targets = split
    return len(inputs) if are_files(inputs) else count(targets, inputs) or 0


def _check_part(use: str, name: str, split: Split) -> None:
    """Raises UsageError E402 where samples and targets do not pair."""
    inputs, targets = split
    if are_files(inputs) and (are_files(targets) or targets is None):
        sizes = {len(inputs), len(inputs if targets is None else targets)}
        lengths = [("targets", len(targets or inputs))]
    else:
        trees = [("inputs", [] if are_files(inputs) else inputs), ("targets", targets)]
        lengths = [(_at(role, path), len(leaf)) for role, path, leaf in _tensors(use, name, trees)]
        sizes = {length for _, length in lengths} | ({len(inputs)} if are_files(inputs) else set())
    if not sizes or sizes == {0}:
        raise UsageError(Problem("E402", f"'{use}': the part '{name}' has no samples"))
    if len(sizes) > 1:
        words = ", ".join(f"{where} {length:,}" for where, length in lengths[:5])
        raise UsageError(Problem("E402", f"'{use}': the part '{name}' does not pair up: {words}", hint="(N, ...) each"))


def _tensors(use: str, name: str, trees: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str, Tensor]]:
    for role, tree in trees:
        for path, leaf in zip(paths(tree), tree_leaves(tree), strict=True):
            if isinstance(leaf, Tensor) and leaf.dim():
                yield role, path, leaf
            elif type(leaf).__module__ == "numpy" or isinstance(leaf, Tensor):
                what = "a tensor without a dimension" if isinstance(leaf, Tensor) else "an array of NumPy"
                message = f"'{use}': {_at(role, path)} of '{name}' is {what}"
                raise UsageError(Problem("E402", message, hint="torch.from_numpy(array), (N, ...)"))
            elif role == "inputs" or path or leaf is not None:
                message = f"'{use}': {_at(role, path)} of '{name}' is of type {type(leaf).__name__}, and no tensor"
                raise UsageError(Problem("E402", message, hint="tensors (N, ...), or trees of them"))


def _at(role: str, path: str) -> str:
    return f"{role}.{path}" if path else role


def _check_alike(use: str, content: Content) -> None:
    """Raises UsageError E402 where a part has targets that the training set lacks, or other inputs."""
    if (content.train[1] is None) != (content.test[1] is None):
        message = f"'{use}': one of train and test has no targets"
        raise UsageError(Problem("E402", message, hint="None for both, or for none"))
    leaves, structure = tree_flatten(content.train[0])
    for name, (inputs, _) in content.parts.items():
        others, other_structure = tree_flatten(inputs)
        if are_files(inputs) and are_files(content.train[0]):
            continue
        same = structure == other_structure and all(map(_same, leaves, others))
        if not same:
            message = f"'{use}': the inputs of '{name}' are not those of 'train' in structure, shape or type"
            raise UsageError(Problem("E402", message, hint="one model is given both"))


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other)
    return one.shape[1:] == other.shape[1:] and one.dtype == other.dtype


# ── what the targets are ──────────────────────────────────────────────────────────────────────────────────────────────


def facts_of(content: Content, use: str) -> Facts:
    """What was told, and what can be read from the training part, of which files have been decoded where they fit.

    Raises UsageError E402 where the two do not go together.
    """
    told, (inputs, targets) = content.told, content.train
    size = content.size if are_files(inputs) else image_size(inputs)
    kind = told.targets or _kind_of(targets, size)
    _check_kind(use, kind, targets, size)
    every = [content.train, content.test, *content.parts.values()]
    labels = [] if told.targets == "value" else [leaf for _, each in every for leaf in _labels(kind, each)]
    void = told.void
    if kind == "mask" and "void" not in told.model_fields_set and (told.classes or 0) <= VOID:
        void = VOID if any(bool((leaf == VOID).any()) for leaf in labels) else None
    classes = told.classes or len(told.class_names) or None
    if labels:
        classes = _checked_classes(use, kind, labels, classes, void)
    return Facts(kind, classes, void, told.class_names, told.extra)


def _kind_of(targets: Any, size: tuple[int, int] | None) -> Targets:
    """As the tensors look; size: of the images."""
    if targets is None:
        return "none"
    if are_files(targets):
        return "mask"
    if _are_boxes(targets):
        return "boxes"
    leaves = [leaf for leaf in tree_leaves(targets) if isinstance(leaf, Tensor)]
    whole = all(not leaf.is_floating_point() and not leaf.is_complex() for leaf in leaves)
    if not whole:
        return "value"
    labels = [leaf for leaf in leaves if leaf.dim() == 1]
    if len(labels) == len(leaves):
        return "class"
    if size is not None and all(is_mask(leaf, size) for leaf in leaves if leaf.dim() > 1):
        return "mask"
    return "tokens" if isinstance(targets, Tensor) and targets.dim() == 2 else "value"


def _are_boxes(targets: Any) -> bool:
    if not isinstance(targets, Mapping) or not {"boxes", "labels"} <= set(targets):
        return False
    boxes, labels = targets["boxes"], targets["labels"]
    return isinstance(boxes, Tensor) and isinstance(labels, Tensor) and boxes.shape == (*labels.shape, 4)


def _check_kind(use: str, kind: Targets, targets: Any, size: tuple[int, int] | None) -> None:
    """Raises UsageError E402 for targets that are not what they are said to be."""
    problem = None
    if (kind == "none") != (targets is None):
        problem = f"targets are said to be '{kind}', and they are {'None' if targets is None else 'there'}"
    elif kind == "boxes":
        problem = _boxes_problem(targets, size)
    elif kind == "mask" and not are_files(targets):
        leaves = [leaf for leaf in tree_leaves(targets) if isinstance(leaf, Tensor)]
        if not any(leaf.dim() > 2 and not leaf.is_floating_point() for leaf in leaves):
            problem = "a mask is whole numbers (N, H, W)"
        elif size is not None and not any(is_mask(leaf, size) for leaf in leaves):
            problem = f"a mask has its image's size, {size[0]}×{size[1]}"
    if problem:
        raise UsageError(Problem("E402", f"'{use}': {problem}", hint="see the kinds of targets in docs/data.md"))


def _boxes_problem(targets: Any, size: tuple[int, int] | None) -> str | None:
    if not _are_boxes(targets) or targets["labels"].dim() != 2:
        return "boxes are {'boxes': (N, K, 4), 'labels': (N, K)}"
    boxes, labels = targets["boxes"], targets["labels"]
    if not boxes.is_floating_point() or labels.dtype != torch.int64:
        return f"boxes are of floats and their labels int64, not {boxes.dtype} and {labels.dtype}"
    objects = boxes[labels != NO_OBJECT]
    if not bool(objects.isfinite().all()):
        return "a box has a coordinate that is not finite"
    empty = int((objects[:, 2:] <= objects[:, :2]).any(-1).sum())
    if empty:
        return f"{empty:,} of {len(objects):,} boxes have no area: they are x₁, y₁, x₂, y₂, not x, y, width, height"
    if size is not None:
        centres, limits = (objects[:, :2] + objects[:, 2:]) / 2, objects.new_tensor([size[1], size[0]])
        outside = int(((centres < 0) | (centres > limits)).any(-1).sum())
        if outside:
            return f"{outside:,} of {len(objects):,} boxes lie outside their image of {size[0]}×{size[1]} pixels"
    return None


def _labels(kind: Targets, targets: Any) -> list[Tensor]:
    """The tensors whose numbers are classes: none, or all of one kind."""
    if targets is None or are_files(targets):
        return []
    if kind == "boxes":
        return [targets["labels"]] if _are_boxes(targets) else []
    leaves = [leaf for leaf in tree_leaves(targets) if isinstance(leaf, Tensor) and not leaf.is_floating_point()]
    if kind == "mask":
        return [leaf for leaf in leaves if leaf.dim() > 2]
    return leaves if isinstance(targets, Tensor) or (len(leaves) == 1 and kind != "value") else []


def _checked_classes(use: str, kind: Targets, labels: list[Tensor], classes: int | None, void: int | None) -> int:
    """How many. Raises UsageError E402 for a label that is none of them."""
    most, least = -1, 0
    for leaf in labels:
        wraps = leaf.dtype == torch.uint8 and void is not None and not 0 <= void <= VOID  # a comparison would
        numbers = leaf if void is None or wraps else leaf[leaf != void]
        if numbers.numel():
            most, least = max(most, int(numbers.max())), min(least, int(numbers.min()))
    if classes is not None and most >= classes:
        message = f"'{use}' has {classes} classes and a label {most}"
        raise UsageError(Problem("E402", message, hint="labels count from 0; one that is no class is facts.void"))
    lowest = {"mask": 0, "boxes": NO_OBJECT}.get(kind)
    if lowest is not None and least < lowest:
        message = f"'{use}' has a label {least}, and classes count from 0"
        hint = f'"facts": {{"void": {least}}}, where it stands for no class' if kind == "mask" else "-1: no object"
        raise UsageError(Problem("E402", message, hint=hint))
    if classes is None and most < 0 and kind in ("mask", "boxes"):
        raise UsageError(Problem("E402", f"'{use}' has no {'object' if kind == 'boxes' else 'label but void'}"))
    return most + 1 if classes is None else classes


# ── what may be done to the images ────────────────────────────────────────────────────────────────────────────────────


def refuse_augmentation(use: str, facts: Facts, augment: Iterable[str], inputs: Any, targets: Any) -> None:
    """Raises UsageError E402 where images would move and their targets stay.

    inputs, targets: of some samples
    """
    names = [name for name in augment if _kind_of_move(name)]
    if not names:
        return
    sizes = {tuple(leaf.shape[-2:]) for leaf in tree_leaves(inputs) if is_image(leaf)}
    if not are_files(inputs) and not sizes:
        message = f"'{use}' holds no images that could be augmented"
        raise UsageError(Problem("E402", message, hint="remove augment; images are uint8 (N, channels, height, width)"))
    crops = [name for name in names if _kind_of_move(name) == "crop"]
    problem, hint = None, "remove augment"
    if facts.targets in ("value", "tokens"):
        what = "numbers" if facts.targets == "value" else "tokens"
        problem = f"nobody says what the {what} of an image are when it has moved"
        hint += ', or return "facts": {"targets": "class"} where they stay the same'
    elif crops and len(sizes) > 1:
        problem = f"images of {len(sizes)} sizes would not be shifted alike"
    elif facts.targets == "mask" and crops and facts.void is None:
        problem = "what comes in at the border belongs to no class, and no label says void"
        hint = f"say which label is void, {VOID} for example: in the function's facts, or in options; or no {crops[0]}"
    elif facts.targets in ("mask", "boxes") and not are_files(targets):
        size = image_size(inputs)
        stays = [
            path
            for path, leaf in zip(paths(targets), tree_leaves(targets), strict=True)
            if isinstance(leaf, Tensor) and leaf.dim() > 1 and not _moves(facts.targets, path, leaf, size)
        ]
        problem = f"targets.{stays[0]} would not move with its image" if stays else None
    if problem:
        raise UsageError(Problem("E402", f"'{use}' cannot be augmented: {problem}", hint=hint))


def _kind_of_move(name: str) -> str | None:
    """None for one that is not known, which whoever reads the suite tells."""
    try:
        return parse(name)[0]
    except ValueError:
        return None


def _moves(kind: Targets, path: str, leaf: Tensor, size: Any) -> bool:
    return path in ("boxes", "labels") if kind == "boxes" else size is None or is_mask(leaf, size)
