"""The ledger of one call of a module that a run made: shapes are kept while it trains, and traced when it is over.

A method that changes what an operation costs, and not how often it takes place, asks here what the ledger makes of the
same call in another precision, or with activations that are made again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from energybench.common.errors import EnergybenchError
from energybench.flops.ledger import ledger
from energybench.flops.work import Line

HOOKS = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"]
OVERRIDES = ("forward", "_compiled_call_impl")  # of one module alone


class SeenCall:
    """Shapes and types of what a module was called with; its tensors' numbers are not kept."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, self._structure = tree_flatten((args, kwargs))
        self._leaves = [_on_meta(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.samples = next((len(leaf) for leaf in self._leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)

    def lines(
        self, module: nn.Module, device: torch.device, precision: str = "fp32", around: Callable[..., Any] | None = None
    ) -> tuple[Line, ...]:
        """What the call and its backward cost, with modules named from `module` on: "" is itself.

        Args:
            module: as it is now, without what anybody hooked to it or put in place of its `forward`
            around: called as around(module, *args, **kwargs) in place of the module

        Returns:
            The ledger's lines; none where this cannot be traced.
        """
        tensors = tuple(leaf for leaf in self._leaves if isinstance(leaf, Tensor))
        called = _Called(bare(module), self._rebuilt, around)
        try:
            found = ledger(called, tensors, device, precision)
        except EnergybenchError:
            return ()
        return tuple(_renamed(line) for line in found)

    def _rebuilt(self, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._structure)
        return args, kwargs


class _Called(nn.Module):
    def __init__(self, inner: nn.Module, rebuilt: Callable[..., Any], around: Callable[..., Any] | None) -> None:
        super().__init__()
        self.inner = inner
        # Functions, because the tracer copies this module deeply and functions are not copied.
        self._rebuilt = lambda tensors: rebuilt(tensors)
        self._around = None if around is None else (lambda *args, **kwargs: around(*args, **kwargs))

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self._rebuilt(tensors)
        if self._around is None:
            return self.inner(*args, **kwargs)
        return self._around(self.inner, *args, **kwargs)


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)


def _renamed(line: Line) -> Line:
    return replace(line, module=line.module.removeprefix("inner").removeprefix("."))


def bare(module: nn.Module, known: dict[int, nn.Module] | None = None) -> nn.Module:
    """The same module, sharing its tensors, without hooks and without what stands in place of a `forward`."""
    known = {} if known is None else known
    if id(module) not in known:
        other = known[id(module)] = module.__new__(type(module))
        held = {name: value for name, value in vars(module).items() if name not in OVERRIDES}
        for name in HOOKS:
            held[name] = OrderedDict()
        for name in ("_parameters", "_buffers"):
            held[name] = dict(held[name])
        children = held["_modules"].items()
        held["_modules"] = {name: None if child is None else bare(child, known) for name, child in children}
        other.__dict__.update(held)
    return known[id(module)]
