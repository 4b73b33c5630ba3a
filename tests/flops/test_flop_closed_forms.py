"""Every operator's FLOPs, forward and backward, from its definition: ledger and counter must both say so."""

from __future__ import annotations

from math import prod

import pytest
import torch
import torch.nn.functional as F
from flop_models import FunctionModule, counted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from energybench.flops.ledger import ledger
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT

BATCH = 2


def phases(module: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """The ledger's FLOPs of the whole batch by phase, after checking its sums against the counter."""
    lines = ledger(module, inputs)
    by_phase: dict[str, float] = {}
    for line in lines:
        by_phase[line.phase] = by_phase.get(line.phase, 0.0) + line.flop * len(inputs[0])
    forward, step = (flop * len(inputs[0]) for flop in counted(module, *inputs))
    assert by_phase.get(FORWARD, 0.0) == forward
    assert sum(by_phase.values()) == step
    return by_phase


def wanting(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def three(flop: float) -> dict[str, float]:
    return {FORWARD: flop, WEIGHT_GRADIENT: flop, INPUT_GRADIENT: flop}


@st.composite
def convolutions(draw):
    space = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    transposed = draw(st.booleans())

    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=space, max_size=space))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    # No more padding than leaves an output position.
    padding = [draw(st.integers(0, far // 2 if transposed else far)) for far in reach]
    size = [draw(st.integers(far + 1, 7)) for far in reach]
    kind = {
        (1, False): nn.Conv1d,
        (2, False): nn.Conv2d,
        (3, False): nn.Conv3d,
        (1, True): nn.ConvTranspose1d,
        (2, True): nn.ConvTranspose2d,
        (3, True): nn.ConvTranspose3d,
    }[space, transposed]
    channels = [groups * draw(st.integers(1, 3)) for _ in range(2)]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = kind(*channels, kernel, **options, bias=draw(st.booleans()))
    return layer, size, transposed


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(convolutions(), st.booleans(), st.booleans())
def test_a_convolution_of_any_shape_costs_its_definition(convolution, first, frozen):
    """y[o, p] = Σ_{i, k} w[o, i, k] x[i, s·p + d·k]: one multiply-add per output position, kernel tap and
    channel pair of a group; transposed, one per input position. dW and dX have as many terms."""
    layer, size, transposed = convolution
    layer.weight.requires_grad_(not frozen)
    x = torch.randn(BATCH, layer.in_channels, *size, requires_grad=not first)
    y = layer(x)
    if not y.requires_grad:
        return
    positions = x.shape[2:] if transposed else y.shape[2:]
    pairs = layer.in_channels * layer.out_channels // layer.groups
    flop = 2 * BATCH * pairs * prod(layer.kernel_size) * prod(positions)
    expected = {FORWARD: flop} | ({} if frozen else {WEIGHT_GRADIENT: flop}) | ({} if first else {INPUT_GRADIENT: flop})
    assert phases(layer, x) == expected


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_may_be_a_word(padding):
    layer = nn.Conv2d(3, 5, 3, padding=padding)
    positions = 8 * 8 if padding == "same" else 6 * 6
    assert phases(layer, wanting(BATCH, 3, 8, 8)) == three(2 * BATCH * 3 * 5 * 9 * positions)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("between", [(), (5,), (5, 3)])
def test_a_linear_layer(bias, between):
    layer = nn.Linear(7, 4, bias=bias)
    assert phases(layer, wanting(BATCH, *between, 7)) == three(2 * BATCH * prod(between) * 7 * 4)


def test_a_first_linear_layer_has_no_input_gradient_and_a_frozen_one_no_weight_gradient():
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 8))
    model[1].requires_grad_(False)
    first, second, third = (2 * BATCH * n for n in (30, 42, 56))
    assert phases(model, torch.randn(BATCH, 5)) == {
        FORWARD: first + second + third,
        WEIGHT_GRADIENT: first + third,
        INPUT_GRADIENT: second + third,
    }


def test_nothing_goes_back_through_no_grad():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
            self.head = nn.Linear(4 * 16, 2)

        def forward(self, x):
            with torch.no_grad():
                x = self.body(x)
            return self.head(x.flatten(1))

    body, head = 2 * BATCH * (3 * 4 * 9 * 36 + 4 * 4 * 9 * 16), 2 * BATCH * 64 * 2
    assert phases(Head(), torch.randn(BATCH, 3, 8, 8)) == {FORWARD: body + head, WEIGHT_GRADIENT: head}


@pytest.mark.parametrize(
    ("a", "b", "sides"),
    [
        ((3, 4), (4, 5), 2),
        ((2, 3, 4), (2, 4, 5), 2),
        ((2, 6, 3, 4), (2, 6, 4, 5), 2),
        ((2, 3, 4), (4, 5), 2),
        ((2, 6, 3, 4), (1, 6, 4, 5), 2),
        ((2, 4), (4,), 1),
        ((2, 3, 4), (4,), 1),
        ((4,), (4,), 0),
        ((4,), (4, 5), 2),
        ((4,), (2, 4, 5), 1),
    ],
)
def test_a_product_of_two_activations_counts_both_gradients_as_input_gradient(a, b, sides):
    """2 FLOPs per element of the result and term of its sum; an outer product as gradient sums nothing."""
    left, right = wanting(*a), wanting(*b)
    flop = 2 * (left @ right).numel() * a[-1]
    module = FunctionModule(lambda x, y: x @ y)
    expected = {FORWARD: flop} | ({INPUT_GRADIENT: sides * flop} if sides else {})
    assert phases(module, left, right) == expected


@pytest.mark.parametrize("name", ["mm", "addmm", "tensordot", "inner", "einsum", "@", "transposed"])
def test_a_product_with_a_parameter_is_a_linear_layer(name):
    weight = torch.randn(5, 6)
    module = {
        "mm": FunctionModule(lambda x, w: torch.mm(x, w), w=weight),
        "addmm": FunctionModule(lambda x, w, b: torch.addmm(b, x, w), w=weight, b=torch.randn(6)),
        "tensordot": FunctionModule(lambda x, w: torch.tensordot(x, w, dims=([1], [0])), w=weight),
        "einsum": FunctionModule(lambda x, w: torch.einsum("bi,io->bo", x, w), w=weight),
        "inner": FunctionModule(lambda x, w: torch.inner(x, w.t()), w=weight),
        "@": FunctionModule(lambda x, w: x @ w, w=weight),
        "transposed": FunctionModule(lambda x, w: x @ w.t(), w=weight.t().contiguous()),
    }[name]
    assert phases(module, wanting(BATCH, 5)) == three(2 * BATCH * 5 * 6)
    assert {line.op for line in ledger(module, (wanting(BATCH, 5),))} == {"linear"}


@pytest.mark.parametrize("name", ["bmm", "baddbmm", "addbmm"])
def test_batched_products(name):
    module = {
        "bmm": FunctionModule(torch.bmm),
        "baddbmm": FunctionModule(lambda x, y: torch.baddbmm(torch.zeros((), device=x.device), x, y)),
        "addbmm": FunctionModule(lambda x, y: torch.addbmm(torch.zeros((), device=x.device), x, y)),
    }[name]
    flop = 2 * 4 * 3 * 5 * 6
    assert phases(module, wanting(4, 3, 5), wanting(4, 5, 6)) == {FORWARD: flop, INPUT_GRADIENT: 2 * flop}


@pytest.mark.parametrize(
    ("equation", "shapes", "multiply_adds"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)], 2 * 3 * 4),
        ("ij,jk", [(2, 3), (3, 4)], 2 * 3 * 4),
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)], 2 * 3 * 4 * 6 * 5),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        ("bi,bi->b", [(2, 3), (2, 3)], 2 * 3),
        ("bij,bik->jk", [(2, 3, 4), (2, 3, 5)], 2 * 3 * 4 * 5),
    ],
)
def test_einsum_costs_one_multiply_add_per_index_tuple(equation, shapes, multiply_adds):
    module = FunctionModule(lambda *operands: torch.einsum(equation, *operands))
    flop = 2 * multiply_adds
    expected = {FORWARD: flop, INPUT_GRADIENT: 2 * flop}
    assert phases(module, *[wanting(*shape) for shape in shapes]) == expected


class Attention(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **self.options)


@pytest.mark.parametrize(
    ("options", "products"),
    [({}, 5), ({"is_causal": True}, 5), ({"attn_mask": torch.zeros(6, 7)}, 5), ({"dropout_p": 0.1}, 4)],
    ids=["plain", "causal", "mask", "dropout"],
)
def test_attention_goes_back_in_five_products_when_fused_and_four_when_not(options, products):
    q, k, v = wanting(BATCH, 3, 6, 8), wanting(BATCH, 3, 7, 8), wanting(BATCH, 3, 7, 8)
    one = 2 * BATCH * 3 * 6 * 7 * 8
    assert phases(Attention(**options), q, k, v) == {FORWARD: 2 * one, INPUT_GRADIENT: products * one}


def test_attention_with_heads_of_two_widths_takes_the_plain_path():
    q, k, v = wanting(BATCH, 3, 6, 8), wanting(BATCH, 3, 7, 8), wanting(BATCH, 3, 7, 10)
    scores, mixed = 2 * BATCH * 3 * 6 * 7 * 8, 2 * BATCH * 3 * 6 * 7 * 10
    expected = {FORWARD: scores + mixed, INPUT_GRADIENT: 2 * scores + 2 * mixed}
    assert phases(Attention(), q, k, v) == expected


def test_grouped_query_attention_costs_what_its_queries_cost():
    q, k, v = wanting(BATCH, 4, 6, 8), wanting(BATCH, 2, 6, 8), wanting(BATCH, 2, 6, 8)
    one = 2 * BATCH * 4 * 6 * 6 * 8
    assert phases(Attention(enable_gqa=True), q, k, v) == {FORWARD: 2 * one, INPUT_GRADIENT: 5 * one}


@pytest.mark.parametrize("weights", [True, False], ids=["with weights", "fused"])
def test_multihead_attention_is_its_projections_and_its_products(weights):
    class Self(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=weights)[0]

    projections, products = 2 * BATCH * 5 * 4 * 16 * 16, 2 * BATCH * 2 * 5 * 5 * 16
    back = 2 * products if weights else 2.5 * products
    assert phases(Self(), wanting(BATCH, 5, 16)) == {
        FORWARD: projections + products,
        WEIGHT_GRADIENT: projections,
        INPUT_GRADIENT: projections + back,
    }


@pytest.mark.parametrize("learns", [True, False], ids=["inner layer", "first layer"])
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_apply_every_matrix_at_every_position(kind, both, learns):
    layer = kind(6, 5, num_layers=2, batch_first=True, bidirectional=both)
    matrices = sum(weight.numel() for weight in layer.parameters() if weight.dim() == 2)
    x = torch.randn(BATCH, 7, 6, requires_grad=learns)
    forward = 2 * BATCH * 7 * matrices
    found = phases(layer, x)
    assert found[FORWARD] == found[WEIGHT_GRADIENT] == forward
    if kind is nn.LSTM:
        assert found[INPUT_GRADIENT] == forward
    else:  # the first state does not learn, and the input may not
        assert found[INPUT_GRADIENT] < forward


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_apply_both_matrices_once(kind):
    cell = kind(6, 5)
    state = wanting(BATCH, 5)
    pair = (lambda h: (h, h * 0)) if kind is nn.LSTMCell else (lambda h: h)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x, h):
            return self.cell(x, pair(h))

    matrices = cell.weight_ih.numel() + cell.weight_hh.numel()
    assert phases(Step(), wanting(BATCH, 6), state) == three(2 * BATCH * matrices)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences_cost_their_true_length(kind):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(6, 5)

        def forward(self, x):
            lengths = torch.tensor([7, 4])
            return self.layer(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[0].data

    module = Packed()
    into, across = module.layer.weight_ih_l0.numel(), module.layer.weight_hh_l0.numel()
    forward = 2 * (7 + 4) * (into + across)
    assert phases(module, torch.randn(BATCH, 7, 6)) == {
        FORWARD: forward,
        WEIGHT_GRADIENT: forward,
        INPUT_GRADIENT: 2 * (7 + 4 - 2) * across,
    }
