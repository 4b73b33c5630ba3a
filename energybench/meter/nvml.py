"""NVIDIA's cumulative energy counter, per GPU, by UUID.

The counter is millijoules since the driver was loaded and moves in ticks of undocumented length (10–100 ms seen). A
window starts on an edge; its end is read after the last synchronise, so it may miss up to one tick of power: `error_j`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from energybench.record import Energy

LONGEST_TICK_S = 0.25


class NvmlCounter:
    """source `gpu_counter`, scope `gpu`, one figure per UUID. Raises RuntimeError with a reason if it cannot start."""

    def __init__(self, uuids: Sequence[str]) -> None:
        import pynvml

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handles = {uuid: pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}
            for handle in self._handles.values():
                pynvml.nvmlDeviceGetTotalEnergyConsumption(
                    handle
                )  # probe by calling: some parts have no counter
        except pynvml.NVMLError as error:
            raise RuntimeError(f"NVML: {error}") from None
        self._before: dict[str, int] = {}
        self._started_ns = 0
        self._tick_s = 0.0

    def start(self) -> None:
        first = next(iter(self._handles.values()))
        self._edge(first)
        edge_ns = time.perf_counter_ns()
        self._edge(first)
        self._started_ns = time.perf_counter_ns()
        self._tick_s = (self._started_ns - edge_ns) / 1e9
        self._before = {uuid: self._read(handle) for uuid, handle in self._handles.items()}

    def stop(self) -> list[Energy]:
        seconds = (time.perf_counter_ns() - self._started_ns) / 1e9
        return [self._energy(uuid, handle, seconds) for uuid, handle in self._handles.items()]

    def _energy(self, uuid: str, handle: Any, seconds: float) -> Energy:
        common: dict[str, Any] = {"source": "gpu_counter", "scope": "gpu", "device": uuid}
        try:
            joules = (self._read(handle) - self._before[uuid]) / 1e3
        except self._nvml.NVMLError as error:
            return Energy(**common, reason=f"NVML: {error}")
        if joules < 0:
            return Energy(**common, reason="the counter was reset during the window")
        if joules == 0:
            return Energy(**common, reason="the counter did not move: the window is shorter than its tick")
        error_j = joules / seconds * self._tick_s if seconds else joules
        return Energy(**common, energy_j=joules, detail={"tick_s": self._tick_s, "error_j": error_j})

    def _read(self, handle: Any) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    def _edge(self, handle: Any) -> None:
        """Wait for the counter to move."""
        value, deadline = self._read(handle), time.perf_counter_ns() + LONGEST_TICK_S * 1e9
        while self._read(handle) == value and time.perf_counter_ns() < deadline:
            time.sleep(0.0002)


def describe() -> tuple[list[dict[str, Any]], str | None]:
    """(every GPU that NVML sees, None) or ([], why there is none)."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # the binding raises its own types, and OSError where the library is broken
        return [], f"NVML: {error}"
    try:
        return [
            _describe(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i))
            for i in range(pynvml.nvmlDeviceGetCount())
        ], None
    finally:
        pynvml.nvmlShutdown()


def _describe(nvml: Any, handle: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"driver": nvml.nvmlSystemGetDriverVersion()}
    calls = {
        "name": lambda: nvml.nvmlDeviceGetName(handle),
        "uuid": lambda: nvml.nvmlDeviceGetUUID(handle),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "counter_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
    }
    for key, call in calls.items():
        try:
            facts[key] = call()
        except nvml.NVMLError as error:
            facts[key], facts[f"{key}_reason"] = None, str(error)
    return facts
