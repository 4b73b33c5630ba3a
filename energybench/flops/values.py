"""Facts about the values of fvcore's trace, and how an operator's cost is entered.

fvcore hands over torch._C.Value: shape, type, whether a gradient is required, and the node that made it. From there
one can walk back to what the graph starts from: inputs, which grow with the batch, and parameters, which do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch

from energybench.flops.autocast import FULL_RESULT, casts
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT

Sizes = list[int]
PREFIX = "aten::"


@dataclass(frozen=True)
class Cost:
    """A key of fvcore's counters: a Line, or the bytes of one of its operands, without the number."""

    phase: str
    module: str
    op: str
    shape: tuple[tuple[str, float], ...]
    operand: str = ""  # "" for FLOPs
    per_step: bool = False


class Moved(NamedTuple):
    """One operand that a kernel reads or writes once, `value`'s own size unless `elements` or `element_b` say else."""

    phase: str
    operand: str
    value: Any
    elements: float | None = None
    element_b: int | None = None


def sizes(value: Any) -> Sizes:
    return list(value.type().sizes())


def is_tensor(value: Any) -> bool:
    return bool(value.isCompleteTensor())


def learns(value: Any) -> bool:
    return bool(value.isCompleteTensor() and value.type().requires_grad())


def elements(value: Any) -> list[Any]:
    """Of a traced list."""
    return list(value.node().inputs())


def name_of(node: Any) -> str:
    """ "add" of aten::add and of aten::add_."""
    name = str(node.kind()).removeprefix(PREFIX)
    return name if name.startswith("__") else name.rstrip("_")


class Values:
    """What is known of a traced graph's values: their origin, and their width in training.

    target:    the device that will train
    inputs:    how many of the graph's first values are inputs; the others it starts from are parameters and buffers
    batch:     samples in the traced batch
    precision: "fp32", or "bf16" for what bf16 autocast does on that device
    """

    def __init__(self, target: torch.device, inputs: int, batch: int, precision: str = "fp32") -> None:
        self.target, self.inputs, self.batch, self.precision = target, inputs, batch, precision
        self._origins: dict[str, tuple[bool, bool]] = {}
        self._lower: dict[str, bool] = {}

    # ── where a value comes from ──────────────────────────────────────────────────────────────────────────────

    def note(self, values: Iterable[Any]) -> None:
        """Remember these, so that no later walk back goes further than them."""
        for value in values:
            self.origin(value)
            self.is_lower(value)

    def origin(self, value: Any) -> tuple[bool, bool]:
        """(made of inputs, made of parameters or buffers)."""
        name, node = value.debugName(), value.node()
        if name not in self._origins:
            if node.kind() == "prim::Param":
                for place, start in enumerate(node.outputs()):
                    self._origins[start.debugName()] = (place < self.inputs, place >= self.inputs)
            else:
                origins = [self.origin(source) for source in node.inputs()]
                self._origins[name] = (any(x for x, _ in origins), any(w for _, w in origins))
        return self._origins[name]

    def is_weight(self, value: Any) -> bool:
        """Made of parameters alone?"""
        return self.origin(value) == (False, True)

    def per_step(self, value: Any) -> bool:
        """Whether its size is independent of the batch: nothing of an input in it, or no room for the batch."""
        return not self.origin(value)[0] or bool(prod(sizes(value)) % self.batch)

    def per_sample(self, extent: Sizes) -> float:
        """A product of sizes of which one holds the batch, wherever it stands."""
        return prod(extent) / self.batch

    # ── how wide it is ────────────────────────────────────────────────────────────────────────────────────────

    def is_lower(self, value: Any) -> bool:
        """Whether this fp32 value of the trace is bf16 in training."""
        if self.precision != "bf16":
            return False
        name, node = value.debugName(), value.node()
        if name not in self._lower:
            self._lower[name] = node.kind() != "prim::Param" and self._result_is_lower(node)
        return self._lower[name]

    def _result_is_lower(self, node: Any) -> bool:
        op = name_of(node)
        policy = casts(op, self.target.type)
        if policy or op in FULL_RESULT or op in ("to", "float", "double"):
            return policy == "lower"
        sources = [source for source in node.inputs() if not is_tensor(source) or sizes(source)]
        as_first = str(node.kind()).endswith("_") or op.endswith("_norm")  # in place, or beside fp32 statistics
        sources = [s for s in (sources[:1] if as_first else sources) if _may_be_narrow(s)]
        return bool(sources) and all(self.is_lower(source) for source in sources)

    def element_b(self, value: Any, op: str = "") -> int:
        """Bytes per element, as stored; or as the operator `op` takes it, once autocast has cast it."""
        dtype = value.type().dtype()
        if self.precision != "bf16" or dtype != torch.float32:
            return int(dtype.itemsize)
        policy = casts(op, self.target.type) if op else ""
        return 2 if policy == "lower" or (not policy and self.is_lower(value)) else 4

    # ── entering ──────────────────────────────────────────────────────────────────────────────────────────────

    def entry(
        self, out: Any, op: str, phases: Mapping[str, float], shape: Mapping[str, float], moved: Iterable[Moved]
    ) -> Counter[Cost]:
        """Enter one call of an operator into the ledger.

        Args:
            out:    its first result, which says the module that called it.
            op:     the name of its lines.
            phases: FLOPs by phase, of the traced batch.
            shape:  what formulas need to know of it.
            moved:  operands that its kernels read or write; scalars move nothing.

        Returns:
            FLOPs and bytes of the traced batch. Under autocast the casts of operands are lines of their own.
        """
        module, operator = out.node().scopeName().split("/")[-1], name_of(out.node())
        results = {result.debugName() for result in out.node().outputs()}
        costs: Counter[Cost] = Counter()  # int-like arithmetic; fvcore adds these up

        def add(cost: Cost, amount: float) -> None:
            costs[cost] += amount  # type: ignore[assignment]

        for phase, flop in phases.items():
            add(Cost(phase, module, op, tuple(shape.items())), flop)
        for phase, operand, value, count, width_b in moved:
            if not is_tensor(value) or not sizes(value):
                continue
            number, per_step = prod(sizes(value)), self.per_step(value)
            stored_b, seen_b = self.element_b(value), self.element_b(value, operator)
            cost = Cost(phase, module, op, tuple(shape.items()), operand, per_step)
            add(cost, (number if count is None else count) * (seen_b if width_b is None else width_b))
            if phase == FORWARD and stored_b != seen_b and value.debugName() not in results:
                gradient = INPUT_GRADIENT if self.origin(value)[0] else WEIGHT_GRADIENT
                cast_b, operand = number * (stored_b + seen_b), "w" if per_step else "x"
                for cast_phase in [FORWARD, *[gradient] * learns(value)]:
                    add(Cost(cast_phase, module, "cast", (), operand, per_step), cast_b)
        return costs


def _may_be_narrow(value: Any) -> bool:
    """A floating tensor, or a list that may hold some; no integer, size or constant."""
    if is_tensor(value):
        return bool(value.type().dtype().is_floating_point)
    return "Tensor" in str(value.type())
