"""A script that a signal ends inside `energybench.measure()`: what was metered is told and kept, and it ends as it
would have. Real processes and real signals; a script says by a file that it is where the test wants it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import PATIENCE_S
from fakes import in_children
from fakes.powercap import Powercap
from faults import fault
from run.tiny_runs import wait_for

from energybench.meter.combine import metered
from energybench.meter.window import AT_ONCE_S
from energybench.records.reader import read
from energybench.windows.ending import FATAL
from energybench.windows.file import WindowsFile, read_windows

WATTS = 60.0
SAY = """import energybench, faulthandler, os, pathlib, signal, sys, threading, time
def up():
    pathlib.Path("up").touch()
def hold():
    up()
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def machine(tmp_path: Path) -> Powercap:
    machine = Powercap(tmp_path / "sys")
    machine.add("intel-rapl:0", "package-0", WATTS)
    return machine


@pytest.fixture
def start(tmp_path: Path, machine: Powercap) -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def begin(text: str, **environment: str) -> subprocess.Popen[str]:
        (tmp_path / "script.py").write_text(SAY + text)
        kept = {name: value for name, value in os.environ.items() if name != "ENERGYBENCH_WINDOWS"}
        running.append(
            subprocess.Popen(
                [sys.executable, "script.py"],
                cwd=tmp_path,
                env=kept | in_children.environment(powercap=machine) | environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in FATAL],
            )
        )
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def end(folder: Path, process: subprocess.Popen[str], number: int) -> str:
    """What it wrote to stderr after the signal."""
    wait_for(lambda: (folder / "up").exists() or process.poll() is not None)
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE_S)[1]


@fault("signal window")
@pytest.mark.parametrize("number", FATAL, ids=lambda number: number.name)
def test_the_window_is_told_and_kept_and_the_script_ends_by_the_signal(
    tmp_path: Path, start: Start, number: signal.Signals
) -> None:
    text = "with energybench.measure('train', record='record.json') as window:\n"
    text += (
        "    with energybench.measure('epoch'):\n        window.steps = 7\n        time.sleep(0.3)\n        hold()\n"
    )
    process = start(text)
    errors = end(tmp_path, process, number)
    assert process.returncode == -number
    assert errors.startswith(f"train ({number.name}): ")
    assert "7 steps" in errors
    assert "J rapl" in errors
    assert len(errors.splitlines()) == 1
    train, epoch = read(tmp_path / "record.json", WindowsFile).windows
    assert (train.name, train.steps, train.error) == ("train", 7, number.name)
    assert (epoch.path, epoch.error) == ("train/epoch", number.name)
    assert train.reading is not None
    assert train.wall_s >= 0.3
    energy = metered(train.reading)
    assert energy.error_j is not None
    unsaid_j = 2 * AT_ONCE_S * WATTS  # a machine this busy may take so long to start and to stop, and not say so
    assert abs(energy.joules - WATTS * train.wall_s) <= energy.error_j + unsaid_j


def test_under_a_suite_it_is_a_line_of_the_file(tmp_path: Path, start: Start) -> None:
    process = start("with energybench.measure():\n    hold()\n", ENERGYBENCH_WINDOWS=str(tmp_path / "lines"))
    assert end(tmp_path, process, signal.SIGTERM) == ""
    assert process.returncode == -signal.SIGTERM
    (line,) = read_windows(tmp_path / "lines")
    assert line.error == "SIGTERM"


@pytest.mark.parametrize("own", ["signal.signal(signal.SIGUSR1, caught)", "faulthandler.register(signal.SIGUSR1)"])
@pytest.mark.parametrize("where", ["before", "inside"])
def test_a_handler_of_the_scripts_own_stays_its_own(tmp_path: Path, start: Start, own: str, where: str) -> None:
    """By Python or in C, set before the window or inside it; after it too."""
    text = f"""
def caught(number, frame):
    sys.stderr.write("caught in thread\\n")
{own if where == "before" else ""}
with energybench.measure(quiet=True, energy="off"):
    {own if where == "inside" else "pass"}
    os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR1)
with energybench.measure(quiet=True, energy="off"):
    os.kill(os.getpid(), signal.SIGUSR1)
up()
"""
    process = start(text)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert errors.count("caught in") + errors.count("Current thread") == 3


def test_an_ignored_signal_stays_ignored(tmp_path: Path, start: Start) -> None:
    process = start(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nwith energybench.measure(energy='off'):\n    hold()\n"
    )
    wait_for((tmp_path / "up").exists)
    process.send_signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "SIGHUP" not in errors


@pytest.mark.parametrize("shape", ["never opened", "closed", "opened in a thread"])
def test_where_no_window_of_the_main_thread_is_open_the_default_holds(tmp_path: Path, start: Start, shape: str) -> None:
    window = "with energybench.measure(quiet=True, energy='off'): "
    text = {
        "never opened": "hold()\n",
        "closed": f"{window}pass\nhold()\n",
        "opened in a thread": (
            f"def work():\n    {window}hold()\nthreading.Thread(target=work, daemon=True).start()\nhold()\n"
        ),
    }[shape]
    text += "assert False\n"
    process = start(text)
    wait_for((tmp_path / "up").exists)
    caught = next(
        line.split()[1]
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("SigCgt:")
    )
    assert not int(caught, 16) >> (signal.SIGTERM - 1) & 1
    end(tmp_path, process, signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM


def test_a_handler_that_calls_the_one_before_it_ends_nothing(tmp_path: Path, start: Start) -> None:
    """Had it been the default there would have been nothing to call; and whoever asks is told that it is."""
    text = """
with energybench.measure(energy="off"):
    before = signal.getsignal(signal.SIGTERM)
    assert before in (None, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: before(number, frame))
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    hold()
"""
    process = start(text)
    errors = end(tmp_path, process, signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
    assert errors.startswith("train (SIGTERM): ")


def test_a_forked_child_ends_at_once_and_says_nothing(tmp_path: Path, start: Start) -> None:
    text = """
with energybench.measure(energy="off") as window:
    child = os.fork()
    if not child:
        up()
        time.sleep(600)
    while not pathlib.Path("up").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
"""
    process = start(text)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert errors.startswith("train: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("place", ["closing", "writing", "opening a nested one"])
def test_a_signal_while_the_window_opens_or_closes_waits_for_that(tmp_path: Path, start: Start, place: str) -> None:
    """It comes in the midst of our own work."""
    text = f"""
from energybench.meter import pool
from energybench.windows import window as windows
place, real = {place!r}, windows.Window
class Sends(real):
    def start(self):
        if place == "opening a nested one" and windows._open:
            os.kill(os.getpid(), signal.SIGTERM)
        super().start()
    def stop(self):
        if place == "closing":
            os.kill(os.getpid(), signal.SIGTERM)
        super().stop()
windows.Window = Sends
write = windows.write_output
def write_output(*arguments):
    if place == "writing":
        os.kill(os.getpid(), signal.SIGTERM)
    write(*arguments)
windows.write_output = write_output
with energybench.measure(record="record.json"):
    time.sleep(0.05)
    with energybench.measure("epoch"):
        time.sleep(0.05)
up()
"""
    process = start(text)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGTERM, errors
    assert errors.startswith("train")
    assert not (tmp_path / "up").exists()
    assert read(tmp_path / "record.json", WindowsFile).windows


def test_a_signal_in_the_midst_of_the_scripts_own_printing_loses_no_line(tmp_path: Path, start: Start) -> None:
    text = """
with energybench.measure(energy="off", record="record.json"):
    up()
    while True:
        sys.stderr.write("x" * 5000 + "\\n")
"""
    process = start(text)
    errors = end(tmp_path, process, signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
    assert "train (SIGTERM): " in errors
    assert read(tmp_path / "record.json", WindowsFile).windows[0].error == "SIGTERM"


def test_a_line_that_nobody_reads_does_not_keep_the_script(tmp_path: Path, start: Start) -> None:
    process = start("with energybench.measure(energy='off', record='record.json'):\n    hold()\n")
    wait_for((tmp_path / "up").exists)
    assert process.stderr is not None
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE_S) == -signal.SIGHUP
    assert read(tmp_path / "record.json", WindowsFile).windows[0].error == "SIGHUP"
    with contextlib.suppress(ValueError):
        process.stdout.close()  # type: ignore[union-attr]
