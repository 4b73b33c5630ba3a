"""What a plan says of the machine: of its processor, its libraries and the device that trains."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from energybench.common.machine import cpu_name, platform_name
from energybench.common.torchvision_shim import import_torchvision
from energybench.common.version import __version__


def machine_facts(device: torch.device, threads_chosen: Mapping[str, Any]) -> dict[str, Any]:
    """threads_chosen: how many were tried, and what they took; empty where the suite says their number"""
    facts: dict[str, Any] = {
        "platform": platform_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": import_torchvision().__version__,
        "energybench": __version__,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if threads_chosen:
        facts["threads_chosen"] = dict(threads_chosen)
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
