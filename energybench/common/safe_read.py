"""Reading files that others wrote: regular files of a bounded size, inside the folder they stand in.

Suites and records come from strangers. A path in one, or a link beside it, is followed only inside its own folder.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from pathlib import Path

from energybench.common.errors import Problem, UsageError

LONGEST_NAME_B, LONGEST_PATH_B = 255, 4095  # of a file, and of a whole path, on Linux


def unreadable_reason(path: Path | str) -> str:
    """Why no file can be read at `path`, as the end of a sentence that begins with its name: "does not exist".

    `Path.is_file` raises where a name is too long or a folder may not be entered; `os.path.isfile` only says no.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:  # a NUL, or what the file system's encoding lacks
        return "cannot be the name of a file"
    return "is a folder" if stat.S_ISDIR(mode) else "is no regular file"


def name_too_long(path: Path) -> bool:
    """Whether Linux allows no file of this name or path, whether or not its folders exist."""
    try:
        parts = [os.fsencode(part) for part in path.parts]
    except ValueError:
        return True
    whole = os.fsencode(os.path.abspath(path)) if b"\0" not in b"".join(parts) else b"\0"
    return whole == b"\0" or len(whole) > LONGEST_PATH_B or any(len(part) > LONGEST_NAME_B for part in parts)


def list_folder(folder: Path, suffix: str = "") -> list[Path]:
    """The entries of a folder whose names end with `suffix`, sorted; none where it cannot be listed."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(suffix)]
    except (OSError, ValueError):
        return []


class NotRegularFile(OSError):
    """Not a regular file (a pipe would block, a device never ends), or larger than allowed."""


def read_bytes(path: Path, most_b: int) -> bytes:
    """The content of a regular file of at most `most_b` bytes.

    Raises:
        OSError: It cannot be read, or NotRegularFile; `strerror` says what is wrong.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    except ValueError:
        raise NotRegularFile(0, "no file can have this name") from None
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise NotRegularFile(0, "it is no regular file")
        content = b"" if facts.st_size > most_b else file.read(most_b + 1)
        if max(facts.st_size, len(content)) > most_b:
            raise NotRegularFile(0, f"it is larger than the {most_b:,} bytes that such a file may have")
        return content


def resolve_inside(folder: Path, name: str | Path) -> Path | None:
    """`folder`/`name` with all links resolved; None where that is not below `folder`, or cannot be a path."""
    try:
        home = folder.resolve()
        path = (home / name).resolve()
    except (OSError, ValueError, RuntimeError):  # a name of NUL bytes, a link to itself
        return None
    return path if home in path.parents else None


def path_inside(folder: Path, path: Path) -> Path:
    """`path`, which is in `folder`. Raises UsageError E612 where a link leads out of the folder."""
    if resolve_inside(folder, path.relative_to(folder)) is None:
        message = "a link that leads out of the run's folder; it is neither read nor written"
        raise UsageError(Problem("E612", message, str(path), "put the file itself there"))
    return path


def paths_inside(folder: Path, part: str, pattern: str) -> list[Path]:
    """The files of `folder`/`part` that match `pattern`, sorted; none where there is no such folder.

    Raises:
        UsageError: E612 for a link that leads out of `folder`; E601 where it exists and cannot be listed.
    """
    place = folder / part
    if place.is_symlink():
        path_inside(folder, place)
    try:
        paths = [place / name for name in sorted(fnmatch.filter(os.listdir(place), pattern))]
    except FileNotFoundError:
        return []
    except OSError as error:
        hint = "a run's folder holds a folder of this name"
        raise UsageError(Problem("E601", f"cannot look into it: {error.strerror}", str(place), hint)) from None
    return [path_inside(folder, path) if path.is_symlink() else path for path in paths]
