"""Processes, by the kernel's own lists: which descend from one, whether one is dead, who inherits, who dies with whom.

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
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LONGEST_SOCKET = 107  # bytes of a path, on Linux
SOCKET_BYTES = len("/pymp-12345678/listener-12345678")  # multiprocessing's own folder, and a socket in it
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
# Loaded before any fork: a child that runs nothing but its first instructions loads no library.
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Linux's alone


def descendants(ancestor: int) -> set[int]:
    """Every process that descends from this one, the dead too that nobody has asked after.

    A look at all processes of a machine takes milliseconds, in which sensors that are already running would bill it,
    and a process that forks every millisecond gets away.
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
    """The same from every process's parent, where the kernel keeps no lists."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return {child.pid for child in psutil.Process(ancestor).children(recursive=True)}
    return set()


def is_dead(pid: int) -> bool:
    """Gone, or a zombie that nobody has asked after."""
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
    """Descendants whose parent has died become our children instead of init's, however they detached."""
    _prctl(PR_SET_CHILD_SUBREAPER, int(yes))


def die_with(parent: int, number: int) -> None:
    """In a new child: the kernel is to send it this signal when `parent` is gone, and now if that is so already."""
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def shorten_socket_folder() -> None:
    """To be called before multiprocessing listens anywhere, as its server and a loader's workers do: on a socket in a
    folder of its own in TMPDIR, whose path may be too long for one. Then that folder is made in another place."""
    from multiprocessing.util import get_temp_dir

    if len(os.fsencode(tempfile.gettempdir())) + SOCKET_BYTES <= LONGEST_SOCKET:
        return
    before = tempfile.tempdir
    tempfile.tempdir = next((folder for folder in SHORT_FOLDERS if os.access(folder, os.W_OK | os.X_OK)), before)
    try:
        get_temp_dir()  # which it keeps, and hands on to every process that it starts
    finally:
        tempfile.tempdir = before


def restore_child_signals() -> None:
    """Whoever starts us may have us ignore SIGCHLD, as some supervisors do: then nobody learns how a child ended, and
    Python takes every end for a good one."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _prctl(option: int, value: int) -> None:
    if PRCTL is not None:
        PRCTL(option, value, 0, 0, 0)


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """A Ctrl-C is the caller's: who is started meanwhile ignores it from its first instruction, and nothing that is
    being ended is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
