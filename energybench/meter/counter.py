"""Cumulative energy counters that move in ticks, read so that a window is billed for exactly its own time.

    edge ── head ──┤ the window ├── tail ── edge ── tick ── tick
                 start         end

Work starts on an edge of the first counter; the others' edges lie a known head earlier. After the end comes a tail
until the next edge, in which the device idles. Head and tail are subtracted as power × time, the power taken from the
neighbouring ticks; the window is never scaled by time, which would flatter the faster method.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from energybench.meter.clock import Time

PAUSE_S = 0.0005  # between two reads of a counter while an edge is awaited
LONGEST_TICK_S = 0.5  # ticks of 10–100 ms have been seen; past this a counter stands still
RESOLUTION_J = 0.001  # NVML counts whole millijoules
# Detail of a figure that is null because the window was too short: what it may have been.
AT_MOST = "at_most_j"


class SensorError(Exception):
    """A read failed; the text says why."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A counter was seen to move: when (the middle of the two reads, and half their distance) and to what."""

    time_ns: int
    half_ns: int
    joules: float


@dataclass(frozen=True, slots=True)
class Tick:
    """How often a counter moves."""

    seconds: float  # median
    least_s: float
    most_s: float
    edges: int


@dataclass(frozen=True, slots=True)
class CounterFigure:
    """One counter's energy in one window; null with its reason."""

    joules: float | None = None
    error_j: float | None = None
    reason: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


class EdgeWatch:
    """Polls counters and collects their edges, all on one clock. A counter that fails or stands still is `lost`."""

    def __init__(self, reads: Mapping[str, Callable[[], float]], time: Time) -> None:
        self._reads, self._time = dict(reads), time
        self.edges: dict[str, list[Edge]] = {device: [] for device in reads}
        self.lost: dict[str, str] = {}

    @property
    def alive(self) -> list[str]:
        return [device for device in self._reads if device not in self.lost]

    def until(self, enough: Callable[[str], bool]) -> None:
        """Return at once after the first edge for whose device `enough` is true, or when no counter is left."""
        now_ns = self._time.now_ns
        last_read: dict[str, tuple[int, float]] = {}
        since = dict.fromkeys(self._reads, now_ns())
        while self.alive:
            for device in self.alive:
                asked_ns = now_ns()
                try:
                    joules = self._reads[device]()
                except SensorError as error:
                    self.lost[device] = str(error)
                    continue
                answered_ns = now_ns()
                before = last_read.get(device)
                last_read[device] = (asked_ns, joules)
                if before is not None and joules < before[1]:
                    self.lost[device] = "the counter was reset"
                elif before is not None and joules > before[1]:
                    since[device] = answered_ns
                    middle = (before[0] + answered_ns) // 2
                    self.edges[device].append(Edge(middle, (answered_ns - before[0]) // 2, joules))
                    if enough(device):
                        return
                elif answered_ns - since[device] > LONGEST_TICK_S * 1e9:
                    self.lost[device] = f"the counter stood still for {LONGEST_TICK_S:g} s"
            self._time.sleep(PAUSE_S)


def infer_tick(read: Callable[[], float], time: Time, edges: int = 11) -> Tick:
    """How often the counter moves, from at least 10 intervals. Raises SensorError if it does not."""
    watch = EdgeWatch({"": read}, time)
    watch.until(lambda _: len(watch.edges[""]) >= edges)
    if watch.lost:
        raise SensorError(watch.lost[""])
    times = [edge.time_ns for edge in watch.edges[""]]
    gaps = [(b - a) / 1e9 for a, b in itertools.pairwise(times)]
    return Tick(statistics.median(gaps), min(gaps), max(gaps), len(times))


class Counters:
    """The counters of the devices that a window uses.

    reads:        device → joules so far; raises SensorError
    tail_power_w: device → what it draws after the end, where that is known; else it is measured, and the error says
                  how far the first moments after the end may lie from it
    """

    def __init__(
        self, reads: Mapping[str, Callable[[], float]], time: Time, tail_power_w: Mapping[str, float] | None = None
    ) -> None:
        self._reads, self._time, self._tail_power_w = dict(reads), time, dict(tail_power_w or {})
        self._before = EdgeWatch({}, time)
        self._start_ns = 0
        self._last_j: dict[str, float] = {}
        self._lost: dict[str, str] = {}

    def start(self) -> None:
        """Returns on an edge of the first counter: the work may begin."""
        self._last_j, watch = {}, EdgeWatch(self._reads, self._time)
        watch.until(lambda device: device == watch.alive[0] and all(len(watch.edges[d]) >= 3 for d in watch.alive))
        self._before, self._lost, self._start_ns = watch, dict(watch.lost), self._time.now_ns()

    def check_for_reset(self) -> None:
        """From time to time inside a window: a counter that went back was reset, however far it has come since."""
        for device in [device for device in self._reads if device not in self._lost]:
            try:
                joules = self._reads[device]()
            except SensorError as error:
                self._lost[device] = str(error)
                continue
            if joules < self._last_j.get(device, 0.0):
                self._lost[device] = "the counter was reset"
            self._last_j[device] = joules

    def stop(self, end_ns: int) -> dict[str, CounterFigure]:
        """end_ns: when the window ended, just now."""
        last_j = dict(self._last_j)  # before the edges to come, for the background goes on reading
        reads = {device: read for device, read in self._reads.items() if device not in self._lost}
        after = EdgeWatch(reads, self._time)
        after.until(lambda _: all(len(after.edges[d]) >= 3 for d in after.alive))
        self._lost |= after.lost
        return {
            device: self._figure(device, after.edges.get(device, []), end_ns, last_j.get(device))
            for device in self._reads
        }

    def _figure(self, device: str, after: list[Edge], end_ns: int, last_j: float | None) -> CounterFigure:
        """last_j: what the last read inside the window gave."""
        if device in self._lost:
            return CounterFigure(reason=self._lost[device])
        start, end = self._before.edges[device][-1], after[0]
        raw = end.joules - start.joules
        if not start.joules <= (start.joules if last_j is None else last_j) <= end.joules:
            return CounterFigure(reason="the counter was reset")
        seconds = (end_ns - self._start_ns) / 1e9
        head_s = max(0, self._start_ns - start.time_ns) / 1e9
        tail_s = max(0, end.time_ns - end_ns) / 1e9
        head_w, head_error_w = _power(*self._before.edges[device][-2:])
        before_w, _ = _power(*self._before.edges[device][-3:-1])
        tail_w, tail_error_w = _power(after[0], after[1])
        next_w, _ = _power(after[1], after[2])
        if device in self._tail_power_w:
            tail_w, tail_error_w = self._tail_power_w[device], 0.0
        joules = raw - head_w * head_s - tail_w * tail_s
        if device not in self._tail_power_w:
            # Power may have fallen to the next tick's level at once or only just before the edge.
            tail_error_w += max(abs(joules / seconds - tail_w), abs(tail_w - next_w)) if seconds else tail_w
        head_error_j = head_s * (head_error_w + abs(head_w - before_w)) + start.half_ns / 1e9 * head_w
        # A tail draws no less than nothing and no more than what was counted: in a window shorter than a tick its
        # mean power is mostly noise.
        tail_error_j = min(tail_s * tail_error_w, max(tail_s * tail_w, joules + head_error_j))
        error = head_error_j + tail_error_j + end.half_ns / 1e9 * tail_w + 2 * RESOLUTION_J
        gaps = [*_gaps(self._before.edges[device]), *_gaps(after)]
        if joules <= 0:
            reason = "the counter did not move: the window is shorter than its tick"
            short = joules + error >= 0 and seconds < statistics.median(gaps)
            return CounterFigure(reason=reason, detail={AT_MOST: joules + error} if short else {})
        detail = {
            "tick_s": statistics.median(gaps),
            "head_s": head_s,
            "head_w": head_w,
            "tail_s": tail_s,
            "tail_w": tail_w,
        }
        return CounterFigure(joules, error, None, detail)


def _power(first: Edge, second: Edge) -> tuple[float, float]:
    """(watts between two edges, how far off they may be)."""
    seconds = max(1, second.time_ns - first.time_ns) / 1e9
    watts = (second.joules - first.joules) / seconds
    return watts, (watts * (first.half_ns + second.half_ns) / 1e9 + 2 * RESOLUTION_J) / seconds


def _gaps(edges: list[Edge]) -> list[float]:
    return [(b.time_ns - a.time_ns) / 1e9 for a, b in itertools.pairwise(edges)]
