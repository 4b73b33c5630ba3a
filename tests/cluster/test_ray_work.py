"""What a worker of Ray does of a block, without Ray: its command, and the ways in which it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from energybench.cluster import ray_work
from energybench.cluster.ray_work import Lost, work

ROOT = Path(__file__).resolve().parents[2]
TOLD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open("told", "w").close(), sys.exit(130)))
open("began", "w").close()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def python(program: str) -> list[str]:
    return [sys.executable, "-S", "-c", program]


def until(path: str) -> None:
    deadline = time.monotonic() + 60
    while not Path(path).exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@pytest.mark.parametrize("code", [0, 2, 3])
def test_a_code_is_handed_on_and_what_was_said_is_in_the_log(tmp_path: Path, code: int) -> None:
    assert (
        work(python(f"print('said'); raise SystemExit({code})"), str(tmp_path), str(tmp_path / "jobs/b1.log"), "t")
        == code
    )
    assert (tmp_path / "jobs/b1.log").read_text() == "said\n"


def test_each_attempt_of_a_task_is_told_how_many_there_were_before_it(tmp_path: Path) -> None:
    tells = python("import os; print(os.environ['ENERGYBENCH_RESTARTS'])")
    for token in ("one", "one", "another", "one"):
        work(tells, str(tmp_path), str(tmp_path / "b1.log"), token)
    assert (tmp_path / "b1.log").read_text().split() == ["0", "1", "0", "2"]


@pytest.mark.parametrize("how", ["raise SystemExit(130)", "import os; os.kill(os.getpid(), 9)"])
def test_what_was_ended_from_outside_is_to_be_tried_again(tmp_path: Path, how: str) -> None:
    with pytest.raises(Lost):
        work(python(how), str(tmp_path), str(tmp_path / "log"), "t")


def test_a_block_at_work_elsewhere_is_asked_for_again_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_work, "APART_S", 0.01)
    counted = "open('n', 'a').write('.'); raise SystemExit(0 if len(open('n').read()) == 3 else 75)"
    assert work(python(counted), str(tmp_path), str(tmp_path / "log"), "t") == 0
    monkeypatch.setattr(ray_work, "ELSEWHERE_S", 0.0)
    assert work(python("raise SystemExit(75)"), str(tmp_path), str(tmp_path / "log"), "t") == 75


def worker(tmp_path: Path, first: str = "") -> subprocess.Popen[bytes]:
    """A process that works on a command, as Ray's does; `began` is there when the command is under way."""
    work = f"from energybench.cluster.ray_work import work; work({python(TOLD)!r}, {str(tmp_path)!r}, 'log', 't')"
    started = subprocess.Popen([sys.executable, "-c", f"{first}\n{work}"], cwd=tmp_path)
    until("began")
    return started


def test_a_worker_that_is_killed_by_force_takes_its_command_with_it(tmp_path: Path) -> None:
    started = worker(tmp_path)
    started.kill()
    started.wait()
    until("told")  # the kernel's SIGTERM: it ends whole


def test_a_task_that_is_cancelled_softly_ends_its_command_first(tmp_path: Path) -> None:
    """Ray sets the flag of an interrupt in the worker; no signal comes that would end a wait."""
    flag = (
        "import _thread, os, threading, time, energybench.cluster.ray_work as ray_work; ray_work.LOOK_S = 0.1\n"
        "def later():\n    while not os.path.exists('began'): time.sleep(0.01)\n    _thread.interrupt_main()\n"
        "threading.Thread(target=later).start()"
    )
    started = worker(tmp_path, flag)
    started.wait()
    assert Path("told").exists()


def test_a_command_whose_worker_is_gone_before_it_began_does_not_begin(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "energybench.cluster.tied_child", str(os.getpid() + 1), *python("open('ran', 'w')")]
    assert subprocess.run(words, check=False).returncode == 1
    assert not Path("ran").exists()
