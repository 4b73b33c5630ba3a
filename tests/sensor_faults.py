"""One injected fault of a sensor: what happens to it, and what a reader of the figures then sees."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SensorFault:
    name: str
    sensor: str
    happens: str
    seen: str
