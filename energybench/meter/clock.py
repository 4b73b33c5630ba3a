"""One monotonic clock for everything, and a window's times by it: wall time, CPU time, time stolen by the host."""

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

from energybench.common.processes import descendants
from energybench.meter.reading import Reading


class Time(Protocol):
    """A clock that sensors run on: the real one, or one that a test or a replay moves."""

    def now_ns(self) -> int: ...

    def sleep(self, seconds: float) -> None: ...

    def every(self, period_s: float, call: Callable[[], object]) -> Callable[[], float]:
        """Call `call` every `period_s` in the background, from one period on. Returns what stops it: the function
        waits for a call in progress and returns the CPU seconds that the calls used."""
        ...


class RealTime:
    """`perf_counter_ns`, and a thread for what runs in the background."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def every(self, period_s: float, call: Callable[[], object]) -> Callable[[], float]:
        ended, cpu_s = threading.Event(), [0.0]

        def work() -> None:
            due = time.perf_counter() + period_s
            while not ended.wait(max(0.0, due - time.perf_counter())):
                call()
                cpu_s[0] = time.thread_time()
                due = max(due + period_s, time.perf_counter())  # a late call is not made up for by a burst

        thread = threading.Thread(target=work, name="energybench sampler", daemon=True)
        thread.start()

        def stop() -> float:
            ended.set()
            thread.join()
            return cpu_s[0]

        return stop


REAL_TIME = RealTime()  # every window's; a test puts another clock behind its methods


class Clock:
    """The meter of time: wall seconds, CPU seconds of this process and its live or finished children, steal."""

    def __init__(self) -> None:
        self._wall_ns, self._cpu_s = 0, 0.0
        self._steal_s: float | None = None

    def start(self) -> None:
        self._steal_s = stolen_s()
        self._cpu_s = self._cpu()
        self._wall_ns = REAL_TIME.now_ns()

    def stop(self) -> Reading:
        wall_s = (REAL_TIME.now_ns() - self._wall_ns) / 1e9
        steal_s = stolen_s()
        stolen = None if steal_s is None or self._steal_s is None else max(0.0, steal_s - self._steal_s)
        # A child that its parent never waited for takes its seconds with it; some hosts turn their counter back.
        return Reading(wall_s=wall_s, cpu_s=max(0.0, self._cpu() - self._cpu_s), steal_s=stolen)

    def _cpu(self) -> float:
        # To the microsecond; of children that still run the kernel counts in hundredths of a second.
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
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


def stolen_s(stat: Path = Path("/proc/stat")) -> float | None:
    """CPU seconds, all cores, in which this machine wanted to run and its host ran another; None if it is not known."""
    try:
        fields = stat.read_text(encoding="ascii").split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")  # cpu user nice system idle iowait irq softirq steal
    except (OSError, ValueError, IndexError):
        return None
