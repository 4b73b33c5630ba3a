"""Several ranks that train together: the node's energy once, each card's once, whoever read it. The truth is known."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE_S, energybench
from fakes import in_children
from fakes.billed import assert_billed
from fakes.nvml import UUID, FakeDriver, FakeGpu
from fakes.powercap import Powercap
from hypothesis import given
from hypothesis import strategies as st
from run.tiny_runs import contents, only_run

from energybench.meter.combine import metered
from energybench.meter.ranks import MAYBE_SHARED, READ_BY_THE_FIRST
from energybench.meter.reading import Energy, Reading
from energybench.records.reader import read
from energybench.records.record import Trial
from energybench.windows.file import WindowLine, WindowsFile, qualities, read_windows, summed, training

OTHER = "GPU-00000000-0000-0000-0000-000000000002"
NODE_W, CARD_W = 60.0, {UUID: 300.0, OTHER: 200.0}
RANK = """import energybench, pathlib, sys, time
while not pathlib.Path("go").exists():
    time.sleep(0.01)
with energybench.measure("train", record="out.json", gpus=sys.argv[1:] or "used") as window:
    time.sleep(0.5)
    window.steps, window.samples = 3, 12
"""
LAUNCH = f"""import os, subprocess, sys
cards = {[UUID, OTHER]!r}
ranks = [
    subprocess.Popen(
        [sys.executable, "rank.py", cards[rank]],
        env=dict(os.environ, LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2"),
    )
    for rank in range(2)
]
sys.exit(max(rank.wait() for rank in ranks))
"""


def environ(rank: int) -> dict[str, str]:
    return {"LOCAL_RANK": f"{rank}", "RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def node(tmp_path: Path, fake_nvml_library: Path) -> dict[str, str]:
    """The environment of a node with two cards and one processor."""
    machine = Powercap(tmp_path / "sys")
    machine.add("intel-rapl:0", "package-0", NODE_W)
    (tmp_path / "rank.py").write_text(RANK)
    return in_children.environment(powercap=machine) | cards(tmp_path, fake_nvml_library)


def cards(folder: Path, library: Path, pids: Sequence[Sequence[int]] = ((), ())) -> dict[str, str]:
    gpus = [
        FakeGpu(uuid=uuid, power=CARD_W[uuid], tick_s=0.01, compute=[(pid,) for pid in on_card])
        for uuid, on_card in zip((UUID, OTHER), pids, strict=True)
    ]
    return FakeDriver(library, gpus).environment(folder)


def by_rank(lines: Sequence[WindowLine]) -> dict[int | None, WindowLine]:
    found = {line.rank: line for line in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize("shared", [False, True], ids=["a card each", "both on both cards"])
def test_two_ranks_bill_their_node_once_and_each_card_once(
    tmp_path: Path, node: dict[str, str], fake_nvml_library: Path, shared: bool
) -> None:
    windows = tmp_path / "windows.jsonl"
    kept = {**os.environ, **node, "ENERGYBENCH_WINDOWS": str(windows)}
    running = [
        subprocess.Popen([sys.executable, "rank.py"], cwd=tmp_path, env={**kept, **environ(rank)}) for rank in (0, 1)
    ]
    pids = [process.pid for process in running]
    cards(tmp_path, fake_nvml_library, [pids, pids] if shared else [pids[:1], pids[1:]])  # the driver lists them
    (tmp_path / "go").touch()
    assert [process.wait(PATIENCE_S) for process in running] == [0, 0]
    lines = by_rank(read_windows(windows))
    zero, one = (lines[rank].reading for rank in (0, 1))
    assert zero is not None
    assert one is not None
    assert [each.reason for each in one.energy if each.scope == "cpu"] == [READ_BY_THE_FIRST]
    expected = {
        ("rapl", "cpu", "package-0"): assert_billed(zero, NODE_W, "rapl", "package-0"),
        ("gpu_counter", "gpu", UUID): assert_billed(zero, CARD_W[UUID], "gpu_counter", UUID),
        ("gpu_counter", "gpu", OTHER): assert_billed(one, CARD_W[OTHER], "gpu_counter", OTHER),
    }
    if shared:  # each saw both cards: the longer of both windows stands
        longer = max(zero, one, key=lambda reading: reading.wall_s)
        for uuid, watts in CARD_W.items():
            expected["gpu_counter", "gpu", uuid] = assert_billed(longer, watts, "gpu_counter", uuid)
    else:
        assert {each.device for each in zero.energy if each.scope == "gpu"} == {UUID}
        assert {each.device for each in one.energy if each.scope == "gpu"} == {OTHER}
    together = training(lines.values())
    assert together is not None
    assert together.wall_s == max(zero.wall_s, one.wall_s)
    assert together.cpu_s == pytest.approx((zero.cpu_s or 0) + (one.cpu_s or 0))
    found = metered(together)
    assert found.channels == set(expected)
    assert found.joules == pytest.approx(sum(expected.values()))
    assert all("unavailable" not in each.source for each in together.energy)
    assert not (tmp_path / "out.json").exists()  # no rank's record passes for the whole
    for rank in (0, 1):
        (line,) = read(tmp_path / f"out.rank{rank}.json", WindowsFile).windows
        assert line == lines[rank]


@pytest.mark.slow
def test_a_trial_whose_command_launches_ranks_is_billed_the_node_and_its_cards_once(
    tmp_path: Path, node: dict[str, str]
) -> None:
    (tmp_path / "go").touch()
    (tmp_path / "launch.py").write_text(LAUNCH)
    (tmp_path / "s.toml").write_text(
        f"""schema = 1
suite = "tiny"
trials = {{ blocks = 1, warmup = "0 s", twin = false, cooldown = {{ longest = "0 s" }} }}
[[workload]]
name = "w"
command = "{sys.executable} launch.py"
quality = "none"
[[method]]
name = "same"
command = "{sys.executable} launch.py"
"""
    )
    done = energybench("run", "s.toml", cwd=tmp_path, fresh=True, **node)
    assert done.returncode == 0, done.stderr
    for trial in contents(only_run(tmp_path))[1].values():
        assert trial.environment["metered"] == "the script's own window 'train'"
        assert trial.train is not None
        found = metered(trial.train)
        assert {device for _, _, device in found.channels} == {"package-0", UUID, OTHER}
        watts = NODE_W + sum(CARD_W.values())
        assert found.error_j is not None
        # The ranks' windows are not of the same length: what one of them was shorter is all that it may lack.
        assert found.joules <= watts * trial.train.wall_s + found.error_j + 0.02 * watts
        assert found.joules >= NODE_W * 0.5 + CARD_W[UUID] * 0.5 + CARD_W[OTHER] * 0.5 - found.error_j
        assert (trial.steps, trial.samples) == (3, 24)


@pytest.mark.slow
def test_a_command_measured_in_each_rank_bills_the_node_once(tmp_path: Path, node: dict[str, str]) -> None:
    """As `srun energybench measure -- python train.py`; which cards a rank's command uses cannot be seen there."""
    energies: list[list[Energy]] = []
    for rank, visible in ((0, None), (1, None), (1, OTHER)):
        more = {**node, **environ(rank), **({"CUDA_VISIBLE_DEVICES": visible} if visible else {})}
        done = energybench("measure", "-o", "out.json", "--", "sleep", "0.3", cwd=tmp_path, fresh=True, **more)
        assert done.returncode == 0, done.stderr
        trial = read(tmp_path / f"out.rank{rank}.json", Trial)
        assert trial.train is not None
        energies.append(trial.train.energy)
    assert not (tmp_path / "out.json").exists()
    first, second, own = ({e.device for e in each if e.energy_j is not None} for each in energies)
    assert (first, second, own) == ({UUID, OTHER, "package-0"}, set(), {OTHER})
    told = {(each.device, each.reason) for each in energies[1]}
    assert told == {("", READ_BY_THE_FIRST), (UUID, MAYBE_SHARED), (OTHER, MAYBE_SHARED)}


# ── sums, from physics ────────────────────────────────────────────────────────────────────────────────────────────


def reading(rank: int, seconds: float, shared: bool = False, **more: Any) -> Reading:
    """What rank `rank` of a node of 60 W with a card of 100 W per rank, or one for all, reads in so many seconds."""
    cpu = Energy(source="rapl", scope="cpu", device="package-0", energy_j=NODE_W * seconds, error_j=0.1)
    absent = Energy(source="unavailable", scope="cpu", reason=READ_BY_THE_FIRST)
    uuid = f"GPU-{0 if shared else rank}"
    card = Energy(source="gpu_counter", scope="gpu", device=uuid, energy_j=100.0 * seconds, error_j=0.2)
    known = {"cpu_s": seconds, "other_cpu_s": 10.0 * seconds, "steal_s": 0.5}
    return Reading(wall_s=seconds, energy=[absent if rank else cpu, card], **{**known, **more})


def line(rank: int | None, start: float, stop: float, node: str | None = "a", **more: Any) -> WindowLine:
    usual = {"name": "train", "reading": reading(rank or 0, stop - start), "rank": rank, "node": node}
    return WindowLine(start_s=start, stop_s=stop, **{**usual, **more})


@given(
    ranks=st.integers(1, 5),
    epochs=st.integers(1, 4),
    seconds=st.floats(0.5, 100.0),
    late=st.lists(st.floats(0.0, 0.4), min_size=5, max_size=5),
    shared=st.booleans(),
)
def test_the_energy_of_a_node_does_not_depend_on_how_many_ranks_it_has(
    ranks: int, epochs: int, seconds: float, late: list[float], shared: bool
) -> None:
    lines = [
        line(rank, start + late[rank], start + late[rank] + seconds, reading=reading(rank, seconds, shared))
        for rank in range(ranks)
        for start in [epoch * (seconds + 1.0) for epoch in range(epochs)]
    ]
    together = summed(lines)
    assert together is not None
    found = metered(together)
    cards = 1 if shared else ranks
    assert found.joules == pytest.approx((NODE_W + 100.0 * cards) * seconds * epochs)
    assert found.error_j == pytest.approx((0.1 + 0.2 * cards) * epochs)
    assert together.wall_s == pytest.approx(seconds * epochs)
    assert together.cpu_s == pytest.approx(ranks * seconds * epochs)
    assert together.other_cpu_s == pytest.approx((10.0 - (ranks - 1)) * seconds * epochs)  # siblings are no others
    assert together.steal_s == pytest.approx(0.5 * epochs)
    assert together.pieces == epochs


@given(nodes=st.integers(2, 4), ranks=st.integers(1, 3), start=st.lists(st.floats(0, 1e6), min_size=4, max_size=4))
def test_nodes_add_up_though_their_clocks_have_nothing_in_common(nodes: int, ranks: int, start: list[float]) -> None:
    lines = []
    for node in range(nodes):
        for rank in range(ranks):
            own = reading(rank, 10.0)
            named = [
                e.model_copy(update={"device": f"{e.device}-{node}"}) if e.scope == "gpu" else e for e in own.energy
            ]
            own = own.model_copy(update={"energy": named})
            at = {"start": start[node], "stop": start[node] + 10.0}
            lines.append(line(node * ranks + rank, **at, node=f"n{node}", reading=own))
    together = summed(lines)
    assert together is not None
    assert together.wall_s == 10.0
    assert metered(together).joules == pytest.approx(nodes * (NODE_W + 100.0 * ranks) * 10.0)


def test_what_one_node_cannot_measure_has_no_partial_total() -> None:
    blind = Reading(wall_s=10.0, energy=[Energy(source="unavailable", scope="cpu", reason="RAPL denied")])
    together = summed([line(0, 0, 10), line(1, 5, 15, node="b", reading=blind)])
    assert together is not None
    (cpu,) = [energy for energy in together.energy if energy.source == "rapl"]
    assert (cpu.energy_j, cpu.reason) == (None, "RAPL denied")


def test_a_stretch_without_its_nodes_first_rank_has_no_total_of_the_node() -> None:
    together = summed([line(0, 0, 10), line(1, 0, 10), line(1, 20, 30)])
    assert together is not None
    assert not [energy for energy in together.energy if energy.scope == "cpu" and energy.energy_j is not None]
    assert READ_BY_THE_FIRST in {energy.reason for energy in together.energy}


def test_only_windows_of_several_ranks_may_overlap() -> None:
    assert summed([line(0, 0, 10), line(0, 5, 15), line(1, 0, 10)]) is None
    assert summed([line(0, 0, 10), line(None, 5, 15)]) is None  # a launcher that was metered too
    assert summed([line(0, 0, 10, node=None), line(1, 5, 15)]) is None
    assert summed([line(0, 0, 10), line(1, 0, 10, reading=None)]) is None


def test_the_first_ranks_word_on_quality_holds() -> None:
    lines = [line(0, 0, 1, quality={"a": 0.5}), line(1, 0, 2, quality={"a": 0.7, "b": 1.0})]
    assert qualities(lines) == {"a": 0.5, "b": 1.0}
