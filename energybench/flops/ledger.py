"""What one sample costs in plain training, module by module and phase by phase.

fvcore traces the forward pass and offers each operator to a handle (operators.py). fvcore counts a
multiply-add as one, the ledger as 2 FLOPs. Each traced tensor knows whether it requires a gradient, so the
backward follows from the same trace: no dX for the first layer, no dW for a frozen parameter, nothing under
`no_grad`.

    conv, linear   forward N, dW N, dX N
    matmul         forward N, and N for each operand that requires a gradient, under `input_gradient`; an
                   operand made of parameters alone is a weight: its gradient is dW, the operator `linear`
    attention      forward two products, queries × keys × head; all of the backward under `input_gradient`:
                   five products in a fused kernel, which recomputes the scores, four on torch's plain path
                   (on a CPU: dropout, a mask that learns, odd shapes). torch is asked which one it takes.
    recurrent      forward N, dW N, dX N for every weight matrix at every position

Normalisations, activations, pooling, embeddings and the like have lines of 0 FLOPs with the bytes that they move
(moves.py). Bytes are those of a kernel that reads each operand once and writes its result once:

    conv, linear   forward x + w + y, dW x + dy + dw, dX dy + w + dx
    matmul         forward a + b + y, and dy + the other operand + its own gradient for each that learns
    attention      forward q + k + v + y, backward these + dy and the gradients; torch's plain path also writes and
                   reads the scores, 4 times forward and 7 times backward
    recurrent      as linear, with every weight once

What grows with the batch is entered per sample, what does not, parameters above all, per step. Optimizer steps are
not entered. Tracing happens on the meta device, which takes no memory and nearly no time; a model that needs real
numbers is traced on the CPU with two samples.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from energybench.common.errors import EnergybenchError, Problem
from energybench.flops.operators import Cost, Handles
from energybench.flops.work import Line

_CONVOLUTIONS: dict[Any, tuple[int, bool]] = {
    torch.conv1d: (1, False),
    torch.conv2d: (2, False),
    torch.conv3d: (3, False),
    torch.conv_transpose1d: (1, True),
    torch.conv_transpose2d: (2, True),
    torch.conv_transpose3d: (3, True),
}
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}


def ledger(
    module: nn.Module, inputs: tuple[Tensor, ...], device: torch.device | str | None = None, precision: str = "fp32"
) -> tuple[Line, ...]:
    """FLOPs and bytes of one forward of `module(*inputs)` and of the backward from all its outputs.

    The module is not run, moved or changed.

    Args:
        module:    what is called; it is traced in training mode.
        inputs:    one batch; the first tensor's first dimension is the number of samples. A single sample is
                   doubled, because BatchNorm cannot train on one.
        device:    where training will run, which decides the attention kernel; by default the module's device.
        precision: "bf16" counts the bytes of training under bf16 autocast on that device, casts included.

    Returns:
        A line per operation and phase: FLOPs per sample, bytes per sample and per step. Lines name modules as
        `module.named_modules()` does; a shared module is listed under its first name, with the sum of its calls.

    Raises:
        EnergybenchError: E403, when there is no input tensor or the module cannot be traced.
    """
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise EnergybenchError(Problem("E403", "the ledger needs at least one input tensor"))
    first = next(iter([*module.parameters(), *tensors]))
    target = first.device if device is None else torch.device(device)
    samples = tensors[0].shape[0] if tensors[0].dim() else 1
    leaves = len(tree_leaves(inputs))
    try:
        batch = max(samples, 2)
        costs = _trace(module, _resized(inputs, samples, batch), Handles(target, leaves, batch, precision), "meta")
    except Exception as unfit:  # data-dependent control flow, a kernel without meta: any reason is enough
        batch = 2
        try:
            costs = _trace(module, _resized(inputs, samples, batch), Handles(target, leaves, batch, precision), "cpu")
        except Exception as error:
            error = unfit if first.device.type == "meta" else error  # such a module cannot leave meta
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            problem = Problem(
                "E403",
                f"cannot trace {type(module).__name__} for its FLOPs: {reason}",
                hint="check that model(*inputs) runs on a batch of two, on tensors of these shapes and types",
            )
            raise EnergybenchError(problem) from error
    return _lines(costs, batch)


def _lines(costs: dict[Cost, float], batch: int) -> tuple[Line, ...]:
    """One line for all costs that differ in their operand alone, in the order of the trace."""
    lines: dict[Cost, Line] = {}
    for cost, amount in costs.items():
        key = replace(cost, operand="", per_step=False)
        line = lines.setdefault(key, Line(cost.phase, cost.module, cost.op, 0.0, dict(cost.shape)))
        if not cost.operand:
            lines[key] = replace(line, flop=amount / batch)
        elif cost.per_step:
            line.step_b[cost.operand] = float(amount)
        else:
            line.sample_b[cost.operand] = amount / batch
    return tuple(lines.values())


def _trace(module: nn.Module, inputs: Any, handles: Handles, place: str) -> dict[Cost, float]:
    twin = copy_on(module, torch.device(place)).train()
    # Whatever the model returns, the tracer sees a tuple of tensors.
    twin.register_forward_hook(lambda _, __, out: tuple(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)))

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().to(place, copy=True).requires_grad_(leaf.requires_grad)

    analysis = FlopCountAnalysis(twin, tree_map(placed, inputs)).clear_op_handles()
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle(**handles.by_name())
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _PlainConvolutions():
        return dict(analysis.by_operator())


def copy_on(module: nn.Module, place: torch.device) -> nn.Module:
    """A copy whose parameters and buffers live on `place`; on meta they take no memory."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        data = parameter.detach().to(place, copy=True)
        memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to(place, copy=True)
    for part in module.modules():  # derived tensors, such as weight_norm's; deepcopy refuses those
        for tensor in vars(part).values():
            if isinstance(tensor, Tensor):
                memo.setdefault(id(tensor), tensor.detach().to(place, copy=True))
    return copy.deepcopy(module, memo)


def _resized(inputs: Any, samples: int, batch: int) -> Any:
    """Every tensor that has `samples` rows with `batch` rows instead."""

    def rows(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != samples or samples == batch:
            return leaf
        return torch.cat([leaf] * -(-batch // samples))[:batch].detach().requires_grad_(leaf.requires_grad)

    return tree_map(rows, inputs)


class _PlainConvolutions(TorchFunctionMode):
    """Calls every convolution by the name that the tracer records.

    `torch.conv2d` is recorded only deep inside the CPU's own code: never on meta, and at a point where its
    output does not know yet whether it requires a gradient.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            space, transposed = _CONVOLUTIONS[func]
            last = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
            names = ("input", "weight", "bias", "stride", "padding", *last)
            call: dict[str, Any] = _DEFAULTS | dict(zip(names, args, strict=False)) | kwargs
            if call["input"].dim() == space + 2 and not isinstance(call["padding"], str):
                for name in ("stride", "padding", "dilation", "output_padding"):
                    values = call[name] if isinstance(call[name], (tuple, list)) else [call[name]]
                    call[name] = list(values) * (space if len(values) == 1 else 1)
                return torch._convolution(
                    call["input"],
                    call["weight"],
                    call["bias"],
                    call["stride"],
                    call["padding"],
                    call["dilation"],
                    transposed,
                    call["output_padding"],
                    call["groups"],
                    False,
                    False,
                    False,
                    False,
                )
        return func(*args, **kwargs)
