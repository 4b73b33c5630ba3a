"""`energybench doctor`: what this machine can measure, what it cannot, and what would change that."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from energybench.machine import cpu_name

PACKAGES = ("torch", "torchvision", "fvcore", "codecarbon", "nvidia-ml-py", "scipy", "numpy")


def examine() -> dict[str, Any]:
    """Sensors, versions, folders: {sensors: [{name, usable, why, remedy}], versions, data, machine, verdict}."""
    sensors = [_nvml(), _rapl(), _model()]
    measured = any(sensor["usable"] and sensor["measured"] for sensor in sensors)
    return {
        "machine": {"platform": platform.platform(), "python": platform.python_version(), "cpu": cpu_name(),
                    "cores": len(os.sched_getaffinity(0))},
        "versions": {name: _version(name) for name in PACKAGES},
        "sensors": sensors,
        "data": _data(),
        "disk_free_b": shutil.disk_usage(".").free,
        "energy": "measured" if measured else "modelled",
    }  # fmt: skip


def _nvml() -> dict[str, Any]:
    from energybench.meter.nvml import describe

    gpus, why = describe()
    usable = [gpu for gpu in gpus if gpu.get("counter_j") is not None]
    if gpus and not usable:
        why = f"the counter of {gpus[0].get('name')} does not answer: {gpus[0].get('counter_j_reason')}"
    return {
        "name": "NVML energy counter", "measured": True, "usable": bool(usable), "devices": gpus,
        "why": "; ".join(f"{g['name']}, driver {g['driver']}" for g in usable) if usable else why or "no GPU",
        "remedy": "" if usable else "needs an NVIDIA GPU (Volta or newer) and its driver: nvidia-smi must answer",
    }  # fmt: skip


def _rapl() -> dict[str, Any]:
    """Told here so that nobody wonders; energybench does not read it yet."""
    domains = sorted(Path("/sys/class/powercap").glob("intel-rapl:*"))
    if not domains:
        why, remedy = (
            "there is no /sys/class/powercap/intel-rapl:*",
            "virtual machines and containers hide it",
        )
    elif not os.access(domains[0] / "energy_uj", os.R_OK):
        why, remedy = f"{domains[0]}/energy_uj cannot be read", f"sudo chmod o+r {domains[0]}/energy_uj"
    else:
        why, remedy = f"{len(domains)} domains are there, but this version does not read them", "no action"
    return {"name": "RAPL", "measured": True, "usable": False, "why": why, "remedy": remedy}


def _model() -> dict[str, Any]:
    from energybench.meter.carbon import model_parameters

    facts = model_parameters()
    cpu = f"{facts['tdp_w']:g} W CPU ({facts['tdp_source']}) × load"
    why = f"{cpu}, {facts['ram_w']:g} W memory: an estimate, never a saving"
    return {
        "name": "codecarbon's model",
        "measured": False,
        "usable": True,
        "why": why,
        "remedy": "",
        "parameters": facts,
    }


def _data() -> dict[str, Any]:
    place = os.environ.get("ENERGYBENCH_DATA")
    if not place:
        return {"folder": None, "why": "ENERGYBENCH_DATA is not set; shipped data sets work without it"}
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return {"folder": str(folder), "why": "ENERGYBENCH_DATA names no folder"}
    return {"folder": str(folder), "sets": sorted(p.name for p in folder.iterdir() if p.is_dir())}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
