"""Sets of meters for the windows of a script: opened once in a process, lent to one outermost window at a time.

A second set is opened only where two threads measure at the same time. A forked child starts with none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil

from energybench.common.errors import CannotMeasure, Problem
from energybench.meter import Meter, devices, ranks
from energybench.meter.accelerators import VENDOR_OF_DRIVER, Accelerator, accelerators
from energybench.meter.facts import gpu_facts
from energybench.meter.gpu import GpuMeter
from energybench.meter.kernel_sensors import BUS_ADDRESS, silent_entry
from energybench.meter.reading import CardState, Energy, Reading
from energybench.meter.sensors import EnergyWanted, MeterSelection, UnavailableMeter, measures, open_meters, told
from energybench.meter.unavailable import Unavailable

NOT_OPENED = "it was used, but none of its sensors was opened: name it with gpus=[...]"
NOT_USED = "this process did not use it"
UNCLEAR = "which of the cards this process used is not known: name it with gpus=[...]"
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
        used = devices.uuids() | devices.pci_addresses() | listed
        energy = _of_used(reading.energy, used)
        energy = [each for each in energy if not each.device.startswith("GPU-") or each.device in used]
        if not any(each.scope == "gpu" and not each.device for each in energy):  # else that entry is of all cards
            unclear = {uuid for uuid, processes in newcomers.items() if not all(map(psutil.pid_exists, processes))}
            energy += devices.unmetered(energy, used - {devices.UNKNOWN}, NOT_OPENED)
            energy += devices.unmetered(energy, unclear - used, AMBIGUOUS)
        cards = {uuid: card for uuid, card in reading.cards.items() if uuid in used}
        # In a container the driver lists this process by another number: a single newcomer is this process.
        for uuid in set(cards) - listed:
            if len(newcomers.get(uuid, ())) == 1:
                cards[uuid] = _without(cards[uuid], newcomers[uuid])
        return reading.model_copy(update={"energy": energy, "cards": cards})


def _of_used(energies: Sequence[Energy], used: set[str]) -> list[Energy]:
    """Cards that the kernel meters: those that were not used are there, and no part of this window."""
    unclear = devices.UNKNOWN in used
    result = []
    for each in energies:
        if not BUS_ADDRESS.fullmatch(each.device) or each.unmetered or each.device in used:
            result.append(each)
            continue
        driver = each.source.removeprefix("hwmon(").removesuffix(")")
        card = next((card for card in accelerators() if card.address == each.device), None)
        card = card or Accelerator(each.device, driver, VENDOR_OF_DRIVER.get(driver, ""), "gpu")
        result.append(silent_entry(card, UNCLEAR if unclear else NOT_USED, wanted=unclear))
    return result


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
    seen_later = request.gpus == "used"
    wanted = MeterSelection(request.energy, gpus or "used", request.meters, seen_later=seen_later)
    meters = [*unavailable, *open_meters(wanted, "cpu")]
    if request.energy == "require" and (unseen := _unmetered_trainers(meters)) and not request.meters:
        hint = 'gpus="all", or: energybench doctor says what it has'
        raise CannotMeasure(Problem("E501", f"what trains is not what is metered: {unseen}", hint=hint))
    if any(map(measures, meters)) or not ranks.reads_node():
        return meters
    if request.energy == "require":
        reasons = "; ".join(reason for meter in meters for reason in _why_silent(meter))
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
        return [], [UnavailableMeter("gpu", told(unavailable))] if lacking else []


def _why_silent(meter: Meter) -> list[str]:
    """Why a meter gives no figure."""
    if isinstance(meter, GpuMeter):
        return [f"{uuid}: {reason}" for uuid, reason in meter.silent.items()]
    return [energy.reason or "" for energy in meter.stop().energy] if isinstance(meter, UnavailableMeter) else []


def _unmetered_trainers(meters: Sequence[Meter]) -> str:
    """Cards that this process computes on already and that nothing meters; "" where there is none."""
    seen = set[str]()
    for meter in meters:
        if isinstance(meter, GpuMeter):
            seen |= meter.facts().keys() - meter.silent.keys()
    return ", ".join(sorted(devices.uuids() - seen))


@cache
def _model() -> dict[str, Any]:
    from energybench.meter.carbon import model_parameters

    return model_parameters()
