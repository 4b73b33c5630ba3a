"""Layers whose gradient is that of live rows alone, against autograd with rows masked; rows that no optimizer moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_same_state, state
from torch import Tensor, nn

from energybench.algorithms.drop_in_layers import swap, swap_back
from energybench.algorithms.frozen_layers import (
    FROZEN,
    MOMENTA,
    FrozenConv2d,
    FrozenLayer,
    FrozenLinear,
    Held,
    zero_gradient,
)
from energybench.flops.counter import Counter

# ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────────

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw: Any) -> tuple[Any, Tensor]:
    """Of one to three dimensions, any geometry, in planes and in channels_last, on a batch or an unbatched image."""
    space = draw(st.sampled_from([1, 2, 2, 2, 3]))

    def each(*values: Any) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(space))

    groups, kernel, dilation = draw(st.sampled_from([1, 1, 2, 3])), each(1, 2, 3), each(1, 2)
    stride = draw(st.sampled_from([(1,) * space, each(1, 2, 3)]))
    padding: Any = draw(st.sampled_from([0, 1, tuple(range(2, 2 - space, -1)), "valid", "same"]))
    if padding == "same":
        stride = (1,) * space
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
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"])),
        dtype=torch.float64,
    )
    x = torch.randn(*draw(st.sampled_from([(), (1,), (3,)])), conv.in_channels, *each(5, 6, 7), dtype=torch.float64)
    if x.dim() == 4 and space == 2 and draw(st.booleans()):
        conv, x = conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return conv, x


def rows_of(count: int, seed: int) -> Tensor:
    """Some positions of `count`, at least one, in order."""
    random = torch.Generator().manual_seed(seed)
    size = int(torch.randint(1, count + 1, (1,), generator=random))
    return torch.randperm(count, generator=random)[:size].sort().values


def frozen_twin(layer: Any, live: Tensor | None) -> Any:
    twin = FROZEN[type(layer)].from_dense(copy.deepcopy(layer))
    twin.live = live
    return twin


def assert_rows_alone(layer: Any, x: Tensor, live: Tensor, *, to_input: bool) -> None:
    """dX is the dense layer's; dW and dB have its live rows, and zeros elsewhere. L = Σ Y·target."""
    twin, target = frozen_twin(layer, live), torch.randn_like(layer(x))
    given_x = [x.detach().clone().requires_grad_(to_input) for _ in range(2)]
    for module, x_of in zip((layer, twin), given_x, strict=True):
        (module(x_of) * target).sum().backward()
    assert torch.equal(layer(x), twin(x))
    if to_input:
        torch.testing.assert_close(given_x[1].grad, given_x[0].grad, rtol=1e-10, atol=1e-12)
    resting = torch.ones(len(layer.weight), dtype=torch.bool).index_fill(0, live, False)
    for dense, found in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad[live], dense.grad[live], rtol=1e-10, atol=1e-12)
        assert not found.grad[resting].any()


@given(made=convolutions(), seed=st.integers(0, 999), to_input=st.booleans())
@settings(max_examples=120)
def test_a_convolutions_gradients_are_autograds_with_the_resting_rows_zero(made, seed, to_input):
    conv, x = made
    assert_rows_alone(conv, x, rows_of(conv.out_channels, seed), to_input=to_input)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_large_input_computed_in_pieces_of_the_batch_has_the_same_gradients(groups, last, samples, monkeypatch):
    torch.manual_seed(0)
    conv, x = (nn.Conv2d(4, 6, 3, padding=1, groups=groups, dtype=torch.float64), torch.randn(7, 4, 5, 6).double())
    if last:
        conv, x = conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    monkeypatch.setattr("energybench.algorithms.channel_sparse.PIECE", samples * x[0].numel())
    assert_rows_alone(conv, x, torch.tensor([0, 2, 5]), to_input=True)


@given(
    shape=st.sampled_from([(), (1,), (4,), (3, 5)]),
    out=st.integers(1, 9),
    bias=st.booleans(),
    seed=st.integers(0, 99),
    to_input=st.booleans(),
)
def test_a_linear_layers_gradients_are_autograds_with_the_resting_rows_zero(shape, out, bias, seed, to_input):
    torch.manual_seed(seed)
    linear = nn.Linear(6, out, bias, dtype=torch.float64)
    assert_rows_alone(linear, torch.randn(*shape, 6, dtype=torch.float64), rows_of(out, seed), to_input=to_input)


@pytest.mark.parametrize("groups", [1, 2])
def test_under_bf16_autocast_forward_is_the_dense_ones_and_gradients_are_close(groups):
    torch.manual_seed(0)
    conv, x, target = (nn.Conv2d(8, 16, 3, padding=1, groups=groups), torch.randn(4, 8, 6, 6), torch.randn(4, 16, 6, 6))
    live = torch.tensor([0, 3, 4, 9, 15])
    twin = frozen_twin(conv, live)
    (conv(x) * target).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        y = twin(x)
        assert torch.equal(y, conv(x))
    (y.float() * target).sum().backward()
    assert twin.weight.grad.dtype == torch.float32
    assert (twin.weight.grad[live] - conv.weight.grad[live]).norm() < 0.02 * conv.weight.grad[live].norm()


@pytest.mark.parametrize("live", [1, 5, 20])
def test_the_live_rows_of_dw_and_the_whole_dx_are_what_is_counted(live):
    conv, x = nn.Conv2d(8, 20, 3, padding=1), torch.randn(2, 8, 6, 6, requires_grad=True)
    layer = frozen_twin(conv, torch.arange(live))
    with Counter() as counter:
        layer(x).sum().backward()
    assert counter.total == pytest.approx(2 * 2 * 36 * 8 * 9 * 20 * (1 + live / 20 + 1))
    assert layer.share("weight_gradient") == live / 20
    assert layer.share("input_gradient") == 1


def test_what_hangs_on_nothing_that_learns_has_no_backward_and_says_so():
    """Autograd skips dX of a layer whose input needs none: all that is up there rests."""
    first, second, third = (nn.Conv2d(4, 4, 1, bias=False) for _ in range(3))
    chain = nn.Sequential(nn.Sequential(first), nn.Sequential(second), nn.Sequential(third))
    layers = swap(chain, FROZEN)
    for name in ("0.0", "1.0"):
        layers[name].weight.requires_grad_(False)
    layers["2.0"].live = torch.tensor([1, 2])
    with Counter() as counter:
        chain(torch.randn(1, 4, 3, 3)).sum().backward()
    each = 2 * 9 * 4 * 4
    assert counter.total == 3 * each + each / 2
    shares = {
        name: [layer.share(kind) for kind in ("weight_gradient", "input_gradient", "read")]
        for name, layer in layers.items()
    }
    assert shares == {"0.0": [0, 0, 0], "1.0": [0, 0, 0], "2.0": [0.5, 0, 1]}


def test_a_layer_that_rests_whole_still_hands_the_gradient_on():
    first, second = nn.Linear(3, 3), frozen_twin(nn.Linear(3, 2), None)
    second.requires_grad_(False)
    second(first(torch.randn(4, 3))).sum().backward()
    assert first.weight.grad is not None
    assert second.weight.grad is None
    assert (second.share("weight_gradient"), second.share("input_gradient")) == (0, 1)


def test_shares_are_means_over_what_ran_and_looking_is_not_training():
    layer = frozen_twin(nn.Linear(3, 4), None)
    x = torch.randn(6, 3)
    assert layer.share("weight_gradient") == 1
    for live, count in ((None, 6), (torch.tensor([0]), 2)):
        layer.live = live
        layer(x[:count]).sum().backward()
    assert layer.share("weight_gradient") == pytest.approx((6 * 1 + 2 * 0.25) / 8)
    with torch.no_grad():
        layer(x)
    layer.eval()(x).sum().backward()
    assert layer.planned == 8 * 4


@pytest.mark.parametrize("layer", [FrozenConv2d(2, 4, 3), FrozenLinear(2, 4)])
def test_a_second_backward_through_it_is_refused(layer):
    layer.live = torch.tensor([0, 2])
    x = torch.randn(1, 2, 4, 4) if isinstance(layer, FrozenConv2d) else torch.randn(3, 2)
    (dx,) = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice .*once_differentiable"):
        dx.sum().backward()


def test_the_swap_draws_nothing_and_leaves_what_it_found():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(shared, nn.Bilinear(2, 2, 2)), shared)
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    before, parameters, types = state(model), list(model.parameters()), [type(m) for m in model.modules()]
    random = torch.get_rng_state()
    layers = swap(model, FROZEN)
    assert torch.equal(torch.get_rng_state(), random)
    assert set(layers) == {"0", "1.0"}
    assert model[1][0] is model[2]
    assert all(isinstance(layer, FrozenLayer) for layer in layers.values())
    assert_same_state(state(model), before)
    model[0](torch.zeros(1, 1, 4, 4))
    layers["0"].live = torch.tensor([0])
    swap_back(model, layers)
    assert [type(m) for m in model.modules()] == types
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model[1][0] is model[2]
    assert vars(model[0]).keys() == vars(nn.Conv2d(1, 2, 3)).keys()
    model[0](torch.zeros(1, 1, 4, 4))
    assert calls == ["hook", "hook"]


# ── rows that stay ────────────────────────────────────────────────────────────────────────────────────────────────

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def trained(name: str, held_from: int | None, until: int, *, masked: bool = True) -> tuple[list[Tensor], Any]:
    """The parameter after every step, rows 1 and 3 held from one step to another; the optimizer's state."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    optimizer = OPTIMIZERS[name]([parameter])
    random = torch.Generator().manual_seed(1)
    seen, held = [], None
    for number in range(8):
        if number == held_from:
            held = Held(parameter, 0, torch.tensor([1, 3]), optimizer.state[parameter])
        if number == until:
            held = None
        parameter.grad = torch.randn(5, 3, generator=random, dtype=torch.float64)
        with torch.no_grad():
            if held and masked:
                zero_gradient(parameter, 0, held.rows)
                assert not parameter.grad[[1, 3]].any()
                assert parameter.grad[[0, 2, 4]].any()
            optimizer.step()
            if held:
                held.restore()
        seen.append(parameter.detach().clone())
    return seen, optimizer.state[parameter]


@each_optimizer
@pytest.mark.parametrize("masked", [True, False])
def test_held_rows_stay_bit_for_bit_and_the_others_move_as_ever(name, masked):
    free, _ = trained(name, None, 8)
    found, state_of = trained(name, 3, 8, masked=masked)
    for number in range(3, 8):
        assert torch.equal(found[number][[1, 3]], free[2][[1, 3]])
        assert torch.equal(found[number][[0, 2, 4]], free[number][[0, 2, 4]])
    for key, value in state_of.items():
        if key in MOMENTA:
            assert not value[[1, 3]].any()
            assert value[[0, 2, 4]].any()


@each_optimizer
def test_rows_let_go_start_without_momentum_and_with_the_rest_of_their_state(name):
    _, before = trained(name, 3, 8)
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    optimizer = OPTIMIZERS[name]([parameter])
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        parameter.grad = torch.randn(5, 3, generator=random, dtype=torch.float64)
        optimizer.step()
    for key, value in optimizer.state[parameter].items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and key not in MOMENTA:
            assert torch.equal(before[key][[1, 3]], value[[1, 3]])  # as it was when they were held


def test_state_that_comes_later_is_held_too():
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9, weight_decay=0.5)
    held = Held(parameter, 0, torch.tensor([1]), optimizer.state[parameter])
    parameter.grad = torch.zeros(3, 2)
    optimizer.step()
    with torch.no_grad():
        held.restore()
    assert parameter[1].tolist() == [1, 1]
    assert optimizer.state[parameter]["momentum_buffer"][1].tolist() == [0, 0]
    assert optimizer.state[parameter]["momentum_buffer"][0].tolist() == [0.5, 0.5]


def test_a_gradient_that_is_not_finite_is_zero_where_it_is_not_wanted():
    parameter = nn.Parameter(torch.zeros(3, 2))
    zero_gradient(parameter, 0, torch.tensor([1]))  # there is none
    parameter.grad = torch.full((3, 2), float("nan"))
    zero_gradient(parameter, 0, torch.tensor([1]))
    assert parameter.grad.isnan().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("way", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("watched", [nullcontext, Counter])
def test_rows_stay_whatever_kernels_move_the_others_and_whoever_counts_them(
    way: dict[str, bool], watched: Callable[[], AbstractContextManager[object]]
) -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.SGD([parameter], 0.5, weight_decay=0.5, **way)
    held = Held(parameter, 0, torch.tensor([1]), optimizer.state[parameter])
    with watched():
        for _ in range(3):
            parameter.grad = torch.zeros(3, 2)
            optimizer.step()
            with torch.no_grad():
                held.restore()
    assert parameter.detach().sum(1).tolist() == [2 * 0.75**3, 2, 2 * 0.75**3]


def test_columns_can_be_held_as_rows_are():
    """A transposed convolution has its neurons in the second dimension."""
    parameter = nn.Parameter(torch.zeros(2, 3, 2))
    held = Held(parameter, 1, torch.tensor([0, 2]), {})
    parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():
        zero_gradient(parameter, 1, held.rows)
        parameter.add_(1)
        held.restore()
    assert parameter.grad.sum((0, 2)).tolist() == parameter.detach().sum((0, 2)).tolist() == [0, 4, 0]
