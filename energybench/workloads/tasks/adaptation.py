"""Unsupervised domain adaptation: learn classes from a labelled source, be judged on a target without labels.

The batch is of the source; as many samples of the target lie beside it, in `batch.also["target"]`, without labels: no
task sees those before it is judged. Both go through the model as one batch, as in the papers' public code, so that
BatchNorm's statistics are of both; in evaluation the target goes alone.

A sample of the source has a loss of its own, its cross-entropy; what the target adds is the target's alone, so it is
added to each sample's loss, and weights of samples, whose mean is 1, leave it what it is. Scores of samples see the
cross-entropy. A pass that is handed the source alone, such as a probe's, has the source's loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from energybench.common.errors import Problem, UsageError
from energybench.train.batch import Batch, Forward
from energybench.workloads.models.adaptation import GradientReversal, TwoHeads
from energybench.workloads.tasks.classification import Classification, heads

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun

TARGET = "target"


class SourceOnly(Classification):
    """The source alone, with no look at the target: what an adaptation is held against.

    inputs (B, ...), targets (B,) of class numbers; the model returns logits (B, classes).
    """

    name = "source_only"


@dataclass
class MinimumClassConfusion(Classification):
    """MCC (Jin et al. 2020): cross-entropy on the source, and the confusion of classes on the target.

    inputs (B, ...), targets (B,), and the target's inputs beside them; the model returns logits (B, classes).

    temperature: T, by which the target's logits are divided before their softmax
    trade_off:   μ, the weight of the confusion
    """

    temperature: Annotated[float, Field(gt=0)] = 2.5
    trade_off: Annotated[float, Field(ge=0)] = 1.0

    name = "mcc"
    batch_parts: ClassVar[tuple[str, ...]] = (TARGET,)

    def __post_init__(self) -> None:
        _check(self.temperature > 0, f"temperature is above 0, not {self.temperature}")
        _check(self.trade_off >= 0, f"trade_off is 0 at least, not {self.trade_off}")

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        count = len(batch)
        logits, auxiliary, weight = heads(run.model(both_domains(batch)))
        each = self.losses(run, logits[:count], batch)
        for other in auxiliary:
            each = each + weight * self.losses(run, other[:count], batch)
        if TARGET in batch.also:
            each = each + self.trade_off * class_confusion(logits[count:], self.temperature)
        return Forward(each.mean(), each, logits[:count])


@dataclass
class MarginDisparity(Classification):
    """MDD (Zhang et al. 2019): cross-entropy on the source, and the margin disparity of an adversary between domains.

    inputs (B, ...), targets (B,), and the target's inputs beside them; the model returns `TwoHeads`, of which the
    second looks at the features through one `GradientReversal`: `mdd_net`, or a model of one's own.

    The adversary learns to agree with the classifier on the source and to differ from it on the target; the features
    learn to leave it no way. It is no descent of one loss, so it needs a backward pass.

    margin:         γ, the weight of the source in the adversary's loss: exp of the margin
    trade_off:      η, the weight of the adversary's loss
    reversal:       what the coefficient of the gradient's reversal rises to
    reversal_steps: K: after k steps it is `reversal`·(2 / (1 + exp(−k/K)) − 1); 0: `reversal` from the start.
                    Steps are those of the schedule, so that epochs which are left out advance it
    """

    margin: Annotated[float, Field(ge=0)] = 4.0
    trade_off: Annotated[float, Field(ge=0)] = 1.0
    reversal: Annotated[float, Field(ge=0)] = 0.1
    reversal_steps: Annotated[int, Field(ge=0)] = 1000

    name = "mdd"
    batch_parts: ClassVar[tuple[str, ...]] = (TARGET,)
    needs: ClassVar[frozenset[str]] = frozenset({"backward"})

    def __post_init__(self) -> None:
        for name in ("margin", "trade_off", "reversal", "reversal_steps"):
            _check(getattr(self, name) >= 0, f"{name} is 0 at least, not {getattr(self, name)}")
        self._found: tuple[nn.Module, GradientReversal] | None = None

    def setup(self, run: TrainingRun) -> None:
        self._reversal_of(run.model)

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        count = len(batch)
        step = (run.epoch_number - 1) * run.steps_per_epoch + run.step_in_epoch
        self._reversal_of(run.model).coefficient = warmed_up(self.reversal, self.reversal_steps, step)
        answer = run.model(both_domains(batch))
        logits = self.logits(answer)
        each = self.losses(run, logits[:count], batch)
        if TARGET in batch.also:
            of_source, of_target = disparity(logits, answer.adversary, count)
            each = each + self.trade_off * (self.margin * of_source + of_target.mean())
        return Forward(each.mean(), each, logits[:count])

    def logits(self, outputs: Any) -> Tensor:
        if not isinstance(outputs, TwoHeads):
            kind = type(outputs).__name__
            raise TypeError(f"the model returns a {kind}; mdd needs TwoHeads(logits, adversary), such as mdd_net's")
        return outputs.logits

    def _reversal_of(self, model: nn.Module) -> GradientReversal:
        """The model's own. Raises UsageError E403 where it has not exactly one."""
        if self._found is None or self._found[0] is not model:  # a trace looks at a copy
            layers = [module for module in model.modules() if isinstance(module, GradientReversal)]
            if len(layers) != 1:
                message = f"mdd needs a model with one GradientReversal, and this one has {len(layers)}"
                raise UsageError(Problem("E403", message, hint='model = { use = "mdd_net", body = "resnet50" }'))
            self._found = model, layers[0]
        return self._found[1]


def both_domains(batch: Batch) -> Any:
    """Inputs of the batch, and behind them those of the target where there are some."""
    if TARGET not in batch.also:
        return batch.inputs
    return tree_map(_joined, batch.inputs, batch.also[TARGET].inputs)


def _joined(one: Tensor, other: Tensor) -> Tensor:
    return torch.cat([one, other])


def class_confusion(logits: Tensor, temperature: float) -> Tensor:
    """Minimum class confusion of unlabelled samples (Jin et al. 2020, section 3), from 0 to 1.

    A class that no prediction gives a chance is confused with none.

    Args:
        logits: (B, classes), of half precision they are widened first
    """
    chances = (_wide(logits) / temperature).softmax(1)
    with torch.no_grad():
        entropy = -torch.special.xlogy(chances, chances).sum(1)
        weights = 1 + (-entropy).exp()  # of samples: sure ones say more of what is confused
        weights = weights * (len(weights) / weights.sum())
    confusion = (chances * weights[:, None]).T @ chances
    of_class = confusion.sum(1)
    with_others = of_class - confusion.diagonal()
    return (with_others / of_class.clamp(min=torch.finfo(confusion.dtype).tiny)).mean()


def disparity(logits: Tensor, adversary: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What the adversary minimises (Zhang et al. 2019, section 4): its cross-entropy to what the classifier
    predicts on the source, (count,), and −log of the chance of anything else on the target.

    Args:
        logits, adversary: (B, classes), of which the first `count` are the source's
    """
    predicted = logits.detach().argmax(1, keepdim=True)
    log_chances = _wide(adversary).log_softmax(1)
    of_source = -log_chances[:count].gather(1, predicted[:count]).squeeze(1)
    others = log_chances[count:].scatter(1, predicted[count:], -math.inf)
    return of_source, -others.logsumexp(1)


def warmed_up(highest: float, steps: int, step: int) -> float:
    """The coefficient of the reversal, as the public code of MDD raises it: 0 at the first step."""
    return highest * (2 / (1 + math.exp(-step / steps)) - 1) if steps else highest


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
