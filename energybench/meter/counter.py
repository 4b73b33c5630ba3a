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

from energybench.meter.clock import Time, slept_s
from energybench.meter.plausible import IMPLAUSIBLE, PowerLimit, suspended

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


LimitOf = Callable[[str], PowerLimit]  # device → the most that it can draw


@dataclass(frozen=True, slots=True)
class Lost:
    """Why a counter gives no figure. `said_j`: what it said that it gained, where that is more than is possible."""

    reason: str
    said_j: float | None = None


class EdgeWatch:
    """Polls counters and collects their edges, all on one clock.

    A counter that fails, stands still or gains more than its device can draw is `lost`.
    """

    def __init__(self, reads: Mapping[str, Callable[[], float]], time: Time, limit_of: LimitOf | None = None) -> None:
        self._reads, self._time, self._limit_of = dict(reads), time, limit_of
        self.edges: dict[str, list[Edge]] = {device: [] for device in reads}
        self.lost: dict[str, Lost] = {}

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
                    self.lost[device] = Lost(str(error))
                    continue
                answered_ns = now_ns()
                before = last_read.get(device)
                last_read[device] = (asked_ns, joules)
                if before is not None and joules < before[1]:
                    self.lost[device] = Lost("the counter was reset")
                elif before is not None and joules > before[1]:
                    gained_j, still_s = joules - before[1], (answered_ns - since[device]) / 1e9
                    if self.edges[device] and (excess := _excess(self._limit_of, device, gained_j, still_s, still_s)):
                        self.lost[device] = excess  # of the first edge it is not known how long it took
                        continue
                    since[device] = answered_ns
                    middle = (before[0] + answered_ns) // 2
                    self.edges[device].append(Edge(middle, (answered_ns - before[0]) // 2, joules))
                    if enough(device):
                        return
                elif answered_ns - since[device] > LONGEST_TICK_S * 1e9:
                    self.lost[device] = Lost(f"the counter stood still for {LONGEST_TICK_S:g} s")
            self._time.sleep(PAUSE_S)


def infer_tick(read: Callable[[], float], time: Time, edges: int = 11) -> Tick:
    """How often the counter moves, from at least 10 intervals. Raises SensorError if it does not."""
    watch = EdgeWatch({"": read}, time)
    watch.until(lambda _: len(watch.edges[""]) >= edges)
    if watch.lost:
        raise SensorError(watch.lost[""].reason)
    times = [edge.time_ns for edge in watch.edges[""]]
    gaps = [(b - a) / 1e9 for a, b in itertools.pairwise(times)]
    return Tick(statistics.median(gaps), min(gaps), max(gaps), len(times))


@dataclass(frozen=True, slots=True)
class _LastLook:
    """What a counter said when it was last read inside a window."""

    time_ns: int
    joules: float


class Counters:
    """The counters of the devices that a window uses.

    reads:        device → joules so far; raises SensorError
    tail_power_w: device → what it draws after the end, where that is known; else it is measured, and the error says
                  how far the first moments after the end may lie from it
    limit_of:     the most that a device can draw; None: anything
    """

    def __init__(
        self,
        reads: Mapping[str, Callable[[], float]],
        time: Time,
        tail_power_w: Mapping[str, float] | None = None,
        limit_of: LimitOf | None = None,
    ) -> None:
        self._reads, self._time, self._tail_power_w = dict(reads), time, dict(tail_power_w or {})
        self._limit_of = limit_of
        self._before = EdgeWatch({}, time)
        self._start_ns = self._suspended_ns = 0
        self._last: dict[str, _LastLook] = {}
        self._lost: dict[str, Lost] = {}

    def start(self) -> None:
        """Returns on an edge of the first counter: the work may begin."""
        self._suspended_ns = self._time.suspended_ns()
        self._last, watch = {}, EdgeWatch(self._reads, self._time, self._limit_of)
        watch.until(lambda device: device == watch.alive[0] and all(len(watch.edges[d]) >= 3 for d in watch.alive))
        self._before, self._lost, self._start_ns = watch, dict(watch.lost), self._time.now_ns()

    def look(self) -> None:
        """From time to time inside a window: one that went back was reset, however far it has come since, and one that
        gained more than its device can draw has jumped."""
        for device in [device for device in self._reads if device not in self._lost]:
            try:
                joules = self._reads[device]()
            except SensorError as error:
                self._lost[device] = Lost(str(error))
                continue
            now = _LastLook(self._time.now_ns(), joules)
            if fault := self._fault(device, self._last.get(device), now):
                self._lost[device] = fault
            self._last[device] = now

    def _fault(self, device: str, before: _LastLook | None, now: _LastLook) -> Lost | None:
        """Why a counter cannot have moved so between two looks."""
        edges = self._before.edges.get(device, [])
        if before is None and edges:
            before = _LastLook(edges[-1].time_ns, edges[-1].joules)
        if before is None:
            return None
        if now.joules < before.joules:
            return Lost("the counter was reset")
        gap_s = (now.time_ns - before.time_ns) / 1e9
        tick_s = max(_gaps(edges), default=LONGEST_TICK_S)
        return _excess(self._limit_of, device, now.joules - before.joules, gap_s, tick_s)

    def stop(self, end_ns: int) -> dict[str, CounterFigure]:
        """end_ns: when the window ended, just now."""
        last = dict(self._last)  # before the edges to come, for the background goes on reading
        reads = {device: read for device, read in self._reads.items() if device not in self._lost}
        after = EdgeWatch(reads, self._time, self._limit_of)
        after.until(lambda _: all(len(after.edges[d]) >= 3 for d in after.alive))
        self._lost |= after.lost
        if slept := slept_s(self._suspended_ns, self._time):
            self._lost |= dict.fromkeys(self._reads, Lost(suspended(slept)))
        return {
            device: self._figure(device, after.edges.get(device, []), end_ns, last.get(device))
            for device in self._reads
        }

    def _figure(self, device: str, after: list[Edge], end_ns: int, last: _LastLook | None) -> CounterFigure:
        """last: the last look inside the window."""
        before = self._before.edges[device]
        lost = self._lost.get(device) or self._fault(device, last, _LastLook(after[0].time_ns, after[0].joules))
        if lost:
            return CounterFigure(reason=lost.reason, detail={} if lost.said_j is None else {IMPLAUSIBLE: lost.said_j})
        start, end = before[-1], after[0]
        raw = end.joules - start.joules
        seconds = (end_ns - self._start_ns) / 1e9
        head_s = max(0, self._start_ns - start.time_ns) / 1e9
        tail_s = max(0, end.time_ns - end_ns) / 1e9
        head_w, head_error_w = _power(*before[-2:])
        before_w, _ = _power(*before[-3:-1])
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
        gaps = [*_gaps(before), *_gaps(after)]
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


def _excess(limit_of: LimitOf | None, device: str, gained_j: float, gap_s: float, tick_s: float) -> Lost | None:
    """Why a counter cannot have gained so much; None where it can, or where it is not known what is possible."""
    excess = limit_of(device).excess(gained_j, gap_s, tick_s) if limit_of else None
    return Lost(excess, gained_j) if excess else None


def _power(first: Edge, second: Edge) -> tuple[float, float]:
    """(watts between two edges, how far off they may be)."""
    seconds = max(1, second.time_ns - first.time_ns) / 1e9
    watts = (second.joules - first.joules) / seconds
    return watts, (watts * (first.half_ns + second.half_ns) / 1e9 + 2 * RESOLUTION_J) / seconds


def _gaps(edges: list[Edge]) -> list[float]:
    return [(b.time_ns - a.time_ns) / 1e9 for a, b in itertools.pairwise(edges)]
