"""What kind of machine this is. Imports no torch."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from energybench.common.programs import starting_safely


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
