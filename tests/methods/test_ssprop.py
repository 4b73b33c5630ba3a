"""ssprop: the gradients of the kept channels, how many they are, and when."""

from __future__ import annotations

import copy
import math
import sys
import types
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CLASSES, CPU, MODELS, assert_same_state, digits, make_run, state, tiny_cnn
from torch import Tensor, nn

from energybench.algorithms import channel_sparse
from energybench.algorithms.channel_sparse import Choice, channels_kept
from energybench.algorithms.sparse_layers import SPARSE, SparseConv2d, SparseLinear
from energybench.common.errors import UsageError
from energybench.common.units import Quantity
from energybench.flops.counter import Counter
from energybench.flops.intensity import groups
from energybench.flops.ledger import ledger
from energybench.flops.work import Line, Work
from energybench.runner.tracing import trace_task
from energybench.train import discovery
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["ssprop"])
ssprop: Any = sys.modules[KIND.__module__]
Sparse = SparseConv2d


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "ssprop", parameters)


# ── gradients ─────────────────────────────────────────────────────────────────────────────────────────────────────


def top(dy: Tensor, averaged: tuple[int, ...], count: int) -> Tensor:
    """1 where the mean of |dy| over `averaged` is among the `count` largest, else 0; broadcasts to dy."""
    importance = dy.abs().mean(averaged, keepdim=True)
    mask = torch.zeros_like(importance).flatten()
    mask[importance.flatten().sort(descending=True).indices[:count]] = 1
    return mask.view(importance.shape)


def top_channels(dy: Tensor, count: int) -> Tensor:
    """1 for the `count` channels of dy (B, C, ...) with the largest mean |dy|, else 0."""
    return top(dy, (0, *range(2, dy.dim())), count)[0]


def expected_gradients(layer: Any, x: Tensor, target: Tensor, keep: int, mask: Tensor | None = None) -> Any:
    """(dX, [dW, dB]): ordinary autograd with ∂L/∂Y masked; L = Σ Y·target, so that ∂L/∂Y = target."""
    x = x.detach().clone().requires_grad_()
    if mask is None:
        mask = top_channels(target if target.dim() == layer.weight.dim() else target[None], keep)
    wanted = [x, layer.weight, *([layer.bias] if layer.bias is not None else [])]
    dx, *others = torch.autograd.grad((layer(x) * target * mask).sum(), wanted)
    return dx, others


def assert_gradients(sparse: Any, x: Tensor, target: Tensor, expected: Any, *, to_input: bool = True) -> None:
    dx, others = expected
    rtol, atol = (1e-10, 1e-12) if x.dtype == torch.float64 else (1e-4, 1e-4)
    x = x.clone().requires_grad_(to_input)
    (sparse(x) * target).sum().backward()
    for found, wanted in zip([p.grad for p in sparse.parameters()], others, strict=True):
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    if to_input:
        torch.testing.assert_close(x.grad, dx, rtol=rtol, atol=atol)


CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw: Any) -> tuple[Any, Tensor]:
    """Of one to three dimensions, in planes and in channels_last, on a batch, one sample or an unbatched one."""
    space = draw(st.sampled_from([1, 2, 2, 2, 3]))

    def each(*values: Any) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(space))

    groups, kernel, dilation = draw(st.sampled_from([1, 1, 2, 3])), each(1, 2, 3), each(1, 2)
    stride = draw(st.sampled_from([(1,) * space, each(1, 2, 3)]))
    padding: Any = draw(st.sampled_from([0, 1, tuple(range(2, 2 - space, -1)), "valid", "same", "centred"]))
    if padding == "same":
        stride = (1,) * space
    if padding == "centred":  # as many outputs as inputs where the kernel is odd, in numbers
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    torch.manual_seed(draw(st.integers(0, 999)))
    conv = CONVOLUTIONS[space](
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 4)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
        dtype=torch.float64,
    )
    batch = draw(st.sampled_from([(), (1,), (3,)]))  # () is an unbatched image
    x = torch.randn(*batch, conv.in_channels, *each(5, 6, 7), dtype=torch.float64)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if batch and last and draw(st.booleans()):
        conv, x = conv.to(memory_format=last), x.to(memory_format=last)
    return conv, x


@given(made=convolutions(), drop=st.sampled_from([0.01, 0.3, 0.5, 0.8, 0.99]), first=st.booleans())
@settings(max_examples=150)
def test_gradients_are_autograds_with_the_output_gradient_masked_to_the_kept_channels(made, drop, first):
    conv, x = made
    sparse = SPARSE[type(conv)].from_dense(copy.deepcopy(conv))
    sparse.drop = drop
    target = torch.randn_like(conv(x))
    torch.testing.assert_close(sparse(x), conv(x), rtol=1e-10, atol=1e-12)
    expected = expected_gradients(conv, x, target, channels_kept(conv.out_channels, drop))
    assert_gradients(sparse, x, target, expected, to_input=not first)  # the first layer's input needs none


@given(
    space=st.integers(1, 3),
    dilation=st.integers(1, 2),
    samples=st.integers(1, 5),
    columns=st.sampled_from([1, 3000, 1 << 19]),
    bias=st.booleans(),
    to_input=st.booleans(),
)
@settings(max_examples=40)
def test_products_with_the_laid_out_planes_give_the_same_gradients(space, dilation, samples, columns, bias, to_input):
    """Of kernels that differ from side to side, in pieces of one sample, of some, and all at once."""
    kernel, sides = (3, 5, 1)[:space], (9, 8, 3)[:space]
    torch.manual_seed(samples)
    padding = tuple(dilation * (size - 1) // 2 for size in kernel)
    conv = CONVOLUTIONS[space](3, 10, kernel, padding=padding, dilation=dilation, bias=bias, dtype=torch.float64)
    sparse = SPARSE[type(conv)].from_dense(copy.deepcopy(conv))
    sparse.drop = 0.7
    x = torch.randn(samples, 3, *sides, dtype=torch.float64)
    target = torch.randn_like(conv(x))
    expected = expected_gradients(conv, x, target, 3)
    laid_out = mock.Mock(wraps=channel_sparse._laid_out)
    everywhere = {"FEWEST": 1, "SHORTEST": 1, "MOST_ROWS": 99, "COLUMNS": columns, "_laid_out": laid_out}
    with mock.patch.multiple(channel_sparse, **everywhere):
        assert_gradients(sparse, x, target, expected, to_input=to_input)
    assert laid_out.called


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # whose kernels share nothing
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("into", "out", "kernel", "stride"), [(8, 40, 3, 1), (20, 40, 3, 1), (20, 40, 3, 2), (24, 8, 1, 1), (24, 40, 1, 1)]
)
def test_a_large_input_computed_in_pieces_and_in_another_layout_has_the_same_gradients(
    into, out, kernel, stride, last, dtype, monkeypatch
):
    """18 of 40 kept channels leave 14 of 32 lanes idle, so planes are reordered."""
    torch.manual_seed(0)
    conv = nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, dtype=dtype)
    x = torch.randn(7, into, 6, 5, dtype=dtype)
    if last:
        conv, x = conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    sparse = SparseConv2d.from_dense(copy.deepcopy(conv))
    sparse.drop = 0.55
    target = torch.randn_like(conv(x))
    expected = expected_gradients(conv, x, target, channels_kept(out, 0.55))
    monkeypatch.setattr("energybench.algorithms.channel_sparse.PIECE", x[0].numel())
    monkeypatch.setattr("energybench.algorithms.channel_sparse.SUMMED", 2 * target[0].numel())
    assert_gradients(sparse, x, target, expected)
    assert sparse.weight.grad.stride() == conv.weight.stride()


def test_the_input_gradient_has_the_memory_format_of_the_input():
    for last in (torch.contiguous_format, torch.channels_last):
        sparse = SparseConv2d(20, 40, 3, padding=1).to(memory_format=last)
        sparse.drop = 0.55
        x = torch.randn(2, 20, 6, 6).to(memory_format=last).requires_grad_()
        sparse(x).square().sum().backward()
        assert x.grad.is_contiguous(memory_format=last)


@given(
    shape=st.sampled_from([(), (1,), (4,), (3, 5), (2, 3, 4)]),
    out=st.integers(1, 12),
    bias=st.booleans(),
    drop=st.sampled_from([0.01, 0.3, 0.5, 0.8, 0.99]),
    seed=st.integers(0, 99),
)
def test_a_linear_layer_keeps_output_features_as_a_convolution_keeps_channels(shape, out, bias, drop, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(6, out, bias, dtype=torch.float64)
    sparse = SparseLinear.from_dense(copy.deepcopy(linear))
    sparse.drop = drop
    x = torch.randn(*shape, 6, dtype=torch.float64)
    target = torch.randn(*shape, out, dtype=torch.float64)
    rows = target.reshape(-1, out)
    expected = expected_gradients(linear, x, target, 0, top(rows, (0,), channels_kept(out, drop))[0])
    assert_gradients(sparse, x, target, expected)


@pytest.mark.parametrize(("dimension", "averaged"), [("spatial", (0, 1)), ("all", (0,))])
@pytest.mark.parametrize("drop", [0.3, 0.8])
def test_a_dropped_position_or_element_is_masked_in_every_sample(dimension, averaged, drop):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64)
    sparse = SparseConv2d.from_dense(copy.deepcopy(conv))
    sparse.drop, sparse.choice = drop, Choice(dimension)
    x = torch.randn(3, 4, 9, 7, dtype=torch.float64)
    target = torch.randn_like(conv(x))
    count = (6 if dimension == "all" else 1) * 5 * 4
    assert_gradients(
        sparse, x, target, expected_gradients(conv, x, target, 0, top(target, averaged, channels_kept(count, drop)))
    )
    linear = nn.Linear(5, 6, dtype=torch.float64)
    dropping = SparseLinear.from_dense(copy.deepcopy(linear))
    dropping.drop, dropping.choice = drop, Choice(dimension)
    x, target = torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(3, 7, 6, dtype=torch.float64)
    mask = top(target, (0, 2) if dimension == "spatial" else (0,), channels_kept(42 if dimension == "all" else 7, drop))
    assert_gradients(dropping, x, target, expected_gradients(linear, x, target, 0, mask))


def test_a_random_choice_keeps_the_drawn_channels_whatever_their_gradient():
    conv = nn.Conv2d(2, 10, 3, dtype=torch.float64)
    sparse = SparseConv2d.from_dense(copy.deepcopy(conv))
    scores = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.0, 0.3, 0.4, 0.5, 0.6, 0.7])
    sparse.drop, sparse.choice = 0.8, Choice(draw=lambda count: scores[:count])
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    sparse(x).sum().backward()
    assert sparse.weight.grad.flatten(1).any(1).nonzero().flatten().tolist() == [1, 3]
    assert sparse.bias.grad.nonzero().flatten().tolist() == [1, 3]


@pytest.mark.parametrize("layer", [SparseConv2d(2, 4, 3), SparseLinear(2, 4)])
def test_a_second_backward_through_it_is_refused(layer):
    layer.drop = 0.5
    x = torch.randn(1, 2, 4, 4) if isinstance(layer, SparseConv2d) else torch.randn(3, 2)
    (dx,) = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice .*once_differentiable"):
        dx.sum().backward()


def test_it_is_built_and_loaded_as_the_layer_that_it_stands_for():
    for dense, sparse in SPARSE.items():
        arguments = (4, 8) if dense is nn.Linear else (4, 8, 3)
        torch.manual_seed(0)
        one = dense(*arguments)
        torch.manual_seed(0)
        other = sparse(*arguments)
        assert_same_state(one.state_dict(), other.state_dict())
        other.load_state_dict(dense(*arguments).state_dict())
        assert type(other.dense()) is dense
        assert repr(other).replace("Sparse", "") == repr(one)
        copied = copy.deepcopy(other)
        assert copied.weight is not other.weight
        assert torch.equal(copied.weight, other.weight)


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
        (100, 0.71, 29),
        (100, 0.29, 71),
        (64, 0.8, 12),
        (512, 0.8, 102),
        (10, 0.9, 1),
        (3, 0.8, 1),
        (1, 0.5, 1),
        (10, 0.0, 10),
        (1000, 0.999, 1),
        (50, 0.42, 29),
        (100, 0.57, 43),
    ],
)
def test_kept_channels_are_exact_decimals_rounded_down_and_at_least_one(out, drop, keep):
    assert channels_kept(out, drop) == keep


@given(out=st.integers(1, 2048), hundredths=st.integers(0, 99))
def test_kept_channels_by_integer_arithmetic(out, hundredths):
    assert channels_kept(out, hundredths / 100) == max((100 - hundredths) * out // 100, 1)


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
    make_run([watching, method(**parameters)], data=digits(32), batch=8, epochs=epochs).train()  # 4 steps an epoch
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


def test_a_schedule_with_a_period_begins_anew_after_it_in_steps_or_in_epochs():
    shape = {"linear": lambda t: t, "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2}
    for schedule, rise in shape.items():
        flat = [rate for epoch in rates(4, drop=0.6, schedule=schedule, period="3 steps") for rate in epoch]
        assert flat == pytest.approx([0.6 * rise(step % 3 / 2) for step in range(16)], abs=1e-6)
        by_epoch = rates(6, drop=0.6, schedule=schedule, period="3 epochs", warmup_epochs=1)
        expected = [0.0, *(0.6 * rise(epoch % 3 / 2) for epoch in range(5))]
        assert [epoch[0] for epoch in by_epoch] == pytest.approx(expected, abs=1e-6)
        assert all(len(set(epoch)) == 1 for epoch in by_epoch)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "bar"])
def test_a_period_as_long_as_the_training_is_none(schedule):
    whole = rates(4, drop=0.6, schedule=schedule)
    assert rates(4, drop=0.6, schedule=schedule, period="4 epochs") == whole


@pytest.mark.parametrize("period", ["2 steps", "6 steps", "2 epochs", "1 epoch"])
def test_a_bar_with_a_period_is_what_alternate_is(period):
    assert rates(3, drop=0.5, schedule="bar", period=period) == rates(3, drop=0.5, period=period)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rates_that_change_step_by_step_are_of_a_few_kinds_so_that_a_counter_meets_each(schedule):
    made = method(drop=0.5, schedule=schedule, period="12 steps")
    run = make_run([made], data=digits(96), batch=8, epochs=2)  # 12 steps an epoch
    run.train()
    keys = run.tally.passes().keys
    assert set(keys) == {f"drop={low} to {high}" for low, high in pairwise(("0", "0.1", "0.2", "0.3", "0.4", "0.5"))}
    assert sum(kind["steps"] for kind in keys.values()) == 24
    assert made.acted is True
    assert len(made.diagnostics()["samples_by_drop_rate"]) == 12  # where all are told apart


@pytest.mark.parametrize("schedule", ["linear", "cosine", "bar", "alternate"])
def test_the_claim_holds_over_whole_periods(schedule):
    seen = [rate for epoch in rates(3, drop=0.6, schedule=schedule, period="6 steps") for rate in epoch]
    assert method(drop=0.6, schedule=schedule, period="6 steps").claims()[0] == pytest.approx(
        sum(seen) / len(seen), abs=1e-6
    )


def test_warm_up_epochs_are_dense_and_the_schedule_spans_the_rest():
    assert rates(5, drop=0.8, warmup_epochs=1) == [[0] * 4, [0] * 4, [0.8] * 4, [0] * 4, [0.8] * 4]
    assert rates(3, drop=0.4, schedule="constant", warmup_epochs=2) == [[0] * 4, [0] * 4, [0.4] * 4]
    assert rates(4, drop=0.4, schedule="bar", warmup_epochs=2) == [[0] * 4] * 3 + [[0.4] * 4]
    linear = [epoch[0] for epoch in rates(5, drop=0.8, schedule="linear", warmup_epochs=2)]
    assert linear == pytest.approx([0, 0, 0, 0.4, 0.8])
    assert rates(2, drop=0.4, schedule="constant", warmup_epochs=9) == [[0] * 4] * 2


@pytest.mark.parametrize("schedule", ssprop.SCHEDULES)
def test_the_claim_is_the_mean_rate_that_really_ran_over_whole_periods(schedule):
    seen = [rate for epoch in rates(6, drop=0.6, schedule=schedule) for rate in epoch]
    saving, of, _ = method(drop=0.6, schedule=schedule).claims()
    assert saving == pytest.approx(sum(seen) / len(seen), abs=1e-6)
    assert of == "backward"


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop": 1.0},
        {"drop": -0.1},
        {"drop": math.nan},
        {"schedule": "sometimes"},
        {"period": 2},
        {"period": "2"},
        {"period": "0 steps"},
        {"schedule": "constant", "period": "2 epochs"},
        {"schedule": "linear", "period": "1 epoch"},
        {"schedule": "cosine", "period": "2.5 epochs"},
        {"warmup_epochs": -1},
        {"dimension": "rows"},
        {"select": "bottom"},
        {"dense_below": -1},
        {"dense_below": "often"},
        {"dense_below": 0.5},
        {"dense_below": "auto", "dimension": "all"},
        {"linear": 1},
    ],
)
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError) as refused:
        method(**wrong)
    assert refused.value.problems[0].code == "E304"


def test_the_period_may_be_written_or_given():
    assert method(period="300 steps").period == Quantity(300, "steps")
    assert method().period == Quantity(2, "epochs")
    assert method(schedule="linear").period is None


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
            keep = channels_kept(module.out_channels, 0.5)
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
    found = made.diagnostics()
    # Multiply-adds of the backward: 8·1·9 on 8 × 8 without dX, 16·8·9 on 4 × 4 twice.
    first, second = 64 * 8 * 9, 2 * 16 * 16 * 8 * 9
    assert found.pop("backward_flop_dropped") == pytest.approx(
        (first * 7 / 8 + second * 13 / 16) / (first + second) / 2
    )
    assert found.pop("mean_drop") == pytest.approx(0.4)
    assert found == {"layers": 2, "layers_sparse": 2, "layers_dense": {}, "samples_by_drop_rate": {"0": 64, "0.8": 64}}


def test_a_step_says_what_it_dropped_and_a_model_without_convolutions_is_not_acted_on():
    run = make_run([method(drop=0.8)], data=digits(32), batch=8)
    run.train()
    each = {"steps": 4, "samples": 32}
    assert run.tally.passes().keys == {"plain": each, "drop=0.8": each}
    made = method()
    make_run([made], lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))).train()
    assert made.acted is False


# ── what is dropped, and where ────────────────────────────────────────────────────────────────────────────────────


def counted_and_estimated(model: Any, **parameters: Any) -> tuple[float, float, Any]:
    """Shares of plain training's FLOPs that an independent counter saw and that the formulas give; the method."""
    totals = []
    for made in ([method(**parameters)], []):
        layer = StepCounter(10**9)
        run = make_run([*made], model, counter=layer, data=digits(64), epochs=2)
        run.train()
        totals.append(layer.result(run).counted_flop)
        if made:
            found = made[0]
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), model(), Recipe(epochs=2, batch=32), batch, CPU).lines
    work = Work(lines, epochs=2, samples=64)
    return totals[0] / totals[1], found.estimate(work).flop / work.flop, found


@pytest.mark.parametrize("select", ["topk", "random"])
@pytest.mark.parametrize("model", MODELS.values())
def test_with_linear_layers_what_is_counted_is_what_is_estimated(model, select):
    counted, estimated, made = counted_and_estimated(model, schedule="constant", linear=True, select=select)
    assert counted == pytest.approx(estimated, abs=0.005)
    assert counted < 0.65
    without, _, convolutions = counted_and_estimated(model, schedule="constant")
    assert counted < without
    assert made.diagnostics()["layers"] > convolutions.diagnostics()["layers"]


def test_linear_layers_are_swapped_when_asked_for_and_put_back():
    run = make_run([method(linear=True)])
    assert type(run.model[9]) is SparseLinear
    run.train()
    run.finish()
    assert type(run.model[9]) is nn.Linear


@pytest.mark.parametrize("dimension", ["spatial", "all"])
def test_masks_act_and_save_nothing_and_claim_nothing(dimension):
    counted, estimated, made = counted_and_estimated(tiny_cnn, schedule="constant", dimension=dimension)
    assert counted == estimated == 1
    assert made.claims() is None
    assert made.acted
    assert made.diagnostics()["backward_flop_dropped"] == 0


@pytest.mark.parametrize("dimension", ssprop.DIMENSIONS)
def test_a_random_selection_is_the_seeds_own_and_moves_no_other_stream(dimension):
    def trained(seed: int) -> dict[str, Tensor]:
        run = make_run([method(select="random", dimension=dimension)], data=digits(32), seed=seed)
        run.train()
        return state(run.model)

    assert_same_state(trained(3), trained(3))
    run = make_run([method(select="random", dimension=dimension, schedule="constant")])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run.gradients(next(run.data.load([torch.arange(8)])))
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_with_fewer_channels_than_the_limit_stay_dense_and_the_record_says_which():
    counted, estimated, made = counted_and_estimated(tiny_cnn, schedule="constant", dense_below=16)
    assert counted == pytest.approx(estimated, abs=0.005)
    found = made.diagnostics()
    assert found["layers_dense"] == {"0": "has fewer than 16 output channels"}
    assert (found["layers"], found["layers_sparse"]) == (2, 1)


def test_where_every_layer_stays_dense_it_did_not_act_and_training_is_plain():
    states = []
    for methods in ([method(dense_below=17)], []):
        run = make_run(methods, data=digits(32))
        run.train()
        states.append((state(run.model), run.tally.passes().keys))
    assert_same_state(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]  # no step is called sparse
    made = method(dense_below=17)
    make_run([made], data=digits(32)).train()
    assert made.acted is False


def test_auto_is_a_rule_of_shapes_that_refuses_narrow_layers_and_takes_wide_ones():
    def why(layer: nn.Module, x: Tensor, positions: int, keep: int) -> str:
        return ssprop.refuse(layer, x.requires_grad_(), positions, keep)

    wide, x = nn.Conv2d(256, 256, 3, padding=1), torch.empty(32, 256, 16, 16)
    assert why(wide, x, 32 * 256, 51) == ""
    assert why(wide, x.to(memory_format=torch.channels_last), 32 * 256, 51) == ""
    assert why(wide, x, 32 * 256, 250) != ""  # nearly nothing is dropped
    assert why(wide, x[:1, :, :1, :1], 1, 51) != ""  # nothing is computed
    assert why(nn.Conv2d(8, 16, 3, padding=1), torch.empty(32, 8, 8, 8), 32 * 64, 3) != ""
    assert "grouped" in why(nn.Conv2d(256, 256, 3, padding=1, groups=4), x, 32 * 256, 51)
    assert why(nn.Linear(768, 768), torch.empty(4096, 768), 4096, 153) == ""
    assert why(nn.Linear(64, 10), torch.empty(128, 64), 128, 2) != ""


def test_auto_decides_by_layer_and_estimates_what_it_decided(monkeypatch):
    monkeypatch.setattr(ssprop, "CALLS_FLOP", 2e6)  # so that a model small enough for a test has a layer that pays
    model = partial(tiny_cnn, (8, 96))
    counted, estimated, made = counted_and_estimated(model, schedule="constant", dense_below="auto")
    assert counted == pytest.approx(estimated, abs=0.005)
    assert counted < 0.6
    found = made.diagnostics()
    assert found["layers_sparse"] == 1
    assert list(found["layers_dense"]) == ["0"]
    assert found["layers_dense"]["0"].startswith("auto: ")


def test_timed_layers_stay_dense_where_sparse_was_slower_before_the_first_step(monkeypatch):
    asked: list[Any] = []

    def times(layer: Any, given: Any, drop: float) -> tuple[float, float]:
        asked.append((given.shape, given.learns, drop))
        return (1e-3, 2e-3) if layer.out_channels == 8 else (2e-3, 1e-3)

    monkeypatch.setattr(ssprop, "time_backward", times)
    counted, estimated, made = counted_and_estimated(tiny_cnn, schedule="constant", dense_below="timed")
    assert asked == [((32, 1, 8, 8), False, 0.8), ((32, 8, 4, 4), True, 0.8)]
    assert counted == pytest.approx(estimated, abs=0.005)
    assert made.diagnostics()["layers_dense"] == {"0": "timed: 1 ms dense, 2 ms sparse"}


def test_timing_moves_no_random_stream_no_statistic_and_no_mode():
    run = make_run([], data=digits(64), accumulate=2)
    run.model.insert(3, nn.Dropout(0.5))
    run.model[0].eval()
    modes, before = [m.training for m in run.model.modules()], state(run.model)
    torch.manual_seed(5)
    random = torch.get_rng_state()
    made = method(dense_below="timed")
    made.setup(run)
    assert torch.equal(torch.get_rng_state(), random)
    assert_same_state(state(run.model), before)
    assert [m.training for m in run.model.modules()] == modes
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert not [m for m in run.model.modules() if m._forward_pre_hooks]
    assert all("timed: " in layer.because for layer in made._layers.values())


def test_a_timed_backward_takes_what_its_products_take(monkeypatch):
    """On a clock that goes by the FLOPs computed so far: dX and dW of all channels, and of those that are kept."""
    given = ssprop.LayerInput(torch.Size([32, 128, 12, 12]), torch.float32, CPU, (18432, 144, 12, 1), True)
    x = given.random()
    assert (x.shape, x.stride(), x.requires_grad) == (given.shape, given.strides, True)
    layer = SparseConv2d(128, 256, 3, padding=1)
    with Counter() as counter:
        clock = types.SimpleNamespace(perf_counter=lambda: counter.total / 1e9)
        monkeypatch.setattr(ssprop, "time", clock)
        dense_s, sparse_s = ssprop.time_backward(layer, given, 0.9)
    assert dense_s == pytest.approx(2 * 2 * 32 * 144 * 128 * 9 * 256 / 1e9)
    assert sparse_s == pytest.approx(dense_s * channels_kept(256, 0.9) / 256)
    assert layer.drop == 0
    assert layer.weight.grad is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_in_both_precisions(precision):
    run = make_run([method(drop=0.5)], lambda: tiny_cnn((4, 8)), precision=precision, epochs=2)
    run.train()
    assert run.curve[-1]["loss"] < run.curve[0]["loss"] * 1.5


def test_the_estimated_bytes_are_those_of_products_with_the_kept_channels():
    """Conv2d(4, 10, 3) on 8 × 8, drop 0.8 in every step: 2 of 10 channels kept, 36 positions, fp32.

    dW reads x and 2 channels of dY, writes 2 filters; dX reads 2 channels of dY and 2 filters, writes dX.
    """
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 10, 3), nn.Flatten(), nn.Linear(360, CLASSES))
    plain = Work(ledger(model, (torch.zeros(3, 1, 8, 8),)), epochs=2, samples=32)
    made = method(drop=0.8, schedule="constant")
    run = make_run([made], lambda: model, data=digits(32), batch=8, epochs=2)
    run.train()
    estimated = made.estimate(plain)
    lines = {(line.phase, line.module): line for line in estimated.lines if line.op in ("conv", "reduction")}
    x, dy, w, bias = 4 * 4 * 64, 4 * 10 * 36, 4 * 10 * 4 * 9, 4 * 10
    found = lines["weight_gradient", "1"]
    assert found.sample_b == pytest.approx({"x": x, "dy": dy / 5})
    assert found.step_b == pytest.approx({"dw": w / 5, "dbias": bias / 5})
    found = lines["input_gradient", "1"]
    assert found.sample_b == pytest.approx({"dy": dy / 5, "dx": x})
    assert found.step_b == pytest.approx({"w": w / 5})
    assert lines["forward", "1"] == next(line for line in plain.lines if line.module == "1")
    assert lines["selection", "1"].sample_b == {"dy": dy}  # choosing reads all of it
    assert lines["selection", "1"].flop == 0

    conv = {group.name: group for group in groups(plain, estimated, batch=8)}["conv 1"]
    assert conv.flop_saved_rel == pytest.approx(0.8 * 2 / 3)
    saved = 0.8 * (8 * 2 * dy + 2 * w + bias) / (8 * 3 * (x + dy) + 3 * w + 2 * bias)
    assert conv.bytes_saved_rel == pytest.approx(saved)


def test_half_of_the_steps_dense_is_half_of_the_bytes_saved():
    model = nn.Sequential(nn.Conv2d(1, 10, 3), nn.Flatten(), nn.Linear(360, CLASSES))
    plain = Work(ledger(model, (torch.zeros(3, 1, 8, 8),)), epochs=4, samples=32)
    made = method(drop=0.8)  # every second epoch
    run = make_run([made], lambda: model, data=digits(32), batch=8, epochs=4)
    run.train()
    lines = {(line.phase, line.op): line for line in made.estimate(plain).lines}
    assert lines["weight_gradient", "conv"].sample_b == pytest.approx({"x": 4 * 64, "dy": 0.6 * 4 * 360})
    assert lines["selection", "reduction"].sample_b == {"dy": 0.5 * 4 * 360}
