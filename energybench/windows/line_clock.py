"""Lines that another program wrote, held against the command that wrote them: on which clock, in which unit, what name.

A line without a reading is billed by its times alone, so these must be what they are taken for: seconds of
CLOCK_MONOTONIC inside the command's own time. Whoever writes another clock is told which one it looks like.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energybench.common.limits import TRACE_B
from energybench.common.safe_read import read_bytes
from energybench.windows.file import TRAIN, WindowLine, of_training

CLOSE_S = 0.01  # by which two looks at one clock may lie apart
STOPWATCH = "a clock that begins with the program (clock(), a stopwatch)"
CLOCK_STEPS_S = 5.0  # by which the clock of the day may have been set meanwhile
UNITS = {1.0: "seconds", 1e-3: "milliseconds", 1e-6: "microseconds", 1e-9: "nanoseconds"}
RIGHT = (
    "write seconds of CLOCK_MONOTONIC: time.perf_counter() in Python, clock_gettime(CLOCK_MONOTONIC, &t) in C, "
    "t.tv_sec + t.tv_nsec / 1e9"
)


@dataclass(frozen=True, slots=True)
class Ran:
    """When a command ran, in seconds of CLOCK_MONOTONIC."""

    began_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s

    def holds(self, start_s: float, stop_s: float, close_s: float = CLOSE_S) -> bool:
        return self.began_s - close_s <= start_s and stop_s <= self.ended_s + close_s


def mistaken(path: Path, ran: Ran) -> str | None:
    """What is wrong with the times of a line that only has those, and what to type; None where nothing is."""
    for line in _without_reading(path):
        start_s, stop_s = line["start_s"], line["stop_s"]
        name = str(line.get("name", ""))[:80]
        if reason := _wrong_times(start_s, stop_s, ran):
            return f"its window '{name}' {reason}"
    return None


def misnamed(windows: Sequence[WindowLine]) -> str | None:
    """Why none of the windows is the training's, and what to type; None where one is, or where there is none."""
    found = of_training(windows)
    if not found or any(window.name == TRAIN for window in found):
        return None
    names = ", ".join(f"'{name}'" for name in dict.fromkeys(window.name for window in found))
    return (
        f"it wrote windows called {names[:200]} and none called '{TRAIN}', which is what a trial is billed for: "
        f'write "name": "{TRAIN}", or energybench.measure("{TRAIN}")'
    )


def _without_reading(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = read_bytes(path, TRACE_B).splitlines()
    except OSError:
        return  # whoever reads the windows tells
    for text in lines:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and line.get("reading") is None and all(map(_is_time, _times(line))):
            yield line


def _times(line: dict[str, Any]) -> tuple[Any, Any]:
    return line.get("start_s"), line.get("stop_s")


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong_times(start_s: float, stop_s: float, ran: Ran) -> str | None:
    if ran.holds(start_s, stop_s) and start_s < stop_s:
        return None
    if min(start_s, stop_s) < 0:
        return f"has a time below 0, {min(start_s, stop_s):.9g}: {RIGHT}"
    if stop_s == start_s:
        return f"lasts no time at all: start_s and stop_s are both {start_s:.9g}"
    if stop_s < start_s:
        duration = 0 < stop_s <= ran.seconds + CLOSE_S and ran.holds(start_s, start_s + stop_s)
        told = "stop_s looks like its duration: write start_s + duration" if duration else "the two look swapped"
        return f"stops at {stop_s:.9g} s, before it starts at {start_s:.9g} s: {told}"
    for clock, zero_s, close_s in _clocks(ran):
        for unit, word in UNITS.items():
            # In too small a unit every time of a stopwatch is a program's first moment.
            told_apart = clock != STOPWATCH or (stop_s - start_s) * unit > CLOSE_S
            if told_apart and ran.holds(start_s * unit - zero_s, stop_s * unit - zero_s, close_s):
                what = f"{word} of {clock}" if clock else word
                return f"starts at {start_s:.12g} and stops at {stop_s:.12g}, which look like {what}: {RIGHT}"
    told = f"{start_s:.9g} to {stop_s:.9g} s, and the command ran from {ran.began_s:.6f} to {ran.ended_s:.6f} s"
    return f"does not lie inside the command: {told} of CLOCK_MONOTONIC: {RIGHT}"


def _clocks(ran: Ran) -> list[tuple[str, float, float]]:
    """(what it is called, its time when CLOCK_MONOTONIC showed 0, how far it may be off), in seconds."""
    now_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    return [
        ("", 0.0, CLOSE_S),
        ("CLOCK_BOOTTIME, which goes on in suspend", time.clock_gettime(time.CLOCK_BOOTTIME) - now_s, CLOSE_S),
        ("the clock of the day (time.time(), date +%s)", time.time() - now_s, CLOCK_STEPS_S),
        (STOPWATCH, -ran.began_s, CLOSE_S),
    ]
