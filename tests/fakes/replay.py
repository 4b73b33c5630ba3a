"""A virtual clock, and a recorded power trace played back on it as if it were a sensor."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from pathlib import Path

from energybench.meter.clock import Time
from energybench.meter.reading import Energy, Reading
from energybench.meter.trace import integrate, read


class VirtualTime:
    """Time that moves only when somebody sleeps; background calls happen on their exact due times."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns, self._order, self._suspended_ns = start_ns, count(), 0
        self._due: list[tuple[int, int, int, Callable[[], object]]] = []  # (when, order, period, call), a heap

    def now_ns(self) -> int:
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        self.advance_ns(round(seconds * 1e9))

    def suspended_ns(self) -> int:
        return self._suspended_ns

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: this clock stands still meanwhile, as the monotonic one does."""
        self._suspended_ns += round(seconds * 1e9)

    def advance_ns(self, nanoseconds: int) -> None:
        until = self._now_ns + nanoseconds
        while self._due and self._due[0][0] <= until:
            when, order, period_ns, call = heapq.heappop(self._due)
            self._set(max(self._now_ns, when))
            heapq.heappush(self._due, (when + period_ns, order, period_ns, call))
            call()  # may itself take time
        self._set(max(self._now_ns, until))

    def every(self, period_s: float, call: Callable[[], object]) -> Callable[[], float]:
        period_ns, order = round(period_s * 1e9), next(self._order)
        heapq.heappush(self._due, (self._now_ns + period_ns, order, period_ns, call))

        def stop() -> float:
            self._due = [entry for entry in self._due if entry[1] != order]
            heapq.heapify(self._due)
            return 0.0

        return stop

    def _set(self, now_ns: int) -> None:
        self._now_ns = now_ns


class Replay:
    """A meter that sees a recorded trace again, device by device. It measures nothing: its source is `replay(FILE)`."""

    def __init__(self, path: Path, time: Time) -> None:
        self.path, self._time = path, time
        self._traces: dict[str, tuple[list[float], list[float]]] = {}
        for sample in read(path):
            if sample.power_w is not None:
                times, powers = self._traces.setdefault(sample.device, ([], []))
                times.append(sample.time_ns / 1e9)
                powers.append(sample.power_w)
        self._origin_ns = time.now_ns()
        self._start_s = 0.0

    def start(self) -> None:
        self._start_s = self._now_s()

    def stop(self) -> Reading:
        end_s = self._now_s()
        found = []
        for device, (times, powers) in self._traces.items():
            joules, error_j = integrate(times, powers, self._start_s, end_s)
            found.append(
                Energy(
                    source=f"replay({self.path.name})",
                    scope="gpu" if device.startswith("GPU-") else "cpu",
                    device=device,
                    energy_j=joules,
                    error_j=error_j,
                )
            )
        return Reading(wall_s=end_s - self._start_s, energy=found)

    def _now_s(self) -> float:
        return (self._time.now_ns() - self._origin_ns) / 1e9
