"""Which rank a process is, as launchers tell it, and who of a node reads what sees the whole node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fakes.clock import put_behind
from fakes.powercap import Powercap
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter import pool, ranks, rapl, survey
from energybench.meter.pool import MeterRequest
from energybench.meter.ranks import LAUNCHERS, READ_BY_THE_FIRST, Rank, local_rank, path_of_rank, siblings_among
from energybench.meter.sensors import MeterSelection, open_meters

NAMES = {name for launcher in LAUNCHERS for name in launcher} | set(ranks.OF_ONE_LAUNCH)
NAMES |= {"LOCAL_WORLD_SIZE", "SLURM_NTASKS"}


@pytest.fixture(autouse=True)
def nobody_launched_us(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    pool._idle.clear()
    yield
    pool._idle.clear()


def torchrun(local: int, rank: int, world: int, on_node: int) -> dict[str, str]:
    return {"LOCAL_RANK": f"{local}", "RANK": f"{rank}", "WORLD_SIZE": f"{world}", "LOCAL_WORLD_SIZE": f"{on_node}"}


def srun(local: int, rank: int, world: int) -> dict[str, str]:
    return {
        "SLURM_LOCALID": f"{local}",
        "SLURM_PROCID": f"{rank}",
        "SLURM_NTASKS": f"{world}",
        "SLURM_STEP_NUM_TASKS": f"{world}",
        "SLURM_STEP_ID": "0",
    }


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"LOCAL_RANK": "-1", "RANK": "-1"}, None),  # what some launchers say where they launch nothing
        ({"LOCAL_RANK": ""}, None),
        ({"RANK": "3", "WORLD_SIZE": "4"}, None),  # nobody says which one of its node it is
        (torchrun(0, 0, 4, 4), Rank(0, 0, 4, True)),
        (torchrun(3, 3, 4, 4), Rank(3, 3, 4, False)),
        (torchrun(0, 4, 8, 4), Rank(0, 4, 8, True)),  # the first one of the second node
        (srun(1, 5, 8), Rank(1, 5, 8, False)),
        ({"SLURM_LOCALID": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Rank(1, 1, 2, False)),
        # A batch script is told how many tasks the job may have, and is one process.
        ({"SLURM_LOCALID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Rank(0, 0, 1, True)),
        ({"SLURM_LOCALID": "0", "SLURM_NTASKS": "8", **torchrun(1, 1, 2, 2)}, Rank(1, 1, 2, False)),
        # One launcher per node starts the node's ranks: numbered through all nodes, or for each node anew.
        ({**srun(0, 1, 2), **torchrun(0, 2, 4, 2)}, Rank(0, 2, 4, True)),
        ({**srun(0, 1, 2), **torchrun(0, 0, 2, 2)}, Rank(0, 0, 2, True, 1)),
        ({**srun(1, 1, 2), **torchrun(0, 0, 2, 2)}, Rank(0, 0, 2, False, 1)),
        ({**srun(1, 1, 2), **torchrun(0, 0, 1, 1)}, Rank(1, 1, 2, False)),
        *(
            ({local: "2", number: "6", world: "8"}, Rank(2, 6, 8, False))
            for local, number, world in LAUNCHERS
            if number != "SLURM_PROCID"
        ),
    ],
)
def test_the_rank_is_what_the_launcher_says(environ: Mapping[str, str], expected: Rank | None) -> None:
    assert local_rank(environ) == expected


@given(
    nodes=st.integers(1, 3),
    tasks=st.integers(1, 3),
    each=st.integers(1, 3),
    nested=st.booleans(),
    through=st.booleans(),
)
def test_of_each_node_one_rank_is_the_first_and_no_two_records_have_one_name(
    nodes: int, tasks: int, each: int, nested: bool, through: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Tasks of a job step, each of which may launch ranks of its own, numbered through all or for each task anew."""
    path = tmp_path_factory.getbasetemp() / "none" / "out.json"
    environs: list[list[dict[str, str]]] = []
    for on_node in range(nodes):
        environs.append([])
        for local in range(tasks):
            task = on_node * tasks + local
            outer = srun(local, task, nodes * tasks)
            for inner in range(each) if nested else [0]:
                numbers = (task * each + inner, nodes * tasks * each) if through else (inner, each)
                environs[-1].append({**outer, **(torchrun(inner, *numbers, each) if nested else {})})
    for environ in environs:
        assert [ranks.reads_node(each) for each in environ].count(True) == 1
    every = [each for environ in environs for each in environ]
    names = {path_of_rank(path, each) for each in every}
    assert len(names) == len(every)
    assert (path in names) == (len(every) == 1)


def test_what_is_no_plain_file_is_written_to_by_every_rank(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        assert path_of_rank(path, torchrun(1, 1, 2, 2)) == path
    (tmp_path / "out.json").touch()
    assert path_of_rank(tmp_path / "out.json", torchrun(1, 1, 2, 2)) == tmp_path / "out.rank1.json"
    assert path_of_rank(tmp_path / "out.json", torchrun(0, 0, 1, 1)) == tmp_path / "out.json"


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Powercap(tmp_path / "sys")
    machine.add("intel-rapl:0", "package-0", 60.0)
    monkeypatch.setattr(rapl, "read_text", machine.only_when_read().read_text)
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(machine.flat))
    put_behind(monkeypatch, machine.time)


@pytest.mark.parametrize("first", [True, False])
def test_the_first_rank_of_a_node_alone_reads_its_processor(
    processor: None, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    for name, value in srun(0 if first else 1, 2 if first else 3, 4).items():
        monkeypatch.setenv(name, value)
    for meters in (open_meters(MeterSelection(), "cpu"), pool.MeterSet(MeterRequest("require")).meters):
        energy = [energy for meter in meters for energy in _once(meter)]
        reasons = [each.reason for each in energy if each.scope == "cpu" and each.source == "unavailable"]
        assert reasons == ([] if first else [READ_BY_THE_FIRST])
        assert any(each.source == "rapl" for each in energy) == first
    told = survey.sensors(MeterSelection(), "cpu")
    assert told["missing"].get("cpu") == (None if first else READ_BY_THE_FIRST)


def _once(meter: object) -> list[object]:
    meter.start()  # type: ignore[attr-defined]
    return meter.stop().energy  # type: ignore[attr-defined,no-any-return]


def test_no_model_of_the_whole_machine_stands_in_for_what_the_first_rank_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(tmp_path))
    for name, value in torchrun(1, 1, 2, 2).items():
        monkeypatch.setenv(name, value)
    sources = {
        energy.source  # type: ignore[attr-defined]
        for meters in (open_meters(MeterSelection(model={"any": 1}), "cpu"), pool.MeterSet(MeterRequest()).meters)
        for meter in meters
        for energy in _once(meter)
    }
    assert sources == {"unavailable"}


def test_ranks_of_one_launch_are_siblings_and_others_are_not() -> None:
    def started(environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-ISc", "import sys; print(flush=True); sys.stdin.read()"]
        process = subprocess.Popen(words, env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    one, other = {"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "b"}
    processes = [
        started({**torchrun(1, 1, 2, 2), **one}),
        started({**torchrun(1, 1, 2, 2), **other}),
        started(one),
        started(torchrun(1, 1, 2, 2)),  # its launch has no name, and its parent is not ours
    ]
    pids = [process.pid for process in processes]
    try:
        own = {**torchrun(0, 0, 2, 2), **one}
        assert siblings_among([*pids, os.getpid()], own) == {pids[0]}
        assert siblings_among(pids, torchrun(0, 0, 2, 2)) == set()
        assert siblings_among(pids, {}) == set()
    finally:
        for process in processes:
            process.communicate()
