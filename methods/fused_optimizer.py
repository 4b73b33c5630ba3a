"""fused_optimizer: let one kernel update all parameters, in place of a loop over them: torch's fused and foreach forms.

The recipe's optimizer of torch with the same settings: θ ← θ − η·d(g, state) for every tensor, d as ever. "foreach"
does each operation of it once for a list of tensors; "fused" reads and writes each tensor once for all operations.

Documentation: torch.optim, "Algorithms" (for-loop < foreach < fused). Promises no FLOP: fewer launches and fewer passes
over weights, gradients and states, the more of a step the more parameters there are for a sample. Optimizer steps are
in no ledger. On a GPU torch takes foreach by itself, so it is refused there as what plain training does anyway; on a
CPU foreach is the same loop in C++. Composes with every method that updates by the recipe's optimizer; one that owns
`update`, or puts another optimizer there, is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

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
        layers = cast(list[Method], run.layers)
        if owner := next((layer for layer in layers if "update" in layer.replaces), None):
            return f"'{owner.name}' moves the weights itself, and makes no step of the recipe's optimizer"
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
        self._waiting: list[Optimizer] = []
        self._built: dict[str, str] = {}

    def optimizer(
        self, run: TrainingRun, params: list[nn.Parameter], inner: Callable[[list[nn.Parameter]], Optimizer]
    ) -> Optimizer:
        """The optimizer that lies further in, with the hooks that others have on it, in its other form.

        Raises:
            ValueError: it is another one than torch's own.
        """
        made = inner(params)
        kind = type(made)
        taken = inspect.signature(kind).parameters
        if kind.__module__.partition(".")[0] != "torch" or self.kind not in taken:
            raise ValueError(f"{kind.__name__}, the optimizer that lies further in, has no {self.kind} form of torch's")
        for settings in (made.defaults, *made.param_groups):  # from where each step, and each later group, takes it
            settings |= {name: name == self.kind for name in KINDS if name in taken}
        self._waiting.append(made)
        self._built[kind.__name__] = self.kind
        return made

    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        run.optimizer(part)
        while self._waiting:  # not as it is built: what layers further out hook to it comes first
            self._waiting.pop().register_step_pre_hook(self._ready)
        inner(part)

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
