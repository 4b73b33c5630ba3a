"""One monotonic clock for everything, and a window's times by it.

Wall time, CPU time of this process and of all others, time stolen by the host, time in which the machine slept.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from energybench.common.processes import descendants, name_thread
from energybench.meter.reading import Reading


class Time(Protocol):
    """A clock that sensors run on: the real one, or one that a test or a replay moves."""

    def now_ns(self) -> int: ...

    def sleep(self, seconds: float) -> None: ...

    def suspended_ns(self) -> int:
        """How long the machine has slept since it was started, which `now_ns` does not count."""
        ...

    def every(self, period_s: float, call: Callable[[], object]) -> Callable[[], float]:
        """Call `call` every `period_s` in the background, from one period on. Returns what stops it: the function
        waits for a call in progress and returns the CPU seconds that the calls used."""
        ...


# Bound before any code of a user's is loaded: who replaces `time.perf_counter` afterwards does not move this clock.
_perf_counter_ns, _perf_counter, _thread_time = time.perf_counter_ns, time.perf_counter, time.thread_time
_clock_gettime_ns, _getrusage = time.clock_gettime_ns, resource.getrusage


class RealTime:
    """`perf_counter_ns`, and a thread for what runs in the background."""

    def now_ns(self) -> int:
        return _perf_counter_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def suspended_ns(self) -> int:
        # Boot time goes on while the machine sleeps, monotonic time stands still. Both are read a moment apart.
        return _clock_gettime_ns(time.CLOCK_BOOTTIME) - _clock_gettime_ns(time.CLOCK_MONOTONIC)

    def every(self, period_s: float, call: Callable[[], object]) -> Callable[[], float]:
        ended, cpu_s = threading.Event(), [0.0]

        def work() -> None:
            name_thread(SAMPLER)
            due = _perf_counter() + period_s
            while not ended.wait(max(0.0, due - _perf_counter())):
                call()
                cpu_s[0] = _thread_time()
                due = max(due + period_s, _perf_counter())  # a late call is not made up for by a burst

        thread = threading.Thread(target=work, name="energybench sampler", daemon=True)
        thread.start()

        def stop() -> float:
            ended.set()
            thread.join()
            return cpu_s[0]

        return stop


PROCFS = "ENERGYBENCH_PROC"
SAMPLER = "ebench-sampler"  # the thread that reads sensors, as other processes see it
SUSPENDED_S = 0.1  # and more is a sleep: two clocks that are read one after the other differ by less
REAL_TIME = RealTime()  # every window's; a test puts another clock behind its methods


def slept_s(suspended_before_ns: int, time: Time) -> float:
    """Seconds in which the machine was suspended since `suspended_ns` gave that; 0 where it was awake."""
    seconds = (time.suspended_ns() - suspended_before_ns) / 1e9
    return seconds if seconds >= SUSPENDED_S else 0.0


class Clock:
    """The meter of time: wall seconds, CPU seconds of this process and its live or finished children and of all others,
    steal, suspend."""

    def __init__(self) -> None:
        self._wall_ns, self._cpu_s, self._suspended_ns = 0, 0.0, 0
        self._steal_s: float | None = None
        self._busy_s: float | None = None
        self._owed_s = 0.0  # of earlier pieces, by how much their own seconds were more than the machine's

    def start(self) -> None:
        self._steal_s, self._busy_s = stolen_s(), busy_s()
        self._suspended_ns = REAL_TIME.suspended_ns()
        self._cpu_s = self._cpu()
        self._wall_ns = REAL_TIME.now_ns()

    def stop(self) -> Reading:
        wall_s = (REAL_TIME.now_ns() - self._wall_ns) / 1e9
        steal_s = stolen_s()
        stolen = None if steal_s is None or self._steal_s is None else max(0.0, steal_s - self._steal_s)
        # A child that its parent never waited for takes its seconds with it; some hosts turn their counter back.
        cpu_s, busy_now_s = max(0.0, self._cpu() - self._cpu_s), busy_s()
        others = None if busy_now_s is None or self._busy_s is None else busy_now_s - self._busy_s - cpu_s
        if others is not None:  # the machine's count moves in hundredths: in many short pieces they must not add up
            others += self._owed_s
            self._owed_s = min(0.0, others)
        return Reading(
            wall_s=wall_s,
            cpu_s=cpu_s,
            steal_s=stolen,
            other_cpu_s=None if others is None else max(0.0, others),
            suspended_s=slept_s(self._suspended_ns, REAL_TIME),
        )

    def _cpu(self) -> float:
        # To the microsecond; of children that still run the kernel counts in hundredths of a second.
        usages = [_getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        total = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        for child in descendants(os.getpid()):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(psutil.Process(child).cpu_times()[:2])
        return total


class WallClock:
    """The meter of wall seconds alone: `Clock` asks for the CPU seconds of every child too, which takes a while."""

    def __init__(self) -> None:
        self._wall_ns = 0
        self.seconds = 0.0  # of all its windows

    def start(self) -> None:
        self._wall_ns = REAL_TIME.now_ns()

    def stop(self) -> Reading:
        wall_s = (REAL_TIME.now_ns() - self._wall_ns) / 1e9
        self.seconds += wall_s
        return Reading(wall_s=wall_s)


def procfs() -> Path:
    """Where the kernel tells of processes and their time: elsewhere where $ENERGYBENCH_PROC says so, as in a container
    into which the host's /proc is mounted."""
    return Path(os.environ.get(PROCFS) or "/proc")


def stolen_s(stat: Path | None = None) -> float | None:
    """CPU seconds, all cores, in which this machine wanted to run and its host ran another; None if it is not known."""
    times = _cpu_times(stat)
    return times[7] if times else None


def busy_s(stat: Path | None = None) -> float | None:
    """CPU seconds, all cores, in which anything ran on this machine, whoever's; None if it is not known."""
    times = _cpu_times(stat)
    return sum(times[:3]) + sum(times[5:7]) if times else None  # without idle and iowait


def _cpu_times(stat: Path | None) -> list[float]:
    """Seconds of all cores: user nice system idle iowait irq softirq steal; empty where they are not known."""
    try:
        fields = (stat or procfs() / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        times = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields[1:9]]
    except (OSError, ValueError):
        return []
    return times if len(times) == 8 else []
