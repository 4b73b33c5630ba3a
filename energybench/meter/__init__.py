"""Sensors. A meter is started and stopped around a window and says what it saw; it cannot know what it measures.

One small protocol, so that others add their own:  start() → stop() → list of Energy. A figure that could not be read is
null with its reason, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from energybench.meter.clock import Clock
from energybench.record import Energy, Reading


class Meter(Protocol):
    def start(self) -> None: ...
    def stop(self) -> list[Energy]: ...


class Window:
    """One named window of metering, possibly in several pieces: evaluation pauses it, nothing is scaled.

    synchronise: waits for every used device; called before each read, never inside the window
    """

    def __init__(self, meters: Sequence[Meter], synchronise: Callable[[], None]) -> None:
        self._meters, self._synchronise, self._clock = meters, synchronise, Clock()
        self._wall_s = self._cpu_s = 0.0
        self._pieces: list[list[Energy]] = []

    def start(self) -> None:
        self._synchronise()
        for meter in self._meters:
            meter.start()
        self._clock.start()

    def stop(self) -> None:
        self._synchronise()
        wall_s, cpu_s = self._clock.stop()
        self._pieces.append([energy for meter in self._meters for energy in meter.stop()])
        self._wall_s += wall_s
        self._cpu_s += cpu_s

    def reading(self) -> Reading:
        return Reading(wall_s=self._wall_s, cpu_s=self._cpu_s, energy=_sum(self._pieces))


def _sum(pieces: list[list[Energy]]) -> list[Energy]:
    """Sensor by sensor. A piece that could not be read makes the total unreadable: no partial totals."""
    totals: dict[tuple[str, str, str], Energy] = {}
    for piece in pieces:
        for energy in piece:
            key = (energy.source, energy.scope, energy.device)
            before = totals.get(key)
            if before is None:
                totals[key] = energy
            elif before.energy_j is not None:
                joules = None if energy.energy_j is None else before.energy_j + energy.energy_j
                error = (before.detail.get("error_j") or 0.0) + (energy.detail.get("error_j") or 0.0)
                detail = {**energy.detail, **({"error_j": error} if "error_j" in energy.detail else {})}
                totals[key] = energy.model_copy(update={"energy_j": joules, "detail": detail})
    seen = [{(e.source, e.scope, e.device) for e in piece} for piece in pieces]
    return [energy if all(key in keys for keys in seen)
            else energy.model_copy(update={"energy_j": None, "reason": "the sensor was lost during the window"})
            for key, energy in totals.items()]  # fmt: skip
