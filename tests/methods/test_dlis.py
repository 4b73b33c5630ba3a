"""dlis: the gate, the presample, the draw within it; unbiased by enumeration of the draws."""

from __future__ import annotations

import itertools
import json
import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from support import CPU, MODELS, assert_same_state, digits, double_run, make_run, state, tiny_cnn, vectors
from torch import Tensor, nn

from energybench import Method
from energybench.algorithms.sample_scores import norms, output_gradient
from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner.tracing import trace_task
from energybench.train import discovery
from energybench.train.data import Data
from energybench.train.recipe import Recipe
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["dlis"])
dlis: Any = sys.modules[KIND.__module__]


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "dlis", parameters)


def other(name: str) -> Any:
    kind = discovery.load(discovery.sources()[name])
    return discovery.build(kind, name, dict(kind.example))


class Spy(Method):
    """Every batch as the step gets it and as the gradients do."""

    name = "spy"

    def setup(self, run):
        self.asked: list[Any] = []
        self.trained: list[Any] = []

    def step(self, run, batch, inner):
        self.asked.append(batch)
        inner(batch)

    def gradients(self, run, batch, inner):
        self.trained.append(batch)
        return inner(batch)


def spied(made: Any, **settings: Any) -> tuple[Spy, Any]:
    spy = Spy()
    run = double_run([spy, made], **{"epochs": 4} | settings)
    run.train()
    return spy, run


# ── the gate ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("presample", "gate"), [(3, 2.0), (5, 8 / 3), (1, 4 / 3)])
def test_the_gate_is_the_papers(presample, gate):
    assert method(presample=presample).gate == pytest.approx(gate)
    assert method(presample=presample, threshold=0.7).gate == 0.7


@given(scores=st.lists(st.floats(0.001, 100), min_size=1, max_size=30))
def test_tau_is_the_root_of_n_times_the_sum_of_squared_shares_averaged_from_0(scores):
    made = method()
    made._average = torch.zeros((), dtype=torch.float64)
    share = [score / sum(scores) for score in scores]
    tau = math.sqrt(len(scores) * sum(p * p for p in share))
    assert 1 - 1e-9 <= tau <= math.sqrt(len(scores)) + 1e-9
    for step in range(1, 4):
        made._update_average(torch.tensor(scores, dtype=torch.float64))
        assert made._average.item() == pytest.approx(tau * (1 - 0.9**step), rel=1e-9)


def test_scores_of_nothing_prefer_nobody_and_leave_the_average_a_number():
    made = method()
    made._average = torch.ones((), dtype=torch.float64)
    made._update_average(torch.zeros(4))
    assert made._average.item() == pytest.approx(1.0)


def test_while_the_gate_is_shut_it_is_plain_training_bit_for_bit_and_says_that_it_did_not_act():
    plain, run = make_run(epochs=3), make_run([made := method(threshold=50.0)], epochs=3)
    plain.train()
    run.train()
    assert_same_state(state(plain.model), state(run.model))
    assert plain.curve == run.curve
    assert made.acted is False
    assert run.tally.passes().keys.keys() == {"scored"}
    assert run.tally.passes().forwards == plain.tally.passes().forwards


def test_it_opens_at_the_step_at_which_the_average_exceeds_it_and_shuts_again():
    """With all scores alike τ is 1, and the average after k steps 1 − 0.9^k: above 0.5 from k = 7."""

    class Alike(Classification):
        level = 1.0

        def output_gradient(self, run, outputs, batch):
            return torch.full_like(outputs, self.level)

    spy, run = spied(made := method(threshold=0.5), task=Alike(), epochs=4)
    presampled = ["presample" in batch.also for batch in spy.asked]
    assert presampled == [False] * 7 + [True] * 5
    assert made.diagnostics()["steps_presampled"] == 5
    assert made.acted is True
    made._average = torch.zeros((), dtype=torch.float64)  # as if the scores had become even
    run.epoch_number = 5
    run.epoch(run.data)
    assert ["presample" in batch.also for batch in spy.asked[12:]] == [True, False, False]


# ── the presample ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_trains_on_as_many_samples_as_a_plain_one_and_scores_k_times_as_many(drop_last):
    data = Data(vectors(27).store, drop_last=drop_last)
    spy, run = spied(made := method(threshold=0.0, presample=5), data=data, batch=8, epochs=3)
    sizes = [8, 8, 8] if drop_last else [8, 8, 8, 3]
    assert [len(batch) for batch in spy.trained] == 3 * sizes
    whole = [len(batch.also["presample"]) for batch in spy.asked[1:]]
    assert whole == [5 * size for size in 3 * sizes][1:]
    assert "presample" not in spy.asked[0].also  # the average is 0, which does not exceed 0
    samples = sum(3 * sizes)
    assert run.tally.samples_forward == samples + sum(whole)
    assert made.diagnostics()["samples_scored_per_sample"] == pytest.approx(sum(whole) / samples)


def test_a_presample_is_uniform_over_the_set():
    spy, _ = spied(method(threshold=0.0), epochs=700, lr=0.0)
    index = torch.cat([batch.also["presample"].index for batch in spy.asked[1:]])
    counts = torch.bincount(index, minlength=24)
    assert chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_one_over_the_presamples_size_times_the_probability_by_its_own_scores(accumulate):
    spy, run = spied(method(threshold=0.0), lr=0.0, accumulate=accumulate)
    for asked, trained in zip(spy.asked[1:], spy.trained[1:], strict=True):
        whole = asked.also["presample"]
        scores = norms(output_gradient(run, run.forward(whole, "eval").outputs, whole)).double()
        score_of = dict(zip(whole.index.tolist(), scores.tolist(), strict=True))
        expected = [scores.sum().item() / (len(whole) * score_of[i]) for i in trained.index.tolist()]
        assert trained.weights.tolist() == pytest.approx(expected, rel=1e-9)
        assert set(trained.index.tolist()) <= set(whole.index.tolist())
        for i, number in enumerate(trained.index.tolist()):
            assert torch.equal(trained.inputs[i], run.data.store.inputs[number])
            assert torch.equal(trained.targets[i], run.data.store.targets[number])


def test_samples_are_drawn_from_the_presample_in_proportion_to_their_scores():
    made = method(threshold=0.0)
    run = double_run([made])
    whole = next(run.data.load([torch.arange(12)]))
    scores = norms(output_gradient(run, run.forward(whole, "eval").outputs, whole)).double()
    index = torch.cat([made._resampled(run, whole, 500).index for _ in range(40)])
    counts = torch.bincount(index, minlength=12)
    assert chisquare(counts.numpy(), (scores / scores.sum() * len(index)).numpy()).pvalue > 1e-3


def test_the_mean_gradient_over_all_draws_from_a_presample_is_the_presamples():
    """All 6² draws of two; a sample that is twice in the presample counts twice."""
    made = method(threshold=0.0)
    run = double_run([made])
    whole = next(run.data.load([torch.tensor([3, 9, 9, 1, 20, 5])]))
    scores = norms(output_gradient(run, run.forward(whole, "eval").outputs, whole)).double()
    share = scores / scores.sum()
    weight_of: dict[int, float] = {}
    for _ in range(20):
        drawn = made._resampled(run, whole, 8)
        weight_of |= dict(zip(drawn.index.tolist(), drawn.weights.tolist(), strict=True))

    def gradient(index: Any, weights: Tensor | None) -> Tensor:
        batch = next(run.data.load([torch.as_tensor(index)]))
        forward = run.forward(batch)
        return torch.cat([g.flatten() for g in torch.autograd.grad(forward.weighted(weights), run.parameters())])

    mean = torch.zeros(())
    for one, two in itertools.product(range(6), repeat=2):
        pair = whole.index[[one, two]]
        weights = torch.tensor([weight_of[i] for i in pair.tolist()], dtype=torch.float64)
        mean = mean + share[one] * share[two] * gradient(pair, weights)
    torch.testing.assert_close(mean, gradient(whole.index, None), rtol=1e-9, atol=1e-12)


def test_the_control_pays_for_the_presample_and_draws_from_it_evenly_with_weights_of_1():
    spy, run = spied(method(threshold=0.0, resample="uniform"), epochs=300, lr=0.0)
    paying, same = spied(method(threshold=0.0), epochs=300, lr=0.0)
    assert run.tally.passes() == same.tally.passes()
    for mine, theirs in zip(spy.asked[1:], paying.asked[1:], strict=True):
        assert torch.equal(mine.also["presample"].index, theirs.also["presample"].index)
    assert all(batch.weights is None for batch in spy.trained)
    counts = torch.bincount(torch.cat([batch.index for batch in spy.trained]), minlength=24)
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_scoring_is_in_evaluation_mode_moves_no_statistic_and_keeps_no_graph():
    made = method(threshold=0.0)
    run = make_run([made])
    whole = next(run.data.load([torch.arange(96)]))
    before = state(run.model)
    drawn = made._resampled(run, whole, 32)
    assert_same_state(state(run.model), before)
    assert not drawn.weights.requires_grad
    assert not run.model.training
    run.gradients(drawn)
    assert run.model.training


def test_the_last_layers_score_weighs_by_its_input():
    def lengths(score: str) -> Tensor:
        made = method(threshold=0.0, score=score)
        run = double_run([made])
        whole = next(run.data.load([torch.arange(12)]))
        drawn = [made._resampled(run, whole, 50) for _ in range(4)]
        index, weights = torch.cat([b.index for b in drawn]), torch.cat([b.weights for b in drawn])
        found = torch.full((12,), math.nan, dtype=torch.float64)
        found[index] = 1 / weights
        hidden = run.model[:2](whole.inputs).detach()
        return found, hidden

    plain, hidden = lengths("output-gradient")
    last, _ = lengths("last-layer-gradient")
    ratio = last / plain / (1 + hidden.square().sum(1)).sqrt()
    seen = ~ratio.isnan()
    assert seen.sum() >= 10
    torch.testing.assert_close(ratio[seen], ratio[seen][0].expand(int(seen.sum())), rtol=1e-9, atol=0)


# ── cost ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("presample", "accumulate"), [(3, 1), (5, 2)])
def test_the_estimate_has_the_presamples_forwards_as_a_phase_and_equals_the_count(model, presample, accumulate):
    made, counted = method(threshold=0.3, presample=presample), []
    data = digits(90)  # the last batch is smaller
    for methods in ([], [made]):
        layer = StepCounter(10**9)
        run = make_run([*methods], MODELS[model], data, counter=layer, epochs=4, accumulate=accumulate)
        run.train()
        counted.append(layer.result(run))
    batch = next(run.data.load([torch.arange(2)]))
    lines = trace_task(Classification(), MODELS[model](), Recipe(epochs=4, batch=32), batch, CPU).lines
    work = Work(lines, epochs=4, samples=90)
    estimate = made.estimate(work)
    assert estimate.flop == pytest.approx(counted[1].counted_flop, rel=1e-6)
    assert counted[1].counted_flop > 1.3 * counted[0].counted_flop
    by_phase = estimate.by_phase()
    scored = made.diagnostics()["samples_scored_per_sample"]
    assert by_phase["presample"] == pytest.approx(scored * by_phase["forward"])
    assert 0 < scored < presample
    keys = counted[1].passes.keys
    assert keys.keys() == {"scored", f"presampled {2 * accumulate}f{accumulate}b1u"}
    assert sum(counts["samples"] for counts in keys.values()) == 360


def test_over_a_forward_only_method_a_presample_is_estimated_as_one_forward_of_each_of_its_samples():
    made, forward_only, layer = method(threshold=0.3), other("mezo"), StepCounter(10**9)
    run = make_run([made, forward_only], counter=layer, data=digits(90), epochs=4, lr=1e-3)
    run.train()
    batch = next(run.data.load([torch.arange(2)]))
    lines = trace_task(Classification(), tiny_cnn(), Recipe(epochs=4, batch=32), batch, CPU).lines
    work = made.estimate(forward_only.estimate(Work(lines, epochs=4, samples=90)))
    assert made.diagnostics()["steps_presampled"] > 0
    assert work.flop == pytest.approx(layer.result(run).counted_flop, rel=1e-6)


def test_without_a_presampled_step_the_estimate_is_plain_training():
    made = method()
    make_run([made], epochs=2).train()
    work = Work((), epochs=2, samples=10)
    assert made.estimate(work) == work


# ── words, stacks ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"presample": 0}, "greater than or equal to 1"),
        ({"score": "parameter-gradient"}, "'output-gradient', 'loss' or 'last-layer-gradient'"),
        ({"resample": "even"}, "'importance' or 'uniform'"),
        ({"threshold": -1.0}, "greater than or equal to 0"),
    ],
)
def test_what_a_parameter_cannot_be_is_refused_in_words(wrong, says):
    with pytest.raises(UsageError, match=says):
        method(**wrong)


@pytest.mark.parametrize("name", ["importance", "low", "with_replacement"])
def test_another_choice_of_samples_or_weights_is_refused(name):
    for stack in ([method(), other(name)], [other(name), method()]):
        assert {problem.code for problem in check_stack(stack, Classification())} == {"E310"}


@pytest.mark.parametrize("name", ["ssprop", "gradsamp"])
def test_it_stacks_with_what_thins_passes_or_skips_epochs_in_either_order(name):
    for stack in ([method(threshold=0.3), other(name)], [other(name), method(threshold=0.3)]):
        assert check_stack(stack, Classification()) == []
        run = make_run(stack, epochs=6)
        run.train()
        assert run.uncalled_overrides() == []
        assert any("presampled" in key for key in run.tally.passes().keys)


def test_its_diagnostics_tell_when_it_presampled():
    made = method(threshold=0.5)
    run = make_run([made], tiny_cnn, epochs=4)
    run.train()
    found = made.diagnostics()
    json.dumps(found, allow_nan=False)
    assert len(found["average_tau_by_epoch"]) == 4
    assert found["steps"] == 12
    assert found["epochs_presampled"] == [3, 4]  # 1 − 0.9⁷ is the first above 0.5 where τ is near 1
    assert 1 <= found["steps_presampled"] <= 6


def test_a_hook_of_the_last_layers_score_is_gone_in_the_end():
    made = method(score="last-layer-gradient", threshold=0.0)
    run = make_run([made], lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    run.train()
    run.finish()
    assert not run.model[1]._forward_hooks
