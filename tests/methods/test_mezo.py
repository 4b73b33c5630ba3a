"""mezo: two forwards are a directional derivative, and the step goes along it; no backward, and nothing is stored."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, assert_same_state, double_run, make_run, state, tiny_cnn
from torch import Tensor, nn

from energybench import Forward, Task
from energybench.common.errors import UsageError
from energybench.flops.work import Line, Work
from energybench.train import discovery
from energybench.train.data import Data, Resident
from energybench.train.stack_check import check_stack
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["mezo"])


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "mezo", parameters)


def other(name: str, **parameters: Any) -> Any:
    return discovery.build(discovery.load(discovery.sources()[name]), name, parameters)


class Regression(Task):
    """½(f(x) − y)², which is quadratic in the weights of a linear model."""

    name = "regression"

    def forward(self, run, batch):
        each = (run.model(batch.inputs).squeeze(1) - batch.targets).square() / 2
        return Forward(each.mean(), each, each)


def regression(made: Any, features: int = 5, count: int = 40, **settings: Any) -> Any:
    random = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, features, generator=random, dtype=torch.float64)
    targets = inputs.sum(1) + 0.1 * torch.randn(count, generator=random, dtype=torch.float64)
    data = Data(Resident(inputs, targets, CPU))
    return make_run([made], lambda: nn.Linear(features, 1).double(), data, Regression(), **{"batch": 40} | settings)


def whole_batch(run: Any) -> Any:
    return next(run.data.load([torch.arange(len(run.data))]))


def true_gradient(run: Any, batch: Any) -> Tensor:
    loss = run.task.forward(run, batch).value
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(run.model.parameters()))])


def direction(made: Any, run: Any) -> Tensor:
    return torch.cat([z.flatten() for _, z in made._directions(run, "main")])


@given(seed=st.integers(0, 200), epsilon=st.floats(1e-4, 1.0))
def test_of_a_quadratic_loss_the_estimate_is_the_directional_derivative(seed, epsilon):
    """The difference over both sides of a parabola is exact, however far apart they are."""
    made = method(epsilon=epsilon)
    run = regression(made, seed=seed)
    batch = whole_batch(run)
    expected = true_gradient(run, batch)
    run.gradients(batch)
    slope = made._slopes["main"].item()
    assert slope == pytest.approx((direction(made, run) @ expected).item(), rel=1e-8, abs=1e-10)


def test_of_another_loss_it_is_the_derivative_up_to_the_square_of_epsilon():
    errors = []
    for epsilon in (1e-1, 1e-2):
        made = method(epsilon=epsilon)
        run = double_run([made])
        batch = whole_batch(run)
        expected = true_gradient(run, batch)
        run.gradients(batch)
        errors.append(abs(made._slopes["main"].item() - (direction(made, run) @ expected).item()))
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.2)


def test_its_step_is_minus_the_learning_rate_times_slope_times_direction():
    made = method(lr=0.03)
    run = regression(made, lr=0.5)
    batch = whole_batch(run)
    before = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    run.gradients(batch)
    between = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    torch.testing.assert_close(between, before, rtol=0, atol=1e-15)  # the forwards leave the weights where they were
    slope, z = made._slopes["main"].item(), direction(made, run)
    run.update("main")
    after = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    torch.testing.assert_close(after, before - 0.03 * slope * z)


def test_over_many_directions_the_estimate_is_the_gradient():
    """E[g·z] = ∇L, with covariance ‖∇L‖²·I + ∇L∇Lᵀ."""
    made, count = method(), 4000
    run = regression(made)
    batch = whole_batch(run)
    expected = true_gradient(run, batch)
    total = torch.zeros_like(expected)
    for _ in range(count):
        run.gradients(batch)
        total += made._slopes["main"] * direction(made, run)
    deviation = (expected.norm() ** 2 + expected**2).sqrt() / math.sqrt(count)
    assert ((total / count - expected).abs() < 4.5 * deviation).all()


def test_directions_are_standard_normal_the_seeds_own_and_new_in_each_step():
    made = method()
    run = make_run([made], lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 500), nn.Linear(500, 10)))
    batch = next(run.data.load([torch.arange(32)]))
    run.gradients(batch)
    first = direction(made, run)
    assert torch.equal(direction(made, run), first)  # drawn again from its seed
    run.gradients(batch)
    second = direction(made, run)
    count = first.numel()
    assert abs(first.mean().item()) < 4 / math.sqrt(count)
    assert first.square().mean().item() == pytest.approx(1, rel=4 * math.sqrt(2 / count))
    assert abs((first @ second).item()) < 4 * math.sqrt(count)
    again = method()
    run = make_run([again], lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 500), nn.Linear(500, 10)), seed=8)
    run.gradients(batch)
    assert not torch.equal(direction(again, run), first)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_forwards_a_step_no_backward_and_one_update(accumulate):
    run = make_run([method()], epochs=2, accumulate=accumulate)
    run.train()
    steps = 2 * run.data.steps(32)
    tally = run.tally
    assert (tally.forwards, tally.backwards, tally.updates) == (2 * accumulate * steps, 0, steps)
    assert list(tally.passes().keys) == [f"{2 * accumulate}f0b1u"]
    assert len([point for point in run.curve if point["loss"] is not None]) == 2


def test_micro_batches_give_the_step_of_the_whole_batch():
    states = []
    for accumulate in (1, 3):
        run = double_run([method(lr=0.1)], batch=12, accumulate=accumulate)
        run.train()
        states.append(state(run.model))
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-7, atol=1e-9)


def test_nothing_is_kept_no_optimizer_no_gradient_and_no_direction():
    made = method()
    run = make_run([made], epochs=2, clip=1.0, decay=1e-3)
    run.train()
    assert run.optimizers == {}
    assert all(p.grad is None for p in run.model.parameters())
    kept = [value for value in vars(made).values() if isinstance(value, Tensor)]
    assert not kept
    assert made._slopes == {}


def test_batch_norms_running_statistics_see_each_batch_once():
    run = make_run([method()], epochs=2)
    run.train()
    plain = make_run([], epochs=2)
    plain.train()
    assert run.model[1].num_batches_tracked == plain.model[1].num_batches_tracked == 6


class Noisy(nn.Module):
    """Dropout of the model's own, from torch's stream."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 3)).double()

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("with_other", [None, "dropout", "gni"])
def test_both_forwards_see_the_same_noise(with_other):
    """Otherwise its difference over 2ε would drown the slope: 10⁸ here."""
    made = method(epsilon=1e-8)
    stack = [made] if with_other is None else [other(with_other), made]
    model = Noisy if with_other is None else (lambda: tiny_cnn().double())
    inputs = None if with_other is None else {"data": images()}
    run = double_run(stack, **{"model": model} | (inputs or {}))
    batch = next(run.data.load([torch.arange(16)]))
    slopes = []
    for _ in range(3):
        run.gradients(batch)
        slopes.append(abs(made._slopes["main"].item()))
    assert 0 < max(slopes) < 1e3
    values = [run.gradients(batch).value.item() for _ in range(3)]
    assert len({round(value, 6) for value in values}) == 3  # and each step draws anew


def images() -> Data:
    random = torch.Generator().manual_seed(3)
    inputs = torch.randn(24, 1, 8, 8, generator=random, dtype=torch.float64)
    return Data(Resident(inputs, torch.randint(10, (24,), generator=random), CPU))


def test_decay_and_clip_are_the_recipes():
    def moved(**settings: Any) -> tuple[Tensor, Tensor]:
        run = regression(method(lr=0.01), **settings)
        before = torch.cat([p.detach().flatten() for p in run.model.parameters()])
        run.step(whole_batch(run))
        return before, torch.cat([p.detach().flatten() for p in run.model.parameters()]) - before

    before, plain = moved()
    torch.testing.assert_close(moved(decay=0.5)[1], plain - 0.01 * 0.5 * before)
    clipped = moved(clip=1e-3)[1]
    assert clipped.norm().item() == pytest.approx(0.01 * 1e-3, rel=1e-2)
    torch.testing.assert_close(clipped / clipped.norm(), plain / plain.norm())
    torch.testing.assert_close(moved(clip=1e9)[1], plain)


def test_the_learning_rate_is_the_recipes_over_root_d_or_ones_own_in_the_recipes_shape():
    made, own = method(), method(lr=3.0)
    for progress in (1, 3):
        run = regression(made, lr=0.2, schedule="cosine", epochs=4)
        run.epoch_number = progress
        shape = (1 + math.cos(math.pi * (progress - 1) / 4)) / 2
        assert made._rate(run, "main") == pytest.approx(0.2 * shape / math.sqrt(6))
        assert own._rate(run, "main") == pytest.approx(3.0 * shape)


def test_it_trains():
    run = regression(method(lr=0.02), epochs=300)
    run.train()
    assert run.curve[-1]["loss"] < 0.05 * run.curve[0]["loss"]


def test_a_skipped_update_leaves_the_weights_and_the_same_seed_gives_the_same_ones():
    run = regression(method())
    before = state(run.model)
    run.gradients(whole_batch(run))
    run.skip_update = True
    run.update("main")
    for name, value in state(run.model).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-15)
    runs = [regression(method(), epochs=5) for _ in range(2)]
    for one in runs:
        one.train()
    assert_same_state(state(runs[0].model), state(runs[1].model))


def test_its_estimate_is_two_forwards_and_no_backward():
    work = Work(
        (
            Line("forward", "a", "linear", 10.0),
            Line("weight_gradient", "a", "linear", 10.0),
            Line("input_gradient", "a", "linear", 10.0),
            Line("probe", "a", "linear", 1.0),
        ),
        epochs=3,
        samples=7,
    )
    assert method().estimate(work).flop_per_sample() == pytest.approx(21.0)
    assert method().estimate(work).epochs == 3


def test_what_acts_on_the_backward_pass_cannot_stand_beside_it():
    for stack in ([method(), other("ssprop")], [other("ssprop"), method()]):
        assert "E313" in {problem.code for problem in check_stack(stack, Classification())}
    for name in ("gradsamp", "gni", "dropout"):
        assert check_stack([other(name), method()], Classification()) == []


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"epsilon": -1.0}, {"lr": 0.0}, {"lr": -1.0}, {"lr": "plain"}])
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError):
        method(**wrong)
