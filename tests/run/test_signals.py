"""Signals to `energybench measure`: each reaches the command once, whoever it was sent to, and the record is written.

How long anything takes decides nothing: what was sent first is decided first, so that a test knows by the arrival of a
later signal that an earlier one comes no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import EXECUTABLE, PATIENCE_S, environment
from faults import fault
from tiny_runs import contents, only_run, processes_with, wait_for

from energybench.records.reader import read
from energybench.records.record import Trial

pytestmark = pytest.mark.slow

LATER = signal.SIGRTMIN + 1
COUNTING = """import pathlib, signal, sys
numbers = set(map(int, sys.argv[1:]))
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
pathlib.Path("up").touch()
while not pathlib.Path("go").exists():
    if came := signal.sigtimedwait(numbers, 0.02):
        with open("came", "a") as file:
            file.write(f"{came.si_signo}\\n")
raise SystemExit(3)
"""
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
Start = Callable[..., "subprocess.Popen[str]"]


def as_a_shell_starts_it() -> None:
    for number in (signal.SIGINT, signal.SIGQUIT):  # a test that runs in the background inherits them as ignored
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`energybench measure -o record.json ...` under way, leading a session and a group of its own."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, before: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        words = [*before, *EXECUTABLE, "measure", "--energy", "off", "-o", "record.json", *arguments]
        usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(), "start_new_session": True}
        how = {**usual, "preexec_fn": as_a_shell_starts_it, **options}
        running.append(subprocess.Popen(words, cwd=tmp_path, text=True, **how))
        return running[-1]

    yield begin
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def counting(folder: Path, *numbers: int) -> list[str]:
    (folder / "counting.py").write_text(COUNTING)
    return ["--", sys.executable, "counting.py", *(str(int(number)) for number in (*numbers, LATER))]


def came(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "came").read_text().splitlines()]
    except FileNotFoundError:
        return []


def settle(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until all that was sent before has been decided. A first signal may overtake one that came just before it."""
    for _ in range(2):
        before = came(folder).count(LATER)
        os.kill(process.pid, LATER)
        wait_for(lambda b=before: came(folder).count(LATER) > b)


def members(group: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            found += [pid] if os.getpgid(pid) == group else []
    return found


def send(process: subprocess.Popen[str], number: int, to: str) -> None:
    if to.startswith("us alone"):
        os.kill(process.pid, number)
    elif to == "the group":
        os.killpg(process.pid, number)
    elif to.startswith("each"):  # every process of the job, one after the other
        others = [pid for pid in members(process.pid) if pid != process.pid]
        for pid in [process.pid, *others] if to == "each, us first" else [*others, process.pid]:
            os.kill(pid, number)
    if to == "us alone, then the group":  # as `timeout` does
        os.killpg(process.pid, number)


def record(folder: Path) -> Trial:
    return read(folder / "record.json", Trial)


@fault("signal measured")
@pytest.mark.parametrize("number", [*ENDING, signal.SIGCONT, signal.SIGWINCH], ids=lambda number: number.name)
def test_a_signal_reaches_the_command_once_whoever_it_was_sent_to(
    tmp_path: Path, start: Start, number: signal.Signals
) -> None:
    process = start(*counting(tmp_path, number))
    wait_for((tmp_path / "up").exists)
    receivers = ("us alone", "the group", "us alone", "each, us first", "each, us last", "the group", "us alone")
    for sent, to in enumerate(receivers, 1):  # none hides another
        send(process, number, to)
        settle(tmp_path, process)
        assert came(tmp_path).count(number) == sent, to
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3  # the command's own status
    assert "it ended with status 3" in errors
    assert "left behind" not in errors
    trial = record(tmp_path)
    assert trial.train is not None
    assert trial.train.wall_s > 0
    assert not trial.flags


@fault("signal measured")
@pytest.mark.parametrize("to", ["us alone", "the group"])
@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_what_a_signal_ends_is_told_and_kept_with_a_shells_status(
    tmp_path: Path, start: Start, number: signal.Signals, to: str
) -> None:
    process = start("--", "sh", "-c", "ulimit -c 0; touch up; exec sleep 600")
    wait_for((tmp_path / "up").exists)
    send(process, number, to)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert f"it was killed by {number.name}" in errors
    assert errors.count("energybench: ") == 1
    assert "Traceback" not in errors
    trial = record(tmp_path)
    assert (trial.status, trial.reason) == ("failed", f"it was killed by {number.name}")
    assert trial.train is not None


def test_a_command_that_ignores_sigterm_is_waited_for(tmp_path: Path, start: Start) -> None:
    process = start("--", "sh", "-c", "trap '' TERM; touch up; while ! test -e go; do sleep 0.05; done; exit 4")
    wait_for((tmp_path / "up").exists)
    for _ in range(2):
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.4)
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE_S) == 4
    assert record(tmp_path).reason == "it ended with status 4"


def test_under_nohup_a_hangup_is_ignored_by_the_command_too(tmp_path: Path, start: Start) -> None:
    process = start("--", "sh", "-c", "touch up; while ! test -e go; do sleep 0.05; done", before=("nohup",))
    wait_for((tmp_path / "up").exists)
    os.kill(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGHUP)
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE_S) == 0
    assert record(tmp_path).status == "ok"


def test_killed_by_force_it_takes_the_command_and_its_own_helpers_with_it(tmp_path: Path, start: Start) -> None:
    process = start("--", "sh", "-c", "touch up; exec sleep 600")
    wait_for((tmp_path / "up").exists)
    assert len(members(process.pid)) >= 2
    process.kill()
    process.wait(PATIENCE_S)
    wait_for(lambda: not members(process.pid))


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """(the end of whoever types, the end of programs)."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    for handle in (ours, theirs):
        with contextlib.suppress(OSError):
            os.close(handle)


def at(theirs: int) -> dict[str, Any]:
    """The options of a process that leads the session of this terminal."""

    def take() -> None:
        as_a_shell_starts_it()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    return {"stdin": theirs, "stdout": theirs, "stderr": theirs, "preexec_fn": take}


def test_ctrl_c_typed_at_a_terminal_reaches_the_command_once(
    tmp_path: Path, start: Start, terminal: tuple[int, int]
) -> None:
    ours, theirs = terminal
    process = start(*counting(tmp_path, signal.SIGINT, signal.SIGQUIT), **at(theirs))
    wait_for((tmp_path / "up").exists)
    for key, number in ((b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT), (b"\x03", signal.SIGINT)):
        before = came(tmp_path).count(number)
        os.write(ours, key)
        wait_for(lambda n=number, b=before: came(tmp_path).count(n) > b)
        settle(tmp_path, process)
        assert came(tmp_path).count(number) == before + 1
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE_S) == 3


@fault("terminal measured")
def test_a_terminal_that_is_closed_ends_the_command_and_the_record_is_written(
    tmp_path: Path, start: Start, terminal: tuple[int, int]
) -> None:
    """The kernel tells the leader of the session alone, and nothing can be printed any more."""
    ours, theirs = terminal
    process = start("--", "sh", "-c", "trap 'exit 7' HUP; touch up; while :; do sleep 0.05; done", **at(theirs))
    wait_for((tmp_path / "up").exists)
    os.close(theirs)
    os.close(ours)
    assert process.wait(PATIENCE_S) == 7
    assert record(tmp_path).reason == "it ended with status 7"


def test_nobody_who_reads_our_line_costs_the_record_and_the_status_nothing(tmp_path: Path, start: Start) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("--", "sh", "-c", "exit 6", stderr=writer)
    os.close(writer)
    assert process.wait(PATIENCE_S) == 6
    assert record(tmp_path).reason == "it ended with status 6"


def test_a_signal_after_the_commands_end_does_not_cost_the_record(tmp_path: Path, start: Start) -> None:
    """The record goes into a pipe that nobody reads yet, so that writing it waits; a second signal ends that."""
    os.mkfifo(tmp_path / "pipe")
    process = start("-o", "pipe", "--", "true")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("energybench: ")
    process.terminate()
    with (tmp_path / "pipe").open() as pipe:
        assert json.loads(pipe.read())["status"] == "ok"
    assert process.wait(PATIENCE_S) == 0
    hung = start("-o", "pipe", "--", "true")
    assert hung.stderr is not None
    hung.stderr.readline()
    while hung.poll() is None:
        hung.terminate()
        time.sleep(0.05)
    assert hung.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)  # a third one found nothing of ours


@fault("signal compared")
@pytest.mark.parametrize("to", ["us alone", "us alone, then the group"])
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2], ids=lambda n: n.name
)
def test_a_comparison_that_is_interrupted_keeps_its_finished_pairs(
    tmp_path: Path, start: Start, number: signal.Signals, to: str
) -> None:
    marker = f"energybench-signals-{os.getpid()}-{time.time_ns()}"
    waits = "sh -c 'echo . >> ran; if test $(wc -l < ran) -gt 5; then touch up; sleep 600; fi'"
    process = start("--warmup", "0", "--pairs", "50", "--vs", waits, waits, env=environment(MARKER=marker))
    wait_for((tmp_path / "up").exists)
    send(process, number, to)
    out, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert "times the time of B" in out
    assert errors.splitlines()[-1] == ("interrupted" if number == signal.SIGINT else f"interrupted by {number.name}")
    found = json.loads((tmp_path / "record.json").read_text())
    assert found["interrupted"] is True
    assert len(found["trials"]) == 5
    assert not processes_with(marker)


SUITE = """schema = 1
suite = "tiny"
trials = { blocks = 2, warmup = "0 s", twin = false, cooldown = { longest = "0 s" } }
measure = { energy = "off" }
[[workload]]
name = "w"
command = "sh hold.sh"
quality = "none"
[[method]]
name = "same"
command = "sh hold.sh"
"""
HOLD = "echo . >> ran\nif test $(wc -l < ran) -eq 3; then touch up; sleep 600; fi\n"


@fault("announced")
@pytest.mark.parametrize("first", ["the run", "the command", "who meters it"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_command_that_dies_of_the_schedulers_signal_to_all_has_not_failed(
    tmp_path: Path, number: signal.Signals, first: str
) -> None:
    """The run, who meters and the command are signalled one after the other; whoever is first, no trial has failed."""
    marker = f"energybench-all-{os.getpid()}-{time.time_ns()}"
    (tmp_path / "s.toml").write_text(SUITE)
    (tmp_path / "hold.sh").write_text(HOLD)
    process = subprocess.Popen(
        [*EXECUTABLE, "run", "s.toml"],
        cwd=tmp_path,
        env=environment(MARKER=marker),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=as_a_shell_starts_it,
    )
    try:
        wait_for((tmp_path / "up").exists)
        others = [pid for pid in processes_with(marker) if pid != process.pid]
        commands = [pid for pid in others if psutil.Process(pid).name() in ("sh", "sleep")]
        meters = [pid for pid in others if pid not in commands]
        receivers = {
            "the run": [process.pid, *meters, *commands],
            "the command": [*commands, *meters, process.pid],
            "who meters it": [*meters, *commands, process.pid],
        }[first]
        for pid in receivers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                time.sleep(0.05)  # in which it may end, as its death is heard of
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, errors
    assert f"interrupted by {number.name}; " in errors
    _, trials, _ = contents(only_run(tmp_path))
    assert {trial.status for trial in trials.values()} == {"ok"}
    assert len(trials) == 2
    wait_for(lambda: not processes_with(marker))
