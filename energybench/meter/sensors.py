"""Which meters a trial gets: the cards it uses, the processor's RAPL, hwmon, what the suite names, else a model.

What is missing is a meter too: it says in every window why there is no figure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from energybench.common.errors import Problem, UsageError, nearest
from energybench.meter import Meter, ranks
from energybench.meter.clock import REAL_TIME
from energybench.meter.devices import visible_uuids
from energybench.meter.hwmon import Hwmon
from energybench.meter.kernel_sensors import (
    BUS_ADDRESS,
    KernelSensors,
    Machine,
    by_serial,
    look,
    only_card,
    select,
    visible_cards,
)
from energybench.meter.nvml import Cards, find_gpus, open_gpus, refused_gpus
from energybench.meter.reading import NO_SENSOR, UNMETERED, Energy, Reading
from energybench.meter.shared_node import shared_reason
from energybench.meter.unavailable import Unavailable
from energybench.meter.visible import refuse_slices

GROUP = "energybench.meters"  # entry points: () → Meter, or raises Unavailable


class UnavailableMeter:
    """A sensor that is not there: its figure is null in every window, with the reason.

    unmetered: whether it is no part of what is to be measured, so that no sum waits for it
    energy: the whole entry, in place of the rest
    """

    def __init__(
        self, scope: str, reason: str, device: str = "", *, unmetered: bool = False, energy: Energy | None = None
    ) -> None:
        self.device = device
        detail = {UNMETERED: True} if unmetered else {}
        self._energy = energy or Energy(source="unavailable", scope=scope, device=device, reason=reason, detail=detail)

    def start(self) -> None: ...

    def stop(self) -> Reading:
        return Reading(wall_s=0.0, energy=[self._energy])

    def nested(self) -> UnavailableMeter:
        return self


class ThirdParty:
    """A meter of another package. Its figures carry its name; if it breaks, they are null with the reason."""

    def __init__(self, name: str, meter: Meter) -> None:
        self.name, self._meter = name, meter
        self._failure: str | None = None
        self._sensors: list[Energy] = []

    def start(self) -> None:
        self._failure = None
        try:
            self._meter.start()
        except Exception as error:  # whatever it raises, the trial goes on and its figure is null
            self._failure = f"{type(error).__name__}: {error}"

    def stop(self) -> Reading:
        reading = Reading(wall_s=0.0)
        try:
            reading = self._meter.stop()
        except Exception as error:
            self._failure = self._failure or f"{type(error).__name__}: {error}"
        if self._failure is None:
            energy = [
                e if e.source.startswith(NO_SENSOR) else e.model_copy(update={"source": f"meter({self.name})"})
                for e in reading.energy
            ]
            self._sensors = energy
            return reading.model_copy(update={"energy": energy})
        known = self._sensors or [Energy(source=f"meter({self.name})", scope="machine")]
        lost = [e.model_copy(update={"energy_j": None, "error_j": None, "reason": self._failure}) for e in known]
        return Reading(wall_s=0.0, energy=lost)

    @property
    def samples(self) -> Sequence[Any]:
        return getattr(self._meter, "samples", ())


def measures(meter: Meter) -> bool:
    """Whether a meter reads a sensor that answers, rather than say why there is none or model one."""
    silent = isinstance(meter, UnavailableMeter) or getattr(meter, "models", False)
    return not silent and bool(getattr(meter, "answers", True))


def nested_meters(meters: Sequence[Meter]) -> list[Meter]:
    """Meters of a stretch inside the running window of these. None of them waits for more
    than a millisecond; one that cannot be shared says so."""
    result: list[Meter] = []
    for meter in meters:
        nested: Callable[[], Meter] | None = getattr(meter, "nested", None)
        name = meter.name if isinstance(meter, ThirdParty) else type(meter).__name__
        reason = f"meter {name}: it is in use by the window around this one"
        result.append(nested() if nested else UnavailableMeter("machine", reason))
    return result


EnergyWanted = Literal["if available", "require", "off"]


@dataclass(frozen=True, slots=True)
class MeterSelection:
    """Which meters are to be opened, as a suite's [measure] table says it, and what they must know.

    Args:
        energy: "off" opens none; whether a sensor that is required is there is for others to see
        gpus: "used": the one that trains; "all"; or UUIDs, of cards that NVML does not know PCI addresses
        meters: those of other packages, by name
        model: the parameters of codecarbon's model for this machine, used where nothing measures
        of_children: what is metered are processes that this one will start
        processes_before: UUID → processes that were on a card before this one, where that was seen earlier
        seen_later: which cards of other makers are used is seen when a window closes, so that all of them are read
    """

    energy: EnergyWanted = "if available"
    gpus: str | Sequence[str] = "used"
    meters: Sequence[str] = ()
    model: dict[str, Any] | None = None
    of_children: bool = False
    processes_before: Mapping[str, set[int]] | None = None
    seen_later: bool = False


def open_meters(wanted: MeterSelection, device: str) -> list[Meter]:
    """Open the meters of a trial.

    Args:
        wanted: which of them
        device: "cpu", or the UUID of the card that trains

    Returns:
        The meters, those that wait for an edge of their counter first; a missing sensor is an `UnavailableMeter`, and
        so is what sees the whole node in a rank that is not its first (ranks.py), or where others work on the node too
        (shared_node.py). None where energy is "off".

    Raises:
        UsageError: E503 for a meter that no package offers
    """
    if wanted.energy == "off":
        return []
    first, shared = ranks.reads_node(), shared_reason()
    if not first and wanted.gpus == "all":
        wanted = replace(wanted, gpus="used")
    machine = look()
    if first:
        processor: Meter = UnavailableMeter("cpu", f"RAPL: {shared}") if shared else _processor()
        others = [_third_party(name) for name in wanted.meters]
    else:  # each rank would bill the whole node again
        processor = UnavailableMeter("cpu", ranks.READ_BY_THE_FIRST)
        others = [UnavailableMeter("machine", f"{name}: {ranks.READ_BY_THE_FIRST}") for name in wanted.meters]
    nvidia, nvidia_device, cards = divide(wanted, device, machine)
    gpus = _gpus(replace(wanted, gpus=nvidia), nvidia_device)
    sockets = not measures(processor) and not shared
    kernel = kernel_sensors(wanted, cards, machine, _places(gpus), processor=sockets)
    if not first or shared:
        kernel = of_cards_alone(kernel)
    silent = [UnavailableMeter(energy.scope, "", energy=energy) for energy in kernel.silent]
    hwmon = [Hwmon(kernel.channels, REAL_TIME)] if kernel.channels else []
    meters = [*gpus, *others, processor, *hwmon, *silent]
    if wanted.model and first and not shared and not any(map(measures, meters)):
        from energybench.meter.carbon import CodecarbonModel

        meters.append(CodecarbonModel(wanted.model))
    return meters


def find_cards(wanted: MeterSelection, device: str) -> Cards:
    """The cards that are asked for; none where what runs on the CPU uses none.

    Args:
        wanted: which of them; "all" is for the first rank of a node, to another one it means "used"
        device: "cpu", the UUID of the card that trains, or several joined by "+"

    Raises:
        Unavailable: where they are asked for and there is no driver, no card, or only slices of one; where a command
            may use cards and it cannot be told which
    """
    if wanted.gpus == "all" and not ranks.reads_node():
        wanted = replace(wanted, gpus="used")
    if wanted.gpus == "used" and device == "cpu":
        if wanted.of_children:
            _refuse_unclear()
        return Cards((), {})
    if not isinstance(wanted.gpus, str):
        return find_gpus(list(wanted.gpus)) if wanted.gpus else Cards((), {})
    if wanted.gpus == "used":
        refuse_slices(os.environ)
        return find_gpus(device.split("+"))
    cards = find_gpus()
    if not cards.opened:
        raise next(iter(cards.refused.values()))
    return cards


def _refuse_unclear() -> None:
    try:
        visible_uuids()
    except Unavailable as unavailable:
        if unavailable.kind != "absent":  # a machine without a card lacks nothing
            raise


def divide(
    wanted: MeterSelection, device: str, machine: Machine
) -> tuple[str | Sequence[str], str, Collection[str] | None]:
    """Who meters which of the cards that are asked for.

    Args:
        wanted: which cards
        device: "cpu", or the UUID of the card that trains, as torch names it
        machine: as `look` found it

    Returns:
        (what NVML is asked for, the device that trains as far as it knows, PCI addresses for hwmon; None: all)
    """
    if wanted.gpus == "all":
        return "all", device, None
    if wanted.gpus != "used":
        places = {name: name if BUS_ADDRESS.fullmatch(name) else by_serial(name, machine.there) for name in wanted.gpus}
        nvidia = [name for name, place in places.items() if not place]
        return nvidia or "used", device if nvidia else "cpu", [place for place in places.values() if place]
    trains = by_serial(device, machine.there)
    if device.startswith("GPU-") and not trains and not _nvml_answers():
        trains = only_card("AMD", machine.there)
    return "used", "cpu" if trains else device, [trains] if trains else []


def _nvml_answers() -> bool:
    try:
        return bool(open_gpus())
    except Unavailable:
        return False


def kernel_sensors(
    wanted: MeterSelection, cards: Collection[str] | None, machine: Machine, nvidia: Sequence[str], *, processor: bool
) -> KernelSensors:
    """What hwmon gives this measurement, and which accelerators are there without a figure.

    Args:
        wanted: for whom it is: of children it is not seen which cards they use, so the visible ones are theirs
        cards: PCI addresses of those that are asked for; None: all
        machine: as `look` found it
        nvidia: PCI addresses of the cards that NVML meters, "" where one is not known
        processor: whether sockets are to be metered, because RAPL does not
    """
    unclear = ""
    if wanted.seen_later:
        cards = None
    elif wanted.of_children and cards is not None:
        shown, unclear = visible_cards(machine, os.environ)
        cards = [*cards, *shown]
    return select(machine, cards, nvidia, processor=processor, unclear=unclear)


def of_cards_alone(kernel: KernelSensors) -> KernelSensors:
    """Without what sees the whole node."""
    return KernelSensors([channel for channel in kernel.channels if BUS_ADDRESS.fullmatch(channel.device)])


def _places(meters: Sequence[Meter]) -> list[str]:
    """PCI addresses of the cards that NVML meters or names, "" where one is not known."""
    metered = [place for meter in meters for place in getattr(meter, "pci_addresses", list)()]
    refused = [meter for meter in meters if isinstance(meter, UnavailableMeter) and meter.device]
    return metered + [""] * len(refused)


def _gpus(wanted: MeterSelection, device: str) -> list[Meter]:
    from energybench.meter.gpu import GpuMeter

    try:
        cards = find_cards(wanted, device)
    except Unavailable as unavailable:
        return [UnavailableMeter("gpu", told(unavailable))]
    meters: list[Meter] = []
    if cards.opened:
        meters.append(GpuMeter(cards.opened, of_children=wanted.of_children, processes_before=wanted.processes_before))
    if wanted.gpus == "all":
        named, others = {}, cards.refused
    else:
        named = cards.refused
        others = refused_gpus() if cards.opened and not named else {}
    meters += [UnavailableMeter("gpu", told(why), uuid) for uuid, why in named.items()]
    meters += [UnavailableMeter("gpu", told(why), name, unmetered=True) for name, why in others.items()]
    return meters


def told(unavailable: Unavailable) -> str:
    """The reason in a reading, with what helps; where the sensor is just not there, nothing does."""
    return unavailable.reason if unavailable.kind == "absent" else str(unavailable)


def _processor() -> Meter:
    from energybench.meter.rapl import open_rapl

    try:
        return open_rapl()
    except Unavailable as unavailable:
        return UnavailableMeter("cpu", f"RAPL {unavailable.kind}: {unavailable.reason}")


def offered() -> dict[str, EntryPoint]:
    """Meters of installed packages, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def _third_party(name: str) -> Meter:
    points = offered()
    if name not in points:
        hint = nearest(name, points) or "install the package that offers it; energybench doctor lists what there is"
        raise UsageError(Problem("E503", f"no installed package offers the meter '{name}'", hint=hint))
    build: Callable[[], Meter] = points[name].load()
    try:
        return ThirdParty(name, build())
    except Unavailable as unavailable:
        return UnavailableMeter("machine", f"{name}: {unavailable.reason}")
    except Exception as error:
        return UnavailableMeter("machine", f"{name}: {type(error).__name__}: {error}")
