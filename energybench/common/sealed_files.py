"""Atomic writes, and JSON files with a checksum that is verified when they are read.

A seal is the SHA-256 checksum of everything else in a JSON file, as its last key. It detects accidental edits and
damaged transfers. It is not a signature: whoever edits a file on purpose can compute it again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from energybench.common.errors import CannotWrite, Problem, UsageError
from energybench.common.interrupts import ANNOUNCING, ENDING
from energybench.common.limits import RECORD_B
from energybench.common.safe_read import name_too_long, read_bytes

INTERRUPTS = (signal.SIGINT, *ENDING, *ANNOUNCING)
PART_SUFFIX = ".part"  # the suffix of a file that is being written
SHOWN = 40  # characters of its name that stand in its temporary one, which would else be longer than a name may be


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8. Raises CannotWrite E620."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: under a temporary name in the same folder, synced, then renamed.

    Ctrl-C and the signals that end work from outside are handled after it. Folders that are missing are made.

    Raises:
        CannotWrite: E620, the disk is full or read-only, or no file can have this name.
    """
    with signals_delayed():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                replace_at(parent, path.name, (content,))
            finally:
                os.close(parent)
        except OSError as error:
            raise CannotWrite.of(error, path) from None
        except ValueError:  # a NUL, or what the file system's encoding lacks
            raise CannotWrite.of(OSError(None, "no file can have this name"), path) from None


def replace_at(parent: int, name: str, content: Iterable[bytes]) -> None:
    """Write a new file into an open folder and give it the name; its mode is 0666 less the umask.

    Whatever had the name loses it and is not touched: another name of the same inode, or what a link leads to.

    Args:
        parent: a handle of the folder
        content: in pieces

    Raises:
        OSError: nothing is left half written.
    """
    temporary = f".{name[:SHOWN]}.{secrets.token_hex(4)}{PART_SUFFIX}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=parent)
        raise


def write_out(path: Path, content: bytes) -> None:
    """Write to a path that the user named, atomically where it is a regular file.

    Links are followed; a pipe or a device is written to and not replaced by a file.

    Raises:
        CannotWrite: E620, with a hint to name another file.
    """
    try:
        if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
            if (stream := standard_stream(path)) is not None:
                stream.write(content)
                stream.flush()
                return
            path = path.resolve()  # a name that leads nowhere becomes a file there
            if os.path.exists(path) and not os.path.isfile(path):
                with path.open("wb") as file:
                    file.write(content)
                return
        write_bytes(path, content)
    except CannotWrite as error:
        raise CannotWrite(
            [replace(problem, hint=_without_run_hint(problem.hint)) for problem in error.problems]
        ) from None
    except (OSError, RuntimeError) as error:  # a link to itself
        refusal = error if isinstance(error, OSError) else OSError(None, str(error))
        (problem,) = CannotWrite.of(refusal, path).problems
        raise CannotWrite(replace(problem, hint=_without_run_hint(problem.hint))) from None


def standard_stream(path: Path) -> BinaryIO | None:
    """sys.stdout or sys.stderr where `path` is one of them, such as /dev/stdout: opened again, a file that it is
    redirected to would be overwritten from its start."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                stream.flush()
                return stream.buffer
    return None


def _without_run_hint(hint: str) -> str:
    """The hint without its part about a run's folder."""
    return f"{hint.partition(';')[0]}, or name another file"


def refuse_unwritable(path: Path, hint: str = "name another file") -> None:
    """Raises UsageError E605 where `path` cannot be written; called before the work whose result goes there."""
    if reason := _unwritable_reason(path):
        raise UsageError(Problem("E605", f"cannot write there{reason}", str(path), hint))


def _unwritable_reason(path: Path) -> str:
    """Why `path` cannot be written, after a colon where the reason is known; empty where it seems to be writable."""
    if name_too_long(path):
        return ": no file can have this name"
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG  # it will be one
    except OSError as error:  # a file among its folders, a loop of links
        return f": {error.strerror}"
    if stat.S_ISDIR(mode):
        return ": it is a folder"
    place = path
    while stat.S_ISREG(mode) and place != place.parent:  # written beside it and renamed; a pipe is written itself
        place = place.parent
        if os.path.exists(place):
            break
    return "" if os.access(place, os.W_OK) else f": {os.strerror(errno.EACCES)}"


@contextmanager
def signals_delayed() -> Iterator[None]:
    """Delays the signals of INTERRUPTS until the block has ended.

    By handlers, since a signal mask holds for one thread only, and there may be more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals raise in the main thread
        return
    came: list[tuple[int, FrameType | None]] = []
    before = {number: handler for number in INTERRUPTS if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda *signalled: came.append(signalled))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for each, frame in came[:1]:
            before[signal.Signals(each)](each, frame)


def with_seal(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its checksum as the last key, "seal"."""
    return {**content, "seal": _seal(content)}


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False)


def _seal(content: dict[str, Any]) -> str:
    """The SHA-256 of its canonical JSON, whatever the layout on disk: keys in order, no spaces."""
    return hashlib.sha256(_CANONICAL.encode(content).encode("utf-8", "surrogatepass")).hexdigest()


def read_sealed(
    path: Path, schemas: Sequence[int], kind: str, hint: str, load: Callable[[], bytes] | None = None
) -> dict[str, Any]:
    """The content of a JSON file without its seal; a file without one (of an earlier version) is not verified.

    Args:
        path: Where it is, for messages too.
        schemas: The versions of the schema that it may have, the newest last.
        kind: What it must be a record of, for messages.
        hint: What to do with a file that is damaged or was edited.
        load: Gives its bytes or raises OSError; by default those at `path`.

    Raises:
        UsageError: E601 missing, cut short or no JSON object; E621 edited; E622 another schema.
    """
    return read_with_seal(path, schemas, kind, hint, load)[0]


def read_with_seal(
    path: Path,
    schemas: Sequence[int],
    kind: str,
    hint: str | Callable[[], str],
    load: Callable[[], bytes] | None = None,
) -> tuple[dict[str, Any], bytes]:
    """The same, and what is equal in two files only if they say the same: the seal, or the hash of what has none.

    hint: or what gives it, asked only where something is wrong
    """

    def told() -> str:
        return hint if isinstance(hint, str) else hint()

    try:
        written = load() if load else read_bytes(path, RECORD_B)
        if (whole := _whole(written, schemas)) is not None:
            return whole
        content = json.loads(written, parse_constant=_refuse)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except OSError as error:
        other = f"name a {kind} record, or a run's folder: one that holds a run.json"
        raise UsageError(Problem("E601", f"cannot read it: {error.strerror}", str(path), other)) from None
    except (ValueError, RecursionError) as error:
        message = f"not a whole {kind} record: {error or 'nested too deeply'}"
        raise UsageError(Problem("E601", message, str(path), told())) from None
    seal = content.pop("seal", None)
    schema = content.get("schema", schemas[-1])
    if type(schema) is not int or schema not in schemas:  # 3.0 and true are equal to whole numbers
        raise UsageError(_other_schema(content["schema"], schemas, path))
    if seal is None:
        return content, hashlib.sha256(written).digest()
    if seal != (known := _seal(content)):
        message = "its content was changed after it was written: the seal does not hold"
        raise UsageError(Problem("E621", message, str(path), told()))
    return content, bytes.fromhex(known)


def _other_schema(schema: Any, known: Sequence[int], path: Path) -> Problem:
    hint = "read it with the energybench that wrote it: run.json names its version, under machine"
    if isinstance(schema, int) and schema > max(known):
        hint = "a newer energybench wrote it: pip install -U energybench"
    message = f"it is of schema {schema!r}; this energybench reads schema {' and '.join(map(str, known))}"
    return Problem("E622", message, str(path), hint)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _whole(written: bytes, schemas: Sequence[int]) -> tuple[dict[str, Any], bytes] | None:
    """The content and the seal of a file of which nothing needs to be said, by a parser that is twice as fast: its seal
    holds for what that parser read. None for any other, of which json tells what is wrong."""
    from pydantic_core import from_json

    try:
        content = from_json(written, allow_inf_nan=False)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(seal := content.pop("seal", None), str):
        return None
    if type(schema := content.get("schema")) is not int or schema not in schemas:
        return None
    return (content, bytes.fromhex(seal)) if seal == _seal(content) else None
