"""Methods that leave samples out, two at once: what is left out is counted once, whatever their order."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import CPU, digits, make_run, tiny_cnn
from test_method_members import method_named

from energybench.algorithms.passes_taken import PassesTaken
from energybench.flops.work import Line, Work
from energybench.runner.tracing import trace_task
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.trial.counting_layer import StepCounter
from energybench.trial.estimate import works
from energybench.workloads.tasks.classification import Classification

RUN: Any = SimpleNamespace(epoch_number=1)
SAMPLES, BATCH, EPOCHS = 100, 16, 5  # the last batch of a pass is smaller
VALUES = {
    "batch_growth": {"at": [0.5]},
    "curriculum": {"start": 0.4, "until": 1.0},
    "early_stopping": {"holdout": 0.25, "patience": 9},
    "selective_backprop": {"beta": 1.0},
}


class EverySecondEpoch(Method):
    """What skips epochs says so in epochs: `work.trained`."""

    name = "every_second_epoch"

    def setup(self, run):
        self.kept = 0

    def epoch(self, run, data, inner):
        if run.epoch_number % 2:
            self.kept += 1
            inner(data)

    def estimate(self, work):
        return work.trained(work.epochs * self.kept / EPOCHS)


def made(name: str) -> Method:
    return EverySecondEpoch() if name == "every_second_epoch" else method_named(name, **VALUES[name])


@cache
def plain() -> Work:
    batch = next(iter(digits(SAMPLES).load([torch.arange(2)])))
    lines = trace_task(Classification(), tiny_cnn(), Recipe(epochs=EPOCHS, batch=BATCH), batch, CPU).lines
    return Work(lines, epochs=EPOCHS, samples=SAMPLES, batch=BATCH)


@pytest.mark.parametrize("names", list(permutations([*VALUES, "every_second_epoch"], 2)), ids=" ".join)
def test_the_estimate_of_two_meets_the_count(names):
    methods, counter = [made(name) for name in names], StepCounter(10**9)
    run = make_run(methods, data=digits(SAMPLES), counter=counter, epochs=EPOCHS, batch=BATCH)
    run.train()
    _, work = works(plain().lines, run)
    assert work.flop == pytest.approx(counter.result(run).counted_flop, abs=1e-3 * plain().flop)


def test_what_each_of_two_left_out_multiplies():
    """Half of 40 samples are handed on, and a quarter of those: an eighth."""
    work = Work((Line("forward", "a", "linear", 5.0, step_flop=7.0, pair_flop=1.0),), epochs=1, samples=40, batch=10)
    outer, inner = PassesTaken(RUN), PassesTaken(RUN)
    outer.replaced([10] * 4, [10] * 2)
    inner.replaced([10] * 2, [5])
    changed = outer.instead(inner.instead(work))
    assert changed.flop == pytest.approx(5 * 5.0 + 1 * 7.0 + 5**2 * 1.0)
    assert inner.instead(outer.instead(work)).flop == pytest.approx(changed.flop)


def test_a_look_outside_of_steps_costs_what_plain_training_s_forward_does():
    """Whatever a layer further in has made of the forwards in steps, and however often those were left out."""
    work = Work((Line("forward", "a", "linear", 5.0),), epochs=2, samples=40, batch=10)
    thinned = work.change(lambda line: 0.1)
    look = PassesTaken(RUN)
    look.replaced([10] * 8, [10] * 8)
    look.looked.add(40, 2)
    assert look.looks(thinned)[0].flop * 2 * 40 == pytest.approx(5.0 * 2 * 40)
    choosing = PassesTaken(RUN, in_steps=True)
    choosing.replaced([10] * 8, [10] * 4)
    kept = choosing.instead(thinned.add(*look.looks(thinned)))
    assert kept.by_phase() == pytest.approx({"forward": 0.1 * 5.0 * 40, "probe": 5.0 * 2 * 40})


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_micro_batches_are_passes_of_their_own(accumulate):
    """One step of 10 samples in place of two of 5."""
    work = Work((Line("forward", "a", "linear", 0.0, step_flop=1.0),), 1, samples=10, batch=5, accumulate=accumulate)
    passes = PassesTaken(RUN)
    passes.replaced([5, 5], [10])
    assert work.flop == 2 * accumulate
    assert passes.instead(work).flop == pytest.approx(accumulate)


def test_where_nothing_was_trained_on_the_ledger_stays():
    work = Work((Line("forward", "a", "linear", 5.0),), epochs=0, samples=40, batch=10)
    assert PassesTaken(RUN).instead(work) == work
