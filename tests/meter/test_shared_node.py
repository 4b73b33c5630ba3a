"""RAPL counts whole processors: it is read only where the node is this job's alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.clock import put_behind
from fakes.powercap import Powercap
from faults import fault
from hypothesis import given
from hypothesis import strategies as st

from energybench.cli import doctor
from energybench.common.processors import cpuset
from energybench.meter import rapl, survey
from energybench.meter.clock import REAL_TIME
from energybench.meter.sensors import MeterSelection, open_meters
from energybench.meter.shared_node import EXCLUSIVE, HOLDER, METERED_BY, node_claimed, shared_reason, slurm_cpus

NOWHERE = Path("/nonexistent")


@pytest.fixture(autouse=True)
def _undeclared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (EXCLUSIVE, HOLDER, METERED_BY):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environ", "shared"),
    [
        ({}, False),  # no engine
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "64"}, False),  # every CPU: --exclusive
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "63"}, True),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "64(x3)", "SLURM_NODEID": "2"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "64(x2),8", "SLURM_NODEID": "2"}, True),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "8,64", "SLURM_NODEID": "1"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "64"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "4"}, True),
        ({"SLURM_JOB_ID": "1"}, True),  # nobody says
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "64", "SLURM_OVERCOMMIT": "1"}, True),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "4", EXCLUSIVE: "1"}, False),  # declared
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "4", EXCLUSIVE: "0"}, True),
        ({METERED_BY: "another run"}, True),
        ({METERED_BY: "another run", EXCLUSIVE: "1"}, False),
    ],
)
def test_a_node_is_ours_where_the_job_has_all_of_it_or_it_is_declared(environ: dict[str, str], shared: bool) -> None:
    reason = shared_reason(environ, 64, NOWHERE)
    assert bool(reason) == shared
    if shared:
        assert EXCLUSIVE in reason  # what to type


@given(st.lists(st.tuples(st.integers(1, 256), st.integers(1, 4)), min_size=1, max_size=5), st.data())
def test_slurm_s_short_form_of_cpus_per_node_is_read(groups: list[tuple[int, int]], data: st.DataObject) -> None:
    text = ",".join(f"{cpus}(x{times})" if times > 1 else f"{cpus}" for cpus, times in groups)
    nodes = [cpus for cpus, times in groups for _ in range(times)]
    node = data.draw(st.integers(0, len(nodes) - 1))
    assert slurm_cpus({"SLURM_JOB_CPUS_PER_NODE": text, "SLURM_NODEID": str(node)}) == nodes[node]


@pytest.mark.parametrize("text", ["", "x", "4(x", "-4", "4;5", "4(x2"])
def test_what_slurm_does_not_say_is_not_known(text: str) -> None:
    assert slurm_cpus({"SLURM_JOB_CPUS_PER_NODE": text}) is None


@pytest.mark.parametrize(
    ("content", "expected"), [("0-7", 8), ("3", 1), ("0-3,8-11", 8), ("", None), ("all", None), ("0-1,3,7-9", 6)]
)
def test_a_control_group_s_processors_are_counted(tmp_path: Path, content: str, expected: int | None) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "cpuset.cpus.effective").write_text("0-63\n")
    (tmp_path / "job/cpuset.cpus.effective").write_text(f"{content}\n")
    own = tmp_path / "own"
    own.write_text("0::/job\n")
    assert cpuset(tmp_path, own) == (64 if expected is None else expected)
    assert cpuset(NOWHERE, NOWHERE) is None


def test_a_control_group_without_all_processors_is_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGYBENCH_SYSFS", str(tmp_path))
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    (tmp_path / "fs/cgroup/cpuset.cpus.effective").write_text("0-7\n")
    assert "8 of this node's 64 CPUs" in shared_reason({}, 64, NOWHERE)
    assert shared_reason({}, 8, NOWHERE) == ""


HOLDING = (
    "import sys\n"
    "from energybench.meter.shared_node import node_claimed, shared_reason\n"
    "with node_claimed():\n"
    "    print(shared_reason() or 'alone', flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.mark.parametrize("listed", ["class/powercap", "bus/event_source/devices/power"])
def test_a_second_run_on_a_node_is_told_of_the_first_and_what_stands_below_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    """By a real process: the claim is gone with the one that held it, however that ended."""
    monkeypatch.setenv("ENERGYBENCH_SYSFS", str(tmp_path))
    (tmp_path / listed).mkdir(parents=True)
    first = subprocess.Popen([sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "alone\n"
        with node_claimed():
            assert "another run of energybench" in shared_reason()
            with node_claimed():  # its own trials, and what they start
                assert "another run of energybench" in shared_reason()
        monkeypatch.setenv(HOLDER, str(first.pid))
        with node_claimed():
            assert shared_reason() == ""
        monkeypatch.delenv(HOLDER)
    finally:
        first.kill()
        first.communicate()
    with node_claimed(), node_claimed():
        assert shared_reason() == ""
    assert list((tmp_path / listed).iterdir()) == []


def test_a_claim_leaves_the_environment_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    with node_claimed():  # a machine without counters has nothing to claim
        assert dict(os.environ) == before
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(tmp_path))
    before = dict(os.environ)
    with node_claimed(wanted=False):
        assert dict(os.environ) == before
    with node_claimed():
        assert set(os.environ) - set(before) == {HOLDER}
    with monkeypatch.context() as patch:  # the second rank of a node leaves it to the first
        patch.setenv("LOCAL_RANK", "1")
        with node_claimed():
            assert HOLDER not in os.environ
    assert dict(os.environ) == before


# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Powercap(tmp_path / "sys")
    machine.add("intel-rapl:0", "package-0", 60.0)
    monkeypatch.setattr(rapl, "read_text", machine.only_when_read().read_text)
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(machine.flat))
    put_behind(monkeypatch, machine.time)


@fault("shared node")
@pytest.mark.parametrize("shared", [False, True])
def test_on_a_shared_node_rapl_is_not_read_and_the_reading_says_why(
    monkeypatch: pytest.MonkeyPatch, processor: None, shared: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "1" if shared else str(os.cpu_count()))
    if (os.cpu_count() or 1) == 1:
        pytest.skip("a machine with one processor is nobody else's too")
    meters = open_meters(MeterSelection(model={"any": 1}), "cpu")
    energy = []
    for meter in meters:
        meter.start()
        energy += meter.stop().energy
    of_processor = [each for each in energy if each.scope == "cpu"]
    told = survey.sensors(MeterSelection(), "cpu")
    rows = doctor._rapl(REAL_TIME)
    if not shared:
        assert "rapl" in {each.source for each in of_processor}
        assert "cpu" not in told["missing"]
        assert any(row["usable"] for row in rows)
        return
    assert [each.source for each in of_processor] == ["unavailable"]
    assert of_processor[0].energy_j is None
    assert "this Slurm job has 1 of this node's" in (of_processor[0].reason or "")
    assert not [each for each in energy if each.source.startswith("model(")]  # which would bill the others too
    assert told["measured"] == []
    assert "this Slurm job has 1 of this node's" in told["missing"]["cpu"]
    assert not any(row["usable"] for row in rows)
    assert any(EXCLUSIVE in row["remedy"] for row in rows)
