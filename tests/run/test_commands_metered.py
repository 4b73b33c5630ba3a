"""Commands on machines with sensors: a fake card under the real binding, on the real clock. The truth is known.

How long a command took is nobody's claim here: its joules are held to the seconds of its own record, within the error
that stands there, and what is said of two commands to the joules of theirs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from command_line import energybench
from fakes.billed import assert_billed
from fakes.nvml import UUID, FakeDriver, FakeGpu
from tiny_runs import contents, only_run

from energybench.meter.reading import Reading
from energybench.stats.paired import Paired, paired

pytestmark = pytest.mark.slow

TICK_S = 0.01
SUITE = """schema = 1
suite = "tiny"
[trials]
blocks = 3
warmup = "0 s"
cooldown = { longest = "0 s" }
[[workload]]
name = "w"
command = "sleep 0.4"
quality = "none"
[[method]]
name = "half"
command = "sleep 0.2"
claims = { training = "50 %", from = "arithmetic" }
"""


@pytest.fixture
def card(fake_nvml_library: Path, tmp_path: Path) -> dict[str, str]:
    gpu = FakeGpu(power=300.0, tick_s=TICK_S)
    return {**FakeDriver(fake_nvml_library, [gpu]).environment(tmp_path), "ENERGYBENCH_POWERCAP": str(tmp_path / "no")}


def assert_told(row: dict[str, Any], joules: dict[tuple[str, int], float]) -> Paired:
    """What a comparison says is the mean of the paired log ratios of these joules, by (role, block)."""
    measured = row["measured"]
    assert measured["quantity"] == "energy"
    method, plain = ([joules[role, block] for block in range(3)] for role in ("method", "baseline"))
    expected = paired(method, plain)
    assert measured["saving_rel"] == pytest.approx(-math.expm1(expected.mean), rel=1e-6, abs=1e-9)
    assert measured["low_rel"] < measured["saving_rel"] < measured["high_rel"]
    return expected


def test_a_card_of_300_watts_is_billed_for_the_command_and_what_it_saves_is_told_of_its_joules(
    tmp_path: Path, card: dict[str, str]
) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE)
    done = energybench("run", "tiny.toml", cwd=tmp_path, **card)
    assert done.returncode == 0, done.stderr
    folder, joules = only_run(tmp_path), {}
    for trial in contents(folder)[1].values():
        assert trial.device == UUID
        assert trial.train is not None
        assert trial.train.wall_s >= (0.2 if trial.method == "half" else 0.4)
        joules[trial.role, trial.block] = assert_billed(trial.train, 300.0, "gpu_counter", UUID)
        assert not trial.train.cards[UUID].foreign_pids
        assert {"idle_before", "idle_after", "command"} <= set(trial.phases)
    facts = json.loads(energybench("report", folder, "--json", cwd=tmp_path).stdout)
    row = facts["workloads"][0]["rows"][0]
    assert row["measured"]["scope"] == "gpu"
    assert_told(row, joules)  # its interval is that of the pooled spread, with the twin's
    assert "Energy is measured: gpu by the card's energy counter" in done.stdout


def test_a_card_that_the_command_cannot_see_is_not_billed(fake_nvml_library: Path, tmp_path: Path) -> None:
    other = "GPU-00000000-0000-0000-0000-000000000002"
    gpus = [FakeGpu(power=300.0, tick_s=TICK_S), FakeGpu(uuid=other, power=100.0, tick_s=TICK_S)]
    environment = {**FakeDriver(fake_nvml_library, gpus).environment(tmp_path), "ENERGYBENCH_POWERCAP": str(tmp_path)}
    for asked, expected in (("1", {other}), (UUID, {UUID}), ("", set()), ("0,1", {UUID, other})):
        done = energybench(
            "measure", "--json", "--", "sleep", "0.15", cwd=tmp_path, **environment, CUDA_VISIBLE_DEVICES=asked
        )
        assert done.returncode == 0, done.stderr
        energy = json.loads(done.stdout)["phases"]["train"]["energy"]
        assert {e["device"] for e in energy if e["source"] == "gpu_counter"} == expected


def test_measure_says_joules_of_a_real_sensor_with_their_error(tmp_path: Path, card: dict[str, str]) -> None:
    done = energybench("measure", "--json", "--", "sleep", "0.3", cwd=tmp_path, **card)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    reading = record["phases"]["train"]
    assert reading["wall_s"] >= 0.3
    assert_billed(Reading.model_validate(reading), 300.0, "gpu_counter", UUID)
    told = energybench("measure", "--", "sleep", "0.3", cwd=tmp_path, **card).stderr
    assert "J gpu" in told
    assert "±" in told
    assert "the card's energy counter" in told


def test_two_commands_are_held_against_each_other_by_measured_energy(tmp_path: Path, card: dict[str, str]) -> None:
    call = ["measure", "--pairs", "3", "--warmup", "0", "--json", "--vs", "sleep 0.4", "--", "sleep", "0.2"]
    done = energybench(*call, cwd=tmp_path, **card)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    readings = {
        (trial["role"], trial["block"]): Reading.model_validate(trial["phases"]["train"]) for trial in found["trials"]
    }
    joules = {key: assert_billed(reading, 300.0, "gpu_counter", UUID) for key, reading in readings.items()}
    measured = found["comparison"]["measured"]
    interval = assert_told(found["comparison"], joules).saving_interval()
    assert (measured["low_rel"], measured["high_rel"]) == pytest.approx(interval)


def test_a_trial_whose_own_process_died_is_of_the_same_device_and_the_run_stays_one(
    tmp_path: Path, card: dict[str, str]
) -> None:
    """The command kills who meters it, so that the record comes from the run."""
    text = SUITE.replace('"sleep 0.2"', "\"sh -c 'kill -9 $PPID; sleep 9'\"").replace("blocks = 3", "blocks = 1")
    (tmp_path / "tiny.toml").write_text(text)
    done = energybench("run", "tiny.toml", cwd=tmp_path, **card)
    assert done.returncode == 3, done.stderr
    folder = only_run(tmp_path)
    found = {t.method: (t.status, t.device) for t in contents(folder)[1].values()}
    assert found == {"baseline": ("ok", UUID), "twin": ("ok", UUID), "half": ("out_of_memory", UUID)}
    assert "side by side" not in energybench("report", folder, cwd=tmp_path).stdout
