"""The named stretches of a trial, each with a reading of its own. Only `train` is billed to the method."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from energybench.meter import Meter
from energybench.meter.reading import Reading
from energybench.meter.sensors import measures
from energybench.meter.window import Window, sum_pieces
from energybench.records.record import Flag

IDLE_TICKS = 12  # of the slowest counter: over the ten that a figure needs
SHORTEST_IDLE_S = 0.5
STILL_HOT_C = 5.0  # above the wanted temperature, past which a trial is marked


class Phases:
    """readings: name → what the meters said; a name that comes again adds to itself."""

    def __init__(self, readings: dict[str, Reading], synchronise: Callable[[], None]) -> None:
        self.readings, self.synchronise = readings, synchronise

    @contextlib.contextmanager
    def phase(self, name: str, meters: Sequence[Meter] = ()) -> Iterator[None]:
        window = Window(meters, self.synchronise)
        window.start()
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # a device that failed cannot be synchronised either
                window.stop()
                before = self.readings.get(name)
                now = window.reading()
                self.readings[name] = sum_pieces([before, now]) if before else now

    def idle(self, name: str, meters: Sequence[Meter], tick_s: float) -> None:
        """What the machine draws while this process waits, its context open: nothing is measured, nothing waited."""
        if any(measures(meter) for meter in meters):
            with self.phase(name, meters):
                time.sleep(max(SHORTEST_IDLE_S, IDLE_TICKS * tick_s))

    def cool_down(self, meters: Sequence[Meter], below_c: dict[str, float], longest_s: float) -> list[Flag]:
        """Wait until every card is as cool as wanted. Returns a flag if one still is not."""
        if not below_c or longest_s <= 0:
            return []
        with self.phase("cooldown"):
            deadline = time.monotonic() + longest_s
            while (hot := _hotter(meters, below_c, 0.0)) and time.monotonic() < deadline:
                time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
        return [Flag(code="temperature", detail=text) for text in hot and _hotter(meters, below_c, STILL_HOT_C)]


def _hotter(meters: Sequence[Meter], below_c: dict[str, float], by_c: float) -> list[str]:
    temperatures = {
        uuid: celsius for meter in meters for uuid, celsius in getattr(meter, "temperatures", dict)().items()
    }
    return [
        f"{uuid}: {celsius:.0f} °C before the trial, {below_c[uuid]:.0f} °C wanted"
        for uuid, celsius in temperatures.items()
        if uuid in below_c and celsius > below_c[uuid] + by_c
    ]
