"""The process that keeps a card's settings: whoever ends, and however, the card is as it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from command_line import PATIENCE_S
from fakes.nvml import UUID, FakeDriver, FakeGpu, sets_of
from faults import fault

from energybench.meter.card_settings import CLOCK_HZ, POWER_W
from energybench.process.card_keeper import KILLED, held

ROOT = Path(__file__).resolve().parents[1]
STATED_W, LIMIT_W, CLOCK_MHZ = 250.0, 120.0, 705.0
SETTINGS = {UUID: {POWER_W: LIMIT_W, CLOCK_HZ: CLOCK_MHZ * 1e6}}
SET, AS_IT_WAS = (LIMIT_W, CLOCK_MHZ), (STATED_W, 0.0)
HOLDER = f"""
import sys, time
from energybench.process.card_keeper import held
with held({SETTINGS!r}):
    print("set", flush=True)
    time.sleep({PATIENCE_S})
"""
Machine = Callable[..., Path]


@pytest.fixture
def machine(
    fake_driver: Callable[..., FakeDriver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    """A card that this process and all that it starts share; the folder in which `sets_of` sees what is set."""

    def plug(**gpu: Any) -> Path:
        card = FakeGpu(**{"power_limit_w": STATED_W, **gpu})
        for name, value in fake_driver(card).environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        fake_driver(card)  # again, where the file of what is set is known
        return tmp_path

    return plug


def is_now(folder: Path) -> tuple[float, float]:
    return sets_of(folder)[:2]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def keeper_of(parent: psutil.Process) -> psutil.Process:
    (found,) = [child for child in parent.children() if "card_keeper" in " ".join(child.cmdline())]
    return found


def test_a_card_is_set_inside_and_as_it_was_afterwards(machine: Machine) -> None:
    folder = machine()
    with held(SETTINGS) as found:
        assert found.problem == ""
        assert found.before[UUID][POWER_W] == STATED_W
        assert is_now(folder) == SET
    assert is_now(folder) == AS_IT_WAS
    assert (found.changed, found.left) == ("", "")


def test_an_exception_inside_leaves_it_as_it_was_and_goes_on(machine: Machine) -> None:
    folder = machine()
    with pytest.raises(KeyboardInterrupt), held(SETTINGS):
        raise KeyboardInterrupt
    assert is_now(folder) == AS_IT_WAS


@fault("kill while set")
def test_a_keeper_that_is_killed_by_force_is_stood_in_for(machine: Machine) -> None:
    folder = machine()
    with held(SETTINGS) as found:
        keeper = keeper_of(psutil.Process())
        keeper.kill()
        wait_for(lambda: keeper.status() == psutil.STATUS_ZOMBIE)
        assert is_now(folder) == SET
    assert is_now(folder) == AS_IT_WAS
    assert found.left == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_whoever_held_it_may_be_killed_by_force(machine: Machine, number: int) -> None:
    folder = machine()
    words = [sys.executable, "-c", HOLDER]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"set\n"
        assert is_now(folder) == SET
        keeper = keeper_of(psutil.Process(holder.pid))
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # to every process of a job
            keeper.send_signal(ignored)
        os.killpg(holder.pid, number)
        wait_for(lambda: is_now(folder) == AS_IT_WAS)
    finally:
        holder.kill()
        holder.communicate()


def test_what_somebody_else_changes_meanwhile_is_told_and_put_back(machine: Machine) -> None:
    folder = machine()
    with held(SETTINGS) as found:
        pynvml.nvmlInit()
        pynvml.nvmlDeviceSetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByIndex(0), 200_000)
    assert "200 W, not 120 W" in found.changed
    assert is_now(folder) == AS_IT_WAS


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        ({"compute": [(4_000_000,)]}, "process 4000000 uses the card"),
        ({"errors": [("nvmlDeviceSetPowerManagementLimit", 4)]}, "run it as root"),
        ({"errors": [("nvmlDeviceSetGpuLockedClocks", 3)]}, "cannot do it"),
    ],
)
def test_what_cannot_be_set_is_told_and_nothing_stays_set(machine: Machine, gpu: dict[str, Any], said: str) -> None:
    folder = machine(**gpu)
    with held(SETTINGS) as found:
        assert said in found.problem
    assert is_now(folder) in (AS_IT_WAS, (0.0, 0.0))


def test_what_cannot_be_put_back_is_told_with_what_to_type(machine: Machine, tmp_path: Path) -> None:
    machine(errors=[("nvmlDeviceResetGpuLockedClocks", 999)])
    with held(SETTINGS) as found:
        assert found.problem == ""
    assert f"sudo nvidia-smi -i {UUID} -pl 250; sudo nvidia-smi -i {UUID} -rgc" in found.left
    assert is_now(tmp_path) == (STATED_W, CLOCK_MHZ)


def test_a_keeper_that_never_answers_is_a_problem(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine()
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    with held(SETTINGS) as found:
        assert found.problem == KILLED
    assert is_now(folder) == (0.0, 0.0)


def test_nothing_is_started_where_nothing_is_to_be_set() -> None:
    with held({}) as found:
        assert not [child for child in psutil.Process().children() if "card_keeper" in " ".join(child.cmdline())]
    assert (found.problem, found.left) == ("", "")
