"""Which figures of one window may be added: one channel for each device, measured ones alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from energybench.meter.reading import NO_SENSOR, Energy, Reading

Sensors = frozenset[tuple[str, str]]  # (source, scope)
Names = TypeVar("Names", bound=tuple[str, ...])
PREFERENCE = ("gpu_counter", "rapl", "gpu_power_integral")  # one channel per device: the second only checks it
MACHINE = "machine"  # the scope of a meter that sees everything: what others see is in its figure
MODULE = "module"  # and of one that sees a board with its processor, GPU and memory
IN_A_MODULE = frozenset({"gpu", "cpu", "dram"})


@dataclass(frozen=True, slots=True)
class Metered:
    """The sum of a window's measured sensors, one channel per device; nothing modelled enters.

    sensors:  (source, scope) of each figure that was added; empty where nothing was measured
    joules:   their sum; 0 where nothing was measured
    error_j:  of the sum, by `added_error`; None where a sensor does not state its own
    channels: (source, scope, device) of each figure that was added
    """

    sensors: Sensors
    joules: float
    error_j: float | None
    channels: frozenset[tuple[str, str, str]]


def added_error(errors: Iterable[float | None]) -> float | None:
    """The error of a sum, from those of its parts: as if every sensor erred the same way.

    Args:
        errors: half widths in joules; None where a part's error is not known

    Returns:
        Their sum in joules, 0 of no part; None where any of them is None: an unknown error stays unknown.
    """
    known = list(errors)
    return None if None in known else math.fsum(error for error in known if error is not None)


def channels(reading: Reading | None) -> list[Energy]:
    """The measured figures that may be added: the best channel of each device; a meter of everything stands alone.

    A part of the machine of which one device has no figure has no sum; a device that is there and no part of the
    measurement takes nothing from it. A figure of a part that names no device is the whole of it: never added to those
    of its devices. Nor is what lies on a module added to the module's, nor a module as one source names it to the same
    as another does.
    """
    best: dict[tuple[str, str], Energy] = {}
    known: set[tuple[str, str]] = set()
    for energy in reading.energy if reading else ():
        key = (energy.scope, energy.device)
        if not energy.source.startswith(NO_SENSOR) and not energy.unmetered:
            known.add(key)
        if energy.measured and (key not in best or _rank(energy) < _rank(best[key])):
            best[key] = energy
    blind = {scope for scope, device in known if device and (scope, device) not in best}
    named = {scope for scope, device in best if device} - blind
    channels = [energy for (scope, device), energy in best.items() if bool(device) == (scope in named)]
    if modules := [energy for energy in channels if energy.scope == MODULE]:
        source = min(modules, key=_rank).source
        others = [energy for energy in channels if energy.scope not in IN_A_MODULE | {MODULE}]
        channels = [*(energy for energy in modules if energy.source == source), *others]
    return [energy for energy in channels if energy.scope == MACHINE] or channels


def metered(reading: Reading | None) -> Metered:
    """Add up what the sensors of a window measured.

    Args:
        reading: of one window; None where there was none

    Returns:
        The sum in joules of one channel per device. 0 J by no sensor where nothing was measured: ask `sensors` first.
    """
    added = channels(reading) if reading and reading.energy else ()
    if not added:
        return NOTHING
    return Metered(
        _shared(frozenset((energy.source, energy.scope) for energy in added)),
        math.fsum(energy.energy_j or 0.0 for energy in added),
        added_error(energy.error_j for energy in added),
        _shared(frozenset((energy.source, energy.scope, energy.device) for energy in added)),
    )


NOTHING = Metered(frozenset(), 0.0, 0.0, frozenset())


@lru_cache(1000)
def _shared(names: frozenset[Names]) -> frozenset[Names]:
    """One set for all windows of the same sensors: a long run has thousands of them."""
    return names


SHORT = 12  # of a card's UUID: GPU-4e817856


def in_short(device: str) -> str:
    """A card's UUID, cut; any other device as it is."""
    return device[:SHORT] if device.startswith("GPU-") else device


def metered_by_scope(reading: Reading | None) -> dict[str, float]:
    """The same joules, part by part of the machine.

    Args:
        reading: of one window; None where there was none

    Returns:
        Scope ("gpu", "cpu", "dram", "module", "machine") → joules, of the scopes that were measured.
    """
    parts: dict[str, float] = {}
    for energy in channels(reading):
        parts[energy.scope] = parts.get(energy.scope, 0.0) + (energy.energy_j or 0.0)
    return parts


def _rank(energy: Energy) -> int:
    return PREFERENCE.index(energy.source) if energy.source in PREFERENCE else len(PREFERENCE)
