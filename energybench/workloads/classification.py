"""Classification: cross-entropy on one label per sample; quality is accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from energybench.train.batch import Batch, Forward
from energybench.train.method import Task

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun


class Classification(Task):
    """inputs (B, ...), targets (B,) of class numbers; the model returns logits (B, classes)."""

    name = "classification"

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        logits = run.model(batch.inputs)
        each = self.losses(run, logits, batch)
        return Forward(each.mean(), each, logits)

    def losses(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        smoothing = run.recipe.label_smoothing
        return F.cross_entropy(outputs, batch.targets, reduction="none", label_smoothing=smoothing)

    def output_gradient(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """softmax − target, with s of the target spread evenly over the classes: (B, classes)."""
        smoothing = run.recipe.label_smoothing
        gradient = outputs.softmax(1) - smoothing / outputs.shape[1]
        wanted = gradient.new_full((len(outputs), 1), smoothing - 1)
        return gradient.scatter_add_(1, batch.targets[:, None], wanted)

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """accuracy (0–1) and mean loss without label smoothing."""
        right = torch.zeros((), device=run.device)
        loss = torch.zeros((), device=run.device)
        for batch in data.in_order():
            logits = run.model(batch.inputs).float()
            right += (logits.argmax(1) == batch.targets).sum()
            loss += F.cross_entropy(logits, batch.targets, reduction="sum")
        return {"accuracy": right.item() / len(data), "loss": loss.item() / len(data)}
