"""$ENERGYBENCH_DATA: where data sets lie that a suite uses by name."""

from __future__ import annotations

import os
from pathlib import Path

from energybench.common.safe_read import list_folder


def root() -> Path | None:
    """The folder; None where the variable is not set."""
    place = os.environ.get("ENERGYBENCH_DATA")
    return Path(os.path.expanduser(place)) if place else None


def names() -> list[str]:
    """Of the folders in it."""
    place = root()
    return [path.name for path in list_folder(place) if os.path.isdir(path)] if place else []
