"""Sets of meters for the windows of a script: opened once in a process, lent to one outermost window at a time.

A second set is opened only where two threads measure at the same time. A forked child starts with none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from energybench import used
from energybench.errors import CannotMeasure, Problem
from energybench.meter import Meter
from energybench.meter.sensors import Missing, open_meters
from energybench.meter.unavailable import Unavailable
from energybench.record import Energy, Reading

EnergyWanted = Literal["if available", "require", "off"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a window is to be measured by.

    gpus: "used", "all", or UUIDs. Used are the visible cards that hold this process's tensors, or on which the driver
          lists it, when the window closes; the others are left out of its reading.
    """

    energy: EnergyWanted = "if available"
    gpus: str | tuple[str, ...] = "used"
    meters: tuple[str, ...] = ()


class Kit:
    """One set of meters."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.meters: list[Meter] = _open(wanted) if wanted.energy != "off" else []

    def facts(self) -> dict[str, Any]:
        """UUID → driver, power limit, ECC, of the cards."""
        return {
            uuid: facts for meter in self.meters for uuid, facts in getattr(meter, "facts", dict)().items()
        }

    def of_used(self, reading: Reading) -> Reading:
        """The reading without cards that this process did not use; one that it used unseen is told."""
        if self.wanted.gpus != "used" or self.wanted.energy == "off":
            return reading
        ours = used.uuids().union(*(getattr(meter, "ours", set)() for meter in self.meters))
        energy = [e for e in reading.energy if not e.device.startswith("GPU-") or e.device in ours]
        unseen = sorted(ours - {e.device for e in energy}) if not _told(energy) else []
        energy += [_unseen(uuid) for uuid in unseen]
        cards = {uuid: card for uuid, card in reading.cards.items() if uuid in ours}
        return reading.model_copy(update={"energy": energy, "cards": cards})


def _told(energy: Sequence[Energy]) -> bool:
    """Whether it is said already why no card is metered."""
    return any(each.scope == "gpu" and not each.device for each in energy)


def _unseen(uuid: str) -> Energy:
    reason = "it was used, but no sensor of it could be opened: name it with gpus=[...]"
    return Energy(source="unavailable", scope="gpu", device=uuid, reason=reason)


_lock = threading.Lock()
_idle: dict[Wanted, list[Kit]] = {}


def borrow(wanted: Wanted) -> Kit:
    """Raises CannotMeasure E501 where energy is required and no sensor is there, UsageError E503 for a meter that no
    package offers."""
    with _lock:
        idle = _idle.get(wanted)
        if idle:
            return idle.pop()
    return Kit(wanted)


def give_back(kit: Kit) -> None:
    with _lock:
        _idle.setdefault(kit.wanted, []).append(kit)


def _forget() -> None:
    """In a forked child: the samplers' threads are not there, and the driver's connection is the parent's."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


os.register_at_fork(after_in_child=_forget)


def _open(wanted: Wanted) -> list[Meter]:
    gpus, missing = _cards(wanted)
    measure = {"energy": wanted.energy, "gpus": gpus or "used", "meters": wanted.meters}
    found = [*missing, *open_meters(measure, "cpu")]
    if any(not isinstance(meter, Missing) for meter in found):
        return found
    if wanted.energy == "require":
        reasons = "; ".join(e.reason or "" for meter in found for e in meter.stop().energy)
        hint = 'energybench doctor says what it has; or: energy="if available"'
        raise CannotMeasure(Problem("E501", f"this machine cannot measure energy: {reasons}", hint=hint))
    from energybench.meter.carbon import CodecarbonModel

    return [*found, CodecarbonModel(_model())]


def _cards(wanted: Wanted) -> tuple[str | list[str], list[Meter]]:
    """(cards to open, a word on those that cannot be)."""
    if wanted.gpus == "all" or not isinstance(wanted.gpus, str):
        return wanted.gpus if isinstance(wanted.gpus, str) else list(wanted.gpus), []
    from energybench.meter.nvml import open_gpus
    from energybench.meter.visible import visible

    try:
        cards = [(gpu.uuid, gpu.name) for gpu in open_gpus()]
        return visible(cards, os.environ), []
    except Unavailable as why:
        known = used.devices() or why.kind != "absent"  # a machine without a card lacks nothing
        return [], [Missing("gpu", why.reason)] if known else []


@cache
def _model() -> dict[str, Any]:
    from energybench.meter.carbon import model_parameters

    return model_parameters()
