"""Power over time: samples, their integral with its error, and the compressed file that is kept beside a record.

    time_s,device,power_w,temperature_c,sm_clock_mhz        time from the start of the first piece of the window

A missing figure is an empty field. Samples that repeat are kept: a constant power is a power all the same.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEADER = ("time_s", "device", "power_w", "temperature_c", "sm_clock_mhz")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one device. `time_ns` is on the sensors' own clock."""

    time_ns: int
    device: str
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None


def integrate(
    times_s: Sequence[float], powers_w: Sequence[float], start_s: float, end_s: float
) -> tuple[float, float]:
    """(joules, error in joules) of sampled power between two times, by the trapezoidal rule.

    times_s must not decrease. Between samples power is taken as linear, before the first and after the last as
    constant. Whatever the power did between two neighbours, if it stayed between them the rule is off by at most half
    their difference times the gap: the error is the sum of those, and of the whole swing where it was extended.
    Raises ValueError where there is no sample at all.
    """
    if not times_s:
        raise ValueError("no sample to integrate")
    if end_s <= start_s:
        return 0.0, 0.0
    inside = [(t, p) for t, p in zip(times_s, powers_w, strict=True) if start_s < t < end_s]
    first, last = _at(times_s, powers_w, start_s), _at(times_s, powers_w, end_s)
    points = [(start_s, first), *inside, (end_s, last)]
    pairs = list(itertools.pairwise(points))
    joules = math.fsum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairs)
    error = math.fsum((t1 - t0) * abs(p1 - p0) / 2 for (t0, p0), (t1, p1) in pairs)
    swing = max(powers_w) - min(powers_w)
    extended = max(0.0, min(times_s[0], end_s) - start_s) + max(0.0, end_s - max(times_s[-1], start_s))
    return joules, error + swing * extended


def _at(times_s: Sequence[float], powers_w: Sequence[float], when: float) -> float:
    """Linear between the neighbours, constant beyond the ends."""
    right = bisect_right(times_s, when)
    if right == 0:
        return powers_w[0]
    if right == len(times_s):
        return powers_w[-1]
    t0, t1 = times_s[right - 1], times_s[right]
    share = (when - t0) / (t1 - t0)
    return powers_w[right - 1] * (1 - share) + powers_w[right] * share


def pack(samples: Sequence[Sample], start_ns: int) -> bytes:
    """The file's bytes: the same samples give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for s in samples:
        figures = (s.power_w, s.temperature_c, s.sm_clock_mhz)
        writer.writerow(
            [
                f"{(s.time_ns - start_ns) / 1e9:.6f}",
                s.device,
                *("" if f is None else f"{f:g}" for f in figures),
            ]
        )
    return gzip.compress(text.getvalue().encode(), mtime=0)


def read(path: Path) -> list[Sample]:
    """Samples of a trace, `time_ns` from the window's start. Raises ValueError on a file that is not one."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a whole trace: {error}") from None
    if not rows or tuple(rows[0]) != HEADER:
        raise ValueError(f"{path} is not a trace: its first line is not {','.join(HEADER)}")
    try:
        return [_sample(*row) for row in rows[1:]]
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is not a trace: {error}") from None


def _sample(time_s: str, device: str, power_w: str, temperature_c: str, sm_clock_mhz: str) -> Sample:
    """Raises ValueError, OverflowError on what is no finite number; TypeError on too few or too many fields."""
    figures = [float(text) if text else None for text in (power_w, temperature_c, sm_clock_mhz)]
    if not all(math.isfinite(figure) for figure in figures if figure is not None):
        raise ValueError("a figure is not finite")
    return Sample(round(float(time_s) * 1e9), device, *figures)
