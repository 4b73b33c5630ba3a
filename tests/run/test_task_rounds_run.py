"""A federated task of one's own in whole runs: its rounds, its metrics after every epoch, and its matched control."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from command_line import energybench
from tiny_runs import contents, only_run, write_suite

pytestmark = pytest.mark.slow

FEDERATED = '''"""Rounds of two of four clients, each two local epochs from the server's weights."""
import torch
from energybench import Passes
from energybench.workloads.tasks.classification import Classification


class Federated(Classification):
    replaces = frozenset({"epoch"})
    enters = frozenset({"batches", "step"})
    metrics = {"map": "higher", "map50": "higher"}

    def setup(self, run):
        self._clients = [run.data.subset(part) for part in torch.arange(len(run.data)).split([4, 12, 20, 28])]

    def chosen(self, run):
        order = torch.randperm(4, generator=run.rng(self.name, "clients", run.epoch_number))
        return [self._clients[place] for place in order[:2]]

    def passes(self, run):
        return Passes.of(size for client in self.chosen(run) for _ in range(2) for size in client.sizes(16))

    def epoch(self, run, data, inner):
        self._server = [parameter.detach().clone() for parameter in run.parameters()]
        sums = [torch.zeros_like(each) for each in self._server]
        for client in self.chosen(run):
            self.send(run, self._server)
            for _ in range(2):
                for batch in run.batches(client):
                    run.step(batch)
            for total, parameter in zip(sums, run.parameters()):
                total += parameter.detach() / 2
        self.send(run, sums)
        del self._server

    def send(self, run, values):
        with torch.no_grad():
            for parameter, value in zip(run.parameters(), values):
                parameter.copy_(value)

    def gradients(self, run, batch, inner):
        forward = inner(batch)
        for parameter, value in zip(run.parameters(), self._server):
            parameter.grad += 0.1 * (parameter.detach() - value)
        return forward

    def evaluate(self, run, data):
        accuracy = super().evaluate(run, data)["accuracy"]
        return {"map": accuracy / 2, "map50": accuracy}
'''
WORKLOADS = """
[accept]
quality = { metric = "map", loses_at_most = "50 pp", also = ["map50"] }

[[workload]]
name = "looked"
task = "federated.py:Federated"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 6, lr = 0.1, momentum = 0.9, schedule = "cosine", evaluate = "every epoch" }

[[workload]]
name = "plain"
extends = "looked"
train.evaluate = "at the end"
"""
METHODS = """
[[method]]
use = "gradsamp"
skip = "every:2"

[[skip]]
workload = "plain"
method = "gradsamp"
because = "one is enough"
"""


def test_federated_rounds_are_planned_estimated_counted_controlled_and_looked_at(tmp_path: Path) -> None:
    (tmp_path / "federated.py").write_text(FEDERATED)
    suite = write_suite(tmp_path, METHODS, workload=WORKLOADS, twin=False)
    checked = energybench("check", suite, "--json", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert not [note for note in json.loads(checked.stdout)["notes"] if "ledger" in note]
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode in (0, 4), done.stdout + done.stderr
    run, trials, counting_runs = contents(folder := only_run(tmp_path))
    assert {t.status for t in trials.values()} == {"ok"}
    of = {(t.workload, t.method): t for t in trials.values()}
    looked, plain, sampled = (
        of[cell] for cell in (("looked", "baseline"), ("plain", "baseline"), ("looked", "gradsamp"))
    )
    control = of["looked", "gradsamp matched"]

    # Looking changes nothing: not a weight, not a sample.
    assert looked.weights_sha256 == plain.weights_sha256
    assert looked.samples_sha256 == plain.samples_sha256
    assert looked.quality == plain.quality
    assert looked.phases["train"].pieces == 6
    assert plain.phases["train"].pieces == 1

    # Every epoch has both metrics, and the last those of the trained model.
    assert all({"map", "map50", "loss"} <= point.keys() for point in looked.curve)
    assert not any("map" in point for point in plain.curve)
    assert {name: looked.curve[-1][name] for name in ("map", "map50")} == looked.quality
    assert [metric.better for metric in run.metrics["looked"].values()] == ["higher", "higher"]
    exported = energybench("export", folder, "--to", "curves", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(exported.stdout)))
    assert [float(row["quality_map"]) for row in rows if row["trial"] == looked.trial] == [
        point["map"] for point in looked.curve
    ]
    record = folder / "records" / f"{looked.trial}.json"
    assert "epoch 6: training loss" in energybench("show", record, cwd=tmp_path).stdout

    # Rounds of clients of any size: what was promised is what ran.
    for trial in (looked, sampled):
        counted = counting_runs[f"looked.{trial.method}"]
        assert trial.estimate is not None
        assert counted.counted_flop is not None
        in_steps = counted.counted_flop - counted.outside_steps_flop
        assert trial.estimate.estimated_flop == pytest.approx(in_steps, rel=1e-3)
        assert counted.passes == trial.passes
    assert looked.passes is not None
    assert looked.passes.epochs_trained == 6
    assert looked.estimate is not None
    planned = {(cell.workload, cell.method): cell.plain_flop for cell in run.cells}
    assert planned["looked", "baseline"] == pytest.approx(looked.estimate.plain_flop)

    # The control trains whole rounds, about as many steps as the method paid for.
    assert sampled.budget is not None
    assert control.passes is not None
    assert control.steps == sampled.budget.steps
    assert control.passes.epochs_trained == control.epochs
