"""The curvature and the minimum of a training loss, where a task knows them in closed form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Convexity:
    """What a problem must tell of its mean loss for the bounds below; the minimum is in the unit of the loss."""

    strong_convexity: float  # μ
    smoothness: float  # L
    minimum: float  # f*
