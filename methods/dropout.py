"""dropout: zero a share p of every normalised activation while training (Srivastava et al. 2014), as ssProp uses it.

Promises nothing in energy; it is the regulariser that ssProp is compared and combined with (Zhong et al., Table 6).
Acts after every BatchNorm, or after every LayerNorm where there is none. "After the ReLU that follows" is the same
function: scaling by a mask ≥ 0 commutes with ReLU. Composes with everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from energybench import Method, TrainingRun


@dataclass
class Dropout(Method):
    p: Annotated[float, Field(ge=0, lt=1)] = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"p is a share of activations in [0, 1), not {self.p}")

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        # A stream of its own: the model's own dropout, if it has any, draws what it draws without this method.
        self._generator = run.rng(self.name, "mask", *run.rank_key, device=run.device)
        modules = list(run.model.modules())
        kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
        norms = next((layers for kind in kinds if (layers := [m for m in modules if isinstance(m, kind)])), [])
        self._hooks = [norm.register_forward_hook(self._drop) for norm in norms]

    def _drop(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not module.training or self.p == 0:
            return output
        self.acted = True
        keep = 1 - self.p
        # Comparing uniform draws is 2.3× faster on a CPU than bernoulli_, which draws 53 bits for each.
        draws = torch.rand(output.shape, generator=self._generator, device=output.device)
        return output * (draws < keep).to(output.dtype).div_(keep)

    def finish(self, run: TrainingRun) -> None:
        for hook in self._hooks:
            hook.remove()

    def diagnostics(self) -> dict[str, Any]:
        return {"layers": len(self._hooks)}
