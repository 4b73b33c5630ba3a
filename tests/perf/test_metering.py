"""What metering costs: a loop of 10 ms steps bare, under our window on a card, and under codecarbon's tracker.

A ratio of 1.002 to the bare loop cannot be seen on a machine whose identical loops differ by 5 %. But all that metering
does inside a window is to look, five times a second, and what a look holds up can be seen: the loop is made of small
products, and those that meet a look are compared with those of the same loop that meet none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fakes.nvml import FakeDriver, FakeGpu
from perf.ratios import Bench, Side

from energybench.meter.clock import RealTime
from energybench.meter.gpu import PERIOD_S, GpuMeter
from energybench.meter.nvml import open_gpus
from energybench.meter.window import Window

ROUNDS, STEP_S = 9, 0.010
BACKGROUND = 0.01  # of one core
HELD_UP = 0.002  # of the time
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


def test_what_a_look_holds_up(bench: Bench, cards: Callable[..., GpuMeter]) -> None:
    noted, x = Noted(), torch.randn(256, 256)
    window, length_s = Window([cards(noted)], lambda: None), bench.size(2.0, smoke=0.25)

    def held_up() -> float:
        noted.calls.clear()
        window.start()
        products = timed_products(x, length_s)
        window.stop()
        if bench.measuring and (len(noted.calls) <= 5 or len(products) < 100):
            raise RuntimeError(
                f"{len(noted.calls)} looks at {len(products)} products: too few to say what one holds up"
            )
        return held_up_ns(products, noted.calls) / 1e9

    times = bench.turns({"held up": held_up}, ROUNDS)
    bench.cost("computing held up by a look", times["held up"], PERIOD_S, of="the time between two looks", goal=HELD_UP)


@pytest.mark.parametrize(
    ("met", "looks", "expected"),
    [
        ({1100: 130, 3200: 150}, [(1150, 1160), (3210, 3215)], 40),
        ({1100: 130}, [(1150, 1160)], 30),
        ({}, [(1150, 1160)], 0),
        ({}, [], 0),
        ({}, [(0, 5000)], 0),
    ],
)
def test_what_looks_hold_up_is_found_where_it_is_known(
    met: dict[int, int], looks: list[tuple[int, int]], expected: float
) -> None:
    """Products of 100 ns, but for those that meet a look."""
    products = [(start, start + met.get(start, 100)) for start in range(0, 5000, 100)]
    assert held_up_ns(products, looks) == expected


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
    where the host of this machine took its time. 0 where no product met a look, or each did."""
    met_none = [
        end - began for began, end in products if not any(start < end and began < stop for start, stop in looks)
    ]
    usual, extra = statistics.median(met_none or [0]), []
    for start, stop in looks:
        met = [end - began for began, end in products if start < end and began < stop]
        if met and met_none:
            extra.append(sum(met) - usual * len(met))
    extra.sort()
    cut = len(extra) // 10
    return statistics.fmean(extra[cut : len(extra) - cut]) if extra else 0.0


def test_metering_beside_a_bare_loop(bench: Bench, cards: Callable[..., GpuMeter]) -> None:
    steps, step = bench.size(60, smoke=1), ten_milliseconds()
    background: list[float] = []
    meter = cards()

    def bare() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - began

    def ours() -> float:
        window = Window([meter], lambda: None)
        window.start()
        seconds = bare()
        window.stop()
        sampler = window.reading().sampler
        assert sampler is not None
        background.append(sampler.cpu_s)
        return seconds

    times = bench.turns({"ours": ours, "codecarbon": tracked(bare), "bare": bare}, ROUNDS)
    loop = "the same loop, bare"
    bench.cost("metering a loop", times["ours"], times["bare"], of=loop, goal=NOISE, limit=(1, "no metering"))
    bench.cost("codecarbon's tracker around a loop", times["codecarbon"], times["bare"], of=loop)
    bench.cost(
        "CPU time of metering's background",
        background[-len(times["ours"]) :],
        times["ours"],
        of="one core",
        goal=BACKGROUND,
    )


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


def tracked(loop: Side) -> Side:
    """The same loop inside codecarbon's offline tracker, measuring once a second, writing nothing."""
    from codecarbon import OfflineEmissionsTracker

    def run() -> float:
        tracker = OfflineEmissionsTracker(
            country_iso_code="FRA",
            output_methods=[],
            log_level="critical",
            measure_power_secs=1,
            allow_multiple_runs=True,
        )
        tracker.start()
        seconds = loop()
        tracker.stop()
        return seconds

    return run
