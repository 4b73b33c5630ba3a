"""Detection: which objects an image has, and where. Quality is COCO's mean average precision.

The detector's answer knows its own loss and its boxes: `CentrePoints` of our small net, `SetPredictions` of RT-DETRv2
and YOLOS, or an own one of a user's model with the two members of `Detections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from energybench.common.errors import Problem, UsageError
from energybench.common.metrics import Better, Metric
from energybench.train.batch import Batch, Forward
from energybench.train.method import Task
from energybench.workloads.metrics.detection import BoxPrecision

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

MOST = 100  # objects of an image that are scored, as COCO's evaluation has it


class Detections(Protocol):
    """What a detector returns: a named tuple of tensors (B, ...), or another tree that torch.utils._pytree knows."""

    def losses(self, targets: dict[str, Any], size: tuple[int, int]) -> Tensor:
        """Of each image (B,), whatever else is in the batch; size: (height, width) of the images."""

    def detections(self, size: tuple[int, int], most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, n, 4) in pixels, scores (B, n) and classes (B, n) of up to `most` objects an image."""


class Detection(Task):
    """Boxes and their classes; quality is COCO's mean average precision, over IoUs of 0.5 to 0.95 and at 0.5.

    inputs (B, C, H, W), targets {"boxes": (B, K, 4) in pixels, "labels": (B, K), −1 where there is no object}; the
    model returns CentrePoints, SetPredictions or its own Detections.
    """

    name = "detection"
    metrics: ClassVar[Mapping[str, Metric | Better]] = {
        "map": Metric(better="higher", scale="fraction", least=0.0, most=1.0),
        "map50": Metric(better="higher", scale="fraction", least=0.0, most=1.0),
        "loss": Metric(better="lower"),
    }

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        outputs = run.model(batch.inputs)
        each = self.losses(run, outputs, batch)
        return Forward(each.mean(), each, outputs)

    def losses(self, run: TrainingRun, outputs: Any, batch: Batch) -> Tensor:
        return _answer(outputs).losses(_boxes(batch), _size(batch))

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """map (COCO's, IoU 0.5 to 0.95), map50 (at 0.5), and the mean loss. NaN for both where nothing is to be found.

        Raises:
            UsageError: E403 where the packages that compute it are missing.
        """
        precision, loss = BoxPrecision(), torch.zeros((), device=run.device)
        for batch in data.in_order(run.recipe.batch):
            answer = _answer(run.model(batch.inputs))
            targets = _boxes(batch)
            loss += answer.losses(targets, _size(batch)).sum()
            precision.add(answer.detections(_size(batch), MOST), targets)
        return {**precision.result(), "loss": loss.item() / len(data)}


def _answer(outputs: Any) -> Detections:
    if not (callable(getattr(outputs, "losses", None)) and callable(getattr(outputs, "detections", None))):
        kind = type(outputs).__name__
        raise TypeError(f"the model returns a {kind}; detection needs CentrePoints, SetPredictions or the like")
    return cast("Detections", outputs)


def _boxes(batch: Batch) -> dict[str, Any]:
    targets = batch.targets
    if not (isinstance(targets, dict) and {"boxes", "labels"} <= set(targets)):
        hint = 'data with {"boxes": (N, K, 4), "labels": (N, K)}, such as use = "coco_folder"'
        raise UsageError(Problem("E403", "detection learns from boxes, and these targets have none", hint=hint))
    return targets


def _size(batch: Batch) -> tuple[int, int]:
    height, width = batch.inputs.shape[-2:]
    return int(height), int(width)
