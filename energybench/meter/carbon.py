"""codecarbon's modelled power, for a machine without a sensor.

A modelled figure is labelled `model(codecarbon ...)`: it is time in another unit, never a measured saving. It is the
whole machine's, at the load that everything on it makes: neighbours too. The grid's carbon intensity is in grid.py.
"""

from __future__ import annotations

import logging
from typing import Any

import psutil

from energybench.common.programs import starting_safely
from energybench.meter.clock import REAL_TIME, Time
from energybench.meter.reading import Energy, Reading


def model_parameters() -> dict[str, Any]:
    """What codecarbon assumes of this machine: {cpu, tdp_w, tdp_source, ram_w}. Slow, so once a run."""
    from codecarbon.core.cpu import TDP
    from codecarbon.external.ram import RAM

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # what it warns of is in `tdp_source`
    with starting_safely():  # it asks lscpu, dmesg and a Python of its own
        tdp = TDP()
    known = tdp.model is not None and tdp._get_cpu_power_from_registry(tdp.model) is not None
    return {
        "cpu": tdp.model,
        "tdp_w": float(tdp.tdp) if tdp.tdp else 4.0 * (psutil.cpu_count() or 1),
        "tdp_source": "codecarbon's table" if known else "codecarbon's guess of 4 W per thread: CPU unknown to it",
        "ram_w": float(RAM(tracking_mode="machine").total_power().W),
    }


class CodecarbonModel:
    """codecarbon 3.3's CPU-load mode over one window: TDP × (0.1 + 0.9·load³) + RAM; load of the machine, 0–1."""

    models = True  # reads no sensor

    def __init__(self, parameters: dict[str, Any], time: Time = REAL_TIME) -> None:
        self.tdp_w, self.ram_w, self._time = parameters["tdp_w"], parameters["ram_w"], time
        self._parameters = parameters
        self._before: tuple[float, float] = (0.0, 0.0)
        self._start_ns = 0

    def start(self) -> None:
        self._before, self._start_ns = _busy_and_total(), self._time.now_ns()

    def stop(self) -> Reading:
        seconds = (self._time.now_ns() - self._start_ns) / 1e9
        busy, total = (after - before for after, before in zip(_busy_and_total(), self._before, strict=True))
        load = min(1.0, max(0.0, busy / total)) if total > 0 else 1.0
        detail = {"load_rel": load, "tdp_w": self.tdp_w, "ram_w": self.ram_w}
        return Reading(
            wall_s=seconds,
            energy=[
                Energy(
                    source="model(codecarbon cpu_load)",
                    scope="cpu",
                    device="cpu",
                    energy_j=cpu_power_w(self.tdp_w, load) * seconds,
                    detail=detail,
                ),
                Energy(source="model(codecarbon ram)", scope="dram", device="ram", energy_j=self.ram_w * seconds),
            ],
        )

    def nested(self) -> CodecarbonModel:
        return CodecarbonModel(self._parameters, self._time)


def cpu_power_w(tdp_w: float, load: float) -> float:
    """codecarbon's `CPU._get_power_from_cpu_load`, machine mode: held against it in the tests."""
    return tdp_w * (0.1 + 0.9 * load**3)


def _busy_and_total() -> tuple[float, float]:
    times = psutil.cpu_times()
    total = sum(times[:8]) if len(times) >= 8 else sum(times)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def __getattr__(name: str) -> Any:
    """Names that stood here before the grid had a file of its own."""
    if name in ("J_PER_KWH", "intensity"):
        import warnings

        from energybench.common.renamed import RenamedNameWarning
        from energybench.meter import grid, zones

        home = zones if name == "intensity" else grid
        warnings.warn(f"import {name} from {home.__name__}", RenamedNameWarning, stacklevel=2)
        return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
