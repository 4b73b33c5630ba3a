"""Text: which class a whole text is of, and which token follows each.

A text is a row of whole numbers (L,), the numbers of its tokens; where it has ended, the row goes on with −1
(`datasets/tokens.py`). A model takes such rows (B, L).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from energybench.common.metrics import Better, Metric
from energybench.train.batch import Batch, Forward
from energybench.train.method import Task
from energybench.train.trees import split
from energybench.workloads.metrics.confusion import Confusion
from energybench.workloads.metrics.text import perplexity
from energybench.workloads.tasks.classification import Classification, heads

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

NONE = -1  # where there is no token
AT_ONCE = 1 << 16  # tokens of one evaluation pass
LOGITS_AT_ONCE = 1 << 26  # 256 MiB in float32

_SHARE = Metric(better="higher", scale="fraction", least=0.0, most=1.0)
_NATS = Metric(better="lower", unit="nats", least=0.0)


class TextClassification(Classification):
    """Cross-entropy on one label per text; quality is accuracy, and precision, recall and F1 beside it.

    inputs (B, L) of token numbers, targets (B,) of class numbers; the model returns logits (B, classes).

    Precision, recall and F1 are those of class 1 where there are two classes, as usual of sentiment and entailment, and
    the mean over the classes that occur where there are more. mean_of_four is the mean of them and of the accuracy.
    """

    name = "text_classification"
    metrics: ClassVar[Mapping[str, Metric | Better]] = {
        "accuracy": _SHARE,
        "precision": _SHARE,
        "recall": _SHARE,
        "f1": _SHARE,
        "mean_of_four": _SHARE,
        "loss": _NATS,
    }

    def losses(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        if not isinstance(batch.targets, Tensor) or batch.targets.dim() != 1:
            wanted = "text_classification learns the class of each text, (samples,)"
            raise TypeError(f"{wanted}, and targets are {_kind(batch.targets)}")
        if outputs.dim() != 2:
            wanted = "text_classification needs logits of each text, (samples, classes)"
            raise TypeError(f"the model returns {_kind(outputs)}; {wanted}")
        return super().losses(run, outputs, batch)

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """Shares (0–1) and mean loss without label smoothing, in nats."""
        counts: Confusion | None = None
        loss = torch.zeros((), device=run.device)
        for batch in _pieces(data, 1, AT_ONCE):
            logits = heads(run.model(batch.inputs))[0].float()
            counts = counts or Confusion(logits.shape[1], run.device)
            counts.add(logits.argmax(1), batch.targets)
            loss += F.cross_entropy(logits, batch.targets, reduction="sum")
        if counts is None:
            raise ValueError("there is no text to evaluate on")
        positive = 1 if len(counts.counts) == 2 else None
        four = {
            "accuracy": counts.accuracy(),
            "precision": counts.precision(positive),
            "recall": counts.recall(positive),
            "f1": counts.f1(positive),
        }
        return {**four, "mean_of_four": sum(four.values()) / 4, "loss": loss.item() / len(data)}


class LanguageModel(Task):
    """Cross-entropy on the token that follows each token; quality is that loss, and perplexity.

    inputs (B, L) of token numbers, targets (B, L) of those that follow, −1 where none does; the model returns logits
    (B, L, vocabulary), of which those at a place see the tokens up to it.

    A sample's loss is the mean over its tokens, and a batch's the mean over its samples; in evaluation every token
    counts alike.
    """

    name = "language_model"
    metrics: ClassVar[Mapping[str, Metric | Better]] = {"loss": _NATS, "perplexity": Metric(better="lower", least=1.0)}

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        outputs = run.model(batch.inputs)
        each = self.losses(run, outputs, batch)
        return Forward(each.mean(), each, outputs)

    def losses(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        if not isinstance(batch.targets, Tensor) or batch.targets.dim() != 2:
            wanted = "language_model learns the token that follows each, (samples, length)"
            raise TypeError(f"{wanted}, and targets are {_kind(batch.targets)}")
        if not isinstance(outputs, Tensor) or outputs.dim() != 3 or outputs.shape[:2] != batch.targets.shape:
            wanted = "language_model needs logits of each token, (samples, length, vocabulary)"
            raise TypeError(f"the model returns {_kind(outputs)}; {wanted}")
        each = _token_losses(outputs, batch.targets, run.recipe.label_smoothing)
        return each.sum(1) / _known(batch.targets).sum(1).clamp(min=1)

    def output_gradient(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """(softmax − target) / (tokens of the sample) at each place that has a target, else 0: (B, L, vocabulary)."""
        smoothing = run.recipe.label_smoothing
        gradient = outputs.softmax(-1) - smoothing / outputs.shape[-1]
        there = batch.targets.clamp(min=0)[..., None]
        gradient.scatter_add_(-1, there, torch.full_like(there, smoothing - 1, dtype=gradient.dtype))
        known = _known(batch.targets)
        weights = known.to(gradient.dtype) / known.sum(1, keepdim=True).clamp(min=1)
        return gradient * weights[..., None]

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """Mean loss over all tokens, in nats, without label smoothing; and its perplexity."""
        loss, tokens = torch.zeros((), device=run.device), torch.zeros((), device=run.device)
        vocabulary = int(data.facts.extra.get("vocabulary", data.facts.classes or 1))
        for batch in _pieces(data, vocabulary, LOGITS_AT_ONCE):
            loss += _token_losses(run.model(batch.inputs).float(), batch.targets).sum()
            tokens += _known(batch.targets).sum()
        mean = (loss / tokens).item()
        return {"loss": mean, "perplexity": perplexity(mean)}


def _token_losses(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """−ln p of each token that follows, (B, L); 0 where none does."""
    flat = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=NONE, label_smoothing=smoothing
    )
    return flat.view_as(targets)


def _kind(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _known(targets: Tensor) -> Tensor:
    return targets != NONE


def _pieces(data: Data, numbers_per_token: int, at_once: int) -> Iterator[Batch]:
    """Every sample once, in order, so many at a time as that a pass holds no more than `at_once` numbers."""
    for batch in data.in_order():
        yield from split(batch, -(-batch.inputs.numel() * numbers_per_token // at_once))
