"""The meter of what Linux shows of any part's energy or power: /sys/class/hwmon, for cards, boards and sockets.

What is read, and what it means, stands in hwmon_drivers.py. Two kinds of files:

    energy   a counter, of which the difference is taken. It may not go back, stand still, or move by more than the part
             can draw
    power    sampled five times a second and integrated (trace.integrate) as the samples come, so that a window of any
             length needs the same memory

A figure is null with its reason where any of that fails, where no power could be read for more than a second, and where
the machine slept meanwhile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from energybench.meter.clock import REAL_TIME, Time, slept_s
from energybench.meter.counter import AT_MOST
from energybench.meter.hwmon_drivers import READ_ERRORS, Channel, Found, find
from energybench.meter.integral import PowerStretch
from energybench.meter.perf_events import sysfs
from energybench.meter.plausible import IMPLAUSIBLE, suspended
from energybench.meter.reading import Energy, Reading, SamplerState
from energybench.meter.unavailable import Unavailable, system_message

PERIOD_S = 0.2  # between samples
WIDEST_GAP = 5  # periods without a sample, past which power is not known
PROBE_S, PROBE_STEP_S, PROBE_MOVES = 0.25, 0.001, 11  # of a counter, to see how often it moves
UNKNOWN_UPDATE_S = 1.0  # of one that hardly moved meanwhile: a card that sleeps
STILL = 10  # updates without a move, and at least a second, past which a counter stands still
ABSENT = "no driver of this machine shows an energy or a power in /sys/class/hwmon that is known here"
_EASIEST_FIRST = ("denied", "masked", "unsupported", "absent")


class Hwmon:
    """The meter: source `hwmon(DRIVER)`, one Energy per card (its PCI address), rail (its label) or socket.

    error_j of a counter holds while the power at either end is at most twice the highest mean of ten of its updates; of
    a power it is that of `trace.integrate`, and what a mean over time hides at the ends.
    """

    def __init__(self, channels: Sequence[Channel], time: Time) -> None:
        self.channels, self._time = tuple(channels), time
        self._counts: list[_Counter | _Power] = []
        self._end: Callable[[], float] = lambda: 0.0
        self._rounds = self._started_ns = self._suspended_ns = 0

    def start(self) -> None:
        self._end()  # of a window that was abandoned
        self._suspended_ns = self._time.suspended_ns()
        self._counts = [
            _Counter(channel, self._time) if channel.way == "energy" else _Power(channel, self._time)
            for channel in self.channels
        ]
        self._rounds = 0
        self._read()
        self._started_ns = self._time.now_ns()
        for count in self._counts:
            count.begin(self._started_ns)
        self._end = self._time.every(PERIOD_S, self._read)

    def stop(self) -> Reading:
        end_ns = self._time.now_ns()
        cpu_s, self._end = self._end(), lambda: 0.0
        self._read()
        slept = slept_s(self._suspended_ns, self._time)
        energy = [count.energy(end_ns, slept) for count in self._counts]
        sampler = SamplerState(
            period_s=PERIOD_S,
            samples=self._rounds,
            missed=sum(count.missed for count in self._counts),
            largest_gap_s=max((count.widest_s for count in self._counts), default=0.0),
            cpu_s=cpu_s,
        )
        return Reading(wall_s=(end_ns - self._started_ns) / 1e9, energy=energy, sampler=sampler)

    def nested(self) -> Hwmon:
        """A meter of a stretch inside this one's running window: the same files, read for themselves."""
        return Hwmon(self.channels, self._time)

    def _read(self) -> None:
        self._rounds += 1
        for count in self._counts:
            count.step()


class _Count:
    """One channel in one window: what it said since the start, and what was wrong with it if anything."""

    def __init__(self, channel: Channel, time: Time) -> None:
        self.channel, self.time = channel, time
        self.missed = 0
        self.widest_s = 0.0  # between two samples, or between one and an end of the window
        self.start_ns: int | None = None  # of the window; before it there is one sample
        self.seen_ns: int | None = None  # the last sample
        self.failure: str | None = None  # the first thing that makes the figure null
        self.refusal = ""  # why the last read that failed did
        self.implausible_j: float | None = None

    def begin(self, start_ns: int) -> None:
        """The window begins, after the first sample."""
        self.start_ns = start_ns

    def step(self) -> None:
        asked_ns = self.time.now_ns()
        try:
            value = self.channel.read()
        except READ_ERRORS as error:
            self.missed += 1
            self.refusal = system_message(error)
            return
        now_ns = (asked_ns + self.time.now_ns()) // 2
        if self.take(value, now_ns):
            self.widest_s = max(self.widest_s, (now_ns - self._last_ns(now_ns)) / 1e9)
            self.seen_ns = now_ns

    def _last_ns(self, now_ns: int) -> int:
        """Of the last sample, or the beginning of a window without one so far."""
        known = self.start_ns if self.seen_ns is None else self.seen_ns
        return now_ns if known is None else known

    def seconds(self, end_ns: int) -> float:
        return (end_ns - (end_ns if self.start_ns is None else self.start_ns)) / 1e9

    def take(self, value: float, now_ns: int) -> bool:
        """Keep a value; whether it was one."""
        raise NotImplementedError

    def total(self, end_ns: int) -> tuple[float, float]:
        """(joules, error in joules) of the window; only asked where nothing failed."""
        raise NotImplementedError

    def fault(self, end_ns: int) -> str | None:
        """Why the whole window has no figure."""
        raise NotImplementedError

    def detail(self) -> dict[str, Any]:
        return dict(self.channel.facts)

    def energy(self, end_ns: int, slept: float) -> Energy:
        self.widest_s = max(self.widest_s, (end_ns - self._last_ns(end_ns)) / 1e9)
        seconds = self.seconds(end_ns)
        channel, detail = self.channel, self.detail()
        reason = suspended(slept) if slept else self.failure or self.fault(end_ns)
        if self.implausible_j is not None:
            detail[IMPLAUSIBLE] = self.implausible_j
        named: dict[str, Any] = {"source": channel.source, "scope": channel.scope, "device": channel.device}
        if reason is not None:
            if reason == NOT_MOVED and seconds <= 2 * channel.update_s:
                detail[AT_MOST] = channel.limit.watts * seconds
            return Energy(**named, reason=reason, detail=detail)
        joules, error_j = self.total(end_ns)
        return Energy(**named, energy_j=joules, error_j=error_j, detail=detail)


NOT_MOVED = "the counter did not move: the window is shorter than its update"


class _Counter(_Count):
    """A counter of joules: no driver's wraps, they count in 64 bits."""

    def __init__(self, channel: Channel, time: Time) -> None:
        super().__init__(channel, time)
        self._first = self._last = 0.0
        self._first_ns = 0
        self._moved_ns = 0  # when it was last seen to have moved
        self._power_w = 0.0  # the highest mean over ten updates
        self._anchor = (0, 0.0)

    def take(self, value: float, now_ns: int) -> bool:
        if value < 0:
            self.failure = self.failure or f"the counter shows {value:.3g} J, and no part gives energy back"
            return True
        if self.seen_ns is None:
            if self.start_ns is not None:
                self.failure = self.failure or f"it could not be read at the start: {self.refusal}"
            self._first, self._first_ns, self._moved_ns, self._anchor = value, now_ns, now_ns, (now_ns, value)
        else:
            self._move(value - self._last, now_ns, (now_ns - self.seen_ns) / 1e9)
            anchored_s = (now_ns - self._anchor[0]) / 1e9
            if anchored_s >= 10 * self.channel.update_s:
                self._power_w = max(self._power_w, (value - self._anchor[1]) / anchored_s)
                self._anchor = (now_ns, value)
        self._last = value
        return True

    def _move(self, joules: float, now_ns: int, gap_s: float) -> None:
        channel = self.channel
        if joules < 0:
            self.failure = self.failure or f"the counter went back by {-joules:.3g} J: it was reset"
        elif excess := channel.limit.excess(joules, gap_s, channel.update_s):
            self.failure, self.implausible_j = self.failure or excess, self.implausible_j or joules
        if joules:
            self._moved_ns = now_ns
        still_s = (now_ns - self._moved_ns) / 1e9
        if still_s >= max(1.0, STILL * channel.update_s):
            self.failure = self.failure or f"the counter stood still for {still_s:.3g} s"

    def fault(self, end_ns: int) -> str | None:
        if self.seen_ns is None:
            return f"it could not be read: {self.refusal}"
        if self.seen_ns < end_ns:
            return f"it could not be read at the end: {self.refusal}"
        return NOT_MOVED if self._last == self._first else None

    def total(self, end_ns: int) -> tuple[float, float]:
        joules, seen_s = self._last - self._first, ((self.seen_ns or 0) - self._first_ns) / 1e9
        power_w = max(self._power_w, joules / seen_s if seen_s > 0 else 0.0)
        beside_s = max(0.0, seen_s - self.seconds(end_ns))  # the files are read just outside of the window
        return joules, (2 * self.channel.update_s + beside_s) * power_w + 2 * self.channel.step

    def detail(self) -> dict[str, Any]:
        more = {"mirrors": list(self.channel.mirrors)} if self.channel.mirrors else {}
        return super().detail() | {"tick_s": self.channel.update_s} | more


class _Power(_Count):
    """A power, sampled and integrated as it comes."""

    def __init__(self, channel: Channel, time: Time) -> None:
        super().__init__(channel, time)
        self._least_w, self._most_w = math.inf, -math.inf
        self._newest: tuple[float, float] | None = None
        self._stretch: PowerStretch | None = None

    def begin(self, start_ns: int) -> None:
        super().begin(start_ns)
        self._stretch = PowerStretch(start_ns / 1e9, self.channel.look, self._newest)

    def take(self, value: float, now_ns: int) -> bool:
        if value == 0 and self.channel.never_zero:
            self.missed += 1
            self.refusal = "a power of 0 W, which no part draws while it runs"
            return False
        self._newest = (now_ns / 1e9, value)
        if self._stretch is not None:
            self._stretch.add(*self._newest)
        self._least_w, self._most_w = min(self._least_w, value), max(self._most_w, value)
        return True

    def fault(self, end_ns: int) -> str | None:
        why = f": {self.refusal}" if self.refusal else ""
        if self.widest_s > WIDEST_GAP * PERIOD_S or self._newest is None or self._stretch is None:
            return f"no power could be read for {self.widest_s:.1f} s{why}"
        if self._least_w < 0:
            return f"it said {self._least_w:.3g} W, and no part gives energy back"
        if excess := self.channel.limit.excess_w(self._most_w):
            self.implausible_j = self._stretch.until(end_ns / 1e9).joules
            return excess
        return None

    def total(self, end_ns: int) -> tuple[float, float]:
        assert self._stretch is not None  # else it had a fault
        figure = self._stretch.until(end_ns / 1e9)
        return figure.joules, figure.error_j + self.channel.step * self.seconds(end_ns)

    def detail(self) -> dict[str, Any]:
        look = self.channel.look
        facts = {"averaging_s": look.averaging_s, "seen_s": look.seen_s, "look": look.told}
        return super().detail() | {"period_s": PERIOD_S} | facts


# ── opening ───────────────────────────────────────────────────────────────────────────────────────────────────


def open_hwmon(
    time: Time = REAL_TIME, root: Path | None = None, *, cards: Collection[str] | None = None, processor: bool = True
) -> Hwmon:
    """The meter of everything that hwmon shows here and that is known.

    Args:
        time: the clock that the sensors run on
        root: in place of /sys, or of what $ENERGYBENCH_SYSFS names
        cards: PCI addresses of those that are metered; None: all. Boards and machines are always
        processor: whether sockets are: not where RAPL counts them

    Raises:
        Unavailable: where there is none that can be read, with the reasons
    """
    found = find(root or sysfs())
    channels = chosen(found, time, cards=cards, processor=processor)
    if channels:
        return Hwmon(channels, time)
    if found.refused:
        easiest = min(found.refused.values(), key=lambda each: _EASIEST_FIRST.index(each.kind))
        reasons = "; ".join(dict.fromkeys(each.reason for each in found.refused.values()))
        raise Unavailable(reasons, easiest.kind, easiest.remedy)
    raise Unavailable(ABSENT, "absent", "")


def chosen(found: Found, time: Time, *, cards: Collection[str] | None, processor: bool) -> list[Channel]:
    """Those channels that are to be read, each counter once and with its update; takes up to 0.25 s for counters."""
    wanted = [
        channel
        for channel in found.channels
        if (cards is None or ":" not in channel.device or channel.device in cards)
        and (processor or channel.scope != "cpu" or channel.driver != "amd_energy")
    ]
    counters = [channel for channel in wanted if channel.way == "energy"]
    timed = iter(_with_updates(counters, time))
    return _distinct([next(timed) if channel.way == "energy" else channel for channel in wanted], time)


def _with_updates(counters: Sequence[Channel], time: Time) -> list[Channel]:
    moves: list[list[int]] = [[] for _ in counters]
    last: list[float | None] = [None] * len(counters)
    started_ns = time.now_ns()
    while counters and time.now_ns() - started_ns < PROBE_S * 1e9:
        for number, channel in enumerate(counters):
            try:
                value = channel.read()
            except READ_ERRORS:
                continue  # the window will say so
            if last[number] not in (None, value):
                moves[number].append(time.now_ns())
            last[number] = value
        if all(len(seen) >= PROBE_MOVES for seen in moves):
            break
        time.sleep(PROBE_STEP_S)
    return [replace(channel, update_s=_update_s(seen)) for channel, seen in zip(counters, moves, strict=True)]


def _update_s(moves_ns: Sequence[int]) -> float:
    """The longest interval seen: what was seen once may lag as long again."""
    if len(moves_ns) < 2:
        return UNKNOWN_UPDATE_S
    return max(b - a for a, b in itertools.pairwise(moves_ns)) / 1e9


def _distinct(channels: Sequence[Channel], time: Time) -> list[Channel]:
    """Sockets whose counters mirror each other become one."""
    distinct: list[Channel] = []
    for channel in channels:
        for number, other in enumerate(distinct):
            if channel.driver == other.driver == "amd_energy" and _mirrored(other, channel, time):
                distinct[number] = replace(other, mirrors=(*other.mirrors, channel.device))
                break
        else:
            distinct.append(channel)
    return distinct


def _mirrored(one: Channel, other: Channel, time: Time) -> bool:
    """Whether what `other` shows lies between two readings of `one` around it, and again after they have moved."""
    for _ in range(2):
        try:
            before, between, after = one.read(), other.read(), one.read()
        except READ_ERRORS:
            return False
        if not before <= between <= after:
            return False
        time.sleep(10 * max(one.update_s, other.update_s))
    return True
