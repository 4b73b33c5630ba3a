"""Children of the launcher: their own session, asleep parents, limits that hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import environment
from faults import fault
from tiny_runs import processes_with, wait_for, write_suite

from energybench.process import forkserver as launch
from energybench.process.forkserver import ChildOutcome, Launcher

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def launcher() -> Launcher:
    made = Launcher()
    made.warm()
    return made


class Limits:
    """The clock that limits are held to: the real one, until a test lets an hour pass."""

    passed_s = 0.0
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return time.monotonic() + self.passed_s

    def once(self, there: Callable[[], object]) -> Callable[[float], None]:
        """A tick that lets it pass when something is there."""

        def tick(_: float) -> None:
            self.passed_s = 3600.0 * bool(self.passed_s or there())

        return tick


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    found = Limits()
    monkeypatch.setattr(launch, "time", found)
    return found


def still(pid: int, thread: int | None = None) -> bool:
    """Whether a process is asleep and stays it: the kernel counts how often it gave up the processor by itself."""

    def seen() -> tuple[str, str]:
        text = Path(f"/proc/{pid}/task/{thread or pid}/status").read_text()
        lines = dict(line.split(":", 1) for line in text.splitlines())
        return lines["State"].split()[0], lines["voluntary_ctxt_switches"].strip()

    before = seen()
    time.sleep(0.3)
    return before == seen() and before[0] == "S"


@pytest.fixture
def call(launcher: Launcher, tmp_path: Path) -> Any:
    def run(function: str, given: str = "", **options: Any) -> tuple[ChildOutcome, dict[str, Any]]:
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


def test_children_are_forks_of_the_one_server_that_stands(call: Any) -> None:
    """Importing torch takes seconds: it is there already, and nobody imported it again."""
    servers = {call("describe")[1]["server"] for _ in range(3)}
    assert servers == {launch._server_pid()}


def test_a_child_works_in_the_callers_folder_of_now(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(call("describe")[1]["cwd"]) == tmp_path


def test_relative_paths_are_the_callers(launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").write_text("x")
    launcher.call("targets:talk", Path("in"), Path("out"), log=Path("log"))
    launcher.call("targets:describe", Path("in"), Path("out"))
    assert (tmp_path / "log").exists()
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("time_of", range(3))
def test_a_child_forked_after_the_preload_trains_and_does_not_hang(call: Any, time_of: int) -> None:
    outcome, facts = call("train", limit_s=300)
    assert (outcome.reason, facts) == (None, {"finite": True})


def test_no_shipped_method_is_billed_the_import_of_a_library(call: Any) -> None:
    """A trial's `build` is billed with it, and its module is loaded there: all that it needs must be there already."""
    outcome, facts = call("load_methods", limit_s=300)
    assert outcome.reason is None
    assert facts["methods"] >= 14
    assert facts["brought"] == []


def test_what_is_freed_is_kept_in_every_trial_alike(call: Any) -> None:
    """Else the heap's end decides whether a step's tensors are faulted in again, for a process's whole life."""
    _, facts = call("allocate")
    if not facts["kept"]:
        pytest.skip("this C library has no mallopt")
    assert facts["faults"] < facts["pages"] / 10


def test_equal_trials_of_one_server_do_not_share_where_their_tensors_lie(call: Any) -> None:
    """They share its address space: what is laid out by a name's length would be so in every block, as a bias."""
    children = [call("lay_out")[1] for _ in range(4)]
    assert len({tuple(child["first"]) for child in children}) == len(children)
    for child in children:
        distances = {tuple(b - a for a, b in pairwise(each)) for each in child["redrawn"]}
        assert len(distances) > 2  # to each other too
        assert not [address for each in child["redrawn"] for address in each if address % 64]  # the same results
        assert child["grown_b"] < 64 << 20  # what an earlier draw held is given up


def test_past_its_limit_a_child_is_killed_with_its_whole_group(call: Any, tmp_path: Path, limits: Limits) -> None:
    outcome, facts = call("hang", limit_s=3000.0, tick=limits.once((tmp_path / "out").exists), tick_s=0.1)
    assert outcome.timed_out
    assert "3000 s" in (outcome.reason or "")
    wait_for(lambda: all(map(gone, facts["pids"])))


def test_a_limit_is_not_passed_before_its_time(call: Any) -> None:
    assert call("hang", limit_s=0.3)[0].seconds >= 0.3


def test_what_a_child_leaves_behind_is_swept(call: Any) -> None:
    outcome, facts = call("leave")
    assert outcome.reason is None
    wait_for(lambda: all(map(gone, facts["pids"])))


def test_an_interrupt_of_the_parent_kills_the_child_and_is_passed_on(call: Any, tmp_path: Path) -> None:
    def tick(_: float) -> None:
        if (tmp_path / "out").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call("hang", tick=tick, tick_s=0.1)
    pids = json.loads((tmp_path / "out").read_text())["pids"]
    wait_for(lambda: all(map(gone, pids)))


@fault("strays")
@pytest.mark.parametrize("end", ["by itself", "at its limit", "killed", "with its guard killed", "by an interrupt"])
def test_nothing_that_a_child_starts_survives_it(call: Any, tmp_path: Path, limits: Limits, end: str) -> None:
    """Sessions of their own, SIGTERM ignored, a daemon forked twice, workers, a process that forks all the time."""
    marker = f"launch-{os.getpid()}-{time.time_ns()}"
    seen: dict[str, Any] = {}

    def tick(_: float) -> None:
        if not seen and (tmp_path / "out").exists():
            seen.update(json.loads((tmp_path / "out").read_text()))
            seen["alive"] = len(processes_with(f"ESCAPED={marker}"))
            if end == "by an interrupt":
                raise KeyboardInterrupt
            if end == "at its limit":
                limits.passed_s = 3600.0
            if end.endswith("killed"):
                os.kill(seen["guard" if "guard" in end else "trial"], signal.SIGKILL)

    how = "end" if end == "by itself" else "hang"
    if end == "by an interrupt":
        with pytest.raises(KeyboardInterrupt):
            call("escape", f"{marker} {how}", tick=tick, tick_s=0.1)
    else:
        outcome, _ = call("escape", f"{marker} {how}", tick=tick, tick_s=0.1, limit_s=3000)
        assert outcome.timed_out == (end == "at its limit")
        assert outcome.killed == end.endswith("killed")
    if how == "hang":
        assert seen["alive"] >= 11  # so that there was something to survive
    assert processes_with(f"ESCAPED={marker}") == []


def test_guard_and_parent_sleep_while_a_child_runs(call: Any, tmp_path: Path) -> None:
    """Machine-wide energy is metered: who spins would be billed. Here neither wakes for a third of a second."""
    us, found = threading.get_native_id(), list[bool]()

    def watch() -> None:
        wait_for((tmp_path / "out").exists)
        child = json.loads((tmp_path / "out").read_text())["pids"][0]
        guard = psutil.Process(child).ppid()
        try:
            found.append(wait_for(lambda: still(guard) and still(os.getpid(), us), 120))
        finally:
            os.kill(child, signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome, _ = call("hang")
    watcher.join()
    assert outcome.killed
    assert found == [True]


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


def test_output_goes_to_the_log_whoever_writes_it(call: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call("talk", log=tmp_path / "log")
    assert {"to stdout", "to stderr", "from a shell"} <= set((tmp_path / "log").read_text().splitlines())
    assert capfd.readouterr() == ("", "")


def test_a_trace_goes_to_the_log(call: Any, tmp_path: Path) -> None:
    outcome, _ = call("fail", log=tmp_path / "log")
    assert outcome.reason == "it ended with status 1"
    text = (tmp_path / "log").read_text()
    assert "about to fail" in text
    assert "a trace for the log" in text


def test_ticks_come_while_a_child_runs(call: Any, limits: Limits) -> None:
    ticks: list[float] = []

    def tick(elapsed_s: float) -> None:
        ticks.append(elapsed_s)
        limits.passed_s = 3600.0 * (len(ticks) == 3)

    assert call("hang", limit_s=3000.0, tick=tick, tick_s=0.1)[0].timed_out
    assert len(ticks) == 3
    assert all(elapsed_s >= 0.1 * number for number, elapsed_s in enumerate(ticks, 1))


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
from energybench.runner import runner
from energybench.runner.progress import Progress
from energybench.suite import load
code, folder = runner.run(load({str(suite)!r}), argv=["test"],
                          progress=Progress(Console(stderr=True), Console()))
assert not {{"torch", "torchvision", "fvcore"}} & set(sys.modules)
print("code", code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["code 0"], done.stderr
