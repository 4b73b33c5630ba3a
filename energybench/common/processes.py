"""Process trees and signals on Linux: descendants, zombies, orphans, and signals that end a child with its parent.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

CHILDREN_LIST = Path("/proc/thread-self/children")
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
LONGEST_SOCKET = 107  # bytes of a path, on Linux
SOCKET_BYTES = len("/pymp-12345678/listener-12345678")  # multiprocessing's own folder, and a socket in it
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", os.environ.get("XDG_RUNTIME_DIR", "/run"))
# Loaded before any fork: a child that runs nothing but its first instructions loads no library.
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Linux's alone


def descendants(ancestor: int) -> set[int]:
    """PIDs of all descendants of a process, zombies included.

    Read from the kernel's lists of children: scanning all processes of a machine takes milliseconds, which sensors that
    are running would measure, and misses a process that forks every millisecond.
    """
    if not CHILDREN_LIST.exists():
        return by_parents(ancestor)
    pids: set[int] = set()
    unseen = [ancestor]
    while unseen:
        # What has just ended, a thread or a process: its children are orphans, and stand in another list.
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{unseen.pop()}/task").iterdir():
                with contextlib.suppress(OSError):
                    below = {int(pid) for pid in (thread / "children").read_text(encoding="ascii").split()} - pids
                    pids |= below
                    unseen += below
    return pids


def by_parents(ancestor: int) -> set[int]:
    """The same from each process's parent PID, where the kernel has no lists of children."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return {child.pid for child in psutil.Process(ancestor).children(recursive=True)}
    return set()


def is_dead(pid: int) -> bool:
    """Whether a process is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # whose name may be cut in the middle of a letter
        return stat.rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return CHILDREN_LIST.parent.exists() or _is_dead_elsewhere(pid)


def _is_dead_elsewhere(pid: int) -> bool:
    """Where there is no /proc."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def adopt_orphans(yes: bool = True) -> None:
    """Makes this process (or no longer) the parent of descendants whose parent dies, in place of init."""
    _prctl(PR_SET_CHILD_SUBREAPER, int(yes))


def die_with(parent: int, number: int) -> None:
    """In a new child: have the kernel send it signal `number` when `parent` dies; ends now if that has happened."""
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def shorten_socket_folder() -> None:
    """Makes multiprocessing's folder for sockets elsewhere where TMPDIR is too long for the path of a socket.

    To be called before multiprocessing starts a server or a loader's workers.
    """
    from multiprocessing.util import get_temp_dir

    if len(os.fsencode(tempfile.gettempdir())) + SOCKET_BYTES <= LONGEST_SOCKET:
        return
    before = tempfile.tempdir
    short = (folder for folder in SHORT_FOLDERS if len(os.fsencode(folder)) + SOCKET_BYTES <= LONGEST_SOCKET)
    tempfile.tempdir = next((folder for folder in short if os.access(folder, os.W_OK | os.X_OK)), before)
    try:
        get_temp_dir()  # which it keeps, and hands on to every process that it starts
    finally:
        tempfile.tempdir = before


def name_thread(name: str) -> None:
    """Give this thread a name that other processes see, of 15 bytes at most: /proc/PID/task/*/comm."""
    if PRCTL is not None:
        PRCTL(PR_SET_NAME, name.encode(), 0, 0, 0)


def restore_child_signals() -> None:
    """Restores the default handling of SIGCHLD where the parent process had it ignored, as some supervisors do.

    While it is ignored no exit status of a child can be read, and Python takes each for 0.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _prctl(option: int, value: int) -> None:
    if PRCTL is not None:
        PRCTL(option, value, 0, 0, 0)


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Ignores SIGINT inside the block; children that are started there inherit that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
