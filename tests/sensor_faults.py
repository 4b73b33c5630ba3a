"""What can go wrong with a sensor, and what is seen of it: the tests' cases, and the rows of the docs' table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SensorFault:
    """One fault.

    happens: what goes wrong, as a part of a sentence; seen: what the reading says of it, in words
    """

    name: str
    sensor: str
    happens: str
    seen: str
