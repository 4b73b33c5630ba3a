"""fused_optimizer: let one kernel update all parameters, in place of a loop over them: torch's fused and foreach forms.

The recipe's optimizer of torch with the same settings: θ ← θ − η·d(g, state) for every tensor, d as ever. "foreach"
does each operation of it once for a list of tensors; "fused" reads and writes each tensor once for all operations.

Documentation: torch.optim, "Algorithms" (for-loop < foreach < fused). Promises no FLOP: fewer launches and fewer passes
over weights, gradients and states, the more of a step the more parameters there are for a sample. Optimizer steps are
in no ledger. On a GPU torch takes foreach by itself, so it is refused there as what plain training does anyway; on a
CPU foreach is the same loop in C++. Composes with every method that updates by the recipe's optimizer; one that owns
`update` or puts another optimizer there is refused or leaves this without effect, which the record says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from energybench import Method, TrainingRun

KINDS = ("fused", "foreach")
NOT_FUSED = "torch has no fused kernel of"
KERNELS = {name: f"aten::_fused_{name}_" for name in ("sgd", "adam", "adamw", "adagrad")}


@dataclass
class FusedOptimizer(Method):
    """kind: "fused": one kernel for all operations | "foreach": one for each operation

    Momentum of a parameter that is released later begins at zero, which is what torch's first step makes of it. The
    model's parameters learn as ever, so weights differ from the loop's by rounding alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"backward"})
    trains_less: ClassVar[bool | None] = False

    kind: Literal["fused", "foreach"] = "fused"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {' or '.join(KINDS)}, not '{self.kind}'")

    def incompatible_recipe(self, train: Mapping[str, Any]) -> str | None:
        optimizer = str(train.get("optimizer", "sgd"))
        return f"{NOT_FUSED} {optimizer}" if self.kind == "fused" and optimizer not in KERNELS else None

    def incompatible_hardware(self, device: str) -> str | None:
        if self.kind == "foreach" and device == "cuda":
            return 'there torch\'s optimizers are foreach already: kind = "fused"'
        return None

    def incompatible_run(self, run: TrainingRun) -> str | None:
        if self.kind == "foreach":
            return None
        kernel, device = KERNELS.get(run.recipe.optimizer), run.device.type
        if kernel is None or not torch._C._dispatch_has_kernel_for_dispatch_key(kernel, device.upper()):
            return f"{NOT_FUSED} {run.recipe.optimizer} on {device}"
        if any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse for m in run.model.modules()):
            return "a fused kernel takes no sparse gradient, and an embedding of this model has one"
        for name, parameter in run.model.named_parameters():
            if parameter.is_complex():
                return f"a fused kernel takes no complex numbers, which {name} has"
            if parameter.stride() != _dense(parameter):
                return f"a fused kernel takes tensors that fill their memory, and {name} is a part of another tensor"
        return None

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._built: dict[str, str] = {}

    def optimizer(
        self, run: TrainingRun, params: list[nn.Parameter], inner: Callable[[list[nn.Parameter]], Optimizer]
    ) -> Optimizer:
        """
        Raises:
            ValueError: a layer further in has put another optimizer there, or hooks on it.
        """
        base = inner(params)
        kind = type(base)
        taken = inspect.signature(kind).parameters
        if kind.__module__.partition(".")[0] != "torch" or self.kind not in taken:
            raise ValueError(f"{kind.__name__}, the optimizer that lies further in, has no {self.kind} form of torch's")
        if base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks:
            raise ValueError(f"a layer further in has hooked itself to {kind.__name__}, which is built anew here")
        flags = {name: name == self.kind for name in KINDS if name in taken}
        settings = {name: value for name, value in base.defaults.items() if name in taken} | flags
        made = kind([{**group, **flags} for group in base.param_groups], **settings)
        made.register_step_pre_hook(self._ready)
        self._built[kind.__name__] = self.kind
        return made

    def _ready(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """What a fused kernel takes for granted: a state for every tensor, and everything in one order of memory."""
        self.acted = True
        if self.kind == "foreach":
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.stride() != parameter.stride():
                    parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
                state = optimizer.state[parameter]
                if group.get("momentum") and state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)  # μ·0 + g is torch's first step
                step = state.get("step")
                if isinstance(step, Tensor) and step.device != parameter.device:  # of a group that came later
                    state["step"] = step.to(parameter.device, torch.float32)

    def diagnostics(self) -> dict[str, Any]:
        return {"optimizers": dict(self._built)}


def _dense(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a tensor of the same order of dimensions that fills its memory."""
    return torch.empty_like(tensor, device="meta").stride()
