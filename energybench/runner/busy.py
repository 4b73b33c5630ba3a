"""Who else uses this machine, looked at before the first trial: told then, kept in the run, no verdict by itself.

A run on a machine that others use sees only large savings. Whoever starts one should know it before it has run for an
hour, and by whom: other processes, the host of a virtual machine, a quota of the container, heat. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from energybench.common.processes import descendants
from energybench.common.processors import CGROUPS, usable
from energybench.meter.clock import busy_s, stolen_s

SHORTEST_S = 0.1  # between two looks: the kernel counts in hundredths of a second
OTHERS_REL = 0.1  # of the processors that may be used, that others keep busy
STOLEN_REL = 0.02  # of one processor, that the host takes away
MOST_NAMED = 3
SYSTEM = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Seen:
    """What is read twice, a moment apart. Seconds are of all processors; None where it is not known."""

    busy_s: float | None
    stolen_s: float | None
    own_s: float
    hot: int  # times that a processor slowed down by heat
    held_s: float  # by a container's quota
    by_process: dict[int, tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Busy:
    """What disturbs: sentences for people, and facts for the record."""

    sentences: tuple[str, ...]
    facts: dict[str, Any]


class Watch:
    """Sees who uses the machine from when it is made until it is asked; in between this process works as it likes."""

    def __init__(self, see: Callable[[], Seen] | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._see, self._now_s = see or read, now_s
        self._before, self._began_s = self._see(), now_s()

    def disturbed(self) -> Busy | None:
        """None where nobody disturbs, or the time was too short to see it."""
        elapsed_s = self._now_s() - self._began_s
        if elapsed_s < SHORTEST_S:
            return None
        return told(self._before, self._see(), elapsed_s, usable(), os.getloadavg()[0])


def told(before: Seen, after: Seen, elapsed_s: float, cores: int, load: float) -> Busy | None:
    """What changed between two looks, where it is enough to disturb a measurement.

    Args:
        cores: that this process may use
        load:  processes that ran or wanted to, over the last minute
    """
    sentences, facts = list[str](), dict[str, Any]()
    others_s = _grown(before.busy_s, after.busy_s)
    if others_s is not None:
        others_s = max(0.0, others_s - (after.own_s - before.own_s))
        if others_s > OTHERS_REL * cores * elapsed_s:
            names = _names(before, after)
            who = f": {', '.join(names)}" if names else ""
            sentences.append(f"others use {others_s / elapsed_s:.1f} of {cores} processors (load {load:.1f}){who}")
            facts |= {"others_rel": others_s / elapsed_s / cores, "load_average": load, "processes": names}
    stolen = _grown(before.stolen_s, after.stolen_s)
    if stolen is not None and stolen > STOLEN_REL * elapsed_s:
        sentences.append(f"the host takes {100 * stolen / elapsed_s:.0f} % of a processor away")
        facts["stolen_rel"] = stolen / elapsed_s
    if after.hot > before.hot:
        sentences.append("processors slow down by heat")
        facts["throttled"] = "heat"
    if after.held_s > before.held_s:
        sentences.append("the container's quota holds processes back")
        facts["throttled"] = "quota"
    return Busy(tuple(sentences), facts) if sentences else None


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)


def _names(before: Seen, after: Seen) -> list[str]:
    """Of the processes that used most meanwhile, most first; those of containers beside this one are not seen."""
    used = {
        pid: (name, seconds - before.by_process.get(pid, (name, 0.0))[1])
        for pid, (name, seconds) in after.by_process.items()
    }
    by_use = sorted(used.values(), key=lambda each: -each[1])
    return list(dict.fromkeys(name for name, seconds in by_use if seconds > 0))[:MOST_NAMED]


def read(system: Path = SYSTEM, cgroups: Path = CGROUPS) -> Seen:
    """One look. Where no process can be seen, /proc being empty, it is not known what others do."""
    ours = {os.getpid(), *descendants(os.getpid())}
    by_process, own_s = dict[int, tuple[str, float]](), 0.0
    try:
        processes = list(psutil.process_iter())
    except (OSError, psutil.Error, IndexError):  # psutil takes the first of none
        processes = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            if process.pid in ours:  # what has ended is counted by whoever waited for it
                own_s += float(sum(times[:4]))
            else:
                by_process[process.pid] = (process.name(), float(sum(times[:2])))
    return Seen(
        busy_s=busy_s() if processes else None,
        stolen_s=stolen_s(),
        own_s=own_s,
        hot=sum(_numbers(system.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))),
        held_s=_held_s(cgroups / "cpu.stat"),
        by_process=by_process,
    )


def _numbers(files: Iterable[Path]) -> list[int]:
    found = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(file.read_text(encoding="ascii")))
    return found


def _held_s(file: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="ascii").splitlines():
            if line.startswith("throttled_usec "):
                return int(line.split()[1]) / 1e6
    return 0.0
