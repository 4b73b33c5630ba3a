"""$ENERGYBENCH_DATA: where data sets lie that a suite uses by name."""

from __future__ import annotations

import os
from pathlib import Path

from energybench.common.errors import Problem, UsageError
from energybench.common.safe_read import list_folder


def root() -> Path | None:
    """The folder; None where the variable is not set."""
    place = os.environ.get("ENERGYBENCH_DATA")
    return Path(os.path.expanduser(place)) if place else None


def names() -> list[str]:
    """Of the folders in it."""
    place = root()
    return [path.name for path in list_folder(place) if os.path.isdir(path)] if place else []


def of(name: str) -> Path | None:
    """The folder in it of that name, whatever its capitals; None where there is none."""
    place = root()
    if place is None:
        return None
    if os.path.isdir(place / name):
        return place / name
    alike = (path for path in list_folder(place) if path.name.casefold() == name.casefold())
    return next((path for path in alike if os.path.isdir(path)), None)


def needed(name: str, layout: str) -> Path:
    """The folder of a data set, for the function that reads it.

    Args:
        layout: what lies in it, below the folder: "train.npz and test.npz"

    Raises:
        UsageError: E402 where there is none, with where to put it.
    """
    folder = of(name)
    if folder is None:
        hint = f"put {layout} into a folder <folder>/{name}, then: export ENERGYBENCH_DATA=<folder>"
        raise UsageError(Problem("E402", f"the data set '{name}' is not on this machine", hint=hint))
    return folder
