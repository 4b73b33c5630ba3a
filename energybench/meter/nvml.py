"""NVIDIA's driver: which of its cards can be opened, and why the others cannot.

NVML numbers cards as the PCI bus does, and counts those too that a process may not open: one that is refused hides no
other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from energybench.common.processes import descendants
from energybench.meter.counter import SensorError
from energybench.meter.nvml_gpu import Gpu
from energybench.meter.perf_events import sysfs
from energybench.meter.unavailable import Unavailable, UnavailableKind

REMEDY = "needs an NVIDIA GPU (Volta or newer) and its driver: nvidia-smi must answer"
LOADED = "module/nvidia"  # below /sys: there in a container too, whose cards may not be
REBOOT = "start the machine again: the driver was updated while it was loaded (or, with no program on a card: "
REBOOT += "sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia)"

# What mends it, by what NVML says: (kind, remedy).
REMEDIES: dict[str, tuple[UnavailableKind, str]] = {
    "Insufficient Permissions": (
        "denied",
        "ask for that card: this process's control group, or its user, may not open it",
    ),
    "GPU is lost": ("unsupported", "sudo nvidia-smi --gpu-reset, or start the machine again: it fell off the bus"),
    "mismatch": ("unsupported", REBOOT),
    "Driver Not Loaded": ("absent", "sudo modprobe nvidia  (a machine without an NVIDIA card needs nothing)"),
    "GPU requires restart": ("unsupported", "sudo nvidia-smi --gpu-reset"),
    "NVML: Not Supported": ("unsupported", ""),  # a Jetson: its rails are in hwmon
    "NVML: Not Found": ("absent", "nvidia-smi -L lists the UUIDs of the cards that are there"),
}


@dataclass(frozen=True, slots=True)
class Cards:
    """The NVIDIA cards that were asked for.

    opened:  those that answer
    refused: UUID, or "GPU 2" by NVML's number where it does not even tell its UUID → why it cannot be opened
    """

    opened: tuple[Gpu, ...]
    refused: dict[str, Unavailable]


def _binding() -> Any:
    """Raises Unavailable."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # the binding raises its own types, and OSError where the library is broken
        reason = f"NVML: {error}"
        if (sysfs() / LOADED).exists() and "mismatch" not in reason:
            remedy = "the driver is loaded, so this is a container without its cards: start it with --gpus all"
            raise Unavailable(reason, "masked", remedy) from None
        raise why(reason, "absent", REMEDY) from None
    return pynvml


def why(reason: str, kind: UnavailableKind = "unsupported", remedy: str = REMEDY) -> Unavailable:
    """The exception for what NVML says, with the remedy that helps there; else with this kind and this remedy."""
    kind, remedy = next((known for words, known in REMEDIES.items() if words in reason), (kind, remedy))
    return Unavailable(reason, kind, remedy)


def find_gpus(uuids: Sequence[str] | None = None) -> Cards:
    """Open NVIDIA cards. NVML stays open until the process ends.

    Args:
        uuids: of the cards; None: all of this machine

    Raises:
        Unavailable: where there is no driver, or no card
    """
    nvml = _binding()
    if uuids is None:
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise why(f"NVML: {error}") from None
        asked = {f"GPU {number}": partial(nvml.nvmlDeviceGetHandleByIndex, number) for number in range(count)}
    else:
        asked = {uuid: partial(nvml.nvmlDeviceGetHandleByUUID, uuid) for uuid in uuids}
    opened: list[Gpu] = []
    refused: dict[str, Unavailable] = {}
    for name, handle in asked.items():
        try:
            opened.append(Gpu(nvml, handle()))
        except (nvml.NVMLError, SensorError) as error:
            reason = str(error) if isinstance(error, SensorError) else f"NVML: {error}"
            refused[name] = why(reason)
    if not opened and not refused:
        raise Unavailable("NVML sees no GPU", "absent", REMEDY)
    return Cards(tuple(opened), refused)


def refused_gpus() -> dict[str, Unavailable]:
    """Cards of this machine that cannot be opened, as `Cards.refused` names them; none where there is no driver."""
    try:
        return find_gpus().refused
    except Unavailable:
        return {}


def open_gpus(uuids: Sequence[str] | None = None) -> list[Gpu]:
    """The cards that can be opened, at least one, and every one that is named.

    Args:
        uuids: of the cards; None: all of this machine that can be opened

    Raises:
        Unavailable: where there is no driver, no card, or not one of these
    """
    cards = find_gpus(uuids)
    if cards.refused and (uuids is not None or not cards.opened):
        name, unavailable = next(iter(cards.refused.items()))
        raise Unavailable(f"{name}: {unavailable.reason}", unavailable.kind, unavailable.remedy)
    return list(cards.opened)


@contextlib.contextmanager
def held_open() -> Iterator[None]:
    """Keep the driver loaded: without any client it may unload, and its counters start again from 0."""
    try:
        nvml = _binding()
    except Unavailable:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def process_exists(pid: int) -> bool:
    """Whether the operating system has a process of that number here."""
    import psutil

    return bool(psutil.pid_exists(pid))


def own_processes() -> set[int]:
    """This process and everything it started, as the operating system numbers them here."""
    return {os.getpid(), *descendants(os.getpid())}
