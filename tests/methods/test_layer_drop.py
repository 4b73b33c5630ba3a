"""layer_drop: which layers a step leaves out, that nothing is scaled, and what pruned evaluation computes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import CPU, MODELS, StackedTransformer, assert_same_state, digits, make_run, state
from test_method_members import method_named
from torch import nn

from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner.tracing import trace_task
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification


def layer_drop(**parameters: Any) -> Any:
    return method_named("layer_drop", **parameters)


def deep(layers: int) -> Any:
    return lambda: StackedTransformer(width=8, layers=layers)


class Kept(Method):
    """Keeps which layers each step runs, and the outputs of its pass against those of the layers alone."""

    name = "kept"

    def __init__(self, method: Any) -> None:
        self.method, self.kept = method, []

    def gradients(self, run: Any, batch: Any, inner: Any) -> Any:
        forward = inner(batch)
        kept = [block.kept for block in self.method._blocks]
        x = run.model.patch(batch.inputs).flatten(2).transpose(1, 2)
        for layer, runs in zip(run.model.layers, kept, strict=True):
            if runs:
                x = type(layer).__mro__[1].forward(layer, x)  # torch's own
        torch.testing.assert_close(forward.outputs, run.model.head(x.mean(1)))
        self.kept.append(kept)
        return forward


def test_without_a_chance_to_drop_it_is_plain_training_bit_for_bit():
    with_it, without = make_run([layer_drop(drop=0.0)], StackedTransformer), make_run([], StackedTransformer)
    with_it.train()
    without.train()
    assert_same_state(state(with_it.model), state(without.model))
    assert with_it.tally.passes() == without.tally.passes()
    assert with_it.methods[0].acted is False


def test_every_layer_has_the_same_chance_and_the_others_are_not_scaled():
    method = layer_drop(drop=0.4)
    looks = Kept(method)
    run = make_run([method, looks], deep(4), digits(64), epochs=10, batch=4, lr=0.01)
    run.train()
    kept = torch.tensor(looks.kept, dtype=torch.float64)
    assert len(kept) == 160
    for column in kept.T:
        assert column.mean().item() == pytest.approx(0.6, abs=4.5 * math.sqrt(0.6 * 0.4 / 160))
    assert method.acted is True


def test_two_seeds_drop_other_layers_and_one_seed_the_same():
    def drops(seed: int) -> list[list[bool]]:
        method = layer_drop(drop=0.5)
        looks = Kept(method)
        make_run([method, looks], deep(3), epochs=4, seed=seed).train()
        return looks.kept

    assert drops(1) == drops(1)
    assert drops(1) != drops(2)


@pytest.mark.parametrize(
    ("keep", "pruned"),
    [(1.0, []), (0.5, [2, 4, 6, 8]), (0.6, [2, 4, 6, 8]), (2 / 3, [3, 6]), (0.75, [4, 8]), (0.9, []), (0.8, [5])],
)
def test_pruning_leaves_out_each_floor_of_one_over_its_rate(keep, pruned):
    """Section 3 of the paper: layers at a depth d ≡ 0 (mod ⌊1/r⌋), here of 8."""
    assert layer_drop(keep_at_eval=keep).pruned(8) == pruned


def test_pruned_evaluation_is_that_of_the_network_without_these_layers():
    method = layer_drop(keep_at_eval=0.5)
    run = make_run([method], deep(4), epochs=2)
    run.train()
    test, without = digits(64, test=True), deep(4)()
    without.load_state_dict(run.model.state_dict())
    whole = make_run(model=lambda: without).evaluate(test)
    judged = run.evaluate(test)
    without.layers = nn.ModuleList([without.layers[0], without.layers[2]])
    assert judged == pytest.approx(make_run(model=lambda: without).evaluate(test))
    assert judged != pytest.approx(whole)
    run.finish()
    assert method.diagnostics()["pruned_at_eval"] == ["layers.1", "layers.3"]
    assert run.evaluate(test) == pytest.approx(whole)
    assert [type(layer) for layer in run.model.layers] == [nn.TransformerEncoderLayer] * 4


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_estimate_is_what_is_counted(accumulate):
    """To 0.1 % of plain training's FLOPs, where every step is counted; batches of 32, 32 and 16."""
    counted, methods = [], [layer_drop(drop=0.4)]
    for stack in (methods, []):
        counter = StepCounter(10**9)
        run = make_run(stack, deep(3), digits(80), counter=counter, epochs=2, accumulate=accumulate)
        run.train()
        counted.append(counter.result(run).counted_flop)
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), deep(3)(), Recipe(epochs=2, batch=32), batch, CPU).lines
    work = Work(lines, 2, 80, 32, accumulate)
    assert work.flop == pytest.approx(counted[1], rel=1e-3)
    assert methods[0].estimate(work).flop / work.flop == pytest.approx(counted[0] / counted[1], abs=1e-3)
    assert counted[0] < 0.9 * counted[1]


def test_where_steps_differ_a_small_budget_still_counts_them_all():
    """18 steps with a budget of 6: of plain training's, which are all alike, one in each epoch is counted, and the very
    first; of these every one, since one's layers say nothing of another's."""
    seen, errors = [], []
    for stack in ([layer_drop(drop=0.4)], []):
        counter = StepCounter(6)
        run = make_run(stack, deep(3), digits(96), counter=counter, epochs=6)
        run.train()
        found = counter.result(run)
        seen.append(sum(kind.counted_steps for kind in found.keys.values()))
        errors.append(found.counted_error_flop)
    assert seen[0] == 18
    assert seen[1] in (6, 7)
    assert errors == [0, 0]


def test_both_ways_of_dropping_stack_and_leave_the_model_as_it_was():
    """A layer runs where both keep it, and each has a stream of its own."""
    outer, inner = layer_drop(drop=0.5), method_named("stochastic_depth", keep_last=0.4)
    run = make_run([outer, inner], deep(3), epochs=3)
    run.train()
    assert outer.acted
    assert inner.acted
    run.finish()
    assert [type(layer) for layer in run.model.layers] == [nn.TransformerEncoderLayer] * 3


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_layers_to_drop_is_refused_in_words(name):
    with pytest.raises(UsageError, match=r"E327|no residual block"):
        make_run([layer_drop()], MODELS[name])


@pytest.mark.parametrize("parameters", [{"drop": 1.0}, {"drop": -0.1}, {"keep_at_eval": 0.4}, {"keep_at_eval": 1.1}])
def test_parameters_out_of_their_range_are_refused(parameters):
    with pytest.raises((ValueError, UsageError)):
        layer_drop(**parameters)
