"""SGD over SGD: held against automatic differentiation through the step, against torch's SGD, and against itself."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from energybench.algorithms.hypergradient_sgd import HyperSGD, hyper_step, inner_products

DIMENSIONS = 5


def quadratic(seed: int) -> tuple[Any, nn.Parameter]:
    """(loss of w, w): ½ wᵀAw + bᵀw with a positive definite A, in double precision."""
    random = torch.Generator().manual_seed(seed)
    root = torch.randn(DIMENSIONS, DIMENSIONS, generator=random, dtype=torch.float64)
    matrix = root @ root.t() / DIMENSIONS + torch.eye(DIMENSIONS)
    line = torch.randn(DIMENSIONS, generator=random, dtype=torch.float64)
    start = torch.randn(DIMENSIONS, generator=random, dtype=torch.float64)
    return (lambda w: 0.5 * w @ matrix @ w + line @ w), nn.Parameter(start)


def steps(optimizer: Any, loss: Any, parameter: nn.Parameter, count: int) -> list[Tensor]:
    """The gradient of every step."""
    gradients = []
    for _ in range(count):
        parameter.grad = None
        loss(parameter).backward()
        gradients.append(parameter.grad.clone())
        optimizer.step()
    return gradients


SETTINGS = {
    "plain": {},
    "decay": {"decay": 0.1},
    "momentum": {"momentum": 0.9},
    "momentum and decay": {"momentum": 0.7, "decay": 0.05},
    "nesterov": {"momentum": 0.9, "nesterov": True, "decay": 0.01},
}
each_setting = pytest.mark.parametrize("name", SETTINGS)


@each_setting
def test_without_a_hyper_learning_rate_it_is_torchs_sgd(name):
    settings: dict[str, Any] = SETTINGS[name]
    loss, ours = quadratic(1)
    theirs = nn.Parameter(ours.detach().clone())
    torchs = {"weight_decay" if key == "decay" else key: value for key, value in settings.items()}
    steps(HyperSGD([ours], 0.05, **settings), loss, ours, 20)
    steps(torch.optim.SGD([theirs], 0.05, **torchs), loss, theirs, 20)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


@given(seed=st.integers(0, 99), rate=st.sampled_from([1e-5, 1e-4, 1e-3]))
def test_without_momentum_alpha_grows_by_the_product_of_two_gradients(seed, rate):
    """α_{t+1} = α_t + η⟨g_t, g_{t−1}⟩, and the first step leaves α alone."""
    loss, parameter = quadratic(seed)
    optimizer = HyperSGD([parameter], 0.05, hyper_lr=rate)
    (first,) = steps(optimizer, loss, parameter, 1)
    expected = 0.05
    assert optimizer.rate.item() == expected
    for _ in range(10):
        (gradient,) = steps(optimizer, loss, parameter, 1)
        expected += rate * (gradient @ first).item()
        first = gradient
        assert optimizer.rate.item() == pytest.approx(expected, rel=1e-12)


@each_setting
@pytest.mark.parametrize("seed", range(3))
def test_alpha_moves_by_the_derivative_of_the_next_loss_through_the_last_step(name, seed):
    """Autograd differentiates L(w_{t−1} − α·d) in α; what changed α must be that, for any direction d."""
    settings: dict[str, Any] = SETTINGS[name]
    loss, parameter = quadratic(seed)
    optimizer = HyperSGD([parameter], 0.03, hyper_lr=1e-3, **settings)
    slope = None  # of the next loss in the α of the step just taken
    for _ in range(6):
        where, rate = parameter.detach().clone(), optimizer.rate
        steps(optimizer, loss, parameter, 1)
        if slope is None:
            assert optimizer.rate.item() == 0.03
        else:
            torch.testing.assert_close(optimizer.rate - rate, -1e-3 * slope, rtol=1e-9, atol=1e-15)
        direction = (where - parameter.detach()) / optimizer.rate
        alpha = optimizer.rate.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(where - alpha * direction), alpha)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_momentum_moves_by_the_derivative_of_the_next_loss_through_the_last_step(decay):
    loss, parameter = quadratic(4)
    optimizer = HyperSGD([parameter], 0.03, momentum=0.6, decay=decay, hyper_lr=1e-3, learn_momentum=True)
    buffer, slope = torch.zeros(DIMENSIONS, dtype=torch.float64), None
    for number in range(6):
        parameter.grad = None
        loss(parameter).backward()
        full, where, before = (
            parameter.grad + decay * parameter.detach(),
            parameter.detach().clone(),
            optimizer.momentum,
        )
        optimizer.step()
        if number == 0:
            assert optimizer.momentum.item() == 0.6
        else:
            torch.testing.assert_close(optimizer.momentum - before, -1e-3 * slope, rtol=1e-9, atol=1e-15)
        # The step just taken, as a function of its momentum; there is none in the first.
        mu = optimizer.momentum.clone().requires_grad_()
        moved = where - optimizer.rate * (mu * buffer + full)
        torch.testing.assert_close(parameter.detach(), moved.detach(), rtol=1e-12, atol=1e-14)
        (slope,) = torch.autograd.grad(loss(moved), mu)
        buffer = optimizer.momentum * buffer + full


def test_alpha_goes_where_a_search_would_have_put_it():
    """On ½·w² of curvature 1 each step multiplies w by 1 − α: from a small α it grows and ends below 2."""
    parameter = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer = HyperSGD([parameter], 0.01, hyper_lr=0.01)
    steps(optimizer, lambda w: 0.5 * (w * w).sum(), parameter, 200)
    assert 0.1 < optimizer.rate.item() < 2
    assert abs(parameter.item()) < 1e-3


@given(
    value=st.floats(-2, 2),
    slopes=st.lists(st.floats(-5, 5), min_size=1, max_size=6),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_a_hyper_step_is_a_step_of_torchs_sgd(value, slopes, momentum):
    theirs = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    optimizer = torch.optim.SGD([theirs], 0.1, momentum=momentum)
    ours, buffer = theirs.detach().clone(), None
    for slope in slopes:
        theirs.grad = torch.tensor(slope, dtype=torch.float64)
        optimizer.step()
        ours, buffer = hyper_step(ours, theirs.grad, 0.1, momentum, buffer)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)


def test_hyper_momentum_is_the_momentum_of_the_steps_on_alpha():
    plain, heavy = [], []
    for momentum, found in ((0.0, plain), (0.9, heavy)):
        loss, parameter = quadratic(2)
        optimizer = HyperSGD([parameter], 0.02, hyper_lr=1e-4, hyper_momentum=momentum)
        for _ in range(3):
            steps(optimizer, loss, parameter, 1)
            found.append(optimizer.rate.item())
    assert plain[0] == heavy[0] == 0.02
    assert plain[1] == heavy[1]  # a buffer starts as its first gradient
    moved = heavy[2] - heavy[1]
    assert moved == pytest.approx(0.9 * (heavy[1] - heavy[0]) + (plain[2] - plain[1]), rel=1e-9)


@given(
    shapes=st.lists(st.sampled_from([(3,), (2, 4), (2, 3, 2, 2), ()]), min_size=1, max_size=4), seed=st.integers(0, 99)
)
def test_inner_products_are_sums_of_products_whatever_the_shape_and_layout(shapes, seed):
    torch.manual_seed(seed)
    ones, others = ([torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(2))
    found = inner_products(ones, others)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.stack([(a * b).sum() for a, b in zip(ones, others, strict=True)]))
    last = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in ones]
    torch.testing.assert_close(inner_products(last, others), found)
    torch.testing.assert_close(
        inner_products([*ones, None, ones[0]], [*others, ones[0], None]), torch.cat([found, found.new_zeros(2)])
    )


def test_a_parameter_without_a_gradient_neither_moves_nor_counts():
    one, other = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = HyperSGD([one, other], 0.1, momentum=0.9, decay=0.1, hyper_lr=1e-2)
    for number in range(4):
        one.grad = torch.ones(2, dtype=torch.float64)
        other.grad = torch.ones(2, dtype=torch.float64) if number != 1 else None
        before = other.detach().clone()
        optimizer.step()
        assert torch.equal(other, before) == (number == 1)
        # Of a step that it did not take, or whose successor it did not see, the other says nothing.
        assert (optimizer.products[1] != 0) == (number == 3)
        assert (optimizer.products[0] != 0) == (number > 0)


def test_a_thousand_steps_keep_no_graph_and_no_tensor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = HyperSGD(
        model.parameters(), 0.01, momentum=0.9, decay=1e-3, hyper_lr=1e-6, hyper_momentum=0.5, learn_momentum=True
    )
    x, y = torch.randn(4, 6), torch.randn(4, 3)
    held = {}
    for number in range(1, 1001):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        if number in (10, 1000):
            gc.collect()
            held[number] = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    assert held[10] == held[1000]
    learned = [optimizer.rate, optimizer.momentum, optimizer.products]
    kept = [value for state in optimizer.state.values() for value in state.values()]
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in (*learned, *kept))
    assert optimizer.rate.item() != 0.01


@pytest.mark.parametrize("wrong", [{"nesterov": True, "momentum": 0.9, "learn_momentum": True}, {"nesterov": True}])
def test_what_it_cannot_do_is_refused(wrong):
    with pytest.raises(ValueError, match="nesterov"):
        HyperSGD([nn.Parameter(torch.ones(1))], 0.1, **wrong)


def test_two_groups_are_refused():
    groups: Any = [{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)]
    with pytest.raises(ValueError, match="one group"):
        HyperSGD(groups, 0.1)


NAMES_OF_BEFORE = {"look": "compute_hypergradients", "turn": "update_hyperparameters", "move": "update_parameters"}


def test_a_step_is_its_three_parts_under_their_names_of_now_and_of_before():
    loss = lambda w: (w.square() * torch.tensor([1.0, 3.0])).sum()  # noqa: E731
    parameters = [nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(3)]
    optimizers = [HyperSGD([parameter], 0.05, momentum=0.5, hyper_lr=1e-3) for parameter in parameters]
    for _ in range(4):
        for parameter in parameters:
            parameter.grad = torch.autograd.grad(loss(parameter), parameter)[0]
        optimizers[0].step()
        optimizers[1].compute_hypergradients()
        optimizers[1].update_hyperparameters()
        optimizers[1].update_parameters()
        for old, new in NAMES_OF_BEFORE.items():
            with pytest.warns(DeprecationWarning, match=f"HyperSGD.{old} is called {new} now"):
                getattr(optimizers[2], old)()
    assert torch.equal(parameters[0], parameters[1])
    assert torch.equal(parameters[0], parameters[2])
    assert optimizers[0].rate == optimizers[1].rate == optimizers[2].rate != 0.05
