"""What a sensor may say of a constant power, on however slow a machine."""

from __future__ import annotations

from energybench.meter.reading import Energy, Reading
from energybench.meter.window import AT_ONCE_S


def figure(reading: Reading | None, source: str, device: str) -> Energy:
    """What one sensor said in a reading. Fails where it said nothing."""
    assert reading is not None
    return next(energy for energy in reading.energy if (energy.source, energy.device) == (source, device))


def assert_billed(reading: Reading | None, watts: float, source: str, device: str) -> float:
    """Power times the reading's own seconds, within the error that the reading states: the joules.

    Whatever held the sensor up is in that error, but for what every window takes to start and to stop.
    """
    energy = figure(reading, source, device)
    assert reading is not None
    assert energy.energy_j is not None, energy.reason
    assert energy.error_j is not None
    usual_j = watts * AT_ONCE_S * reading.pieces
    assert abs(energy.energy_j - watts * reading.wall_s) <= energy.error_j + usual_j
    return energy.energy_j
