"""ssprop: the gradients of the kept channels, how many they are, and when."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CLASSES, assert_same_state, digits, make_run, state, tiny_cnn
from torch import Tensor, nn

from energybench import discovery
from energybench.errors import UsageError
from energybench.flops.count import Counter
from energybench.method import Method
from energybench.units import Quantity
from energybench.work import Line, Work

KIND: Any = discovery.load(discovery.sources()["ssprop"])
ssprop: Any = sys.modules[KIND.__module__]
Sparse = ssprop.SparseConv2d


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "ssprop", parameters)


# ── gradients ─────────────────────────────────────────────────────────────────────────────────────────────────────


def top_channels(dy: Tensor, count: int) -> Tensor:
    """1 for the `count` channels of dy (B, C, H, W) with the largest mean |dy|, else 0."""
    importance = dy.abs().mean((0, 2, 3))
    mask = torch.zeros_like(importance)
    mask[importance.sort(descending=True).indices[:count]] = 1
    return mask.view(-1, 1, 1)


def expected_gradients(conv: nn.Conv2d, x: Tensor, target: Tensor, keep: int) -> tuple[Tensor, list[Tensor]]:
    """Ordinary autograd with ∂L/∂Y masked; L = Σ Y·target, so that ∂L/∂Y = target."""
    x = x.detach().clone().requires_grad_()
    mask = top_channels(target if target.dim() == 4 else target[None], keep)
    wanted = [x, conv.weight, *([conv.bias] if conv.bias is not None else [])]
    dx, *others = torch.autograd.grad((conv(x) * target * mask).sum(), wanted)
    return dx, others


@st.composite
def convolutions(draw: Any) -> tuple[nn.Conv2d, Tensor]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding: Any = draw(st.sampled_from([0, 1, (2, 1), "valid", "same"]))
    if padding == "same":
        stride = (1, 1)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    torch.manual_seed(draw(st.integers(0, 999)))
    conv = nn.Conv2d(
        groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4)), kernel, stride, padding, dilation,
        groups, bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64,
    )  # fmt: skip
    size = (conv.in_channels, draw(st.integers(5, 8)), draw(st.integers(5, 8)))
    batch = draw(st.sampled_from([(), (1,), (3,)]))  # () is an unbatched image
    return conv, torch.randn(*batch, *size, dtype=torch.float64)


@given(made=convolutions(), drop=st.sampled_from([0.01, 0.3, 0.5, 0.8, 0.99]), first=st.booleans())
def test_gradients_are_autograds_with_the_output_gradient_masked_to_the_kept_channels(made, drop, first):
    conv, x = made
    sparse = Sparse.from_dense(copy.deepcopy(conv))
    sparse.drop = drop
    target = torch.randn_like(conv(x))
    dx, others = expected_gradients(conv, x, target, ssprop.kept(conv.out_channels, drop))
    x = x.clone().requires_grad_(not first)  # the first layer's input needs no gradient
    y = sparse(x)
    torch.testing.assert_close(y, conv(x), rtol=1e-10, atol=1e-12)
    (y * target).sum().backward()
    for found, wanted in zip([p.grad for p in sparse.parameters()], others, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    if not first:
        torch.testing.assert_close(x.grad, dx, rtol=1e-10, atol=1e-12)


def test_a_frozen_weight_or_bias_gets_no_gradient_and_the_rest_stays_right():
    for frozen in ("weight", "bias"):
        conv = nn.Conv2d(3, 8, 3, dtype=torch.float64)
        getattr(conv, frozen).requires_grad_(False)
        sparse = Sparse.from_dense(copy.deepcopy(conv))
        sparse.drop = 0.5
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
        target = torch.randn(2, 8, 4, 4, dtype=torch.float64)
        (sparse(x) * target).sum().backward()
        mask = top_channels(target, 4)
        (dx,) = torch.autograd.grad((conv(x) * target * mask).sum(), x)
        torch.testing.assert_close(x.grad, dx)
        assert getattr(sparse, frozen).grad is None


@pytest.mark.parametrize("groups", [1, 4])
def test_under_bf16_autocast_forward_is_the_dense_ones_and_gradients_are_close(groups):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 16, 3, padding=1, groups=groups), torch.randn(4, 8, 6, 6)
    sparse = Sparse.from_dense(copy.deepcopy(conv))
    sparse.drop = 0.5
    target = torch.randn(4, 16, 6, 6)
    dx, (dw, db) = expected_gradients(conv, x, target, 8)
    x = x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, conv(x))
    (y.float() * target).sum().backward()
    for found, wanted in ((x.grad, dx), (sparse.weight.grad, dw), (sparse.bias.grad, db)):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 0.02 * wanted.norm()  # bf16 keeps 8 bits


def test_the_smaller_matrices_are_what_is_counted():
    conv, x = nn.Conv2d(8, 20, 3, padding=1), torch.randn(2, 8, 6, 6, requires_grad=True)
    sparse = Sparse.from_dense(conv)
    for drop, keep in ((0.0, 20), (0.8, 4), (0.71, 5)):
        sparse.drop = drop
        with Counter() as counter:
            sparse(x).sum().backward()
        forward = 2 * 2 * 36 * 8 * 9 * 20
        assert counter.total == pytest.approx(forward * (1 + 2 * keep / 20))


def test_without_a_gradient_or_a_drop_it_is_the_dense_layer():
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
    sparse = Sparse.from_dense(conv)
    for drop in (0.0, 0.5):
        sparse.drop = drop
        with torch.no_grad():
            assert torch.equal(sparse(x), conv(x))


# ── how many ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("out", "drop", "keep"),
    [
        (100, 0.71, 29), (100, 0.29, 71), (64, 0.8, 12), (512, 0.8, 102), (10, 0.9, 1), (3, 0.8, 1), (1, 0.5, 1),
        (10, 0.0, 10), (1000, 0.999, 1), (50, 0.42, 29), (100, 0.57, 43),
    ],
)  # fmt: skip
def test_kept_channels_are_exact_decimals_rounded_down_and_at_least_one(out, drop, keep):
    assert ssprop.kept(out, drop) == keep


@given(out=st.integers(1, 2048), hundredths=st.integers(0, 99))
def test_kept_channels_by_integer_arithmetic(out, hundredths):
    assert ssprop.kept(out, hundredths / 100) == max((100 - hundredths) * out // 100, 1)


# ── when ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Rates(Method):
    """The drop rate of every step, read inside."""

    name = "rates"

    def setup(self, run):
        self.seen: list[list[float]] = []

    def gradients(self, run, batch, inner):
        if run.step_in_epoch == 0:
            self.seen.append([])
        forward = inner(batch)
        self.seen[-1].append(next(m.drop for m in run.model.modules() if isinstance(m, nn.Conv2d)))
        return forward


def rates(epochs: int, **parameters: Any) -> list[list[float]]:
    watching = Rates()
    make_run(
        [watching, method(**parameters)], data=digits(32), batch=8, epochs=epochs
    ).train()  # 4 steps an epoch
    return watching.seen


def test_alternate_is_dense_in_odd_epochs_and_drops_in_even_ones():
    assert rates(5, drop=0.8) == [[0] * 4, [0.8] * 4, [0] * 4, [0.8] * 4, [0] * 4]


def test_a_period_may_be_steps_or_more_epochs():
    assert rates(2, drop=0.5, period="2 steps") == [[0, 0.5, 0, 0.5]] * 2
    assert rates(2, drop=0.5, period="6 steps") == [[0, 0, 0, 0.5], [0.5, 0.5, 0, 0]]
    assert rates(4, drop=0.5, period="4 epochs") == [[0] * 4, [0] * 4, [0.5] * 4, [0.5] * 4]
    assert rates(2, drop=0.5, period="1 epoch") == [[0, 0, 0.5, 0.5]] * 2


def test_the_other_schedules_are_what_their_names_say():
    assert rates(3, drop=0.4, schedule="constant") == [[0.4] * 4] * 3
    assert rates(4, drop=0.4, schedule="bar") == [[0] * 4, [0] * 4, [0.4] * 4, [0.4] * 4]
    linear = [epoch[0] for epoch in rates(5, drop=0.8, schedule="linear")]
    assert linear == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    cosine = [epoch[0] for epoch in rates(5, drop=0.8, schedule="cosine")]
    assert cosine == pytest.approx([0.8 * (1 - math.cos(math.pi * t / 4)) / 2 for t in range(5)], abs=1e-6)


@pytest.mark.parametrize("schedule", ssprop.SCHEDULES)
def test_the_claim_is_the_mean_rate_that_really_ran_over_whole_periods(schedule):
    seen = [rate for epoch in rates(6, drop=0.6, schedule=schedule) for rate in epoch]
    saving, of, _ = method(drop=0.6, schedule=schedule).claims()
    assert saving == pytest.approx(sum(seen) / len(seen), abs=1e-6)
    assert of == "backward"


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop": 1.0}, {"drop": -0.1}, {"drop": math.nan}, {"schedule": "sometimes"}, {"period": 2},
        {"period": "2"}, {"period": "0 steps"},
    ],
)  # fmt: skip
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError) as refused:
        method(**wrong)
    assert refused.value.problems[0].code == "E304"


def test_the_period_may_be_written_or_given():
    assert method(period="300 steps").period == Quantity(300, "steps")
    assert method().period == Quantity(2, "epochs")


# ── the model around it ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_swap_draws_nothing_and_changes_neither_state_nor_parameters():
    run = make_run([])
    before, parameters = state(run.model), list(run.model.parameters())
    made = method()
    torch.manual_seed(3)
    random = torch.get_rng_state()
    made.setup(run)
    assert torch.equal(torch.get_rng_state(), random)
    assert_same_state(state(run.model), before)
    assert list(run.model.state_dict()) == list(before)
    assert all(a is b for a, b in zip(parameters, run.model.parameters(), strict=True))
    assert sum(type(m) is Sparse for m in run.model.modules()) == 2
    made.finish(run)
    assert sum(type(m) is nn.Conv2d for m in run.model.modules()) == 2
    assert all(a is b for a, b in zip(parameters, run.model.parameters(), strict=True))
    assert "drop" not in vars(run.model[0])


def test_hooks_and_modes_of_a_layer_survive_the_swap():
    calls: list[str] = []
    run = make_run([])
    run.model[0].register_forward_hook(lambda *_: calls.append("hook"))
    made = method()
    made.setup(run)
    run.forward(next(run.data.load([torch.arange(4)])))
    made.finish(run)
    run.forward(next(run.data.load([torch.arange(4)])))
    assert calls == ["hook", "hook"]


class Twice(nn.Module):
    """One convolution under two names and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, CLASSES)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.first(x).relu()).flatten(1))


def test_a_convolution_under_two_names_stays_one():
    run = make_run([method()], Twice)
    assert run.model.first is run.model.again
    assert type(run.model.first) is Sparse
    run.train()
    run.finish()
    assert run.model.first is run.model.again
    assert type(run.model.again) is nn.Conv2d


def test_gradients_of_a_whole_model_are_those_of_masked_outputs():
    """With every convolution's ∂L/∂Y masked by a hook, plain autograd gives the same."""
    run, plain = make_run([method(drop=0.5, schedule="constant")]), make_run([])
    batch = next(run.data.load([torch.arange(16)]))
    for module in plain.model.modules():
        if isinstance(module, nn.Conv2d):
            keep = ssprop.kept(module.out_channels, 0.5)
            module.register_forward_hook(
                lambda m, i, y, keep=keep: (y.register_hook(lambda dy: dy * top_channels(dy, keep)), None)[1]
            )
    run.gradients(batch)
    plain.gradients(batch)
    for found, wanted in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-6)


def test_the_estimate_is_the_kept_share_of_each_convolutions_backward():
    made = method(drop=0.8)
    run = make_run([made], data=digits(32), batch=8, epochs=4)
    run.train()
    lines = tuple(
        Line(phase, module, op, 100.0, {"out": out})
        for phase in ("forward", "weight_gradient", "input_gradient")
        for module, op, out in (("0", "conv", 8), ("4", "conv", 16), ("9", "linear", 10))
    )
    found = {(line.phase, line.module): line.flop for line in made.estimate(Work(lines, 4, 32)).lines}
    for phase in ("weight_gradient", "input_gradient"):
        assert found[phase, "0"] == pytest.approx(100 * (1 + 1 / 8) / 2)  # ⌊0.2·8⌋ = 1 in every second epoch
        assert found[phase, "4"] == pytest.approx(100 * (1 + 3 / 16) / 2)
        assert found[phase, "9"] == 100
    assert all(found["forward", module] == 100 for module in "049")
    assert made.diagnostics() == {"layers": 2, "samples_by_drop_rate": {"0": 64, "0.8": 64}}


def test_a_step_says_what_it_dropped_and_a_model_without_convolutions_is_not_acted_on():
    run = make_run([method(drop=0.8)], data=digits(32), batch=8)
    run.train()
    each = {"steps": 4, "samples": 32}
    assert run.tally.passes().keys == {"plain": each, "drop=0.8": each}
    made = method()
    make_run([made], lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))).train()
    assert made.acted is False


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_in_both_precisions(precision):
    run = make_run([method(drop=0.5)], lambda: tiny_cnn((4, 8)), precision=precision, epochs=2)
    run.train()
    assert run.curve[-1]["loss"] < run.curve[0]["loss"] * 1.5
