"""sgld: stochastic gradient Langevin dynamics: after each gradient step add noise as large as the step is wide.

θ += (ε_k/2)·(∇log p(θ) + (N/n)·Σ_batch ∇log p(x|θ)) + √ε_k·N(0, I). Of a mean loss L over N samples the data term is
−N·∇L. With ε_k → 0 the weights become samples of the posterior (Welling and Teh 2011, Eq. 4); by default ε_k = 2·lr/N,
whose drift is plain SGD at the recipe's learning rate, so what differs from it is the noise. A multiplier of the rate
is one of ε_k, so that the noise stays that of the same posterior.

Promises 0 %: it draws a normal number per parameter and step, and is here as the noise that GradSamp is compared with.
Owns `update` and builds no optimizer: momentum does not apply, gradients are clipped as the recipe says.
Composes with everything that leaves `update` alone and fills `.grad`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from energybench import Method, TrainingRun


@dataclass
class SGLD(Method):
    """step_size: ε₀ of ε_k = ε₀·(1 + k)^−power, k counted in updates; or "lr": 2·lr/N, lr being the recipe's by then

    power:      how fast a step_size of one's own falls; above 0.5 and up to 1 the chain converges to the posterior
    prior:      precision of the prior N(0, 1/prior), so that ∇log p(θ) = −prior·θ; or "decay": N times the recipe's
    """

    replaces: ClassVar[frozenset[str]] = frozenset({"update"})
    needs: ClassVar[frozenset[str]] = frozenset({"backward"})
    trains_less: ClassVar[bool | None] = False

    step_size: Annotated[float, Field(gt=0)] | Literal["lr"] = "lr"
    power: Annotated[float, Field(ge=0, le=1)] = 0.0
    prior: Annotated[float, Field(ge=0)] | Literal["decay"] = "decay"

    def __post_init__(self) -> None:
        if self.step_size != "lr" and not 0 < self.step_size < math.inf:
            raise ValueError(f'step_size is > 0 or "lr", not {self.step_size}')
        if not 0 <= self.power <= 1:
            raise ValueError(f"power is in [0, 1], not {self.power}")
        if self.power and self.step_size == "lr":
            raise ValueError("power needs a step_size; without one the recipe's schedule holds")
        if self.prior != "decay" and not 0 <= self.prior < math.inf:
            raise ValueError(f'prior is a precision ≥ 0 or "decay", not {self.prior}')

    def setup(self, run: TrainingRun) -> None:
        self._updates: Counter[str] = Counter()
        self._generator = run.rng(self.name, "noise", device=run.device)
        self._steps: list[float] = []  # the first and the last ε

    @torch.no_grad()
    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        samples = len(run.data)
        width = self.width(run, part)
        prior = samples * run.recipe.decay if self.prior == "decay" else self.prior
        parameters = run.parameters(part)
        if run.recipe.clip is not None:
            nn.utils.clip_grad_norm_(parameters, run.recipe.clip)
        for parameter in parameters:
            # Drawn for frozen parameters too, so that whoever freezes one moves nobody else's noise.
            noise = torch.empty(parameter.shape, device=run.device).normal_(generator=self._generator)
            if not parameter.requires_grad:
                continue
            own = width * run.lr_multiplier(parameter)
            if prior:
                parameter.mul_(1 - own * prior / 2)
            if parameter.grad is not None:  # what the loss does not see is drawn from the prior alone
                parameter.add_(parameter.grad, alpha=-own * samples / 2)
            parameter.add_(noise.to(parameter.dtype), alpha=math.sqrt(own))
        self._updates[part] += 1
        self._steps = [*self._steps[:1], width]

    def width(self, run: TrainingRun, part: str) -> float:
        """ε_k, which is also the variance of the noise."""
        if self.step_size == "lr":
            return 2 * run.lr(part) / len(run.data)
        return self.step_size * (1 + self._updates[part]) ** -self.power

    def diagnostics(self) -> dict[str, Any]:
        return {"step_first_and_last": self._steps}
