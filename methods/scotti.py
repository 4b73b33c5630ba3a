"""scotti: neurons at equilibrium are not updated, and how still a neuron must be is learned, as is the learning rate.

ω_t = ω_{t−1} − α·d·Θ(|v| − ε): v is the velocity of NEq, renewed after each epoch on a probe, d the direction of SGD,
Θ 1 above 0 and 0 else. α and ε learn from the next gradient, Θ's derivative taken as −1 to ε (straight through):

    α_{t+1} = α_t + η_α·S′     ε_{t+1} = ε_t − η_ε·α_t·S     S′ = Σ g_t·d_{t−1} over all weights, S over gated ones

A neuron that rested has d = 0. Gated is what had a velocity, so ε stays where it starts for an epoch. The mask of a
step comes from ε as the last step left it. ε is not clamped: it goes negative when gradients agree: then nothing rests.

Paper: SCoTTi (Bragagnolo et al. 2023). Promises up to 86 % of the backward, by NEq's rule (that it counted so is
inferred); a resting neuron saves dW and not dX, so about half of the backward is the most, and code that zeroes a whole
gradient (mode "released") saves nothing. Probe and inner products are billed.
Measured on two CPU cores, three convolutions on MNIST, 3 blocks: released 0 % [−7, 8] less time, sliced
−2 % [−23, 16] (reports/scotti/2026-11-30-202127).
Owns `update`: α starts at the recipe's learning rate, whose schedule and warm-up do not apply; momentum, nesterov,
decay and clip do. Composes with what leaves `epoch`, `step`, `gradients` and `update` alone. On a GPU it reads ε in
every step, which waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from energybench import Batch, Forward, TrainingRun, Work
from energybench.algorithms.hypergradient_sgd import HyperSGD, LearnedRate, check_rates
from energybench.algorithms.neuron_freezing import Freezing


@dataclass
class SCoTTi(LearnedRate, Freezing):
    """mode: "sliced" (no gradient for resting neurons) | "released" (the whole gradient, then undone: as published)

    slice_from:        share of a layer's neurons at rest from which their part of dW is left out; below it that would
                       take longer than it saves
    hyper_lr:          η_α; the paper has 1.5e-5 for ResNet-56 and says nothing of the others
    epsilon_lr:        η_ε; "half": η_α / 2, the paper's
    epsilon:           where ε starts
    hyper_momentum:    momentum of the steps on α and ε; the released hyper-optimizer has 0.9 by default
    learn_momentum:    learn SGD's momentum too, as the released hyper-optimizer does
    velocity_momentum, recursion, similarity, probe: of the velocity, as NEq has them
    """

    replaces: ClassVar[frozenset[str]] = frozenset({"update"})

    mode: Literal["sliced", "released"] = "sliced"
    slice_from: Annotated[float, Field(ge=0, le=1)] = 0.375
    hyper_lr: Annotated[float, Field(gt=0)] = 1.5e-5
    epsilon_lr: Annotated[float, Field(ge=0)] | Literal["half"] = "half"
    epsilon: float = 0.0
    hyper_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    learn_momentum: bool = False
    velocity_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    recursion: Literal["paper", "reference"] = "paper"
    similarity: Literal["concat", "per_sample"] = "concat"
    probe: Annotated[float, Field(gt=0, lt=1)] = 0.01

    def __post_init__(self) -> None:
        check_rates(self.hyper_lr, self.hyper_momentum)
        if self.epsilon_lr != "half" and not 0 <= self.epsilon_lr < math.inf:
            raise ValueError(f'epsilon_lr is ≥ 0 or "half", not {self.epsilon_lr}')
        if not math.isfinite(self.epsilon):
            raise ValueError(f"epsilon is a finite velocity, not {self.epsilon}")
        self.check_parameters()

    def setup(self, run: TrainingRun) -> None:
        super().setup(run)
        self._epsilon = torch.tensor(self.epsilon, dtype=torch.float64, device=run.device)
        self._epsilon_rate = self.hyper_lr / 2 if self.epsilon_lr == "half" else self.epsilon_lr
        self._before: Tensor | None = None  # which neurons moved in the last step; None: all
        self._gates: dict[str, Tensor] = {}  # 1 for each gated parameter of a part, else 0, in the last step

    def live(self, run: TrainingRun) -> Tensor:
        return self._velocity.abs() > self._epsilon.item()

    def start_epoch_of_rest(self, run: TrainingRun) -> None:
        self._rest_now(run, anew=True)

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        if self._gated:
            self._rest_now(run)
        return super().gradients(run, batch, inner)

    def _rest_now(self, run: TrainingRun, anew: bool = False) -> None:
        """What moved in the last step is computed once more: its gradient judges that step."""
        live = self.live(run)
        before = torch.ones_like(live) if self._before is None else self._before
        self.rest(run, live, live | before, anew=anew)

    @torch.no_grad()
    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        optimizer = self.clipped(run, part)
        before, rate = optimizer.product_flop, optimizer.rate
        products = optimizer.compute_hypergradients()
        optimizer.update_hyperparameters()
        if optimizer.product_flop > before:
            run.tally.mark(self, "hyper")
            if part in self._gates:
                gated = (products * self._gates_of(optimizer, part)).sum()
                self._epsilon = optimizer.adjust("epsilon", self._epsilon, rate * gated, self._epsilon_rate)
        optimizer.update_parameters()
        if self._gated:
            self._before = torch.cat(self._live)
            self._gates_of(optimizer, part)

    def _gates_of(self, optimizer: HyperSGD, part: str) -> Tensor:
        """One for each parameter that the optimizer has; made anew when one that was frozen has joined them."""
        if len(self._gates.get(part, ())) != len(optimizer.parameters):
            gated = {p for neurons in self._gated for p, _ in neurons.rows}
            flags = [float(p in gated) for p in optimizer.parameters]
            self._gates[part] = torch.tensor(flags, dtype=torch.float64, device=optimizer.rate.device)
        return self._gates[part]

    def estimate(self, work: Work) -> Work:
        """What the inner products cost, too."""
        return super().estimate(work).add(self.inner_products_line(int(self._given[0])))

    def noted(self, run: TrainingRun) -> dict[str, Any]:
        return {"epsilon": self._epsilon.item()} | (self.learned(self._optimizers[0]) if self._optimizers else {})

    def diagnostics(self) -> dict[str, Any]:
        negative = [entry["epoch"] for entry in self._epochs if entry["epsilon"] < 0]
        warning = (
            {"warning": f"ε is negative after {len(negative)} epochs, from epoch {negative[0]}: nothing rests then"}
            if negative
            else {}
        )
        return super().diagnostics() | warning
