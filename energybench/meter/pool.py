"""Sets of meters for the windows of a script: opened once in a process, lent to one outermost window at a time.

A second set is opened only where two threads measure at the same time. A forked child starts with none.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil

from energybench.common.errors import CannotMeasure, Problem
from energybench.meter import Meter, devices, ranks
from energybench.meter.facts import gpu_facts
from energybench.meter.gpu import GpuMeter
from energybench.meter.reading import CardState, Reading
from energybench.meter.sensors import EnergyWanted, MeterSelection, UnavailableMeter, measures, open_meters
from energybench.meter.unavailable import Unavailable

NOT_OPENED = "it was used, but none of its sensors was opened: name it with gpus=[...]"
AMBIGUOUS = "a process that is not known here came onto it and may be this one: name the card with gpus=[...]"


@dataclass(frozen=True, slots=True)
class MeterRequest:
    """What a window is to be measured by.

    Args:
        energy: "if available"; "require": an error where no sensor can be read; "off": the time alone
        gpus: "used", "all", or UUIDs. Used are the visible cards that hold this process's tensors, or on which the
            driver lists it, when the window closes; the others are left out of its reading
        meters: those of other packages, by name
    """

    energy: EnergyWanted = "if available"
    gpus: str | tuple[str, ...] = "used"
    meters: tuple[str, ...] = ()


class MeterSet:
    """Meters that are opened together. `facts`: UUID → driver, power limit, ECC of each card, as it was opened."""

    def __init__(self, request: MeterRequest) -> None:
        self.request = request
        self.meters: list[Meter] = _open(request) if request.energy != "off" else []
        self.facts = gpu_facts(self.meters)

    def of_used_cards(self, reading: Reading) -> Reading:
        """The reading without cards that this process did not use.

        A card that it used without metering it, or that it may have used, is unavailable there, with the reason.
        """
        of_all = self.request.gpus == "all" and ranks.reads_node()
        if of_all or not isinstance(self.request.gpus, str) or self.request.energy == "off":
            return reading
        listed, newcomers = set[str](), dict[str, set[int]]()
        for meter in self.meters:
            if isinstance(meter, GpuMeter):
                listed |= meter.listed_cards()
                newcomers |= meter.unknown_newcomers()
        used = devices.uuids() | listed
        energy = [each for each in reading.energy if not each.device.startswith("GPU-") or each.device in used]
        if not any(each.scope == "gpu" and not each.device for each in energy):  # else that entry is of all cards
            unclear = {uuid for uuid, processes in newcomers.items() if not all(map(psutil.pid_exists, processes))}
            energy += devices.unmetered(energy, used, NOT_OPENED) + devices.unmetered(energy, unclear - used, AMBIGUOUS)
        cards = {uuid: card for uuid, card in reading.cards.items() if uuid in used}
        # In a container the driver lists this process by another number: a single newcomer is this process.
        for uuid in set(cards) - listed:
            if len(newcomers.get(uuid, ())) == 1:
                cards[uuid] = _without(cards[uuid], newcomers[uuid])
        return reading.model_copy(update={"energy": energy, "cards": cards})


def _without(card: CardState, processes: set[int]) -> CardState:
    return card.model_copy(update={"foreign_pids": [pid for pid in card.foreign_pids if pid not in processes]})


_lock = threading.Lock()
_idle: dict[MeterRequest, list[MeterSet]] = {}


def borrow(request: MeterRequest) -> MeterSet:
    """A set of meters that nobody else uses; opened where no idle one is there.

    Raises:
        CannotMeasure: E501 where energy is required and no sensor is there
        UsageError: E503 for a meter that no package offers
    """
    with _lock:
        idle = _idle.get(request)
        if idle:
            return idle.pop()
    return MeterSet(request)


def give_back(meter_set: MeterSet) -> None:
    with _lock:
        _idle.setdefault(meter_set.request, []).append(meter_set)


def _forget() -> None:
    """In a forked child: the samplers' threads are not there, and the driver's connection is the parent's."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


os.register_at_fork(after_in_child=_forget)


def _open(request: MeterRequest) -> list[Meter]:
    gpus, unavailable = _cards(request)
    wanted = MeterSelection(request.energy, gpus or "used", request.meters)
    meters = [*unavailable, *open_meters(wanted, "cpu")]
    if any(map(measures, meters)) or not ranks.reads_node():
        return meters
    if request.energy == "require":
        reasons = "; ".join(energy.reason or "" for meter in meters for energy in meter.stop().energy)
        hint = 'energybench doctor says what it has; or: energy="if available"'
        raise CannotMeasure(Problem("E501", f"this machine cannot measure energy: {reasons}", hint=hint))
    from energybench.meter.carbon import CodecarbonModel

    return [*meters, CodecarbonModel(_model())]


def _cards(request: MeterRequest) -> tuple[str | list[str], list[Meter]]:
    """(cards to open, a meter that says why none can be)."""
    if request.gpus != "used" and (request.gpus != "all" or ranks.reads_node()):
        return request.gpus if isinstance(request.gpus, str) else list(request.gpus), []
    try:
        return devices.visible_uuids(), []
    except Unavailable as unavailable:
        lacking = devices.numbers() or unavailable.kind != "absent"  # a machine without a card lacks nothing
        return [], [UnavailableMeter("gpu", unavailable.reason)] if lacking else []


@cache
def _model() -> dict[str, Any]:
    from energybench.meter.carbon import model_parameters

    return model_parameters()
