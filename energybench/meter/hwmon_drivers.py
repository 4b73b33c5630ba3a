"""What may be read below /sys/class/hwmon, driver by driver. A driver or label that is not named here is never read.

    amdgpu        power1_average or power1_input, µW, of one card; of an MI300A, of the whole module
    i915, xe      energy*_input, µJ since the driver was loaded, of one card: "card", which holds "pkg", else that
    ina3221, ina2xx   rails of a board: power*_input in µW, else volts × amperes, by the rail's label
    amd_energy    energy*_input, µJ, labelled Esocket0 …; the cores' counters lie inside
    macsmc        power*_input, µW, labelled "Total System Power": the whole machine
    power_meter   power1_average, µW, of ACPI; by power1_oem_info the module's or the socket's of NVIDIA's Grace

A rail that feeds others is the module, and its parts are then not read: they are in it. Only on a board without such a
rail do the rails of GPU and CPU stand for themselves.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from energybench.meter.accelerators import MODULES, pci_address, text_of
from energybench.meter.plausible import PowerLimit
from energybench.meter.trace import Look
from energybench.meter.unavailable import Unavailable, UnavailableKind, explain

READ_ERRORS = (OSError, ValueError)
BURST = 2.0  # a part may draw this much more than its cap for a moment
LONGEST_AVERAGE_S = 1.0  # over which a power that says nothing of it may be a mean
LATE_S = 0.1  # a power may be as old as that when it is read: no driver tells
ONE_RAIL_W = 0.02  # what a rail's volts and amperes, in thousandths, leave open

# What a part draws at most where the driver states no cap.
DEFAULT_W = {
    "amdgpu": 3000.0,  # twice what the hungriest card is rated at
    "i915": 1200.0,
    "xe": 1200.0,
    "amd_energy": 1000.0,  # of a socket
    "ina": 300.0,
    "macsmc": 2000.0,
    "power_meter": 4000.0,
}
CAPS = ("power1_cap_max", "power1_cap", "power1_rated_max", "power1_max", "power1_crit")

INA = re.compile(r"ina3221|ina219|ina220|ina226|ina23[01]")
WHOLE_RAILS = frozenset({"VDD_IN", "POM_5V_IN"})  # they feed every other: Jetson Nano, TX2, Xavier NX, Orin NX and Nano
PART_RAILS = {  # of boards without such a rail: Jetson AGX Xavier, AGX Orin, AGX Thor
    "GPU": "gpu",
    "CPU": "cpu",
    "VDDRQ": "dram",
    "VDD_GPU": "gpu",
    "VDD_CPU": "cpu",
    "VDD_GPU_SOC": "gpu",
    "VDD_CPU_CV": "cpu",
    "VDD_CPU_SOC_MSS": "cpu",
}
SOCKET = re.compile(r"Esocket(\d+)")
GRACE = re.compile(r"(Module|Grace) Power Socket (\d+)")
MACHINE_POWER = "Total System Power"

REMEDIES: Mapping[UnavailableKind, str] = {
    "denied": "run as root, or: sudo chmod a+r /sys/class/hwmon/hwmon*/{power,energy}*  (until the next boot)",
    "masked": "start the container with -v /sys:/host/sys:ro -e ENERGYBENCH_SYSFS=/host/sys",
    "unsupported": "update the kernel and with it the card's driver",
}
NO_CURRENT = "no command mends it: the board's device tree does not describe the rail's shunt"


@dataclass(frozen=True, slots=True)
class Channel:
    """One figure that a driver gives.

    way:         "energy": `read` gives joules since some time; "power": watts. It raises OSError or ValueError
    limit:       the most that the part can draw
    never_zero:  a part that runs draws something, so that 0 W is a failed read
    averaging_s: over which a power is a mean; 0: it is of the moment
    averaging_told: whether the driver says so itself
    step:        the finest difference that the file shows, in joules or watts
    update_s:    time between two moves of a counter, as seen when it was opened
    mirrors:     other names of the same counter
    """

    driver: str
    scope: str
    device: str
    way: Literal["energy", "power"]
    read: Callable[[], float]
    limit: PowerLimit
    never_zero: bool = True
    averaging_s: float = 0.0
    averaging_told: bool = False
    step: float = 1e-6
    facts: dict[str, Any] = field(default_factory=dict)
    update_s: float = 0.0
    mirrors: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        return f"hwmon({self.driver})"

    @property
    def look(self) -> Look:
        """How a power looks. A mean sees all of its time; a power of the moment says nothing of the time between."""
        return Look(self.averaging_s, self.averaging_s, LATE_S, self.limit.watts, assumed=not self.averaging_told)


class Asleep(OSError):
    """A card whose power cannot be read because nothing uses it."""


@dataclass(slots=True)
class Found:
    """What a machine's hwmon folders offer. `refused`: (scope, device) → why one of the list above gives no figure."""

    channels: list[Channel] = field(default_factory=list)
    refused: dict[tuple[str, str], Unavailable] = field(default_factory=dict)
    hidden: bool = False  # some folder is listed and leads nowhere, as in a container

    def add(self, channel: Channel) -> None:
        """Keep a channel that answers, once."""
        key = (channel.scope, channel.device)
        try:
            channel.read()
        except Asleep:
            pass  # it wakes when it is used
        except READ_ERRORS as error:
            self.refused[key] = explain(error, f"{channel.driver} {channel.device}".strip(), REMEDIES)
            return
        if any((other.scope, other.device) == key for other in self.channels):
            reason = f"two sensors are both called {channel.device or channel.driver}, so neither is read"
            self.channels = [other for other in self.channels if (other.scope, other.device) != key]
            self.refused[key] = Unavailable(reason, "unsupported", "")
        elif key not in self.refused:
            self.channels.append(channel)


def find(system: Path) -> Found:
    """Every channel below `system`/class/hwmon that may be read, and why others of the list cannot. Raises nothing."""
    found, rails = Found(), list[_Rail]()
    try:
        folders = sorted((system / "class/hwmon").iterdir(), key=lambda path: (len(path.name), path.name))
    except OSError:
        return found
    for folder in folders:
        if os.path.islink(folder) and not os.path.exists(folder):
            found.hidden = True
        driver = text_of(folder / "name") or text_of(folder / "device/name")
        if driver == "amdgpu":
            _amdgpu(folder, found)
        elif driver in ("i915", "xe"):
            _intel(folder, driver, found)
        elif driver == "amd_energy":
            _sockets(folder, found)
        elif driver in ("macsmc", "macsmc_hwmon"):
            _apple(folder, found)
        elif driver == "power_meter" or (not driver and os.path.exists(folder / "device/power1_oem_info")):
            _grace(folder, found)
        elif INA.fullmatch(driver):
            rails += _rails(folder, driver)
    _boards(rails, found)
    return found


def read_text(path: Path) -> str:
    """Every figure is read here. Raises OSError, and ValueError on what is no text."""
    return path.read_text(encoding="ascii")


def _number(path: Path) -> int:
    """Raises OSError, ValueError."""
    text = read_text(path).strip()
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise ValueError(f"{path.name} holds '{text[:40]}', which is no number")
    return int(text)


def _millionths(path: Path) -> Callable[[], float]:
    return lambda: _number(path) / 1e6


def _cap(folder: Path, driver: str) -> PowerLimit:
    """Twice the highest cap that the driver states; what it states beyond all reason is not believed."""
    most_w = DEFAULT_W[driver]
    stated: dict[str, float] = {}
    for name in CAPS:
        try:
            stated[name] = _number(folder / name) / 1e6
        except READ_ERRORS:
            continue
    name = max(stated, key=lambda each: stated[each], default="")
    if name and 0 < BURST * stated[name] < most_w:
        return PowerLimit(BURST * stated[name], f"twice its {name} of {stated[name]:g} W")
    return _default(driver)


def _default(driver: str) -> PowerLimit:
    return PowerLimit(DEFAULT_W[driver], "more than any such part is rated at")


# ── cards ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _amdgpu(folder: Path, found: Found) -> None:
    address = pci_address(folder / "device")
    if not address or any(text_of(path) == "vddnb" for path in _labelled(folder, "in").values()):
        return  # a processor's own graphics: in the processor's energy
    try:
        device_id = int(text_of(folder / "device/device"), 16)
    except ValueError:
        device_id = 0
    scope = "module" if device_id in MODULES else "gpu"
    files = [name for name in ("power1_average", "power1_input") if os.path.lexists(folder / name)]
    if not files:
        reason = "its driver amdgpu shows neither power1_average nor power1_input"
        found.refused[scope, address] = Unavailable(reason, "unsupported", REMEDIES["unsupported"])
        return
    name = files[0]
    found.add(
        Channel(
            "amdgpu",
            scope,
            address,
            "power",
            _awake(folder / "device", _millionths(folder / name)),
            _cap(folder, "amdgpu"),
            averaging_s=LONGEST_AVERAGE_S if name.endswith("average") else 0.0,
            facts={"file": name, "label": text_of(folder / "power1_label") or None},
        )
    )


def _awake(device: Path, read: Callable[[], float]) -> Callable[[], float]:
    """A card that sleeps refuses with EPERM, which is no matter of rights."""

    def checked() -> float:
        try:
            return read()
        except PermissionError as error:
            if text_of(device / "power/runtime_status") == "suspended":
                raise Asleep(errno.EBUSY, "the card sleeps until something uses it") from error
            raise

    return checked


def _intel(folder: Path, driver: str, found: Found) -> None:
    address = pci_address(folder / "device")
    if not address or address.startswith("0000:00:"):
        return
    labels = {text_of(label): number for number, label in _labelled(folder, "energy").items()}
    if "card" in labels:  # which holds the package
        number, label = labels["card"], "card"
    elif "pkg" in labels:
        number, label = labels["pkg"], "pkg"
    elif not labels and os.path.lexists(folder / "energy1_input"):
        number, label = 1, ""
    else:
        reason = f"its driver {driver} shows no energy1_input"
        found.refused["gpu", address] = Unavailable(reason, "unsupported", REMEDIES["unsupported"])
        return
    name = f"energy{number}_input"
    facts = {"file": name, "label": label or None}
    read, limit = _millionths(folder / name), _cap(folder, driver)
    found.add(Channel(driver, "gpu", address, "energy", read, limit, facts=facts))


# ── the processor ─────────────────────────────────────────────────────────────────────────────────────────────


def _sockets(folder: Path, found: Found) -> None:
    for number, path in _labelled(folder, "energy").items():
        match = SOCKET.fullmatch(text_of(path))
        if match:
            name = f"energy{number}_input"
            facts = {"file": name, "label": match[0]}
            read, limit = _millionths(folder / name), _default("amd_energy")
            found.add(Channel("amd_energy", "cpu", f"package-{match[1]}", "energy", read, limit, facts=facts))


def _grace(folder: Path, found: Found) -> None:
    """ACPI's power meters; their files lie in the device's folder on older kernels."""
    place = folder if os.path.lexists(folder / "power1_average") else folder / "device"
    match = GRACE.fullmatch(text_of(place / "power1_oem_info") or text_of(folder / "device/power1_oem_info"))
    if match is None:
        return
    scope, device = ("module", f"module-{match[2]}") if match[1] == "Module" else ("cpu", f"package-{match[2]}")
    interval_ms = text_of(place / "power1_average_interval")
    averaging_s = int(interval_ms) / 1e3 if interval_ms.isdecimal() and len(interval_ms) < 6 else LONGEST_AVERAGE_S
    found.add(
        Channel(
            "power_meter",
            scope,
            device,
            "power",
            _millionths(place / "power1_average"),
            _default("power_meter"),
            averaging_s=averaging_s,
            averaging_told=interval_ms.isdecimal(),
            facts={"file": "power1_average", "label": match[0]},
        )
    )


# ── boards ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Rail:
    driver: str
    label: str
    folder: Path
    number: int  # of its files: in1_input, curr1_input


def _rails(folder: Path, driver: str) -> Iterator[_Rail]:
    """Rails by their labels; one that is switched off or not wired has none that is known here."""
    seen: set[str] = set()
    for kind in ("in", "power"):
        for number, path in _labelled(folder, kind).items():
            label = text_of(path)
            if label not in seen:
                seen.add(label)
                yield _Rail(driver, label, folder, number)
    if not seen and (label := text_of(folder / "label")):  # a sensor of a single rail
        yield _Rail(driver, label, folder, 1)


def _boards(rails: list[_Rail], found: Found) -> None:
    whole = [rail for rail in rails if rail.label in WHOLE_RAILS]
    for rail in whole or [rail for rail in rails if rail.label in PART_RAILS]:
        scope = "module" if whole else PART_RAILS[rail.label]
        _rail(rail, scope, found)


def _rail(rail: _Rail, scope: str, found: Found) -> None:
    folder, number = rail.folder, rail.number
    power, volts, amperes = (folder / f"{kind}{number}_input" for kind in ("power", "in", "curr"))
    if os.path.lexists(power):
        read, step, file = _millionths(power), 1e-6, power.name
    elif os.path.lexists(volts) and os.path.lexists(amperes):
        read, step, file = _product(volts, amperes), ONE_RAIL_W, f"{volts.name} × {amperes.name}"
    else:
        lacks = amperes.name if os.path.lexists(volts) else volts.name
        reason = f"the rail {rail.label} of {rail.driver} has no {lacks}, so its power is not known"
        found.refused[scope, rail.label] = Unavailable(reason, "unsupported", NO_CURRENT)
        return
    found.add(
        Channel(
            rail.driver,
            scope,
            rail.label,
            "power",
            read,
            _default("ina"),
            never_zero=scope == "module",  # a GPU that is switched off draws nothing
            step=step,
            facts={"file": file, "label": rail.label},
        )
    )


def _product(volts: Path, amperes: Path) -> Callable[[], float]:
    return lambda: _number(volts) / 1e3 * (_number(amperes) / 1e3)


def _apple(folder: Path, found: Found) -> None:
    for number, path in _labelled(folder, "power").items():
        if text_of(path) == MACHINE_POWER:
            name = f"power{number}_input"
            facts = {"file": name, "label": MACHINE_POWER}
            read, limit = _millionths(folder / name), _default("macsmc")
            found.add(Channel("macsmc", "machine", "", "power", read, limit, facts=facts))


def _labelled(folder: Path, kind: str) -> dict[int, Path]:
    """Number → label file: {1: in1_label}."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return {}
    matches = (re.fullmatch(rf"{kind}(\d+)_label", name) for name in names)
    return {int(match[1]): folder / match[0] for match in matches if match}
