"""What a task or a method cannot train, in its own words: on several devices (E326), this model on these data (E327),
on this kind of device (E328). Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from energybench.common.errors import Problem
from energybench.train.method import Method, Task

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun

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


def refuse_run(
    methods: Sequence[Method], run: TrainingRun, what: str, where: str = "", hint: str = ""
) -> list[Problem]:
    """What can be said against training a model on data by a stack, of which no layer has been set up.

    Args:
        run: whose model and data are looked at
        what: the name of what is trained
    """
    reasons = ((method.name, method.incompatible_run(run)) for method in methods)
    return [
        Problem("E327", f"'{name}' cannot train {what}: {reason}", where, hint)
        for name, reason in reasons
        if reason is not None
    ]


def refuse_hardware(methods: Sequence[Method], device: str, where: str = "") -> list[Problem]:
    """What can be said against a stack on a kind of device: "cpu" or "cuda"."""
    reasons = ((method.name, method.incompatible_hardware(device)) for method in methods)
    return [
        Problem("E328", f"'{name}' cannot train on {device}: {reason}", where, f"leave '{name}' out there")
        for name, reason in reasons
        if reason is not None
    ]
