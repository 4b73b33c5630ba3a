"""Small models of many kinds, as people write them: at any batch the ledger says what the counter sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flop_models import FunctionModule
from test_ledger_backward import by_phase
from test_ledger_growth import in_step, step_flop
from torch import Tensor, nn

from energybench.flops.ledger import trace
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT

D = 6


class Experts(nn.Module):
    """Each sample goes to the expert that its gate prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(D, 3), nn.ModuleList(nn.Linear(D, D) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            where = (chosen == number).nonzero().squeeze(1)
            if len(where):
                out = out.index_add(0, where, expert(x[where]) * weight[where, None])
        return out


class Cells(nn.Module):
    """A recurrent cell in a loop, with a learned first state."""

    def __init__(self, kind: type[nn.Module], frozen: str = "nothing") -> None:
        super().__init__()
        self.cell, self.first, self.head = kind(D, D), nn.Parameter(torch.zeros(1, D)), nn.Linear(D, 2)
        for name, parameter in self.cell.named_parameters():
            parameter.requires_grad_(frozen not in name)

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.first.expand(len(x), -1), torch.zeros_like(x)
        for _ in range(3):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(x, (h, c))
            else:
                h = self.cell(x, h)
        return self.head(h)


class Perceiver(nn.Module):
    """Queries are made from weights once a step; keys and values from inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.query = nn.Parameter(torch.randn(4, 8)), nn.Linear(8, 8)
        self.key_value, self.out = nn.Linear(D, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(self.latent)[None].expand(len(x), -1, -1)
        k, v = self.key_value(x).chunk(2, -1)
        return self.out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class MoCo(nn.Module):
    """A momentum encoder without gradients, and a queue of negatives."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.momentum = nn.Linear(D, 4), nn.Linear(D, 4)
        self.register_buffer("queue", torch.randn(4, 9))

    def forward(self, x: Tensor) -> Tensor:
        q = self.encoder(x)
        with torch.no_grad():
            k = self.momentum(x)
        positive, negative = torch.einsum("nc,nc->n", q, k)[:, None], torch.einsum("nc,ck->nk", q, self.queue)
        return torch.cat([positive, negative], 1)


class Barlow(nn.Module):
    """Features × features, summed over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(D, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        return z.T @ z


class WithExtra(nn.Module):
    """(batch + 3)² similarities: constant, linear and quadratic at once."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.extra = nn.Linear(D, 4), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.cat([self.encoder(x), self.extra])
        return (z @ z.T).logsumexp(1)


class CondConv(nn.Module):
    """Kernels mixed for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.route = nn.Parameter(torch.randn(3, 4 * 2 * 9)), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = (self.route(x.mean((2, 3))).sigmoid() @ self.kernels).view(len(x) * 4, 2, 3, 3)
        return F.conv2d(x.reshape(1, -1, *x.shape[2:]), mixed, padding=1, groups=len(x))


class Layers(nn.Module):
    def __init__(self, function: Callable[[Layers, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(D, D), nn.Linear(D, D), function
        self.codes = nn.Parameter(torch.randn(7, D))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self, x)


def step_by_step(m: Layers, x: Tensor) -> Tensor:
    out, h = x.new_zeros(3, len(x), D), x
    for step in range(3):
        h = m.a(h)
        out[step] = h
    return m.b(out).sum(0)


def put(m: Layers, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[torch.arange(len(x), device=x.device)] = m.a(x)
    return m.b(out.clone().add_(x))


def quantized(m: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
    z = m.a(x)
    chosen = m.codes[(z.square().sum(1, True) - 2 * z @ m.codes.T + m.codes.square().sum(1)).argmin(1)]
    return m.b(z + (chosen - z).detach()), (chosen - z.detach()).square().mean()


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "experts": (Experts, (D,)),
    "LSTM cells": (lambda: Cells(nn.LSTMCell), (D,)),
    "GRU cells, partly frozen": (lambda: Cells(nn.GRUCell, "hh"), (D,)),
    "frozen RNN cells": (lambda: Cells(nn.RNNCell, "weight"), (D,)),
    "Perceiver": (Perceiver, (7, D)),
    "MoCo": (MoCo, (D,)),
    "Barlow twins": (Barlow, (D,)),
    "a queue beside the batch": (WithExtra, (D,)),
    "CondConv": (CondConv, (2, 5, 5)),
    "buffer, step by step": (lambda: Layers(step_by_step), (D,)),
    "index_put": (lambda: Layers(put), (D,)),
    "vector quantization": (lambda: Layers(quantized), (D,)),
    "Gumbel": (lambda: Layers(lambda m, x: F.gumbel_softmax(m.a(x), hard=True) @ m.b.weight), (D,)),
    "rounded": (lambda: Layers(lambda m, x: (m.b(m.a(x)).round(), m.a(x).sign())), (D,)),
    "what is not differentiated": (lambda: Layers(lambda m, x: (m.a(x), m.b(x).detach(), m.b(x).argmax(1))), (D,)),
    "an encoder layer": (lambda: nn.TransformerEncoderLayer(D, 2, 16, batch_first=True), (5, D)),
}


@pytest.mark.parametrize("name", KINDS)
def test_models_of_every_kind_cost_what_runs(name: str) -> None:
    build, shape = KINDS[name]
    torch.manual_seed(0)
    model = build()
    lines = trace(model, (torch.randn(11, *shape),), batch=32).lines
    for batch in (4, 11, 32, 40):
        assert in_step(lines, batch) == step_flop(model, torch.randn(batch, *shape)), batch


@pytest.mark.parametrize("learns", [True, False])
def test_distances_of_many_rows_are_products(learns: bool) -> None:
    """Of (32, D) and (35, D): with a norm and a one beside each row forward, both gradients backward."""
    codes = nn.Parameter(torch.randn(7, D), requires_grad=learns)
    model = Layers(lambda m, x: torch.cdist(m.a(x), m.codes.repeat(5, 1)))
    model.codes = codes
    lines = trace(model, (torch.randn(11, D),), batch=32).lines
    linear, pairs = 2 * 32 * D * D, 2 * 32 * 35
    assert in_step(lines, 32) == 2 * linear + pairs * (D + 2) + 2 * pairs * D


def test_distances_of_few_rows_are_no_products() -> None:
    lines = trace(Layers(lambda m, x: torch.cdist(m.a(x), m.codes)), (torch.randn(11, D),), batch=16).lines
    assert in_step(lines, 16) == 2 * 2 * 16 * D * D


def test_a_grid_is_every_point_times_its_samples_matrix() -> None:
    model = Layers(lambda m, x: F.affine_grid(m.a(x).view(-1, 2, 3), [len(x), 1, 4, 5], align_corners=False))
    lines = trace(model, (torch.randn(11, D),), batch=32).lines
    assert in_step(lines, 32) == 2 * 2 * 32 * D * D + 2 * 2 * 32 * 4 * 5 * 2 * 3


def test_grouped_products_are_those_of_their_rows() -> None:
    """Rows sorted by expert, each times its expert's matrix; tests of the counter have the kernel itself."""
    if not hasattr(F, "grouped_mm"):
        pytest.skip("this torch has no grouped products")

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.first = nn.Linear(16, 4), nn.Linear(16, 16)
            self.experts = nn.Parameter(torch.randn(4, 16, 32) / 4)

        def forward(self, x: Tensor) -> Tensor:
            chosen = self.gate(x).argmax(1)
            ends = F.one_hot(chosen, 4).sum(0).cumsum(0).to(torch.int32)
            return F.grouped_mm(self.first(x)[chosen.argsort()].bfloat16(), self.experts.bfloat16(), offs=ends)

    lines = trace(Grouped(), (torch.randn(11, 16),), batch=32).lines
    gate, first, grouped = 2 * 32 * 16 * 4, 2 * 32 * 16 * 16, 2 * 32 * 16 * 32
    assert in_step(lines, 32) == gate + 2 * first + 3 * grouped


# ── what has three operands, four real numbers, or no formula ─────────────────────────────────────────────────


@pytest.mark.parametrize("learns", [True, False])
def test_a_bilinear_layer_is_contracted_twice_and_once_for_each_gradient(learns: bool) -> None:
    """y_o = Σ_lr x_l W_olr z_r. Forward: x W_o, then times z; each of the three gradients sums over two indices."""
    left, right, out, batch = 3, 4, 5, 7
    torch.manual_seed(0)
    model = nn.Bilinear(left, right, out)
    inputs = torch.randn(batch, left, requires_grad=learns), torch.randn(batch, right)
    contraction = 2 * batch * out * left * right
    expected = {FORWARD: contraction + 2 * batch * out * right, WEIGHT_GRADIENT: contraction}
    assert by_phase(model, *inputs) == expected | ({INPUT_GRADIENT: contraction} if learns else {})


@pytest.mark.parametrize("name", ["linear", "matmul", "einsum"])
def test_a_complex_product_is_four_real_ones(name: str) -> None:
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "linear": F.linear,
        "matmul": lambda x, w: x @ w.mT,
        "einsum": lambda x, w: torch.einsum("bi,oi->bo", x, w),
    }
    function = calls[name]
    torch.manual_seed(0)
    model = FunctionModule(lambda x, w: function(x.cfloat(), w).abs(), w=torch.randn(5, D, dtype=torch.cfloat))
    x = torch.randn(4, D)
    lines = trace(model, (x,), batch=4).lines
    assert in_step(lines, 4) == step_flop(model, x) == 2 * (8 * 4 * D * 5)  # forward, dW


def test_an_outer_product_that_is_added_sums_only_in_its_gradients() -> None:
    """M + u vᵀ: du = G v and dv = Gᵀ u, and u is data here."""
    torch.manual_seed(0)
    model = FunctionModule(lambda x, v: torch.addr(x.new_zeros(1, 1), x[:, 0], v), v=torch.randn(5))
    x = torch.randn(4, D)
    lines = trace(model, (x,), batch=4).lines
    assert in_step(lines, 4) == step_flop(model, x) == 2 * 4 * 5


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return dy @ w.T, x.T @ dy


@torch.library.custom_op("energybench_tests::rotate", mutates_args=())
def rotate(x: Tensor) -> Tensor:
    return x.flip(-1)


@rotate.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


UNKNOWN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "exponential": (lambda x, w: x @ torch.matrix_exp(w), "aten.linalg_matrix_exp"),
    "inverse": (lambda x, w: x @ torch.linalg.inv(w), "aten.linalg_inv"),
    "Fourier": (lambda x, w: torch.fft.rfft(x @ w).abs(), "aten.fft_rfft"),
    "custom function": (lambda x, w: Doubled.apply(x, w), "Doubled"),
    "custom operator": (lambda x, w: x @ rotate(w.detach()) @ w, "energybench_tests.rotate"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_formula_in_the_ledger_is_named_with_its_line(name: str) -> None:
    function, operator = UNKNOWN[name]
    line = function.__code__.co_firstlineno
    traced = trace(FunctionModule(function, w=torch.eye(D)), (torch.randn(4, D),))
    assert traced.unknown == (f"{operator} (test_ledger_kinds.py:{line})",)


def test_what_multiplies_no_matrices_has_no_need_of_a_formula() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        x = F.normalize(x @ w) / torch.linalg.norm(w) * torch.linalg.vecdot(x, x)[:, None]
        return F.interpolate(x[None, None], scale_factor=2, mode="bilinear").cumsum(-1).topk(2).values

    assert trace(FunctionModule(function, w=torch.eye(D)), (torch.randn(4, D),)).unknown == ()
