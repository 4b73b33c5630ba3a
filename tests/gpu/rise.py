"""How long a power sensor takes to show that a load began: what its averaging window is, seen from outside.

A sensor that tells the mean of the last T seconds answers a step with a straight ramp of T seconds; one that tells the
moment answers within a sample. The ramp passes from a tenth to nine tenths of the step in 0.8 T, and its middle lies
T / 2 and the sensor's own delay behind the step.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]  # seconds, watts
LEAST_STEP = 0.1  # of the power before: smaller ones cannot be told from what a load's power does anyway


@dataclass(frozen=True)
class Rise:
    """low_w, high_w: before the step and after it; window_s: of the mean that the sensor tells, as the ramp shows it;
    delay_s: from the step to the moment at which half of it was shown"""

    low_w: float
    high_w: float
    window_s: float
    delay_s: float


def rise(points: Sequence[Point], began_s: float) -> Rise | None:
    """What a sensor showed of a load that began at `began_s` and lasted to the last point; None where no step is seen.

    Args:
        points: in the order of time, some before the load and, in their last third, with the step behind them
    """
    before = [watts for at_s, watts in points if at_s < began_s]
    after = [(at_s, watts) for at_s, watts in points if at_s >= began_s]
    if not before or len(after) < 6:
        return None
    low_w = statistics.median(before)
    high_w = statistics.median(watts for _, watts in after[-(len(after) // 3) :])
    if high_w - low_w < LEAST_STEP * low_w:
        return None
    start = (began_s, low_w)
    tenth, half, nine = (_crossing([start, *after], low_w + share * (high_w - low_w)) for share in (0.1, 0.5, 0.9))
    return Rise(low_w, high_w, (nine - tenth) / 0.8, half - began_s)


def _crossing(points: Sequence[Point], level_w: float) -> float:
    """When the power first reached a level, on a straight line between two samples."""
    for (before_s, before_w), (at_s, watts) in pairwise(points):
        if watts >= level_w:
            share = (level_w - before_w) / (watts - before_w) if watts > before_w else 0.0
            return before_s + max(0.0, share) * (at_s - before_s)
    return points[-1][0]


def update_s(points: Sequence[Point]) -> float | None:
    """Median seconds between two changes of what a sensor tells; None where it changed less than three times."""
    changes = [at_s for (_, before_w), (at_s, watts) in pairwise(points) if watts != before_w]
    gaps = [b - a for a, b in pairwise(changes)]
    return statistics.median(gaps) if len(gaps) >= 2 else None
