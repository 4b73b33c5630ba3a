"""How many processors this process may keep busy: by its affinity, and by the quota of the container that it is in.

Imports no torch.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """At least one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = quota(cgroups, own)
    return max(1, count if allowed is None else min(count, math.floor(allowed)))


def quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> float | None:
    """CPU seconds per second that the control groups around this process allow, the least of them; None: no limit.

    Args:
        cgroups: where the control groups are mounted
        own: the file that names this process's
    """
    found = [limit for folder in _folders(cgroups, own) if (limit := _limit(folder)) is not None]
    return min(found, default=None)


def cpuset(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int | None:
    """How many processors this process's control groups give it, the least of them; None where they do not say."""
    found = []
    for folder in _folders(cgroups, own, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):  # version 2, version 1
            count = sum(_count(span) for span in "".join(_words(folder / name)).split(","))
            found += [count] if count else []
    return min(found, default=None)


def _count(span: str) -> int:
    """Of "0-7" 8, of "3" 1; of anything else 0."""
    first, _, last = span.partition("-")
    last = last or first
    return max(0, int(last) - int(first) + 1) if first.isdecimal() and last.isdecimal() else 0


def _folders(cgroups: Path, own: Path, controller: str = "cpu") -> list[Path]:
    """This process's control group and those around it, of version 2 and of version 1's controller."""
    folders = {cgroups: None, cgroups / controller: None, cgroups / "cpu,cpuacct": None}
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        inside = Path(path.lstrip("/"))
        if ".." not in inside.parts:
            folders |= dict.fromkeys([root / inside, *(root / parent for parent in inside.parents)])
    return list(folders)


def _limit(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")  # version 2: "QUOTA PERIOD", or "max PERIOD"
    if not words:
        words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]  # −1: none
    try:
        quota_us, period_us = map(float, words)
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []
