"""Regression: the mean squared error of numbers; for those that make up a signal, its peak signal-to-noise ratio too.

    ℓᵢ   = Σ_c (outputᵢ_c − targetᵢ_c)² / C     the mean over a sample's C numbers
    mse  = Σᵢ ℓᵢ / N                            over the whole set
    psnr = 10·log₁₀(peak² / mse)  in dB         of that mse: no mean of the ratios of batches, which would be larger

`peak` is the largest difference that two values can have, 1 for those from 0 to 1: the data's own, or the task's. Where
nobody says it, there is no such ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from energybench.common.errors import Problem, UsageError
from energybench.common.metrics import Better, Metric
from energybench.train.batch import Batch, Forward
from energybench.train.method import Task
from energybench.workloads.metrics.signals import peak_signal_to_noise_db

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

PEAK = "peak"  # what data say of themselves by this name in `facts.extra`


@dataclass
class Regression(Task):
    """Numbers by their squared error; quality is its mean, and for a signal its peak signal-to-noise ratio in dB.

    inputs (B, ...), targets (B,) or (B, ...) of numbers; the model returns as many, in the same shape.

    peak: of psnr = 10·log₁₀(peak² / mse), the largest difference that two values can have; by default as the data say
    """

    peak: Annotated[float, Field(gt=0)] | None = None

    name = "regression"
    metrics: ClassVar[Mapping[str, Metric | Better]] = {
        "mse": Metric(better="lower", least=0.0),
        "psnr": Metric(better="higher", unit="dB"),
    }

    def __post_init__(self) -> None:
        if self.peak is not None and not 0 < self.peak < math.inf:
            raise ValueError(f"peak is a difference of values above 0, not {self.peak}")

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        if run.recipe.label_smoothing:
            message = "label_smoothing spreads a class over the others, and a regression has none"
            raise UsageError(Problem("E403", message, hint="take it out of train"))
        outputs = run.model(batch.inputs)
        each = self.losses(run, outputs, batch)
        return Forward(each.mean(), each, outputs)

    def losses(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean over each sample's numbers of the squared error (B,)."""
        return squared_errors(outputs, batch.targets)

    def output_gradient(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """2·(output − target) / C: of the outputs' shape."""
        return 2 * _difference(outputs, batch.targets) / max(1, outputs[:1].numel())

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """mse over all numbers of all samples; psnr of it, in dB, where the range of the values is known."""
        total = torch.zeros((), dtype=torch.float64, device=run.device)
        for batch in data.in_order(run.recipe.batch):  # no larger than what training has room for
            total += squared_errors(run.model(batch.inputs), batch.targets).double().sum()
        mse = total.item() / len(data)
        peak = self.peak or peak_of(data)
        return {"mse": mse} | ({} if peak is None else {"psnr": peak_signal_to_noise_db(mse, peak)})


def peak_of(data: Data) -> float | None:
    """What data say of their range. Raises UsageError E402 for what is none."""
    peak = data.facts.extra.get(PEAK)
    if peak is None:
        return None
    if isinstance(peak, (bool, str)) or not 0 < peak < math.inf:
        message = f"facts.extra has the {PEAK} {peak!r}, and it is the largest difference that two values can have"
        raise UsageError(Problem("E402", message, hint=f'"extra": {{"{PEAK}": 1.0}} for values from 0 to 1'))
    return float(peak)


def squared_errors(outputs: Any, targets: Any) -> Tensor:
    """The mean over each sample's numbers (B,), in single precision or better. Raises TypeError for other shapes."""
    difference = _difference(outputs, targets)
    return difference.square().reshape(len(difference), -1).mean(1)


def _difference(outputs: Any, targets: Any) -> Tensor:
    """outputs − targets (B, ...), of half precision widened first."""
    check_shapes(outputs, targets)
    wide = torch.promote_types(outputs.dtype, torch.float32)
    difference: Tensor = outputs.to(wide) - targets.to(wide)
    return difference


def check_shapes(outputs: Any, targets: Any) -> None:
    """Raises TypeError where they are not alike: (B, 1) and (B,) would be held against each other B² times."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"regression learns numbers, a tensor (samples, ...), and targets are {_kind(targets)}")
    if not isinstance(outputs, Tensor) or outputs.shape != targets.shape:
        wanted = _kind(targets).replace(str(len(targets)), "samples", 1)
        raise TypeError(f"the model returns {_kind(outputs)}; regression needs the targets' shape, {wanted}")


def _kind(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
