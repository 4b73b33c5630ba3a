"""Children of the launcher: their own session, asleep parents, limits that hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import fault
from tiny_runs import environment, processes_with, wait_for, write_suite

from energybench.launch import Launcher, Outcome

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def launcher() -> Launcher:
    made = Launcher()
    made.warm()
    return made


@pytest.fixture
def call(launcher: Launcher, tmp_path: Path) -> Any:
    def run(function: str, given: str = "", **options: Any) -> tuple[Outcome, dict[str, Any]]:
        in_path, out_path = tmp_path / "in", tmp_path / "out"
        in_path.write_text(given)
        outcome = launcher.call(f"targets:{function}", in_path, out_path, **options)
        return outcome, json.loads(out_path.read_text()) if out_path.exists() else {}

    return run


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def test_a_child_leads_a_session_of_its_own_and_is_no_child_of_ours(call: Any) -> None:
    outcome, facts = call("describe", "hello")
    assert outcome.reason is None
    assert facts["given"] == "hello"
    assert facts["pid"] == facts["session"] == facts["group"]
    assert facts["session"] != os.getsid(0)
    assert facts["parent"] != os.getpid()
    assert facts["torch"]  # the server had it


def test_a_child_starts_in_milliseconds_once_the_server_stands(call: Any) -> None:
    call("describe")
    seconds = sorted(call("describe")[0].seconds for _ in range(7))[3]
    assert seconds < 1.0  # importing torch alone takes longer


def test_a_child_works_in_the_callers_folder_of_now(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(call("describe")[1]["cwd"]) == tmp_path


def test_relative_paths_are_the_callers(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").write_text("x")
    launcher.call("targets:talk", Path("in"), Path("out"), log=Path("log"))
    launcher.call("targets:describe", Path("in"), Path("out"))
    assert (tmp_path / "log").exists()
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("time_of", range(3))
def test_a_child_forked_after_the_preload_trains_within_seconds(call: Any, time_of: int) -> None:
    outcome, facts = call("train", limit_s=30)
    assert (outcome.reason, facts) == (None, {"finite": True})
    assert outcome.seconds < 15


def test_past_its_limit_a_child_is_killed_with_its_whole_group(call: Any) -> None:
    started = time.monotonic()
    outcome, facts = call("hang", limit_s=2.0)
    assert outcome.timed_out
    assert "2 s" in (outcome.reason or "")
    assert 2.0 <= time.monotonic() - started < 6
    wait_for(lambda: all(map(gone, facts["pids"])), 5)


def test_what_a_child_leaves_behind_is_swept(call: Any) -> None:
    outcome, facts = call("leave")
    assert outcome.reason is None
    wait_for(lambda: all(map(gone, facts["pids"])), 5)


def test_an_interrupt_of_the_parent_kills_the_child_and_is_passed_on(call: Any, tmp_path: Path) -> None:
    def tick(_: float) -> None:
        if (tmp_path / "out").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call("hang", tick=tick, tick_s=0.1)
    pids = json.loads((tmp_path / "out").read_text())["pids"]
    wait_for(lambda: all(map(gone, pids)), 5)


@fault("strays")
@pytest.mark.parametrize(
    "end", ["by itself", "at its limit", "killed", "with its guard killed", "by an interrupt"]
)
def test_nothing_that_a_child_starts_survives_it(call: Any, tmp_path: Path, end: str) -> None:
    """Sessions of their own, SIGTERM ignored, a daemon forked twice, workers, a process that forks all the time."""
    marker = f"launch-{os.getpid()}-{time.time_ns()}"
    seen: dict[str, Any] = {}

    def tick(_: float) -> None:
        if not seen and (tmp_path / "out").exists():
            seen.update(json.loads((tmp_path / "out").read_text()))
            seen["alive"] = len(processes_with(f"ESCAPED={marker}"))
            if end == "by an interrupt":
                raise KeyboardInterrupt
            if end.endswith("killed"):
                os.kill(seen["guard" if "guard" in end else "trial"], signal.SIGKILL)

    how = "end" if end == "by itself" else "hang"
    if end == "by an interrupt":
        with pytest.raises(KeyboardInterrupt):
            call("escape", f"{marker} {how}", tick=tick, tick_s=0.1)
    else:
        outcome, _ = call(
            "escape", f"{marker} {how}", tick=tick, tick_s=0.1, limit_s=4 if "limit" in end else 60
        )
        assert outcome.timed_out == (end == "at its limit")
        assert outcome.killed == end.endswith("killed")
    if how == "hang":
        assert seen["alive"] >= 11  # so that there was something to survive
    assert processes_with(f"ESCAPED={marker}") == []


def test_a_guard_sleeps_while_its_child_runs(call: Any, tmp_path: Path) -> None:
    used: list[float] = []

    def tick(elapsed_s: float) -> None:
        if elapsed_s > 1.5 and not used and (tmp_path / "out").exists():
            child = json.loads((tmp_path / "out").read_text())["pids"][0]
            guard = psutil.Process(child).parent()
            assert guard is not None
            used.append(sum(guard.cpu_times()[:2]))

    call("hang", limit_s=2.5, tick=tick, tick_s=0.25)
    assert used[0] < 0.1  # its own start


def test_a_child_that_finds_no_room_says_so_by_its_status(call: Any, tmp_path: Path) -> None:
    outcome, _ = call("cannot_write", log=tmp_path / "log")
    assert (outcome.unwritten, outcome.killed) == (True, False)
    assert "E620" in (tmp_path / "log").read_text()[:100]


def test_a_killed_server_is_replaced_and_its_child_is_gone_before_we_go_on(call: Any, tmp_path: Path) -> None:
    pids: list[int] = []

    def tick(_: float) -> None:
        if not pids and (tmp_path / "out").exists():
            pids.extend(json.loads((tmp_path / "out").read_text())["pids"])
            guard = psutil.Process(pids[0]).parent()
            assert guard is not None
            server = guard.parent()
            assert server is not None
            server.kill()

    outcome, _ = call("hang", tick=tick, tick_s=0.1)
    assert outcome.reason == "the process that starts trials was killed"
    assert all(map(gone, pids))
    assert call("describe", "again")[1]["given"] == "again"


@pytest.mark.parametrize("status", [1, 7, 255])
def test_a_status_is_told(call: Any, status: int) -> None:
    outcome, _ = call("exit_with", str(status))
    assert (outcome.reason, outcome.killed) == (f"it ended with status {status}", False)


def test_a_signal_is_told_by_name(call: Any) -> None:
    outcome, _ = call("kill_self")
    assert outcome.killed
    assert "SIGKILL" in (outcome.reason or "")


def test_output_goes_to_the_log_whoever_writes_it(
    call: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    call("talk", log=tmp_path / "log")
    assert {"to stdout", "to stderr", "from a shell"} <= set((tmp_path / "log").read_text().splitlines())
    assert capfd.readouterr() == ("", "")


def test_a_trace_goes_to_the_log(call: Any, tmp_path: Path) -> None:
    outcome, _ = call("fail", log=tmp_path / "log")
    assert outcome.reason == "it ended with status 1"
    text = (tmp_path / "log").read_text()
    assert "about to fail" in text
    assert "a trace for the log" in text


def test_the_parent_sleeps_while_a_child_runs(call: Any) -> None:
    """Machine-wide energy is metered: a parent that spins would be billed."""
    call("describe")
    before = time.process_time()
    call("hang", limit_s=2.0, tick=lambda _: None, tick_s=0.5)
    assert time.process_time() - before < 0.1


def test_ticks_come_while_a_child_runs(call: Any) -> None:
    ticks: list[float] = []
    call("hang", limit_s=1.2, tick=ticks.append, tick_s=0.25)
    assert 2 <= len(ticks) <= 5
    assert ticks == sorted(ticks)


def test_the_launcher_adds_no_thread(call: Any) -> None:
    before = threading.active_count()
    call("describe")
    assert threading.active_count() == before


def test_a_whole_run_leaves_torch_out_of_the_parent(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, '\n[[method]]\nuse = "dropout"\n')
    script = f"""
import sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "fvcore"):
            raise AssertionError("the parent imports " + name)
sys.meta_path.insert(0, Hook())
from rich.console import Console
from energybench import runner
from energybench.progress import Progress
from energybench.suite import load
code, folder = runner.run(load({str(suite)!r}), argv=["test"],
                          progress=Progress(Console(stderr=True), Console()))
assert not {{"torch", "torchvision", "fvcore"}} & set(sys.modules)
print("code", code)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True,
                          text=True, timeout=120, check=False)  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["code 0"], done.stderr
