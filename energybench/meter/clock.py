"""Wall time and CPU time of the process tree, on one monotonic clock."""

from __future__ import annotations

import contextlib
import time

import psutil


class Clock:
    """start() … stop() → (wall seconds, CPU seconds of this process and its live or finished children)."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._wall_ns, self._cpu_s = 0, 0.0

    def start(self) -> None:
        self._cpu_s = self._cpu()
        self._wall_ns = time.perf_counter_ns()

    def stop(self) -> tuple[float, float]:
        wall_s = (time.perf_counter_ns() - self._wall_ns) / 1e9
        return wall_s, self._cpu() - self._cpu_s

    def _cpu(self) -> float:
        total = sum(self._process.cpu_times()[:4])  # user, system, and both of finished children
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(child.cpu_times()[:2])
        return total
