"""neq: neurons whose output on a probe no longer changes its course are not updated in the next epoch.

A neuron is an output channel of any convolution, linear or normalisation layer. After each epoch a probe, split off the
training data, runs through the model; φ is the cosine between a neuron's outputs now and an epoch ago, v how φ moves. A
neuron with |v| ≤ ε rests for an epoch: its weights stay bit for bit, without gradient, momentum or decay.

Paper: NEq (Bragagnolo et al. 2022), Eq. 1–6. Promises the resting neurons' share of the backward by its own rule, up to
86 % in what follows it; but a resting neuron saves dW and not dX, so about half of the backward is the most, and the
authors' code (mode "released") computes the whole gradient and then zeroes it, which saves nothing. It hooks Conv2d and
BatchNorm2d, so by its rule linear layers are saved whatever rests (docs/claims.md); here they rest as others do, and
are counted so. mode "sliced" saves what can be saved. The probe's forwards are billed, and its samples are not trained
on.
Measured on two CPU cores, three convolutions on MNIST, 3 blocks: released 2 % [−6, 9] less time, sliced
0 % [−8, 7] for 10 % of the FLOPs (reports/scotti/2026-11-30-202127).
Composes with what leaves `epoch`, `step` and `gradients` alone, in any order; an update of any kind is undone for
resting neurons. Sliced, it needs the convolutions and linear layers for itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from energybench import TrainingRun
from energybench.algorithms.neuron_freezing import Freezing


@dataclass
class NEq(Freezing):
    """mode: "sliced" (no gradient for resting neurons) | "released" (the whole gradient, then zeroed: as published)

    slice_from:        share of a layer's neurons at rest from which their part of dW is left out. Below it the smaller
                       product takes longer than the whole one: on two CPU cores, for 16 to 64 channels
    epsilon:           a neuron rests at |v| ≤ ε
    velocity_momentum: μ of the velocity
    recursion:         "paper": v = Δφ − μ·v | "reference", as the authors' code has it: v = Δφ − Δφ before + μ·v
    similarity:        "concat": a neuron's outputs on the whole probe are one vector | "per_sample": mean cosine
    probe:             share of the training data that is kept for the probe, at least 32 samples
    """

    mode: Literal["sliced", "released"] = "sliced"
    slice_from: Annotated[float, Field(ge=0, le=1)] = 0.375
    epsilon: Annotated[float, Field(ge=0)] = 1e-3
    velocity_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    recursion: Literal["paper", "reference"] = "paper"
    similarity: Literal["concat", "per_sample"] = "concat"
    probe: Annotated[float, Field(gt=0, lt=1)] = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon is a velocity ≥ 0, not {self.epsilon}")
        self.check_parameters()

    def live(self, run: TrainingRun) -> Tensor:
        return self._velocity.abs() > self.epsilon
