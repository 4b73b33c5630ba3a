"""selective_backprop: chances by the paper's formula, full batches of those chosen, and every look paid for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import FedProx
from scipy import stats
from support import digits, make_run, tiny_cnn
from test_contract import ledger_of_plain_training
from test_early_stopping import TwoParts
from test_method_members import method_named

from energybench.train.method import Method


def selective(**parameters):
    return method_named("selective_backprop", **parameters)


def ready(**parameters):
    """Set up, and not trained."""
    made = selective(**parameters)
    make_run([made])
    return made


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_a_chance_is_the_share_of_known_losses_that_are_no_larger_to_the_power_of_beta(values, beta):
    losses = torch.tensor(values)
    chances = ready(beta=beta).chances(losses)
    for loss, chance in zip(losses, chances, strict=True):
        share = (losses <= loss).float().mean()
        assert chance.item() == pytest.approx(share.item() ** beta, rel=1e-5)


def test_losses_are_ranked_among_the_last_of_them_alone():
    made = ready(history=4)
    made.chances(torch.tensor([100.0, 100.0, 100.0, 100.0]))
    assert made.chances(torch.tensor([1.0, 2.0])).tolist() == [0.25, 0.5]  # among 100, 100, 1, 2
    assert made.chances(torch.tensor([3.0, 4.0])).tolist() == [0.75, 1.0]  # among 1, 2, 3, 4


def test_a_batch_larger_than_the_history_is_ranked_within_itself():
    made = ready(history=2)
    made.chances(torch.full((8,), 50.0))
    assert made.chances(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [0.25, 0.5, 0.75, 1.0]


def test_what_is_no_number_is_chosen():
    assert ready().chances(torch.tensor([float("nan"), 1.0]))[0] == 1


class Told(Method):
    name = "told"

    def __init__(self) -> None:
        self.trained: list[list[int]] = []

    def step(self, run, batch, inner):
        self.trained.append(batch.index.tolist())
        inner(batch)


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_batches_are_full_and_hold_those_chosen_in_their_order(beta):
    told, made = Told(), selective(beta=beta)
    run = make_run([made, told], data=digits(90), epochs=4, batch=16)
    run.train()
    assert all(len(batch) == 16 for batch in told.trained)
    assert run.tally.updates == len(told.trained)
    assert made.diagnostics()["samples_looked_at"] == 4 * 90
    assert made.diagnostics()["samples_trained_on"] == 16 * len(told.trained)
    if beta == 0:  # everybody, in the order of plain training
        plain = Told()
        make_run([plain], data=digits(90), epochs=4, batch=16).train()
        everybody = [index for batch in plain.trained for index in batch]
        mine = [index for batch in told.trained for index in batch]
        assert mine == everybody[: len(mine)]
        assert len(everybody) - len(mine) < 16


def test_at_beta_one_half_are_chosen_where_losses_keep_their_law():
    """With a rate of 0 nothing is learned: the ranks of the losses are uniform, and E[U^β] = 1/(1 + β)."""
    for beta in (1.0, 2.0):
        made = selective(beta=beta, history=96)
        run = make_run([made], epochs=20, batch=32, lr=0.0, momentum=0.0)
        run.train()
        looked = made.diagnostics()["samples_looked_at"]
        chosen = made.diagnostics()["samples_trained_on"]
        # What waits in the end is less than a batch; ranks include the sample itself, which adds 1/n.
        assert chosen / looked == pytest.approx(1 / (1 + beta), abs=4 * (0.25 / looked) ** 0.5 + 32 / looked + 1 / 96)


def test_larger_losses_are_trained_on_more_often():
    told, made = Told(), selective(beta=2.0)
    run = make_run([made, told], epochs=30, batch=32, lr=0.0, momentum=0.0)
    batch = next(iter(run.data.load([torch.arange(96)])))
    losses = run.forward(batch, "eval", grad=False).each
    run.train()
    counts = torch.tensor([sum(batch.count(i) for batch in told.trained) for i in range(96)])
    assert stats.spearmanr(losses.numpy(), counts.numpy()).statistic > 0.5


def test_the_look_leaves_running_statistics_alone():
    run = make_run([selective(beta=60.0)], tiny_cnn, epochs=1)
    before = run.model[1].running_mean.clone()
    batch = next(iter(run.data.load([torch.arange(8)])))
    run.methods[0].step(run, batch, lambda batch: None)
    assert torch.equal(run.model[1].running_mean, before)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_its_estimate_is_a_forward_for_all_and_a_step_for_those_chosen(accumulate):
    made = selective()
    run = make_run([made], epochs=6, batch=32, accumulate=accumulate)
    run.train()
    plain = ledger_of_plain_training("cnn", run)
    share = made.diagnostics()["share"]
    estimated = made.estimate(plain)
    assert estimated.flop == pytest.approx(share * plain.flop + plain.by_phase()["forward"])
    assert estimated.by_phase()["look"] == pytest.approx(plain.by_phase()["forward"])


def test_who_waits_is_let_go_when_samples_change_their_shape():
    made, trained = selective(beta=0.0), list[list[int]]()
    run = make_run([made], batch=32)

    def step(start: int, side: int) -> None:
        batch = next(iter(digits(60).load([torch.arange(start, start + 20)])))
        batch = replace(batch, inputs=batch.inputs[..., :side, :side])
        made.step(run, batch, lambda ready: trained.append(ready.index.tolist()))

    step(40, side=4)  # 20 wait
    step(0, side=8)
    step(20, side=8)
    assert trained == [list(range(32))]
    assert made._waiting.index.tolist() == list(range(32, 40))


@pytest.mark.parametrize("inside", [True, False])
def test_where_batches_grow_a_full_batch_grows_and_few_wait(inside):
    told, made, waited = Told(), selective(beta=0.5), list[int]()
    larger = method_named("batch_growth", large=4, at=[])
    stack = [larger, made] if inside else [made, larger]
    run = make_run([*stack, told], data=digits(256), epochs=6, batch=16, lr=0.01)
    run.train(lambda run: waited.append(0 if made._waiting is None else len(made._waiting)))
    assert {len(batch) for batch in told.trained} == {64}
    assert all(count < 64 for count in waited)


def test_the_smaller_last_batch_of_a_pass_leaves_a_full_batch_as_it_is():
    told = Told()
    run = make_run([method_named("batch_growth", large=2, at=[]), selective(beta=0.0), told], data=digits(72), batch=16)
    run.train()  # of 32, 32 and 8
    assert {len(batch) for batch in told.trained} == {32}


def test_rounds_and_several_losses_are_refused_in_words():
    with pytest.raises(Exception, match="the task makes its own rounds"):
        make_run([selective()], task=FedProx())
    with pytest.raises(Exception, match="losses of one, two have no ranks"):
        make_run([selective()], task=TwoParts())


@pytest.mark.parametrize("wrong", [{"beta": -1.0}, {"history": 0}])
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(Exception, match=next(iter(wrong))):
        selective(**wrong)
