"""A run whose task has parameters and diagnostics, whose model starts from a file, whose workload sweeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import contents, write_suite

from energybench.runner import runner
from energybench.runner.progress import Progress
from energybench.suite.suite import load

pytestmark = pytest.mark.slow

TASK = """from dataclasses import dataclass
from energybench.workloads.tasks.classification import Classification


@dataclass
class Tempered(Classification):
    name = "tempered"
    temperature: float = 2.0

    def losses(self, run, outputs, batch):
        return super().losses(run, outputs / self.temperature, batch)

    def diagnostics(self):
        return {"cooled_to": self.temperature}
"""
WORKLOAD = """[[workload]]
name = "w"
task = { use = "tempered.py", temperature = 4.0 }
model = { use = "mlp", hidden = [4], weights = "start.pt", weights_strict = false }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 1 }
sweep = { "train.lr" = [0.1, 0.2] }
"""


def test_the_records_say_what_training_started_from(tmp_path: Path, quiet: Callable[[], Progress]) -> None:
    (tmp_path / "tempered.py").write_text(TASK, encoding="utf-8")
    first = torch.nn.Linear(64, 4).state_dict()
    path = tmp_path / "start.pt"
    torch.save({f"1.{name}": value for name, value in first.items()}, path)
    file = write_suite(tmp_path, workload=WORKLOAD, turns="off")
    code, out = runner.run(load(file), out=tmp_path / "out", progress=quiet())
    assert code == 0
    run, trials, counting_runs = contents(out)
    assert {trial.workload for trial in trials.values()} == {"w[lr=0.1]", "w[lr=0.2]"}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for trial in trials.values():
        assert trial.status == "ok"
        assert trial.settings["task"] == {"use": "tempered.py", "temperature": 4.0}
        weights = trial.settings["weights"]
        assert (weights["sha256"], weights["tensors"]) == (sha256, 2)
        assert weights["fresh"] == ["3.weight", "3.bias"]
        assert trial.settings["workload"]["train"]["lr"] == float(trial.workload[5:-1])
        assert "sweep" not in trial.settings["workload"]
        assert trial.diagnostics["tempered"] == {"cooled_to": 4.0}
    assert {facts["weights"]["sha256"] for facts in run.data.values()} == {sha256}
    by_cell = {(t.workload, t.method): t.weights_sha256 for t in trials.values()}
    assert by_cell["w[lr=0.1]", "baseline"] == by_cell["w[lr=0.1]", "twin"]
    assert by_cell["w[lr=0.1]", "baseline"] != by_cell["w[lr=0.2]", "baseline"]
    for counting_run in counting_runs.values():  # it started from the same file
        assert counting_run.weights_sha256 == by_cell[counting_run.workload, "baseline"]
