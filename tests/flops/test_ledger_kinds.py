"""Small models of many kinds, as people write them: at any batch the ledger says what the counter sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_ledger_growth import in_step, step_flop
from torch import Tensor, nn

from energybench.flops.ledger import trace

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
