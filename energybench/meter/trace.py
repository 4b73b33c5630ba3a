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
import re
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from energybench.common.limits import RECORD_B, TRACE_B
from energybench.common.safe_read import read_bytes

HEADER = ("time_s", "device", "power_w", "temperature_c", "sm_clock_mhz")


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one device. `time_ns` is on the sensors' own clock."""

    time_ns: int
    device: str
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None


def integrate(times_s: Sequence[float], powers_w: Sequence[float], start_s: float, end_s: float) -> tuple[float, float]:
    """Energy of sampled power between two times, by the trapezoidal rule.

    Between samples power is taken as linear, before the first and after the last as constant. Whatever the power did
    between two neighbours, if it stayed between them the rule is off by at most half their difference times the gap:
    the error is the sum of those, and of the whole swing where it was extended.

    Args:
        times_s: of the samples, in seconds; they must not decrease
        powers_w: of the samples, in watts
        start_s: from when, in seconds
        end_s: until when

    Returns:
        (joules, error in joules)

    Raises:
        ValueError: where there is no sample at all
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
    fraction = (when - t0) / (t1 - t0)
    return powers_w[right - 1] * (1 - fraction) + powers_w[right] * fraction


def pack(samples: Sequence[Sample], start_ns: int) -> bytes:
    """The file's bytes: the same samples give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for s in samples:
        figures = (s.power_w, s.temperature_c, s.sm_clock_mhz)
        writer.writerow(
            [f"{(s.time_ns - start_ns) / 1e9:.6f}", s.device, *("" if f is None else f"{f:g}" for f in figures)]
        )
    return gzip.compress(text.getvalue().encode(), mtime=0)


def read(path: Path) -> list[Sample]:
    """Samples of a trace, `time_ns` from the window's start. Raises ValueError on a file that is not one."""
    try:
        with gzip.open(io.BytesIO(read_bytes(path, RECORD_B))) as file:
            content = file.read(TRACE_B + 1)  # a few kilobytes may unpack to any size
        if len(content) > TRACE_B:
            raise OSError(f"it unpacks to more than {TRACE_B:,} bytes")
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a whole trace: {error}") from None
    if not rows or tuple(rows[0]) != HEADER:
        raise ValueError(f"{path} is not a trace: its first line is not {','.join(HEADER)}")
    try:
        samples = [_sample(*row) for row in rows[1:]]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a trace: {error}") from None
    if any(after.time_ns < before.time_ns for before, after in itertools.pairwise(samples)):
        raise ValueError(f"{path} is not a trace: its times go back")
    return samples


def _number(text: str, least: float, most: float) -> float:
    """Raises ValueError on what is no such number; Python would also read 1_000 and nan."""
    if not re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+(e[-+]?[0-9]{1,3})?", text) or not least <= float(text) <= most:
        raise ValueError(f"'{text[:40]}' is no figure between {least:g} and {most:g}")
    return float(text)


def _sample(time_s: str, device: str, power_w: str, temperature_c: str, sm_clock_mhz: str) -> Sample:
    """Raises ValueError on what is no figure of a sensor; TypeError on too few or too many fields."""
    power = _number(power_w, 0, 1e7) if power_w else None
    temperature = _number(temperature_c, -273.15, 1e4) if temperature_c else None
    clock = _number(sm_clock_mhz, 0, 1e7) if sm_clock_mhz else None
    return Sample(round(_number(time_s, -1e6, 1e9) * 1e9), device, power, temperature, clock)
