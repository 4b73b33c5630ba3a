"""Checkpointed regions of a traced module: which operators run a second time in the backward.

`torch.utils.checkpoint` keeps no activations and runs its function again when a gradient needs them. In the reentrant
form all of it; in the other form only up to the last tensor that any operator there saves, and a product saves its
factors before it multiplies, so a region that ends in one does not multiply again. A trace sees a forward alone, so
while one is taken the functions that a checkpoint calls are replaced: they run the region once and note where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor

from energybench.flops.differentiation import Differentiation
from energybench.flops.graph import PREFIX, is_tensor, name_of

_PRODUCTS = """
    linear _convolution _convolution_mode matmul linalg_matmul mm bmm mv dot vdot addmm baddbmm addbmm addmv einsum
    tensordot inner
"""
PRODUCTS = frozenset(_PRODUCTS.split())


@dataclass(frozen=True)
class Region:
    """Of a trace, in operators since its beginning: those of its numbers in [first, end) run again.

    share: of the last one's work
    last:  the number of all operators when the region ended
    """

    first: int
    end: int
    last: int
    share: float = 1.0


class Checkpoints:
    """`with Checkpoints() as checkpoints:` around a trace; then `repeated`."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def __enter__(self) -> Checkpoints:
        self._replaced = {
            name: getattr(torch_checkpoint, name)
            for name in ("CheckpointFunction", "_checkpoint_without_reentrant_generator")
        }
        regions = self

        class Reentrant:
            @staticmethod
            def apply(function: Any, preserve: bool, *args: Any) -> Any:
                return regions._reentrant(function, args)

        setattr(torch_checkpoint, "CheckpointFunction", Reentrant)  # noqa: B010
        setattr(torch_checkpoint, "_checkpoint_without_reentrant_generator", self._not_reentrant)  # noqa: B010
        return self

    def __exit__(self, *error: object) -> None:
        for name, value in self._replaced.items():
            setattr(torch_checkpoint, name, value)

    def _reentrant(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Its results require a gradient only if a tensor among its arguments does."""
        if not any(isinstance(arg, Tensor) and arg.requires_grad for arg in args) or not torch.is_grad_enabled():
            with torch.no_grad():
                return function(*args)
        first = len(_operators(_graph()))
        result = function(*args)
        last = len(_operators(_graph()))
        self.regions.append(Region(first, last, last))
        return result

    def _not_reentrant(
        self,
        function: Any,
        preserve: bool,
        context_fn: Any,
        determinism_check: str,
        debug: bool,
        early_stop: bool,
        *args: Any,
        **kwargs: Any,
    ) -> Iterator[None]:
        if context_fn is not torch_checkpoint.noop_context_fn:
            name = getattr(function, "__qualname__", None) or type(function).__qualname__
            raise NotImplementedError(f"torch.utils.checkpoint of {name} with a context_fn: what it runs again is open")
        if not torch.is_grad_enabled():
            yield
            return
        allowed = torch_checkpoint._enable_checkpoint_early_stop
        graph = _graph()
        first, saved_after = len(_operators(graph)), -1

        def saved(tensor: Tensor) -> Tensor:
            nonlocal saved_after
            saved_after = _newest(graph)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            yield
        operators = _operators(graph)
        end, share = len(operators), 1.0
        if early_stop if allowed is None else allowed:
            results = [each.result for each in operators]
            end = results.index(saved_after) + 2 if saved_after in results else first  # in the one that came next
            share = 0.0 if end > first and operators[end - 1].kind in PRODUCTS else 1.0
        self.regions.append(Region(first, end, len(operators), share))

    def repeated(self, nodes: list[Any], gradients: Differentiation) -> dict[int, list[float]]:
        """The nodes that run again, by their place: for each time the share of their work."""
        places = [place for place, node in enumerate(nodes) if _counts(node)]
        again: dict[int, list[float]] = {}
        for region in self.regions:
            inside = places[region.first : region.last]
            if not any(_has_gradient(nodes[place], gradients, place) for place in inside):
                continue
            for number, place in enumerate(places[region.first : region.end], region.first):
                again.setdefault(place, []).append(region.share if number == region.end - 1 else 1.0)
        return again


class _Operator(NamedTuple):
    kind: str
    result: int


def _has_gradient(node: Any, gradients: Differentiation, place: int) -> bool:
    gradients.at(place)
    return any(is_tensor(out) and gradients.learns(out) for out in node.outputs())


def _graph() -> Any:
    """That is being traced. Inside an operator torch does not say."""
    return torch._C._get_tracing_state().graph()


def _operators(graph: Any) -> list[_Operator]:
    """All that were traced so far; a module's stand in a block of their own."""
    found: list[_Operator] = []
    waiting = [iter(list(graph.nodes()))]
    while waiting:
        for node in waiting[-1]:
            if _counts(node):
                found.append(_as_operator(node))
            if blocks := list(node.blocks()):
                waiting += [iter(list(block.nodes())) for block in reversed(blocks)]
                break
        else:
            waiting.pop()
    return found


def _newest(graph: Any) -> int:
    """The result of the last operator that is through; one that is at work has none yet. -1: there is none."""
    node = graph.return_node().prev()
    while True:
        while blocks := list(node.blocks()):
            node = blocks[-1].returnNode().prev()
        if _counts(node):
            return _as_operator(node).result
        while str(node.kind()) == "prim::Param":
            node = node.owningBlock().owningNode()
            if node is None:
                return -1
        node = node.prev()


def _counts(node: Any) -> bool:
    """Operators that make numbers; torch drops others that nobody uses, such as those of sizes, when the trace ends."""
    if not str(node.kind()).startswith(PREFIX):
        return False
    return any(is_tensor(out) and out.type().dtype().is_floating_point for out in node.outputs())


def _as_operator(node: Any) -> _Operator:
    return _Operator(name_of(node), next((out.unique() for out in node.outputs()), -1))
