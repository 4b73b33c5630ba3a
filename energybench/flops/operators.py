"""The ledger's knowledge of operators: what each costs forward and backward, read from fvcore's trace.

fvcore calls a handle with the operator's inputs and outputs as torch._C.Value: shape, type, and whether the
tensor requires a gradient. A handle answers with a Counter whose keys say phase, module, operator and shape.
Here stand the operators that have FLOPs; those that only move bytes are in moves.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from energybench.flops.moves import Movers
from energybench.flops.values import Cost, Moved, Values, elements, is_tensor, learns, sizes
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT

Handle = Callable[[list[Any], list[Any]], Any]
# A kernel that is not fused writes and reads its scores: QKᵀ, softmax, PV; then dP, dV, dS, dQ, dK.
SCORES_FORWARD, SCORES_BACKWARD = 4, 7


class Handles:
    """fvcore's handle of every operator, by its name.

    Args:
        target:    the device that training will run on.
        inputs:    how many tensors the traced call was given.
        batch:     samples in the traced call.
        precision: of training, "fp32" or "bf16".
    """

    def __init__(self, target: torch.device, inputs: int, batch: int, precision: str = "fp32") -> None:
        self.target = target
        self.values = Values(target, inputs, batch, precision)

    def by_name(self) -> dict[str, Handle]:
        handles: dict[str, Handle] = Movers(self.values).by_name()
        handles |= {
            "aten::_convolution": lambda inputs, outputs: self.convolution(
                inputs, outputs, inputs[6].toIValue(), inputs[8].toIValue()
            ),
            "aten::_convolution_mode": lambda inputs, outputs: self.convolution(
                inputs, outputs, False, inputs[6].toIValue()
            ),
            "aten::linear": self.linear,
            "aten::scaled_dot_product_attention": self.attention,
            "aten::einsum": self.einsum,
            "aten::tensordot": lambda inputs, outputs: self.tensordot(
                inputs, outputs, [d.toIValue() for d in elements(inputs[3])]
            ),
            "aten::inner": lambda inputs, outputs: self.tensordot(inputs, outputs, [-1]),
            **{f"aten::{op}": self.product for op in ("matmul", "mm", "bmm", "mv", "dot", "vdot")},
            **{
                f"aten::{op}{place}": lambda inputs, outputs: self.product(inputs[1:], outputs, added=inputs[0])
                for op in ("addmm", "baddbmm", "addbmm", "addmv")
                for place in ("", "_")
            },
            **{f"aten::{op}": partial(self.recurrent, name=op) for op in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
            **{f"aten::{op}_cell": self.cell for op in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
        }
        return {name: partial(self.noted, handle) for name, handle in handles.items()}

    def noted(self, handle: Handle, inputs: list[Any], outputs: list[Any]) -> Counter[Cost]:
        self.values.note(outputs)
        costs: Counter[Cost] = handle(inputs, outputs)
        return costs

    def convolution(self, inputs: list[Any], outputs: list[Any], transposed: bool, groups: int) -> Counter[Cost]:
        x, w, out = sizes(inputs[0]), sizes(inputs[1]), sizes(outputs[0])
        flop = 2.0 * x[0] * prod((x if transposed else out)[2:]) * prod(w)
        shape = {"in": x[1], "out": out[1], "kernel": prod(w[2:]), "groups": groups}
        shape["positions"] = prod(out[2:])
        phases = _three(flop, inputs, outputs)
        return self.values.entry(outputs[0], "conv", phases, shape, _layer(phases, inputs[:3], outputs[0]))

    def linear(self, inputs: list[Any], outputs: list[Any]) -> Counter[Cost]:
        x, w = sizes(inputs[0]), sizes(inputs[1])
        if len(w) == 1:
            return self.product(inputs[:2], outputs)
        flop = 2.0 * prod(x) * w[0]
        shape = {"in": x[-1], "out": w[0], "positions": self.values.per_sample(x[:-1])}
        phases = _three(flop, inputs, outputs)
        return self.values.entry(outputs[0], "linear", phases, shape, _layer(phases, inputs[:3], outputs[0]))

    def product(self, inputs: list[Any], outputs: list[Any], added: Any = None) -> Counter[Cost]:
        """(..., m, k) @ (..., k, n) with broadcasting, and what is `added`.

        The gradient of a matrix that multiplies a vector is an outer product: it sums nothing, so it is 0.
        """
        a, b = sizes(inputs[0]), sizes(inputs[1])
        rows, columns = (a[-2] if len(a) > 1 else 1), (b[-1] if len(b) > 1 else 1)
        stacks = prod(torch.broadcast_shapes(a[:-2], b[:-2]))
        flop = 2.0 * stacks * rows * a[-1] * columns
        by_vector = len(b) == 1 or (len(a) == 1 and len(b) > 2)  # torch computes vector @ matrix as matrices
        pairs = [(inputs[0], not by_vector or (len(a) < len(b))), (inputs[1], not by_vector or len(b) < len(a))]
        shape = {"stacks": self.values.per_sample([stacks]), "rows": rows, "inner": a[-1], "columns": columns}
        return self.two_operands(outputs[0], flop, pairs, shape, added)

    def tensordot(self, inputs: list[Any], outputs: list[Any], summed: list[int]) -> Counter[Cost]:
        a, b = sizes(inputs[0]), sizes(inputs[1])
        inner = prod(b[dimension] for dimension in summed)
        flop = 2.0 * prod(a) * prod(b) / inner
        return self.two_operands(outputs[0], flop, [(inputs[0], True), (inputs[1], True)], {"inner": inner})

    def two_operands(
        self,
        out: Any,
        flop: float,
        operands: list[tuple[Any, bool]],
        shape: Mapping[str, float],
        added: Any = None,
        read: list[Any] | None = None,
    ) -> Counter[Cost]:
        """`operands`: each with whether its gradient is a product that sums; `read`: all that the kernel reads."""
        phases = {FORWARD: flop}
        for operand, sums in operands:
            if learns(out) and learns(operand) and sums:
                phase = self.phase(operand)
                phases[phase] = phases.get(phase, 0.0) + flop
        factors = [operand for operand, _ in operands]
        one_weight = sum(map(self.values.is_weight, factors)) == 1
        moved = [*self.factors(factors if read is None else read, out, phases), *self.bias(added, out, phases)]
        return self.values.entry(out, "linear" if one_weight else "matmul", phases, shape, moved)

    def phase(self, operand: Any) -> str:
        """Of its gradient."""
        return WEIGHT_GRADIENT if self.values.is_weight(operand) else INPUT_GRADIENT

    def factors(self, operands: list[Any], out: Any, phases: Iterable[str]) -> Iterator[Moved]:
        """A product reads each factor and writes the result; each gradient reads dy and the other factors."""
        if not operands:
            return
        weights = [self.values.is_weight(operand) for operand in operands]
        names = ["w" if weight else "x" for weight in weights] if sum(weights) == 1 else list("abcdefgh")
        yield from (Moved(FORWARD, name, operand) for name, operand in zip(names, operands, strict=False))
        yield Moved(FORWARD, "y", out)
        for place, operand in enumerate(operands):
            phase = self.phase(operand)
            if learns(out) and learns(operand) and phase in phases:
                yield Moved(phase, "dy", out)
                yield Moved(phase, f"d{names[place]}", operand)
                others = (Moved(phase, names[k], other) for k, other in enumerate(operands) if k != place)
                yield from others

    def bias(self, added: Any, out: Any, phases: Iterable[str]) -> Iterator[Moved]:
        if added is not None and is_tensor(added):
            yield Moved(FORWARD, "bias", added)
            if learns(out) and self.values.is_weight(added) and learns(added) and WEIGHT_GRADIENT in phases:
                yield Moved(WEIGHT_GRADIENT, "dbias", added)

    def attention(self, inputs: list[Any], outputs: list[Any]) -> Counter[Cost]:
        query, key, value = (sizes(tensor) for tensor in inputs[:3])
        pairs = prod(query[:-1]) * key[-2]
        scores, mixed = 2.0 * pairs * query[-1], 2.0 * pairs * value[-1]
        phases = {FORWARD: scores + mixed}
        learns_scores, learns_value = learns(inputs[0]) + learns(inputs[1]), learns(inputs[2])
        fused = self.fused(inputs)
        if learns(outputs[0]) and (learns_scores or learns_value):
            if fused:
                phases[INPUT_GRADIENT] = 3 * scores + 2 * mixed
            else:
                back = mixed * (bool(learns_scores or learns(inputs[3])) + learns_value) + scores * learns_scores
                phases[INPUT_GRADIENT] = back
        shape = {"heads": self.values.per_sample(query[:-2]), "queries": query[-2], "keys": key[-2]}
        shape["head"] = query[-1]
        operands = list(zip("qkv", inputs[:3], strict=True))
        moved = [Moved(FORWARD, name, operand) for name, operand in [*operands, ("mask", inputs[3]), ("y", outputs[0])]]
        if INPUT_GRADIENT in phases:
            moved += [
                Moved(INPUT_GRADIENT, name, operand)
                for name, operand in [*operands, ("dy", outputs[0]), ("y", outputs[0])]
            ]
            moved += [Moved(INPUT_GRADIENT, f"d{name}", operand) for name, operand in operands if learns(operand)]
        for phase, times in ((FORWARD, SCORES_FORWARD), (INPUT_GRADIENT, SCORES_BACKWARD)):
            if phase in phases and not fused:
                moved.append(Moved(phase, "scores", inputs[0], elements=times * pairs))
        return self.values.entry(outputs[0], "attention", phases, shape, moved)

    def fused(self, inputs: list[Any]) -> bool:
        """Asks torch which kernel it would take for such tensors on the target device."""

        def like(value: Any) -> Tensor | None:
            if not value.isCompleteTensor():
                return None
            extent, dtype = sizes(value), value.type().dtype()
            if dtype == torch.float32 and self.values.element_b(value, "scaled_dot_product_attention") == 2:
                dtype = torch.bfloat16
            if len(extent) == 4 and one_batch:
                extent[0] = 1
            return torch.empty(extent, dtype=dtype, device=self.target, requires_grad=learns(value))

        one_batch = len({sizes(value)[0] for value in inputs[:3]}) == 1
        options = [value.toIValue() for value in inputs[4:6]]
        try:
            with torch.enable_grad():
                gqa = bool(inputs[7].toIValue())
                return torch._fused_sdp_choice(*map(like, inputs[:4]), *options, enable_gqa=gqa) > 0  # type: ignore
        except (RuntimeError, AssertionError):  # a device that this machine lacks
            return self.target.type != "cpu" and len(sizes(inputs[0])) == 4

    def einsum(self, inputs: list[Any], outputs: list[Any]) -> Counter[Cost]:
        """FLOPs: left to right, two at a time, as torch contracts them. Bytes: as one kernel."""
        operands = elements(inputs[1])
        *terms, result = _subscripts(inputs[0].toIValue(), [len(sizes(operand)) for operand in operands])
        extent: dict[str, int] = {}
        for term, operand in zip(terms, operands, strict=True):
            for letter, size in zip(term, sizes(operand), strict=True):
                extent[letter] = max(size, extent.get(letter, 1))
        total: Counter[Cost] = Counter()
        left, made_of = set(terms[0]), operands[:1]
        for position, operand in enumerate(operands[1:], start=1):
            right, needed_later = set(terms[position]), set(result).union(*terms[position + 1 :])
            summed = (left & right) - needed_later
            used = (left | right) & (needed_later | summed)  # what only one side has is summed before
            if summed:
                flop = 2.0 * prod(extent[letter] for letter in used)
                shape = {"inner": prod(extent[letter] for letter in summed)}
                pair = [(max(made_of, key=learns), True), (operand, True)]
                total += self.two_operands(outputs[0], flop, pair, shape, read=[] if total else operands)
            left, made_of = (left | right) & needed_later, [*made_of, operand]
        if total:
            return total
        everywhere = {FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT}  # nothing is summed: it only moves
        return self.values.entry(outputs[0], "elementwise", {}, {}, self.factors(operands, outputs[0], everywhere))

    def recurrent(self, inputs: list[Any], outputs: list[Any], name: str) -> Counter[Cost]:
        """Every weight matrix, (gates × hidden, features), at every position.

        Fused kernels (any on a GPU, a plain LSTM on a CPU) compute dX throughout. Others compute none for an
        input or a first state that does not learn. Bytes are those of one kernel: no state between the layers.
        """
        x, last = sizes(inputs[0]), sizes(outputs[1])  # the last state: (layers × directions, sequences, hidden)
        lists = [elements(value) for value in inputs if value.node().kind() == "prim::ListConstruct"]
        matrices = [extent for extent in map(sizes, lists[-1]) if len(extent) == 2]
        each = [2.0 * prod(x[:-1]) * prod(extent) for extent in matrices]
        phases = {FORWARD: sum(each)}
        if learns(outputs[0]):
            phases[WEIGHT_GRADIENT] = sum(each) * learns(lists[-1][0])
            phases[INPUT_GRADIENT] = sum(each)
            packed, per_cell = len(x) == 2, len(matrices) // last[0]
            onednn = self.target.type == "cpu" and name == "lstm" and not packed and per_cell == 2
            if self.target.type in ("cpu", "meta") and not onednn:
                directions = 1 + bool(inputs[-1 if packed else -2].toIValue())
                if not learns(inputs[0]):
                    phases[INPUT_GRADIENT] -= sum(each[::per_cell][:directions])
                phases[INPUT_GRADIENT] -= sum(each[1::per_cell]) * last[1] / prod(x[:-1])
        shape = {"in": x[-1], "matrices": len(matrices), "positions": self.values.per_sample(x[:-1])}
        moved = _cells(phases, [("x", inputs[0])], lists[-1], [outputs[0]])
        return self.values.entry(outputs[0], "recurrent", phases, shape, moved)

    def cell(self, inputs: list[Any], outputs: list[Any]) -> Counter[Cost]:
        """One step: linear(input, inputs[2]) and linear(state, inputs[3])."""
        states = elements(inputs[1]) if inputs[1].node().kind() == "prim::ListConstruct" else [inputs[1]]
        phases: Counter[str] = Counter()
        for x, w in ((inputs[0], inputs[2]), (states[0], inputs[3])):
            phases.update(_three(2.0 * prod(sizes(x)) * sizes(w)[0], [x, w], outputs))
        shape = {"in": sizes(inputs[0])[-1], "matrices": 2, "positions": 1}
        moved = _cells(phases, [("x", inputs[0]), *(("h", state) for state in states)], inputs[2:6], outputs)
        return self.values.entry(outputs[0], "recurrent", dict(phases), shape, moved)


def _three(flop: float, inputs: list[Any], outputs: list[Any]) -> dict[str, float]:
    """Forward; dW and dX where they are asked for."""
    phases = {FORWARD: flop}
    if learns(outputs[0]):
        phases |= {WEIGHT_GRADIENT: flop} if learns(inputs[1]) else {}
        phases |= {INPUT_GRADIENT: flop} if learns(inputs[0]) else {}
    return phases


def _layer(phases: Iterable[str], operands: list[Any], y: Any) -> Iterator[Moved]:
    """Forward x + w + y; dW x + dy + dw; dX dy + w + dx. The bias belongs to the weights."""
    x, w, bias = operands
    moved = {
        FORWARD: [("x", x), ("w", w), ("bias", bias), ("y", y)],
        WEIGHT_GRADIENT: [("x", x), ("dy", y), ("dw", w)] + ([("dbias", bias)] if learns(bias) else []),
        INPUT_GRADIENT: [("dy", y), ("w", w), ("dx", x)],
    }
    for phase in phases:
        yield from (Moved(phase, name, value) for name, value in moved[phase])


def _cells(
    phases: Mapping[str, float], operands: list[tuple[str, Any]], weights: list[Any], results: list[Any]
) -> Iterator[Moved]:
    """As a layer, with several operands, weights and results."""
    for phase, flop in phases.items():
        if not flop:
            continue
        forward, back = phase == FORWARD, phase == INPUT_GRADIENT
        yield from (Moved(phase, name, value) for name, value in operands if not back)
        yield from (Moved(phase, "dw" if phase == WEIGHT_GRADIENT else "w", weight) for weight in weights)
        yield from (Moved(phase, "y" if forward else "dy", result) for result in results)
        yield from (Moved(phase, f"d{name}", value) for name, value in operands if back and learns(value))


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
