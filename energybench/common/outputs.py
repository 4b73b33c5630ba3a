"""Files that a verb writes: an earlier one of the same kind is replaced, what anybody else wrote is refused.

One standard for `-o`, `--to`, `--accept`, `--markdown`, `record=` and a run's pages. What no second run could give
again is never replaced, whatever kind it is of: run.json and the parts of a run's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energybench.common.errors import CannotWrite, Problem, UsageError
from energybench.common.held_folder import HeldFolder
from energybench.common.limits import RECORD_B
from energybench.common.safe_read import read_bytes
from energybench.common.sealed_files import standard_stream, write_out

RUN_FILE, LOCK, LOCK_OWNER = "run.json", ".lock", ".lock-owner"
JOBS_FILE = "jobs.json"  # of a run whose blocks are jobs of an engine
# What a run and its report write into.
PARTS = ("records", "traces", "witness", "state", "logs", "figures", "superseded")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of output.

    name:    as a message says it, with its article
    is_ours: whether a file with this content is an earlier one of the kind; given RECORD_B bytes at most
    """

    name: str
    is_ours: Callable[[bytes], bool]


def json_kind(name: str, is_ours: Callable[[Any], bool]) -> Kind:
    """A kind of JSON file.

    is_ours: is given what the file holds; it may raise what looking into another kind raises
    """

    def of_content(content: bytes) -> bool:
        try:
            return is_ours(json.loads(content))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
            return False

    return Kind(name, of_content)


def refuse_foreign(path: Path, kind: Kind, hint: str = "name another file") -> None:
    """Called before the work whose result goes to `path`, and again before it is written.

    Links are followed to what they lead to, which is then held to the same.

    Raises:
        UsageError: E632 for what is there and is no earlier output of the kind.
    """
    if standard_stream(path) is not None:
        return
    if (owner := run_that_owns(path)) is not None:
        message = f"it is part of the run in {owner}, which is never written over"
        raise UsageError(Problem("E632", message, str(path), hint))
    if os.path.isfile(path) and not _is_replaceable(kind, lambda: read_bytes(path, 1 << 62, RECORD_B)):
        raise UsageError(_foreign(kind, path, hint))


def write_output(path: Path, content: bytes, kind: Kind, hint: str = "name another file") -> None:
    """Write to a path that the user named: whole or not at all, with the mode that the umask leaves.

    Raises:
        UsageError: E632 as `refuse_foreign`.
        CannotWrite: E620.
    """
    refuse_foreign(path, kind, hint)
    write_out(path, content)


def refuse_foreign_page(folder: HeldFolder, name: str, kind: Kind) -> None:
    """The same of a page of a run in its folder. Raises CannotWrite E632."""
    if folder.has(name) and not _is_replaceable(kind, lambda: folder.read_bytes(name, 1 << 62, RECORD_B)):
        hint = "move it away, and the same command writes it"
        raise CannotWrite(_foreign(kind, folder.path / name, hint))


def _foreign(kind: Kind, path: Path, hint: str) -> Problem:
    message = f"there is a file that is not {kind.name} of energybench; it is left as it is"
    return Problem("E632", message, str(path), hint)


def _is_replaceable(kind: Kind, read: Callable[[], bytes]) -> bool:
    """Whether it is an earlier output of the kind, or empty. What cannot be read may be anything."""
    try:
        content = read()
    except OSError:
        return False
    return not content or kind.is_ours(content)


def run_that_owns(path: Path) -> Path | None:
    """The folder of a run whose run.json or lock, or something in a part of it, a path is or leads to."""
    with suppress(OSError, RuntimeError, ValueError):
        real = path.resolve()
        if real.name in (RUN_FILE, LOCK, LOCK_OWNER, JOBS_FILE) and _is_run(real.with_name(RUN_FILE)):
            return real.parent
        inside = zip(real.parents[1:], real.parents, strict=False)
        return next((folder for folder, part in inside if part.name in PARTS and _is_run(folder / RUN_FILE)), None)
    return None


def _is_run(path: Path) -> bool:
    """Whether a file called run.json is that of a run: any object with a suite and a digest."""
    if not os.path.lexists(path):
        return False
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_bytes(path, RECORD_B))
        return isinstance(content, dict) and {"suite", "digest"} <= content.keys()
    return True  # damaged: whatever it was is left as it is
