"""What metering costs: a loop of 10 ms steps bare, under our window on a card, and under codecarbon's tracker.

The three are interleaved, in a new order in every round, and told as ratios to the bare loop of the same round. A ratio
of 1.002 cannot be seen so on a machine whose identical loops differ by 5 %. But all that metering does inside a window
is to look, five times a second, and what a look holds up can be seen: the loop is made of small products, and those
that meet a look are compared with those of the same loop that meet none.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.nvml import FakeDriver, FakeGpu

from energybench.meter.clock import RealTime
from energybench.meter.gpu import PERIOD_S, GpuMeter
from energybench.meter.nvml import open_gpus
from energybench.meter.window import Window

pytestmark = pytest.mark.perf

ROUNDS, STEPS, STEP_S = 9, 60, 0.010
BACKGROUND = 0.01  # of one core
HELD_UP = 0.002  # of a step
ATTEMPTS = 3  # a thread that wakes up on a machine that others use takes twice as long
NOISE = 1.05  # what two identical loops may differ by in the median of the rounds


class Noted(RealTime):
    """The real clock, which notes when each call in the background began and ended, in ns."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def every(self, period_s: float, call: Callable[[], object]) -> Callable[[], float]:
        def noted() -> None:
            began = self.now_ns()
            call()
            self.calls.append((began, self.now_ns()))

        return super().every(period_s, noted)


@pytest.fixture
def cards(fake_nvml_library: Path) -> Iterator[Callable[..., GpuMeter]]:
    with metered_card(fake_nvml_library) as build:
        yield build


@contextmanager
def metered_card(library: Path) -> Iterator[Callable[..., GpuMeter]]:
    with FakeDriver(library, [FakeGpu(tick_s=0.01)], clock=time.clock_gettime(time.CLOCK_MONOTONIC)):
        yield lambda *arguments: GpuMeter(open_gpus(), *arguments)


def test_metering_holds_a_step_of_10_ms_up_by_less_than_two_thousandths(
    benchmark: Any, cards: Callable[..., GpuMeter]
) -> None:
    noted, x = Noted(), torch.randn(256, 256)
    window, found = Window([cards(noted)], lambda: None), list[float]()
    while len(found) < ATTEMPTS and min(found, default=1.0) >= HELD_UP:
        held_up: list[float] = []
        for _ in range(ROUNDS):
            noted.calls.clear()
            window.start()
            products = timed_products(x, 2.0)
            window.stop()
            held_up.append(held_up_ns(products, noted.calls) / (PERIOD_S * 1e9))
        found.append(statistics.median(held_up))
    benchmark.extra_info["share_held_up"] = found
    benchmark.pedantic(torch.mm, (x, x), rounds=10)
    assert len(noted.calls) > 5
    assert min(found) < HELD_UP


def test_what_looks_hold_up_is_found_where_it_is_known() -> None:
    """Products of 100 ns, of which those that meet a look take 30 and 50 more."""
    products = [(start, start + 100) for start in range(0, 5000, 100)]
    products = [p for p in products if p[0] not in (1100, 3200)] + [(1100, 1230), (3200, 3350)]
    assert held_up_ns(sorted(products), [(1150, 1160), (3210, 3215)]) == 40


def timed_products(x: torch.Tensor, seconds: float) -> list[tuple[int, int]]:
    """Begin and end, in ns, of products one after the other."""
    clock, products = time.perf_counter_ns, []
    began = clock()
    end = began + round(seconds * 1e9)
    while began < end:
        torch.mm(x, x)
        now = clock()
        products.append((began, now))
        began = now
    return products


def held_up_ns(products: list[tuple[int, int]], looks: list[tuple[int, int]]) -> float:
    """How much longer, per look, the products took that met one: the mean over looks, but for the tenth at either end,
    where the host of this machine took its time."""
    usual = statistics.median(
        end - began
        for began, end in products
        if not any(start < end and began < stop for start, stop in looks)
    )
    extra = []
    for start, stop in looks:
        met = [end - began for began, end in products if start < end and began < stop]
        if met:
            extra.append(sum(met) - usual * len(met))
    extra.sort()
    cut = len(extra) // 10
    return statistics.fmean(extra[cut : len(extra) - cut])


def test_beside_a_bare_loop_metering_is_lost_in_the_noise(
    benchmark: Any, cards: Callable[..., GpuMeter]
) -> None:
    step = ten_milliseconds()
    background: list[float] = []
    meter = cards()

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
