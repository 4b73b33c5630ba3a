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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
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


@dataclass(frozen=True, slots=True)
class Look:
    """How a power sensor looks: what a figure of its says of the time around it.

    averaging_s: each figure is the mean over that long
    seen_s:      how much of the time before a figure is in it
    every_s:     between two figures of its own: one may be as old as that when it is read
    most_w:      what the part can draw at most, while it is not looked at too
    assumed:     whether this is the worst case that is known, for a sensor that does not say how it looks
    """

    averaging_s: float
    seen_s: float
    every_s: float
    most_w: float
    assumed: bool = False

    @property
    def told(self) -> str:
        """For a record."""
        return "assumed, the worst that is known" if self.assumed else "documented"

    def unseen_w(self, power_w: float) -> float:
        """By how much the power that was not looked at may differ from the one that was seen."""
        return max(power_w, self.most_w - power_w)

    def end_j(self, power_w: float) -> float:
        """What a mean over `averaging_s` leaves open at one end of a stretch.

        Of the energy m·a that the mean m over a seconds stands for, the part inside the stretch is not known. Taken as
        half of it, it is off the most where the power was 0 or `most_w` alone, all of it at one side: m·a/2·(1 − m/M).
        """
        return self.averaging_s * power_w / 2 * max(0.0, 1 - power_w / self.most_w)


def integrate(
    times_s: Sequence[float], powers_w: Sequence[float], start_s: float, end_s: float, look: Look | None = None
) -> tuple[float, float]:
    """Energy of sampled power between two times, by the trapezoidal rule.

    Between samples power is taken as linear, before the first and after the last as constant. What the power did
    between two neighbours, if it stayed between them, is off by at most half their difference times the gap: the error
    is the sum of those, and of the whole swing where it was extended. A sensor that looks part of the time says nothing
    of the rest, in which the power may have been anything that the part can draw.

    Args:
        times_s: of the samples, in seconds; they must not decrease
        powers_w: of the samples, in watts
        start_s: from when, in seconds
        end_s: until when
        look: how the sensor looks; None: always, and a figure is of its moment

    Returns:
        (joules, error in joules)

    Raises:
        ValueError: where there is no sample at all
    """
    if not times_s:
        raise ValueError("no sample to integrate")
    if end_s <= start_s:
        return 0.0, 0.0
    pieces = list(segments(list(zip(times_s, powers_w, strict=True)), start_s, end_s))
    joules = math.fsum(piece.joules for piece in pieces)
    extended = max(0.0, min(times_s[0], end_s) - start_s) + max(0.0, end_s - max(times_s[-1], start_s))
    swing_w = max(powers_w) - min(powers_w)
    error = math.fsum(piece.error_j(look) for piece in pieces) + swing_w * extended
    return joules, error + ends_error_j(look, swing_w, pieces[0].before_w, pieces[-1].after_w)


@dataclass(frozen=True, slots=True)
class Segment:
    """What lies between two neighbouring samples, or the part of it that is asked for. Between them power is linear."""

    seconds: float
    before_w: float
    after_w: float
    spacing_s: float  # of the two samples; where there is but one, of nothing

    @property
    def joules(self) -> float:
        return self.seconds * (self.before_w + self.after_w) / 2

    def error_j(self, look: Look | None) -> float:
        """How far that may lie from what was drawn."""
        if look is None:
            return self.seconds * abs(self.after_w - self.before_w) / 2
        # Of a part of a segment it is not known whether the sensor looked at it.
        whole = self.seconds >= self.spacing_s
        unseen_s = max(0.0, self.spacing_s - look.seen_s) if whole else self.seconds * (look.seen_s < self.spacing_s)
        unseen_s = self.seconds if not self.spacing_s else min(unseen_s, self.seconds)
        seen_j = (self.seconds - unseen_s) * abs(self.after_w - self.before_w) / 2
        return seen_j + unseen_s * look.unseen_w((self.before_w + self.after_w) / 2)


def segments(points: Sequence[tuple[float, float]], start_s: float, end_s: float) -> Iterator[Segment]:
    """The stretch from `start_s` to `end_s`, cut at every sample; constant beyond the first and the last.

    Args:
        points: (seconds, watts) of at least one sample, in the order of time
        start_s: from when, in seconds
        end_s: until when, later than that
    """
    (first_s, first_w), (last_s, last_w) = points[0], points[-1]
    if start_s < first_s:
        yield Segment(min(first_s, end_s) - start_s, first_w, first_w, 0.0)
    left = max(0, bisect_right(points, start_s, key=itemgetter(0)) - 1)
    for (t0, p0), (t1, p1) in itertools.pairwise(points[left:]):
        begin, end = max(t0, start_s), min(t1, end_s)
        if begin < end:
            slope = (p1 - p0) / (t1 - t0)
            yield Segment(end - begin, p0 + slope * (begin - t0), p0 + slope * (end - t0), t1 - t0)
    if end_s > last_s:
        yield Segment(end_s - max(last_s, start_s), last_w, last_w, 0.0)


def ends_error_j(look: Look | None, swing_w: float, first_w: float, last_w: float) -> float:
    """What the two ends of a stretch add: a figure may be late, and the mean over a time that lies half outside."""
    if look is None:
        return 0.0
    return look.every_s * swing_w + look.end_j(first_w) + look.end_j(last_w)


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
        packed = read_bytes(path, RECORD_B)
    except OSError as error:
        raise ValueError(f"{path} is not a whole trace: {error}") from None
    return unpack(packed, path)


def unpack(packed: bytes, path: Path | str) -> list[Sample]:
    """The same of a file's bytes. path: for messages"""
    try:
        with gzip.open(io.BytesIO(packed)) as file:
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
