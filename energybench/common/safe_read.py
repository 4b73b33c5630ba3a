"""Reading files that others wrote: regular files of a bounded size, inside the folder they stand in.

Suites and records come from strangers. A path in one, or a link beside it, is followed only inside its own folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

LONGEST_NAME_B, LONGEST_PATH_B = 255, 4095  # of a file, and of a whole path, on Linux
CHUNK_B = 1 << 13  # that are read at once of what does not say how large it is


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


def read_bytes(path: Path, most_b: int, head_b: int | None = None) -> bytes:
    """The content of a regular file of at most `most_b` bytes; no more than its first `head_b`, where that is given.

    Raises:
        OSError: It cannot be read, or NotRegularFile; `strerror` says what is wrong.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    except ValueError:
        raise NotRegularFile(0, "no file can have this name") from None
    return read_regular(handle, most_b, head_b)


def read_regular(handle: int, most_b: int, head_b: int | None = None) -> bytes:
    """The same of an open file, which is closed. Raises OSError."""
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise NotRegularFile(0, "it is no regular file")
        content = b"" if facts.st_size > most_b else _up_to(handle, facts.st_size, most_b + 1, head_b)
        if max(facts.st_size, len(content)) > most_b:
            raise NotRegularFile(0, f"it is larger than the {most_b:,} bytes that such a file may have")
        return content
    finally:
        os.close(handle)


def _up_to(handle: int, size_b: int, most_b: int, head_b: int | None) -> bytes:
    """Its bytes, which are about `size_b`: at most so many of them."""
    most_b = most_b if head_b is None else head_b
    pieces, left = [], most_b
    while left > 0 and (piece := os.read(handle, min(left, max(size_b + 1, CHUNK_B)))):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
