"""Synthetic runs as folders, for whatever reads them from disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from energybench.records.record import CountingRun, RunFile, Trial, write_json

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import Run

METHOD = {"use": "it", "name": None, "sweep": {}, "claims": None, "tuned": None, "control": "matched"}


def settings(run: Run, **changes: Any) -> dict[str, Any]:
    """What the suite of such a run resolves to."""
    workload = {
        "name": run.workload,
        "model": {"use": "cnn"},
        "data": {"use": "digits", "batch": 8},
        "train": {"epochs": 6, "lr": 0.1},
    }
    return {
        "suite": "synthetic",
        "trials": {"seed": 2026, "threads": 1},
        "accept": run.accept,
        "workload": [workload],
        "method": [METHOD],
        "require": [],
    } | changes


def written(folder: Path, run: Run, *, day: int = 1, **run_file: Any) -> Path:
    """The run's folder, begun on that day of a January; `run_file` overwrites fields of run.json."""
    meta, trials, counting_runs = run.records()
    at = f"2026-01-{day:02d}T00:00:00+00:00"
    call = meta.invocations[0].model_copy(update={"started_at": at})
    fields = {
        "run": folder.name,
        "resolved": settings(run),
        "invocations": [call],
        "data": {run.workload: {"parameters": 1234}},
    } | run_file
    return put(
        folder, meta.model_copy(update=fields), [t.model_copy(update={"started_at": at}) for t in trials], counting_runs
    )


def put(folder: Path, meta: RunFile, trials: list[Trial], counting_runs: list[CountingRun]) -> Path:
    write_json(folder / "run.json", meta)
    for trial in trials:
        write_json(folder / "records" / f"{trial.trial}.json", trial)
    for counting_run in counting_runs:
        write_json(folder / "witness" / f"{counting_run.workload}.{counting_run.method}.json", counting_run)
    return folder
