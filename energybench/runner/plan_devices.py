"""Whether this machine has the devices that a suite trains one trial on."""

from __future__ import annotations

import torch

from energybench.common import processors
from energybench.common.errors import Problem
from energybench.runner.plan_spec import PlanSpec


def problems(spec: PlanSpec, device: torch.device) -> list[Problem]:
    """What is wrong; nothing for trials on one device.

    Args:
        device: the first one that trains
    """
    devices = spec.suite.trials.devices
    if devices == 1:
        return []
    where = spec.where("trials", "devices")
    if not torch.distributed.is_available():
        message = f"this torch was built without torch.distributed, by which {devices} ranks speak to each other"
        return [Problem("E208", message, where, "[trials] devices = 1, or another build of torch")]
    if device.type == "cpu":
        usable = processors.usable()
        if usable >= devices or spec.purpose in ("check", "trace"):
            return []
        message = f"devices = {devices} are as many ranks, and {usable} processor{'s' * (usable != 1)} may be used here"
        return [Problem("E208", message, where, f"devices = {usable}")]
    if device.type != "cuda":
        return [Problem("E208", f"several devices are cards or a CPU's threads, not '{device}'", where, "devices = 1")]
    if device.index:
        message = f"devices = {devices} are the first {devices} cards that CUDA shows, and --device names '{device}'"
        return [Problem("E208", message, where, "leave --device out, and choose them by CUDA_VISIBLE_DEVICES")]
    shown = torch.cuda.device_count()
    if shown >= devices:
        return []
    message = f"devices = {devices}, and CUDA shows {shown} card{'s' * (shown != 1)} here"
    return [Problem("E208", message, where, f"devices = {shown}, or a node with more; CUDA_VISIBLE_DEVICES says which")]
