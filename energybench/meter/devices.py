"""Which cards this process uses, and waiting for them. torch is asked where it is loaded, and never imported.

numbers, uuids    cards that hold or have held this process's tensors, as torch knows them
pci_addresses     the same of other makers' cards, which NVML does not know
listed_uuids      cards on which the driver lists this process or one that it started
visible_uuids     cards that CUDA shows to a program with this environment, used or not
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from energybench.meter.accelerators import accelerators
from energybench.meter.kernel_sensors import UNKNOWN, by_serial, only_card
from energybench.meter.nvml import open_gpus, own_processes
from energybench.meter.nvml_gpu import Gpu
from energybench.meter.reading import Energy, Reading
from energybench.meter.visible import visible


class TorchDevice(Protocol):
    """What is asked of a `torch.device`."""

    @property
    def type(self) -> str: ...


def _cuda() -> Any:
    """torch.cuda where this process has started CUDA, else None: asking an idle one would start it."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # a torch that is just being imported has none yet
    return cuda if cuda is not None and cuda.is_initialized() else None


def numbers() -> list[int]:
    """Numbers, in torch's order, of the devices that hold or have held this process's tensors."""
    cuda = _cuda()
    if cuda is None:
        return []
    return [number for number in range(cuda.device_count()) if cuda.max_memory_reserved(number)]


def uuids() -> set[str]:
    """The same devices as NVML names them; none under ROCm, whose cards NVML does not know."""
    cuda = _cuda()
    if _rocm():
        return set()
    return {f"GPU-{cuda.get_device_properties(number).uuid}" for number in numbers()}


def pci_addresses() -> set[str]:
    """PCI addresses of the AMD and Intel cards that hold or have held this process's tensors.

    Returns:
        "0000:03:00.0" of each, "unknown" in the place of one that torch does not place on the bus
    """
    cuda = _cuda()
    found: set[str] = set()
    if cuda is not None and _rocm():
        found |= {_address(cuda.get_device_properties(number)) for number in numbers()}
    xpu = getattr(sys.modules.get("torch"), "xpu", None)
    if xpu is not None and xpu.is_initialized():
        used = [number for number in range(xpu.device_count()) if xpu.max_memory_reserved(number)]
        found |= {only_card("Intel", accelerators()) or UNKNOWN for _ in used}
    return found


def _rocm() -> bool:
    return bool(getattr(getattr(sys.modules.get("torch"), "version", None), "hip", None))


def _address(properties: Any) -> str:
    """By what torch says of the bus, where it does, else by the card's serial number."""
    place = [getattr(properties, name, None) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id")]
    domain, bus, slot = (number if isinstance(number, int) else -1 for number in place)
    if min(domain, bus, slot) >= 0:
        return f"{domain:04x}:{bus:02x}:{slot:02x}.0"
    there = accelerators()
    return by_serial(str(getattr(properties, "uuid", "")), there) or only_card("AMD", there) or UNKNOWN


def listed_uuids(gpus: Iterable[Gpu]) -> list[str]:
    """UUIDs of those of these cards on which the driver lists this process or one that it started."""
    own = own_processes()
    return [gpu.uuid for gpu in gpus if gpu.processes() & own]


def visible_uuids(wanted: str | Sequence[str] = "used") -> list[str]:
    """UUIDs of the cards that are metered for a program whose own use of them cannot be seen from here.

    Args:
        wanted: "used": those that CUDA shows to a program with this process's environment; "all"; or UUIDs

    Raises:
        Unavailable: where there is no card, or where it is not clear which ones are meant
    """
    gpus = open_gpus(None if isinstance(wanted, str) else wanted)
    if wanted != "used":
        return [gpu.uuid for gpu in gpus]
    return visible([(gpu.uuid, gpu.name) for gpu in gpus], os.environ)


def synchronise(device: TorchDevice | None = None) -> None:
    """Wait until every card that this process uses is done: a model may have spread over several.

    Args:
        device: waited for first, also where CUDA has not been started yet; with a CPU there is nothing to wait for.
            None: the used ones alone, of which there may be none

    Raises:
        RuntimeError: what CUDA raises for an error in a kernel
    """
    if device is not None and device.type != "cuda":
        return
    if device is not None:
        sys.modules["torch"].cuda.synchronize(device)
    cuda = _cuda()
    for number in numbers():
        cuda.synchronize(number)


def unmetered(energy: Sequence[Energy], cards: Iterable[str], reason: str) -> list[Energy]:
    """Of each of these cards (UUIDs, PCI addresses) that no figure is of: that there is none, and the reason."""
    known = {each.device for each in energy if not each.unmetered}
    missing = sorted(set(cards) - known)
    return [Energy(source="unavailable", scope="gpu", device=uuid, reason=reason) for uuid in missing]


def with_every_card(reading: Reading, reason: str) -> Reading:
    """The reading, and of each card that this process used beside those that were metered that it has no figure.

    Args:
        reading: of one window. One that names no card stays as it is: none was to be metered, or its one entry of
            scope "gpu" says why none could be
        reason: why a card that was used was not metered
    """
    if not any(each.scope == "gpu" and each.device and not each.unmetered for each in reading.energy):
        return reading
    unseen = unmetered(reading.energy, uuids() | pci_addresses(), reason)
    return reading.model_copy(update={"energy": [*reading.energy, *unseen]}) if unseen else reading
