"""One forward pass of a copy of a model on the meta device: shapes and no numbers, so no memory and nearly no time.

The model itself is not run, moved or changed: not its mode, not its statistics, not its hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from math import prod
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from energybench.flops.ledger import copy_on
from energybench.papers.arguments import BadClaim

Watcher = TypeVar("Watcher")
Watch = Callable[[nn.Module], AbstractContextManager[Watcher]]


def trace_forward(model: nn.Module, input_shape: Sequence[int], watch: Watch[Watcher], *, training: bool) -> Watcher:
    """Run a copy of a model once, and watch it.

    Args:
        model:       it is not run itself, moved or changed.
        input_shape: the batch first, (128, 3, 32, 32). The input is of floats, then of whole numbers, for a model that
                     starts with an embedding; what needs real numbers runs on the CPU.
        watch:       is given the copy; what it yields is open while the copy runs.
        training:    whether the copy is in training mode.

    Returns:
        What `watch` yields.

    Raises:
        BadClaim: when the model is none or takes no input of this shape.
    """
    if not isinstance(model, nn.Module):
        raise BadClaim(f"a model is a torch.nn.Module, not {type(model).__name__}")
    shape = _checked_shape(input_shape)
    first_error: Exception | None = None
    for place in ("meta", "cpu"):
        for dtype in _input_dtypes(model):
            try:
                return _trace(model, torch.zeros(shape, dtype=dtype, device=place), watch, training)
            except Exception as error:  # whatever it is, it is the model's answer to this shape
                first_error = first_error or error
        if not _needs_numbers(first_error) or _lies_on_meta(model):
            break
    reason = f"{type(first_error).__name__}: {(str(first_error).splitlines() or [''])[0]}"
    raise BadClaim(
        f"{type(model).__name__} does not take an input of shape {shape}: {reason}",
        hint="the shape includes the batch: (128, 3, 32, 32)",
    ) from first_error


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if not shape or any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in shape):
        raise BadClaim(
            f"an input shape is one or more whole numbers from 1 on, not {input_shape!r}",
            hint="with the batch first: (128, 3, 32, 32)",
        )
    return shape


def _input_dtypes(model: nn.Module) -> list[torch.dtype]:
    floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return [floats[0] if floats else torch.get_default_dtype(), torch.long]


def _trace(model: nn.Module, inputs: Tensor, watch: Watch[Watcher], training: bool) -> Watcher:
    twin = copy_on(model, inputs.device).train(training)
    for module in twin.modules():  # one sample has shapes, but no statistics to train on
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), watch(twin) as watcher:
        twin(inputs)
    return watcher


def _needs_numbers(error: Exception | None) -> bool:
    """Whether the place is wrong and not the shape, so that real numbers would help."""
    return "meta" in str(error) or isinstance(error, NotImplementedError)


def _lies_on_meta(model: nn.Module) -> bool:
    """Such a model has no numbers that could be moved to the CPU."""
    return any(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers()))


class ModuleCall:
    """One call of one module: its sizes in and out, and whether its input needs a gradient."""

    def __init__(self, name: str, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        self.name, self.module = name, module
        self.inputs, self.outputs = tuple(inputs.shape), tuple(outputs.shape)
        self.input_learns = inputs.requires_grad

    @property
    def elements_in(self) -> int:
        return prod(self.inputs)

    @property
    def elements_out(self) -> int:
        return prod(self.outputs)


class ModuleCalls(list[ModuleCall]):
    """What `trace_forward` yields with `ModuleCalls.of`: every call of a module of these types, in order."""

    def __init__(self, model: nn.Module, types: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._handles = [
            module.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, module in model.named_modules()
            if isinstance(module, types)
        ]

    @classmethod
    def of(cls, *types: type[nn.Module]) -> Callable[[nn.Module], ModuleCalls]:
        return lambda model: cls(model, types)

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
            inputs = arguments[0] if arguments else next(iter(named.values()))
            self.append(ModuleCall(name, module, inputs, out))

        return hook

    def __enter__(self) -> ModuleCalls:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
