"""Tiny suites, what their runs leave, and processes that wait for one another."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import PATIENCE_S

from energybench.records.reader import read_folder
from energybench.records.record import CountingRun, RunFile, Trial


@dataclass
class Done:
    """A run that has ended: how, and where it wrote."""

    process: subprocess.CompletedProcess[str]
    home: Path  # where it was started
    suite: Path
    folder: Path


def suite_text(methods: str = "", *, name: str = "tiny", workload: str = "", **trials: Any) -> str:
    """A suite that trains in milliseconds. `workload` replaces the usual one."""
    settings = {"blocks": 1, "seed": 7, "twin": True, "threads": 1, "warmup": "1 steps", "limit": "60 s", **trials}
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


def only_run(folder: Path, suite: str = "tiny") -> Path:
    runs = list((folder / "reports" / suite).iterdir())
    assert len(runs) == 1, runs
    return runs[0]


def contents(folder: Path) -> tuple[RunFile, dict[str, Trial], dict[str, CountingRun]]:
    """run.json, trials by their name, witnesses by workload.method."""
    run, trials, counting_runs = read_folder(folder)
    return run, {t.trial: t for t in trials}, {f"{w.workload}.{w.method}": w for w in counting_runs}


def processes_with(marker: str) -> list[int]:
    """Processes whose first environment holds this marker: a run, its server and every child of theirs."""
    return _alive(lambda entry: marker.encode() in (entry / "environ").read_bytes())


def processes_in(folder: Path) -> list[int]:
    """Processes whose current folder it is: a run that was forked there, its server and every child of theirs."""
    return _alive(lambda entry: (entry / "cwd").samefile(folder))


def _alive(wanted: Callable[[Path], bool]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            alive = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
            if alive and wanted(entry):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """The first true value of `condition`, or an assertion that it never came."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain")
