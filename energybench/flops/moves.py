"""Operators that move bytes and whose FLOPs nobody counts: what each reads and writes, forward and backward.

    normalisation  forward x + y, weight and bias per step; backward x + dy + dx, their gradients per step
    element-wise   forward all operands + y; backward dy + what the derivative needs + a gradient for each operand
                   that learns: nothing for a sum, y for relu and tanh, the other factor for a product, else x
    softmax        forward x + y; backward dy + y + dx
    pooling        forward x + y, and a position of 8 bytes per result for a maximum; backward dy, positions, dx
    masking        (dropout) forward x + y + a byte of mask per element; backward dy + mask + dx
    embedding      forward the rows, not the table, + indices + y; backward dy + indices, and the whole table's gradient
    reduction, loss, copy, fill, cast, other    as for element-wise

A view moves nothing; the gradient of a part (a slice, a column) fills the whole. One kernel does all of an operator's
backward. What no single operator shows is not entered: the sum of gradients where a tensor is used twice, running
statistics, optimizer steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch

from energybench.flops.graph import PREFIX, elements, in_place, is_tensor, name_of, sizes
from energybench.flops.values import Entry, Moved, Values
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT

INDEX_B, MASK_B = 8, 1  # torch stores a maximum's position as int64, a dropout mask as bool


@dataclass(frozen=True)
class OperatorFamily:
    """What the operators of a family move.

    op:       the name of their lines in the ledger
    forward:  x: reads its operands; r: reads as much of the first as the result has; y: writes the result
    backward: what is read beside dy: x its operands, y its result, f the other factors, m operands that are no floats;
              None: nothing is moved, the gradient passes as it is
    """

    op: str
    forward: str = "xy"
    backward: str | None = "x"


PART, ELEMENTWISE, OTHER = OperatorFamily("copy", "", ""), OperatorFamily("elementwise"), OperatorFamily("other")
_FAMILIES: dict[OperatorFamily, str] = {
    OperatorFamily("view", "", None): """
        view _unsafe_view view_as flatten unflatten squeeze unsqueeze transpose t permute movedim moveaxis swapaxes
        swapdims detach alias numpy_T adjoint mT mH real view_as_real view_as_complex chunk_cat empty empty_like
        new_empty empty_strided size sym_size lift_fresh set_data""",
    PART: """
        select slice narrow split split_with_sizes chunk tensor_split unbind diagonal unfold expand expand_as
        broadcast_to broadcast_tensors unsafe_split unsafe_chunk hsplit vsplit""",
    OperatorFamily("copy", "xy", None): "clone cat concat concatenate stack hstack vstack dstack column_stack",
    OperatorFamily("copy", "xy", ""): """
        roll flip pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
        replication_pad2d replication_pad3d repeat repeat_interleave tile pixel_shuffle pixel_unshuffle tril triu
        im2col col2im rot90 channel_shuffle""",
    OperatorFamily("copy", "ry", "m"): "index index_select gather take take_along_dim masked_select",
    OperatorFamily("fill", "y", None): """
        zeros ones full eye arange linspace logspace rand randn randint randperm zeros_like ones_like full_like
        rand_like randn_like randint_like new_zeros new_ones new_full fill zero normal uniform bernoulli
        exponential random scalar_tensor""",
    OperatorFamily("elementwise", "xy", None): "add sub subtract rsub __iadd__ __isub__",
    OperatorFamily("elementwise", "xy", ""): "neg negative hardshrink",
    OperatorFamily("elementwise", "xy", "y"): """
        relu sigmoid tanh exp sqrt rsqrt reciprocal elu selu celu threshold expm1""",
    OperatorFamily("elementwise", "xy", "f"): "mul multiply div divide true_divide",
    OperatorFamily("elementwise", "xy", "m"): "masked_fill where",
    OperatorFamily("reduction", "xy", None): "sum nansum",
    OperatorFamily("reduction", "xy", ""): "mean nanmean cumsum",
    OperatorFamily("reduction", "xy", "x"): """
        var var_mean std std_mean norm linalg_vector_norm linalg_matrix_norm amax amin max min prod logsumexp
        argmax argmin median aminmax all any count_nonzero cumprod logcumsumexp topk sort argsort""",
    OperatorFamily("softmax", "xy", "y"): "softmax log_softmax _softmax _log_softmax softmin",
    OperatorFamily("pooling", "xy", ""): """
        avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
        upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact2d""",
    OperatorFamily("loss", "xy", "x"): """
        cross_entropy_loss nll_loss nll_loss2d nll_loss_nd mse_loss l1_loss smooth_l1_loss huber_loss kl_div
        binary_cross_entropy binary_cross_entropy_with_logits poisson_nll_loss ctc_loss soft_margin_loss
        multi_margin_loss multilabel_margin_loss triplet_margin_loss margin_ranking_loss hinge_embedding_loss
        cosine_embedding_loss""",
}
FAMILIES = {name: family for family, names in _FAMILIES.items() for name in names.split()}

# Where weight and bias stand among the arguments.
NORMALISATIONS = {"batch_norm": 1, "instance_norm": 1, "layer_norm": 2, "group_norm": 2, "rms_norm": 2}
MASKS = "dropout feature_dropout alpha_dropout"
MAXIMA = [f"{adaptive}max_pool{space}d" for adaptive in ("", "adaptive_") for space in (1, 2, 3)]


class Movers:
    """Handles for every operator that has no formula of its own."""

    def __init__(self, values: Values) -> None:
        self.values, self.learns = values, values.learns

    def by_name(self) -> dict[str, Callable[[list[Any], list[Any]], Any]]:
        handles: dict[str, Callable[[list[Any], list[Any]], Any]] = {
            **dict.fromkeys(NORMALISATIONS, self.normalisation),
            **dict.fromkeys(MAXIMA, self.maximum),
            **dict.fromkeys(MASKS.split(), self.masking),
            **dict.fromkeys(("embedding", "embedding_bag"), self.embedding),
            **dict.fromkeys(("reshape", "reshape_as", "contiguous"), self.reshape),
            **dict.fromkeys(("to", "type_as", "float", "double", "half", "bfloat16"), self.cast),
            "copy": self.copy,
        }
        return {
            f"{PREFIX}{name}": handles.get(name if name.startswith("__") else name.rstrip("_"), self.other)
            for name in _operators()
        }

    def other(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        if not outputs:
            return []
        name = name_of(outputs[0].node())
        reads = [tensor for tensor in _tensors(inputs) if sizes(tensor)]
        family = FAMILIES.get(name)
        if family is None:  # an unknown operator: element-wise if the result is as large as an operand
            as_large = is_tensor(outputs[0]) and any(prod(sizes(outputs[0])) == prod(sizes(read)) for read in reads)
            family = ELEMENTWISE if as_large else OTHER
        if in_place(outputs[0].node()) and family.op == "fill":
            reads = []
        if family is PART and is_tensor(outputs[0]) and reads and prod(sizes(outputs[0])) == prod(sizes(reads[0])):
            return []  # all of it
        return self.entry(family, reads, outputs)

    def entry(self, family: OperatorFamily, reads: list[Any], outputs: list[Any], *more: Moved) -> list[Entry]:
        """Of an operator of this family with these operands; `more` is moved too, in its own phases."""
        results = [out for out in outputs if is_tensor(out)]
        moved = list(more)
        if "x" in family.forward:
            moved += [Moved(FORWARD, "x", read) for read in reads]
        if "r" in family.forward:
            rows = reads[:1] if results else []
            moved += [Moved(FORWARD, "x", read, prod(sizes(results[0]))) for read in rows]
            moved += [Moved(FORWARD, "indices", read) for read in reads[1:]]
        if "y" in family.forward:
            moved += [Moved(FORWARD, "y", out) for out in results]
        return self.values.entry(outputs[0], family.op, {}, {}, [*moved, *self.backward(family, reads, outputs)])

    def backward(self, family: OperatorFamily, reads: list[Any], outputs: list[Any]) -> list[Moved]:
        """Of one kernel: it reads dy and what the derivative needs, and writes a gradient per operand that learns."""
        wanted = [read for read in reads if self.learns(read)]
        results = [out for out in outputs if is_tensor(out) and self.learns(out)]
        if outputs and is_tensor(outputs[0]) and not results:
            return []
        if family.backward is None:
            wanted = _broadcast(wanted, results) if family.op == "elementwise" else []
        if not wanted:
            return []
        phase, needs = self.phase(wanted), family.backward or ""
        return [
            *(Moved(phase, "dy", out) for out in (results or wanted)),  # parts come as a list: as large as the whole
            *(Moved(phase, "x", read) for read in self.saved(needs, reads)),
            *(Moved(phase, "y", out) for out in results if "y" in needs),
            *(Moved(phase, "dx", read) for read in wanted),
        ]

    def phase(self, wanted: list[Any]) -> str:
        return INPUT_GRADIENT if any(self.values.origin(value)[0] for value in wanted) else WEIGHT_GRADIENT

    def copy(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """x.copy_(source) reads only the source."""
        return self.entry(OperatorFamily("copy", "xy", None), _tensors(inputs[1:2]), outputs)

    def reshape(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """A view where the memory's order allows it, else a copy; its gradient is a view."""
        x, out = inputs[0], outputs[0]
        stored = torch.empty_strided(sizes(x), list(x.type().strides()), device="meta")
        try:
            laid_out = stored.view(sizes(out)).stride()
            copies = name_of(out.node()) == "contiguous" and list(laid_out) != list(out.type().strides())
        except RuntimeError:
            copies = True
        return self.entry(OperatorFamily("copy", "xy" if copies else "", None), [x], outputs)

    def cast(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        widths_b = [self.values.element_b(value) for value in (inputs[0], outputs[0])]
        moves = widths_b[0] != widths_b[1] or inputs[0].type().dtype() != outputs[0].type().dtype()
        return self.entry(
            OperatorFamily("cast", "xy", "") if moves else OperatorFamily("cast", "", None), [inputs[0]], outputs
        )

    def normalisation(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        place = NORMALISATIONS[name_of(outputs[0].node())]
        x, out = inputs[0], outputs[0]
        affine = [
            (name, value)
            for name, value in zip(("w", "bias"), inputs[place : place + 2], strict=False)
            if is_tensor(value)
        ]
        moved = [Moved(FORWARD, name, value) for name, value in affine]
        learned = [(name, value) for name, value in affine if self.learns(value)]
        if self.learns(out):
            phase = INPUT_GRADIENT if self.learns(x) else WEIGHT_GRADIENT
            moved += [Moved(phase, "x", x), Moved(phase, "dy", out)]
            moved += [Moved(phase, f"d{name}", value) for name, value in learned]
            if self.learns(x):
                moved += [Moved(phase, "dx", x), *(Moved(phase, name, value) for name, value in affine[:1])]
        return self.entry(OperatorFamily("normalisation", "xy", None), [x], outputs, *moved)

    def maximum(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        positions: list[Moved] = []
        if self.learns(outputs[0]):
            positions = [Moved(phase, "indices", outputs[0], element_b=INDEX_B) for phase in (FORWARD, INPUT_GRADIENT)]
        return self.entry(OperatorFamily("pooling", "xy", ""), [inputs[0]], outputs, *positions)

    def masking(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        probability, training = inputs[1].toIValue(), inputs[2].toIValue()
        if not probability or not training:
            return self.entry(OperatorFamily("masking", "", None), [inputs[0]], outputs)
        elementwise, *_ = MASKS.split()  # the others drop whole channels, or keep no mask of bools
        mask: list[Moved] = []
        if name_of(outputs[0].node()) == elementwise:
            back = [INPUT_GRADIENT] if self.learns(inputs[0]) else []
            mask = [Moved(phase, "mask", outputs[0], element_b=MASK_B) for phase in [FORWARD, *back]]
        return self.entry(OperatorFamily("masking", "xy", ""), [inputs[0]], outputs, *mask)

    def embedding(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        table, indices = inputs[:2]
        rows = prod(sizes(indices)) * sizes(table)[-1]
        # Rows are read per sample, so they count as the indices do; the gradient is as large as the table.
        moved = [Moved(FORWARD, "rows", indices, rows, self.values.element_b(table))]
        moved += [Moved(FORWARD, "indices", indices)]
        if self.learns(table) and self.learns(outputs[0]):
            phase = self.phase([table])
            moved += [Moved(phase, "dy", outputs[0]), Moved(phase, "indices", indices), Moved(phase, "dw", table)]
        return self.entry(OperatorFamily("embedding", "y", None), [], outputs, *moved)

    def saved(self, needs: str, reads: list[Any]) -> list[Any]:
        """The operands that the derivative needs, by the letters of OperatorFamily.backward."""
        if "f" in needs and len(reads) > 1:  # a factor is needed where another one learns
            return [
                read for place, read in enumerate(reads) if any(map(self.learns, reads[:place] + reads[place + 1 :]))
            ]
        return [read for read in reads if "x" in needs or ("m" in needs and not _floats(read))]


@cache
def _operators() -> tuple[str, ...]:
    """The names of all operators that this torch has: "add", "add_", ..."""
    names = {str(name).partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    return tuple(sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)))


def _broadcast(operands: list[Any], results: list[Any]) -> list[Any]:
    """Operands smaller than the result: their gradient has to be summed, even where dy passes as it is."""
    largest = max((prod(sizes(out)) for out in results), default=0)
    return [operand for operand in operands if prod(sizes(operand)) < largest]


def _floats(value: Any) -> bool:
    return bool(value.type().dtype().is_floating_point)


def _tensors(values: list[Any]) -> list[Any]:
    """The tensors among an operator's arguments, those in lists too."""
    tensors: list[Any] = []
    for value in values:
        if is_tensor(value):
            tensors.append(value)
        elif value.node().kind() == "prim::ListConstruct":
            tensors += [inside for inside in elements(value) if is_tensor(inside)]
    return tensors
