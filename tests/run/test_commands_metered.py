"""Commands on machines with sensors: a fake card under the real binding, on the real clock. The truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.nvml import UUID, FakeDriver, FakeGpu
from tiny_runs import contents, energybench, only_run

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
command = "sleep 1.2"
quality = "none"
[[method]]
name = "half"
command = "sleep 0.6"
claims = { training = "50 %", from = "arithmetic" }
"""


@pytest.fixture
def card(fake_nvml_library: Path, tmp_path: Path) -> dict[str, str]:
    gpu = FakeGpu(power=300.0, tick_s=TICK_S)
    return {
        **FakeDriver(fake_nvml_library, [gpu]).environment(tmp_path),
        "ENERGYBENCH_POWERCAP": str(tmp_path / "no"),
    }


def test_a_card_of_300_watts_is_billed_for_the_command_and_half_as_long_saves_half(
    tmp_path: Path, card: dict[str, str]
) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE)
    done = energybench("run", "tiny.toml", cwd=tmp_path, **card)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    for trial in contents(folder)[1].values():
        assert trial.device == UUID
        assert trial.train is not None
        counter = next(e for e in trial.train.energy if e.source == "gpu_counter")
        assert counter.energy_j == pytest.approx(300 * trial.train.wall_s, rel=0.05)
        assert not trial.train.cards[UUID].foreign_pids
        assert {"idle_before", "idle_after", "command"} <= set(trial.phases)
    facts = json.loads(energybench("report", folder, "--json", cwd=tmp_path).stdout)
    row = facts["workloads"][0]["rows"][0]
    assert (row["measured"]["quantity"], row["measured"]["scope"]) == ("energy", "gpu")
    assert row["measured"]["saving_rel"] == pytest.approx(0.5, abs=0.05)
    if not row["flags"]:
        assert row["verdict"] == "saves"
    assert "Energy is measured: gpu by the card's energy counter" in done.stdout


def test_a_card_that_the_command_cannot_see_is_not_billed(fake_nvml_library: Path, tmp_path: Path) -> None:
    other = "GPU-00000000-0000-0000-0000-000000000002"
    gpus = [FakeGpu(power=300.0, tick_s=TICK_S), FakeGpu(uuid=other, power=100.0, tick_s=TICK_S)]
    environment = {
        **FakeDriver(fake_nvml_library, gpus).environment(tmp_path),
        "ENERGYBENCH_POWERCAP": str(tmp_path),
    }
    for asked, expected in (("1", {other}), (UUID, {UUID}), ("", set()), ("0,1", {UUID, other})):
        done = energybench(
            "measure", "--json", "--", "sleep", "0.5", cwd=tmp_path, **environment, CUDA_VISIBLE_DEVICES=asked
        )
        assert done.returncode == 0, done.stderr
        energy = json.loads(done.stdout)["phases"]["train"]["energy"]
        assert {e["device"] for e in energy if e["source"] == "gpu_counter"} == expected


def test_measure_says_joules_of_a_real_sensor_with_their_error(tmp_path: Path, card: dict[str, str]) -> None:
    done = energybench("measure", "--json", "--", "sleep", "1.0", cwd=tmp_path, **card)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    reading = record["phases"]["train"]
    counter = next(e for e in reading["energy"] if e["source"] == "gpu_counter")
    assert counter["energy_j"] == pytest.approx(300 * reading["wall_s"], rel=0.05)
    told = energybench("measure", "--", "sleep", "1.0", cwd=tmp_path, **card).stderr
    assert "J gpu" in told
    assert "±" in told
    assert "the card's energy counter" in told


def test_two_commands_are_held_against_each_other_by_measured_energy(
    tmp_path: Path, card: dict[str, str]
) -> None:
    call = ["measure", "--pairs", "3", "--warmup", "0", "--json", "--vs", "sleep 1.2", "--", "sleep", "0.6"]
    done = energybench(*call, cwd=tmp_path, **card)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["comparison"]
    assert row["measured"]["quantity"] == "energy"
    assert row["measured"]["saving_rel"] == pytest.approx(0.5, abs=0.05)


def test_a_trial_whose_own_process_died_is_of_the_same_device_and_the_run_stays_one(
    tmp_path: Path, card: dict[str, str]
) -> None:
    """The command kills who meters it, so that the record comes from the run."""
    text = SUITE.replace('"sleep 0.6"', "\"sh -c 'kill -9 $PPID; sleep 9'\"").replace(
        "blocks = 3", "blocks = 1"
    )
    (tmp_path / "tiny.toml").write_text(text)
    done = energybench("run", "tiny.toml", cwd=tmp_path, **card)
    assert done.returncode == 3, done.stderr
    folder = only_run(tmp_path)
    found = {t.method: (t.status, t.device) for t in contents(folder)[1].values()}
    assert found == {"baseline": ("ok", UUID), "twin": ("ok", UUID), "half": ("out_of_memory", UUID)}
    assert "side by side" not in energybench("report", folder, cwd=tmp_path).stdout
