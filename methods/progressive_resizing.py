"""progressive_resizing: train on smaller images first: of side s(p)·H, s growing from `start` to 1 with the progress p.

s(p) = start while p < delay, start + (1 − start)·(p − delay)/(until − delay) up to `until`, and 1 from there on; sides
are rounded to a multiple of some pixels. An epoch has one size, and the last has the whole images, as evaluation has.
Images are resized bilinearly with antialiasing, in the step, which pays for it; masks and boxes go with them.

Sources: Howard et al. 2018, DAWNBench (fastai); Tan & Le 2021, EfficientNetV2, §4, without its growing augmentation;
the schedule is that of Composer's ProgressiveResizing, epoch by epoch. Promises the FLOPs of the pixels left out: those
of a convolution go with the positions of its output. Costs resizing each batch, and quality where details matter; small
convolutions use a processor less well than large ones do.
Composes with everything that leaves `step` alone. A model that takes one size alone is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from energybench import Batch, Method, TrainingRun, Work
from energybench.algorithms.epoch_counter import EpochCounter
from energybench.algorithms.retraced import Lines, PlainTwin, Variant, failure, in_a_line, on_meta, remade
from energybench.flops.ledger import copy_on
from energybench.flops.work import PROBE
from energybench.train.facts import Facts
from energybench.train.geometry import Size, resize_boxes, resize_masks
from energybench.train.images import is_mask

UNTRACED = "the model cannot be traced, and not every product of it goes with the number of pixels"


@dataclass
class ProgressiveResizing(Method):
    """start:    share of the side with which training begins, in (0, 1]

    delay:    share of training that has this size
    until:    share of training after which images are whole, whatever `delay` is
    multiple: of which both sides are while images are smaller, in pixels
    """

    by_epoch: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    trains_less: ClassVar[bool | None] = False

    start: Annotated[float, Field(gt=0, le=1)] = 0.5
    delay: Annotated[float, Field(ge=0, le=1)] = 0.5
    until: Annotated[float, Field(ge=0, le=1)] = 0.8
    multiple: Annotated[int, Field(ge=1)] = 4

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ValueError(f"start is a share of the side in (0, 1], not {self.start}")
        for name in ("delay", "until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of training in [0, 1], not {getattr(self, name)}")
        if self.multiple < 1:
            raise ValueError(f"multiple is 1 pixel or more, not {self.multiple}")

    def scale(self, epoch: int, epochs: int) -> float:
        """Share of the side in an epoch, counted from 1; progress is 0 in the first and 1 in the last."""
        progress = (epoch - 1) / (epochs - 1) if epochs > 1 else 1.0
        if progress >= self.until:
            return 1.0
        if progress < self.delay:
            return self.start
        return self.start + (1 - self.start) * (progress - self.delay) / (self.until - self.delay)

    def side(self, whole: int, scale: float) -> int:
        """Of images whose side is `whole`: pixels."""
        if scale >= 1:
            return whole
        return min(whole, max(self.multiple, self.multiple * round(scale * whole / self.multiple)))

    def incompatible_run(self, run: TrainingRun) -> str | None:
        self._twin = PlainTwin(run)
        if self.start == 1:
            return None
        if run.epochs < 2:
            return "an epoch has one size, the last has whole images, and there is one epoch"
        smallest = max(1, min(run.data.sizes(run.recipe.batch)) // run.recipe.accumulate)
        batch = next(iter(run.data.load([torch.arange(min(2, smallest))])))
        if (image := next(_images(batch.inputs), None)) is None:
            return "its inputs are no images, (batch, channels, height, width) of floating point"
        size = _size(image)
        if (spatial := _unknown_targets(batch.targets, size, run.data.facts)) is not None:
            return (
                f"its targets {spatial} have the size of the images and are no masks: they would not be resized alike"
            )
        scales = sorted({self.scale(epoch, run.epochs) for epoch in range(1, run.epochs + 1)})
        if all(self._sized(size, scale) == size for scale in scales):
            return f"images of {size[0]} × {size[1]} pixels stay as they are in steps of {self.multiple} pixels"
        return self._fails_at(run, batch, size, scales)

    def _fails_at(self, run: TrainingRun, batch: Batch, size: Size, scales: list[float]) -> str | None:
        """The model's own word against a size, from a forward pass on meta, or on a copy where it needs numbers."""
        twin, tried = self._twin.model, on_meta(batch)
        if failure(run, twin, tried) is not None:
            twin, tried = copy_on(run.model, run.device), batch
            if failure(run, twin, tried) is not None:  # whole images too: not for this method to tell
                return None
        for height, width in sorted({self._sized(size, scale) for scale in scales}):
            scale = next(s for s in scales if self._sized(size, s) == (height, width))
            if error := failure(run, twin, self._resized(run, tried, scale)):
                return f"it takes no images of {height} × {width} pixels ({in_a_line(error)})"
        return None

    def _sized(self, size: Size, scale: float) -> Size:
        return self.side(size[0], scale), self.side(size[1], scale)

    def setup(self, run: TrainingRun) -> None:
        self._run = run
        self.acted = False if self.start < 1 else None
        self._samples: EpochCounter[float] = EpochCounter(run)  # by scale
        self._steps: EpochCounter[float] = EpochCounter(run)
        self._traced: dict[float, Lines | None] = {}
        self._sizes: dict[float, Size] = {}

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        self._twin.see(batch)
        scale = self.scale(run.epoch_number, run.epochs)
        size = _size(next(_images(batch.inputs))) if scale < 1 else (0, 0)
        smaller = self._sized(size, scale)
        if smaller == size:
            scale = 1.0
        else:
            batch = self._resized(run, batch, scale)
            run.tally.mark(self, f"images={smaller[0]}x{smaller[1]}")
            self._sizes[scale] = smaller
        self._samples.add(scale, len(batch))
        self._steps.add(scale)
        inner(batch)

    @torch.no_grad()
    def _resized(self, run: TrainingRun, batch: Batch, scale: float) -> Batch:
        def resized(one: Batch, facts: Facts) -> Batch:
            image = next(_images(one.inputs), None)
            targets = one.targets if image is None else self._targets(one.targets, _size(image), scale, facts)
            parts = run.data.parts
            also = {name: resized(o, parts[name].facts if name in parts else facts) for name, o in one.also.items()}
            return replace(one, inputs=tree_map(self._image(scale), one.inputs), targets=targets, also=also)

        return resized(batch, run.data.facts)

    def _image(self, scale: float) -> Callable[[Any], Any]:
        def resized(leaf: Any) -> Any:
            if not _is_image(leaf) or self._sized(_size(leaf), scale) == _size(leaf):
                return leaf
            size = self._sized(_size(leaf), scale)
            wide = leaf if leaf.dtype == torch.float64 else leaf.float()  # no narrow kernel everywhere
            return F.interpolate(wide, size, mode="bilinear", antialias=True, align_corners=False).to(leaf.dtype)

        return resized

    def _targets(self, targets: Any, size: Size, scale: float, facts: Facts) -> Any:
        smaller = self._sized(size, scale)
        if smaller == size:
            return targets
        if facts.targets == "mask":
            return tree_map(lambda leaf: resize_masks(leaf, smaller) if is_mask(leaf, size) else leaf, targets)
        if facts.targets == "boxes" and isinstance(targets, dict):
            return resize_boxes(targets, size, smaller)
        return targets

    def estimate(self, work: Work) -> Work:
        """The ledger traced anew at every size, each with its share of the samples."""
        samples, steps = self._samples.of(work), self._steps.of(work)
        if not self._sizes or not samples:
            return work
        plain = self._lines(1.0)
        sized = {scale: self._lines(scale) for scale in samples}
        variants = [
            Variant(samples[scale] / samples.total(), steps[scale] / steps.total(), lines)
            for scale, lines in sized.items()
            if lines is not None
        ]
        if plain is not None and len(variants) == len(sized):
            return remade(work, plain, variants, unchanged=PROBE)
        self.gap_because = UNTRACED
        pixels = share_of_pixels(samples)
        return work.change(lambda line: 1.0 if line.phase == PROBE else pixels)

    def _lines(self, scale: float) -> Lines | None:
        if scale not in self._traced:
            batch = partial(self._resized, self._run, scale=scale) if scale < 1 else lambda batch: batch
            self._traced[scale] = self._twin.lines(self._run, batch=batch)
        return self._traced[scale]

    def diagnostics(self) -> dict[str, Any]:
        names = {scale: f"{size[0]}x{size[1]}" for scale, size in self._sizes.items()}
        by_size: Counter[str] = Counter()
        for scale, count in sorted(self._samples.whole().items()):
            by_size[names.get(scale, "whole")] += count
        return {"samples_by_size": dict(by_size)}


def share_of_pixels(samples: Counter[float]) -> float:
    """That so many samples of each scale have, of as many whole ones."""
    return math.fsum(count * scale**2 for scale, count in samples.items()) / samples.total()


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == 4 and leaf.is_floating_point()


def _images(inputs: Any) -> Iterator[Tensor]:
    return filter(_is_image, tree_leaves(inputs))


def _size(image: Tensor) -> Size:
    return (image.shape[-2], image.shape[-1])


def _unknown_targets(targets: Any, size: Size, facts: Facts) -> str | None:
    """The shape of targets that have a value for every pixel, and are no masks."""
    for leaf in tree_leaves(targets):
        spatial = isinstance(leaf, Tensor) and leaf.dim() > 2 and tuple(leaf.shape[-2:]) == size
        if spatial and not (facts.targets == "mask" and is_mask(leaf, size)):
            return str(tuple(leaf.shape[1:]))
    return None
