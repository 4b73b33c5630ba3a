"""with_replacement: uniform, independent draws, as many as plain training has samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from support import double_run, make_run, vectors

from energybench import Method
from energybench.flops.work import Work
from energybench.train import discovery
from energybench.train.data import Data
from energybench.train.stack_check import check_stack
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["with_replacement"])


def method() -> Any:
    return discovery.build(KIND, "with_replacement", {})


class Spy(Method):
    name = "spy"

    def setup(self, run):
        self.seen: list[Any] = []

    def step(self, run, batch, inner):
        self.seen.append(batch)
        inner(batch)


def spied(**settings: Any) -> list[Any]:
    spy = Spy()
    double_run([spy, method()], **settings).train()
    return spy.seen


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_as_many_steps_and_samples_as_a_plain_one(drop_last):
    data = Data(vectors(27).store, drop_last=drop_last)
    sizes = [8, 8, 8] if drop_last else [8, 8, 8, 3]
    assert [len(batch) for batch in spied(data=data, batch=8, epochs=2)] == 2 * sizes


def test_draws_are_uniform_and_independent_and_weigh_nothing():
    seen = spied(epochs=1000, lr=0.0)
    index = torch.cat([batch.index for batch in seen])
    assert chisquare(torch.bincount(index, minlength=24).numpy()).pvalue > 1e-3
    pairs = index[::2] % 4 * 4 + index[1::2] % 4
    assert chisquare(torch.bincount(pairs, minlength=16).numpy()).pvalue > 1e-3
    assert all(batch.weights is None for batch in seen)
    first = index[:24]
    assert len(first.unique()) < 24  # some twice, others not at all


def test_it_costs_what_plain_training_costs_and_is_the_same_for_a_seed():
    one, two, plain = make_run([method()], epochs=2), make_run([method()], epochs=2), make_run(epochs=2)
    for run in (one, two, plain):
        run.train()
    assert one.curve == two.curve != plain.curve
    assert one.tally.passes() == plain.tally.passes()
    work = Work((), epochs=3, samples=7)
    assert one.methods[0].estimate(work) is work
    assert one.methods[0].diagnostics() == {"samples_drawn": 192}


def test_two_that_choose_samples_are_refused():
    kind = discovery.load(discovery.sources()["importance"])
    both = [method(), discovery.build(kind, "importance", dict(kind.example))]
    assert "no order works" in check_stack(both, Classification())[0].hint
