"""Ridge regression on one-hot labels: a problem whose curvature and minimum are known, so that theorems can be held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from energybench.common.metrics import Better, Metric
from energybench.train.batch import Batch, Forward
from energybench.train.convexity import Convexity
from energybench.train.method import Task

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

RIDGE = 1.0  # of the loss, not of the optimizer: what the curve shows is what is minimised


class Ridge(Task):
    """Ridge regression on one-hot labels, whose curvature and minimum are known.

    inputs (B, ...), targets (B,) of class numbers; the model is one linear layer with a bias, behind a Flatten.
    ℓᵢ = ½‖W xᵢ + b − onehot(yᵢ)‖² + ½·RIDGE·(‖W‖² + ‖b‖²); its mean over all samples is strongly convex and smooth
    """

    name = "ridge"
    metrics: ClassVar[Mapping[str, Metric | Better]] = {
        "accuracy": Metric(better="higher", scale="fraction", least=0.0, most=1.0),
        "loss": Metric(better="lower", least=0.0),
    }

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        outputs = run.model(batch.inputs)
        each = self.losses(run, outputs, batch)
        return Forward(each.mean(), each, outputs)

    def losses(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        weights = sum(parameter.square().sum() for parameter in run.model.parameters())
        return self.output_gradient(run, outputs, batch).square().sum(1) / 2 + RIDGE / 2 * weights

    def output_gradient(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """outputᵢ − onehot(yᵢ): (B, classes)."""
        return outputs - F.one_hot(batch.targets, outputs.shape[1]).to(outputs.dtype)

    def convexity(self, run: TrainingRun) -> Convexity | None:
        """From the eigenvalues of XᵀX/N + RIDGE·I and the normal equations, in float64; None for another model.

        X (N, d + 1): the training inputs and a column of ones.
        """
        layers = [layer for layer in run.model.modules() if next(layer.parameters(recurse=False), None) is not None]
        if len(layers) != 1 or not isinstance(layers[0], nn.Linear) or layers[0].bias is None:
            return None
        classes = layers[0].out_features
        batches = [(batch.inputs.flatten(1).double().cpu(), batch.targets.cpu()) for batch in run.data.in_order()]
        inputs = torch.cat([F.pad(inputs, (0, 1), value=1.0) for inputs, _ in batches])
        wanted = F.one_hot(torch.cat([targets for _, targets in batches]), classes).double()
        hessian = inputs.T @ inputs / len(inputs) + RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
        slope = inputs.T @ wanted / len(inputs)
        best = torch.linalg.solve(hessian, slope)
        minimum = (wanted.square().sum() / len(inputs) - (best * slope).sum()) / 2
        curvatures = torch.linalg.eigvalsh(hessian)
        return Convexity(curvatures[0].item(), curvatures[-1].item(), minimum.item())

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """accuracy (0–1) of the largest output, and mean loss."""
        right = loss = 0.0
        for batch in data.in_order():
            outputs = run.model(batch.inputs)
            right += (outputs.argmax(1) == batch.targets).sum().item()
            loss += self.losses(run, outputs, batch).sum().item()
        return {"accuracy": right / len(data), "loss": loss / len(data)}
