"""What a Ray worker does of a block: it starts our command, hands it on when it is to end, and tells how it ended.

Imports neither torch nor ray: a worker's process is small, and reads this file by its import.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from energybench.cluster.block_commands import BlockEnd
from energybench.runner.placement import RESTARTS

LOOK_S = 1.0
ENDING_S = 60.0  # for a command that was told to end
ELSEWHERE_S, APART_S = 120.0, 5.0  # while a lost worker's command may still be ending
RESUMABLE = frozenset({BlockEnd.INTERRUPTED, *(-number for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT))})


class Lost(Exception):
    """The command ended before its work did, and goes on if it is started again: what Ray retries."""


def work(words: Sequence[str], place: str, log: str, token: str, job: str = "") -> int:
    """Run a command to its end. Returns its exit code.

    Args:
        place: folder to run it in
        log:   file that its output is added to
        token: of this task, the same in each of its attempts, which Ray counts for itself alone
        job:   number of Ray's job, which the environment of a worker that was started before it does not say

    Raises:
        Lost: it was ended from outside.
        KeyboardInterrupt: the task was cancelled; its command has ended.
    """
    until, environment = time.monotonic() + ELSEWHERE_S, os.environ | {RESTARTS: str(_earlier(Path(log), token))}
    environment |= {"RAY_JOB_ID": job} if job else {}
    while True:
        code = _to_its_end(words, place, Path(log), environment)
        if code in RESUMABLE:
            raise Lost(f"ended by {code}")
        if code != BlockEnd.ELSEWHERE or time.monotonic() > until:
            return code
        time.sleep(APART_S)


def _earlier(log: Path, token: str) -> int:
    """So many attempts of this task there were before this one, which is noted beside the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.with_suffix(".started").open("a+", encoding="utf-8") as notes:
        notes.seek(0)
        earlier = notes.read().split().count(token)
        notes.write(f"{token}\n")
    return earlier


def _to_its_end(words: Sequence[str], place: str, log: Path, environment: Mapping[str, str]) -> int:
    tied = [sys.executable, "-m", "energybench.cluster.tied_child", str(os.getpid()), *words]
    with log.open("ab") as file:
        child = subprocess.Popen(tied, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            while child.poll() is None:
                _sleep_until_ended(child.pid)
            return child.wait()
        finally:
            if child.poll() is None:  # cancelled, or the worker ends
                _end(child)


def _sleep_until_ended(pid: int) -> None:
    """For LOOK_S at most: a cancelled task is told by a flag that Python looks at, and by no signal that would end a
    wait."""
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):
        time.sleep(LOOK_S)
        return
    try:
        select.select([handle], [], [], LOOK_S)
    finally:
        os.close(handle)


def _end(child: subprocess.Popen[bytes]) -> None:
    """However often the worker is told meanwhile."""
    child.terminate()
    until = time.monotonic() + ENDING_S
    while child.poll() is None:
        try:
            child.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
        except KeyboardInterrupt:
            continue
