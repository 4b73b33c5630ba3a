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
    others = [{k: v for k, v in weights.items() if not k.startswith("0.")} for _, weights in outcomes.values()]
    assert_same_state(*others)


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


def record_of(run: Any) -> Any:
    record = SimpleNamespace(diagnostics={}, flags=[])
    told_of_the_recipe(record, run)
    return record


def test_what_a_task_leaves_out_by_its_own_word_is_named_and_not_doubted():
    class HeadAlone(Classification):
        def parameters(self, run, part):
            return run.model[2].parameters()

    run = double_run(task=HeadAlone())
    run.train()
    assert run.untrained() == dict.fromkeys(("0.weight", "0.bias"), "the task's `parameters` leaves it out")
    record = record_of(run)
    assert (record.diagnostics, record.flags) == ({"untrained": run.untrained()}, [])
    run = double_run(task=HeadAlone())
    run.model[0].requires_grad_(False)
    run.train()
    assert run.untrained() == {}


def test_what_is_made_in_the_last_epoch_and_never_moves_is_doubted():
    class Late(Replaces):
        def step(self, run, batch, inner):
            if run.epoch_number == run.epochs and run.step_in_epoch == 1:
                run.model[2].weight = nn.Parameter(run.model[2].weight.detach().clone())
            inner(batch)

    run = double_run([Late()], epochs=1)
    run.train()
    record = record_of(run)
    assert record.diagnostics == {"untrained": {"2.weight": "it was made after the last epoch had begun"}}
    (flag,) = record.flags
    assert (flag.code, flag.detail) == ("untrained", "2.weight: it was made after the last epoch had begun")


def test_a_released_layer_whose_gradient_is_zero_moves_nowhere_and_is_no_reason_to_doubt():
    class Dead(Freezes):
        def gradients(self, run, batch, inner):
            forward = inner(batch)
            for parameter in run.model[0].parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            return forward

    run = double_run([Dead({1})], epochs=2)
    run.train()
    assert run.model[0].weight.grad is not None
    assert torch.equal(run.methods[0].weights[0], run.methods[0].weights[1])
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
