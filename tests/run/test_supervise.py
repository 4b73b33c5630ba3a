"""Commands run to their end: limits, signals, what is left behind, what is written. Real processes, /bin/sh too."""

from __future__ import annotations

import itertools
import os
import re
import selectors
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import processes_with, wait_for

from energybench.process import output_log, supervise
from energybench.process.output_log import Lines, Log

DAEMON = """
import os, time
up, told = os.pipe()
if middle := os.fork():
    os.waitpid(middle, 0)
    os.read(up, 1)
    os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.write(told, b"!")
time.sleep(600)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def marked() -> dict[str, str]:
    return {**os.environ, "MARKER": f"energybench-supervise-{os.getpid()}-{time.time_ns()}"}


class Heard:
    def __init__(self, then: Callable[[Heard], object] = lambda heard: None) -> None:
        self.stdout, self.stderr, self._then = b"", b"", then

    def __call__(self, stream: str, chunk: bytes) -> None:
        setattr(self, stream, getattr(self, stream) + chunk)
        self._then(self)


class Limits:
    """The clock that limits are held to: the real one, until a test lets an hour pass."""

    passed_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.passed_s


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    found = Limits()
    monkeypatch.setattr(supervise, "time", found)
    return found


def test_the_exit_status_and_both_streams_are_the_commands_own():
    heard = Heard()
    done = supervise.run(shell("echo out; echo err >&2; exit 7"), output=heard)
    assert (done.returncode, done.timed_out, done.left_behind) == (7, False, 0)
    assert (heard.stdout, heard.stderr) == (b"out\n", b"err\n")


def test_a_signal_that_ended_it_is_told_as_a_negative_status():
    assert supervise.run(shell("kill -KILL $$"), discard=True).returncode == -signal.SIGKILL


def test_what_cannot_be_started_is_an_os_error_and_leaves_nothing():
    with pytest.raises(FileNotFoundError):
        supervise.run(["/nowhere/at/all"])


def test_it_leads_a_session_of_its_own_in_the_folder_and_environment_given(tmp_path: Path):
    heard = Heard()
    code = "import os; print(os.getpid() == os.getsid(0), os.getcwd(), os.environ.get('GIVEN'), sep='\\n')"
    supervise.run(python(code), cwd=tmp_path, env={"GIVEN": "yes"}, output=heard)
    assert heard.stdout.decode().splitlines() == ["True", str(tmp_path), "yes"]


def test_at_its_limit_it_is_asked_to_end():
    done = supervise.run(["sleep", "600"], limit_s=0.1, discard=True)
    assert (done.timed_out, done.obeyed_sigterm, done.returncode) == (True, True, -signal.SIGTERM)
    assert done.seconds >= 0.1


def passes_once_up(limits: Limits, count: int) -> Heard:
    """An hour passes when so many have said that they are deaf by now."""

    def then(heard: Heard) -> None:
        limits.passed_s = 3600.0 * (heard.stdout.count(b"up") >= count)

    return Heard(then)


def test_what_ignores_being_asked_is_made_to_end(limits: Limits, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervise, "GRACE_S", 0.1)
    heard = passes_once_up(limits, 1)
    done = supervise.run(python(DEAF), limit_s=3000, output=heard)
    assert heard.stdout == b"up\n"
    assert (done.timed_out, done.obeyed_sigterm, done.returncode) == (True, False, -signal.SIGKILL)


def test_a_daemon_in_a_session_of_its_own_is_found_and_ended(marked: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervise, "LINGER_S", 0.1)
    done = supervise.run(python(DAEMON), env=marked, discard=True)
    assert done.returncode == 0
    assert done.left_behind == 1
    wait_for(lambda: not processes_with(marked["MARKER"]))


def test_workers_that_ignore_being_asked_end_with_a_command_that_ran_out_of_time(
    marked: dict[str, str], limits: Limits, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervise, "GRACE_S", 0.1)
    script = f"trap '' TERM; for i in 1 2 3; do {sys.executable} -c \"{DEAF}\" & done; wait"
    heard = passes_once_up(limits, 3)
    done = supervise.run(shell(script), env=marked, limit_s=3000, output=heard)
    assert heard.stdout.count(b"up") == 3
    assert done.timed_out
    wait_for(lambda: not processes_with(marked["MARKER"]))


def test_a_child_that_ends_soon_after_the_command_is_not_missed_and_the_command_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It ends once the command's end is told: whoever waits for it before would wait for ever."""
    monkeypatch.setattr(supervise, "LINGER_S", 60.0)
    script = "(while [ ! -e told ]; do sleep 0.01; done) & exit 0"
    done = supervise.run(shell(script), cwd=tmp_path, discard=True, on_end=(tmp_path / "told").touch)
    assert (done.returncode, done.left_behind) == (0, 0)


def test_the_end_is_told_before_anything_left_behind_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervise, "LINGER_S", 0.1)
    before, there = {child.pid for child in psutil.Process().children()}, list[int]()

    def look() -> None:
        there.extend(child.pid for child in psutil.Process().children() if child.pid not in before)

    done = supervise.run(shell("sleep 600 & exit 0"), discard=True, on_end=look)
    assert len(there) == 1
    assert done.left_behind == 1


def test_orphans_are_adopted_only_while_a_command_runs():
    before = {child.pid for child in psutil.Process().children()}
    supervise.run(["true"], discard=True)
    code = "import os,time\nif os.fork(): os._exit(0)\ntime.sleep(3)"
    os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ), 0)
    assert {child.pid for child in psutil.Process().children()} <= before


def test_a_child_that_was_there_before_is_left_alone():
    other = psutil.Popen(["sleep", "600"])
    try:
        assert supervise.run(["true"], discard=True).left_behind == 0
        assert other.is_running()
        assert other.status() != psutil.STATUS_ZOMBIE
    finally:
        other.kill()
        other.wait()


def test_an_interrupted_parent_leaves_nothing_running(marked: dict[str, str]):
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise.run(shell("sleep 600 & sleep 600"), env=marked, discard=True, tick=interrupt, tick_s=0.05)
    assert not processes_with(marked["MARKER"])


def test_a_killed_parent_takes_the_command_with_it(marked: dict[str, str]):
    code = "from energybench.process import supervise; supervise.run(['sleep', '600'])"
    parent = psutil.Popen(python(code), env=marked)
    wait_for(lambda: len(processes_with(marked["MARKER"])) == 2)
    parent.kill()
    parent.wait()
    wait_for(lambda: not processes_with(marked["MARKER"]))


def test_the_parent_sleeps_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It wakes for a tick and for the end, and for nothing else: every wait has been one for a whole tick."""
    waits, ticks = list[float | None](), list[float]()

    class Counting(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            waits.append(timeout)
            return super().select(timeout)

    monkeypatch.setattr(supervise.selectors, "DefaultSelector", Counting)

    def tick(elapsed_s: float) -> None:
        ticks.append(elapsed_s)
        if len(ticks) == 3:
            (tmp_path / "go").touch()

    script = shell("while [ ! -e go ]; do sleep 0.01; done")
    supervise.run(script, cwd=tmp_path, discard=True, limit_s=600, tick=tick, tick_s=0.1)
    assert all(elapsed_s >= 0.1 * number for number, elapsed_s in enumerate(ticks, 1))
    assert len(waits) <= 2 * len(ticks) + 2  # a wait may end a moment too early, and then goes on
    waits.clear()
    supervise.run(["sleep", "0.1"], discard=True)
    assert waits == [None]


def test_the_cpu_time_of_the_command_and_its_children_is_ours_at_its_end():
    burn = "import time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass"
    seen: list[float] = []

    def used() -> float:
        times = os.times()
        return times.children_user + times.children_system

    before = used()
    supervise.run(
        shell(f'{sys.executable} -c "{burn}"; true'), discard=True, on_end=lambda: seen.append(used() - before)
    )
    assert seen[0] >= 0.1


def test_memory_is_the_largest_resident_set_of_its_processes():
    size = psutil.Process().memory_info().rss + (100 << 20)  # less than ours cannot be told
    done = supervise.run(shell(f"{sys.executable} -c 'x = b\"x\" * {size}'; true"), discard=True)
    assert done.memory_b is not None
    assert size < done.memory_b < size + (100 << 20)
    assert supervise.run(["true"]).memory_b is None


def test_a_log_keeps_the_beginning_and_the_end_of_ten_times_its_size(tmp_path: Path):
    log = Log(tmp_path / "logs" / "x.log")
    log.write(b"first line\n")
    for _ in range(160):
        log.write(b"." * (1 << 16))
    log.write(b"\nlast line\n")
    log.close()
    text = (tmp_path / "logs" / "x.log").read_bytes()
    assert text.startswith(b"first line\n")
    assert text.endswith(b"\nlast line\n")
    assert b"bytes are left out here" in text
    assert len(text) < output_log.HEAD_B + output_log.TAIL_B + (1 << 17)
    dropped = int(text.partition(b"[energybench: ")[2].split()[0])
    kept = len(text) - len(b"\n[energybench:  bytes are left out here]\n") - len(str(dropped))
    assert kept + dropped == 11 + 160 * (1 << 16) + 11


def test_a_short_log_is_what_was_written(tmp_path: Path):
    log = Log(tmp_path / "x.log")
    log.write(b"a")
    log.write(b"b\n")
    log.close()
    assert (tmp_path / "x.log").read_bytes() == b"ab\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_do_not_depend_on_how_they_were_cut(size: int):
    text = "one\ntwo\r\n\nthré 10 %\rthré 90 %\nlast".encode()
    lines = Lines()
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    found = [line for chunk in chunks for line in lines.feed(chunk)] + list(lines.rest())
    assert found == ["one", "two", "", "thré 90 %", "last"]


def test_a_line_without_end_is_held_within_bounds_and_a_progress_bar_to_its_last_state():
    lines = Lines()
    for _ in range(100):
        assert not list(lines.feed(b"x" * 100_000))
    assert [len(line) for line in lines.rest()] == [output_log.LONGEST_LINE_B]
    for step in range(20_000):
        assert not list(lines.feed(b"\rstep %d" % step))
    assert list(lines.rest()) == ["step 19999"]


BAR = b"epoch 1 acc=0.5\nepoch 2 acc=0.25\rbar acc=0.75\r               \r\r\ndone\n"


@given(cuts=st.lists(st.integers(0, len(BAR)), max_size=6))
def test_a_bar_that_was_wiped_away_is_read_the_same_however_it_was_cut(cuts: list[int]):
    lines, edges = Lines(), [0, *sorted(cuts), len(BAR)]
    chunks = [BAR[start:stop] for start, stop in itertools.pairwise(edges)]
    found = [line for chunk in chunks for line in lines.feed(chunk)] + list(lines.rest())
    assert found == ["epoch 1 acc=0.5", "bar acc=0.75", "done"]


@pytest.mark.parametrize("size", [1000, 4096, 1 << 16, 1 << 20])
def test_the_last_figure_of_a_line_without_end_is_the_one_that_is_read(size: int):
    """A script that never ends its line: what it says last holds, not what stood 64 KiB from the line's beginning."""
    text = "".join(f"step {step} acc=0.{step:05d} " for step in range(10_000)).encode()
    for tail in (b"", b"\n"):
        lines, whole = Lines(), text + tail
        chunks = [whole[i : i + size] for i in range(0, len(whole), size)]
        (found,) = [line for chunk in chunks for line in lines.feed(chunk)] + list(lines.rest())
        assert len(found) <= output_log.LONGEST_LINE_B
        assert re.findall(r"acc=([0-9.]+)", found)[-1] == "0.09999"
        assert set(re.findall(r"acc=([0-9.]+)", found)) <= set(re.findall(r"acc=([0-9.]+)", text.decode()))
