"""The backward that the ledger derives from the graph: the counter, which sees it run, must say the same.

Figures by hand beside: what is detached, chosen by an index, thrown away or frozen has no backward of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flop_models import FunctionModule
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ledger_growth import in_step, step_flop
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from energybench.common.errors import EnergybenchError
from energybench.flops.ledger import ledger
from energybench.flops.work import FORWARD, INPUT_GRADIENT, RECOMPUTE, WEIGHT_GRADIENT

B, D, E = 4, 6, 5
N = 2 * B * D * D  # one linear layer on one batch


def by_phase(module: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """The ledger of a step of these inputs, after checking that the counter sees the same FLOPs."""
    lines = ledger(module, inputs, device="cpu")
    found: dict[str, float] = {}
    for line in lines:
        if line.has_flop:
            found[line.phase] = found.get(line.phase, 0.0) + line.flop_in(len(inputs[0]))
    assert sum(found.values()) == step_flop(module, *inputs)
    for batch in (3, 7):  # and at batches that nobody traced
        others = [torch.cat([x, x])[:batch].detach().requires_grad_(x.requires_grad) for x in inputs]
        assert in_step(lines, batch) == step_flop(module, *others)
    return {phase: flop for phase, flop in found.items() if flop}


class Layers(nn.Module):
    """Two linear layers and a function of both."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def into_a_buffer(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 2, D, device=x.device)
    out[:, 0] = m.a(x)
    out[:, 1] = x
    return m.b(out)


def thrown_away(m: Any, x: Tensor) -> Tensor:
    m.b(m.a(x))
    return m.a(x)


def without_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        teacher = m.b(m.b(x))
    return m.a(x) - teacher


GRAPHS: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, float]]] = {
    "all of it": (lambda m, x: m.b(m.a(x)), {FORWARD: 2 * N, WEIGHT_GRADIENT: 2 * N, INPUT_GRADIENT: N}),
    "detached": (lambda m, x: m.b(m.a(x).detach()), {FORWARD: 2 * N, WEIGHT_GRADIENT: N}),
    "a gate without a gradient": (
        lambda m, x: m.a(x) * m.b(x).sigmoid().detach(),
        {FORWARD: 2 * N, WEIGHT_GRADIENT: N},
    ),
    "a choice": (lambda m, x: m.a(x).gather(1, m.b(x).argmax(1, keepdim=True)), {FORWARD: 2 * N, WEIGHT_GRADIENT: N}),
    "a mask": (lambda m, x: torch.where(m.b(x) > 0, m.a(x), 0.0), {FORWARD: 2 * N, WEIGHT_GRADIENT: N}),
    "either of two": (lambda m, x: torch.where(x > 0, m.a(x), m.b(x)), {FORWARD: 2 * N, WEIGHT_GRADIENT: 2 * N}),
    "thrown away": (thrown_away, {FORWARD: 3 * N, WEIGHT_GRADIENT: N}),
    "a teacher": (without_gradient, {FORWARD: 3 * N, WEIGHT_GRADIENT: N}),
    "a stopped branch far back": (
        lambda m, x: m.a(x) + (m.b(m.a(x)).relu() * 2).detach(),
        {FORWARD: 3 * N, WEIGHT_GRADIENT: N},
    ),
    "in place": (
        lambda m, x: m.b(F.relu(m.a(x), inplace=True)),
        {FORWARD: 2 * N, WEIGHT_GRADIENT: 2 * N, INPUT_GRADIENT: N},
    ),
    # the second layer sees 2 rows per sample, and its dX passes through the buffer
    "into a buffer": (into_a_buffer, {FORWARD: 3 * N, WEIGHT_GRADIENT: 3 * N, INPUT_GRADIENT: 2 * N}),
    "the shape of another": (
        lambda m, x: m.a(x).view_as(m.b(x)) + torch.zeros_like(m.b(x)),
        {FORWARD: 3 * N, WEIGHT_GRADIENT: N},
    ),
    "straight through": (
        lambda m, x: m.b((m.a(x) > 0).float() + m.a(x) - m.a(x).detach()),
        {FORWARD: 4 * N, WEIGHT_GRADIENT: 2 * N, INPUT_GRADIENT: N},
    ),
    "parts of one": (
        lambda m, x: m.a(x).split(3, 1)[0] + m.b(x).chunk(2, 1)[1].detach(),
        {FORWARD: 2 * N, WEIGHT_GRADIENT: N},
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_backward_follows_the_graph(name: str) -> None:
    function, expected = GRAPHS[name]
    assert by_phase(Layers(function), torch.randn(B, D)) == expected


# ── which operand learns ──────────────────────────────────────────────────────────────────────────────────────


def test_an_expert_that_an_input_chose_is_still_a_weight() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.experts = nn.Linear(D, D), nn.Parameter(torch.randn(3, D, D))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            chosen = self.experts[h.detach()[:, :3].argmax(1)]  # (batch, D, D)
            return chosen @ h[..., None]

    # matrices that each meet one vector: dW of the experts is an outer product, which sums nothing; dX is one
    found = by_phase(Experts(), torch.randn(B, D))
    assert found[FORWARD] == 2 * N
    assert found[INPUT_GRADIENT] == N
    assert found[WEIGHT_GRADIENT] in (N, 2 * N)  # torch computes the outer product as a matrix product


def test_a_kernel_that_is_made_from_inputs_is_no_weight() -> None:
    class Dynamic(nn.Module):
        """Each sample is convolved with a kernel of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.maker = nn.Conv2d(2, 3, 1), nn.Linear(2, 4 * 3 * 3 * 3)

        def forward(self, x: Tensor) -> Tensor:
            kernels = self.maker(x.mean((2, 3))).view(len(x) * 4, 3, 3, 3)
            h = self.first(x)
            return F.conv2d(h.view(1, -1, *h.shape[2:]), kernels, padding=1, groups=len(x))

    pixels = 36
    first, maker, dynamic = 2 * pixels * 2 * 3, 2 * 2 * 108, 2 * pixels * 27 * 4
    assert by_phase(Dynamic(), torch.randn(B, 2, 6, 6)) == {
        FORWARD: B * (first + maker + dynamic),
        WEIGHT_GRADIENT: B * (first + maker),
        INPUT_GRADIENT: B * 2 * dynamic,
    }


def test_tokens_are_activations_and_the_head_is_the_weight() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(11, D), nn.Parameter(torch.randn(D, D))

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x) @ self.head

    x = torch.randint(0, 11, (B, 3))
    assert by_phase(Tokens(), x) == dict.fromkeys((FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT), 3 * N)


# ── recurrent layers ──────────────────────────────────────────────────────────────────────────────────────────


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, learned: str, frozen: tuple[str, ...], deep: bool, sees: str) -> None:
        super().__init__()
        self.first = nn.Linear(D, D) if deep else nn.Identity()
        self.layer, self.sees = layer, sees
        directions = (1 + layer.bidirectional) * layer.num_layers
        hidden = getattr(layer, "proj_size", 0) or layer.hidden_size
        self.h = nn.Parameter(torch.zeros(directions, 1, hidden), requires_grad="h" in learned)
        self.c = nn.Parameter(torch.zeros(directions, 1, layer.hidden_size), requires_grad="c" in learned)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen))

    def forward(self, x: Tensor) -> Tensor:
        h, c = (state.expand(-1, len(x), -1).contiguous() for state in (self.h, self.c))
        out, last = self.layer(self.first(x), (h, c) if isinstance(self.layer, nn.LSTM) else h)
        last = last[0] if isinstance(last, tuple) else last
        return out if self.sees == "all" else last


FROZEN = ((), ("weight_hh",), ("weight_ih",), ("bias",), ("weight",), ("l0",), ("",), ("hr",), ("weight_ih", "bias"))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(["", "h", "c", "hc"]),
    st.sampled_from(FROZEN),
    st.booleans(),
    st.sampled_from(["all", "last"]),
    st.sampled_from([0, 3]),
)
def test_recurrent_layers_are_counted_by_what_learns(
    kind: type[nn.Module], layers: int, both: bool, learned: str, frozen: tuple[str, ...], deep: bool, sees: str, p: int
) -> None:
    options = {"proj_size": p} if kind is nn.LSTM and p else {}
    layer = kind(D, E, layers, bidirectional=both, batch_first=True, **options)
    module = Recurrent(layer, learned if kind is nn.LSTM else learned.replace("c", ""), frozen, deep, sees)
    x = torch.randn(3, 4, D)
    lines = ledger(module, (x,), device="cpu")
    if not any(p.requires_grad for p in module.parameters()):
        assert all(line.phase == FORWARD for line in lines if line.has_flop)
        return
    found = module(x)
    if not found.requires_grad:
        return
    assert in_step(lines, 3) == step_flop(module, x)
    assert in_step(lines, 6) == step_flop(module, torch.randn(6, 4, D))


def test_an_lstm_on_a_gpu_computes_dx_throughout_and_dw_where_a_weight_learns() -> None:
    whole = 2 * 4 * 4 * E * (D + E) * B  # positions × gates
    x = torch.randn(B, 4, D, requires_grad=True)
    for learns, dw in ((True, whole), (False, 0)):
        layer = nn.LSTM(D, E, batch_first=True).requires_grad_(learns)
        found: dict[str, float] = {}
        for line in ledger(layer, (x,), device="cuda"):
            found[line.phase] = found.get(line.phase, 0.0) + line.flop_in(B)
        assert {k: v for k, v in found.items() if v} == {
            k: v for k, v in {FORWARD: whole, WEIGHT_GRADIENT: dw, INPUT_GRADIENT: whole}.items() if v
        }


# ── products of several matrices ──────────────────────────────────────────────────────────────────────────────

P, Q, R = 3, 7, 2
w = {name: torch.randn(*shape) for name, shape in {"a": (D, P), "b": (P, Q), "c": (Q, R), "d": (R, D)}.items()}
PRODUCTS: dict[str, tuple[Callable[..., Tensor], dict[str, Tensor]]] = {
    "multi_dot of three": (lambda x, a, b: torch.linalg.multi_dot([x, a, b]), {"a": w["a"], "b": w["b"]}),
    "multi_dot of five": (lambda x, **k: torch.linalg.multi_dot([x, *k.values()]), w),
    "multi_dot with a vector": (lambda x, a, v: torch.linalg.multi_dot([x, a, v]), {"a": w["a"], "v": torch.randn(P)}),
    "chain_matmul": (lambda x, **k: torch.chain_matmul(x, *k.values()), w),
    "multi_dot of weights": (lambda x, a, b: x @ torch.linalg.multi_dot([a, b, a.T @ a]).sum(1), {}),
    **{
        f"matrix_power {power}": (
            lambda x, s, power=power: x @ torch.linalg.matrix_power(s, power),
            {"s": torch.randn(D, D)},
        )
        for power in range(10)
    },
    "matrix_power of each": (lambda x, s: torch.linalg.matrix_power(x[:, :, None] * s, 5), {"s": torch.randn(1, D)}),
    "cov": (lambda x, s: torch.cov((x * s).T), {"s": torch.randn(D)}),
    "cov of samples": (lambda x, s: torch.cov(x * s), {"s": torch.randn(D)}),
    "corrcoef": (lambda x, s: torch.corrcoef((x * s).T), {"s": torch.randn(D)}),
    "linalg.matmul": (lambda x, s: torch.linalg.matmul(x, s), {"s": torch.randn(D, D)}),
}
PRODUCTS["multi_dot of weights"] = (
    lambda x, a, b, c: x @ torch.linalg.multi_dot([a, b, c]),
    {name: w[name] for name in "abc"},
)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_several_matrices(name: str, learns: bool) -> None:
    function, parameters = PRODUCTS[name]
    by_phase(FunctionModule(function, **parameters), torch.randn(B, D, requires_grad=learns))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=7), st.integers(0, 63))
def test_several_matrices_are_multiplied_in_torchs_order(sides: list[int], frozen: int) -> None:
    shapes = list(itertools.pairwise(sides))
    names = "abcdef"[: len(shapes)]
    module = FunctionModule(
        lambda x, **k: x.sum() * torch.linalg.multi_dot(list(k.values())),
        **{name: torch.randn(*shape) for name, shape in zip(names, shapes, strict=True)},
    )
    for place, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(not frozen >> place & 1)
    x = torch.randn(B, D, requires_grad=True)
    assert in_step(ledger(module, (x,)), B) == step_flop(module, x)


# ── convolutions without a batch ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_of_one_sample_without_its_batch(space: int, groups: int, padding: Any) -> None:
    convolve = (F.conv1d, F.conv2d, F.conv3d)[space - 1]
    kernel = torch.randn(4, 4 // groups, *[3] * space)
    module = FunctionModule(
        lambda x, w: torch.stack([convolve(each * 1, w, padding=padding, groups=groups) for each in x.unbind()]),
        w=kernel,
    )
    n = 2 * kernel.numel() * 5**space
    lines = ledger(module, (torch.randn(1, 4, *[5] * space, requires_grad=True),), device="cpu")
    assert step_flop(module, torch.randn(3, 4, *[5] * space, requires_grad=True)) == 3 * 3 * n
    assert sum(line.flop_in(3) for line in lines) == 3 * 3 * n


def test_a_transposed_convolution_without_its_batch() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
    x = torch.randn(4, 5, 5, requires_grad=True)

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[0])

    module = One()
    assert in_step(ledger(module, (x[None],)), 1) == step_flop(module, x[None]) == 3 * 2 * layer.weight.numel() * 25


# ── attention ─────────────────────────────────────────────────────────────────────────────────────────────────


class Attention(nn.Module):
    def __init__(self, backends: list[SDPBackend] | None = None, layout: str = "plain", dropout: float = 0.0) -> None:
        super().__init__()
        self.qkv, self.backends, self.layout, self.dropout = nn.Linear(8, 24), backends, layout, dropout

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, places, 8), two heads."""
        q, k, v = (each.unflatten(-1, (2, 4)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        if self.layout == "transposed":  # the last dimension is not the one without gaps
            q, k, v = (each.transpose(2, 3).contiguous().transpose(2, 3) for each in (q, k, v))
        if self.backends is None:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)
        with sdpa_kernel(self.backends):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)


@pytest.mark.parametrize("layout", ["plain", "transposed"])
@pytest.mark.parametrize("backends", [None, [SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_attention_takes_the_kernel_that_the_call_allows(backends: Any, layout: str, dropout: float) -> None:
    by_phase(Attention(backends, layout, dropout), torch.randn(B, 5, 8))


def test_a_kernel_that_is_forced_changes_the_backward() -> None:
    pair = 2 * B * 2 * 5 * 5 * 4  # one product of the scores
    flash, plain = (by_phase(Attention(b), torch.randn(B, 5, 8)) for b in (None, [SDPBackend.MATH]))
    assert flash[INPUT_GRADIENT] == 5 * pair
    assert plain[INPUT_GRADIENT] == 4 * pair


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────


class Checkpointed(nn.Module):
    """`end` says what the region ends in, `reentrant` how it is run again."""

    def __init__(self, reentrant: bool, end: str = "linear", first: bool = True, twice: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(D, D) if first else nn.Identity()
        self.a, self.b, self.last = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.reentrant, self.end, self.twice = reentrant, end, twice

    def region(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        ends = {"linear": lambda y: y, "relu": torch.relu, "sum": lambda y: y + 1, "gelu": F.gelu}
        return ends[self.end](y)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.region
        if self.twice:
            return self.last(
                checkpoint(
                    lambda x: checkpoint(inner, x, use_reentrant=self.reentrant).tanh(),
                    self.first(x),
                    use_reentrant=self.reentrant,
                )
            )
        return self.last(checkpoint(inner, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("end", ["linear", "relu", "sum", "gelu"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_what_a_checkpoint_runs_again_is_work(reentrant: bool, end: str, first: bool) -> None:
    found = by_phase(Checkpointed(reentrant, end, first), torch.randn(B, D))
    layers = 3 + first
    if reentrant and not first:  # torch warns: then nothing in the region learns
        assert found == {FORWARD: layers * N, WEIGHT_GRADIENT: N}
    else:
        stops = not reentrant and end in ("linear", "sum")  # nothing is saved after the second product began
        assert found[RECOMPUTE] == (1 if stops else 2) * N


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_in_a_checkpoint(reentrant: bool) -> None:
    by_phase(Checkpointed(reentrant, "gelu", twice=True), torch.randn(B, D))


def test_a_checkpoint_that_runs_to_its_end() -> None:
    with set_checkpoint_early_stop(False):
        assert by_phase(Checkpointed(False), torch.randn(B, D))[RECOMPUTE] == 2 * N


def test_a_checkpoint_that_nobody_learns_from_is_not_run_again() -> None:
    class Away(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            checkpoint(self.region, self.first(x), use_reentrant=False)
            return self.last(x)

    assert by_phase(Away(False), torch.randn(B, D)) == {FORWARD: 4 * N, WEIGHT_GRADIENT: N}


def test_selective_checkpoints_are_refused_by_name() -> None:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    class Selective(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            context = lambda: create_selective_checkpoint_contexts([torch.ops.aten.mm.default])  # noqa: E731
            return checkpoint(self.region, self.first(x), use_reentrant=False, context_fn=context)

    with pytest.raises(EnergybenchError, match=r"checkpoint of .*region.* context_fn"):
        ledger(Selective(False), (torch.randn(B, D),))


def test_torch_is_left_as_it_was() -> None:
    import torch.utils.checkpoint as module

    before = module.CheckpointFunction, module._checkpoint_without_reentrant_generator, F.scaled_dot_product_attention
    ledger(Checkpointed(True), (torch.randn(B, D),))
    after = module.CheckpointFunction, module._checkpoint_without_reentrant_generator, F.scaled_dot_product_attention
    assert before == after


def test_packed_sequences() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(D, E)

        def forward(self, x: Tensor) -> Tensor:
            sizes = torch.tensor([len(x)] * 3)
            return self.layer(PackedSequence(x.transpose(0, 1).reshape(-1, D), sizes))[0].data

    by_phase(Packed(), torch.randn(B, 3, D))


def test_a_sparse_product_is_refused_with_the_users_line() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(D, D)
            self.graph = torch.eye(D).to_sparse_csr()

        def forward(self, x: Tensor) -> Tensor:
            return (self.graph @ self.fc(x).T).T

    with pytest.raises(EnergybenchError, match=r"E403.*matmul.*sparse.*test_ledger_backward\.py:\d+"):
        ledger(Sparse(), (torch.randn(B, D),))
