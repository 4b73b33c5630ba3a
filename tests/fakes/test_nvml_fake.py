"""The fake driver keeps to physics, seen through the real binding: what later tests of the sensors stand on."""

from __future__ import annotations

import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fakes.nvml import UUID, FakeDriver, FakeGpu, build, declare, script
from hypothesis import given
from hypothesis import strategies as st

Plug = Callable[..., FakeDriver]

AVERAGE, INSTANT, ENERGY = 185, 186, 83


def card(index: int = 0) -> Any:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def counter_mj(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def field(handle: Any, number: int, scope: int = 0) -> Any:
    (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [(number, scope)])
    return value


def watts(handle: Any, number: int, scope: int = 0) -> float:
    value = field(handle, number, scope)
    assert value.nvmlReturn == pynvml.NVML_SUCCESS
    assert value.valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
    return float(value.value.uiVal) / 1e3


# the counter


def test_a_constant_300_watts_for_ten_seconds_is_3000_joules(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=300))
    handle = card()
    before = counter_mj(handle)
    driver.time.sleep(10)
    assert counter_mj(handle) - before == 3_000_000
    assert field(handle, ENERGY).value.ullVal == counter_mj(handle)
    assert driver.energy_j(0, 0, 10) == 3000


def test_the_counter_steps_on_its_ticks_and_only_there(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=300, tick_s=0.1, phase_s=0.03))
    handle = card()
    steps = []
    last = counter_mj(handle)
    for millisecond in range(1, 1001):
        driver.time.sleep(0.001)
        if (now := counter_mj(handle)) != last:
            steps.append((millisecond, now - last))
            last = now
    # The first tick shows 30 ms at 300 W, each later one 100 ms.
    assert steps == [(30, 9_000)] + [(30 + 100 * tick, 30_000) for tick in range(1, 10)]


trajectories = st.lists(
    st.tuples(st.floats(0.001, 20), st.floats(0, 1000)), min_size=1, max_size=12
)  # (seconds since the point before, watts)


def closed_form_j(points: list[tuple[float, float]], linear: bool, until_s: float) -> float:
    """The area of rectangles or trapezoids, one by one, with the first and the last power going on for ever."""
    area = points[0][1] * min(points[0][0], until_s)
    for (start, before), (end, after) in pairwise([*points, (math.inf, points[-1][1])]):
        if until_s <= start:
            break
        stop = min(end, until_s)
        at_stop = before + (after - before) * (stop - start) / (end - start) if linear else before
        area += (before + at_stop) / 2 * (stop - start)
    return area


@given(steps=trajectories, linear=st.booleans(), gain=st.floats(0.59, 1.11), share=st.floats(0.01, 1.5))
def test_energy_is_conserved_whatever_the_trajectory(
    fake_nvml_library: Path, steps: list[tuple[float, float]], linear: bool, gain: float, share: float
) -> None:
    points, at_s = [], 0.0
    for seconds, power in steps:
        points.append((at_s := at_s + seconds, power))
    with FakeDriver(fake_nvml_library, [FakeGpu(power=points, linear=linear, gain=gain, tick_s=0)]) as driver:
        handle = card()
        driver.time.sleep(at_s * share)
        end_s = driver.time.now_ns() / 1e9
        exact_j = closed_form_j(points, linear, end_s)
        assert driver.energy_j(0, 0, end_s) == pytest.approx(exact_j, rel=1e-9, abs=1e-6)
        assert counter_mj(handle) == pytest.approx(gain * exact_j * 1e3, abs=1.001)


@given(
    steps=trajectories,
    cuts=st.lists(st.floats(0, 100), min_size=3, max_size=8).map(sorted),
    tick_s=st.sampled_from([0.01, 0.02, 0.1]),
    phase=st.floats(0, 1),
)
def test_adjacent_windows_add_up_and_reading_often_changes_nothing(
    fake_nvml_library: Path, steps: list[tuple[float, float]], cuts: list[float], tick_s: float, phase: float
) -> None:
    points, at_s = [], 0.0
    for seconds, power in steps:
        points.append((at_s := at_s + seconds, power))
    gpu = FakeGpu(power=points, tick_s=tick_s, phase_s=phase * tick_s)
    highest_w = max(power for _, power in points)

    def readings(at: list[float]) -> list[int]:
        with FakeDriver(fake_nvml_library, [gpu]) as driver:
            handle = card()
            found = []
            for when in at:
                driver.time.advance_ns(round(when * 1e9) - driver.time.now_ns())
                found.append(counter_mj(handle))
            whole_j = driver.energy_j(0, cuts[0], cuts[-1])
            parts_j = [driver.energy_j(0, a, b) for a, b in pairwise(cuts)]
            assert sum(parts_j) == pytest.approx(whole_j, rel=1e-9, abs=1e-6)
            assert (found[-1] - found[0]) / 1e3 == pytest.approx(whole_j, abs=highest_w * tick_s + 0.002)
            return found

    often, seldom = readings(cuts), readings([cuts[0], cuts[-1]])
    assert often == sorted(often)
    assert (often[0], often[-1]) == (seldom[0], seldom[-1])


def test_a_repeated_trajectory_has_the_energy_of_its_periods(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=[(0, 400), (0.05, 100)], repeat_s=0.1, tick_s=0))
    handle = card()
    driver.time.sleep(100.025)
    assert counter_mj(handle) == 1000 * 25_000 + 10_000  # 250 W on average, then 25 ms at 400 W


def test_a_counter_that_is_reset_restarts_from_zero(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=200, reset=[5.02], counter_start_j=1e6))
    handle = card()
    driver.time.sleep(5)
    assert counter_mj(handle) == 1_001_000_000
    driver.time.sleep(0.02)
    assert counter_mj(handle) == 0
    driver.time.sleep(0.08)
    assert counter_mj(handle) == 16_000  # 80 ms at 200 W


def test_a_counter_wraps_at_its_modulus(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100, wrap_mj=262_144))
    handle = card()
    driver.time.sleep(2.6)
    assert counter_mj(handle) == 260_000
    driver.time.sleep(0.1)
    assert counter_mj(handle) == 270_000 - 262_144


def test_a_frozen_counter_stands_still_and_then_catches_up(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100, frozen=[(2, 4)]))
    handle = card()
    driver.time.sleep(3)
    assert counter_mj(handle) == 200_000
    driver.time.sleep(1)
    assert counter_mj(handle) == 400_000


def test_gain_bends_the_counter_and_the_power_but_not_the_truth(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100, gain=1.1))
    handle = card()
    driver.time.sleep(10)
    assert counter_mj(handle) == 1_100_000
    assert watts(handle, INSTANT) == watts(handle, AVERAGE) == pytest.approx(110)
    assert driver.energy_j(0, 0, 10) == 1000


def test_counters_restart_if_the_driver_unloads_with_its_last_client(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100), persistent=False)
    card()
    driver.time.sleep(10)
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert counter_mj(card()) == 1_000_000  # there has been a client all the time
    pynvml.nvmlShutdown()
    pynvml.nvmlShutdown()
    driver.time.sleep(1)
    handle = card()
    assert counter_mj(handle) == 0
    driver.time.sleep(1)
    assert counter_mj(handle) == 100_000


# power


def test_instant_power_sees_a_quarter_of_a_load_that_its_sampling_aliases(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=[(0, 400), (0.05, 100)], repeat_s=0.1))
    handle = card()
    driver.time.sleep(3)
    for _ in range(50):
        driver.time.sleep(0.007)
        assert watts(handle, INSTANT) == 100  # the last 25 ms of each period are in the low half
    driver.time.sleep(0.05)
    assert watts(handle, AVERAGE) == pytest.approx(250)


def test_instant_power_is_the_mean_of_the_end_of_the_last_whole_period(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=[(0, 100), (1.09, 300)]))
    handle = card()
    driver.time.sleep(1.099)
    assert watts(handle, INSTANT) == 100
    driver.time.sleep(0.001)
    assert watts(handle, INSTANT) == pytest.approx((15 * 100 + 10 * 300) / 25)
    driver.time.sleep(0.099)
    assert watts(handle, INSTANT) == pytest.approx((15 * 100 + 10 * 300) / 25)


def test_average_power_is_the_mean_of_the_trailing_second(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=[(0, 100), (10, 300)]))
    handle = card()
    driver.time.sleep(10.25)
    assert watts(handle, AVERAGE) == pytest.approx(0.75 * 100 + 0.25 * 300)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 150_000
    driver.time.sleep(0.75)
    assert watts(handle, AVERAGE) == 300


def test_noise_is_normal_and_the_same_whenever_it_is_looked_at(fake_driver: Plug) -> None:
    def samples(seed: int) -> list[float]:
        driver = fake_driver(FakeGpu(power=300, noise_w=10, noise_seed=seed))
        handle, found = card(), []
        for _ in range(2000):
            driver.time.sleep(0.1)
            found.append(watts(handle, INSTANT))
            assert watts(handle, INSTANT) == found[-1]
            assert watts(handle, AVERAGE) == 300
        return found

    first = samples(1)
    assert first == samples(1)
    assert first != samples(2)
    assert statistics.fmean(first) == pytest.approx(300, abs=4 * 10 / math.sqrt(2000))
    assert statistics.stdev(first) == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("code", [0, pynvml.NVML_ERROR_NOT_SUPPORTED])
def test_a_power_read_that_comes_too_soon_gives_nothing(fake_driver: Plug, code: int) -> None:
    driver = fake_driver(FakeGpu(power=300, shortest_poll_s=0.05, too_fast_code=code))
    handle = card()
    assert watts(handle, AVERAGE) == 300
    driver.time.sleep(0.04)
    soon = pynvml.nvmlDeviceGetFieldValues(handle, [AVERAGE, INSTANT, ENERGY])
    assert [value.nvmlReturn for value in soon] == [code, code, 0]
    assert [value.value.uiVal for value in soon[:2]] == [0, 0]
    driver.time.sleep(0.05)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 300_000


def test_the_scope_of_a_field_is_honoured(fake_driver: Plug) -> None:
    fake_driver(FakeGpu(power=300, module_w=120))
    assert watts(card(), INSTANT, scope=pynvml.NVML_POWER_SCOPE_MODULE) == 420
    fake_driver(FakeGpu(power=300))
    handle = card()
    assert watts(handle, INSTANT, scope=pynvml.NVML_POWER_SCOPE_GPU) == 300
    assert field(handle, INSTANT, scope=1).nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert field(handle, INSTANT, scope=2).nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED


# failures


def test_a_lost_gpu_answers_nothing_until_it_is_back(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100, lost=[(5, 8)]))
    handle = card()
    driver.time.sleep(5)
    questions = [
        lambda: counter_mj(handle),
        lambda: pynvml.nvmlDeviceGetPowerUsage(handle),
        lambda: pynvml.nvmlDeviceGetFieldValues(handle, [INSTANT]),
        lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
        lambda: pynvml.nvmlDeviceGetHandleByUUID(UUID),
        lambda: pynvml.nvmlDeviceGetHandleByIndex(0),
    ]
    for question in questions:
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            question()
    driver.time.sleep(3)
    assert counter_mj(handle) == 800_000


def test_a_function_fails_as_scripted_and_when_scripted(fake_driver: Plug) -> None:
    driver = fake_driver(
        FakeGpu(
            errors=[
                ("nvmlDeviceGetTotalEnergyConsumption", pynvml.NVML_ERROR_NOT_SUPPORTED),
                ("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN, 2, 3),
                ("nvmlDeviceGetComputeRunningProcesses", pynvml.NVML_ERROR_NO_PERMISSION),
            ]
        )
    )
    handle = card()
    with pytest.raises(pynvml.NVMLError_NotSupported):
        counter_mj(handle)
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlDeviceGetComputeRunningProcesses(handle)  # the binding calls its third version
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 100_000
    driver.time.sleep(2)
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetPowerUsage(handle)
    driver.time.sleep(1)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 100_000


def test_a_field_that_is_not_supported_says_so_in_its_own_return_code(fake_driver: Plug) -> None:
    fake_driver(FakeGpu(power=300, errors=[(INSTANT, pynvml.NVML_ERROR_NOT_SUPPORTED)]))
    average, instant, unknown = pynvml.nvmlDeviceGetFieldValues(card(), [AVERAGE, INSTANT, 1])
    assert (average.nvmlReturn, average.value.uiVal) == (pynvml.NVML_SUCCESS, 300_000)
    assert instant.nvmlReturn == unknown.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_the_system_fails_as_scripted(fake_driver: Plug) -> None:
    fake_driver(FakeGpu(), errors=[("nvmlInitWithFlags", pynvml.NVML_ERROR_DRIVER_NOT_LOADED, 0, 1)])
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()
    fake_driver(FakeGpu(), errors=[("nvmlDeviceGetTotalEnergyConsumption", pynvml.NVML_ERROR_NOT_SUPPORTED)])
    with pytest.raises(pynvml.NVMLError_NotSupported):
        counter_mj(card())


def test_a_function_that_the_driver_lacks_is_not_found(fake_driver: Plug) -> None:
    fake_driver(FakeGpu())
    handle = card()
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetSerial(handle)


# state


def test_two_gpus_have_figures_of_their_own(fake_driver: Plug) -> None:
    other = "GPU-00000000-0000-0000-0000-000000000002"
    driver = fake_driver(FakeGpu(power=100), FakeGpu(uuid=other, name="Fake H100", power=250, lost=[(20,)]))
    first, second = card(0), card(1)
    driver.time.sleep(10)
    assert pynvml.nvmlDeviceGetCount() == 2
    assert [counter_mj(first), counter_mj(second)] == [1_000_000, 2_500_000]
    assert [driver.energy_j(index, 0, 10) for index in (0, 1)] == [1000, 2500]
    assert counter_mj(pynvml.nvmlDeviceGetHandleByUUID(other)) == 2_500_000
    assert [pynvml.nvmlDeviceGetUUID(handle) for handle in (first, second)] == [UUID, other]
    assert [pynvml.nvmlDeviceGetIndex(handle) for handle in (first, second)] == [0, 1]
    assert [pynvml.nvmlDeviceGetName(handle) for handle in (first, second)] == ["Fake A100", "Fake H100"]
    driver.time.sleep(10)
    assert counter_mj(first) == 2_000_000
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        counter_mj(second)


def test_a_card_that_is_not_there_is_not_found(fake_driver: Plug) -> None:
    fake_driver(FakeGpu())
    card()
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-nobody")
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetHandleByIndex(1)


def test_what_a_card_is_can_be_set(fake_driver: Plug) -> None:
    gpu = FakeGpu(mig=True, ecc=False, power=100, power_limit_w=250, compute_mode=3, slowdown_c=88, shutdown_c=92)
    fake_driver(gpu, driver_version="570.1")
    handle = card()
    assert pynvml.nvmlSystemGetDriverVersion() == "570.1"
    assert pynvml.nvmlSystemGetNVMLVersion().startswith("12.")
    assert pynvml.nvmlSystemGetCudaDriverVersion() == 12040
    assert pynvml.nvmlDeviceGetMigMode(handle) == [1, 1]
    assert pynvml.nvmlDeviceGetEccMode(handle) == [0, 0]
    assert pynvml.nvmlDeviceGetComputeMode(handle) == 3
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 250_000
    thresholds = (pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    assert [pynvml.nvmlDeviceGetTemperatureThreshold(handle, kind) for kind in thresholds] == [92, 88]
    assert pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1410
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) == 1215
    assert pynvml.nvmlDeviceGetUtilizationRates(handle).gpu == 40
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    assert (memory.total, memory.free + memory.used) == (80_000_000_000, memory.total)


def test_temperature_and_clock_run_straight_between_their_points(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(temperature_c=[(10, 40), (20, 80)], sm_clock_mhz=[(0, 1400), (10, 1000)]))
    handle = card()
    seen = []
    for _ in range(3):
        seen.append(
            (
                pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
                pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            )
        )
        driver.time.sleep(15 - 5 * len(seen))
    assert seen == [(40, 1400), (40, 1000), (60, 1000)]


def test_processes_come_and_go(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(compute=[(11,), (12, 5, 10)], graphics=[(13, 5)], mps=[(14, 5, 10)]))
    handle = card()
    questions = [
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
        pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
    ]

    def pids() -> list[list[int]]:
        return [[process.pid for process in question(handle)] for question in questions]

    assert pids() == [[11], [], []]
    driver.time.sleep(5)
    assert pids() == [[11, 12], [13], [14]]
    driver.time.sleep(5)
    assert pids() == [[11], [13], []]


def test_throttled_time_is_counted_in_nanoseconds_while_it_lasts(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(throttled=[(74, 0.25, 10, 14), (74, 1, 20, 21), (270, 0.5, 10)]))
    handle = card()

    def throttled_ns() -> list[int]:
        return [value.value.ullVal for value in pynvml.nvmlDeviceGetFieldValues(handle, [74, 76, 77, 269, 270, 271])]

    assert throttled_ns() == [0] * 6
    driver.time.sleep(12)
    assert throttled_ns() == [500_000_000, 0, 0, 0, 1_000_000_000, 0]
    driver.time.sleep(18)
    assert throttled_ns() == [2_000_000_000, 0, 0, 0, 10_000_000_000, 0]


# time


def test_a_call_costs_time_and_answers_as_of_its_middle(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100, tick_s=0), call_s=0.002, start_s=7)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert counter_mj(handle) == 700_500
    assert driver.time.now_ns() == 7_006_000_000
    assert driver.calls == 3
    driver.time.sleep(1)
    assert driver.time.now_ns() == 8_006_000_000


def test_background_calls_happen_on_the_clock_of_the_driver(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100))
    handle = card()
    seen: list[tuple[int, int]] = []
    stop = driver.time.every(0.1, lambda: seen.append((driver.time.now_ns(), counter_mj(handle))))
    driver.time.sleep(0.55)
    stop()
    driver.time.sleep(1)
    assert seen == [(tick * 100_000_000, tick * 10_000) for tick in range(1, 6)]


def test_threads_lose_none_of_the_time_that_their_calls_cost(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100), call_s=1e-4)
    handle = card()
    start_ns, start_calls = driver.time.now_ns(), driver.calls
    threads = [threading.Thread(target=lambda: [counter_mj(handle) for _ in range(250)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert driver.calls - start_calls == 2000
    assert driver.time.now_ns() - start_ns == 2000 * 100_000


# the library


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("gpu A x\ngian 1.1", "line 2: 'gian' is not a directive"),
        ("gpu A x\n\n# a comment\ngain much", "line 4: 'much' is not a number"),
        ("gpu A x\ngain", "line 2: 'gain' needs a number"),
        ("gpu A x\ngain 1 2", "line 2: '2' is too much"),
        ("gpu A x\npower 100", "line 2: a curve is 'step' or 'linear'"),
        ("gpu A x\npower step 0 100 5", "line 2: the point at 5 s has no value"),
        ("gpu A x\npower step 5 100 0 100", "line 2: 0 s comes before"),
        ("gpu A x\nsampling_s 0", "line 2: 'sampling_s' must be positive"),
        ("gpu A x\nerror nvmlDeviceGetPowerUsege 3", "line 2: 'nvmlDeviceGetPowerUsege' cannot be 'error'"),
        ("gpu A x\nthrottled 186 1 0", "line 2: '186' cannot be 'throttled'"),
        ("gpu A x\nreset", "line 2: 'reset' needs a time"),
        ("gpu A x\nlost 5 3", "line 2: 'lost' ends before it begins"),
        ("gpu", "line 1: a GPU needs a UUID"),
        ("power step 0 100", "line 1: 'power' is not a directive before the first 'gpu'"),
        ("clock sometimes", "line 1: a clock is"),
        ("gpu A x\n" * 17, "line 17: more than 16 GPUs"),
    ],
)
def test_a_mistake_in_a_script_names_its_line(fake_nvml_library: Path, text: str, mistake: str) -> None:
    library = declare(ctypes.CDLL(str(fake_nvml_library)))
    assert library.fake_nvml_load(text.encode()).decode().startswith(mistake)
    assert library.nvmlInit_v2() != pynvml.NVML_SUCCESS


def test_a_mistaken_card_is_refused_before_the_binding_is_touched(fake_driver: Plug) -> None:
    before = pynvml.nvmlLib
    with pytest.raises(ValueError, match="nvmlDeviceGetEnergy"):
        fake_driver(FakeGpu(errors=[("nvmlDeviceGetEnergy", 3)]))
    assert pynvml.nvmlLib is before


def test_the_binding_is_afterwards_as_it_was_before(fake_nvml_library: Path) -> None:
    def state() -> tuple[Any, ...]:
        return pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache), pynvml._nvmlLib_refcount

    before = state()
    with FakeDriver(fake_nvml_library, [FakeGpu()]) as driver:
        card()
        assert state() != before
        with pytest.raises(RuntimeError, match="another fake driver"), FakeDriver(fake_nvml_library, [FakeGpu()]):
            pass
    assert state() == before
    assert driver.energy_j(0, 0, 1) == 100


def test_a_missing_compiler_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match="no 'no-such-compiler': install one"):
        build(tmp_path)


# other processes


def run_python(code: str, environment: dict[str, str]) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


READ_ONCE = """
import json, time, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
before = time.perf_counter()
counter_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
print(json.dumps([before, counter_mj, time.perf_counter()]))
"""


def test_processes_on_the_real_clock_see_one_card(fake_nvml_library: Path, tmp_path: Path) -> None:
    origin_s = time.clock_gettime(time.CLOCK_MONOTONIC) - 1000
    driver = FakeDriver(fake_nvml_library, [FakeGpu(power=250, tick_s=0.02)])
    environment = driver.environment(tmp_path, clock=origin_s)
    for _ in range(2):
        before_s, counter, after_s = run_python(READ_ONCE, environment)
        assert 250 * (before_s - origin_s - 0.02) - 0.001 <= counter / 1e3 <= 250 * (after_s - origin_s)


def test_a_script_in_the_environment_that_is_wrong_or_absent_stops_the_driver(
    fake_nvml_library: Path, tmp_path: Path
) -> None:
    (tmp_path / "wrong.txt").write_text("gpu A x\ngian 1")
    environment = FakeDriver(fake_nvml_library, [FakeGpu()]).environment(tmp_path)
    for path, said in (("wrong.txt", "line 2: 'gian'"), ("absent.txt", "cannot open")):
        child = {**os.environ, **environment, "FAKE_NVML_SCRIPT": str(tmp_path / path)}
        command = [sys.executable, "-c", "import pynvml; pynvml.nvmlInit()"]
        done = subprocess.run(command, env=child, capture_output=True, text=True)
        assert done.returncode == 1
        assert said in done.stderr
        assert "NVMLError_Unknown" in done.stderr


CODECARBON = """
import ctypes, json, pynvml
from codecarbon.core.gpu import AllGPUDevices
from codecarbon.core.units import Time
from codecarbon.external.hardware import GPU

devices = AllGPUDevices()
devices.start()
pynvml.nvmlLib.fake_nvml_set_ns(ctypes.c_int64(3600 * 10**9))
(delta,) = devices.get_delta(Time.from_seconds(3600))
(details,) = devices.get_gpu_details()
print(json.dumps([
    delta["uuid"], delta["delta_energy_consumption"].kWh, delta["power_usage"].W, details["power_usage"],
    details["temperature"], [process["pid"] for process in details["compute_processes"]], repr(GPU.from_utils()),
]))
"""


def test_codecarbon_sees_the_card(fake_nvml_library: Path, tmp_path: Path) -> None:
    driver = FakeDriver(fake_nvml_library, [FakeGpu(power=250, compute=[(7,)])])
    uuid, energy_kwh, power_w, usage_w, temperature, pids, text = run_python(
        CODECARBON, driver.environment(tmp_path, clock="virtual")
    )
    assert uuid == UUID
    # 250 W for an hour; codecarbon's constant for kWh per joule has six digits
    assert (energy_kwh, power_w) == (pytest.approx(0.25, rel=1e-6), pytest.approx(250, rel=1e-6))
    assert (usage_w, temperature, pids) == (250, 40, [7])
    assert "Fake A100" in text


def test_a_script_says_what_the_cards_were_given() -> None:
    text = script([FakeGpu(power=[(0, 300), (10.5, 80)], errors=[(186, 3)], lost=[(1, math.inf)])], clock=12.5)
    assert {"clock real 12.5", "power step 0 300 10.5 80", "error 186 3", "lost 1 inf"} <= set(text.splitlines())
