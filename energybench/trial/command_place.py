"""Where a command's trial runs: its folder, a scratch folder of its own, what stands for {seed} and the like."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from energybench.common.errors import CannotWrite
from energybench.suite.command_tables import COPY
from energybench.suite.placeholders import Value
from energybench.trial.spec import CommandTrialSpec

FICLONE = 0x40049409  # a copy that shares its blocks until one of the two is written, where the file system can
LINKED_B = 1 << 26  # from here on a file that cannot be cloned is linked, data sets mostly: writing it is seen
NOT_COPIED = frozenset({"__pycache__", ".git", ".hg", ".svn"})


@dataclass(frozen=True, slots=True)
class Place:
    """What is this trial's alone, and where it runs.

    folder:  it starts there; scratch: an empty folder that is removed after the trial
    values:  what {seed} and the like stand for
    env:     what the suite sets for it; stdin: a file that it reads
    """

    folder: Path
    scratch: Path
    values: Mapping[str, Value]
    env: Mapping[str, str]
    stdin: Path | None


def prepare_place(spec: CommandTrialSpec) -> Place:
    """Make the folders of a trial. Raises CannotWrite E620."""
    header = spec.header
    own = spec.own or spec.windows.with_name(f"{header.trial}.own")
    return place_in(spec, own, seed=header.seed, block=header.block, trial=header.trial)


def place_in(spec: CommandTrialSpec, own: Path, *, seed: int, block: int, trial: str) -> Place:
    """The same, of a run that may be another than a trial: a warm-up. Raises CannotWrite E620."""
    scratch = own / "scratch"
    values: dict[str, Value] = {"seed": seed, "block": block, "trial": trial, "scratch": str(scratch)}
    how = spec.how.filled(values)
    folder = spec.base / how.cwd if how.cwd not in (None, COPY) else spec.base
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        if how.cwd == COPY:
            folder = own / spec.base.name
            _copy(spec.base, folder, frozenset(spec.not_copied))
    except OSError as error:
        raise CannotWrite.of(error, own) from None
    return Place(folder, scratch, values, how.env, folder / how.stdin if how.stdin else None)


def _copy(source: Path, target: Path, left_out: frozenset[Path]) -> None:
    """A folder as it is, less caches, histories and runs of ours; links stay links where they led."""
    target.mkdir()
    with os.scandir(source) as entries:
        for entry in entries:
            path, copy = Path(entry.path), target / entry.name
            if entry.name in NOT_COPIED or path in left_out:
                continue
            if entry.is_symlink():
                copy.symlink_to(source / os.readlink(path))
            elif entry.is_dir():
                if not (path / "run.json").exists():
                    _copy(path, copy, left_out)
            elif entry.is_file():
                _copy_file(path, copy, entry.stat().st_size)


def _copy_file(source: Path, target: Path, size_b: int) -> None:
    if size_b >= LINKED_B:
        with source.open("rb") as read, target.open("wb") as written, contextlib.suppress(OSError):
            fcntl.ioctl(written.fileno(), FICLONE, read.fileno())
            shutil.copystat(source, target)
            return
        target.unlink()
        target.symlink_to(source)
        return
    shutil.copy2(source, target)
