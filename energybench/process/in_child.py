"""What a child of the fork server does before and after the function that it was started for.

It becomes a guard and, below it, the child itself: with the caller's folder, environment and module path, and its log.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from energybench.common import module_path
from energybench.common.errors import EXIT_CANNOT_WRITE, CannotWrite
from energybench.common.held_folder import FolderIdentity, HeldFolder
from energybench.process import heap_layout
from energybench.process.isolated import isolate_interpreters
from energybench.process.reaper import fork_below_guard

PRELOAD = "energybench.cli.preload"


def be_silent_about_callers_that_left() -> None:
    """Called in the server, once. A caller that is interrupted while it says what to start leaves half a message: the
    server, or the child that reads it, ends, and its traceback would stand in the output of the run."""
    sys.excepthook = _tell_unless_the_caller_left


def _tell_unless_the_caller_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, (EOFError, pickle.UnpicklingError)):
        sys.__excepthook__(kind, error, trace)


def run(
    target: str,
    folder: str,
    environment: dict[str, str],
    path: tuple[list[str], list[str]],
    in_path: str,
    out_path: str,
    log: str | None,
    usage: str | None = None,
    log_folder: FolderIdentity | None = None,
    line: Connection[bytes, bytes] | None = None,
) -> None:
    """Become the child below a guard, and call the function. Arguments: as `Launcher.start` has them."""
    global _line
    _line = line
    sys.excepthook = sys.__excepthook__
    _close_inherited_server_pipe()
    module_path.use(*path)  # multiprocessing has set the caller's, with its folder
    isolate_interpreters()  # workers of the trial's
    keep_freed_memory()
    heap_layout.draw()
    os.environ.clear()  # the server knows it only as it was at its start
    os.environ.update(environment)
    fork_below_guard(getattr(sys.modules.get(PRELOAD), "SERVER", os.getppid()), usage)
    if not os.path.exists(in_path):  # the caller was interrupted and has tidied up
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir(folder)  # the caller's, which the server knows only as it was at its start
    if log:
        try:
            handle = _open_log(Path(log), log_folder)
        except CannotWrite as error:
            _exit_unwritten(error)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(in_path, out_path)
    except CannotWrite as error:
        _exit_unwritten(error)
    sys.stdout.flush()
    sys.stderr.flush()


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, up to blocks of 32 MiB; whether it does. Every trial has this, whatever it trains.

    By itself glibc moves its thresholds as a program goes, and what the heap happens to end with decides whether each
    step's tensors are given back to the kernel and faulted in again: equal trainings of small steps were then seen to
    take 1.4 or 2.2 CPU seconds, each process the one or the other for its life.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(m_mmap_threshold, 32 << 20)) and bool(mallopt(m_trim_threshold, 1 << 30))


_line: Connection[bytes, bytes] | None = None  # of this process, where it is a child that converses


def line() -> Connection[bytes, bytes] | None:
    """In a child that was started `conversing`: the line to whoever started it. None elsewhere."""
    return _line


def _open_log(path: Path, identity: FolderIdentity | None) -> int:
    """A handle that appends to it. Raises CannotWrite."""
    if identity is None:
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise CannotWrite.of(error, path) from None
    with HeldFolder.reopen(identity) as folder:
        return folder.append(path.relative_to(identity.path).as_posix())


def _close_inherited_server_pipe() -> None:
    """The server ends when nobody holds the write end of a pipe any more. multiprocessing hands each child a copy, and
    a trial of hours would keep the server, and so itself, alive when the run is killed."""
    server = getattr(multiprocessing.forkserver, "_forkserver", None)
    handle = getattr(server, "_forkserver_alive_fd", None)
    if isinstance(handle, int):
        os.close(handle)
        server._forkserver_alive_fd = None  # type: ignore[union-attr]


def _exit_unwritten(error: CannotWrite) -> None:
    """Say it in the log, if that has room, and by the status in any case."""
    with contextlib.suppress(OSError):
        os.write(2, f"{error}\n".encode())
    os._exit(EXIT_CANNOT_WRITE)
