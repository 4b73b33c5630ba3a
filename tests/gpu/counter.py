"""Part 1. The card's counter against its integrated power, over five loads; what its sensors see and when.

Idle comes first, while this process has no context on the card, and again when it has one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu.card import Card
from gpu.results import Results
from gpu.rise import Point, rise, update_s
from torch import Tensor, nn

from energybench.meter.clock import REAL_TIME
from energybench.meter.counter import SensorError, infer_tick
from energybench.meter.gpu import GpuMeter
from energybench.meter.reading import Energy, Reading
from energybench.meter.window import Window

AGREE = 0.05  # how far counter and integral may lie apart: where `channels_apart` begins
POLL_S = 0.05  # sooner some cards answer with zeros
Load = Callable[[], object]  # does a little work


def measure(card: Card, results: Results) -> None:
    seconds = card.size(20.0 if card.long else 8.0, 0.4)
    without = watts_of(window(card, None, card.size(seconds, 0.3)))
    results.fact("idle_without_context_w", without)
    tick(card, results)
    held = torch.ones(1, device=card.device)  # from here on there is a context
    for name, load in {"idle": None, **loads(card)}.items():
        reading = window(card, load, seconds)
        told(results, name, reading)
        if name == "idle":
            results.fact("idle_with_context_w", watts_of(reading))
        if results.left_s < 12:
            results.check("every load was measured", None, f"no time after {name}")
            return
    step_response(card, results)
    del held


def window(card: Card, load: Load | None, seconds: float) -> Reading:
    """A metered window of this load; without one the card rests."""
    metered = Window([GpuMeter([card.sensors])], card.sync if load else lambda: None)
    if load is not None:
        card.repeated(load, card.size(0.5, 0.05))  # kernels are chosen, clocks rise
    metered.start()
    if load is None:
        time.sleep(seconds)
    else:
        card.repeated(load, seconds)
    metered.stop()
    return metered.reading()


def loads(card: Card) -> dict[str, Load]:
    side = card.size(8192, 128)
    narrow = card.size(torch.bfloat16, torch.float32)
    x = torch.randn(side, side, device=card.device, dtype=narrow)
    y = torch.empty_like(x)
    source = torch.randn(card.size(1 << 28, 1 << 16), device=card.device)
    target = torch.empty_like(source)
    return {
        "matrix product": lambda: torch.mm(x, x, out=y),
        "memory copy": lambda: target.copy_(source),
        "training": training(card),
    }


def training(card: Card) -> Load:
    """Steps of a convolutional network on handwritten digits, of ResNet-18's kind on a card, in bf16 by autocast.

    It learns: what numbers are like, many of them zero behind a ReLU, is part of what their products draw.
    """
    from energybench.workloads import models

    torch.manual_seed(0)
    use, options, batch = card.size(("resnet18", {"stem": "small"}, 128), ("cnn", {"channels": [4, 8]}, 8))
    model: nn.Module = models.build(use, (3, 32, 32), 10, options).to(card.device)
    images, labels = digits(card)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        chosen = torch.randint(len(labels), (batch,), device=card.device)
        optimizer.zero_grad()
        with torch.autocast(card.device.type, torch.bfloat16, enabled=not card.fake):
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()

    return step


def digits(card: Card) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits, four times as high and wide, in three equal colours, with mean 0 and variance 1."""
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    images = torch.tensor(small, dtype=torch.float32).reshape(-1, 1, 8, 8)
    images = (images - images.mean()) / images.std()
    large = images.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    return large.to(card.device), torch.tensor(labels, dtype=torch.int64, device=card.device)


def figures(reading: Reading) -> tuple[Energy | None, Energy | None]:
    """(counter, integral of power), None where there is no joule."""
    found = {each.source: each for each in reading.energy if each.energy_j is not None}
    return found.get("gpu_counter"), found.get("gpu_power_integral")


def watts_of(reading: Reading) -> float | None:
    counter, integral = figures(reading)
    joules = (counter or integral or Energy(source="unavailable", scope="gpu")).energy_j
    return None if joules is None else joules / reading.wall_s


def told(results: Results, name: str, reading: Reading) -> None:
    counter, integral = figures(reading)
    cells: dict[str, Any] = {"load": name, "seconds": reading.wall_s, "power_w": watts_of(reading)}
    for channel, energy in (("counter", counter), ("integral", integral)):
        cells |= {f"{channel}_j": energy and energy.energy_j, f"{channel}_error_j": energy and energy.error_j}
    what = f"counter and integral agree within {100 * AGREE:g} %: {name}"
    if counter is None or integral is None:
        why = "; ".join(f"{e.source}: {e.reason}" for e in reading.energy if e.energy_j is None)
        results.row("windows", **cells, counter_to_integral=None)
        results.check(what, None, why)
        return
    apart = counter.energy_j / integral.energy_j  # type: ignore[operator]
    state = next(iter(reading.cards.values()), None)
    cells |= {"counter_to_integral": apart, "tick_s": counter.detail.get("tick_s")}
    cells |= {"temperature_max_c": state and state.temperature_max_c, "sm_clock_mhz": state and state.sm_clock_mhz}
    results.row("windows", **cells)
    results.check(what, abs(apart - 1) <= AGREE, f"{apart:.4f}")


def tick(card: Card, results: Results) -> None:
    try:
        found = infer_tick(card.sensors.energy_j, REAL_TIME, card.size(41, 11))
    except SensorError as error:
        results.check("the counter ticks", None, str(error))
        return
    results.fact("tick_s", found.seconds)
    results.fact("tick_least_s", found.least_s)
    results.fact("tick_most_s", found.most_s)


def step_response(card: Card, results: Results) -> None:
    """The sensor's two fields, the moment and the mean of a second, while a matrix product begins."""
    rest_s, load_s = card.size(2.0, 0.3), card.size(4.0, 0.5)
    points: dict[str, list[Point]] = {"the field that is integrated": [], "the mean of a second": []}
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(POLL_S):
            try:
                powers = card.sensors.powers()
            except SensorError:
                continue
            for name, watts in zip(points, (powers.power_w, powers.average_w), strict=True):
                if watts is not None:
                    points[name].append((time.perf_counter(), watts))

    load = loads(card)["matrix product"]
    card.repeated(load, card.size(0.5, 0.05))
    time.sleep(card.size(2.0, 0.0))  # the mean of a second forgets that
    watcher = threading.Thread(target=poll, daemon=True)
    watcher.start()
    time.sleep(rest_s)
    began_s = time.perf_counter()
    card.repeated(load, load_s)
    ended.set()
    watcher.join()
    for name, seen in points.items():
        found = rise(seen, began_s)
        cells = {"window_s": found.window_s, "delay_s": found.delay_s} if found else {}
        results.row(
            "what a sensor shows of a step in power",
            sensor=name,
            samples=len(seen),
            update_s=update_s(seen),
            low_w=found and found.low_w,
            high_w=found and found.high_w,
            averaging_window_s=cells.get("window_s"),
            delay_s=cells.get("delay_s"),
        )
