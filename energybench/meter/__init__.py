"""Sensors: a meter is started and stopped around a window and says what it saw; it cannot know what it measures.

It may import common alone, and no torch. Start with the protocol below, then `sensors.py`, which opens what a machine
has, and `window.py`, which takes a reading from all of them.

One small protocol, so that others add their own (entry point group `energybench.meters`):

    start()            returns when the work may begin; a meter that waits for an edge of its counter waits here
    stop() → Reading   called right after the last synchronise: take the time first, then take your time

A figure that could not be read is null with its reason, never 0.
"""

from __future__ import annotations

from typing import Protocol

from energybench.meter.reading import Reading


class Meter(Protocol):
    """What a sensor, or another package's meter, must offer. It is used for many windows, one after the other."""

    def start(self) -> None:
        """Open a window. Returns when the work may begin."""
        ...

    def stop(self) -> Reading:
        """Close the window that `start` opened.

        Returns:
            One Energy per sensor: `energy_j` in joules and `error_j`, the most that it may be off, in joules too; null
            with its `reason` where it could not be read. `wall_s`: the seconds that the figures are of, or 0 where the
            meter does not say.
        """
        ...
