"""curriculum: the easiest samples by the model's own losses come first, and their share follows the pacing function."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import FedProx
from support import assert_same_state, double_run, make_run, state
from test_contract import ledger_of_plain_training
from test_early_stopping import TwoParts
from test_method_members import method_named

from energybench.train.method import Method


def curriculum(**parameters):
    return method_named("curriculum", **parameters)


class Samples(Method):
    """Keeps each epoch's samples, in the order of its steps."""

    name = "samples"

    def __init__(self) -> None:
        self.by_epoch: dict[int, list[int]] = {}

    def step(self, run, batch, inner):
        self.by_epoch.setdefault(run.epoch_number, []).extend(batch.index.tolist())
        inner(batch)


def trained(epochs: int = 5, **parameters):
    made, samples = curriculum(**parameters), Samples()
    run = double_run([made, samples], epochs=epochs)
    losses: list[torch.Tensor] = []

    def keep(run):
        batch = next(iter(run.data.load([torch.arange(len(run.data))])))
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(run.model(batch.inputs), batch.targets, reduction="none"))

    keep(run)
    run.train(keep)
    return run, made, samples.by_epoch, losses


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 3), st.integers(4, 30))
def test_the_pacing_is_linear_from_start_to_all(start, until, look_after, epochs):
    made = curriculum(start=start, until=until, look_after=look_after)
    shares = [made.share(epoch, epochs) for epoch in range(1, epochs + 1)]
    assert shares[:look_after] == [1.0] * look_after
    assert shares[look_after] == pytest.approx(start)
    assert shares[look_after:] == sorted(shares[look_after:])
    for number, share in enumerate(shares[look_after:]):
        progress = number / (epochs - look_after)
        assert share == pytest.approx(min(1, start + (1 - start) * progress / until))


@pytest.mark.parametrize("order", ["easy", "hard"])
@pytest.mark.parametrize("look_after", [0, 1, 2])
def test_an_epoch_trains_on_the_samples_that_come_first_by_the_loss_at_the_look(order, look_after):
    run, made, samples, losses = trained(order=order, look_after=look_after, start=0.3, until=1.0)
    ranks = losses[look_after].argsort(descending=order == "hard").tolist()
    for epoch in range(look_after + 1, 6):
        count = round(made.share(epoch, 5) * len(run.data))
        assert sorted(samples[epoch]) == sorted(ranks[:count])
    for epoch in range(1, look_after + 1):
        assert sorted(samples[epoch]) == list(range(len(run.data)))


def test_the_random_order_looks_at_nothing_and_only_adds_samples():
    run, made, samples, _ = trained(order="random", look_after=0)
    assert made.diagnostics()["samples_looked_at"] == 0
    for epoch in range(1, 5):
        assert set(samples[epoch]) <= set(samples[epoch + 1])
    assert len(set(samples[1])) == round(0.3 * len(run.data))


def test_with_as_many_steps_an_epoch_has_as_many_samples_all_of_the_share():
    run, made, samples, losses = trained(steps="same", look_after=0, start=0.3, until=1.0)
    ranks = losses[0].argsort().tolist()
    for epoch in range(1, 6):
        count = round(made.share(epoch, 5) * len(run.data))
        assert len(samples[epoch]) == len(run.data)
        assert set(samples[epoch]) == set(ranks[:count])
    for counts in ([samples[epoch].count(index) for index in set(samples[epoch])] for epoch in range(1, 6)):
        assert max(counts) - min(counts) <= 1
    assert run.tally.samples == 5 * len(run.data)
    assert run.tally.steps == 5 * run.data.steps(run.recipe.batch)


def test_all_samples_from_the_start_are_plain_training_bit_for_bit():
    run, plain = make_run([curriculum(start=1.0)]), make_run([])
    for one in (run, plain):
        one.train()
    assert_same_state(state(run.model), state(plain.model))


@pytest.mark.parametrize("steps", ["fewer", "same"])
def test_its_estimate_is_the_share_of_samples_and_one_forward_for_all(steps):
    made = curriculum(steps=steps, start=0.5, until=1.0, look_after=1)
    run = make_run([made], epochs=4)
    run.train()
    plain = ledger_of_plain_training("cnn", run).trained(4)
    looked = plain.by_phase()["forward"] / 4
    share = run.tally.samples / (4 * len(run.data))
    assert made.estimate(plain).flop == pytest.approx(share * plain.flop + looked)
    expected = [96, 48, round(96 * 2 / 3), 80] if steps == "fewer" else [96] * 4
    assert run.tally.samples == sum(expected)


def test_a_run_that_ends_before_the_look_is_refused_in_words():
    with pytest.raises(Exception, match="the look comes after 3 epochs, and there are 2"):
        make_run([curriculum(look_after=3)], epochs=2)


def test_rounds_and_several_losses_are_refused_in_words():
    with pytest.raises(Exception, match="the task makes its own rounds"):
        make_run([curriculum()], task=FedProx())
    with pytest.raises(Exception, match="a loss for each of one, two"):
        make_run([curriculum()], task=TwoParts())


@pytest.mark.parametrize(
    "wrong", [{"start": 0.0}, {"until": 1.5}, {"look_after": -1}, {"order": "odd"}, {"steps": "few"}]
)
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(Exception, match=next(iter(wrong))):
        curriculum(**wrong)
