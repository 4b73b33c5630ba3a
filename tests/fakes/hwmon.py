"""A /sys with physics: cards, boards and sockets of known power, with the files and links that the kernel has of them.

    machine = Machine(tmp_path)
    card = machine.amdgpu("0000:03:00.0", [(5, 300.0), (5, 40.0)])         5 s at 300 W, then 40 W for ever
    meter = open_hwmon(machine.time, machine.root)

Devices lie in `devices`, and `class/hwmon`, `class/drm`, `class/accel` and `bus/pci/devices` hold links to them, so
that a container's mask is what it is there: links that lead nowhere. Every time that the clock moves, the files are
written anew: a counter is the integral of its part's power at its last tick, a power that of the moment or its mean
over the last `averaging_s`.

What goes wrong, goes wrong in the file system wherever it can. Only an error that root never gets from a plain file
(EACCES, EIO) is raised by `read_text`, which a test puts in the place of `hwmon_drivers.read_text`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fakes.powercap import MovingTime

Power = float | Sequence[tuple[float, float]]  # watts, or pieces of (seconds, watts), the last of which goes on


@dataclass
class Part:
    """One consumer and the sensor at it."""

    folder: Path  # of its hwmon files
    power: Power
    tick_ns: int = 1_000_000  # of the counter, or between two values of the power
    averaging_s: float = 0.0
    start_j: float = 0.0
    gain: float = 1.0

    def energy_j(self, from_ns: int, until_ns: int) -> float:
        """The true energy, as a wall meter would give it."""
        return self._drawn_j(until_ns) - self._drawn_j(from_ns)

    def _drawn_j(self, now_ns: int) -> float:
        left_s, joules = now_ns / 1e9, 0.0
        pieces = [(float("inf"), self.power)] if isinstance(self.power, int | float) else list(self.power)
        for number, (seconds, watts) in enumerate(pieces):
            spent_s = left_s if number == len(pieces) - 1 else min(left_s, seconds)
            joules += watts * spent_s
            left_s -= spent_s
        return joules

    def counted_j(self, now_ns: int) -> float:
        return self.start_j + self.gain * self._drawn_j(now_ns // self.tick_ns * self.tick_ns)

    def power_w(self, now_ns: int) -> float:
        ticked_ns = now_ns // self.tick_ns * self.tick_ns
        over_ns = max(round(self.averaging_s * 1e9), 1000)
        since_ns = max(0, ticked_ns - over_ns)
        if since_ns == ticked_ns:
            since_ns, ticked_ns = 0, over_ns
        return self.gain * (self._drawn_j(ticked_ns) - self._drawn_j(since_ns)) / ((ticked_ns - since_ns) / 1e9)


class Machine:
    """One machine: nothing is there that is not added."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "sys"
        for place in ("class", "bus/pci/devices", "devices"):
            (self.root / place).mkdir(parents=True)
        self.time = MovingTime(self._write)
        self.says: dict[Path, str] = {}  # file → what it holds instead of the truth
        self.errors: dict[Path, int] = {}  # file → errno of reading it
        self._files: dict[Path, Callable[[int], str]] = {}
        self._numbers: dict[str, int] = {}

    # ── what it has ───────────────────────────────────────────────────────────────────────────────────────────

    def pci(self, address: str, vendor: int, device: int, driver: str = "", kind: int = 0x030000) -> Path:
        """A device on the bus; its folder."""
        folder = self.root / "devices/pci0000:00" / address
        folder.mkdir(parents=True, exist_ok=True)
        for name, number, digits in (("vendor", vendor, 4), ("device", device, 4), ("class", kind, 6)):
            (folder / name).write_text(f"0x{number:0{digits}x}\n")
        (folder / "uevent").write_text(f"DRIVER={driver}\nPCI_SLOT_NAME={address}\n" if driver else "")
        self._link(self.root / "bus/pci/devices" / address, folder)
        if driver:
            self._drive(folder, f"bus/pci/drivers/{driver}")
        return folder

    def drm(self, device: Path, render: bool = True) -> None:
        """The graphics devices of a card: card0, and renderD128 where it computes."""
        number = self._number("drm")
        for name in (f"card{number}", *([f"renderD{128 + number}"] if render else [])):
            self._of_class("drm", name, device)
        if not render:
            self._of_class("drm", f"card{number}-VGA-1", device)

    def accel(self, device: Path, kind: str = "accel") -> None:
        self._of_class(kind, f"{'hl' if kind == 'habanalabs' else 'accel'}{self._number(kind)}", device)

    def kfd(self, address: str, simd_count: int = 304, cpu_cores: int = 0, unique_id: int = 0) -> None:
        """A node of AMD's topology."""
        folder = self.root / f"class/kfd/kfd/topology/nodes/{self._number('kfd')}"
        folder.mkdir(parents=True)
        domain, bus, slot = address.split(":")
        place = int(bus, 16) << 8 | int(slot[:2], 16) << 3 | int(slot[-1])
        facts = {"cpu_cores_count": cpu_cores, "simd_count": simd_count, "vendor_id": 4098, "device_id": 29857}
        facts |= {"location_id": place, "domain": int(domain, 16), "unique_id": unique_id}
        (folder / "properties").write_text("".join(f"{name} {value}\n" for name, value in facts.items()))

    def hwmon(self, driver: str, device: Path, **texts: str) -> Path:
        """A folder of hwmon files."""
        name = f"hwmon{self._number('hwmon')}"
        folder = device / "hwmon" / name
        folder.mkdir(parents=True)
        self._link(folder / "device", device)
        self._link(self.root / "class/hwmon" / name, folder)
        for file, text in {"name": driver, **texts}.items():
            (folder / file).write_text(f"{text}\n")
        return folder

    def amdgpu(
        self,
        address: str,
        power: Power,
        *,
        file: str = "power1_average",
        cap_w: float | None = 400.0,
        device: int = 0x74A1,
        unique_id: int = 0,
        averaging_s: float = 0.0,
        **texts: str,
    ) -> Part:
        card = self.pci(address, 0x1002, device, "amdgpu", 0x120000 if device >> 8 == 0x74 else 0x030000)
        if unique_id:
            (card / "unique_id").write_text(f"{unique_id:016x}\n")
        self.drm(card)
        self.kfd(address, unique_id=unique_id)
        folder = self.hwmon("amdgpu", card, power1_label="PPT", **texts)
        if cap_w is not None:
            (folder / "power1_cap_max").write_text(f"{round(cap_w * 1e6)}\n")
        part = Part(folder, power, averaging_s=averaging_s)
        if file:
            self.shows_power(part, file)
        return part

    def intel(
        self, address: str, driver: str, power: Power, *, labels: Sequence[str] = ("",), cap_w: float | None = 190.0
    ) -> Part:
        """A card of i915 (no label) or of xe ("card", "pkg"): "pkg" is nine tenths of it."""
        card = self.pci(address, 0x8086, 0x56A0, driver)
        self.drm(card)
        folder = self.hwmon(driver, card)
        if cap_w is not None:
            (folder / "power1_rated_max").write_text(f"{round(cap_w * 1e6)}\n")
        part = Part(folder, power)
        for number, label in enumerate(labels, 1):
            if label:
                (folder / f"energy{number}_label").write_text(f"{label}\n")
            share = 0.9 if label == "pkg" and "card" in labels else 1.0
            self.shows_energy(part, f"energy{number}_input", share)
        return part

    def sockets(self, *powers: Power, mirrored: bool = False) -> list[Part]:
        """amd_energy: a counter for each core, and one for each socket after them."""
        folder = self.hwmon("amd_energy", self._platform("amd_energy.0"))
        parts = []
        for number, power in enumerate(powers):
            part = Part(folder, power, start_j=1000.0 * (not mirrored) * number)
            for place, label, share in ((number, f"Ecore{number:03d}", 0.1), (9 + number, f"Esocket{number}", 1.0)):
                (folder / f"energy{place + 1}_label").write_text(f"{label}\n")
                self.shows_energy(part, f"energy{place + 1}_input", share)
            parts.append(part)
        return parts

    def rails(self, chip: str = "ina3221", volts: float = 5.0, **rails: Power | None) -> dict[str, Part]:
        """A chip that measures rails, by their labels; without a current where the power is None."""
        folder = self.hwmon(chip, self._platform(f"1-{0x40 + self._number('i2c'):04x}"))
        parts = {}
        for number, (label, power) in enumerate(rails.items(), 1):
            (folder / f"in{number}_label").write_text(f"{label}\n")
            (folder / f"in{number}_input").write_text(f"{round(volts * 1e3)}\n")
            if power is not None:
                parts[label] = Part(folder, power)
                self._shows(
                    folder / f"curr{number}_input",
                    lambda now_ns, part=parts[label]: f"{round(part.power_w(now_ns) / volts * 1e3)}",  # type: ignore[misc]
                )
        return parts

    def tegra(self, model: str = "NVIDIA Jetson Orin Nano Developer Kit") -> None:
        tree = self.root / "firmware/devicetree/base"
        tree.mkdir(parents=True)
        (tree / "compatible").write_bytes(b"nvidia,p3768-0000\0nvidia,tegra234\0")
        (tree / "model").write_bytes(model.encode() + b"\0")

    def mac(self, power: Power) -> Part:
        folder = self.hwmon("macsmc_hwmon", self._platform("macsmc-hwmon"))
        part = Part(folder, power)
        for number, (label, share) in enumerate({"AC Input Power": 1.2, "Total System Power": 1.0}.items(), 1):
            (folder / f"power{number}_label").write_text(f"{label}\n")
            self.shows_power(part, f"power{number}_input", share)
        return part

    def grace(self, oem_info: str, power: Power, interval_ms: int = 50) -> Part:
        """One of ACPI's power meters, whose files lie in the device's folder."""
        device = self._platform(f"ACPI000D:{self._number('acpi'):02d}")
        folder = self.hwmon("power_meter", device)
        (device / "power1_oem_info").write_text(f"{oem_info}\n")
        (device / "power1_average_interval").write_text(f"{interval_ms}\n")
        part = Part(device, power, averaging_s=interval_ms / 1e3)
        self.shows_power(part, "power1_average")
        part.folder = folder
        return part

    # ── what its files say ────────────────────────────────────────────────────────────────────────────────────

    def shows_power(self, part: Part, file: str, share: float = 1.0) -> None:
        self._shows(part.folder / file, lambda now_ns: f"{round(share * part.power_w(now_ns) * 1e6)}")

    def shows_energy(self, part: Part, file: str, share: float = 1.0) -> None:
        self._shows(part.folder / file, lambda now_ns: f"{int(share * part.counted_j(now_ns) * 1e6)}")

    def mask(self) -> None:
        """What a container runtime does: the devices are hidden, and the links dangle."""
        shutil.rmtree(self.root / "devices")

    def read_text(self, path: Path) -> str:
        """In the place of `hwmon_drivers.read_text`: as the files are, but for `errors`."""
        error = self.errors.get(path.resolve()) or self.errors.get(path)
        if error is not None:
            raise OSError(error, os.strerror(error), str(path))
        return path.read_text(encoding="ascii")

    def _shows(self, path: Path, text: Callable[[int], str]) -> None:
        self._files[path] = text
        self._write()

    def _write(self) -> None:
        for path, text in self._files.items():
            if path.parent.is_dir() and not path.is_dir():
                path.write_text(self.says.get(path, text(self.time.now_ns())) + "\n")

    # ── links ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _number(self, kind: str) -> int:
        self._numbers[kind] = self._numbers.get(kind, -1) + 1
        return self._numbers[kind]

    def _platform(self, name: str) -> Path:
        folder = self.root / "devices/platform" / name
        folder.mkdir(parents=True)
        return folder

    def _drive(self, device: Path, driver: str) -> None:
        (self.root / driver).mkdir(parents=True, exist_ok=True)
        self._link(device / "driver", self.root / driver)

    def _of_class(self, kind: str, name: str, device: Path) -> None:
        folder = device / kind / name
        folder.mkdir(parents=True)
        self._link(folder / "device", device)
        self._link(self.root / "class" / kind / name, folder)

    def _link(self, link: Path, target: Path) -> None:
        """Relative, as the kernel's are, so that a tree that is mounted elsewhere still holds together."""
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(target, link.parent))
