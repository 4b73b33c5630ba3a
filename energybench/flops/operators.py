"""The ledger's knowledge of operators: what each costs forward and backward, read from a traced graph.

A handle gets the operator's inputs and outputs as torch._C.Value, which know shape, type and strides, and answers with
Costs. Whether a tensor gets a gradient, `Values.learns` says. Here stand the products, convolutions and attention; in
recurrent.py recurrent layers; in moves.py what only moves bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import torch

from energybench.flops.differentiation import Differentiation
from energybench.flops.graph import elements, is_tensor, sizes
from energybench.flops.moves import Movers
from energybench.flops.recurrent import Recurrent
from energybench.flops.unpriced import matrix_work
from energybench.flops.values import Entry, Moved, Values
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT

Handle = Callable[[list[Any], list[Any]], list[Entry]]
# A kernel that is not fused writes and reads its scores: QKᵀ, softmax, PV; then dP, dV, dS, dQ, dK.
SCORES_FORWARD, SCORES_BACKWARD = 4, 7
# What a trace calls by names that others of `matrix_work` have, and what multiplies no matrices.
_NO_PRODUCTS = frozenset({"aten.linalg_norm", "aten.linalg_vecdot", "aten.linalg_diagonal"})
DISTANCES_ONE_BY_ONE = 25  # rows, up to which torch.cdist multiplies no matrices


class Handles:
    """The handle of every operator, by its name.

    Args:
        target:    the device that training will run on.
        inputs:    how many tensors the traced call was given.
        batch:     samples in the traced call.
        gradients: which values get a gradient.
        precision: of training, "fp32", "bf16" or "fp16".
        fused:     of each call of attention, whether torch took a fused kernel.
    """

    def __init__(
        self,
        target: torch.device,
        inputs: int,
        batch: int,
        gradients: Differentiation,
        precision: str = "fp32",
        fused: Iterable[bool] = (),
    ) -> None:
        self.target = target
        self.values = Values(target, inputs, batch, gradients, precision)
        self.learns = self.values.learns
        self._fused = iter(fused)
        self.movers = Movers(self.values)
        self._priced = self._by_name()
        self._handles = self.movers.by_name() | self._priced

    def entries(self, node: Any) -> list[Entry]:
        """What one node costs; nothing where nobody knows its operator."""
        outputs = list(node.outputs())
        self.values.note(outputs)
        handle = self._handles.get(str(node.kind()))
        return handle(list(node.inputs()), outputs) if handle else []

    def unknown(self, node: Any) -> str:
        """The name of an operator that may hide products and has no formula here; empty for every other. A custom
        autograd.Function is one: nobody sees into it while it is traced."""
        kind = str(node.kind())
        if kind == "prim::PythonOp":
            return str(node.pyname())
        name = kind.replace("::", ".")
        known = kind in self._priced or kind.startswith("prim::") or name in _NO_PRODUCTS
        return "" if known or not matrix_work(name) else name

    def _by_name(self) -> dict[str, Handle]:
        """Of those that have FLOPs."""
        recurrent = Recurrent(self.values)
        chains = ("linalg_multi_dot", "chain_matmul")
        return {
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
            **{f"aten::{op}": self.product for op in ("matmul", "linalg_matmul", "mm", "bmm", "mv", "dot", "vdot")},
            **{
                f"aten::{op}{place}": lambda inputs, outputs: self.product(inputs[1:], outputs, added=inputs[0])
                for op in ("addmm", "baddbmm", "addbmm", "addmv")
                for place in ("", "_")
            },
            **{f"aten::{op}": lambda inputs, outputs: self.chain(elements(inputs[0]), outputs) for op in chains},
            **{f"aten::{op}": self.power for op in ("matrix_power", "linalg_matrix_power")},
            **{f"aten::{op}": self.covariance for op in ("cov", "corrcoef")},
            **{f"aten::{op}": self.grouped for op in ("_grouped_mm", "grouped_mm")},
            "aten::cdist": self.distances,
            "aten::bilinear": self.bilinear,
            "aten::addr": self.outer,
            "aten::affine_grid_generator": self.affine_grid,
            **{f"aten::{op}": partial(recurrent.layers, name=op) for op in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
            **{f"aten::{op}_cell": recurrent.cell for op in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
        }

    def convolution(self, inputs: list[Any], outputs: list[Any], transposed: bool, groups: int) -> list[Entry]:
        x, w, out = sizes(inputs[0]), sizes(inputs[1]), sizes(outputs[0])
        flop = 2.0 * x[0] * prod((x if transposed else out)[2:]) * prod(w)
        shape = {"in": x[1], "out": out[1], "kernel": prod(w[2:]), "groups": groups}
        shape["positions"] = prod(out[2:])
        return self.layer(flop, "conv", inputs[:3], outputs[0], shape)

    def linear(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        x, w = sizes(inputs[0]), sizes(inputs[1])
        if len(w) == 1:
            return self.product(inputs[:2], outputs)
        shape = {"in": x[-1], "out": w[0], "positions": prod(x[:-1])}
        return self.layer(2.0 * prod(x) * w[0], "linear", inputs[:3], outputs[0], shape)

    def layer(self, flop: float, op: str, operands: list[Any], y: Any, shape: Mapping[str, float]) -> list[Entry]:
        """Forward x + w + y; dW x + dy + dw; dX dy + w + dx. The bias belongs to the weights.

        A kernel that is made from inputs is no weight: its gradient is that of an input, and where `x` is made of
        parameters alone then, that one's is the weight's.
        """
        x, w, bias = operands
        x_is_weight, w_is_weight = self.values.are_weights(x, w)
        of_w = WEIGHT_GRADIENT if w_is_weight or not is_tensor(w) else INPUT_GRADIENT
        of_x = WEIGHT_GRADIENT if x_is_weight and not w_is_weight else INPUT_GRADIENT
        phases = {FORWARD: flop}
        moved = [Moved(FORWARD, name, value) for name, value in (("x", x), ("w", w), ("bias", bias), ("y", y))]
        if self.learns(y) and self.learns(w):
            phases[of_w] = flop
            moved += [Moved(of_w, name, value) for name, value in (("x", x), ("dy", y), ("dw", w))]
            moved += [Moved(of_w, "dbias", bias)] if self.learns(bias) else []
        if self.learns(y) and self.learns(x):
            phases[of_x] = phases.get(of_x, 0.0) + flop
            moved += [Moved(of_x, name, value) for name, value in (("dy", y), ("w", w), ("dx", x))]
        return self.values.entry(y, op, phases, shape, moved)

    def product(self, inputs: list[Any], outputs: list[Any], added: Any = None) -> list[Entry]:
        """(..., m, k) @ (..., k, n) with broadcasting, and what is `added`.

        The gradient of a matrix that multiplies a vector is an outer product: it sums nothing, so it is 0.
        """
        a, b = sizes(inputs[0]), sizes(inputs[1])
        rows, columns = (a[-2] if len(a) > 1 else 1), (b[-1] if len(b) > 1 else 1)
        stacks = prod(torch.broadcast_shapes(a[:-2], b[:-2]))
        flop = 2.0 * stacks * rows * a[-1] * columns
        by_vector = len(b) == 1 or (len(a) == 1 and len(b) > 2)  # torch computes vector @ matrix as matrices
        pairs = [(inputs[0], not by_vector or (len(a) < len(b))), (inputs[1], not by_vector or len(b) < len(a))]
        shape = {"stacks": stacks, "rows": rows, "inner": a[-1], "columns": columns}
        return self.two_operands(outputs[0], flop, pairs, shape, added)

    def tensordot(self, inputs: list[Any], outputs: list[Any], summed: list[int]) -> list[Entry]:
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
    ) -> list[Entry]:
        """`operands`: each with whether its gradient is a product that sums; `read`: all that the kernel reads."""
        phases, weights = {FORWARD: flop}, self.values.are_weights(*(operand for operand, _ in operands))
        for (operand, sums), weight in zip(operands, weights, strict=True):
            if self.learns(out) and self.learns(operand) and sums:
                phase = WEIGHT_GRADIENT if weight else INPUT_GRADIENT
                phases[phase] = phases.get(phase, 0.0) + flop
        factors = [operand for operand, _ in operands]
        moved = [*self.factors(factors if read is None else read, out, phases), *self.bias(added, out, phases)]
        return self.values.entry(out, "linear" if sum(weights) == 1 else "matmul", phases, shape, moved)

    def factors(self, operands: list[Any], out: Any, phases: Iterable[str]) -> Iterator[Moved]:
        """A product reads each factor and writes the result; each gradient reads dy and the other factors."""
        if not operands:
            return
        weights = self.values.are_weights(*operands)
        names = ["w" if weight else "x" for weight in weights] if sum(weights) == 1 else list("abcdefgh")
        yield from (Moved(FORWARD, name, operand) for name, operand in zip(names, operands, strict=False))
        yield Moved(FORWARD, "y", out)
        for place, operand in enumerate(operands):
            phase = WEIGHT_GRADIENT if weights[place] else INPUT_GRADIENT
            if self.learns(out) and self.learns(operand) and phase in phases:
                yield Moved(phase, "dy", out)
                yield Moved(phase, f"d{names[place]}", operand)
                others = (Moved(phase, names[k], other) for k, other in enumerate(operands) if k != place)
                yield from others

    def bias(self, added: Any, out: Any, phases: Iterable[str]) -> Iterator[Moved]:
        if added is not None and is_tensor(added):
            yield Moved(FORWARD, "bias", added)
            if self.learns(out) and self.values.is_weight(added) and self.learns(added) and WEIGHT_GRADIENT in phases:
                yield Moved(WEIGHT_GRADIENT, "dbias", added)

    def attention(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        query, key, value = (sizes(tensor) for tensor in inputs[:3])
        pairs = prod(query[:-1]) * key[-2]
        scores, mixed = 2.0 * pairs * query[-1], 2.0 * pairs * value[-1]
        phases = {FORWARD: scores + mixed}
        learns_scores, learns_value = self.learns(inputs[0]) + self.learns(inputs[1]), self.learns(inputs[2])
        fused = next(self._fused, self.target.type != "cpu" and len(query) == 4)
        if self.learns(outputs[0]) and (learns_scores or learns_value):
            if fused:
                phases[INPUT_GRADIENT] = 3 * scores + 2 * mixed
            else:
                back = mixed * (bool(learns_scores or self.learns(inputs[3])) + learns_value) + scores * learns_scores
                phases[INPUT_GRADIENT] = back
        shape = {"heads": prod(query[:-2]), "queries": query[-2], "keys": key[-2]}
        shape["head"] = query[-1]
        operands = list(zip("qkv", inputs[:3], strict=True))
        moved = [Moved(FORWARD, name, operand) for name, operand in [*operands, ("mask", inputs[3]), ("y", outputs[0])]]
        if INPUT_GRADIENT in phases:
            moved += [
                Moved(INPUT_GRADIENT, name, operand)
                for name, operand in [*operands, ("dy", outputs[0]), ("y", outputs[0])]
            ]
            moved += [Moved(INPUT_GRADIENT, f"d{name}", operand) for name, operand in operands if self.learns(operand)]
        for phase, times in ((FORWARD, SCORES_FORWARD), (INPUT_GRADIENT, SCORES_BACKWARD)):
            if phase in phases and not fused:
                moved.append(Moved(phase, "scores", inputs[0], elements=times * pairs))
        return self.values.entry(outputs[0], "attention", phases, shape, moved)

    def chain(self, factors: list[Any], outputs: list[Any]) -> list[Entry]:
        """Several matrices, multiplied in the order that takes the fewest FLOPs, as torch does.

        A vector at either end is a matrix of one row or column here.
        """
        extents = [sizes(factor) for factor in factors]
        sides = [extents[0][0] if len(extents[0]) > 1 else 1, *(extent[0] for extent in extents[1:])]
        sides.append(extents[-1][-1] if len(extents[-1]) > 1 else 1)
        weights, learned = [self.values.is_weight(each) for each in factors], [self.learns(each) for each in factors]
        phases: dict[str, float] = {FORWARD: 0.0}

        def multiply(first: int, last: int) -> None:
            if first == last:
                return
            middle = split[first, last]
            multiply(first, middle)
            multiply(middle + 1, last)
            flop = 2.0 * sides[first] * sides[middle + 1] * sides[last + 1]
            phases[FORWARD] += flop
            for part in (slice(first, middle + 1), slice(middle + 1, last + 1)):
                if self.learns(outputs[0]) and any(learned[part]):
                    phase = WEIGHT_GRADIENT if all(weights[part]) else INPUT_GRADIENT
                    phases[phase] = phases.get(phase, 0.0) + flop

        split = _cheapest_order(sides)
        multiply(0, len(factors) - 1)
        shape = {"matrices": len(factors)}
        return self.values.entry(outputs[0], "matmul", phases, shape, self.factors(factors, outputs[0], phases))

    def power(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """Squares, and a product for each further bit of the exponent; each has two operands that learn."""
        extent, exponent = sizes(inputs[0]), abs(int(inputs[1].toIValue()))
        products = max(0, exponent.bit_length() - 1 + exponent.bit_count() - 1)
        return self.alike(inputs[0], outputs[0], 2.0 * products * prod(extent) * extent[-1], {"products": products})

    def covariance(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """Of rows that each hold the values of one variable: X Xᵀ."""
        extent = sizes(inputs[0])
        variables = extent[0] if len(extent) > 1 else 1
        return self.alike(inputs[0], outputs[0], 2.0 * prod(extent) * variables, {"rows": variables})

    def grouped(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """Rows that are sorted into groups, each times its group's matrix: (rows, k) @ (groups, k, n), and its like."""
        a, b = sizes(inputs[0]), sizes(inputs[1])
        flop = 2.0 * prod(a[1:] if len(a) > len(b) else a) * b[-1]
        return self.two_operands(outputs[0], flop, [(inputs[0], True), (inputs[1], True)], {"inner": a[-1]})

    def distances(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """Euclidean ones of more than 25 rows come from a product of the rows, with their norms and ones beside them.

        Its backward computes both gradients, whichever is asked for.
        """
        a, b = sizes(inputs[0]), sizes(inputs[1])
        p, mode = inputs[2].toIValue(), inputs[3].toIValue() or 0
        multiplies = p == 2 and (mode == 1 or (mode == 0 and max(a[-2], b[-2]) > DISTANCES_ONE_BY_ONE))
        if not multiplies:
            return self.movers.other(inputs, outputs)
        pairs = 2.0 * prod(sizes(outputs[0]))
        phases = {FORWARD: pairs * (a[-1] + 2)}
        for operand, weight in zip(inputs[:2], self.values.are_weights(*inputs[:2]), strict=True):
            if self.learns(outputs[0]):
                phase = WEIGHT_GRADIENT if weight and self.learns(operand) else INPUT_GRADIENT
                phases[phase] = phases.get(phase, 0.0) + pairs * a[-1]
        shape = {"rows": a[-2], "inner": a[-1], "columns": b[-2]}
        return self.values.entry(outputs[0], "matmul", phases, shape, self.factors(inputs[:2], outputs[0], phases))

    def bilinear(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """x W_o for each output, then its inner product with y; each gradient contracts as much as the first."""
        out, (_, left, right) = outputs[0], sizes(inputs[2])
        inner = 2.0 * prod(sizes(out)) * right
        operands = [(operand, True) for operand in inputs[:3]]
        products = self.two_operands(out, inner * left, operands, {"in": left, "out": sizes(out)[-1]}, inputs[3])
        return [*products, *self.values.entry(out, "matmul", {FORWARD: inner}, {"inner": right}, [])]

    def outer(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """An outer product, which sums nothing, is added to a matrix; its vectors' gradients are matrix × vector."""
        out, vectors = outputs[0], inputs[1:3]
        phases: dict[str, float] = {}
        for vector, weight in zip(vectors, self.values.are_weights(*vectors), strict=True):
            if self.learns(out) and self.learns(vector):
                phase = WEIGHT_GRADIENT if weight else INPUT_GRADIENT
                phases[phase] = phases.get(phase, 0.0) + 2.0 * prod(sizes(out))
        return self.values.entry(out, "matmul", phases, {}, self.factors(vectors, out, phases))

    def affine_grid(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """Every point, with a one beside its coordinates, times the sample's matrix."""
        theta, out = inputs[0], outputs[0]
        flop = 2.0 * prod(sizes(out)) * sizes(theta)[-1]
        return self.two_operands(out, flop, [(theta, True)], {"inner": sizes(theta)[-1]})

    def alike(self, operand: Any, out: Any, flop: float, shape: Mapping[str, float]) -> list[Entry]:
        """Products of a matrix with itself."""
        return self.two_operands(out, flop, [(operand, True), (operand, True)], shape, read=[operand])

    def einsum(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """FLOPs: left to right, two at a time, as torch contracts them. Bytes: as one kernel."""
        operands = elements(inputs[1])
        *terms, result = _subscripts(inputs[0].toIValue(), [len(sizes(operand)) for operand in operands])
        extent: dict[str, int] = {}
        for term, operand in zip(terms, operands, strict=True):
            for letter, size in zip(term, sizes(operand), strict=True):
                extent[letter] = max(size, extent.get(letter, 1))
        total: list[Entry] = []
        left, made_of = set(terms[0]), operands[:1]
        for position, operand in enumerate(operands[1:], start=1):
            right, needed_later = set(terms[position]), set(result).union(*terms[position + 1 :])
            summed = (left & right) - needed_later
            used = (left | right) & (needed_later | summed)  # what only one side has is summed before
            if summed:
                flop = 2.0 * prod(extent[letter] for letter in used)
                shape = {"inner": prod(extent[letter] for letter in summed)}
                pair = [(max(made_of, key=self.learns), True), (operand, True)]
                total += self.two_operands(outputs[0], flop, pair, shape, read=[] if total else operands)
            left, made_of = (left | right) & needed_later, [*made_of, operand]
        if total:
            return total
        everywhere = {FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT}  # nothing is summed: it only moves
        return self.values.entry(outputs[0], "elementwise", {}, {}, self.factors(operands, outputs[0], everywhere))


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


def _cheapest_order(sides: list[int]) -> dict[tuple[int, int], int]:
    """Of matrices (sides[i], sides[i + 1]): where the product of first … last is cut in two (Cormen et al., 15.2)."""
    count = len(sides) - 1
    cost = {(place, place): 0 for place in range(count)}
    split: dict[tuple[int, int], int] = {}
    for length in range(1, count):
        for first in range(count - length):
            last = first + length
            cuts = [
                (cost[first, cut] + cost[cut + 1, last] + sides[first] * sides[cut + 1] * sides[last + 1], cut)
                for cut in range(first, last)
            ]
            first_of_equals = (lambda each: each) if count > 3 else (lambda each: (each[0], -each[1]))  # as torch does
            cost[first, last], split[first, last] = min(cuts, key=first_of_equals)
    return split
