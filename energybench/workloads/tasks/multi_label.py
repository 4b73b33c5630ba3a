"""Several labels for each sample, each true or not: binary cross-entropy, and the accuracy over all of them.

As ssProp judges CelebA's 40 attributes: the accuracy of each label, and their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from energybench.common.metrics import Better, Metric
from energybench.train.batch import Batch, Forward
from energybench.train.method import Task

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun


class MultiLabel(Task):
    """Binary cross-entropy on several labels for each sample; quality is the mean accuracy of a label.

    inputs (B, ...), targets (B, labels) of 0 and 1; the model returns logits (B, labels), above 0 for a label that is
    true. The loss of a sample is the mean over its labels.
    """

    name = "multi_label"
    metrics: ClassVar[Mapping[str, Metric | Better]] = {
        "accuracy": Metric(better="higher", scale="fraction", least=0.0, most=1.0),
        "loss": Metric(better="lower", unit="nats", least=0.0),
    }

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        logits = run.model(batch.inputs)
        each = self.losses(run, logits, batch)
        return Forward(each.mean(), each, logits)

    def losses(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        return label_losses(outputs, _smoothed(batch.targets, outputs, run.recipe.label_smoothing))

    def output_gradient(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """(σ(logit) − target) / labels, with s of a target spread evenly over true and not: (B, labels)."""
        targets = _smoothed(batch.targets, outputs, run.recipe.label_smoothing)
        return (outputs.sigmoid() - targets) / outputs.shape[1]

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """accuracy (0–1) over all labels, and mean loss without label smoothing."""
        right, loss = torch.zeros((), device=run.device), torch.zeros((), device=run.device)
        labels = 1
        for batch in data.in_order():
            logits = run.model(batch.inputs).float()
            targets = _smoothed(batch.targets, logits, 0.0)
            right += ((logits > 0) == (targets > 0.5)).sum()
            loss += label_losses(logits, targets).sum()
            labels = logits.shape[1]
        return {"accuracy": right.item() / (len(data) * labels), "loss": loss.item() / len(data)}


def label_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy (B,) of logits and targets (B, labels), the mean over the labels."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def _smoothed(targets: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """As numbers of the logits' type. Raises ValueError for targets that are not one for each logit."""
    if logits.dim() != 2 or targets.shape != logits.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(targets.shape)} are no (samples, labels) each"
        )
    return targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
