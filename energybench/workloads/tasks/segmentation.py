"""Segmentation: cross-entropy on the label of every pixel; quality is the mean intersection over union.

A pixel whose label is the data's void is neither learned nor scored. The loss of a sample is the mean over its own
labelled pixels and that of a batch the mean over its samples, so that micro-batches and weighted samples add up
exactly; torch's own mean over all labelled pixels of a batch is the same where each sample has as many of them.

A test set is counted into one confusion matrix of whole numbers, of which the intersections over unions are taken:
a class counts where it occurs, in truth or in a prediction. Averaged over scales, the probabilities of the image at
several sizes, and mirrored, are brought back to its own size and averaged before the likeliest class is taken, as
Segmenter's evaluation does (Strudel et al. 2021); in GradSamp's Table 5 that is MS-IoU, and "miou" is SS-IoU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from energybench.common.metrics import Better, Metric
from energybench.train.batch import Batch, Forward
from energybench.train.method import Task
from energybench.workloads.metrics.confusion import Confusion

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

NO_VOID = -100  # torch's own number for a label that is never there
Scale = Annotated[float, Field(gt=0, le=8)]
_SHARE = Metric(better="higher", scale="fraction", least=0.0, most=1.0)


@dataclass
class Segmentation(Task):
    """Cross-entropy on the class of each pixel; quality is the mean intersection over union.

    inputs (B, C, H, W), targets (B, H, W) of class numbers; the model returns logits (B, classes, H, W).

    scales: also judge by the average over the image at these sizes, as "miou_multiscale" and
        "pixel_accuracy_multiscale": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    flips: and over the mirrored image at each of them
    """

    scales: tuple[Scale, ...] = ()
    flips: bool = False

    name = "segmentation"
    metrics: ClassVar[Mapping[str, Metric | Better]] = {
        "miou": _SHARE,
        "pixel_accuracy": _SHARE,
        "loss": Metric(better="lower", unit="nats", least=0.0),
        "miou_multiscale": _SHARE,
        "pixel_accuracy_multiscale": _SHARE,
    }

    def __post_init__(self) -> None:
        self.scales = tuple(self.scales)
        if any(not 0 < scale <= 8 for scale in self.scales):
            raise ValueError(f"a scale is above 0 and at most 8, not {list(self.scales)}")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"a scale stands twice in {list(self.scales)}")
        if self.flips and not self.scales:
            raise ValueError("flips are of the images at each of `scales`, and there are none: scales = [1.0]")

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        outputs = run.model(batch.inputs)
        each = self.losses(run, outputs, batch)
        return Forward(each.mean(), each, outputs)

    def losses(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean over each sample's labelled pixels (B,); 0 where it has none."""
        check_shapes(outputs, batch.targets)
        return sample_losses(outputs, batch.targets, run.data.facts.void, run.recipe.label_smoothing)

    def output_gradient(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """(softmax − target) / labelled pixels of the sample, 0 at void: (B, classes, H, W).

        s of the target is spread evenly over the classes.
        """
        smoothing, void = run.recipe.label_smoothing, run.data.facts.void
        labelled = labelled_pixels(batch.targets, void)
        known = torch.where(labelled, batch.targets, 0)[:, None]
        gradient = outputs.softmax(1) - smoothing / outputs.shape[1]
        gradient = gradient.scatter_add(1, known, gradient.new_full(known.shape, smoothing - 1))
        share = labelled / labelled.sum((1, 2), keepdim=True).clamp(min=1)
        return gradient * share[:, None]

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """miou and pixel_accuracy (0–1); mean loss of the samples that have a label, without label smoothing."""
        void = data.facts.void
        single, averaged = _Counted(void), _Counted(void, "_multiscale")
        loss, samples = 0.0, 0
        for batch in data.in_order(run.recipe.batch):  # no larger than what training has room for
            logits = run.model(batch.inputs)
            check_shapes(logits, batch.targets)
            single.add(logits, batch.targets)
            loss += sample_losses(logits, batch.targets, void).double().sum().item()
            samples += int(labelled_pixels(batch.targets, void).any(2).any(1).sum())
            if self.scales:
                averaged.add(at_scales(run.model, batch.inputs, self.scales, self.flips), batch.targets)
        return single.quality() | {"loss": loss / samples if samples else float("nan")} | averaged.quality()


class _Counted:
    """Predictions so far. ending: of the metrics' names."""

    def __init__(self, void: int | None, ending: str = "") -> None:
        self._void, self._ending = void, ending
        self._confusion: Confusion | None = None

    def add(self, scores: Tensor, targets: Tensor) -> None:
        """scores: (B, classes, H, W), of which the largest is the prediction."""
        if self._confusion is None:
            self._confusion = Confusion(scores.shape[1], scores.device)
        self._confusion.add(scores.argmax(1), targets, self._void)

    def quality(self) -> dict[str, float]:
        """Of what was counted; nothing where nothing was."""
        if self._confusion is None:
            return {}
        shares = self._confusion.intersection_over_union(), self._confusion.accuracy()
        return dict(zip((f"miou{self._ending}", f"pixel_accuracy{self._ending}"), shares, strict=True))


def labelled_pixels(targets: Tensor, void: int | None) -> Tensor:
    """Where a mask has a class: bool, of its shape."""
    return torch.ones_like(targets, dtype=torch.bool) if void is None else targets != void


def sample_losses(logits: Tensor, targets: Tensor, void: int | None, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, the mean over each sample's labelled pixels (B,); 0 where it has none.

    Args:
        logits: (B, classes, H, W); of half precision they are widened first, since thousands of pixels are summed
        targets: (B, H, W), int64
        void: the label that stands for no class
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ignored = NO_VOID if void is None else void
    each = F.cross_entropy(wide, targets, reduction="none", ignore_index=ignored, label_smoothing=smoothing)
    labelled = labelled_pixels(targets, void)
    each = torch.where(labelled, each, 0.0)  # torch smooths a void label that is below 0
    return each.sum((1, 2)) / labelled.sum((1, 2)).clamp(min=1)


def at_scales(model: nn.Module, images: Tensor, scales: Sequence[float], flips: bool) -> Tensor:
    """Probabilities (B, classes, H, W), averaged over the images at these scales, and mirrored.

    Args:
        model: takes images of any size, (B, C, h, w) → logits (B, classes, h, w)
        images: (B, C, H, W), normalised
        scales: of height and width, each of which is rounded to whole pixels, 1 at least
    """
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise TypeError("scales are of images (samples, channels, height, width), and the inputs are something else")
    height, width = images.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        size = max(1, round(scale * height)), max(1, round(scale * width))
        scaled = images if size == (height, width) else _resized(images, size)
        for mirrored in (False, True) if flips else (False,):
            logits = model(scaled.flip(-1)).flip(-1) if mirrored else model(scaled)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            probabilities = _resized(logits, (height, width)).softmax(1)
            total = probabilities if total is None else total + probabilities
    if total is None:
        raise ValueError("there are no scales to average over")
    return total / (len(scales) * (1 + flips))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def check_shapes(outputs: Any, targets: Any) -> None:
    """Raises TypeError for targets that are no masks, or outputs that are no logits of their pixels."""
    if not isinstance(targets, Tensor) or targets.dim() != 3:
        given = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"segmentation learns a label of each pixel, (samples, height, width), and targets are {given}")
    if not isinstance(outputs, Tensor) or outputs.dim() != 4 or outputs.shape[-2:] != targets.shape[-2:]:
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        wanted = f"(samples, classes, {targets.shape[-2]}, {targets.shape[-1]})"
        raise TypeError(f"the model returns {given}; segmentation needs logits of each pixel, {wanted}")
