"""What helps where RAPL cannot be read: a command is told only where it can help.

RAPL is of x86 processors: Intel's since 2011, AMD's and Hygon's since Zen. A virtual machine is shown none, and old
kernels do not read it. What does not help by one way of reading may by the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from energybench.meter.unavailable import Unavailable

CPUINFO = Path("/proc/cpuinfo")
NOTHING = "no command mends it"  # the beginning of every remedy that is none
NO_COUNT = f"{NOTHING}: the processor keeps no such count; use another machine or a wall meter"
OTHER_WAYS: Mapping[str, str] = {"powercap": "perf_events", "perf_events": "powercap"}

_X86 = re.compile(r"x86_64|amd64|i[3-6]86", re.IGNORECASE)
_AMD = ("AuthenticAMD", "HygonGenuine")
_ZEN = 0x17  # the family of the first
# Way of reading → (module, the first Linux that has it), newest first.
_MODULES: Mapping[str, tuple[tuple[str, tuple[int, int]], ...]] = {
    "powercap": (("intel_rapl_msr", (5, 3)), ("intel_rapl", (3, 13))),
    "perf_events": (("rapl", (5, 8)), ("intel_rapl_perf", (4, 7))),
}
_AMD_SINCE: Mapping[str, tuple[int, int]] = {"powercap": (5, 11), "perf_events": (5, 8)}


@dataclass(frozen=True, slots=True)
class Processor:
    """What decides whether there can be RAPL.

    system, machine: as `uname` says: "Linux", "x86_64"
    kernel:  (major, minor); None if it is written otherwise
    vendor:  "GenuineIntel", "AuthenticAMD"; "" if it is not known
    family:  None if it is not known
    virtual: whether this is a virtual machine; None if that is not known
    """

    system: str = "Linux"
    machine: str = "x86_64"
    kernel: tuple[int, int] | None = None
    vendor: str = ""
    family: int | None = None
    virtual: bool | None = None


def this_processor(cpuinfo: Path = CPUINFO, uname: Callable[[], os.uname_result] = os.uname) -> Processor:
    """The processor and the kernel of this machine. A file that cannot be read leaves its facts unknown."""
    told = uname()
    version = re.match(r"(\d+)\.(\d+)", told.release)
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())  # of the first core
    family = fields.get("cpu family", "")
    return Processor(
        system=told.sysname,
        machine=told.machine,
        kernel=(int(version[1]), int(version[2])) if version else None,
        vendor=fields.get("vendor_id", ""),
        family=int(family) if family.isdecimal() else None,
        virtual="hypervisor" in fields["flags"].split() if "flags" in fields else None,
    )


def absent(way: str, processor: Processor, system: Path) -> str:
    """What to do where the kernel lists no package by this way.

    Args:
        way: "powercap" or "perf_events"
        processor: of this machine
        system: where the kernel describes it: a module that is loaded already need not be loaded
    """
    if processor.system != "Linux" or not _X86.fullmatch(processor.machine):
        here = f"{processor.system} on {processor.machine}"
        return f"{NOTHING}: RAPL is read from x86 processors by Linux, and this is {here}; use a wall meter"
    if processor.virtual:
        return f"{NOTHING} in here: a virtual machine is shown no RAPL; run on the machine itself"
    amd = processor.vendor in _AMD
    if processor.vendor and not amd and processor.vendor != "GenuineIntel":
        return f"{NOTHING}: Linux reads no RAPL of {processor.vendor}; use another machine or a wall meter"
    if amd and processor.family is not None and processor.family < _ZEN:
        return f"{NOTHING}: AMD's processors have RAPL from Zen on; use another machine or a wall meter"
    kernel = processor.kernel or (99, 0)
    since = _AMD_SINCE[way] if amd else _MODULES[way][-1][1]
    if kernel < since:
        whose = "AMD's RAPL" if amd else "RAPL"
        return (
            f"update the kernel: Linux reads {whose} by {way} since {_written(since)}, and this is {_written(kernel)}"
        )
    module = next(name for name, first in _MODULES[way] if kernel >= first)
    if (system / "module" / module).exists():
        return f"{NOTHING}: {module} is loaded and has found no counter; use another machine or a wall meter"
    doubt = "" if processor.virtual is False else "  (a virtual machine has none: run on the machine itself)"
    return f"sudo modprobe {module}{doubt}"


def mended(way: str, unavailable: Unavailable, other: Unavailable | None) -> Unavailable:
    """The same, with the remedy that helps.

    Args:
        way: by which it is unavailable
        unavailable: a package or a memory
        other: why the other way does not work either; None if it works
    """
    if unavailable.kind != "unsupported":
        return unavailable
    instead = OTHER_WAYS[way]
    if other is None:
        remedy = f"nothing to do: it is read by {instead}"
    elif other.kind == "unsupported" or other.remedy.startswith(NOTHING):
        remedy = NO_COUNT
    else:
        remedy = f"read it by {instead}: {other.remedy}"
    return Unavailable(unavailable.reason, unavailable.kind, remedy)


def _written(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
