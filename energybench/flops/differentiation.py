"""Which values of a traced graph get a gradient: those that learn and from which one flows back.

A value learns when torch says that it requires a gradient. That is not enough: a branch that is detached, compared,
rounded to an index or thrown away has operators whose results require a gradient and never get one. So the graph is
walked back from the outputs that learn, through every operator, to the operands that learn; whatever is not met has no
backward. In-place operators change what other names of the same memory hold: names that share memory are one class,
which learns from the first write of something that learns, and which is met as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from energybench.flops.graph import in_place, is_tensor, name_of

# Results that share their operand's memory. `detach` shares it too, but no gradient passes.
_ALIASES = """
    view _unsafe_view view_as flatten unflatten squeeze unsqueeze transpose t permute movedim moveaxis swapaxes swapdims
    alias numpy_T adjoint mT mH real reshape reshape_as contiguous to select slice narrow split split_with_sizes chunk
    tensor_split unbind diagonal unfold expand expand_as broadcast_to hsplit vsplit ravel
"""
ALIASES = frozenset(_ALIASES.split())
# Operands whose shape or type alone is read, by their place.
UNREAD = dict.fromkeys(("expand_as", "view_as", "reshape_as", "type_as", "to"), 1)


class Differentiation:
    """Of one graph. `at(place)` says which of its nodes is looked at: before a write nothing has learned from it."""

    def __init__(self, nodes: list[Any], outputs: Iterable[Any]) -> None:
        self._place = 0
        self._roots: dict[str, str] = {}
        self._learns_from: dict[str, int] = {}  # the class of a name -> the place of the first write that learns
        for place, node in enumerate(nodes):
            self._note(place, node)
        self._met: set[str] = set()
        self._met_classes: set[str] = set()
        self._walk_back(nodes, outputs)

    def at(self, place: int) -> None:
        self._place = place

    def learns(self, value: Any) -> bool:
        """Whether this tensor gets a gradient."""
        if not self.requires(value):
            return False
        root = self._root(value)
        return value.debugName() in self._met or (root in self._met_classes and root in self._learns_from)

    def requires(self, value: Any) -> bool:
        """Whether torch would say, here, that this tensor requires a gradient."""
        if not is_tensor(value) or not value.type().dtype().is_floating_point | value.type().dtype().is_complex:
            return False
        written = self._learns_from.get(self._root(value))
        return bool(value.type().requires_grad()) or (written is not None and written < self._place)

    def _root(self, value: Any) -> str:
        name: str = value.debugName()
        return self._roots.get(name, name)

    def _note(self, place: int, node: Any) -> None:
        inputs = list(node.inputs())
        shares = in_place(node) or name_of(node) in ALIASES or str(node.kind()) == "prim::ListUnpack"
        for out in node.outputs():
            if shares and inputs:
                self._roots[out.debugName()] = self._root(inputs[0])
            if in_place(node) and is_tensor(out) and out.type().requires_grad():
                self._learns_from.setdefault(self._root(out), place)

    def _walk_back(self, nodes: list[Any], outputs: Iterable[Any]) -> None:
        self._place = len(nodes)
        for value in outputs:
            self._meet(value)
        for place in range(len(nodes) - 1, -1, -1):
            node = nodes[place]
            self._place = place
            writes = in_place(node) and any(self._root(out) in self._met_classes for out in node.outputs())
            if not any(out.debugName() in self._met for out in node.outputs()):
                if not writes or not any(map(self.requires, node.outputs())):
                    continue
                self._met.update(out.debugName() for out in node.outputs())
            unread = UNREAD.get(name_of(node))
            for number, source in enumerate(node.inputs()):
                if number != unread:
                    self._meet(source)

    def _meet(self, value: Any) -> None:
        """A gradient arrives here, if it may: at a tensor that requires one, or at a list that may hold some."""
        if not (self.requires(value) if is_tensor(value) else "Tensor" in str(value.type())):
            return
        self._met.add(value.debugName())
        self._met_classes.add(self._root(value))
