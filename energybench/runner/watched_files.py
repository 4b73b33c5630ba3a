"""Files that trials leave where the next one finds them: a checkpoint in a fixed folder, from which it goes on.

The suite's folder, and those in which its commands run, are looked at between two trials, never while one is measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

MOST_FILES = 20_000  # of a folder; in a larger one nothing is looked at, which is said
CACHES = frozenset({"__pycache__", ".git", ".hg", ".svn", ".ipynb_checkpoints", ".mypy_cache", ".ruff_cache"})
SHOWN = 3  # files that a flag names
State = tuple[int, int, int]


class WatchedFiles:
    """What has changed since the first look, and during which trial.

    folders: that are looked at, with all inside
    ours:    folders of ours inside them: runs and what belongs to them
    since_ns: files that were written after that are an earlier call's of the same run; None: this is the first one
    """

    def __init__(self, folders: Iterable[Path], ours: Iterable[Path], since_ns: int | None = None) -> None:
        self.folders = list(dict.fromkeys(folder.resolve() for folder in folders))
        self._ours = frozenset(folder.resolve() for folder in ours)
        self.too_many = False
        self._seen = self._look()
        self._written: dict[Path, str] = {}
        if since_ns is not None:
            self._written = {path: "an earlier call" for path, state in self._seen.items() if state[0] > since_ns}

    def after(self, trial: str, *, allowed: Iterable[Path] = ()) -> None:
        """Look again: what is new or another now, this trial has written.

        allowed: files that it may leave, since it is checked that each trial writes them anew
        """
        now, allowed = self._look(), {path.resolve() for path in allowed}
        for path, state in now.items():
            if self._seen.get(path) != state and path not in allowed and not _is_its_own(path, trial):
                self._written[path] = trial
        self._seen = now

    def found(self) -> list[str]:
        """The files that a trial which begins now finds, each with whose it is, as a flag shows them; [] for none."""
        there = [(path, trial) for path, trial in self._written.items() if path in self._seen]
        return [f"{self._short(path)} ({trial})" for path, trial in sorted(there)]

    def _leads_inside(self, entry: os.DirEntry[str]) -> bool:
        """Whether it is a link to a folder that is looked at anyway; of one elsewhere its own times tell."""
        if not entry.is_symlink() or not entry.is_dir():
            return False
        target = Path(entry.path).resolve()
        return any(target.is_relative_to(folder) or folder.is_relative_to(target) for folder in self.folders)

    def _short(self, path: Path) -> str:
        folder = next((folder for folder in self.folders if path.is_relative_to(folder)), path.parent)
        return str(path.relative_to(folder))

    def _look(self) -> dict[Path, State]:
        if self.too_many:
            return {}
        found: dict[Path, State] = {}
        for folder in self.folders:
            for path, state in self._walk(str(folder)):
                found[path] = state
                if len(found) > MOST_FILES:
                    self.too_many = True
                    return {}
        return found

    def _walk(self, folder: str) -> Iterator[tuple[Path, State]]:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            return
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in CACHES and Path(entry.path) not in self._ours and not _is_run(entry.path):
                        yield from self._walk(entry.path)
                elif not entry.name.endswith(".pyc") and not self._leads_inside(entry):
                    facts = entry.stat()
                    yield Path(entry.path), (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            except OSError:
                continue  # gone meanwhile, or a link to nothing


def _is_run(folder: str) -> bool:
    """Whether a run of ours is in it."""
    if not os.path.isfile(os.path.join(folder, "run.json")):
        return False
    return any(os.path.lexists(os.path.join(folder, part)) for part in ("records", "witness", "shards", ".lock"))


def _is_its_own(path: Path, trial: str) -> bool:
    """Whether the trial's own name is in it, as {trial} writes it: no other trial asks for that."""
    return any(trial in part for part in path.parts)


def shown(files: list[str]) -> str:
    """For a flag."""
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(files[:SHOWN]) + more
