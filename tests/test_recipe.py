"""The recipe: learning rates as closed forms, torch's own optimizers, seeds that nothing salts."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, double_run, state, vectors
from torch import nn

from energybench.common.hashing import digest, stable_seed
from energybench.suite import tables
from energybench.suite.tables import TrainTable, WorkloadTable
from energybench.train.recipe import Recipe
from energybench.trial.build import recipe_of

progresses = st.floats(0, 1)


@given(progress=progresses, lr=st.floats(1e-6, 10))
def test_learning_rates_are_closed_forms_of_progress(progress, lr):
    at = lambda schedule: Recipe(1, 1, lr=lr, schedule=schedule).lr_at(progress)  # noqa: E731
    assert at("constant") == lr
    assert at("linear") == pytest.approx(lr * (1 - progress), abs=1e-12)
    assert at("cosine") == pytest.approx(lr * math.cos(math.pi * progress / 2) ** 2, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decaying_schedule_begins_at_the_rate_ends_at_zero_and_never_rises(schedule):
    recipe = Recipe(1, 1, lr=0.3, schedule=schedule)
    rates = [recipe.lr_at(i / 100) for i in range(101)]
    assert (rates[0], rates[-1]) == (pytest.approx(0.3), pytest.approx(0, abs=1e-15))
    assert all(a >= b for a, b in pairwise(rates))
    assert rates[50] == pytest.approx(0.15)


@given(st.integers(2, 300), st.data())
def test_a_step_schedule_multiplies_once_at_each_milestone(epochs, data):
    marks = sorted(data.draw(st.sets(st.integers(1, epochs - 1), min_size=1, max_size=3)))
    recipe = Recipe(epochs, 1, lr=0.1, schedule="step", milestones=tuple(marks), factor=0.5)
    for epoch in range(epochs):  # the rate of its first step
        passed = sum(mark <= epoch for mark in marks)
        assert recipe.lr_at(epoch / epochs) == pytest.approx(0.1 * 0.5**passed)


@given(st.integers(1, 300), st.floats(0.5, 0.9999), st.floats(0, 0.999))
def test_an_exponential_schedule_multiplies_after_every_epoch(epochs, factor, within):
    recipe = Recipe(epochs, 1, lr=0.1, schedule="exponential", factor=factor)
    for epoch in range(epochs):
        assert recipe.lr_at(epoch / epochs) == pytest.approx(0.1 * factor**epoch)
        assert recipe.lr_at((epoch + within) / epochs) == pytest.approx(0.1 * factor**epoch)


def test_an_exponential_schedule_says_its_factor():
    with pytest.raises(ValueError, match="multiplies the rate"):
        TrainTable.model_validate({"epochs": 10, "lr": 0.1, "schedule": "exponential"})
    given = TrainTable.model_validate({"epochs": 10, "lr": 0.1, "schedule": "exponential", "factor": 0.998})
    again = TrainTable.model_validate(given.model_dump(mode="json"))
    assert (again.schedule, again.factor) == ("exponential", 0.998)


@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(0.5, 5), progresses)
def test_a_warm_up_is_a_ramp_over_whatever_the_schedule_says(schedule, warmup, progress):
    plain = Recipe(10, 1, lr=0.3, schedule=schedule)
    warm = Recipe(10, 1, lr=0.3, schedule=schedule, warmup_epochs=warmup)
    ramp = min(1.0, 10 * progress / warmup)
    assert warm.lr_at(progress) == pytest.approx(ramp * plain.lr_at(progress), abs=1e-15)
    assert warm.lr_at(0.0) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "step"},
        {"milestones": [3]},
        {"schedule": "step", "milestones": [3, 3]},
        {"schedule": "step", "milestones": [10]},
        {"schedule": "step", "milestones": [0]},
        {"warmup_epochs": 10.0},
    ],
)
def test_a_schedule_that_cannot_happen_is_a_mistake(wrong):
    with pytest.raises(ValueError, match=r"milestones|arrive"):
        tables.TrainTable.model_validate({"epochs": 10, "lr": 0.1, **wrong})


def choices(name: str) -> list[str]:
    """What a suite may write for `train.<name>`, from the schema itself."""
    annotation: Any = tables.TrainTable.model_fields[name].annotation
    return [value for value in _flat(annotation) if isinstance(value, str)]


def _flat(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [leaf for part in inner for leaf in _flat(part)] if inner else [annotation]


REFERENCE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01, weight_decay=0.1),
}


def test_the_schema_offers_the_optimizers_and_schedules_that_exist():
    assert set(choices("optimizer")) == set(REFERENCE)
    assert set(choices("schedule")) == {"constant", "linear", "cosine", "step", "exponential"}


@pytest.mark.parametrize("name", REFERENCE)
def test_an_optimizer_steps_as_torchs_own(name):
    """Held against a loop written out by hand."""
    run = double_run(
        optimizer=name, lr=0.01, decay=0.1, momentum=0.9 * (name == "sgd"), nesterov=name == "sgd", epochs=2
    )
    by_hand = double_run()
    optimizer = REFERENCE[name](list(by_hand.model.parameters()))
    run.train()
    for epoch in (1, 2):
        order = torch.randperm(24, generator=run.rng("order", epoch))
        for index in order.split(8):
            batch = next(by_hand.data.load([index]))
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand.model(batch.inputs), batch.targets).backward()
            optimizer.step()
    for key, value in state(run.model).items():
        torch.testing.assert_close(value, by_hand.model.state_dict()[key], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_betas_reach_the_optimizers_that_have_them(name):
    built = Recipe(1, 1, optimizer=name, betas=(0.5, 0.75)).build_optimizer([nn.Parameter(torch.ones(1))])
    assert built.param_groups[0]["betas"] == (0.5, 0.75)


def test_every_setting_of_a_suites_training_reaches_the_recipe():
    """By the names that both give it; `activation` alone is the model's."""
    train = {"epochs": 3, "lr": 0.5, "momentum": 0.25, "nesterov": True, "decay": 0.125, "schedule": "step"}
    train |= {"milestones": [1.0, 2.0], "factor": 0.5, "warmup_epochs": 0.5, "clip": 2.0, "accumulate": 4}
    train |= {"precision": "bf16", "label_smoothing": 0.0625, "lr_multipliers": {"head.*": 2.0}}
    given = {"name": "w", "model": {"use": "mlp"}, "data": {"use": "digits", "batch": 12}, "train": train}
    recipe = recipe_of(WorkloadTable.model_validate(given))
    assert {key: getattr(recipe, key) for key in train} == train | {"milestones": (1.0, 2.0)}
    assert (recipe.batch, {field.name for field in fields(Recipe)}) == (
        12,
        {*TrainTable.model_fields, "batch"} - {"activation", "evaluate"},  # the model's, and the trial's
    )


def test_bf16_and_fp16_are_autocast_and_fp32_is_nothing():
    a = torch.ones(2, 2)
    for precision, expected in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        with Recipe(1, 1, precision=precision).autocast(CPU):
            assert (a @ a).dtype == expected


def test_label_smoothing_mixes_the_label_with_all_classes():
    run, batch = double_run(label_smoothing=0.3), next(vectors().load([torch.arange(8)]))
    log = run.model(batch.inputs).log_softmax(1)
    own = -log[torch.arange(8), batch.targets]
    expected = (0.7 * own + 0.3 * -log.mean(1)).mean()
    torch.testing.assert_close(run.forward(batch).value, expected)


# ── seeds ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.one_of(st.integers(), st.text()), max_size=4))
def test_a_seed_fits_torch_and_depends_on_its_key(key):
    seed = stable_seed(*key)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)
    assert stable_seed(*key) == seed
    assert stable_seed(*key, "more") != seed


def test_a_seed_is_the_same_in_every_process_and_knows_numbers_from_words():
    here = stable_seed(7, "order", 3)
    code = "from energybench.common.hashing import stable_seed; print(stable_seed(7, 'order', 3))"
    root = Path(__file__).parents[1]
    for salt in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": salt},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(ran.stdout) == here
    assert len({here, stable_seed(7, "order", "3"), stable_seed("7", "order", 3), stable_seed(7, "order3")}) == 4


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest([1, 2]) != digest([2, 1])
