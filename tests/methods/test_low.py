"""low: the weights against a general solver of the quadratic program, and the gradient that they make."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from support import assert_same_state, double_run, make_run, state
from torch import Tensor

from energybench import Method
from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.train import discovery
from energybench.train.stack_check import check_stack
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["low"])
low: Any = sys.modules[KIND.__module__]
lengths = st.lists(st.floats(0, 1.4142), min_size=1, max_size=12)


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "low", parameters)


def other(name: str, **parameters: Any) -> Any:
    kind = discovery.load(discovery.sources()[name])
    return discovery.build(kind, name, dict(kind.example) | parameters)


def objective(w: np.ndarray, g: np.ndarray, lam: float) -> float:
    return float(lam * w @ w - (g**2 + lam) @ w)


# ── the weights ───────────────────────────────────────────────────────────────────────────────────────────────────


@given(g=lengths, lam=st.sampled_from([0.01, 0.1, 1.0]))
@settings(max_examples=40)
def test_the_weights_are_those_of_a_general_solver(g, lam):
    n, g_ = len(g), np.array(g)
    found = method(lam=lam).weights(torch.tensor(g, dtype=torch.float64)).numpy()
    solved = minimize(
        objective,
        np.ones(n),
        args=(g_, lam),
        jac=lambda w, g, lam: 2 * lam * w - (g**2 + lam),
        method="SLSQP",
        bounds=[(0, None)] * n,
        constraints={"type": "eq", "fun": lambda w: w.sum() - n, "jac": lambda w: np.ones(n)},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.min() >= 0
    assert found.sum() == pytest.approx(n)
    assert objective(found, g_, lam) <= solved.fun + 1e-8
    assert np.allclose(found, solved.x, atol=2e-3)


@given(g=st.lists(st.floats(0, 1.4142), min_size=1, max_size=6), lam=st.sampled_from([0.02, 0.1, 0.5]))
def test_the_weights_are_the_best_over_every_set_of_samples_that_may_have_one(g, lam):
    """On each set of samples left above 0 the minimum with Σw = n is a formula; the best feasible one is the answer."""
    n, g_ = len(g), np.array(g)
    best = None
    for size in range(1, n + 1):
        for kept in itertools.combinations(range(n), size):
            w = np.zeros(n)
            point = g_[list(kept)] ** 2 / (2 * lam)
            w[list(kept)] = point + (n - point.sum()) / size
            if w.min() >= -1e-12 and (best is None or objective(w, g_, lam) < objective(best, g_, lam)):
                best = w
    found = method(lam=lam).weights(torch.tensor(g, dtype=torch.float64)).numpy()
    assert np.allclose(found, best, atol=1e-9)


@given(point=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), total=st.sampled_from([0.5, 1.0, 17.0]))
def test_a_projection_fulfils_the_conditions_of_optimality(point, total):
    """w ≥ 0, Σw = total, and one θ with w = v − θ where w > 0 and v ≤ θ where w = 0."""
    v = torch.tensor(point, dtype=torch.float64)
    w = low.project(v, total)
    assert (w >= 0).all()
    assert w.sum().item() == pytest.approx(total, rel=1e-9)
    theta = (v - w)[w > 0]
    assert (theta.max() - theta.min()).item() <= 1e-9 * (1 + v.abs().max().item())
    assert (v[w == 0] <= theta.max() + 1e-9 * (1 + v.abs().max())).all()
    assert torch.equal(low.project(w, w.sum().item()), w) or torch.allclose(low.project(w, w.sum().item()), w)


def test_equal_gradients_give_weights_of_1_and_a_large_lambda_nearly_so():
    assert method().weights(torch.full((8,), 0.7)).tolist() == pytest.approx([1.0] * 8)
    uneven = torch.tensor([0.1, 1.4, 0.9])
    assert method(lam=1e6).weights(uneven).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_a_sample_far_ahead_takes_the_weight_of_those_with_little_left_to_learn():
    assert method(lam=0.1).weights(torch.tensor([1.0, 0.0, 0.0])).tolist() == [3.0, 0.0, 0.0]


@given(g=lengths)
def test_the_released_codes_scale_is_the_gradient_of_the_mean_loss_and_nearly_even(g):
    g_ = torch.tensor(g, dtype=torch.float64)
    n = len(g)
    batch_mean = method(grad_scale="batch_mean").weights(g_)
    torch.testing.assert_close(batch_mean, method().weights(g_ / n))
    assert (batch_mean - 1).abs().max() <= 10 / n**2 + 1e-9  # of weights (g/n)²/2λ ≤ 10/n² apart


# ── a step ────────────────────────────────────────────────────────────────────────────────────────────────────────


def flat(run: Any) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("grad_scale", ["per_sample", "batch_mean"])
def test_the_gradient_is_that_of_the_weighted_mean_with_the_weights_of_the_whole_batch(accumulate, grad_scale):
    made = method(grad_scale=grad_scale, lam=0.05)
    run = double_run([made], accumulate=accumulate)
    batch = next(run.data.load([torch.tensor([4, 7, 7, 1, 0, 12, 20])]))
    forward = run.gradients(batch)
    logits = run.model(batch.inputs)
    each = F.cross_entropy(logits, batch.targets, reduction="none")
    g = (logits.softmax(1) - F.one_hot(batch.targets, 3)).norm(dim=1).detach()
    weights = made.weights(g)
    assert weights.max() > weights.min() + (0.1 if grad_scale == "per_sample" else 1e-3)
    expected = torch.autograd.grad((weights * each).sum() / 7, list(run.model.parameters()))
    torch.testing.assert_close(flat(run), torch.cat([one.flatten() for one in expected]), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(forward.value.detach(), each.mean().detach())
    assert forward.outputs.shape == (7, 3)


def test_no_gradient_flows_through_the_weights_and_none_is_left_from_the_step_before():
    run = double_run([method()])
    batch = next(run.data.load([torch.arange(8)]))
    run.gradients(batch)
    once = flat(run)
    run.gradients(batch)
    assert torch.equal(flat(run), once)


def test_batches_are_plain_trainings_and_an_even_weighing_is_plain_training():
    """λ = 10¹² leaves weights of 1 up to rounding."""
    plain, run = double_run(epochs=3), double_run([method(lam=1e12)], epochs=3)
    plain.train()
    run.train()
    for mine, theirs in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)
    assert [point["loss"] for point in run.curve] == pytest.approx([point["loss"] for point in plain.curve])
    passes, usual = run.tally.passes(), plain.tally.passes()
    assert (passes.forwards, passes.backwards, passes.updates) == (usual.forwards, usual.backwards, usual.updates)
    assert passes.keys.keys() == {"weighted"}


def test_batch_norm_and_seeds_behave_as_in_any_method():
    one, two = make_run([method()], epochs=3), make_run([method()], epochs=3)
    one.train()
    two.train()
    assert_same_state(state(one.model), state(two.model))
    assert one.curve[-1]["loss"] < one.curve[0]["loss"]


def test_it_promises_no_flop_less():
    work = Work((), epochs=3, samples=7)
    assert method().estimate(work) is work
    assert method().claims() is None


def test_the_record_tells_how_uneven_the_weights_were():
    made = method(lam=0.01)
    run = double_run([made], epochs=2)
    seen: list[Tensor] = []
    before = made.weights
    made.weights = lambda g: seen.append(before(g)) or seen[-1]
    run.train()
    weights = torch.cat(seen)
    assert made.diagnostics() == {
        "zero_share": pytest.approx((weights == 0).double().mean().item()),
        "largest_weight": pytest.approx(weights.max().item()),
    }
    assert made.diagnostics()["zero_share"] > 0


# ── words, stacks ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "says"), [({"lam": 0.0}, "greater than 0"), ({"grad_scale": "sum"}, "'per_sample' or 'batch_mean'")]
)
def test_what_a_parameter_cannot_be_is_refused_in_words(wrong, says):
    with pytest.raises(UsageError, match=says):
        method(**wrong)


def test_a_batch_that_comes_with_weights_is_refused_in_words():
    run = double_run([method()])
    batch = next(run.data.load([torch.arange(4)]))
    with pytest.raises(ValueError, match="comes with weights"):
        run.gradients(replace(batch, weights=torch.ones(4)))


def test_what_acts_on_gradients_goes_outside_and_the_refusal_gives_that_order():
    (problem, *_) = check_stack([method(), other("ssprop")], Classification())
    assert problem.hint == 'this order works: use = ["ssprop", "low"]'
    stack: list[Method] = [other("ssprop", schedule="constant"), method()]
    assert check_stack(stack, Classification()) == []
    run = make_run(stack, epochs=3)
    run.train()
    assert run.uncalled_overrides() == []
    assert run.tally.passes().keys.keys() == {"drop=0.8 weighted"}


@pytest.mark.parametrize("order", ["outside", "inside"])
def test_it_stacks_with_skipped_epochs(order):
    stack = [other("gradsamp"), method()] if order == "inside" else [method(), other("gradsamp")]
    assert check_stack(stack, Classification()) == []
    run = make_run(stack, epochs=6)
    run.train()
    assert run.tally.passes().epochs_trained == 5


def test_a_forward_only_method_leaves_it_no_backward_pass():
    for stack in ([method(), other("mezo")], [other("mezo"), method()]):
        assert "E313" in {problem.code for problem in check_stack(stack, Classification())}
