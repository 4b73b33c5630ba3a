"""Classification: cross-entropy on one label per sample; quality is accuracy.

torchvision's GoogLeNet and Inception v3 return auxiliary heads beside the logits while they train. Their losses are
added: 0.3 of each of GoogLeNet's two (Szegedy et al. 2015, section 5), 0.4 of Inception v3's one, as torchvision's
checkpoints were trained. Evaluation, scores and gradients of outputs see the main head alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from energybench.common.metrics import Better, Metric
from energybench.train.batch import Batch, Forward
from energybench.train.method import Task

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun


AUXILIARY = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}  # of an output's type: each further head's weight


class Classification(Task):
    """Cross-entropy on one label for each sample; quality is accuracy.

    inputs (B, ...), targets (B,) of class numbers; the model returns logits (B, classes).
    """

    name = "classification"
    metrics: ClassVar[Mapping[str, Metric | Better]] = {
        "accuracy": Metric(better="higher", scale="fraction", least=0.0, most=1.0),
        "loss": Metric(better="lower", unit="nats", least=0.0),
    }

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        logits, auxiliary, weight = heads(run.model(batch.inputs))
        each = self.losses(run, logits, batch)
        for other in auxiliary:
            each = each + weight * self.losses(run, other, batch)
        return Forward(each.mean(), each, logits)

    def losses(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        smoothing = run.recipe.label_smoothing
        return F.cross_entropy(outputs, self.labels(batch), reduction="none", label_smoothing=smoothing)

    def output_gradient(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """softmax − target, with s of the target spread evenly over the classes: (B, classes)."""
        smoothing = run.recipe.label_smoothing
        gradient = outputs.softmax(1) - smoothing / outputs.shape[1]
        wanted = gradient.new_full((len(outputs), 1), smoothing - 1)
        return gradient.scatter_add_(1, self.labels(batch)[:, None], wanted)

    def labels(self, batch: Batch) -> Tensor:
        """The class of each sample (B,), for tasks whose targets say more."""
        labels: Tensor = batch.targets
        return labels

    def logits(self, outputs: Any) -> Tensor:
        """Those by which a sample is classified, (B, classes), of what the model returns."""
        return heads(outputs)[0]

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """accuracy (0–1) and mean loss without label smoothing."""
        right = torch.zeros((), device=run.device)
        loss = torch.zeros((), device=run.device)
        for batch in data.in_order():
            logits, labels = self.logits(run.model(batch.inputs)).float(), self.labels(batch)
            right += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
        return {"accuracy": right.item() / len(data), "loss": loss.item() / len(data)}


@dataclass(eq=False)
class TopKClassification(Classification):
    """Classification that is also judged by whether a class is among the k likeliest: Acc@5 as "top5_accuracy".

    k: 2 or more, and fewer than there are classes
    """

    k: Annotated[int, Field(ge=2)] = 5

    name = "top_k_classification"

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k is 2 or more, not {self.k}: accuracy is that of the likeliest class")
        share = Metric(better="higher", scale="fraction", least=0.0, most=1.0)
        self.metrics = {**type(self).metrics, f"top{self.k}_accuracy": share}  # type: ignore[misc]

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """accuracy, that of the k likeliest (0–1), and mean loss without label smoothing."""
        right, among, loss = (torch.zeros((), device=run.device) for _ in range(3))
        for batch in data.in_order():
            logits = heads(run.model(batch.inputs))[0].float()
            right += (logits.argmax(1) == batch.targets).sum()
            among += among_likeliest(logits, batch.targets, self.k).sum()
            loss += F.cross_entropy(logits, batch.targets, reduction="sum")
        sums = {"accuracy": right, f"top{self.k}_accuracy": among, "loss": loss}
        return {name: total.item() / len(data) for name, total in sums.items()}


def among_likeliest(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Whether each target (B,) is among the k classes of the largest logits (B, classes).

    Raises ValueError where there are no more than k classes: it would always be.
    """
    if k >= logits.shape[1]:
        raise ValueError(f"k = {k} of {logits.shape[1]} classes is always right")
    return (logits.topk(k, dim=1).indices == targets[:, None]).any(1)


def heads(outputs: Any) -> tuple[Tensor, list[Tensor], float]:
    """Logits, those of auxiliary heads, and the weight of their losses. Raises TypeError for what are no logits."""
    if isinstance(outputs, Tensor):
        return outputs, [], 0.0
    kind = type(outputs).__name__
    if kind not in AUXILIARY:
        raise TypeError(f"the model returns a {kind}; classification needs logits, (samples, classes)")
    main, *others = outputs
    return main, [other for other in others if other is not None], AUXILIARY[kind]
