"""Facts about the values of fvcore's trace, and how an operator's cost is entered.

fvcore hands over torch._C.Value: shape, type, whether a gradient is required, and the node that made it. From there
one can walk back to what the graph starts from, inputs and parameters. Which values get a gradient, differentiation.py
says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch

from energybench.flops.autocast import FULL_RESULT, NARROW, casts
from energybench.flops.differentiation import Differentiation
from energybench.flops.graph import is_tensor, name_of, sizes
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT

COMPLEX = 4  # real multiply-adds in a complex one
TABLES = frozenset({"embedding", "embedding_bag"})  # their rows are activations, whoever learns them


@dataclass(frozen=True)
class Cost:
    """A Line, or the bytes of one of its operands, without the number.

    shape:    of the traced batch
    operand:  "" for FLOPs
    per_step: what one trace alone says of its growth: nothing of an input in it, or no room for the batch
    """

    phase: str
    module: str
    op: str
    shape: tuple[tuple[str, float], ...]
    operand: str = ""
    per_step: bool = False


Entry = tuple[Cost, float]


class Moved(NamedTuple):
    """One operand that a kernel reads or writes once, `value`'s own size unless `elements` or `element_b` say else."""

    phase: str
    operand: str
    value: Any
    elements: float | None = None
    element_b: int | None = None


class Values:
    """What is known of a traced graph's values: their origin, and their width in training.

    target:    the device that will train
    inputs:    how many of the graph's first values are inputs; the others it starts from are parameters and buffers
    batch:     samples in the traced batch
    gradients: which values get a gradient
    precision: "fp32", or "bf16" or "fp16" for what autocast to it does on that device
    """

    def __init__(
        self, target: torch.device, inputs: int, batch: int, gradients: Differentiation, precision: str = "fp32"
    ) -> None:
        self.target, self.inputs, self.batch, self.precision = target, inputs, batch, precision
        self.learns = gradients.learns
        self._origins: dict[str, tuple[bool, bool]] = {}
        self._data_origins: dict[str, tuple[bool, bool]] = {}
        self._lower: dict[str, bool] = {}

    # ── where a value comes from ──────────────────────────────────────────────────────────────────────────────

    def note(self, values: Iterable[Any]) -> None:
        """Remember these, so that no later walk back goes further than them."""
        for value in values:
            self.origin(value)
            self._data_origin(value)
            self.is_lower(value)

    def origin(self, value: Any) -> tuple[bool, bool]:
        """(made of inputs, made of parameters or buffers)."""
        return self._walk_back(value, self._origins, lambda _: True)

    def _data_origin(self, value: Any) -> tuple[bool, bool]:
        """The same, without what only chooses: indices and masks."""

        def carries_data(source: Any) -> bool:
            return not is_tensor(source) or source.type().dtype().is_floating_point or name_of(node) in TABLES

        node = value.node()
        return self._walk_back(value, self._data_origins, carries_data)

    def _walk_back(
        self, value: Any, known: dict[str, tuple[bool, bool]], counts: Callable[[Any], bool]
    ) -> tuple[bool, bool]:
        name, node = value.debugName(), value.node()
        if name not in known:
            if node.kind() == "prim::Param":
                for place, start in enumerate(node.outputs()):
                    known[start.debugName()] = (place < self.inputs, place >= self.inputs)
            else:
                walk = self.origin if known is self._origins else self._data_origin
                origins = [walk(source) for source in node.inputs() if counts(source)]
                known[name] = (any(x for x, _ in origins), any(w for _, w in origins))
        return known[name]

    def is_weight(self, value: Any) -> bool:
        """Made of parameters alone? An expert's weights stay weights, whichever input chose them."""
        return self._data_origin(value) == (False, True)

    def are_weights(self, *operands: Any) -> list[bool]:
        """Of the factors of one product. Where all are made of parameters alone, one that inputs chose is no weight."""
        weights = [self.is_weight(operand) for operand in operands]
        chosen = [self.origin(operand)[0] for operand in operands]
        if all(weights) and not all(chosen):
            return [not each for each in chosen]
        return weights

    def per_step(self, value: Any) -> bool:
        """Whether one trace takes its size for independent of the batch: nothing of an input in it, or no room."""
        return not self.origin(value)[0] or bool(prod(sizes(value)) % self.batch)

    # ── how wide it is ────────────────────────────────────────────────────────────────────────────────────────

    def is_lower(self, value: Any) -> bool:
        """Whether this fp32 value of the trace is narrow in training: bf16 or fp16, 2 bytes either."""
        if self.precision not in NARROW:
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
        if self.precision not in NARROW or dtype != torch.float32:
            return int(dtype.itemsize)
        policy = casts(op, self.target.type) if op else ""
        return 2 if policy == "lower" or (not policy and self.is_lower(value)) else 4

    # ── entering ──────────────────────────────────────────────────────────────────────────────────────────────

    def entry(
        self, out: Any, op: str, phases: Mapping[str, float], shape: Mapping[str, float], moved: Iterable[Moved]
    ) -> list[Entry]:
        """Enter one call of an operator into the ledger.

        Args:
            out:    its first result, which says the module that called it.
            op:     the name of its lines.
            phases: FLOPs by phase, of the traced batch.
            shape:  what formulas need to know of it, of the traced batch too.
            moved:  operands that its kernels read or write; scalars move nothing.

        Returns:
            FLOPs and bytes of the traced batch. Under autocast the casts of operands are lines of their own.
        """
        module, operator = out.node().scopeName().split("/")[-1], name_of(out.node())
        results = {result.debugName() for result in out.node().outputs()}
        extent = tuple(shape.items())
        reals = COMPLEX if is_tensor(out) and out.type().dtype().is_complex else 1
        costs: list[Entry] = [
            (Cost(phase, module, op, extent, per_step=not self.origin(out)[0]), reals * flop)
            for phase, flop in phases.items()
        ]
        for phase, operand, value, count, width_b in moved:
            if not is_tensor(value) or not sizes(value):
                continue
            number, per_step = prod(sizes(value)), self.per_step(value)
            stored_b, seen_b = self.element_b(value), self.element_b(value, operator)
            cost = Cost(phase, module, op, extent, operand, per_step)
            costs.append((cost, (number if count is None else count) * (seen_b if width_b is None else width_b)))
            if phase == FORWARD and stored_b != seen_b and value.debugName() not in results:
                from_input = self.origin(value)[0]
                gradient = INPUT_GRADIENT if from_input else WEIGHT_GRADIENT
                cast_b, operand = number * (stored_b + seen_b), "x" if from_input else "w"
                for cast_phase in [FORWARD, *[gradient] * self.learns(value)]:
                    costs.append((Cost(cast_phase, module, "cast", (), operand, per_step), cast_b))
        return costs


def _may_be_narrow(value: Any) -> bool:
    """A floating tensor, or a list that may hold some; no integer, size or constant."""
    if is_tensor(value):
        return bool(value.type().dtype().is_floating_point)
    return "Tensor" in str(value.type())
