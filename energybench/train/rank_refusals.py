"""What cannot be trained on several devices at once, and why. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from energybench.common.errors import Problem
from energybench.train.method import Method, Task

CODE = "E326"
ALONE = "[trials] devices = 1"


def refuse_task(task: Task, devices: int, where: str = "") -> list[Problem]:
    """What can be said against a task on several devices; nothing on one."""
    reason = task.incompatible_devices(devices) if devices > 1 else None
    if devices > 1 and reason is None:
        if task.batch_parts:
            reason = f"each of its batches has as many samples of {', '.join(task.batch_parts)} beside it"
        elif "epoch" in task.replaces:
            reason = "it makes its own epochs"
    if reason is None:
        return []
    return [Problem(CODE, f"the task '{task.name}' cannot be trained on {devices} devices: {reason}", where, ALONE)]


def refuse_methods(methods: Sequence[Method], devices: int, where: str = "") -> list[Problem]:
    """What can be said against a stack on several devices; nothing on one."""
    if devices < 2:
        return []
    reasons = ((method.name, method.incompatible_devices(devices)) for method in methods)
    return [
        Problem(CODE, f"'{name}' cannot train on {devices} devices: {reason}", where, f"{ALONE}, or leave '{name}' out")
        for name, reason in reasons
        if reason is not None
    ]
