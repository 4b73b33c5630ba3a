"""Classification: cross-entropy on one label per sample; quality is accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from energybench.method import Batch, Forward, Task

if TYPE_CHECKING:
    from energybench.loop import Run
    from energybench.workloads.data import Data


class Classification(Task):
    """inputs (B, ...), targets (B,) of class numbers; the model returns logits (B, classes)."""

    name = "classification"

    def forward(self, run: Run, batch: Batch) -> Forward:
        logits = run.model(batch.inputs)
        each = F.cross_entropy(
            logits, batch.targets, reduction="none", label_smoothing=run.recipe.label_smoothing
        )
        return Forward(each.mean(), each, logits)

    def evaluate(self, run: Run, data: Data) -> dict[str, float]:
        """accuracy (0–1) and mean loss without label smoothing."""
        right = torch.zeros((), device=run.device)
        loss = torch.zeros((), device=run.device)
        for batch in data.in_order():
            logits = run.model(batch.inputs).float()
            right += (logits.argmax(1) == batch.targets).sum()
            loss += F.cross_entropy(logits, batch.targets, reduction="sum")
        return {"accuracy": right.item() / len(data), "loss": loss.item() / len(data)}
