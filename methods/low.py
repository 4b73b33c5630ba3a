"""low: weigh the samples of a uniform batch so that the weighted gradient is as effective as it can be.

With g_i the length of a sample's output gradient, n the batch and l the losses, the step follows mean(w·l), where w
minimises λ‖w‖² − Σ(g_i² + λ)·w_i over w ≥ 0, Σw = n: the projection of g²/(2λ) on that simplex, found exactly by
sorting. Samples with little left to learn get 0; λ → ∞ is plain training.

Paper: Santiago et al. 2021, LOW. Promises fewer steps to a target and no FLOP less: samples of weight 0 are computed
all the same. The released code takes g from the loss's mean over the batch, n times smaller, which makes the weights
nearly even ("batch_mean"). Owns `batches`, which are plain training's, and `gradients`: one forward, weights, one
backward. Composes with what thins the passes from outside or skips epochs, not with another choice of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from energybench import Batch, Data, Forward, Method, TrainingRun
from energybench.algorithms.sample_scores import Scorer
from energybench.train.trees import join, split


@dataclass
class LOW(Method):
    """lam:        λ > 0, how much uneven weights cost; the paper has 0.1

    grad_scale: "per_sample" (g of each sample's own loss, the paper's) | "batch_mean" (of the mean loss: g/n, the
                released code's)

    The weights are those of the whole batch: with micro-batches all their graphs are held until they are known.
    """

    replaces: ClassVar[frozenset[str]] = frozenset({"batches", "gradients"})
    needs: ClassVar[frozenset[str]] = frozenset({"forward", "backward", "per_sample_loss"})
    runs: ClassVar[frozenset[str] | None] = frozenset({"forward", "backward"})
    trains_less: ClassVar[bool | None] = False

    lam: Annotated[float, Field(gt=0)] = 0.1
    grad_scale: Literal["per_sample", "batch_mean"] = "per_sample"

    def __post_init__(self) -> None:
        if not 0 < self.lam < math.inf:
            raise ValueError(f"lam is > 0, not {self.lam}")
        if self.grad_scale not in ("per_sample", "batch_mean"):
            raise ValueError(f"grad_scale is per_sample or batch_mean, not '{self.grad_scale}'")

    def setup(self, run: TrainingRun) -> None:
        if run.world > 1 and run.recipe.accumulate > 1:
            raise ValueError(
                f"'{self.name}' holds the graphs of all micro-batches until their weights are known, and on several "
                "devices a graph must go back before the next is made: accumulate = 1"
            )
        self._scorer = Scorer(run, "output-gradient")
        self._samples = 0
        self._zeros = torch.zeros((), dtype=torch.long, device=run.device)
        self._largest = torch.zeros((), dtype=torch.float64, device=run.device)

    def batches(self, run: TrainingRun, data: Data, inner: Callable[[Data], Iterable[Batch]]) -> Iterable[Batch]:
        return run.load(data, data.cut(run.order(data), run.recipe.batch))

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        if batch.weights is not None:
            raise ValueError(f"'{self.name}' weighs samples itself, and this batch comes with weights")
        for parameter in run.parameters(batch.part):
            parameter.grad = None
        pieces = split(batch, run.recipe.accumulate)
        sizes = [len(piece) for piece in pieces]
        forwards = [run.forward(piece) for piece in pieces]
        whole = join(forwards, sizes)
        lengths = run.all_rows(self._scorer(run, whole, batch), batch)  # the weights are those of the whole batch
        weights = batch.own_rows(self.weights(lengths))
        for forward, part in zip(forwards, weights.split(sizes), strict=True):
            run.backward(forward.weighted(part) * (len(part) / len(batch)))
        run.add_loss(whole.value)
        run.tally.mark(self, "weighted")
        self._samples += len(batch)
        self._zeros += (weights == 0).sum()
        self._largest = torch.maximum(self._largest, weights.max())
        return whole

    def weights(self, lengths: Tensor) -> Tensor:
        """(n,) in double precision, ≥ 0 with sum n, from the lengths of the output gradients."""
        n = len(lengths)
        lengths = lengths.double() / (n if self.grad_scale == "batch_mean" else 1)
        return project(lengths.square() / (2 * self.lam), n)

    def diagnostics(self) -> dict[str, Any]:
        return {"zero_share": self._zeros.item() / max(1, self._samples), "largest_weight": self._largest.item()}


def project(point: Tensor, total: float) -> Tensor:
    """The nearest w to `point` (n,) with w ≥ 0 and Σw = total > 0: max(point − θ, 0), θ from the sorted entries."""
    ordered = point.sort(descending=True).values
    count = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    threshold = (ordered.cumsum(0) - total) / count  # θ, were these the entries that stay above 0
    last = (ordered > threshold).sum()[None] - 1
    return (point - threshold.gather(0, last)).clamp(min=0)
