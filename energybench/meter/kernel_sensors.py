"""What the kernel shows of one measurement's machine beside NVML and RAPL: which sensors of hwmon are its, and which
accelerators are there without a figure.

A card that is there and no part of the measurement is told in every reading, and takes nothing from what was measured.
One that should have had a figure leaves its scope without a sum. The two are told apart by `Energy.unmetered`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from energybench.meter.accelerators import Accelerator, accelerators
from energybench.meter.clock import REAL_TIME, Time
from energybench.meter.hwmon import chosen
from energybench.meter.hwmon_drivers import REMEDIES, Channel, Found, find
from energybench.meter.perf_events import sysfs
from energybench.meter.reading import UNMETERED, Energy

BUS_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
VISIBLE = {
    "AMD": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "Intel": ("ZE_AFFINITY_MASK",),
}
NVIDIAS_DRIVER = "install NVIDIA's own driver: nvidia-smi must answer"
LOAD = {"AMD": "sudo modprobe amdgpu", "Intel": "sudo modprobe xe", "NVIDIA": NVIDIAS_DRIVER}
UNKNOWN = "unknown"  # in the place of the address of a card that is used
OTHERS = 'it is no part of this measurement: gpus = "all" meters it'


@dataclass(frozen=True, slots=True)
class KernelSensors:
    """channels: what is to be read; silent: what stands in every reading beside them, as null with its reason."""

    channels: Sequence[Channel] = ()
    silent: Sequence[Energy] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is, looked up once.

    there: accelerators that are not part of the processor; found: hwmon's channels, and why others are none
    """

    there: Sequence[Accelerator] = ()
    found: Found = field(default_factory=Found)


def look(system: Path | None = None) -> Machine:
    """This machine, from its files. Raises nothing."""
    system = system or sysfs()
    return Machine([each for each in accelerators(system) if not each.integrated], find(system))


def select(
    machine: Machine,
    cards: Collection[str] | None,
    nvidia: Sequence[str],
    *,
    processor: bool,
    unclear: str = "",
    time: Time = REAL_TIME,
) -> KernelSensors:
    """The sensors of one measurement.

    Args:
        machine: as `look` found it
        cards: PCI addresses of those that are to be metered; None: all
        nvidia: PCI addresses of the cards that NVML meters; "" for one whose address is not known
        processor: whether sockets are to be metered, because RAPL does not
        unclear: why it is not known which cards are used, where it is not
        time: the clock of the probe
    """
    channels = chosen(machine.found, time, cards=cards, processor=processor)
    metered = {channel.device for channel in channels}
    silent = []
    for each in _beside(machine, channels, nvidia):
        refused = machine.found.refused.get(("gpu", each.address)) or machine.found.refused.get(
            ("module", each.address)
        )
        if refused is not None:
            why = refused.reason
        elif any(channel.device == each.address for channel in machine.found.channels):
            why = unclear or OTHERS
        else:
            why = _why(each, machine.found)
        wanted = cards is not None and each.address in cards
        silent.append(silent_entry(each, why, wanted))
    for (scope, device), unavailable in machine.found.refused.items():
        board = not BUS_ADDRESS.fullmatch(device) and (processor or scope != "cpu")
        if board and device not in metered:
            silent.append(Energy(source="unavailable", scope=scope, device=device, reason=unavailable.reason))
    return KernelSensors(channels, silent)


def silent_entry(each: Accelerator, why: str, wanted: bool) -> Energy:
    """What stands in a reading of a card without a figure. wanted: whether it should have had one."""
    facts = {"vendor": each.vendor, "kind": each.kind, "driver": each.driver}
    return Energy(
        source="unavailable",
        scope=each.kind,
        device=each.device,
        reason=f"{each.name} is there and nothing meters it: {why}",
        detail=facts if wanted else {UNMETERED: True, **facts},
    )


def _beside(machine: Machine, channels: Sequence[Channel], nvidia: Sequence[str]) -> list[Accelerator]:
    """Accelerators that none of these sensors sees."""
    scopes = {channel.scope for channel in channels}
    devices = {channel.device for channel in channels}
    if "machine" in scopes:
        return []
    left = [each for each in machine.there if each.address not in devices or not each.address]
    if any(channel.driver.startswith("ina") for channel in channels):  # a board's rails: its own GPU is on them
        left = [each for each in left if each.address]
    if any(channel.driver == "power_meter" and channel.scope == "module" for channel in channels):
        left = [each for each in left if each.vendor != "NVIDIA"]
    left = [each for each in left if each.address not in nvidia or not each.address]
    unplaced = sum(not address for address in nvidia)  # metered, but not known which of them
    if unplaced:
        theirs = [each for each in left if each.vendor == "NVIDIA"]
        left = [each for each in left if each not in theirs[:unplaced]]
    return left


def _why(each: Accelerator, found: Found) -> str:
    if not each.driver:
        return "no driver is loaded for it"
    if each.driver == "vfio-pci":
        return "it is given to a virtual machine"
    if each.driver == "nvidia":
        return OTHERS
    if not each.address and each.vendor == "NVIDIA":
        return "its board shows no rail that feeds it"
    if found.hidden:
        return "its hwmon folder is hidden, as in a container"
    return f"its driver {each.driver} shows no energy and no power that is known here"


def remedy(each: Accelerator, found: Found) -> str:
    """What would have it metered; "" where nothing is known to."""
    refused = found.refused.get(("gpu", each.address)) or found.refused.get(("module", each.address))
    if refused is not None:
        return refused.remedy
    if not each.driver:
        return LOAD.get(each.vendor, "")
    if not each.address and each.vendor == "NVIDIA":
        return "sudo modprobe ina3221  (the rails of the board are measured there, where it has them)"
    if each.driver in ("nouveau", "nvidia"):
        return NVIDIAS_DRIVER
    if found.hidden:
        return REMEDIES["masked"]
    return REMEDIES["unsupported"] if each.driver in ("amdgpu", "i915", "xe") else ""


# ── which cards a measurement is about ────────────────────────────────────────────────────────────────────────


def by_serial(uuid: str, there: Sequence[Accelerator]) -> str:
    """The PCI address of the AMD card that torch names so; "" where it is none of these.

    ROCm's UUID is the serial number, its 16 digits as 16 bytes; HIP_VISIBLE_DEVICES writes it as it is.
    """
    digits = uuid.removeprefix("GPU-").replace("-", "").lower()
    try:
        serial = bytes.fromhex(digits).decode("ascii").lower() if len(digits) == 32 else digits
    except ValueError:
        serial = digits
    return next((each.address for each in there if each.unique_id and each.unique_id == serial), "")


def only_card(vendor: str, there: Sequence[Accelerator]) -> str:
    """The PCI address of the one card of this vendor; "" where there is none, or more than one."""
    cards = [each.address for each in there if each.vendor == vendor and each.kind == "gpu" and not each.integrated]
    return cards[0] if len(cards) == 1 else ""


def visible_cards(machine: Machine, environment: Mapping[str, str]) -> tuple[list[str], str]:
    """(PCI addresses of the cards that a program with this environment may use, why that is not clear of others)."""
    cards: list[str] = []
    unclear = ""
    offered = {channel.device for channel in machine.found.channels}
    for vendor, variables in VISIBLE.items():
        ours = [each.address for each in machine.there if each.vendor == vendor and each.address in offered]
        said = next((name for name in variables if name in environment), None)
        if said is None or (len(ours) == 1 and environment[said].strip() == "0"):
            cards += ours
        elif ours and environment[said].strip() not in ("", "-1"):
            unclear = f"{said}={environment[said]} does not say which of {len(ours)} cards is meant"
    return cards, unclear
