"""Files of others, read: regular, of a bounded size, and inside the folder they stand in. What we write: kept.py.

Suites and records come from strangers. A path in one, or a link beside it, is followed only inside its own folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from energybench.errors import Problem, UsageError


class NotPlain(OSError):
    """What is no regular file, or larger than it may be: a pipe would be waited for, a device never ends."""


def read_bytes(path: Path, most_b: int) -> bytes:
    """A regular file of at most `most_b` bytes. Raises OSError, whose `strerror` says what is wrong."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise NotPlain(0, "it is no regular file")
        content = b"" if facts.st_size > most_b else file.read(most_b + 1)
        if max(facts.st_size, len(content)) > most_b:
            raise NotPlain(0, f"it is larger than the {most_b:,} bytes that such a file may have")
        return content


def inside(folder: Path, name: str | Path) -> Path | None:
    """`folder`/`name` with every link followed; None where that is not below `folder`, or cannot be a path."""
    try:
        home = folder.resolve()
        path = (home / name).resolve()
    except (OSError, ValueError, RuntimeError):  # a name of NUL bytes, a link to itself
        return None
    return path if home in path.parents else None


def held(folder: Path, path: Path) -> Path:
    """`path`, which stands in `folder`. Raises UsageError E612 where a link leads out of it."""
    if inside(folder, path.relative_to(folder)) is None:
        message = "a link that leads out of the run's folder; it is neither read nor written"
        raise UsageError(Problem("E612", message, str(path), "put the file itself there"))
    return path


def held_in(folder: Path, part: str, pattern: str) -> list[Path]:
    """The files of `folder`/`part` that fit, in a stable order. Raises UsageError E612 as `held` does."""
    place = folder / part
    if place.is_symlink():
        held(folder, place)
    found = sorted(place.glob(pattern))
    return [held(folder, path) if path.is_symlink() else path for path in found]
