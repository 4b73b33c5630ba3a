"""lora: train low-rank updates of frozen weights, h = W₀x + (α/r)·BAx with B (out, r) and A (r, in), r small.

Everything that the model starts with is frozen but its last linear layer, the head, and on request its normalisations;
A is drawn as torch draws a linear layer's weight, B is 0, so that the first forward pass is plain training's, bit for
bit. A convolution's A is a convolution to r channels, its B one of 1×1. When training is over W₀ + (α/r)·BA is written
into the weights, and a plain model is left.

Paper: Hu et al. 2022, LoRA, Eq. 3; of convolutions as in the authors' loralib. Promises no dW of frozen weights, at
most a third of the model's products, and optimizer states of the updates alone. dX is needed all the same, and A and B
are paid for in both passes, which is much where layers are narrow: then it costs FLOPs. It is meant for fine-tuning,
`weights` of a model; from a random start it trains, and learns little beyond the head.
Composes with what leaves the layers' forward alone; one that changes the weights for an evaluation, such as an average,
stands further out. The in-projections of nn.MultiheadAttention are no layers of their own and stay frozen, unadapted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from energybench import Batch, Method, TrainingRun, Work
from energybench.algorithms.retraced import PlainTwin, remade_model
from energybench.train.method import overrides

A, B = "lora_a", "lora_b"  # names of the parameters in each adapted layer
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
UNTRACED = "the model cannot be traced: what its frozen layers save and the low-rank ones cost is not known"


@dataclass
class LoRA(Method):
    """rank:         r of every update, no more than a layer's smaller side

    alpha:        α; an update is multiplied by α / r
    head:         whether the last linear layer that the model holds is trained in full, and without an update
    norms:        whether weights and biases of normalisations are trained
    convolutions: whether convolutions without groups are adapted, as linear layers are
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "backward"})
    trains_less: ClassVar[bool | None] = False

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    head: bool = True
    norms: bool = False
    convolutions: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is 1 or more, not {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is > 0, not {self.alpha}")
        self.swaps = frozenset({"conv", "linear"} if self.convolutions else {"linear"})

    def incompatible_run(self, run: TrainingRun) -> str | None:
        self._twin = PlainTwin(run)
        layers = [layer.name for layer in run.layers]
        inside = layers[: layers.index(self.name)] if self.name in layers else []
        for layer in run.layers:
            if layer.name in inside and isinstance(layer, Method) and overrides(layer, "eval_context"):
                return f"'{layer.name}' further in would change the updates after they have been merged: put it outside"
        if not self._targets(run.model):
            others = " beside its head" if self.head else ""
            return f"it has no linear layer or convolution{others} of which a low-rank update could be trained"
        return None

    def setup(self, run: TrainingRun) -> None:
        self._run = run
        self.acted = False
        self._learned = {p for p in run.model.parameters() if p.requires_grad}
        self._layers = self._adapt(run.model, run.rng(self.name, "A"))
        self._hooks = [layer.register_forward_hook(_adding(self.alpha)) for layer in self._layers.values()]

    def _adapt(self, model: nn.Module, generator: torch.Generator | None) -> dict[str, nn.Module]:
        """Freeze, and make A and B in every layer that is adapted; these layers by name."""
        layers = self._targets(model)
        learning = self._learning(model)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and parameter in learning)
        for layer in layers.values():
            _make_update(layer, self.rank, generator)
        return layers

    def _targets(self, model: nn.Module) -> dict[str, nn.Module]:
        """Layers of a kind that is adapted, whose weight is nobody else's."""
        owners: dict[nn.Parameter, int] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                owners[parameter] = owners.get(parameter, 0) + 1
        head = self._head(model)
        return {
            name: module
            for name, module in model.named_modules()
            if module is not head and self._adaptable(module) and owners[_weight(module)] == 1
        }

    def _adaptable(self, module: nn.Module) -> bool:
        if self.convolutions and isinstance(module, CONVOLUTIONS):
            plain_padding = module.padding_mode == "zeros"
            return module.groups == 1 and plain_padding and type(module) in CONVOLUTIONS
        return _is_linear(module)

    def _head(self, model: nn.Module) -> nn.Module | None:
        if not self.head:
            return None
        return next((module for module in reversed(list(model.modules())) if _is_linear(module)), None)

    def _learning(self, model: nn.Module) -> set[nn.Parameter]:
        """Parameters that the model starts with and that learn."""
        head = self._head(model)
        kept = [module for module in model.modules() if module is head or (self.norms and isinstance(module, NORMS))]
        return {parameter for module in kept for parameter in module.parameters(recurse=False)}

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        self._twin.see(batch)
        run.tally.mark(self)
        inner(batch)

    @torch.no_grad()
    def finish(self, run: TrainingRun) -> None:
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers.values():
            a, b = getattr(layer, A), getattr(layer, B)
            update = self.alpha / len(a) * (b.flatten(1) @ a.flatten(1))
            weight = _weight(layer)
            weight.add_(update.T if _is_transposed(layer) else update.view(weight.shape))
            del layer._parameters[A], layer._parameters[B]
        for parameter in run.model.parameters():
            parameter.requires_grad_(parameter in self._learned)
        self._layers, self._hooks = {}, []

    def estimate(self, work: Work) -> Work:
        """The ledger of the frozen model with its updates, traced: no dW of what is frozen, dX where something below
        learns, and the products with A and B."""
        run = self._run

        def adapt(model: nn.Module) -> None:
            for layer in self._adapt(model, None).values():
                layer.register_forward_hook(_adding(self.alpha))

        plain, adapted = self._twin.lines(run), self._twin.lines(run, adapt)
        if plain is None or adapted is None:
            self.gap_because = UNTRACED
            return work
        return remade_model(work, plain, adapted)

    def diagnostics(self) -> dict[str, Any]:
        learning = sum(p.numel() for p in self._run.model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self._run.model.parameters() if not p.requires_grad)
        return {"layers": list(self._layers), "parameters_learning": learning, "parameters_frozen": frozen}


def _adding(alpha: float) -> Callable[[Any, Any, Tensor], Tensor]:
    """A forward hook that adds (α/r)·BAx. A function of its own: a tracer copies a layer with what its hooks hold."""

    def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        a, b = getattr(layer, A), getattr(layer, B)
        if not isinstance(layer, CONVOLUTIONS):
            return output.add(F.linear(F.linear(inputs[0], a) * (alpha / len(a)), b))
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[a.dim() - 3]
        low: Tensor = convolve(inputs[0], a, None, layer.stride, layer.padding, layer.dilation)
        return output.add(convolve(low * (alpha / len(a)), b))

    return add


def _is_transposed(module: nn.Module) -> bool:
    """transformers' Conv1D: a linear layer whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and isinstance(module.weight, nn.Parameter)


def _is_linear(module: nn.Module) -> bool:
    """Of exactly this type: what torch derives from it may never be called, as attention's out-projection is not."""
    return type(module) is nn.Linear or _is_transposed(module)


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _make_update(layer: nn.Module, rank: int, generator: torch.Generator | None) -> None:
    """A (r, in, ...) as torch initialises a weight, B (out, r, 1, ...) of zeros. generator: None: A has no numbers"""
    weight = _weight(layer)
    shape = weight.shape[::-1] if _is_transposed(layer) else weight.shape
    out, ins = shape[0], math.prod(shape[1:])
    rank = min(rank, out, ins)
    a = torch.empty(rank, *shape[1:], dtype=weight.dtype)
    if generator is not None:
        bound = 1 / math.sqrt(ins)  # kaiming_uniform_ with a = √5
        a.uniform_(-bound, bound, generator=generator)
    b = torch.zeros(out, rank, *(1 for _ in shape[2:]), dtype=weight.dtype)
    layer.register_parameter(A, nn.Parameter(a.to(weight.device)))
    layer.register_parameter(B, nn.Parameter(b.to(weight.device)))
