"""`energybench run` as a person types it, below a part's folder, ended by Ctrl-C when the part's time is over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from energybench.common.processes import die_with

ENDING_S = 12.0  # that a run may take to close its records when it is told to end


@dataclass(frozen=True)
class Ran:
    """How a run ended: its exit code (None: it had to be killed), whether it was told to end, and where it wrote."""

    code: int | None
    interrupted: bool
    seconds: float
    output: str
    folder: Path | None


def run(suite: Path, limit_s: float, until: Callable[[], bool] = lambda: False) -> Ran:
    """Run a suite in its own folder. until: looked at ten times a second; when it is true, Ctrl-C comes"""
    began = time.monotonic()
    with open(suite.parent / "said.txt", "w+", encoding="utf-8", errors="replace") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "energybench", "run", suite.name],
            cwd=suite.parent,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid(), signal.SIGINT),  # a part that is killed leaves no run behind
        )
        interrupted = False
        try:
            while child.poll() is None and not interrupted:
                interrupted = until() or time.monotonic() - began > limit_s
                time.sleep(0.1)
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(ENDING_S)
        finally:
            code = child.poll()
            if code is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        said.seek(0)
        output = said.read()
    folders = sorted((suite.parent / "reports").glob("*/*/run.json"))
    return Ran(code, interrupted, time.monotonic() - began, output, folders[-1].parent if folders else None)


def write_suite(folder: Path, tables: dict[str, dict[str, Any]], methods: list[dict[str, Any]]) -> Path:
    """A suite of one workload: its tables by name ("", "trials", "measure", "accept", "workload"), then methods."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {toml(value)}" for key, value in tables[""].items()]
    for name, table in tables.items():
        if name:
            lines += ["", f"[[{name}]]" if name == "workload" else f"[{name}]"]
            lines += [f"{key} = {toml(value)}" for key, value in table.items()]
    for method in methods:
        lines += ["", "[[method]]", *(f"{key} = {toml(value)}" for key, value in method.items())]
    path = folder / "suite.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def toml(value: Any) -> str:
    """A value as TOML writes it: like JSON, but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def measured(card_is_fake: bool) -> dict[str, Any]:
    """[measure]: the card that trains; a fake one trains nothing, so that all cards are asked for."""
    return {"energy": "require", "gpus": "all" if card_is_fake else "used"}
