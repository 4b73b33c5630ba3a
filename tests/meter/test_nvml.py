"""NVIDIA's counter, simulated from physics: power over time, published in ticks, in millijoules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energybench.meter import nvml
from energybench.meter.nvml import NvmlCounter
from energybench.record import Energy


class Gpu:
    """GPUs of constant power whose counters show the energy used up to the last tick; a clock that we move."""

    def __init__(self, *powers_w: float, tick_s: float = 0.1, phase_s: float = 0.0) -> None:
        self.powers_w, self.tick_s, self.phase_s = powers_w, tick_s, phase_s
        self.now_s = 1000.0  # since the driver was loaded
        self.offset_mj = 0
        self.lost = False
        self.frozen = False

    # what `time` and `pynvml` are to the meter

    def perf_counter_ns(self) -> int:
        return round(self.now_s * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if not 0 <= (number := int(uuid.removeprefix("GPU-"))) < len(self.powers_w):
            raise self.NVMLError("Not Found")
        return number

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        self.now_s += 5e-6  # a call takes time
        if self.lost:
            raise self.NVMLError("GPU is lost")
        shown_s = (self.now_s - self.phase_s) // self.tick_s * self.tick_s + self.phase_s
        shown_s = 1000.0 if self.frozen else shown_s
        return int(self.powers_w[handle] * shown_s * 1e3) - self.offset_mj


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Gpu], Gpu]:
    def plug(gpu: Gpu) -> Gpu:
        monkeypatch.setitem(sys.modules, "pynvml", gpu)  # type: ignore[arg-type]
        monkeypatch.setattr(nvml, "time", gpu)
        return gpu

    return plug


def measure(
    gpu: Gpu, seconds: float, count: int = 1, during: Callable[[], None] = lambda: None
) -> tuple[list[Energy], float]:
    """(what the counter says of a window, how long the window really was)."""
    counter = NvmlCounter([f"GPU-{i}" for i in range(count)])
    counter.start()
    started = gpu.now_s
    during()
    gpu.now_s += seconds
    ended = gpu.now_s
    return counter.stop(), ended - started


@settings(max_examples=100, deadline=None)
@given(
    power_w=st.floats(10, 1000),
    seconds=st.floats(0.3, 1000),
    tick_s=st.sampled_from([0.01, 0.02, 0.1]),
    phase=st.floats(0, 1),
)
def test_constant_power_over_a_time_is_their_product_within_one_tick(
    power_w: float, seconds: float, tick_s: float, phase: float
) -> None:
    gpu = Gpu(power_w, tick_s=tick_s, phase_s=phase * tick_s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", gpu)  # type: ignore[arg-type]
        patch.setattr(nvml, "time", gpu)
        (energy,), window_s = measure(gpu, seconds)
    assert energy.energy_j is not None
    exact = power_w * window_s
    slack = power_w * 0.001 + 0.002  # the polling of the edge, and whole millijoules
    assert exact - power_w * tick_s - slack <= energy.energy_j <= exact + slack
    assert energy.energy_j == pytest.approx(exact, abs=energy.detail["error_j"] * 1.1 + slack)
    assert energy.detail["tick_s"] == pytest.approx(tick_s, abs=0.001)
    assert (energy.source, energy.scope, energy.measured) == ("gpu_counter", "gpu", True)


def test_every_gpu_has_its_own_figure(plugged: Callable[[Gpu], Gpu]) -> None:
    gpu = plugged(Gpu(100.0, 300.0))
    energies, window_s = measure(gpu, 20.0, count=2)
    assert [e.device for e in energies] == ["GPU-0", "GPU-1"]
    assert [e.energy_j for e in energies] == [pytest.approx(p * window_s, abs=p * 0.11) for p in (100, 300)]


def test_a_counter_that_is_reset_is_null_with_its_reason(plugged: Callable[[Gpu], Gpu]) -> None:
    gpu = plugged(Gpu(100.0))

    def reset() -> None:
        gpu.offset_mj = int(100.0 * gpu.now_s * 1e3)

    (energy,), _ = measure(gpu, 20.0, during=reset)
    assert energy.energy_j is None
    assert "reset" in (energy.reason or "")


def test_a_gpu_that_is_lost_is_null_with_its_reason(plugged: Callable[[Gpu], Gpu]) -> None:
    gpu = plugged(Gpu(100.0))
    (energy,), _ = measure(gpu, 20.0, during=lambda: setattr(gpu, "lost", True))
    assert energy.energy_j is None
    assert "GPU is lost" in (energy.reason or "")
    assert not energy.measured


def test_a_counter_that_stands_still_is_null_and_not_zero(plugged: Callable[[Gpu], Gpu]) -> None:
    gpu = plugged(Gpu(100.0))
    gpu.frozen = True
    (energy,), _ = measure(gpu, 20.0)
    assert energy.energy_j is None
    assert energy.reason


def test_waiting_for_an_edge_ends_even_if_there_is_none(plugged: Callable[[Gpu], Gpu]) -> None:
    gpu = plugged(Gpu(100.0))
    gpu.frozen = True
    before = gpu.now_s
    NvmlCounter(["GPU-0"]).start()
    assert gpu.now_s - before < 2 * nvml.LONGEST_TICK_S + 0.01


def test_a_gpu_that_does_not_answer_is_a_reason_and_not_a_trace(plugged: Callable[[Gpu], Gpu]) -> None:
    plugged(Gpu(100.0))
    with pytest.raises(RuntimeError, match="Not Found"):
        NvmlCounter(["GPU-7"])
    lost = plugged(Gpu(100.0))
    lost.lost = True
    with pytest.raises(RuntimeError, match="GPU is lost"):
        NvmlCounter(["GPU-0"])


def test_a_machine_without_nvml_is_described_by_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> Any:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=init))  # type: ignore[arg-type]
    gpus, why = nvml.describe()
    assert gpus == []
    assert "libnvidia-ml" in (why or "")


def test_the_name_of_every_call_is_one_that_the_real_binding_has() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in vars(Gpu):
        if name.startswith("nvml") or name == "NVMLError":
            assert hasattr(pynvml, name)
