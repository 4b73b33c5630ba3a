"""The ledger's knowledge of operators: what each costs forward and backward, read from fvcore's trace.

fvcore calls a handle with the operator's inputs and outputs as torch._C.Value: shape, type, and whether the
tensor requires a gradient. A handle answers with a Counter whose keys say phase, module, operator and shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from energybench.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT

Sizes = list[int]


@dataclass(frozen=True)
class Cost:
    """A key of fvcore's counters: a Line without its FLOPs."""

    phase: str
    module: str
    op: str
    shape: tuple[tuple[str, float], ...]


def _sizes(value: Any) -> Sizes:
    return list(value.type().sizes())


def _learns(value: Any) -> bool:
    return bool(value.isCompleteTensor() and value.type().requires_grad())


def _elements(value: Any) -> list[Any]:
    """Of a traced list."""
    return list(value.node().inputs())


class Handles:
    def __init__(self, target: torch.device, inputs: int, batch: int) -> None:
        self.target = target
        self.inputs = inputs  # the graph's first values; the others it starts from are parameters and buffers
        self.batch = batch
        self._starts: list[str] = []

    def by_name(self) -> dict[str, Callable[[list[Any], list[Any]], Any]]:
        return {
            "aten::_convolution": lambda i, o: self.convolution(i, o, i[6].toIValue(), i[8].toIValue()),
            "aten::_convolution_mode": lambda i, o: self.convolution(i, o, False, i[6].toIValue()),
            "aten::linear": self.linear,
            "aten::scaled_dot_product_attention": self.attention,
            "aten::einsum": self.einsum,
            "aten::tensordot": lambda i, o: self.tensordot(i, o, [d.toIValue() for d in _elements(i[3])]),
            "aten::inner": lambda i, o: self.tensordot(i, o, [-1]),
            **{f"aten::{op}": self.product for op in ("matmul", "mm", "bmm", "mv", "dot", "vdot")},
            **{
                f"aten::{op}{place}": lambda i, o: self.product(i[1:], o)
                for op in ("addmm", "baddbmm", "addbmm", "addmv")
                for place in ("", "_")
            },
            **{
                f"aten::{op}": partial(self.recurrent, name=op)
                for op in ("lstm", "gru", "rnn_tanh", "rnn_relu")
            },
            **{f"aten::{op}_cell": self.cell for op in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
        }

    def entry(self, out: Any, op: str, phases: dict[str, float], shape: Mapping[str, float]) -> Counter[Cost]:
        owner = out.node().scopeName().split("/")[-1]
        found: Counter[Cost] = Counter()  # int-like arithmetic; fvcore adds these up
        for phase, flop in phases.items():
            found[Cost(phase, owner, op, tuple(shape.items()))] += flop  # type: ignore[assignment]
        return found

    def per_sample(self, sizes: Sizes) -> float:
        """A product of sizes of which one holds the batch, wherever it stands."""
        return prod(sizes) / self.batch

    def convolution(self, i: list[Any], o: list[Any], transposed: bool, groups: int) -> Counter[Cost]:
        x, w, out = _sizes(i[0]), _sizes(i[1]), _sizes(o[0])
        flop = 2.0 * x[0] * prod((x if transposed else out)[2:]) * prod(w)
        shape = {"in": x[1], "out": out[1], "kernel": prod(w[2:]), "groups": groups}
        shape["positions"] = prod(out[2:])
        return self.entry(o[0], "conv", _three(flop, i, o), shape)

    def linear(self, i: list[Any], o: list[Any]) -> Counter[Cost]:
        x, w = _sizes(i[0]), _sizes(i[1])
        if len(w) == 1:
            return self.product(i[:2], o)
        flop = 2.0 * prod(x) * w[0]
        shape = {"in": x[-1], "out": w[0], "positions": self.per_sample(x[:-1])}
        return self.entry(o[0], "linear", _three(flop, i, o), shape)

    def product(self, i: list[Any], o: list[Any]) -> Counter[Cost]:
        """(..., m, k) @ (..., k, n) with broadcasting.

        The gradient of a matrix that multiplies a vector is an outer product: it sums nothing, so it is 0.
        """
        a, b = _sizes(i[0]), _sizes(i[1])
        rows, columns = (a[-2] if len(a) > 1 else 1), (b[-1] if len(b) > 1 else 1)
        stacks = prod(torch.broadcast_shapes(a[:-2], b[:-2]))
        flop = 2.0 * stacks * rows * a[-1] * columns
        by_vector = len(b) == 1 or (len(a) == 1 and len(b) > 2)  # torch computes vector @ matrix as matrices
        pairs = [(i[0], not by_vector or (len(a) < len(b))), (i[1], not by_vector or len(b) < len(a))]
        shape = {"stacks": self.per_sample([stacks]), "rows": rows, "inner": a[-1], "columns": columns}
        return self.two_operands(o[0], flop, pairs, shape)

    def tensordot(self, i: list[Any], o: list[Any], summed: list[int]) -> Counter[Cost]:
        a, b = _sizes(i[0]), _sizes(i[1])
        inner = prod(b[dimension] for dimension in summed)
        flop = 2.0 * prod(a) * prod(b) / inner
        return self.two_operands(o[0], flop, [(i[0], True), (i[1], True)], {"inner": inner})

    def two_operands(
        self, out: Any, flop: float, operands: list[tuple[Any, bool]], shape: Mapping[str, float]
    ) -> Counter[Cost]:
        phases = {FORWARD: flop}
        weights = [self.is_weight(operand) for operand, _ in operands]
        for (operand, sums), weight in zip(operands, weights, strict=True):
            if _learns(out) and _learns(operand) and sums:
                phase = WEIGHT_GRADIENT if weight else INPUT_GRADIENT
                phases[phase] = phases.get(phase, 0.0) + flop
        return self.entry(out, "linear" if sum(weights) == 1 else "matmul", phases, shape)

    def is_weight(self, value: Any) -> bool:
        """Made of parameters alone? Walks back to what the graph starts from."""
        seen: set[str] = set()
        stack = [value]
        learns = False
        while stack:
            current = stack.pop()
            name, node = current.debugName(), current.node()
            if name in seen:
                continue
            seen.add(name)
            if node.kind() == "prim::Param":
                starts = self._starts or [start.debugName() for start in node.outputs()]
                self._starts = starts
                if starts.index(name) < self.inputs:
                    return False
                learns = True
            else:
                stack.extend(node.inputs())
        return learns

    def attention(self, i: list[Any], o: list[Any]) -> Counter[Cost]:
        query, key, value = (_sizes(tensor) for tensor in i[:3])
        pairs = prod(query[:-1]) * key[-2]
        scores, mixed = 2.0 * pairs * query[-1], 2.0 * pairs * value[-1]
        phases = {FORWARD: scores + mixed}
        learns_scores, learns_value = _learns(i[0]) + _learns(i[1]), _learns(i[2])
        if _learns(o[0]) and (learns_scores or learns_value):
            if self.fused(i):
                phases[INPUT_GRADIENT] = 3 * scores + 2 * mixed
            else:
                back = mixed * (bool(learns_scores or _learns(i[3])) + learns_value) + scores * learns_scores
                phases[INPUT_GRADIENT] = back
        shape = {"heads": self.per_sample(query[:-2]), "queries": query[-2], "keys": key[-2]}
        shape["head"] = query[-1]
        return self.entry(o[0], "attention", phases, shape)

    def fused(self, i: list[Any]) -> bool:
        """Asks torch which kernel it would take for such tensors on the target device."""

        def like(value: Any) -> Tensor | None:
            if not value.isCompleteTensor():
                return None
            sizes, dtype = _sizes(value), value.type().dtype()
            if len(sizes) == 4 and one_batch:
                sizes[0] = 1
            return torch.empty(sizes, dtype=dtype, device=self.target, requires_grad=_learns(value))

        one_batch = len({_sizes(value)[0] for value in i[:3]}) == 1
        options = [value.toIValue() for value in i[4:6]]
        try:
            with torch.enable_grad():
                gqa = bool(i[7].toIValue())
                return torch._fused_sdp_choice(*map(like, i[:4]), *options, enable_gqa=gqa) > 0  # type: ignore
        except (RuntimeError, AssertionError):  # a device that this machine lacks
            return self.target.type != "cpu" and len(_sizes(i[0])) == 4

    def einsum(self, i: list[Any], o: list[Any]) -> Counter[Cost]:
        """Left to right, two at a time, as torch contracts them."""
        operands = _elements(i[1])
        *terms, result = _subscripts(i[0].toIValue(), [len(_sizes(operand)) for operand in operands])
        extent: dict[str, int] = {}
        for term, operand in zip(terms, operands, strict=True):
            for letter, size in zip(term, _sizes(operand), strict=True):
                extent[letter] = max(size, extent.get(letter, 1))
        total: Counter[Cost] = Counter()
        left, made_of = set(terms[0]), operands[:1]
        for position, operand in enumerate(operands[1:], start=1):
            right, kept = set(terms[position]), set(result).union(*terms[position + 1 :])
            summed = (left & right) - kept
            used = (left | right) & (kept | summed)  # what only one side has is summed before
            if summed:
                flop = 2.0 * prod(extent[letter] for letter in used)
                shape = {"inner": prod(extent[letter] for letter in summed)}
                pair = [(max(made_of, key=_learns), True), (operand, True)]
                total += self.two_operands(o[0], flop, pair, shape)
            left, made_of = (left | right) & kept, [*made_of, operand]
        return total

    def recurrent(self, i: list[Any], o: list[Any], name: str) -> Counter[Cost]:
        """Every weight matrix, (gates × hidden, features), at every position.

        Fused kernels (any on a GPU, a plain LSTM on a CPU) compute dX throughout. Others compute none for an
        input or a first state that does not learn.
        """
        x, last = _sizes(i[0]), _sizes(o[1])  # the last state: (layers × directions, sequences, hidden)
        lists = [_elements(value) for value in i if value.node().kind() == "prim::ListConstruct"]
        matrices = [sizes for sizes in map(_sizes, lists[-1]) if len(sizes) == 2]
        each = [2.0 * prod(x[:-1]) * prod(sizes) for sizes in matrices]
        phases = {FORWARD: sum(each)}
        if _learns(o[0]):
            phases[WEIGHT_GRADIENT] = sum(each) * _learns(lists[-1][0])
            phases[INPUT_GRADIENT] = sum(each)
            packed, per_cell = len(x) == 2, len(matrices) // last[0]
            onednn = self.target.type == "cpu" and name == "lstm" and not packed and per_cell == 2
            if self.target.type in ("cpu", "meta") and not onednn:
                directions = 1 + bool(i[-1 if packed else -2].toIValue())
                if not _learns(i[0]):
                    phases[INPUT_GRADIENT] -= sum(each[::per_cell][:directions])
                phases[INPUT_GRADIENT] -= sum(each[1::per_cell]) * last[1] / prod(x[:-1])
        shape = {"in": x[-1], "matrices": len(matrices), "positions": self.per_sample(x[:-1])}
        return self.entry(o[0], "recurrent", phases, shape)

    def cell(self, i: list[Any], o: list[Any]) -> Counter[Cost]:
        """One step: linear(input, i[2]) and linear(state, i[3])."""
        state = _elements(i[1])[0] if i[1].node().kind() == "prim::ListConstruct" else i[1]
        phases: Counter[str] = Counter()
        for x, w in ((i[0], i[2]), (state, i[3])):
            phases.update(_three(2.0 * prod(_sizes(x)) * _sizes(w)[0], [x, w], o))
        shape = {"in": _sizes(i[0])[-1], "matrices": 2, "positions": 1}
        return self.entry(o[0], "recurrent", dict(phases), shape)


def _three(flop: float, i: list[Any], o: list[Any]) -> dict[str, float]:
    """Forward; dW and dX where they are asked for."""
    phases = {FORWARD: flop}
    if _learns(o[0]):
        phases |= {WEIGHT_GRADIENT: flop} if _learns(i[1]) else {}
        phases |= {INPUT_GRADIENT: flop} if _learns(i[0]) else {}
    return phases


def _subscripts(equation: str, dimensions: list[int]) -> Iterator[str]:
    """The operands' subscripts and the result's, with `...` spelled out and an implied result made plain."""
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = list(map(chr, range(0x100, 0x100 + 64)))
    longest = ""
    for position, (term, size) in enumerate(zip(terms, dimensions, strict=True)):
        count = size - len(term.replace("...", ""))
        dots = "".join(spare[len(spare) - count :]) if "..." in term else ""
        longest = max(longest, dots, key=len)
        terms[position] = term.replace("...", dots)
    if "->" not in equation:
        letters = "".join(terms)
        once = [letter for letter in sorted(set(letters)) if letters.count(letter) == 1]
        result = "..." + "".join(letter for letter in once if letter not in longest)
    yield from terms
    yield result.replace("...", longest)
