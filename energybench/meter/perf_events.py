"""RAPL by the kernel's perf events: 64 bits wide, so that they never wrap, and open where `energy_uj` is not.

    /sys/bus/event_source/devices/power/type                  first argument of perf_event_open
    /sys/bus/event_source/devices/power/cpumask               one processor number per package
    /sys/bus/event_source/devices/power/events/energy-pkg     "event=0x02"; .scale: joules per count; .unit: "Joules"

Only energy-pkg and energy-ram are opened: psys holds the packages, and they hold cores and gpu. Where /sys is mounted
elsewhere, as the host's is in a container, ENERGYBENCH_SYSFS names that folder.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from energybench.meter.domains import READ_ERRORS, Domain
from energybench.meter.plausible import PowerLimit
from energybench.meter.power_limits import UNSTATED
from energybench.meter.rapl_remedies import NO_COUNT
from energybench.meter.unavailable import Unavailable, UnavailableKind, explain

SYSTEM = Path("/sys")
SYSFS = "ENERGYBENCH_SYSFS"  # another folder in its place: the host's, mounted into a container
_SYSCALL = {"x86_64": 298, "aarch64": 241}  # perf_event_open
_ATTRIBUTE_BYTES = 112  # PERF_ATTR_SIZE_VER5; all that is not named below is 0
_CLOSE_ON_EXEC = 8  # PERF_FLAG_FD_CLOEXEC

REMEDIES: Mapping[UnavailableKind, str] = {
    "denied": "sudo sysctl kernel.perf_event_paranoid=0  (until the next boot; in a container also --cap-add PERFMON)",
    "unsupported": NO_COUNT,
}

Opener = Callable[[int, int, int], Callable[[], int]]  # (type, config, processor) → what reads the count
Limits = Mapping[str, Callable[[], PowerLimit]]


def sysfs() -> Path:
    """Where the kernel describes the machine."""
    return Path(os.environ.get(SYSFS) or SYSTEM)


def open_event(kind: int, config: int, processor: int) -> Callable[[], int]:
    """Count one event on one processor, whoever runs there. Raises OSError."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"perf_event_open has no known number on {platform.machine()}")
    attribute = struct.pack("=IIQ", kind, _ATTRIBUTE_BYTES, config).ljust(_ATTRIBUTE_BYTES, b"\0")
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    arguments = (ctypes.c_long(value) for value in (-1, processor, -1, _CLOSE_ON_EXEC))
    descriptor = call(ctypes.c_long(number), ctypes.c_char_p(attribute), *arguments)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return _Descriptor(descriptor).read


class _Descriptor:
    """A file descriptor that is closed with the last reference to it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def read(self) -> int:
        raw = os.read(self._number, 8)
        if len(raw) != 8:
            raise ValueError(f"perf_events gave {len(raw)} bytes of a count of 8")
        return int.from_bytes(raw, sys.byteorder)

    def __del__(self) -> None:
        os.close(self._number)


def open_events(
    system: Path, opener: Opener, absent: Callable[[], str], limits: Limits
) -> tuple[list[Domain], dict[str, Unavailable]]:
    """energy-pkg of every package, and energy-ram where it opens; the devices left out and why.

    Args:
        system: where the events are described
        opener: what opens one
        absent: gives the remedy where the kernel offers none
        limits: device → what states its power limit now; an event itself states none

    Raises:
        Unavailable: unless every package is counted exactly once
    """
    power = system / "bus/event_source/devices/power"
    if not power.is_dir():
        raise Unavailable("the kernel offers no power events", "absent", absent())

    def domain(scope: str, device: str, read: Callable[[], int], scale: float) -> Domain:
        limit_now = limits.get(device)
        limit = limit_now() if limit_now else UNSTATED[scope]
        return Domain("perf_events", scope, device, read, scale, REMEDIES, None, limit, limit_now)

    try:
        kind, processors = int(_text(power / "type")), _listed(_text(power / "cpumask"))
        packages = [_package(system, processor) for processor in processors]
        config, scale = _event(power / "events", "energy-pkg")
        domains = [
            domain("cpu", package, opener(kind, config, processor), scale)
            for processor, package in zip(processors, packages, strict=True)
        ]
    except READ_ERRORS as error:
        raise explain(error, "energy-pkg", REMEDIES) from None
    if not packages or len(set(packages)) < len(packages):
        # Counts start at 0 when they are opened, so two names of one counter cannot be told from two dies.
        reason = f"the power events are on processors {processors}, not on one of each package"
        raise Unavailable(reason, "unsupported", REMEDIES["unsupported"])
    left_out = {}
    for processor, package in zip(processors, packages, strict=True):
        try:
            config, scale = _event(power / "events", "energy-ram")
            domains.append(domain("dram", f"{package}/dram", opener(kind, config, processor), scale))
        except FileNotFoundError:
            continue  # no such event: a processor without a counter of its memory
        except READ_ERRORS as error:
            left_out[f"{package}/dram"] = explain(error, "energy-ram", REMEDIES)
    return domains, left_out


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _event(events: Path, name: str) -> tuple[int, float]:
    """(config, joules per count). Raises OSError, ValueError."""
    written, unit = _text(events / name), _text(events / f"{name}.unit")
    match = re.fullmatch(r"event=(0x[0-9a-fA-F]+|[0-9]+)", written)
    if match is None or unit != "Joules":
        raise ValueError(f'{name} is "{written}" in "{unit}", not "event=…" in "Joules"')
    scale = float(_text(events / f"{name}.scale"))
    if not 0 < scale < 1:
        raise ValueError(f"{name} has a scale of {scale:g} J")
    return int(match[1], 0), scale


def _listed(written: str) -> list[int]:
    """ "0,18" or "0-1" → processor numbers. Raises ValueError."""
    ends = [[int(end) for end in part.split("-")] for part in written.split(",") if part]
    return [number for pair in ends for number in range(pair[0], pair[-1] + 1)]


def _package(system: Path, processor: int) -> str:
    return f"package-{int(_text(system / f'devices/system/cpu/cpu{processor}/topology/physical_package_id'))}"
