"""batch_growth: which batch an epoch has, at what rate, and that it is plain training with that batch, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, assert_same_state, digits, double_run, make_run, state, vectors
from test_method_members import method_named
from torch import nn

from energybench.flops.work import Work
from energybench.runner.tracing import trace_task
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification


def growth(**parameters):
    return method_named("batch_growth", **parameters)


class Sizes(Method):
    name = "sizes"

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.rates: list[float] = []

    def step(self, run, batch, inner):
        self.sizes.append((run.epoch_number, len(batch)))
        self.rates.append(run.lr())
        inner(batch)


def test_the_batch_is_multiplied_at_each_share_of_training():
    sizes = Sizes()
    run = make_run([growth(factor=2, at=[0.5, 0.75]), sizes], data=digits(128), batch=16, epochs=4)
    run.train()
    per_epoch = {epoch: [size for at, size in sizes.sizes if at == epoch] for epoch in range(1, 5)}
    assert per_epoch == {1: [16] * 8, 2: [16] * 8, 3: [32] * 4, 4: [64] * 2}
    assert run.tally.samples == 4 * 128
    assert run.tally.epochs_trained == pytest.approx(4)


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.sampled_from([0.25, 0.5, 0.75]), unique=True).map(sorted))
def test_what_an_epoch_is_multiplied_by_is_a_power_of_the_factor(large, factor, at):
    made = growth(large=large, factor=factor, at=at)
    for epoch in range(1, 9):
        assert made.times(epoch, 8) == large * factor ** sum(epoch > 8 * share for share in at)


@pytest.mark.parametrize(("scale", "expected"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_a_large_batch_has_a_scaled_rate_that_a_warm_up_reaches(scale, expected):
    sizes = Sizes()
    made = growth(large=4, at=[], scale=scale, warmup=0.5)
    run = make_run([made, sizes], data=digits(128), batch=8, epochs=4, lr=0.01)
    run.train()
    assert {size for _, size in sizes.sizes} == {32}
    progress = [step / 16 for step in range(16)]
    assert sizes.rates == pytest.approx([0.01 * (1 + (expected - 1) * min(1, 2 * p)) for p in progress])


def test_it_is_plain_training_with_the_larger_batch_and_rate():
    """In double precision, epochs of one size: the same samples in the same order."""
    grown = double_run([growth(large=3, at=[], warmup=0.0)], batch=4, lr=0.02)
    plain = double_run(batch=12, lr=0.06)
    for run in (grown, plain):
        run.train()
    assert_same_state(state(grown.model), state(plain.model))


def test_growing_by_one_is_plain_training_bit_for_bit():
    run, plain = make_run([growth(factor=1)]), make_run([])
    for one in (run, plain):
        one.train()
    assert_same_state(state(run.model), state(plain.model))
    assert run.methods[0].acted is None


class OncePerStep(nn.Module):
    """Weights made from weights: a step's cost beside that of its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 5) / 3), nn.Parameter(torch.randn(5, 3) / 3)

    def forward(self, x):
        return x @ (self.a @ self.b)


def test_its_estimate_has_the_samples_of_plain_training_and_fewer_steps():

    torch.manual_seed(0)
    data, counted = vectors(48, dtype=torch.float32), []
    made = growth(at=[0.5])
    for methods in ([made], []):
        layer = StepCounter(10**9)
        run = make_run(methods, OncePerStep, data, counter=layer, epochs=4, batch=8)
        run.train()
        counted.append(layer.result(run).counted_flop)
    batch = next(iter(data.load([torch.arange(2)])))
    lines = trace_task(Classification(), OncePerStep(), Recipe(epochs=4, batch=8), batch, CPU).lines
    plain = Work(lines, epochs=4, samples=48, batch=8)
    assert plain.flop == pytest.approx(counted[1])
    assert made.estimate(plain).flop == pytest.approx(counted[0])
    assert counted[0] < counted[1]


def test_a_batch_larger_than_the_data_is_refused_in_words():
    with pytest.raises(Exception, match="grows to 128 samples, and there are 96"):
        make_run([growth(at=[0.25, 0.5])], batch=32, epochs=4)


@pytest.mark.parametrize(
    "wrong", [{"factor": 0}, {"at": [0.5, 0.25]}, {"at": [1.0]}, {"scale": "cube"}, {"warmup": 1.0}]
)
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(Exception, match=next(iter(wrong))):
        growth(**wrong)


def test_the_rate_of_two_methods_multiplies():
    class Half(Method):
        name = "half"

        def lr_factor(self, run):
            return 0.5

    run = make_run([growth(large=4, at=[], warmup=0.0, scale="sqrt"), Half()], data=digits(128), batch=8, lr=0.1)
    assert run.lr() == pytest.approx(0.1 * math.sqrt(4) * 0.5)
