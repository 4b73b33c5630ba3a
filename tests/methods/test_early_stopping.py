"""early_stopping: when it ends training follows from the losses alone; what it holds out is never trained on."""

from __future__ import annotations

import pytest
import torch
from rounds import FedProx
from support import assert_same_state, digits, double_run, make_run, state, vectors
from test_contract import ledger_of_plain_training
from test_method_members import method_named

from energybench.train.method import Method
from energybench.workloads.tasks.classification import Classification


def stopping(**parameters):
    return method_named("early_stopping", **parameters)


class Told(Method):
    """Keeps the samples of every step, and the weights after every epoch."""

    name = "told"

    def __init__(self) -> None:
        self.samples: set[int] = set()
        self.weights: list[dict[str, torch.Tensor]] = []

    def step(self, run, batch, inner):
        self.samples |= set(batch.index.tolist())
        inner(batch)

    def epoch(self, run, data, inner):
        inner(data)
        self.weights.append(state(run.model))


class TwoParts(Classification):
    parts = ("one", "two")


def held_losses(monkeypatch, made, losses):
    """Let its looks give these."""
    given = iter(losses)
    monkeypatch.setattr(type(made), "_look", lambda self, run: next(given))


@pytest.mark.parametrize(
    ("losses", "patience", "least", "ended", "best"),
    [
        ([5, 4, 3, 2, 1, 0.5], 1, 0.0, 6, 6),  # it falls to the end
        ([5, 4, 4, 3, 2, 1], 1, 0.0, 3, 2),  # as large is no new minimum
        ([5, 4, 4.5, 4.2, 3, 1], 2, 0.0, 4, 2),
        ([5, 4, 4.5, 3.9, 4, 4, 1], 2, 0.0, 6, 4),
        ([5, 4.9, 4.8, 4.7, 1, 1], 2, 0.5, 3, 1),  # too little of a fall
        ([float("nan"), 1, 2, 3, 4, 5], 3, 0.0, 5, 2),  # every number lies below what is none
        ([1, float("nan"), float("nan"), 0, 0, 0], 2, 0.0, 3, 1),
        ([float("nan")] * 6, 2, 0.0, 3, 1),
    ],
)
def test_it_ends_when_the_loss_has_not_fallen_for_patience_epochs(monkeypatch, losses, patience, least, ended, best):
    made = stopping(patience=patience, least=least)
    held_losses(monkeypatch, made, losses)
    run = double_run([made], epochs=6)
    run.train()
    assert run.epochs_ended == ended
    assert made.diagnostics()["best_epoch"] == best
    assert (run.stop_reason is None) == (ended == 6 and best + patience > 6)


@pytest.mark.parametrize("restore", [True, False])
def test_the_weights_of_the_best_epoch_are_put_back_or_not(monkeypatch, restore):
    made, told = stopping(patience=2, restore=restore), Told()
    held_losses(monkeypatch, made, [3, 1, 2, 2, 0, 0])
    run = double_run([made, told], epochs=6)
    run.train()
    assert len(told.weights) == 4
    assert_same_state(state(run.model), told.weights[1 if restore else 3])


def test_the_best_of_all_planned_epochs_is_put_back_too(monkeypatch):
    made, told = stopping(patience=5), Told()
    held_losses(monkeypatch, made, [1, 2, 3])
    run = double_run([made, told], epochs=3)
    run.train()
    assert run.stop_reason is None
    assert_same_state(state(run.model), told.weights[0])


def test_what_is_held_out_is_never_trained_on_and_all_else_is():
    made, told = stopping(holdout=0.25), Told()
    run = double_run([made, told], epochs=2)
    run.train()
    held = set(made._held.indices.tolist())
    assert len(held) == round(0.25 * len(run.data))
    assert told.samples == set(range(len(run.data))) - held


def test_the_loss_that_it_looks_at_is_the_mean_over_the_held_out_samples():
    made = stopping(holdout=0.5, patience=9)
    run = double_run([made], epochs=1)
    run.train()
    inputs, targets = (x[made._held.indices] for x in (vectors().store.inputs, vectors().store.targets))
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(run.model(inputs), targets).item()
    assert made.diagnostics()["losses"] == [pytest.approx(expected, rel=1e-5)]


def test_a_look_changes_nothing_but_its_own_cost():
    """Running statistics and dropout's stream are training's alone."""
    looking = make_run([stopping(patience=9, restore=False)], epochs=2)
    blind = make_run([stopping(patience=9, restore=False)], epochs=2)
    blind.methods[0]._look = lambda run: 1.0
    for run in (looking, blind):
        run.train()
    assert_same_state(state(looking.model), state(blind.model))


@pytest.mark.parametrize("epochs", [1, 4])
def test_its_estimate_counts_the_steps_taken_and_a_forward_for_each_held_out_sample(epochs):
    made = stopping(holdout=0.25, patience=9)
    run = make_run([made], epochs=epochs)
    run.train()
    plain = ledger_of_plain_training("cnn", run).trained(epochs)
    forward = plain.by_phase()["forward"]
    assert made.estimate(plain).flop == pytest.approx(0.75 * plain.flop + 0.25 * forward)


def test_too_few_samples_rounds_and_several_losses_are_refused_in_words():
    with pytest.raises(Exception, match="of one sample none can be held out"):
        make_run([stopping()], data=digits(1))
    with pytest.raises(Exception, match="the task makes its own rounds"):
        make_run([stopping()], task=FedProx())
    with pytest.raises(Exception, match="a loss for each of one, two"):
        make_run([stopping()], task=TwoParts())


def test_an_epoch_of_which_all_is_held_out_is_skipped():
    """As where a layer further out has left those samples alone."""

    class HeldOnly(Method):
        name = "held_only"

        def epoch(self, run, data, inner):
            inner(run.methods[1]._held if run.epoch_number == 2 else data)

    run = double_run([HeldOnly(), stopping(patience=9, restore=False)], epochs=3)
    run.train()
    assert run.epochs_with_steps == [1, 3]


@pytest.mark.parametrize("wrong", [{"holdout": 0.0}, {"holdout": 0.6}, {"patience": 0}, {"least": -1.0}])
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(Exception, match=next(iter(wrong))):
        stopping(**wrong)
