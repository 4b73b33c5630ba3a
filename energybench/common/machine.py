"""What kind of machine this is. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

from energybench.common.programs import starting_safely

MACHINE_ID, BOOT_ID = Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id")
MEMORY_TABLE = Path("/sys/firmware/dmi/tables/DMI")  # root reads it, and a virtual machine's may be empty
MEMORY_DEVICE, SIZE, SPEED, CONFIGURED_SPEED = 17, 0x0C, 0x15, 0x20  # SMBIOS 3.7, 7.18: a type, and places in it
MARK = 12  # hexadecimal digits


def native_bf16() -> bool:
    """Whether this processor multiplies bf16 itself."""
    return _has_flag("avx512_bf16", "amx_bf16", " bf16")


def _has_flag(*names: str) -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(name in flags for name in names)


def native_fp16() -> bool:
    """Whether this processor multiplies fp16 itself."""
    return _has_flag("avx512_fp16", "amx_fp16", " asimdhp")


def cpu_name() -> str:
    """The processor as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or _processor() or platform.machine()


def platform_name() -> str:
    """The system, its release and its C library, as Python says it."""
    with starting_safely():  # it asks uname
        return platform.platform()


def _processor() -> str:
    with starting_safely():
        return platform.processor()


def facts() -> dict[str, Any]:
    """{cpu, cores, platform, python, energybench}, and torch where this process has loaded it."""
    from energybench.common.version import __version__

    machine: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "platform": platform_name(),
        "python": platform.python_version(),
        "energybench": __version__,
    }
    torch = sys.modules.get("torch")
    return machine | ({"torch": str(torch.__version__)} if torch is not None else {})


def of_trial() -> dict[str, Any]:
    """What a trial's record says of the machine under it: what machines of one kind share, and two marks of the host.

    Two marks, since each fails by itself: containers of one host may call themselves differently, and share its boot; a
    host that was started again has another boot, and its old name and machine-id. What shares either is one host.
    """
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mt_s": memory_mt_s(),
        "host": _mark("host", f"{os.uname().nodename} {_line(MACHINE_ID)}"),
        "boot": _mark("boot", boot) if (boot := _line(BOOT_ID)) else None,
    }


def _line(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _mark(kind: str, text: str) -> str:
    """A checksum that tells one from another and cannot be read."""
    return hashlib.sha256(f"energybench {kind} {text}".encode()).hexdigest()[:MARK]


def memory_mt_s() -> int | None:
    """What the memory runs at, in MT/s, by the firmware's table; None where it cannot be read, or modules differ."""
    try:
        table = MEMORY_TABLE.read_bytes()
    except OSError:
        return None
    speeds: set[int] = set()
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        strings_end = table.find(b"\0\0", at + length)
        if length < 4 or strings_end < 0:
            break
        if kind == MEMORY_DEVICE:
            size, rated, configured = (
                _word(table[at : at + length], place) for place in (SIZE, SPEED, CONFIGURED_SPEED)
            )
            if size:  # there is a module in the slot
                speeds.add(configured or rated)
        at = strings_end + 2
    return speeds.pop() if len(speeds) == 1 and not speeds & {0, 0xFFFF} else None


def _word(structure: bytes, place: int) -> int:
    """Two bytes, least first; 0 where an older table ends before them."""
    return int.from_bytes(structure[place : place + 2], "little") if len(structure) >= place + 2 else 0
