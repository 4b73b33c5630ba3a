"""What metering costs: a loop of 10 ms steps bare, under our window on a card, and under codecarbon's tracker.

The three are interleaved, in a new order in every round, and told as ratios to the bare loop of the same round. A ratio
of 1.002 cannot be seen on a machine whose identical steps differ by 20 %, so it is bounded instead: the reader in the
background can hold a step up for no longer than it runs itself.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.nvml import FakeDriver, FakeGpu

from energybench.meter.gpu import GpuMeter
from energybench.meter.nvml import open_gpus
from energybench.meter.window import Window

pytestmark = pytest.mark.perf

ROUNDS, STEPS, STEP_S = 9, 60, 0.010
BACKGROUND = 0.01  # of one core
HELD_UP = 0.002 * 1.5  # of a step; half as much again for a machine in a slow phase
NOISE = 1.05  # what two identical loops may differ by in the median of the rounds


def test_metering_holds_a_step_of_10_ms_up_by_less_than_two_thousandths(
    benchmark: Any, fake_nvml_library: Path
) -> None:
    step = ten_milliseconds()
    background: list[float] = []
    with FakeDriver(
        fake_nvml_library, [FakeGpu(tick_s=0.01)], clock=time.clock_gettime(time.CLOCK_MONOTONIC)
    ):
        meter = GpuMeter(open_gpus())

        def ours() -> float:
            window = Window([meter], lambda: None)
            window.start()
            seconds = loop(step)
            window.stop()
            sampler = window.reading().sampler
            assert sampler is not None
            background.append(sampler.cpu_s / seconds)
            return seconds

        arms: dict[str, Callable[[], float]] = {
            "bare": lambda: loop(step),
            "ours": ours,
            "codecarbon": tracked(step),
        }
        for run in arms.values():
            run()  # the first of each is slower
        times: dict[str, list[float]] = {name: [] for name in arms}
        order = random.Random(0)
        for _ in range(ROUNDS):
            for name in order.sample(list(arms), len(arms)):
                times[name].append(arms[name]())
    ratios = {name: statistics.median(a / b for a, b in zip(times[name], times["bare"], strict=True))
              for name in ("ours", "codecarbon")}  # fmt: skip
    benchmark.extra_info.update({f"{name}_over_bare": ratio for name, ratio in ratios.items()})
    benchmark.extra_info["background_share_of_a_core"] = statistics.median(background)
    benchmark.pedantic(step, rounds=10)
    assert statistics.median(background) < BACKGROUND
    assert statistics.median(background) < HELD_UP or ratios["ours"] < 1 + HELD_UP
    assert ratios["ours"] < NOISE


def ten_milliseconds() -> Callable[[], None]:
    """A step of about 10 ms of matrix products, on one thread."""
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(50):
        began = time.perf_counter()
        torch.mm(x, x)
        times.append(time.perf_counter() - began)
    count = max(1, round(STEP_S / statistics.median(times)))

    def step() -> None:
        for _ in range(count):
            torch.mm(x, x)

    return step


def loop(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return time.perf_counter() - began


def tracked(step: Callable[[], None]) -> Callable[[], float]:
    """The same loop inside codecarbon's offline tracker, measuring once a second, writing nothing."""
    from codecarbon import OfflineEmissionsTracker

    def run() -> float:
        tracker = OfflineEmissionsTracker(
            country_iso_code="FRA", output_methods=[], log_level="critical", measure_power_secs=1,
            allow_multiple_runs=True,
        )  # fmt: skip
        tracker.start()
        seconds = loop(step)
        tracker.stop()
        return seconds

    return run
