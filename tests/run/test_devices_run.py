"""A whole run whose trials train on two ranks: one record each, the node billed once, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import energybench
from fakes import in_children
from fakes.billed import assert_billed
from fakes.nvml import UUID, FakeDriver, FakeGpu
from fakes.powercap import Powercap
from tiny_runs import Done, contents, only_run, processes_with, suite_text

from energybench.meter.combine import metered

pytestmark = pytest.mark.slow

OTHER = "GPU-00000000-0000-0000-0000-000000000002"
CARD_W, NODE_W = {UUID: 300.0, OTHER: 200.0}, 60.0
EPOCHS, SAMPLES, BATCH = 2, 65, 16  # the last batch has one sample, which both ranks take
FORWARDED = EPOCHS * (SAMPLES + 1)
STEPS = EPOCHS * 5
# A step takes a while on each rank, so that the sensors' ticks fit into a training.
TIMED = """
import time
from energybench.workloads.tasks.classification import Classification


class Timed(Classification):
    def forward(self, run, batch):
        time.sleep(0.03)
        return super().forward(run, batch)
"""
WORKLOAD = f"""[[workload]]
name = "w"
task = "timed.py:Timed"
model = {{ use = "cnn", channels = [4, 4] }}
data = {{ use = "digits", batch = {BATCH}, subset = {SAMPLES}, test_subset = 32 }}
train = {{ epochs = {EPOCHS}, lr = 0.1, evaluate = "every epoch" }}
target = {{ metric = "accuracy", at_least = 2.0 }}
"""
METHODS = """
[[method]]
use = "ssprop"
drop = 0.5
schedule = "constant"
[[method]]
use = "gradsamp"
skip = "every:2"
"""
MARK = "ENERGYBENCH_TEST_OF_DEVICES"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, fake_nvml_library: Path) -> Done:
    home = tmp_path_factory.mktemp("devices")
    (home / "timed.py").write_text(TIMED)
    text = suite_text(METHODS, workload=WORKLOAD, devices=2, threads=2, twin=False)
    path = home / "s.toml"
    path.write_text(text.replace('energy = "off"', f"gpus = {json.dumps(list(CARD_W))}"), encoding="utf-8")
    machine = Powercap(home / "sys")
    machine.add("intel-rapl:0", "package-0", NODE_W)
    gpus = [FakeGpu(uuid=uuid, power=watts, tick_s=0.01) for uuid, watts in CARD_W.items()]
    sensors = in_children.environment(powercap=machine) | FakeDriver(fake_nvml_library, gpus).environment(home)
    process = energybench("run", path, cwd=home, fresh=True, **sensors, **{MARK: "1"})
    assert process.returncode == 0, process.stdout + process.stderr
    return Done(process, home, path, only_run(home))


def test_one_trial_is_one_record_of_both_ranks(done: Done) -> None:
    _, trials, counting_runs = contents(done.folder)
    assert sorted(t.method for t in trials.values()) == ["baseline", "gradsamp", "gradsamp matched", "ssprop"]
    for trial in (*trials.values(), *counting_runs.values()):
        assert (trial.status, trial.world) == ("ok", 2), trial.reason
    for trial in trials.values():
        assert trial.device == "cpu"
        assert trial.environment["threads"] == 2
        assert sum(trial.diagnostics["ranks"]["samples_forward"]) == trial.passes.samples_forward
        assert len(trial.curve) == trial.epochs
    plain = next(t for t in trials.values() if t.role == "baseline")
    assert plain.passes.samples_forward == FORWARDED
    assert sum(counts["samples"] for counts in plain.passes.keys.values()) == EPOCHS * SAMPLES
    assert plain.passes.updates == plain.steps == STEPS
    assert all("accuracy" in point for point in plain.curve)
    ssprop = next(t for t in trials.values() if t.method == "ssprop")
    assert "its own samples" in ssprop.diagnostics["ranks"]["differs"]["ssprop"]
    assert "on several devices" in (ssprop.turns.reason if ssprop.turns else "")


def test_each_card_and_the_processor_are_billed_once(done: Done) -> None:
    _, trials, _ = contents(done.folder)
    for trial in [trial for trial in trials.values() if trial.method in ("baseline", "ssprop")]:
        reading = trial.train
        assert reading is not None
        parts = [assert_billed(reading, watts, "gpu_counter", uuid) for uuid, watts in CARD_W.items()]
        parts.append(assert_billed(reading, NODE_W, "rapl", "package-0"))
        assert metered(reading).joules == pytest.approx(sum(parts))
        devices = [(each.source, each.device) for each in reading.energy]
        assert len(devices) == len(set(devices))
        assert not any(card.foreign_pids for card in reading.cards.values())


def test_the_window_is_as_long_as_the_slowest_rank_and_holds_both_ranks_steps(done: Done) -> None:
    _, trials, _ = contents(done.folder)
    plain = next(t for t in trials.values() if t.role == "baseline")
    assert plain.train is not None
    assert plain.train.wall_s >= 0.03 * STEPS
    assert plain.train.pieces == 2  # evaluated between the epochs, outside of it


def test_the_count_is_the_ledgers_sum_and_the_weights_are_the_counting_runs(done: Done) -> None:
    _, trials, counting_runs = contents(done.folder)
    for method in ("baseline", "ssprop"):
        counting_run = counting_runs[f"w.{method}"]
        assert counting_run.estimate is not None
        assert counting_run.counted_flop == pytest.approx(counting_run.estimate.estimated_flop, rel=1e-9)
        assert counting_run.counted_error_flop == 0
        trial = next(t for t in trials.values() if t.method == method)
        assert trial.budget is None or trial.budget.paid_rel == pytest.approx(1)
        assert trial.passes == counting_run.passes
        assert trial.weights_sha256 == counting_run.weights_sha256
        assert trial.samples_sha256 == counting_run.samples_sha256


def test_nothing_is_left_behind(done: Done) -> None:
    assert processes_with(MARK) == []
    assert sorted(part.name for part in done.folder.iterdir()) == [
        *("figures", "records", "report.md", "run.json", "traces", "witness")
    ]  # and no log: no rank said anything
