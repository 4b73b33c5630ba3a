"""How much each sample of a batch has to say: one number per sample, from the pass that trains on it.

    output-gradient     ‖∂ℓᵢ/∂outputᵢ‖₂, by the task's closed form or by autograd on its `losses`
    loss                ℓᵢ
    last-layer-gradient ‖∂ℓᵢ/∂(weight and bias of the last linear layer)‖₂ = ‖∂ℓᵢ/∂outputᵢ‖·√(1 + ‖hᵢ‖²), h its input
    parameter-gradient  ‖∂ℓᵢ/∂θ‖₂ over all parameters: the reference that the others stand in for. It takes a forward
                        and a backward pass of its own, in evaluation mode: a sample has no batch statistics

The first three cost no FLOP that a ledger enters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from energybench.common.errors import Problem, UsageError
from energybench.flops.work import BACKWARD, FORWARD, WEIGHT_GRADIENT, Work
from energybench.train.batch import Batch, Forward
from energybench.train.method import Task
from energybench.train.trees import split

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun

SCORES = ("output-gradient", "loss", "last-layer-gradient", "parameter-gradient")
FORMS = ("analytic", "autograd")
HELD = 1 << 26  # numbers of per-sample gradients at once: 256 MiB in float32
PHASE = "scores"


class Scorer:
    """kind: one of SCORES;  form: of the output's gradient: "analytic" where the task has it, or "autograd"

    listen() before a forward pass whose samples shall be scored, then scorer(run, forward, batch).
    """

    def __init__(self, run: TrainingRun, kind: str, form: str = "analytic") -> None:
        self.kind, self.form = kind, form
        self._held: list[Tensor] | None = None  # inputs of the last layer
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        task = type(run.task)
        closed = form == "analytic" and task.output_gradient is not Task.output_gradient
        if kind in ("parameter-gradient", "last-layer-gradient") and run.task.batch_parts:
            self._refuse(f"the task '{run.task.name}' learns from a batch and what is beside it, not sample by sample")
        if kind == "parameter-gradient" and not _differentiable_one_by_one(run):
            precision = run.recipe.precision
            self._refuse(f"torch does not differentiate BatchNorm sample by sample in {precision} on this device")
        of_output = kind in ("output-gradient", "last-layer-gradient")
        if of_output and not closed and task.losses is Task.losses:
            self._refuse(f"the task '{run.task.name}' has no losses(run, outputs, batch) to differentiate")
        if kind == "last-layer-gradient":
            layers = [module for module in run.model.modules() if isinstance(module, nn.Linear)]
            if not layers:
                self._refuse("the model has no linear layer")
            self._layer = layers[-1]
            self._hook = self._layer.register_forward_hook(self._hold)

    def _refuse(self, reason: str) -> None:
        raise UsageError(Problem("E312", f"score '{self.kind}': {reason}", "", 'score = "loss" needs neither'))

    def listen(self) -> None:
        self._held = []

    def _hold(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._held is not None:
            self._held.append(inputs[0].detach())

    def close(self) -> None:
        """Leave no hook behind."""
        if self._hook is not None:
            self._hook.remove()

    def __call__(self, run: TrainingRun, forward: Forward, batch: Batch) -> Tensor:
        """Scores (B,) of a batch and its forward pass; no graph, no wait."""
        held, self._held = self._held or [], None
        if self.kind == "loss":
            if forward.each is None:
                raise TypeError("this task has no per-sample losses, so its samples have no loss to be scored by")
            return forward.each.detach()
        if self.kind == "parameter-gradient":
            return parameter_gradient(run, batch)
        length = norms(output_gradient(run, forward.outputs, batch, self.form))
        return length if self.kind == "output-gradient" else length * self._leverage(held, forward, batch)

    def _leverage(self, held: list[Tensor], forward: Forward, batch: Batch) -> Tensor:
        """√(1 + ‖h‖²), without the 1 where the layer has no bias. Of several passes the first counts."""
        last = torch.cat(held)[: len(batch)] if held else torch.empty(0)
        wanted = (len(batch), self._layer.out_features)
        if last.dim() != 2 or len(last) != len(batch) or tuple(forward.outputs.shape) != wanted:
            raise TypeError(
                f"score '{self.kind}': the last linear layer makes (B, {self._layer.out_features}) once a pass, "
                f"the model's output is {tuple(forward.outputs.shape)}"
            )
        return (_wide(last).square().sum(1) + (self._layer.bias is not None)).sqrt()


def output_gradient(run: TrainingRun, outputs: Any, batch: Batch, form: str = "analytic") -> list[Tensor]:
    """∂ℓᵢ/∂outputᵢ, each (B, ...), of every tensor of the outputs, in single precision or better."""
    leaves, structure = tree_flatten(outputs)
    leaves = [_wide(leaf.detach()) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    if form == "analytic":
        with torch.no_grad():
            closed = run.task.output_gradient(run, tree_unflatten(leaves, structure), batch)
        if closed is not None:
            return [closed]
    given = [leaf.requires_grad_() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    with torch.enable_grad():
        losses = run.task.losses(run, tree_unflatten(leaves, structure), batch)
    gradients = torch.autograd.grad(losses.sum(), given, allow_unused=True)
    return [gradient for gradient in gradients if gradient is not None]


def norms(gradients: list[Tensor]) -> Tensor:
    """Euclidean length (B,) of each sample's part of tensors (B, ...)."""
    squares = [gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients]
    return torch.stack(squares).sum(0).sqrt()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


# ── the reference ─────────────────────────────────────────────────────────────────────────────────────────────────


class _OneSample(nn.Module):
    """A forward pass through the run as a module, so that torch.func can put parameters into the run's model."""

    def __init__(self, run: TrainingRun) -> None:
        super().__init__()
        self.model = run.model
        self._forward = lambda batch: run.forward(batch, "eval").value

    def forward(self, batch: Batch) -> Tensor:
        value: Tensor = self._forward(batch)
        return value


def parameter_gradient(run: TrainingRun, batch: Batch) -> Tensor:
    """‖∂ℓᵢ/∂θ‖₂ (B,) over the parameters of the batch's part, by torch.func; tallied as the passes that it takes."""
    module, wanted = _OneSample(run), {id(parameter) for parameter in run.parameters(batch.part)}
    learns = {name: p.detach() for name, p in module.named_parameters() if id(p) in wanted}
    size = max(1, sum(parameter.numel() for parameter in learns.values()))
    number = torch.zeros(1, dtype=torch.long, device=batch.index.device)
    scale = run.loss_scale  # in fp16 a sample's gradient may be smaller than the least number above 0

    def loss(parameters: dict[str, Tensor], inputs: Any, targets: Any) -> Tensor:
        one = Batch(_alone(inputs), _alone(targets), number, part=batch.part)
        value: Tensor = torch.func.functional_call(module, parameters, (one,))
        return value if scale == 1 else _wide(value) * scale

    along = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, (batch.inputs, batch.targets))
    each: Callable[..., dict[str, Tensor]] = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *along))
    lengths = []
    for piece in split(replace(batch, also={}), -(-size * len(batch) // HELD)):
        with torch.no_grad():
            lengths.append(norms(list(each(learns, piece.inputs, piece.targets).values())) / scale)
        run.tally.add_vectorised(len(piece))
    return torch.cat(lengths)


def _differentiable_one_by_one(run: TrainingRun) -> bool:
    """On CPUs torch.func's BatchNorm wants inputs and statistics of one type, which autocast makes two of."""
    if run.recipe.precision == "fp32" or run.device.type != "cpu":
        return True
    return not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in run.model.modules())


def _alone(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf[None] if isinstance(leaf, Tensor) else leaf, tree)


def with_reference(work: Work) -> Work:
    """A ledger with a forward and a backward pass of every sample more, whose weight gradients are one per sample.

    What other methods have added to it, such as a probe, is no part of such a pass.
    """
    lines = []
    for line in work.lines:
        if line.phase != FORWARD and line.phase not in BACKWARD:
            continue
        per_sample = (
            {k: v for k, v in line.step_b.items() if k.startswith("d")} if line.phase == WEIGHT_GRADIENT else {}
        )
        shared = {operand: moved for operand, moved in line.step_b.items() if operand not in per_sample}
        # Each sample is a batch of its own: it pairs with itself, and what a step costs once goes back for each.
        once = line.step_flop if line.phase == FORWARD else 0.0
        each = line.flop + line.pair_flop + line.step_flop - once
        lines.append(
            replace(
                line,
                phase=PHASE,
                flop=each,
                step_flop=once,
                pair_flop=0.0,
                sample_b=line.sample_b | per_sample,
                step_b=shared,
                pair_b={},
            )
        )
    return work.add(*lines)
