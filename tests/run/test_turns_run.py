"""Trials in turns as they are: processes that are stopped and called, and what goes wrong in one of them."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE_S, energybench, start
from faults import fault
from tiny_runs import contents, only_run, processes_with, wait_for, write_suite

from energybench.process import forkserver
from energybench.process.forkserver import Launcher
from energybench.records.record import Cell
from energybench.runner.group import TurnTrial
from energybench.runner.schedule import Slot

pytestmark = pytest.mark.slow

WORKLOAD = """[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 12, lr = 0.1 }
"""
RAISES = '''"""raises: an error in its third epoch, in a metered trial"""
from energybench import Method


class Raises(Method):
    def epoch(self, run, data, inner):
        inner(data)
        if run.epoch_number == 3 and not counted(run):
            raise ValueError("no more")


def counted(run):
    return type(run).__name__ == "CountedRun" or "Timed" in type(run).__name__
'''
DIVERGES = '''"""diverges: its weights are no numbers any more after the second epoch"""
import torch
from energybench import Method


class Diverges(Method):
    def epoch(self, run, data, inner):
        inner(data)
        if run.epoch_number == 2:
            with torch.no_grad():
                next(iter(run.model.parameters())).fill_(float("nan"))
'''
EXITS = '''"""exits: its process is gone in the fourth epoch of a metered trial"""
import os
from energybench import Method


class Exits(Method):
    def epoch(self, run, data, inner):
        inner(data)
        if run.epoch_number == 4 and type(run).__name__ == "PausingRun":
            os._exit(7)
'''
HANGS = '''"""hangs: waits for a file in the middle of a metered trial, beside a process of its own"""
import subprocess, sys, time
from pathlib import Path
from energybench import Method

HERE = Path(__file__).parent


class Hangs(Method):
    def epoch(self, run, data, inner):
        inner(data)
        if run.epoch_number == 6 and type(run).__name__ == "PausingRun":
            subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
            (HERE / "held").touch()
            while not (HERE / "go").exists():
                time.sleep(0.02)
'''


HALF = '''"""half: every second step alone"""
from energybench import Method


class Half(Method):
    def step(self, run, batch, inner):
        if run.step_in_epoch % 2 == 0:
            inner(batch)
'''


def own(folder: Path, *sources: str) -> str:
    names = [source[3:].partition(":")[0] for source in sources]
    for name, source in zip(names, sources, strict=True):
        (folder / f"{name}.py").write_text(source)
    return "".join(f'\n[[method]]\nuse = "{name}.py"\n' for name in names) + '\n[[method]]\nuse = "dropout"\n'


@fault("one of a group")
def test_what_goes_wrong_in_one_trial_takes_no_other_with_it_and_weights_are_those_of_a_trial_alone(
    tmp_path: Path,
) -> None:
    suite = write_suite(tmp_path, own(tmp_path, RAISES, DIVERGES, EXITS), workload=WORKLOAD, turns=3)
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    run, trials, counted = contents(only_run(tmp_path))
    by_method = {trial.method: trial for trial in trials.values()}
    status = {method: trial.status for method, trial in by_method.items()}
    ended = {"raises": "failed", "diverges": "diverged", "exits": "failed"}
    assert status == {"baseline": "ok", "twin": "ok", "dropout": "ok", **ended}
    assert "no more" in (by_method["raises"].reason or "")
    assert "status 7" in (by_method["exits"].reason or "")
    for method in ("baseline", "dropout"):  # the counting run never rests
        assert by_method[method].weights_sha256 == counted[f"w.{method}"].weights_sha256
        assert by_method[method].samples_sha256 == counted[f"w.{method}"].samples_sha256
    assert by_method["twin"].weights_sha256 == by_method["baseline"].weights_sha256
    assert by_method["baseline"].quality == by_method["twin"].quality
    assert run.order_seed is not None
    for trial in by_method.values():
        assert trial.turns is not None
        assert trial.turns.parts is not None
        assert 2 <= trial.turns.parts <= 3
        assert set(trial.turns.cells) == set(by_method)
    for method in ("baseline", "twin", "dropout"):
        trial = by_method[method]
        assert trial.train is not None
        assert trial.process is not None
        assert trial.turns is not None
        assert trial.train.pieces == trial.turns.parts
        assert trial.process.rested_s > 0  # the window is its own: without it and the rests there is little left
        accounted = sum(reading.wall_s for reading in trial.phases.values())
        assert accounted + trial.process.rested_s <= trial.process.wall_s + 0.01
        assert not [flag for flag in trial.flags if flag.code == "clock_differs"]


def test_a_matched_control_has_its_turns_in_a_later_group_beside_plain_training_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(HALF)
    suite = write_suite(tmp_path, '\n[[method]]\nuse = "half.py"\n', workload=WORKLOAD, turns=2, twin=False)
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, trials, _ = contents(only_run(tmp_path))
    groups = {(t.method, t.group): t for t in trials.values()}
    assert set(groups) == {("baseline", 0), ("half", 0), ("baseline", 1), ("half matched", 1)}
    plain, again = groups["baseline", 0], groups["baseline", 1]
    method, control = groups["half", 0], groups["half matched", 1]
    assert plain.weights_sha256 == again.weights_sha256
    assert plain.steps == 48
    assert method.budget is not None
    assert control.steps == method.budget.steps == 24  # steps of 16, four in an epoch
    assert control.started_at >= method.started_at
    for trial in groups.values():
        assert trial.status == "ok"
        assert trial.turns is not None
        assert trial.turns.parts == 2
        assert trial.train is not None
        assert trial.train.pieces == 2
    report = (only_run(tmp_path) / "report.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "Against plain training for the 24 of 48 steps that it paid for" in report


@fault("interrupted turns")
def test_an_interrupt_ends_those_that_rest_too_and_the_same_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite(tmp_path, own(tmp_path, HANGS), workload=WORKLOAD, turns=3, twin=False)
    marker = f"energybench-turns-{os.getpid()}-{time.time_ns()}"
    monkeypatch.setenv("TEST_MARKER", marker)
    running = start("run", suite, cwd=tmp_path)
    monkeypatch.delenv("TEST_MARKER")
    wait_for((tmp_path / "held").exists)
    states = {_state(pid) for pid in processes_with(marker)}
    assert "T" in states  # siblings are stopped, wherever they stand
    os.killpg(running.pid, signal.SIGINT)
    running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    wait_for(lambda: not processes_with(marker))
    (tmp_path / "go").touch()
    again = energybench("run", suite, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    _, trials, _ = contents(only_run(tmp_path))
    assert {(t.method, t.status, t.invocation) for t in trials.values()} == {
        (method, "ok", 1) for method in ("baseline", "hangs", "dropout")
    }


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return ""


class Limits:
    """The clock that limits are held to: the real one, and as much more as a test lets pass."""

    passed_s = 0.0
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return time.monotonic() + self.passed_s


def made(
    launcher: Launcher, place: Path, limit_s: float, tick: Any = lambda _: None, entry: str = "converse"
) -> TurnTrial:
    (place / "in").write_text("{}")
    child = launcher.start(f"targets:{entry}", place / "in", place / "out", log=place / "log", conversing=True)
    slot = Slot(Cell(workload="w", method="m", role="method"), 0, 0, 0)
    return TurnTrial(slot, None, child, place / "out", limit_s, tick, {})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def launcher() -> Launcher:
    found = Launcher()
    found.warm()
    return found


def test_a_limit_holds_for_a_trials_own_seconds_and_ends_it(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Limits()
    monkeypatch.setattr(forkserver, "time", clock)

    def tick(_: float) -> None:
        clock.passed_s += 100.0 * (tmp_path / "hanging").exists()

    trial = made(launcher, tmp_path, 300.0, tick)
    assert trial.set_up()
    clock.passed_s += 3600.0  # an hour of its siblings' turns
    rest = trial.turn(0.25)
    assert rest is not None
    assert rest.progress == 0.25
    assert trial.outcome is None
    clock.passed_s += 3600.0
    (tmp_path / "hang").touch()
    monkeypatch.setattr(forkserver.Child, "wait", _ticking(forkserver.Child.wait))
    assert trial.turn(0.5) is None
    assert trial.outcome is not None
    assert trial.outcome.timed_out
    assert trial.outcome.rested_s >= 7200.0
    assert trial.finish() is trial.outcome
    assert trial.turn(0.75) is None


def _ticking(wait: Any) -> Any:
    return lambda child, limit_s, tick, tick_s=5.0, hearing=False: wait(child, limit_s, tick, 0.02, hearing=hearing)


def test_who_rests_is_stopped_with_all_that_it_has_started_and_goes_on_where_it_was(
    launcher: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "family").touch()
    trial = made(launcher, tmp_path, 600.0)
    try:
        assert trial.set_up()
        assert trial.turn(0.25) is not None
        family = trial._child.pids()
        assert len(family) == 2
        wait_for(lambda: {_state(pid) for pid in family} == {"T"})
        assert trial.turn(0.5) is not None
        assert trial.turn(math.inf) is None
        assert trial.outcome is None  # it has trained, and rests before its evaluation
        outcome = trial.finish()
    finally:
        trial.end()
    assert outcome.reason is None
    assert outcome.rested_s > 0
    assert json.loads((tmp_path / "out").read_text())["told"] == [0.25, 0.5, None, None]
    assert all(_state(pid) in ("", "Z", "X") for pid in family)


def test_one_that_ends_while_it_is_set_up_has_no_turn(launcher: Launcher, tmp_path: Path) -> None:
    trial = made(launcher, tmp_path, 600.0, entry="leave_early")
    assert not trial.set_up()
    assert trial.outcome is not None
    assert trial.turn(0.5) is None
    assert trial.finish() is trial.outcome


def test_ending_one_leaves_its_siblings(launcher: Launcher, tmp_path: Path) -> None:
    places = [tmp_path / name for name in "ab"]
    trials = []
    for place in places:
        place.mkdir()
        trials.append(made(launcher, place, 600.0))
        assert trials[-1].set_up()
    trials[0].end()
    assert trials[1].turn(math.inf) is None
    assert trials[1].finish().reason is None
