"""ema: the average as its closed form, swapped in where the model is judged, and told where it is bypassed."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same_state, digits, double_run, make_run, state
from test_method_members import method_named
from torch import nn

from energybench.common.errors import UsageError
from energybench.train.fingerprint import raw_fingerprint
from energybench.train.method import Method
from energybench.train.stack_check import check_stack
from energybench.workloads.tasks.classification import Classification


def ema(**parameters):
    return method_named("ema", **parameters)


class Weights(Method):
    """Keeps what the model weighs after each update, and whether grad is on as an evaluation is entered and left."""

    name = "weights"

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []
        self.grad: list[bool] = []

    def update(self, run, part, inner):
        if not self.seen:
            self.seen.append(state(run.model))
        inner(part)
        self.seen.append(state(run.model))

    @contextmanager
    def eval_context(self, run):
        self.grad.append(torch.is_grad_enabled())
        yield
        self.grad.append(torch.is_grad_enabled())


class Judged(Classification):
    """Keeps the weights that it is asked to judge."""

    def evaluate(self, run, data):
        self.judged = state(run.model)
        return super().evaluate(run, data)


def test_an_evaluation_is_entered_and_left_without_grad():
    weights = Weights()
    double_run([weights]).evaluate(double_run().data)
    assert weights.grad == [False, False]


@given(decay=st.floats(0, 0.999))
def test_the_average_is_the_weighted_sum_of_all_weights(decay):
    """a_n = dⁿθ₀ + (1 − d)·Σ dⁿ⁻ⁱθᵢ"""
    weights, task = Weights(), Judged()
    run = double_run([weights, ema(decay=decay, ramp=False)], task=task, epochs=2, lr=0.5)
    run.train()
    run.evaluate(run.data)
    seen, n = weights.seen, len(weights.seen) - 1
    assert n == 6
    for name, judged in task.judged.items():
        terms = [(1 - decay) * decay ** (n - i) * seen[i][name] for i in range(1, n + 1)]
        torch.testing.assert_close(judged, decay**n * seen[0][name] + sum(terms), rtol=1e-10, atol=1e-13)


def test_the_ramp_is_the_harmonic_one_until_the_decay():
    made = ema(decay=0.9)
    assert [made.weight(n) for n in (1, 2, 8, 71, 72, 1000)] == [2 / 11, 3 / 12, 9 / 18, 72 / 81, 73 / 82, 0.9]
    assert {ema(decay=0.9, ramp=False).weight(n) for n in (1, 100)} == {0.9}


def test_training_is_plain_trainings_to_the_bit_and_evaluating_leaves_no_trace():
    run, plain = make_run([ema()], epochs=3), make_run(epochs=3)
    marks: list[tuple[str, str]] = []

    def judged(run):
        before = raw_fingerprint(run.model)
        run.evaluate(digits(32, test=True))
        marks.append((before, raw_fingerprint(run.model)))

    run.train(judged)
    plain.train()
    assert_same_state(state(run.model), state(plain.model))
    assert len(marks) == 3
    assert all(before == after for before, after in marks)


def test_what_raises_in_an_evaluation_leaves_the_weights_where_they_were():
    class Raises(Classification):
        def evaluate(self, run, data):
            raise RuntimeError("no")

    run = make_run([ema()], task=Raises())
    run.train()
    before = state(run.model)
    with pytest.raises(RuntimeError, match="no"):
        run.evaluate(run.data)
    assert_same_state(state(run.model), before)


def test_in_the_end_the_model_is_the_average():
    task = Judged()
    run = make_run([ema(decay=0.5)], task=task)
    run.train()
    trained = state(run.model)
    run.evaluate(run.data)
    run.finish()
    assert_same_state(state(run.model), task.judged)
    assert any(not torch.equal(value, trained[name]) for name, value in state(run.model).items())
    run.evaluate(run.data)
    assert_same_state(state(run.model), task.judged)


@pytest.mark.parametrize("buffers", ["average", "keep"])
def test_running_statistics_are_averaged_or_kept_and_counters_always_kept(buffers):
    task = Judged()
    run = make_run([ema(decay=0.9, ramp=False, buffers=buffers)], task=task)
    run.train()
    trained = state(run.model)
    run.evaluate(run.data)
    same = {name: torch.equal(task.judged[name], trained[name]) for name in trained}
    assert all(same[name] for name in same if name.endswith("num_batches_tracked"))
    assert all(same[name] == (buffers == "keep") for name in same if "running" in name)
    assert not any(same[name] for name, p in run.model.named_parameters() if p.dim() > 1)


def test_a_parameter_that_is_released_joins_with_its_value_and_one_that_is_frozen_is_its_own_average():
    class Releases(Method):
        def epoch(self, run, data, inner):
            run.model[0].weight.requires_grad_(run.epoch_number == 2)
            inner(data)

    weights, task = Weights(), Judged()
    run = double_run([Releases(), weights, ema(decay=0.5, ramp=False)], task=task, epochs=2)
    run.model[0].requires_grad_(False)
    run.train()
    run.evaluate(run.data)
    late = [seen["0.weight"] for seen in weights.seen[3:]]  # before and after the three updates of epoch 2
    expected = 0.125 * late[0] + 0.125 * late[1] + 0.25 * late[2] + 0.5 * late[3]
    torch.testing.assert_close(task.judged["0.weight"], expected)
    assert torch.equal(task.judged["0.bias"], weights.seen[0]["0.bias"])


@pytest.mark.parametrize("outermost", ["ema", "gradsamp"])
def test_epochs_that_are_sampled_pass_it_by_which_is_told(outermost):
    stack = {"ema": ema(), "gradsamp": method_named("gradsamp", skip="every:2")}
    run = make_run([stack.pop(outermost), *stack.values()], epochs=5)
    run.train()
    (made,) = (method for method in run.methods if method.name == "ema")
    facts = made.diagnostics()
    assert facts["epochs_without_update"] == [2, 4]
    assert facts["updates_averaged"] == {"main": 3 * 3}
    assert "2 epochs had no update, from epoch 2" in facts["warning"]
    assert make_run([ema()]).methods[0].diagnostics()["epochs_without_update"] == []


def test_a_neuron_that_rests_is_its_own_average():
    """Decay moves it in the update, and neq puts it back behind: the average has what was put back."""
    task = Judged()
    neq = method_named("neq", epsilon=2.0, mode="released")  # from epoch 2 on all rest
    weights = Weights()
    run = make_run([ema(decay=0.0), neq, weights], task=task, epochs=3, decay=0.5)
    ends = []
    run.train(lambda run: ends.append(state(run.model)))
    run.evaluate(run.data)
    assert any(not torch.equal(weights.seen[-1][name], ends[-1][name]) for name in ends[-1])
    assert torch.equal(ends[1]["0.weight"], ends[2]["0.weight"])
    assert torch.equal(task.judged["0.weight"], ends[2]["0.weight"])


def test_it_stands_outside_of_whoever_owns_the_update():
    assert check_stack([ema(), method_named("mezo")], Classification()) == []
    assert check_stack([method_named("mezo"), ema()], Classification()) != []
    run = double_run([ema(), method_named("mezo", lr=0.01)], epochs=2)
    run.train()
    assert run.methods[0].diagnostics()["updates_averaged"] == {"main": 6}


def test_parameters_out_of_their_bounds_are_refused():
    for wrong in ({"decay": 1.0}, {"decay": -0.1}, {"buffers": "drop"}):
        with pytest.raises(UsageError, match=r"E304.*(decay|buffers)"):
            ema(**wrong)


def test_a_model_without_buffers_or_with_other_types_is_averaged_too():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(6, 3).double(), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.wide(x) + self.narrow

    task = Judged()
    run = double_run([ema(decay=0.0)], model=Mixed, task=task)
    run.train()
    run.evaluate(run.data)
    assert_same_state(task.judged, state(run.model))
