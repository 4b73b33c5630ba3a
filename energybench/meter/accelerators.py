"""Which accelerators a machine has, metered or not, from the kernel's files alone: no driver is asked, none is woken.

    /sys/bus/pci/devices/*                        what lies on the bus, with its driver or without one
    /sys/class/drm/{card,renderD}*/device         graphics; a mere display controller is no accelerator
    /sys/class/kfd/kfd/topology/nodes/*/properties   AMD's compute nodes, where simd_count is not 0
    /sys/class/accel/accel*, class/habanalabs/*   neural processors and training cards
    /sys/firmware/devicetree/base/compatible      NVIDIA's Tegra, whose GPU lies on no bus

One card appears in several of them and is one here: it is known by its PCI address. Where /sys is mounted elsewhere,
as the host's is in a container, ENERGYBENCH_SYSFS names that folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from energybench.meter.perf_events import sysfs

Kind = Literal["gpu", "accelerator"]
AMD, NVIDIA, INTEL = 0x1002, 0x10DE, 0x8086
VENDORS = {
    AMD: "AMD",
    0x1022: "AMD",
    NVIDIA: "NVIDIA",
    INTEL: "Intel",
    0x1DA3: "Habana",
    0x17CB: "Qualcomm",
    0x1D0F: "Amazon",
    0x1AE0: "Google",
    0x1E52: "Tenstorrent",
    0x19E5: "Huawei",
    0x1D94: "Hygon",
    0x1ED5: "Moore Threads",
    0xCABC: "Cambricon",
}
VENDOR_OF_DRIVER = {
    "amdgpu": "AMD",
    "amdxdna": "AMD",
    "radeon": "AMD",
    "i915": "Intel",
    "xe": "Intel",
    "intel_vpu": "Intel",
    "ivpu": "Intel",
    "habanalabs": "Habana",
    "qaic": "Qualcomm",
    "nvidia": "NVIDIA",
    "nouveau": "NVIDIA",
    "nvgpu": "NVIDIA",
    "asahi": "Apple",
    "panfrost": "Arm",
    "panthor": "Arm",
    "ethosu": "Arm",
    "msm": "Qualcomm",
    "rocket": "Rockchip",
}
# They show a picture, or pass one on, and compute nothing.
DISPLAY_DRIVERS = frozenset(
    {"ast", "mgag200", "bochs-drm", "bochs", "qxl", "virtio_gpu", "virtio-pci", "virtio-gpu", "vmwgfx", "hyperv_drm"}
    | {"simpledrm", "simple-framebuffer", "ofdrm", "of-display", "efidrm", "vesadrm", "cirrus", "cirrus-qemu", "vkms"}
    | {"vgem", "udl", "gud", "evdi", "vboxvideo", "hibmc-drm", "hibmc", "gm12u320", "xen-drmfront", "gma500", "repaper"}
    | {"efi-framebuffer", "vesa-framebuffer", "loongson"}
)
DISPLAY_VENDORS = frozenset(
    {0x1A03, 0x102B, 0x1234, 0x1013, 0x15AD, 0x1414, 0x1AF4, 0x1B36, 0x80EE}  # ASPEED, Matrox, and what emulators show
)
DISPLAY_CARDS = frozenset({(AMD, 0x515E), (AMD, 0x5969)})  # ES1000, the console of old servers
IN_THE_PROCESSOR = frozenset(
    {"intel_vpu", "ivpu", "amdxdna", "rocket", "ethosu", "asahi", "panfrost", "panthor", "msm"}
)
SOC_DRIVERS = frozenset({"asahi", "panfrost", "panthor", "msm", "rocket", "ethosu"})  # of platform devices
MODULES = frozenset(
    {0x74A0}
)  # MI300A: processor, GPU and memory in one package, which the card's own sensor sees whole
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_GRAPHICS, _PROCESSING = 0x03, 0x12  # PCI base classes


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One card or chip that can train.

    address:    on the PCI bus, "0000:03:00.0"; "" where it lies on none
    driver:     of the kernel; "" where none is loaded for it
    vendor:     "AMD", "Intel", "NVIDIA", "Habana", …; "vendor 0x1234" for one that is not known here
    integrated: part of the processor's package, so that its energy is in the processor's
    unique_id:  AMD's serial number, 16 hexadecimal digits; "" where the driver gives none
    device_id:  the PCI device's number, 0 where there is none
    model:      of a board, where the device tree says it
    """

    address: str
    driver: str
    vendor: str
    kind: Kind
    integrated: bool = False
    unique_id: str = ""
    device_id: int = 0
    model: str = ""

    @property
    def name(self) -> str:
        """In words: "AMD GPU 0000:03:00.0 (amdgpu)"."""
        return " ".join(word for word in (self.vendor, KINDS[self.kind], self.address or self.model) if word) + (
            f" ({self.driver or 'no driver'})"
        )

    @property
    def device(self) -> str:
        """What its figures are filed under: never empty."""
        return self.address or self.model or f"{self.vendor} {KINDS[self.kind]}"


KINDS: dict[Kind, str] = {"gpu": "GPU", "accelerator": "accelerator"}


def accelerators(system: Path | None = None) -> list[Accelerator]:
    """Every accelerator of this machine, in the order of their addresses.

    Args:
        system: in place of /sys, or of what $ENERGYBENCH_SYSFS names

    Returns:
        One entry per card or chip; none where there is none, and of what cannot be read. Raises nothing.
    """
    system = system or sysfs()
    found: dict[str, Accelerator] = {}
    for each in (*_on_the_bus(system), *_graphics(system), *_compute_nodes(system), *_processors(system)):
        key = each.address or each.device
        found[key] = _merged(found[key], each) if key in found else each
    on_the_bus = any(each.vendor == "NVIDIA" for each in found.values())  # where a Tegra may have its GPU, too
    if not on_the_bus and (tegra := _tegra(system)):
        found.setdefault(tegra.device, tegra)
    return sorted(found.values(), key=lambda each: (not each.address, each.address, each.device))


def pci_address(folder: Path) -> str:
    """Of the device that this folder, or where it links to, describes; "" where it lies on no PCI bus."""
    for line in text_of(folder / "uevent").splitlines():
        name, _, value = line.partition("=")
        if name == "PCI_SLOT_NAME" and _ADDRESS.fullmatch(value):
            return value
    last = os.path.basename(os.path.realpath(folder))
    return last if _ADDRESS.fullmatch(last) else ""


def text_of(path: Path) -> str:
    """What a small file holds; "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("ascii", errors="replace").strip()
    except OSError:
        return ""


def _merged(one: Accelerator, other: Accelerator) -> Accelerator:
    """Two sights of one card: what either knows. Whatever draws pictures or computes with amdgpu is a GPU."""
    return replace(
        one,
        driver=one.driver or other.driver,
        vendor=other.vendor if one.vendor.startswith("vendor ") else one.vendor,
        kind="gpu" if "gpu" in (one.kind, other.kind) else "accelerator",
        integrated=one.integrated or other.integrated,
        unique_id=one.unique_id or other.unique_id,
        device_id=one.device_id or other.device_id,
    )


# ── where they are listed ─────────────────────────────────────────────────────────────────────────────────────


def _on_the_bus(system: Path) -> Iterator[Accelerator]:
    for folder in _folders(system / "bus/pci/devices", r".+"):
        vendor, kind = _hex(folder / "vendor"), _hex(folder / "class") >> 16
        if os.path.lexists(folder / "physfn"):
            continue  # a virtual function: the card itself is listed as well
        if kind == _GRAPHICS and vendor in (AMD, NVIDIA, INTEL):
            yield from _of_folder(folder, "gpu")
        elif kind == _PROCESSING and vendor:
            yield from _of_folder(folder, "gpu" if vendor in (AMD, NVIDIA) else "accelerator")


def _graphics(system: Path) -> Iterator[Accelerator]:
    for folder in _folders(system / "class/drm", r"(card|renderD)\d+"):
        yield from _of_folder(folder / "device", "gpu")


def _processors(system: Path) -> Iterator[Accelerator]:
    for folder in _folders(system / "class/accel", r"accel\d+"):
        yield from _of_folder(folder / "device", "accelerator")
    for folder in _folders(system / "class/habanalabs", r"hl\d+"):
        yield from _of_folder(folder / "device", "accelerator", "habanalabs")


def _of_folder(folder: Path, kind: Kind, driver: str = "") -> Iterator[Accelerator]:
    """The device that a folder describes, unless it is none that computes."""
    vendor, device = _hex(folder / "vendor"), _hex(folder / "device")
    driver = _driver(folder) or driver
    address = pci_address(folder)
    if driver in DISPLAY_DRIVERS or vendor in DISPLAY_VENDORS or (vendor, device) in DISPLAY_CARDS:
        return
    if not address and not vendor and driver not in SOC_DRIVERS and kind == "gpu":
        return  # a device of the board: a display's engine, a partition of a card that is listed itself
    if not address and not vendor and not driver:
        return
    yield Accelerator(
        address,
        driver,
        _vendor(vendor, driver),
        kind,
        integrated=_integrated(folder, vendor, driver, address),
        unique_id=text_of(folder / "unique_id").lower(),
        device_id=device,
    )


def _compute_nodes(system: Path) -> Iterator[Accelerator]:
    for folder in _folders(system / "class/kfd/kfd/topology/nodes", r"\d+"):
        facts = dict(_pairs(text_of(folder / "properties")))
        if facts.get("simd_count", 0) <= 0:
            continue  # a processor
        place = facts.get("location_id", 0) & 0xFFFF
        address = f"{facts.get('domain', 0):04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}" if place else ""
        unique = facts.get("unique_id", 0)
        yield Accelerator(
            address,
            "amdgpu",
            _vendor(facts.get("vendor_id", 0), "amdgpu"),
            "gpu",
            integrated=facts.get("cpu_cores_count", 0) > 0 and facts.get("device_id") not in MODULES,
            unique_id=f"{unique:016x}" if unique else "",
            device_id=facts.get("device_id", 0),
        )


def _tegra(system: Path) -> Accelerator | None:
    tree = system / "firmware/devicetree/base"
    compatible = text_of(tree / "compatible").split("\0")
    family = text_of(system / "devices/soc0/family")
    if family != "Tegra" and not any(word.startswith("nvidia,tegra") for word in compatible):
        return None
    model = text_of(tree / "model").rstrip("\0") or "Tegra"
    return Accelerator("", "nvgpu", "NVIDIA", "gpu", model=model)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────


def _folders(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if re.fullmatch(pattern, path.name))
    except OSError:
        return []


def _hex(path: Path) -> int:
    try:
        return int(text_of(path), 16)
    except ValueError:
        return 0


def _pairs(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdecimal():
            yield name, int(value)


def _driver(folder: Path) -> str:
    link = folder / "driver"
    return os.path.basename(os.path.realpath(link)) if os.path.lexists(link) else ""


def _vendor(number: int, driver: str) -> str:
    return VENDORS.get(number) or VENDOR_OF_DRIVER.get(driver) or f"vendor 0x{number:04x}"


def _integrated(folder: Path, vendor: int, driver: str, address: str) -> bool:
    """Intel's own graphics and NPU lie on bus 0; an AMD processor's graphics know the voltage of its north bridge."""
    if driver in IN_THE_PROCESSOR or (vendor == INTEL and address.startswith("0000:00:")):
        return True
    labels = (label for each in _folders(folder / "hwmon", r"hwmon\d+") for label in _folders(each, r"in\d+_label"))
    return any(text_of(label) == "vddnb" for label in labels)
