"""Sets of meters for the windows of a script: opened once in a process, lent to one outermost window at a time.

A second set is opened only where two threads measure at the same time. A forked child starts with none.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import psutil

from energybench.common.errors import CannotMeasure, Problem
from energybench.meter import Meter, devices
from energybench.meter.facts import gpu_facts
from energybench.meter.gpu import GpuMeter
from energybench.meter.reading import Energy, Reading
from energybench.meter.sensors import Missing, open_meters
from energybench.meter.unavailable import Unavailable

UNSEEN = "it was used, but none of its sensors was opened: name it with gpus=[...]"
UNTOLD = "a process that is not known here came onto it and may be this one: name the card with gpus=[...]"
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
    """One set of meters. `facts`: UUID → driver, power limit, ECC of each card, as it was opened."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.meters: list[Meter] = _open(wanted) if wanted.energy != "off" else []
        self.facts = gpu_facts(self.meters)

    def of_used(self, reading: Reading) -> Reading:
        """The reading without cards that this process did not use; what cannot be told of one is said."""
        if self.wanted.gpus != "used" or self.wanted.energy == "off":
            return reading
        by_torch, listed, newcomers = devices.uuids(), set[str](), dict[str, set[int]]()
        for meter in self.meters:
            if isinstance(meter, GpuMeter):
                listed |= meter.ours()
                newcomers |= meter.newcomers()
        ours = by_torch | listed
        energy = [e for e in reading.energy if not e.device.startswith("GPU-") or e.device in ours]
        if not any(each.scope == "gpu" and not each.device for each in energy):  # it is not said of all cards already
            missing = ours - {each.device for each in energy}
            energy += [_unknown(uuid, UNSEEN) for uuid in sorted(missing)]
            energy += [
                _unknown(uuid, UNTOLD)
                for uuid in sorted(set(newcomers) - ours)
                if not all(map(psutil.pid_exists, newcomers[uuid]))
            ]
        cards = {uuid: card for uuid, card in reading.cards.items() if uuid in ours}
        for uuid in set(cards) - listed:  # the driver numbers processes otherwise, as outside of a container
            if len(newcomers.get(uuid, ())) == 1:
                others = [pid for pid in cards[uuid].foreign_pids if pid not in newcomers[uuid]]
                cards[uuid] = cards[uuid].model_copy(update={"foreign_pids": others})
        return reading.model_copy(update={"energy": energy, "cards": cards})


def _unknown(uuid: str, reason: str) -> Energy:
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
        known = devices.devices() or why.kind != "absent"  # a machine without a card lacks nothing
        return [], [Missing("gpu", why.reason)] if known else []


@cache
def _model() -> dict[str, Any]:
    from energybench.meter.carbon import model_parameters

    return model_parameters()
