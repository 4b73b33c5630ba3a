"""The integral of sampled power over a stretch of time, taken as the samples come: bounded memory, over weeks too."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import dataclass

from energybench.meter.trace import Look, ends_error_j, segments

KEPT = 64  # of the newest samples: more than come between the end of a window and the question for its figure

Point = tuple[float, float]  # seconds, watts


@dataclass(frozen=True, slots=True)
class StretchFigure:
    """What was drawn in a stretch of time: the truth lies within joules ± error_j."""

    joules: float
    error_j: float


class PowerStretch:
    """One stretch from `start_s` on. Samples are added in the order of time; its figure may be asked for at any time.

    Args:
        start_s: when it begins, on the clock of the samples
        look: how the sensor looks; None: always
        before: the newest sample from before it began, if there is one
    """

    def __init__(self, start_s: float, look: Look | None, before: Point | None = None) -> None:
        self._start_s, self._look = start_s, look
        self._lock = threading.Lock()  # a thread adds samples while another asks
        self._points: list[Point] = [before] if before else []
        self._summed_until_s = start_s
        self._joules = self._error_j = self._widest_gap_s = self._first_w = 0.0
        self._least_w, self._most_w = (before[1], before[1]) if before else (math.inf, -math.inf)

    def add(self, time_s: float, power_w: float) -> None:
        """A sample, in seconds and watts."""
        with self._lock:
            self._points.append((time_s, power_w))
            self._least_w, self._most_w = min(self._least_w, power_w), max(self._most_w, power_w)
            if len(self._points) > 2 * KEPT:
                self._sum_oldest()

    def _sum_oldest(self) -> None:
        until_s = self._points[-KEPT][0]
        if until_s <= self._summed_until_s:
            del self._points[:-KEPT]  # from before the stretch
            return
        pieces = list(segments(self._points, self._summed_until_s, until_s))
        if self._summed_until_s == self._start_s:
            self._first_w = pieces[0].before_w
        self._joules += math.fsum(piece.joules for piece in pieces)
        self._error_j += math.fsum(piece.error_j(self._look) for piece in pieces)
        self._widest_gap_s = max(self._widest_gap_s, self._gap_s(until_s))
        self._summed_until_s = until_s
        del self._points[:-KEPT]

    def _gap_s(self, end_s: float) -> float:
        """The longest time without a sample among those that are kept, up to `end_s`."""
        times = [t for t, _ in self._points]
        start_s = self._summed_until_s
        inside = [t for t in times if start_s < t < end_s]
        before = max((t for t in times if t <= start_s), default=start_s)
        after = min((t for t in times if t >= end_s), default=end_s)
        edges = [before, *inside, after]
        return max(b - a for a, b in itertools.pairwise(edges))

    def widest_gap_s(self, end_s: float) -> float:
        """The longest time without a sample, until `end_s`; infinite where there was none at all."""
        with self._lock:
            return max(self._widest_gap_s, self._gap_s(end_s)) if self._points else math.inf

    def until(self, end_s: float) -> StretchFigure:
        """What was drawn until `end_s`, which lies no more than some ticks back.

        Raises:
            ValueError: where there is no sample at all
        """
        with self._lock:
            if not self._points:
                raise ValueError("no sample to integrate")
            if end_s <= self._summed_until_s:
                return StretchFigure(self._joules, self._error_j)
            pieces = list(segments(self._points, self._summed_until_s, end_s))
            swing_w = self._most_w - self._least_w
            extended_s = math.fsum(piece.seconds for piece in pieces if not piece.spacing_s)
            first_w = pieces[0].before_w if self._summed_until_s == self._start_s else self._first_w
            error_j = self._error_j + math.fsum(piece.error_j(self._look) for piece in pieces) + swing_w * extended_s
            error_j += ends_error_j(self._look, swing_w, first_w, pieces[-1].after_w)
            return StretchFigure(self._joules + math.fsum(piece.joules for piece in pieces), error_j)
