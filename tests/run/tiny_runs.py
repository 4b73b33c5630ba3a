"""Tiny suites and the command line as a subprocess; the slow tests share one run each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energybench.record import RunFile, Trial, Witness, read_folder


@dataclass
class Done:
    """A run that has ended: how, and where it wrote."""

    process: subprocess.CompletedProcess[str]
    home: Path  # where it was started
    suite: Path
    folder: Path


EXECUTABLE = [sys.executable, "-m", "energybench"]


def suite_text(methods: str = "", *, name: str = "tiny", workload: str = "", **trials: Any) -> str:
    """A suite that trains in milliseconds. `workload` replaces the usual one."""
    settings = {
        "blocks": 1,
        "seed": 7,
        "twin": True,
        "threads": 1,
        "warmup": "1 steps",
        "limit": "60 s",
        **trials,
    }
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    usual = """[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 2, lr = 0.1 }
"""
    head = f'schema = 1\nsuite = "{name}"\n[trials]\n{lines}\n[measure]\nenergy = "off"\n'
    return head + (workload or usual) + methods


def write_suite(folder: Path, methods: str = "", *, file: str = "tiny.toml", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    path.write_text(suite_text(methods, **options), encoding="utf-8")
    return path


def environment(**extra: str) -> dict[str, str]:
    """Ours, without what would change the output."""
    dropped = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "ENERGYBENCH_DATA")
    return {key: value for key, value in os.environ.items() if key not in dropped} | extra


def energybench(
    *arguments: str | Path, cwd: Path, timeout: float = 240, **extra: str
) -> subprocess.CompletedProcess[str]:
    """`energybench ...` to its end."""
    return subprocess.run(
        [*EXECUTABLE, *map(str, arguments)],
        cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def start(*arguments: str | Path, cwd: Path, **extra: str) -> subprocess.Popen[str]:
    """`energybench ...` under way, leading a group of its own, as a shell starts it in the foreground.

    Ctrl-C reaches it also where the tests themselves run in the background, whose children inherit it as ignored.
    """
    return subprocess.Popen(
        [*EXECUTABLE, *map(str, arguments)],
        cwd=cwd, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def only_run(folder: Path, suite: str = "tiny") -> Path:
    runs = list((folder / "reports" / suite).iterdir())
    assert len(runs) == 1, runs
    return runs[0]


def contents(folder: Path) -> tuple[RunFile, dict[str, Trial], dict[str, Witness]]:
    """run.json, trials by their name, witnesses by workload.method."""
    run, trials, witnesses = read_folder(folder)
    return run, {t.trial: t for t in trials}, {f"{w.workload}.{w.method}": w for w in witnesses}


def processes_with(marker: str) -> list[int]:
    """Processes whose environment holds this marker: a run, its server and every child of theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            alive = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
            if alive and marker.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of `condition`, or an assertion that it never came."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain")
