"""Federated learning in whole runs: what was sent stands in the record and in `show`, and the control trains rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import energybench
from tiny_runs import contents, only_run, write_suite

pytestmark = pytest.mark.slow

WORKLOAD = """
[[workload]]
name = "small"
task = { use = "fedspeed", clients = 8, active = 2, local_epochs = 2, split = "dirichlet" }
model = { use = "lenet", channels = [4], hidden = [], groups = 2 }
data = { use = "digits", batch = 8, subset = 96, test_subset = 32 }
train = { epochs = 4, lr = 0.05, schedule = "exponential", factor = 0.9, evaluate = "every epoch" }
"""
METHODS = """
[[method]]
use = "gradsamp"
skip = "every:2"
"""


def test_what_would_have_been_sent_is_in_the_record_and_in_show(tmp_path: Path) -> None:
    done = energybench("run", write_suite(tmp_path, METHODS, workload=WORKLOAD, twin=False, turns="off"), cwd=tmp_path)
    assert done.returncode in (0, 4), done.stdout + done.stderr
    _, trials, counting_runs = contents(folder := only_run(tmp_path))
    assert {trial.status for trial in trials.values()} == {"ok"}
    of = {trial.method: trial for trial in trials.values()}
    model_b = 4 * (4 * 25 + 4 + 2 * 4 + 4 * 2 * 2 * 10 + 10)  # convolution, GroupNorm, linear, in single precision
    for name, rounds in (("baseline", 4), ("gradsamp", 2), ("gradsamp matched", 2)):
        summary = of[name].diagnostics["fedspeed"]["summary"]
        assert summary["clients_visited"] == 2 * rounds
        assert summary["sent_up_b"] == summary["sent_down_b"] == 2 * rounds * model_b
        passes = of[name].passes
        assert passes is not None
        assert passes.epochs_trained == rounds
        assert passes.samples_forward == 2 * rounds * 2 * 2 * 12  # passes, clients, local epochs, samples
    counted = counting_runs["small.baseline"].counted_flop
    assert of["baseline"].estimate is not None
    assert of["baseline"].estimate.estimated_flop == pytest.approx(counted, rel=1e-3)
    shown = energybench("show", folder / "records" / f"{of['gradsamp'].trial}.json", cwd=tmp_path)
    assert "rounds without clients 2, clients visited 4, sent down" in shown.stdout
