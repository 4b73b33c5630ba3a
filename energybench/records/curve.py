"""What a point of a trial's curve holds: the epoch's own figures, and the task's metrics on the test set by name.

A metric may be called as one of those figures is: a task's "loss" is the test set's, a point's "loss" the training's.
Such a one has "quality_" before its name. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

OWN = ("epoch", "loss", "wall_s")  # of the epoch itself
PREFIX = "quality_"

Point = Mapping[str, float | None]


def key_of(metric: str) -> str:
    """A metric's key in a point."""
    return f"{PREFIX}{metric}" if metric in OWN or metric.startswith(PREFIX) else metric


def metrics_of(point: Point) -> dict[str, float | None]:
    """The metrics of a point by their own names."""
    return {key.removeprefix(PREFIX): value for key, value in point.items() if key not in OWN}
