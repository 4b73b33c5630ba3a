"""Which run a report is of where no folder is named: the newest one, or the newest of a suite."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest, typed
from energybench.common.limits import RECORD_B, SUITE_B
from energybench.common.safe_read import list_folder, read_bytes
from energybench.records.shards import shards_of

HOME = Path("reports")  # where `energybench run` leaves its runs
Say = Callable[[str], None]


def folders(names: Sequence[str], say: Say) -> list[Path]:
    """The runs' folders that these names mean; of no name at all, the newest run below reports/.

    Args:
        names: a run's folder; a suite's name or its file, which means its newest run; a folder of runs, its newest
        say: is told each folder that was found and not named, and what could not be read on the way

    Raises:
        UsageError: E601 where a name means no run.
    """
    if not names:
        found = newest(HOME, say)
        if found is None:
            hint = "run a suite first: energybench run quick — or name a run's folder"
            raise UsageError(Problem("E601", "there is no run's folder below it", str(HOME), hint))
        say(f"report of {found}")
        return [found]
    return [_folder(name, say) for name in names]


def _folder(name: str, say: Say) -> Path:
    path = Path(name)
    if os.path.isfile(path / "run.json") or shards_of(path):
        return path
    for home in (_home(path), path):
        found = newest(home, say) if home is not None and os.path.isdir(home) else None
        if found is not None:
            say(f"report of {found}")
            return found
    if os.path.isdir(path):
        return path  # whoever reads it says what it lacks
    suites = [each.name for each in list_folder(HOME) if os.path.isdir(each)]
    hint = nearest(name, suites) or "run a suite first: energybench run quick"
    raise UsageError(Problem("E601", "neither a run's folder nor a suite that has a run below reports/", name, hint))


def _home(path: Path) -> Path | None:
    """Where runs of a suite lie: of its name, or of its file, which says its name."""
    if path.suffix == ".toml" and os.path.isfile(path):
        try:
            name: Any = tomllib.loads(read_bytes(path, SUITE_B).decode()).get("suite")
        except (OSError, ValueError, RecursionError):
            return None
        path = Path(name) if isinstance(name, str) else path
    is_name = len(path.parts) == 1 and not path.is_absolute() and path.name not in ("", "..")
    return HOME / path if is_name else None


def commands(folder: Path) -> list[str]:
    """What to type for more of a run that has just ended: by its suite's name where that means it."""
    lies_by_default = folder.parent.parent == HOME and not os.path.lexists(folder.parent.name)
    of = folder.parent.name if lies_by_default else folder
    return [typed("energybench", "report", of, flag) for flag in ("-v", "--html")]


def newest(root: Path, say: Say) -> Path | None:
    """The run in `root`, or in a folder of it, that was begun or continued last; None where none can be read."""
    began: dict[Path, float] = {}
    for file in sorted({*root.glob("*/run.json"), *root.glob("*/*/run.json")}):  # no deeper: `root` may be a disk
        folder = file.parent
        try:
            began[folder] = _last_call(file)
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            say(f"note: left out: {folder}: its run.json cannot be read")
    return max(began, key=lambda folder: (began[folder], str(folder)), default=None)


def _last_call(file: Path) -> float:
    """When energybench last began to work on a run, in seconds since 1970. Whoever reads the run checks the rest."""
    started_at = json.loads(read_bytes(file, RECORD_B))["invocations"][-1]["started_at"]
    return datetime.fromisoformat(started_at).timestamp()
