"""gni: Gaussian noise injections: add N(0, σ²) to the hidden activations while training (Camuto et al. 2020).

An activation is here what a convolution or linear layer takes in; the first such layer takes in the data and gets none,
and nothing is added to the outputs. Evaluation is not noisy.

Promises 0 %: it draws one normal number per activation, and is here as the noise that GradSamp is compared with.
Composes with everything that leaves a forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from energybench import Method, TrainingRun


@dataclass
class GNI(Method):
    """sigma: standard deviation of the noise, in units of the activations

    Layers are the convolutions and linear layers of the model as modules, in the order in which the model holds them.
    A product that is no module, such as attention's in-projection, is left alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward"})

    sigma: Annotated[float, Field(ge=0)] = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma is a standard deviation ≥ 0, not {self.sigma}")

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._generator = run.rng(self.name, "noise", *run.rank_key, device=run.device)
        layers = [m for m in run.model.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))]
        self._hooks = [layer.register_forward_pre_hook(self._add) for layer in layers[1:]]

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not module.training or self.sigma == 0:
            return None
        self.acted = True
        hidden, *others = inputs
        noise = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
        return (hidden + noise.normal_(0, self.sigma, generator=self._generator), *others)

    def finish(self, run: TrainingRun) -> None:
        for hook in self._hooks:
            hook.remove()

    def diagnostics(self) -> dict[str, Any]:
        return {"layers": len(self._hooks)}
