"""How work grows with the batch: what every step costs, what every sample and what every pair of samples.

Each module's parts are derived by hand; the counter, which only sees what runs, must say the same at any batch.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from flop_models import FunctionModule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from energybench.common.torchvision_shim import import_torchvision
from energybench.flops.counter import Counter
from energybench.flops.ledger import ledger, trace
from energybench.flops.work import Line, Work

D, R = 6, 2  # width, rank


def step_flop(module: nn.Module, *inputs: Tensor) -> int:
    """Of a real forward and backward, by the counter."""
    with Counter() as counter:
        outputs = module(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(out.sum() for out in outputs if out.requires_grad).backward()
    return counter.total


def in_step(lines: tuple[Line, ...], batch: int) -> float:
    return sum(line.flop_in(batch) for line in lines)


def parts(lines: tuple[Line, ...]) -> tuple[float, float, float]:
    """FLOPs per step, per sample and per pair of samples."""
    return sum(x.step_flop for x in lines), sum(x.flop for x in lines), sum(x.pair_flop for x in lines)


def merged_lora() -> nn.Module:
    """x (W + BA)ᵀ with W frozen."""
    frozen = torch.randn(D, D)
    return FunctionModule(
        lambda x, b, a: F.linear(x, frozen.to(x.device) + b @ a), b=torch.randn(D, R), a=torch.randn(R, D)
    )


class Hypernetwork(nn.Module):
    """A linear layer whose weights a second network makes from a learned vector."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(3))
        self.maker = nn.Linear(3, D * D)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.maker(self.code[None]).view(D, D))


class Positions(nn.Module):
    """Biases of attention from a table of coordinates, through an MLP, as Swin Transformer V2 has them."""

    def __init__(self, places: int = 5, hidden: int = 7) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(places * places, 2))
        self.mlp = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, places, D)."""
        bias = self.mlp(self.table).view(self.places, self.places)
        return (x @ x.transpose(1, 2) + bias).softmax(-1) @ x


class SimCLR(nn.Module):
    """Every sample's similarity to every other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(D, R)

    def forward(self, x: Tensor) -> Tensor:
        z = F.normalize(self.head(x), dim=1)
        return torch.logsumexp(z @ z.T, 1)


class TwoViews(nn.Module):
    """Halves of a batch against each other: it must be even."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(D, R)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) % 2:
            raise ValueError("an even batch, please")
        one, other = self.head(x).chunk(2)
        return one @ other.T


class Products(nn.Module):
    """A product of buffers, which nothing learns from."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.randn(D, 4))
        self.register_buffer("b", torch.randn(4, D))
        self.scale = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale) @ (self.a @ self.b)


BA = 2 * D * R * D  # of B (D, R) and A (R, D)
FC = 2 * D * D
HIDDEN = 2 * 25 * 7  # each of the two layers has 25 positions × 14 weights or × 7
# per step, per sample, per pair
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[float, float, float]]] = {
    # forward; dB and dA. forward and the gradient of the merged weight; x is data
    "merged LoRA": (merged_lora, (D,), (3 * BA, 2 * FC, 0)),
    # the maker: forward, dW and the gradient of its code
    "hypernetwork": (Hypernetwork, (D,), (3 * 2 * 3 * D * D, 2 * FC, 0)),
    # the table is data: no dX in the first layer. Two products, and the gradient of what the bias is added to
    "position MLP": (Positions, (5, D), (2 * 2 * HIDDEN + 3 * HIDDEN, 3 * 2 * 25 * D, 0)),
    # z zᵀ: forward and a gradient for each of its two factors
    "SimCLR": (SimCLR, (D,), (0, 2 * 2 * D * R, 3 * 2 * R)),
    # half × half of the batch
    "two views": (TwoViews, (D,), (0, 2 * 2 * D * R, 3 * 2 * R / 4)),
    "buffers": (Products, (D,), (2 * D * 4 * D, 2 * FC, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_parts_are_those_of_the_formulas(name: str) -> None:
    build, shape, expected = CASES[name]
    lines = ledger(build(), (torch.randn(4, *shape),))
    assert parts(lines) == expected


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_at_any_batch_the_ledger_is_the_counter(name: str, data: st.DataObject) -> None:
    build, shape, _ = CASES[name]
    traced = data.draw(st.integers(1, 6).map(lambda half: 2 * half), "traced")
    run = data.draw(st.integers(1, 12).map(lambda half: 2 * half), "run")
    model = build()
    lines = ledger(model, (torch.randn(traced, *shape),))
    assert in_step(lines, run) == step_flop(model, torch.randn(run, *shape))


def test_a_spectral_norm_is_iterated_once_a_step() -> None:
    """One iteration without gradients, two products with vectors, then uᵀ W v: one more, and a dot."""
    model = parametrizations.spectral_norm(nn.Linear(D, 4, bias=False))
    lines = ledger(model, (torch.randn(3, D),))
    for batch in (2, 5, 40):
        assert in_step(lines, batch) == step_flop(model, torch.randn(batch, D))
    step, sample, pair = parts(lines)
    assert (sample, pair) == (2 * 2 * D * 4, 0)
    assert step > 0


def test_the_shipped_swin_v2_t_agrees() -> None:
    """Its positions' MLP runs once a step: in a batch of 11 it is a twentieth of a percent too much per sample."""
    model = import_torchvision().models.get_model("swin_v2_t", weights=None, num_classes=10).to("meta")
    lines = ledger(model, (torch.zeros(3, 3, 64, 64, device="meta"),))
    with Counter() as counter:
        model(torch.zeros(5, 3, 64, 64, device="meta")).sum().backward()
    assert in_step(lines, 5) == pytest.approx(counter.total, rel=1e-6)
    assert sum(line.step_flop for line in lines) > 0


# ── runs of several steps ─────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_a_run_is_the_sum_of_its_steps(samples: int, batch: int, accumulate: int, epochs: int) -> None:
    """The last step has what is left, and a step is cut as training cuts it."""
    from energybench.train.batch import Batch
    from energybench.train.trees import split

    line = Line("forward", "", "matmul", 7.0, step_flop=100.0, pair_flop=3.0, sample_b={"x": 1.0}, pair_b={"y": 5.0})
    expected = 0.0
    for positions in torch.arange(samples).split(batch):
        for piece in split(Batch(positions, positions, positions), accumulate):
            expected += line.flop_in(len(piece.index))
    work = Work((line,), epochs, samples, batch, accumulate)
    assert work.flop == pytest.approx(epochs * expected)
    assert work.flop_by(lambda line: line.op) == {"matmul": pytest.approx(epochs * expected)}
    assert work.flop_per_sample() * epochs * samples == pytest.approx(work.flop)


def test_a_line_that_only_a_step_costs_is_scaled_like_any_other() -> None:
    line = Line("forward", "", "matmul", 7.0, step_flop=100.0, pair_flop=3.0)
    work = Work((line,), epochs=2, samples=10, batch=4)
    assert work.change(lambda line: 0.5).flop == work.flop / 2
    assert work.trained(1).flop == work.flop / 2


def test_without_a_batch_an_epoch_is_one_step() -> None:
    lines = ledger(SimCLR(), (torch.randn(4, D),))
    assert Work(lines, epochs=3, samples=5).flop == 3 * step_flop(SimCLR(), torch.randn(5, D))


# ── where no curve fits ───────────────────────────────────────────────────────────────────────────────────────


class Cubes(nn.Module):
    """Samples × samples × samples."""

    def forward(self, x: Tensor) -> Tensor:
        similar = x @ x.T
        return similar @ similar


class Grows(nn.Module):
    """A second product in large batches alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.fc(y) if len(x) > 20 else y


def test_what_fits_no_curve_is_traced_at_the_true_batch_and_told() -> None:
    traced = trace(Cubes(), (torch.randn(3, D, requires_grad=True),), batch=32)
    assert "batch of 32" in traced.note
    assert in_step(traced.lines, 32) == step_flop(Cubes(), torch.randn(32, D, requires_grad=True))


def test_what_changes_with_the_size_is_right_at_the_true_batch() -> None:
    model = Grows()
    for batch in (10, 32):
        lines = trace(model, (torch.randn(3, D),), batch=batch).lines
        assert in_step(lines, batch) == step_flop(model, torch.randn(batch, D))


def test_a_model_that_needs_numbers_is_fitted_on_the_cpu() -> None:
    class Looks(SimCLR):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum().item() > 1e9 else x + 1)

    traced = trace(Looks(), (torch.randn(3, D),), batch=64)
    assert parts(traced.lines) == CASES["SimCLR"][2]
    assert not traced.note


@pytest.mark.parametrize("padding", [1, "same"])
def test_groups_that_are_read_from_a_shape_are_a_number(padding: int | str) -> None:
    """Mamba's causal convolution has `groups=hidden_size` of its input's shape, which is no constant while traced."""

    def depthwise(x: Tensor, w: Tensor) -> Tensor:
        _, channels, _ = x.shape
        return F.conv1d(x, w, padding=padding, groups=channels)

    module = FunctionModule(depthwise, w=torch.randn(D, 1, 3))
    traced = trace(module, (torch.randn(4, D, 5),))
    assert not traced.note
    # y, dW and dX are 3 products for each of D · 5 positions; nobody asks for dX of the data
    assert parts(traced.lines) == (0, 2 * 2 * 3 * D * 5, 0)
    assert {line.shape["groups"] for line in traced.lines if line.op == "conv"} == {D}
