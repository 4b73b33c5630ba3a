"""Where a run's records lie, seen from its page: beside it, in the shards below it, or in other folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from energybench.records.record import Trial

RecordPath = Callable[[str], str]  # a record's name → its path from the page, quoted
Homes = Mapping[str, str]  # a record's name → the folder that it lies in; empty where that is the page's own


def beside(name: str) -> str:
    """Of a record in the page's own folder."""
    return f"records/{quote(name, safe='')}.json"


def record_path(folder: Path, homes: Homes) -> RecordPath:
    """From a page in `folder`."""

    def path(name: str) -> str:
        home = _from(folder, homes.get(name))
        return beside(name) if home == "." else f"{quote(home)}/{beside(name)}"

    return path


def _from(folder: Path, home: str | None) -> str:
    return "." if home is None else os.path.relpath(home, folder)


def with_traces(trials: Sequence[Trial], folder: Path, homes: Homes) -> list[Trial]:
    """The trials, each with its power trace's path from the page's folder; one that lies outside of it has none."""
    return [_with_trace(trial, _from(folder, homes.get(trial.trial))) for trial in trials]


def _with_trace(trial: Trial, home: str) -> Trial:
    if trial.trace is None or home == ".":
        return trial
    inside = not home.startswith(os.pardir)
    return trial.model_copy(update={"trace": f"{home}/{trial.trace}" if inside else None})
