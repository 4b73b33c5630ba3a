"""How long a suite is said to take, in a suite whose plain step is said to take a tenth of a second."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from energybench.process.forkserver import Launcher
from energybench.records.run_folder import Folder
from energybench.runner import planner, schedule
from energybench.runner.expected_time import AROUND_S, COUNTED_SLOWER, ExpectedTime, expected_time
from energybench.runner.plan_facts import plan_facts
from energybench.runner.plan_request import Planned, spec_of
from energybench.runner.progress import Progress
from energybench.runner.trials import Trials
from energybench.suite.suite import load

STEP_S, BLOCKS, STEPS = 0.1, 2, 3 * 20  # 48 samples in batches of 16, for 20 epochs
SUITE = """schema = 1
suite = "tiny"
[trials]
blocks = 2
warmup = "5 steps"
turns = "off"
[measure]
energy = "off"
[[workload]]
name = "w"
model = { use = "mlp", hidden = [2] }
data = { use = "digits", batch = 16, subset = 48, test_subset = 32 }
train = { epochs = 20, lr = 0.1 }
"""
DROPOUTS = "".join(f'[[method]]\nname = "d{n}"\nuse = "dropout"\ncontrol = "none"\n' for n in range(5))
EVALUATION_S = 32 / 16 * STEP_S / 3  # forwards alone
AROUND_A_TRIAL_S = AROUND_S + 5 * STEP_S + EVALUATION_S
PLAIN_S = STEPS * STEP_S


def expected(folder: Path, text: str) -> ExpectedTime:
    file = folder / "tiny.toml"
    file.write_text(text, encoding="utf-8")
    suite = load(file)
    spec = spec_of(suite, folder, device="cpu", download=False)
    result = planner.Plan(spec).result()
    assert not result.problems
    known = {name: each.model_copy(update={"step_s": STEP_S}) for name, each in result.workloads.items()}
    cells = []
    for cell in result.cells:
        kept = 0.5 if cell.method.startswith("gradsamp") else 1.0
        cells.append(cell.model_copy(update={"expected_s": PLAIN_S * kept}))
    found = expected_time(Planned(suite, result.model_copy(update={"workloads": known, "cells": cells}), spec))
    assert found is not None
    return found


def seconds(folder: Path, text: str) -> float:
    """Where nothing depends on a tally."""
    found = expected(folder, text)
    assert found.least_s == found.most_s
    return found.least_s


def counted_s(*epochs_kept: float) -> float:
    """Plain training first, then each method."""
    return sum(PLAIN_S * kept * COUNTED_SLOWER + AROUND_S for kept in (1.0, *epochs_kept))


def test_each_trial_is_set_up_warmed_up_trained_and_evaluated(tmp_path: Path) -> None:
    text = SUITE + '[[method]]\nuse = "gradsamp"\nskip = "every:2"\ncontrol = "none"\n'
    block_s = (1 + 1 + 0.5) * PLAIN_S + 3 * AROUND_A_TRIAL_S  # plain, its twin, the method
    assert seconds(tmp_path, text) == pytest.approx(BLOCKS * block_s + counted_s(0.5))


def test_an_evaluation_after_every_epoch_is_so_many(tmp_path: Path) -> None:
    every = SUITE.replace("lr = 0.1 }", 'lr = 0.1, evaluate = "every epoch" }')
    once_s, often_s = seconds(tmp_path, SUITE + DROPOUTS), seconds(tmp_path, every + DROPOUTS)
    assert often_s == pytest.approx(once_s + BLOCKS * 7 * 19 * EVALUATION_S)


def test_parts_are_rehearsed_and_further_groups_have_plain_training_of_their_own(tmp_path: Path) -> None:
    """Five methods are two groups; before each of the two parts of a training two plain steps are rehearsed."""
    off_s = seconds(tmp_path, SUITE + DROPOUTS)
    turns_s = seconds(tmp_path, SUITE.replace('"off"', "2", 1) + DROPOUTS)
    rehearsal_s = 2 * 2 * STEP_S
    again_s = PLAIN_S + AROUND_A_TRIAL_S + rehearsal_s
    assert turns_s == pytest.approx(off_s + BLOCKS * (7 * rehearsal_s + again_s))


def test_controls_that_only_a_tally_can_ask_for_make_it_a_span(tmp_path: Path) -> None:
    """Nobody knows before how many neurons will rest, and so whether NEq trains less than it seems to."""
    found = expected(tmp_path, SUITE + '[[method]]\nuse = "neq"\n')
    assert found.most_s == pytest.approx(found.least_s + BLOCKS * (PLAIN_S + AROUND_A_TRIAL_S))
    assert str(ExpectedTime(60.0, 119.0)) == "about 60 s to 2 min"
    assert str(ExpectedTime(60.0, 60.1)) == "about 60 s"


def test_check_tells_of_as_many_trials_as_a_run_begins_with(tmp_path: Path) -> None:
    """Ten methods beside plain training and its twin are three groups: further plain trainings are trials too."""
    text = SUITE.replace('"off"', "2", 1) + DROPOUTS + DROPOUTS.replace('"d', '"e').replace("eropout", "dropout")
    (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
    suite = load(tmp_path / "tiny.toml")
    spec = spec_of(suite, tmp_path, device="cpu", download=False)
    planned = Planned(suite, planner.Plan(spec).result(), spec)
    slots = schedule.missing(planned.cells, BLOCKS, 0, [], 0)
    quiet = Progress(Console(file=io.StringIO()), Console(file=io.StringIO()), quiet=True)
    trials = Trials(planned, Folder(tmp_path / "run"), Launcher(), tmp_path, quiet)
    begun_with = sum(trials.in_turns.count(each) for each in schedule.by_workload(slots))
    assert plan_facts(planned)["trials"] == begun_with == BLOCKS * (12 + 2)
