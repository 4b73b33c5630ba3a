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

Seen = TypeVar("Seen")


def rehearse(
    model: nn.Module,
    input_shape: Sequence[int],
    watch: Callable[[nn.Module], AbstractContextManager[Seen]],
    *,
    training: bool,
) -> Seen:
    """Run a copy of `model` once on an input of `input_shape`, batch included, inside `watch(copy)`.

    Returns what `watch` yields. Tries floats, then whole numbers, for a model that starts with an embedding; what
    needs real numbers runs on the CPU. Raises BadClaim when no input of this shape passes.
    """
    if not isinstance(model, nn.Module):
        raise BadClaim(f"a model is a torch.nn.Module, not {type(model).__name__}")
    shape = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if not shape or any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in shape):
        raise BadClaim(
            f"an input shape is one or more whole numbers from 1 on, not {input_shape!r}",
            hint="with the batch first: (128, 3, 32, 32)",
        )
    floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
    kinds = [floats[0] if floats else torch.get_default_dtype(), torch.long]
    first: Exception | None = None
    for place in ("meta", "cpu"):
        for kind in kinds:
            try:
                twin = copy_on(model, torch.device(place)).train(training)
                for module in twin.modules():  # one sample has shapes, but no statistics to train on
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
                with torch.random.fork_rng(devices=[]), torch.enable_grad(), watch(twin) as seen:
                    twin(torch.zeros(shape, dtype=kind, device=place))
                return seen
            except Exception as error:  # whatever it is, it is the model's answer to this shape
                first = first or error
        if "meta" not in str(first) and not isinstance(first, NotImplementedError):
            break  # the shape is wrong, not the place: real numbers would not help
        if any(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers())):
            break
    reason = f"{type(first).__name__}: {(str(first).splitlines() or [''])[0]}"
    raise BadClaim(
        f"{type(model).__name__} does not take an input of shape {shape}: {reason}",
        hint="the shape includes the batch: (128, 3, 32, 32)",
    ) from first


class Call:
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


class Calls(list[Call]):
    """What `rehearse` yields with `Calls.of`: every call of a module of these kinds, in order."""

    def __init__(self, model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._handles = [
            module.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, module in model.named_modules()
            if isinstance(module, kinds)
        ]

    @classmethod
    def of(cls, *kinds: type[nn.Module]) -> Callable[[nn.Module], Calls]:
        return lambda model: cls(model, kinds)

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
            inputs = arguments[0] if arguments else next(iter(named.values()))
            self.append(Call(name, module, inputs, out))

        return hook

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
