"""Parameters that are frozen, released, made or replaced while a run trains: they learn, or one is told.

More of it, optimizer by optimizer: test_method_members.py.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import assert_same_state, digits, double_run, make_run, state, tiny_cnn
from test_method_members import Freezes, method_named
from torch import nn

from energybench.algorithms.frozen_layers import FrozenLayer
from energybench.train.method import Method
from energybench.trial.trial import told_of_the_recipe
from energybench.workloads.tasks.classification import Classification


def moves(weights: list[torch.Tensor]) -> list[bool]:
    return [not torch.equal(before, after) for before, after in itertools.pairwise(weights)]


def train_frozen(stack: list[Method], frozen: set[int], epochs: int = 5, **recipe) -> tuple[list[bool], Method]:
    """In which epochs the first layer's weight moved."""
    freezes = Freezes(frozen)
    run = make_run([freezes, *stack], tiny_cnn, digits(96), epochs=epochs, batch=24, decay=0.01, **recipe)
    initial = run.model[0].weight.detach().clone()
    run.train()
    assert run.untrained() == {}
    return moves([initial, *freezes.weights]), run


STACKS = {
    "low": [("low", {})],
    "importance": [("importance", {})],
    "dlis": [("dlis", {})],
    "ema": [("ema", {})],
    "ssprop": [("ssprop", {"drop": 0.5})],
    "neq, sliced": [("neq", {"epsilon": 0.0})],
    "neq, released": [("neq", {"epsilon": 0.0, "mode": "released"})],
    "scotti, sliced": [("scotti", {"epsilon": -1.0})],
    "low over micro-batches": [("low", {})],
}


@pytest.mark.parametrize("frozen", [{1, 2, 4}, {3, 4}], ids=["from the start", "later"])
@pytest.mark.parametrize("name", STACKS)
def test_under_any_method_a_frozen_layer_stands_still_and_learns_after_its_release(name, frozen):
    """ε is such that no neuron rests: what stands still is what was frozen."""
    stack = [method_named(use, **parameters) for use, parameters in STACKS[name]]
    moved, _ = train_frozen(stack, frozen, clip=1.0, accumulate=2 if "micro" in name else 1)
    assert moved == [epoch not in frozen for epoch in range(1, 6)]


@pytest.mark.parametrize("name", ["neq", "scotti"])
def test_a_method_that_lets_neurons_rest_turns_on_only_what_it_turned_off(name):
    """All neurons rest from epoch 2 on; between epochs who freezes finds every parameter as it left it."""
    found: list[list[bool]] = []
    inside: list[bool] = []

    class Looks(Method):
        def epoch(self, run, data, inner):
            run.model[4].requires_grad_(False)  # frozen by this one, and by this one alone
            inner(data)
            found.append([p.requires_grad for p in run.model.parameters()])

        def gradients(self, run, batch, inner):
            inside.append(all(p.requires_grad for p in run.model[0].parameters()))
            return inner(batch)

    run = make_run([Looks(), method_named(name, epsilon=2.0)], epochs=4)
    run.train()
    frozen = {id(p) for p in run.model[4].parameters()}
    assert found == [[id(p) not in frozen for p in run.model.parameters()]] * 4
    assert inside[0]
    assert not inside[-1]
    assert any(isinstance(m, FrozenLayer) for m in run.model.modules())
    run.finish()
    assert [p.requires_grad for p in run.model.parameters()] == found[0]


def test_what_is_frozen_stands_still_in_a_sampled_epoch_too_and_the_others_draw_what_they_drew():
    outcomes = {}
    for frozen in (set(), {4}):
        freezes = Freezes(frozen)
        run = make_run([freezes, method_named("gradsamp", skip="every:4")], epochs=4, batch=24)
        run.train()
        outcomes[bool(frozen)] = moves(freezes.weights)[-1], state(run.model)
    assert (outcomes[False][0], outcomes[True][0]) == (True, False)
    same = [torch.equal(outcomes[False][1][name], value) for name, value in outcomes[True][1].items()]
    assert same == [not name.startswith("0.") for name in outcomes[True][1]]


class Replaces(Method):
    """Puts a new parameter in place of an old one as an epoch begins, and a new layer beside it."""

    name = "replaces"

    def epoch(self, run, data, inner):
        if run.epoch_number == 2:
            run.model[0].weight = nn.Parameter(run.model[0].weight.detach().clone())
            run.model.append(nn.Linear(3, 3).double())
        self.before = state(run.model)
        inner(data)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
def test_what_a_method_makes_while_it_trains_learns_from_the_next_epoch_on(optimizer):
    method = Replaces()
    run = double_run([method], optimizer=optimizer, epochs=4, lr=0.1)
    run.train()
    moved = {name: not torch.equal(value, method.before[name]) for name, value in state(run.model).items()}
    assert set(moved.values()) == {True}
    assert len(moved) == 6
    assert run.untrained() == {}
    held = [id(p) for group in run.optimizer().param_groups for p in group["params"]]
    assert {id(p) for p in run.model.parameters()} <= set(held)
    assert len(held) == len(set(held))


def test_a_parameter_that_gets_a_gradient_and_is_in_no_part_is_told_by_name():
    class HeadAlone(Classification):
        def parameters(self, run, part):
            return run.model[2].parameters()

    run = double_run(task=HeadAlone())
    run.train()
    assert run.untrained() == dict.fromkeys(("0.weight", "0.bias"), "no part of the task lists it")
    record: Any = SimpleNamespace(diagnostics={}, flags=[])
    told_of_the_recipe(record, run)
    assert record.diagnostics == {"untrained": run.untrained()}
    assert [flag.code for flag in record.flags] == ["untrained"]
    assert "0.weight: no part of the task lists it" in record.flags[0].detail
    run = double_run(task=HeadAlone())
    run.model[0].requires_grad_(False)
    run.train()
    assert run.untrained() == {}


class Stubborn(torch.optim.SGD):
    """As torch's LBFGS: moves what it was built with, whatever group is added."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.own = list(self.param_groups[0]["params"])

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.own:
            parameter.sub_(parameter.grad, alpha=self.param_groups[0]["lr"])


def test_an_optimizer_that_takes_no_notice_of_a_release_is_told():
    class Own(Freezes):
        def optimizer(self, run, params, inner):
            return Stubborn(params, 0.1)

    run = double_run([Own({1})], epochs=2)
    run.train()
    assert run.untrained() == dict.fromkeys(("0.weight", "0.bias"), "the optimizer took no notice of its release")
    run = double_run([Freezes({1})], epochs=2)
    run.train()
    assert run.untrained() == {}


def test_a_layer_that_is_never_released_is_not_told():
    run = double_run(epochs=2)
    run.model[0].requires_grad_(False)
    before = state(run.model)
    run.train()
    assert run.untrained() == {}
    after = state(run.model)
    assert_same_state({k: before[k] for k in ("0.weight", "0.bias")}, {k: after[k] for k in ("0.weight", "0.bias")})
