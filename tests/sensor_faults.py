"""What is wrong with a sensor in a test, and what a reading then says: the rows of the table in docs/measurement.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SensorFault:
    """One injected fault. name: of its test; sensor: which; happens: what goes wrong; seen: what the reading says."""

    name: str
    sensor: str
    happens: str
    seen: str
