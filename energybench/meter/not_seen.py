"""What a machine has and a reading has no figure of, in words: no sentence about energy is true without them."""

from __future__ import annotations

from collections.abc import Iterable

from energybench.meter.accelerators import KINDS
from energybench.meter.combine import MACHINE
from energybench.meter.reading import Energy, Reading

CHANNELS = ("energy counter: ", "power: ", "NVML: ")  # beginnings of reasons


def not_seen(reading: Reading) -> list[str]:
    """Everything that is there and has no figure, each once, for "Not seen: …".

    Args:
        reading: of one window

    Returns:
        "4 AMD GPUs (amdgpu)" for accelerators that are no part of the measurement, alike ones counted together; a
        device and its reason in short for one that should have had a figure; a sensor that was lost. Empty where
        nothing is missing, and where a sensor of the whole machine saw it all.
    """
    return not_seen_of(reading.energy)


def not_seen_of(energies: Iterable[Energy]) -> list[str]:
    """The same of the figures of several windows: a device that has one in any of them is seen."""
    energies = list(energies)
    measured = {(each.scope, each.device) for each in energies if each.measured}
    if any(scope == MACHINE for scope, _ in measured):
        return []
    missing = [
        each for each in energies if each.energy_j is None and each.device and (each.scope, each.device) not in measured
    ]
    cards: dict[str, Energy] = {each.device: each for each in missing if each.unmetered}
    should = {(each.scope, each.device): each for each in reversed(missing) if not each.unmetered}
    alike: dict[tuple[str, str, str], list[str]] = {}
    named = [each for each in cards.values() if "vendor" not in each.detail]  # a card that its driver does not open
    for device, each in cards.items():
        if each not in named and all(device != other for _, other in should):
            alike.setdefault(_kind(each), []).append(device)
    words = [_counted(kind, devices) for kind, devices in alike.items()]
    return words + [_named(each) for each in (*named, *reversed(should.values()))]


def in_short(each: Energy) -> str:
    """Why a part of the machine has no figure. RAPL's whole reason names both ways of reading it: doctor tells them."""
    reason = each.reason or "no reason given"
    return reason.partition(": ")[0] if reason.startswith("RAPL ") else reason


def _kind(each: Energy) -> tuple[str, str, str]:
    vendor, kind, driver = (str(each.detail.get(key) or "") for key in ("vendor", "kind", "driver"))
    return vendor, KINDS["accelerator" if kind == "accelerator" else "gpu"], driver


def _counted(kind: tuple[str, str, str], devices: list[str]) -> str:
    vendor, what, driver = kind
    several = len(devices) > 1
    words = (str(len(devices)) if several else "", vendor, f"{what}s" if several else f"{what} {devices[0]}")
    return f"{' '.join(word for word in words if word)} ({driver or 'no driver'})"


def _named(each: Energy) -> str:
    """With its reason, of which whatever names the channel or the library goes: "GPU-1 (Insufficient Permissions)"."""
    what = each.device if each.source == "unavailable" else f"{each.source} {each.device}"
    reason = each.reason or "no reason given"
    for beginning in CHANNELS:
        reason = reason.removeprefix(beginning)
    return f"{what} ({reason})"
