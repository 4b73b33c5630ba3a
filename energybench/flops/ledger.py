"""What plain training costs, module by module and phase by phase, and how it grows with the batch.

fvcore traces the forward pass and each operator has a handle that knows its cost (operators.py). One multiply-add is
2 FLOPs. The backward follows from the same graph: what no gradient reaches has none (differentiation.py), so no dX for
the first layer, no dW for a frozen parameter, nothing behind a `detach` or an `argmax`.

    conv, linear   forward N, dW N, dX N
    matmul         forward N, and N for each operand that requires a gradient, under `input_gradient`; an
                   operand made of parameters alone is a weight: its gradient is dW, the operator `linear`
    attention      forward two products, queries × keys × head; all of the backward under `input_gradient`:
                   five products in a fused kernel, which recomputes the scores, four on torch's plain path
                   (on a CPU: dropout, a mask that learns, odd shapes). torch is asked which one it takes.
    recurrent      forward N, dW N, dX N for every weight matrix at every position
    checkpoint     the forward of what it runs again, under `recompute` (checkpoints.py)

Normalisations, activations, pooling, embeddings and the like have lines of 0 FLOPs with the bytes that they move
(moves.py). Bytes are those of a kernel that reads each operand once and writes its result once:

    conv, linear   forward x + w + y, dW x + dy + dw, dX dy + w + dx
    matmul         forward a + b + y, and dy + the other operand + its own gradient for each that learns
    attention      forward q + k + v + y, backward these + dy and the gradients; torch's plain path also writes and
                   reads the scores, 4 times forward and 7 times backward
    recurrent      as linear, with every weight once

Three traces of different batches say what grows with the batch, what with its square, and what every step costs
whatever its batch (growth.py). Optimizer steps are not entered. Tracing happens on the meta device, which takes no
memory and nearly no time; a model that needs real numbers is traced with a few samples on the CPU, or else on the
device where it is. Where the traces fit no such curve, one of the true batch is divided by its samples, and `trace`
says so. What is drawn in the forward pass is drawn without its generator, which no trace holds.
"""

from __future__ import annotations

import copy
import os
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import fvcore
import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_analysis import _get_scoped_trace_graph
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from energybench import flops
from energybench.common.errors import EnergybenchError, Problem
from energybench.flops import growth
from energybench.flops.attention_kernels import AttentionKernels
from energybench.flops.checkpoints import Checkpoints
from energybench.flops.differentiation import Differentiation
from energybench.flops.graph import elements, is_tensor, where
from energybench.flops.operators import Handles
from energybench.flops.values import Entry
from energybench.flops.work import FORWARD, RECOMPUTE, Line

_NOT_THE_USERS = tuple(
    f"{os.path.dirname(os.path.abspath(str(each.__file__)))}{os.sep}" for each in (torch, fvcore, flops)
)
ON_CPU = (2, 3, 4, 5)  # samples, where a trace takes as long as it computes
_CONVOLUTIONS: dict[Any, tuple[int, bool]] = {
    torch.conv1d: (1, False),
    torch.conv2d: (2, False),
    torch.conv3d: (3, False),
    torch.conv_transpose1d: (1, True),
    torch.conv_transpose2d: (2, True),
    torch.conv_transpose3d: (3, True),
}
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}


@dataclass(frozen=True)
class Traced:
    """What a trace found.

    lines:   the ledger
    note:    what a reader must know of it; empty where every line's growth with the batch was found and confirmed
    unknown: operators that may hide products and of which the ledger has no FLOPs: "aten.linalg_inv (model.py:12)"
    """

    lines: tuple[Line, ...]
    note: str = ""
    unknown: tuple[str, ...] = ()


def ledger(
    module: nn.Module, inputs: tuple[Tensor, ...], device: torch.device | str | None = None, precision: str = "fp32"
) -> tuple[Line, ...]:
    """FLOPs and bytes of one forward of `module(*inputs)` and of the backward from all its outputs.

    The module is not run, moved or changed.

    Args:
        module:    what is called; it is traced in training mode.
        inputs:    one batch; the first tensor's first dimension is the number of samples. The module is traced on a
                   few other numbers of samples too, which must be possible.
        device:    where training will run, which decides the attention kernel; by default the module's device.
        precision: "bf16" and "fp16" count the bytes of training under autocast on that device, casts included.

    Returns:
        A line per operation and phase: FLOPs and bytes per sample, per step and per pair of samples. Lines name
        modules as `module.named_modules()` does; a shared module is listed under its first name, with the sum of its
        calls.

    Raises:
        EnergybenchError: E403, when there is no input tensor or the module cannot be traced.
    """
    return trace(module, inputs, device, precision).lines


def trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    device: torch.device | str | None = None,
    precision: str = "fp32",
    batch: int | None = None,
) -> Traced:
    """As `ledger`. batch: of training, at which the growth is confirmed; None: that of `inputs`."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise EnergybenchError(Problem("E403", "the ledger needs at least one input tensor"))
    first = next(iter([*module.parameters(), *tensors]))
    samples = tensors[0].shape[0] if tensors[0].dim() else 1
    tracer = _Tracer(module, inputs, samples, first.device if device is None else torch.device(device), precision)
    true = max(2, samples if batch is None else batch)
    reasons: list[Exception] = []
    on_cpu: list[tuple[int, ...]] = [ON_CPU]
    on_device = [first.device.type] if first.device.type not in ("meta", "cpu") else []
    for place, plans, most in (
        ("meta", _sizes_on_meta(max(samples, 2), true), true),
        *((place, on_cpu, max(2, min(true, samples))) for place in ("cpu", *on_device)),
    ):
        tracer.place = place
        try:
            fitted = tracer.fitted(plans, most)
            return replace(fitted, unknown=tuple(tracer.unknown))
        except Exception as error:  # control flow that needs numbers, a kernel without meta: any reason is enough
            reasons.append(error)
    last = reasons[0] if first.device.type == "meta" else reasons[-1]  # such a module cannot leave meta
    reason = f"{type(last).__name__}: {str(last).splitlines()[0] if str(last) else ''}{_users_line(last)}"
    problem = Problem(
        "E403",
        f"cannot trace {type(module).__name__} for its FLOPs: {reason}",
        hint="check that model(*inputs) runs on a batch of two, on tensors of these shapes and types",
    )
    raise EnergybenchError(problem) from last


def _users_line(error: BaseException) -> str:
    """Where in the user's own code it was raised: " (model.py:12)"."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_NOT_THE_USERS):
            return f" ({os.path.basename(frame.filename)}:{frame.lineno})"
    return ""


def _sizes_on_meta(samples: int, batch: int) -> list[tuple[int, ...]]:
    """Sizes to try: neighbours and the true batch; else multiples of it, for models that cut a batch into parts."""
    neighbours = (samples, samples + 1, batch if batch > samples + 1 else samples + 2, samples + 3)
    return [neighbours, (batch, 2 * batch, 3 * batch, 4 * batch)]


class _Tracer:
    """Traces of one module by the number of samples; `place` is the device that they take place on."""

    def __init__(self, module: nn.Module, inputs: Any, samples: int, target: torch.device, precision: str) -> None:
        self.module, self.inputs, self.samples = module, inputs, samples
        self.target, self.precision, self.place = target, precision, "meta"
        self.unknown: dict[str, None] = {}  # in the order of their first calls

    def fitted(self, plans: list[tuple[int, ...]], batch: int) -> Traced:
        """By the first of these plans that fits; else one trace of `batch` samples as if all grew with them.

        Three sizes suffice where everything lies on a line, which the third confirms; a square needs the fourth.
        """
        known: dict[int, list[Entry]] = {}
        unfit: Exception | None = None
        for sizes in plans:
            try:
                for count in (3, 4):
                    for size in sizes[:count]:
                        if size not in known:
                            known[size] = self.entries(size)
                    parts = growth.fit({size: known[size] for size in sizes[:count]})
                    if not growth.is_quadratic(parts):
                        break
                return Traced(growth.lines(parts))
            except Exception as error:  # a model may accept only some sizes
                unfit = error
        if batch not in known:
            known[batch] = self.entries(batch)
        note = f"its FLOPs per sample are those of one batch of {batch}: {unfit}"
        return Traced(growth.lines(growth.single(known[batch], batch)), note)

    def entries(self, batch: int) -> list[Entry]:
        """What every operator costs in a batch of so many samples, in the order of their calls."""
        twin = copy_on(self.module, torch.device(self.place)).train()
        calls, returned = _Calls(), 0

        def everything(_: Any, __: Any, out: Any) -> tuple[Tensor, ...]:
            """Whatever the model returns as a tuple; and what it throws away, which torch leaves out else."""
            nonlocal returned
            results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            returned = len(results)
            return (*results, *calls.results)

        twin.register_forward_hook(everything)
        inputs = _resized(tree_map(self._placed, self.inputs), self.samples, batch)
        aliases = FlopCountAnalysis(twin, inputs)._aliases
        kernels, checkpoints = AttentionKernels(self.target, self.precision), Checkpoints()
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(0)  # of what is drawn in the forward pass
            with checkpoints, kernels, calls:
                graph = _get_scoped_trace_graph(twin, inputs, aliases)
        nodes = list(graph.nodes())
        outputs = [value for out in graph.outputs() for value in (elements(out) if not is_tensor(out) else [out])]
        gradients = Differentiation(nodes, outputs[:returned])
        handles = Handles(self.target, len(tree_leaves(inputs)), batch, gradients, self.precision, kernels.fused(nodes))
        repeated = checkpoints.repeated(nodes, gradients)
        self.unknown |= {
            f"{name} ({where(node, _NOT_THE_USERS)})": None for node in nodes if (name := handles.unknown(node))
        }
        return list(_entries(nodes, gradients, handles, repeated))

    def _placed(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().to(self.place, copy=True).requires_grad_(leaf.requires_grad)


def _entries(
    nodes: list[Any], gradients: Differentiation, handles: Handles, repeated: dict[int, list[float]]
) -> Iterator[Entry]:
    for place, node in enumerate(nodes):
        gradients.at(place)
        found = handles.entries(node)
        yield from found
        for share in repeated.get(place, ()):
            for cost, amount in found:
                if cost.phase == FORWARD:
                    yield replace(cost, phase=RECOMPUTE), amount * share


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


class _Calls(TorchFunctionMode):
    """Sees every call: keeps its results, and calls convolutions by the name that the tracer records.

    `torch.conv2d` is recorded only deep inside the CPU's own code: never on meta, and at a point where its
    output does not know yet whether it requires a gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(kwargs.get("generator"), torch.Generator):  # a trace holds none, and meta has none
            kwargs = {**kwargs, "generator": None}
        result = self._call(func, args, kwargs)
        if torch._C._get_tracing_state() is None:  # no part of the module: asked beside it
            return result
        leaves = result if isinstance(result, (tuple, list)) else (result,)
        self.results += [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return result

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if any(isinstance(arg, Tensor) and arg.layout != torch.strided for arg in tree_leaves((args, kwargs))):
            name = getattr(func, "__name__", str(func))
            raise NotImplementedError(f"{name} of a sparse tensor: its FLOPs depend on its numbers")
        if func in _CONVOLUTIONS:
            space, transposed = _CONVOLUTIONS[func]
            last = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
            names = ("input", "weight", "bias", "stride", "padding", *last)
            call: dict[str, Any] = _DEFAULTS | dict(zip(names, args, strict=False)) | kwargs
            if call["input"].dim() == space + 1:  # a single sample without its batch
                others = {name: value for name, value in kwargs.items() if name != "input"}
                return self._call(func, (call["input"][None], *args[1:]), others)[0]
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
                    int(call["groups"]),  # a size of a tensor is no constant while it is traced
                    False,
                    False,
                    False,
                    False,
                )
        return func(*args, **kwargs)
