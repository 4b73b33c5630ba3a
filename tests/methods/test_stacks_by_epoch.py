"""Methods that change with the epochs, two at once: what both do in the same epochs is counted together."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, StackedTransformer, digits, make_run, tiny_cnn
from test_method_members import method_named

from energybench.algorithms.epoch_counter import EpochCounter
from energybench.flops.work import Line, Work
from energybench.runner.tracing import trace_task
from energybench.train.recipe import Recipe
from energybench.trial import estimate
from energybench.trial.counting_layer import StepCounter
from energybench.trial.estimate import works
from energybench.workloads.tasks.classification import Classification

SAMPLES, BATCH, EPOCHS = 100, 16, 6
VALUES: dict[str, dict[str, Any]] = {
    "progressive_resizing": {"start": 0.5, "delay": 0.3, "until": 0.9, "multiple": 2},
    "layer_freezing": {"start": 0.3, "share": 0.6},
    "batch_growth": {"at": [0.5]},
    "curriculum": {"start": 0.4, "until": 1.0},
    "early_stopping": {"holdout": 0.25, "patience": 9},
    "selective_backprop": {"beta": 1.0},
    "gradsamp": {"skip": "late-every:2"},
    "dlis": {"threshold": 0.3},
}
PAIRS = [pair for pair in permutations(VALUES, 2) if {"progressive_resizing", "layer_freezing", "dlis"} & {*pair}]
OF_LAYERS: dict[str, dict[str, Any]] = {  # of a transformer
    "token_dropping": {"keep": 0.5},
    "layer_drop": {"drop": 0.4},
    "stochastic_depth": {"keep_last": 0.4},
    "lora": {"rank": 2},
}
LOOKING = ("curriculum", "early_stopping", "selective_backprop", "dlis", "neq", "layer_freezing")
# What rests of a layer with a low-rank update is neither method's to tell alone: the report says how far it is off.
UNKNOWN = ({"lora", "neq"}, {"lora", "layer_freezing"})
OF_TRANSFORMERS = [
    pair for one in OF_LAYERS for other in LOOKING for pair in ((one, other), (other, one)) if {*pair} not in UNKNOWN
]
VALUES |= {**OF_LAYERS, "neq": {"mode": "sliced"}}


def deep() -> Any:
    return StackedTransformer(width=8, layers=4)


@pytest.mark.parametrize(
    ("names", "model"), [*((pair, tiny_cnn) for pair in PAIRS), *((pair, deep) for pair in OF_TRANSFORMERS)]
)
def test_the_estimate_of_two_meets_the_count(names: tuple[str, str], model: Any) -> None:
    """To 0.1 % of plain training's FLOPs, in either order, of which none is refused."""
    methods, counter = [method_named(name, **VALUES[name]) for name in names], StepCounter(10**9)
    run = make_run(methods, model, digits(SAMPLES), counter=counter, epochs=EPOCHS, batch=BATCH)
    run.train()
    batch = next(iter(digits(SAMPLES).load([torch.arange(2)])))
    lines = trace_task(Classification(), model(), Recipe(epochs=EPOCHS, batch=BATCH), batch, CPU).lines
    plain, work = works(lines, run)
    counted = counter.result(run)
    in_steps = counted.counted_flop - (counted.outside_steps_flop if "gradsamp" in names else 0)  # fits are no passes
    assert work.flop == pytest.approx(in_steps, abs=1e-3 * plain.flop)


amounts = st.floats(0, 1e6)
tables = st.dictionaries(st.sampled_from(["x", "w", "y"]), amounts)
lines_of_work = st.builds(
    Line,
    st.just("forward"),
    st.sampled_from(["a", "b"]),
    st.just("linear"),
    amounts,
    st.just({}),
    tables,
    tables,
    amounts,
    amounts,
)
parts_of_work = st.builds(
    Work,
    st.lists(lines_of_work, max_size=3).map(tuple),
    st.floats(0.1, 9),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 3),
)


@given(st.lists(parts_of_work, min_size=1, max_size=4))
def test_parts_together_have_the_work_of_all(parts: list[Work]) -> None:
    whole = Work.together(parts)
    assert whole.flop == pytest.approx(sum(part.flop for part in parts), rel=1e-9, abs=1e-6)
    samples = sum(part.epochs * part.samples * line.activation_b for part in parts for line in part.lines)
    assert whole.epochs * whole.samples * sum(line.activation_b for line in whole.lines) == pytest.approx(samples)
    assert whole.of_epochs is None


@given(st.lists(parts_of_work, min_size=1, max_size=1))
def test_one_part_is_the_whole(parts: list[Work]) -> None:
    whole = Work.together(parts)
    assert whole.flop == pytest.approx(parts[0].flop)
    assert whole.moved_b(7) == pytest.approx(parts[0].moved_b(7))


def test_counts_are_told_of_the_run_or_of_the_epochs_that_are_asked_for() -> None:
    run: Any = SimpleNamespace(epoch_number=0)
    counter: EpochCounter[str] = EpochCounter(run)
    for run.epoch_number in (1, 2, 4):
        counter.add("samples", 10 * run.epoch_number)
    work = Work((), epochs=1, samples=1)
    assert counter.of(work) == counter.whole() == {"samples": 70}
    assert counter.of(Work((), epochs=1, samples=1, of_epochs=(2, 3, 4))) == {"samples": 60}
    assert counter.of(Work((), epochs=1, samples=1, of_epochs=(3,))) == {}


def test_a_long_run_is_estimated_in_parts_of_several_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one epoch each or of two: where both methods change in every epoch, little is lost."""
    found = []
    for parts in (EPOCHS, 3):
        monkeypatch.setattr(estimate, "PARTS", parts)
        methods = [method_named(name, **VALUES[name]) for name in ("progressive_resizing", "layer_freezing")]
        run = make_run(methods, data=digits(SAMPLES), epochs=EPOCHS, batch=BATCH)
        run.train()
        batch = next(iter(digits(SAMPLES).load([torch.arange(2)])))
        lines = trace_task(Classification(), tiny_cnn(), Recipe(epochs=EPOCHS, batch=BATCH), batch, CPU).lines
        plain, work = works(lines, run)
        found.append(work.flop / plain.flop)
    assert found[0] == pytest.approx(found[1], abs=0.02)
    assert found[0] != found[1]
