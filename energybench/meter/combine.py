"""Which figures of one window may be added: one channel for each device, measured ones alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from energybench.meter.reading import NO_SENSOR, Energy, Reading

Sensors = frozenset[tuple[str, str]]  # (source, scope)
PREFERENCE = ("gpu_counter", "rapl", "gpu_power_integral")  # one channel per device: the second only checks it
WHOLE = "machine"  # the scope of a meter that sees everything: what others see is in its figure


@dataclass(frozen=True, slots=True)
class Metered:
    """What a window's measured sensors say together, one channel per device; nothing modelled enters."""

    sensors: Sensors
    joules: float
    error_j: float | None  # as if every sensor erred the same way
    channels: frozenset[tuple[str, str, str]]  # (source, scope, device) of each figure that was added


def added_error(errors: Iterable[float | None]) -> float | None:
    """The error of a sum, from those of its parts: as if every sensor erred the same way.

    Args:
        errors: half widths in joules; None where a part's error is not known

    Returns:
        Their sum in joules, 0 of no part; None where any of them is None: an unknown error stays unknown.
    """
    known = list(errors)
    return None if None in known else math.fsum(error for error in known if error is not None)


def _channels(reading: Reading | None) -> list[Energy]:
    """The measured figures that may be added: the best channel of each device; a meter of everything stands alone.

    A part of the machine of which one device has no figure has no sum. What is told of a part without naming a device
    is the whole of it: never added to what its devices say.
    """
    best: dict[tuple[str, str], Energy] = {}
    known: set[tuple[str, str]] = set()
    for energy in reading.energy if reading else ():
        key = (energy.scope, energy.device)
        if not energy.source.startswith(NO_SENSOR):
            known.add(key)
        if energy.measured and (key not in best or _rank(energy) < _rank(best[key])):
            best[key] = energy
    blind = {scope for scope, device in known if device and (scope, device) not in best}
    named = {scope for scope, device in best if device} - blind
    found = [energy for (scope, device), energy in best.items() if bool(device) == (scope in named)]
    return [energy for energy in found if energy.scope == WHOLE] or found


def metered(reading: Reading | None) -> Metered:
    found = _channels(reading)
    return Metered(
        frozenset((energy.source, energy.scope) for energy in found),
        math.fsum(energy.energy_j or 0.0 for energy in found),
        added_error(energy.error_j for energy in found),
        frozenset((energy.source, energy.scope, energy.device) for energy in found),
    )


def budgeted(reading: Reading | None) -> bool:
    """Whether each of the figures that `metered` adds says how far off it may be."""
    return all(energy.error_j is not None for energy in _channels(reading))


def metered_by_scope(reading: Reading | None) -> dict[str, float]:
    """The same joules, part by part of the machine."""
    parts: dict[str, float] = {}
    for energy in _channels(reading):
        parts[energy.scope] = parts.get(energy.scope, 0.0) + (energy.energy_j or 0.0)
    return parts


def _rank(energy: Energy) -> int:
    return PREFERENCE.index(energy.source) if energy.source in PREFERENCE else len(PREFERENCE)
