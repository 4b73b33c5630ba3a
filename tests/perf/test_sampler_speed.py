"""What drawing by importance costs, against torch.multinomial and against the step that it is added to.

A step of the sampler is all that a method needs: draw B of N, average the scores of repeats, change B importances.
Measured on one core of an AMD EPYC at N = 1,281,167, in steps of 56 ms: 0.29 ms for B = 64, 0.40 ms for 256; a slow
phase of the machine stretches both and the step alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from energybench import discovery
from energybench.loop import Run
from energybench.recipe import Recipe
from energybench.sampling import Sampler, average_repeats
from energybench.workloads import models
from energybench.workloads.classification import Classification
from energybench.workloads.data import Data, Resident, StandIn
from energybench.workloads.images import Images

pytestmark = pytest.mark.perf

IMAGENET, MOST_OF_MULTINOMIAL = 1_281_167, 2**24 - 1
ROUNDS, ATTEMPTS = 9, 3
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(call: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def ratio(
    one: Callable[[], object], other: Callable[[], object], repeats: tuple[int, int]
) -> tuple[float, float]:
    """(median over the rounds of seconds of one / of other, the order changing, after a round not counted; of one)."""
    ratios, ours = [], []
    for turn in range(ROUNDS + 1):
        if turn % 2:
            first, second = seconds(one, repeats[0]), seconds(other, repeats[1])
        else:
            second, first = seconds(other, repeats[1]), seconds(one, repeats[0])
        if turn:
            ratios.append(first / second)
            ours.append(first)
    return statistics.median(ratios), statistics.median(ours)


def at_most(limit: float, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """The smallest of a few attempts, which end with one within the limit: a machine that others use is noisy."""
    found: list[tuple[float, float]] = []
    while len(found) < ATTEMPTS and (not found or found[-1][0] > limit):
        found.append(measure())
    return min(found)


def sampler_step(count: int, batch: int) -> Callable[[], None]:
    sampler, generator = Sampler(torch.rand(count)), torch.Generator().manual_seed(0)
    scores = torch.rand(batch)

    def step() -> None:
        index, _ = sampler.draw(batch, generator)
        mean, _ = average_repeats(index, scores)
        sampler.set(index, mean)

    return step


@pytest.mark.parametrize("batch", [64, 256])
@pytest.mark.parametrize(("count", "limit"), [(IMAGENET, 0.6), (MOST_OF_MULTINOMIAL, 0.05)])
def test_drawing_and_updating_take_less_than_one_draw_of_multinomial(
    count: int, limit: float, batch: int, energy_benchmark: Any
) -> None:
    step, weights = sampler_step(count, batch), torch.rand(count)
    multinomial = lambda: torch.multinomial(weights, batch, replacement=True)  # noqa: E731
    found, step_s = at_most(limit, lambda: ratio(step, multinomial, (10, 3)))
    energy_benchmark.extra_info |= {
        "sampler_over_multinomial": found,
        "sampler_us": 1e6 * step_s,
        "rounds": ROUNDS,
    }
    energy_benchmark.pedantic(step, rounds=5)
    print(count, batch, energy_benchmark.extra_info)
    assert found < limit


def plain_step() -> Callable[[], None]:
    """A step of about 50 ms on one quiet core: 64 images of 28×28 in three convolutional layers."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 1, 28, 28, generator=generator)
    data = Data(Resident(inputs, torch.randint(10, (64,), generator=generator), CPU))
    model = models.build("cnn", (1, 28, 28), 10, {"channels": [32, 64, 96]})
    run = Run(Classification(), [], Recipe(epochs=1, batch=64), model, data, seed=1, device=CPU)
    batch = next(data.load([torch.arange(64)]))
    return lambda: run.step(batch)


# 256 samples took 0.72 % in the step of 64; a step of 256 that is done in 50 ms draws on a device, not on a core.
@pytest.mark.parametrize(("batch", "limit"), [(64, 0.01), (128, 0.01), (256, 0.015)])
def test_at_imagenets_size_the_sampler_adds_about_one_percent_at_most_to_a_step_of_50_ms(
    batch: int, limit: float, energy_benchmark: Any
) -> None:
    step, peer = sampler_step(IMAGENET, batch), plain_step()
    found, step_s = at_most(limit, lambda: ratio(step, peer, (20, 1)))
    energy_benchmark.extra_info |= {
        "share_of_a_step": found,
        "sampler_us": 1e6 * step_s,
        "step_ms": 1e3 * step_s / found,
    }
    energy_benchmark.pedantic(step, rounds=5)
    print(batch, energy_benchmark.extra_info)
    assert found < limit


def test_128_times_the_samples_take_less_than_twice_the_time(energy_benchmark: Any) -> None:
    large, small = sampler_step(IMAGENET, 64), sampler_step(IMAGENET // 128, 64)
    found, _ = at_most(2.0, lambda: ratio(large, small, (20, 20)))
    energy_benchmark.extra_info |= {"imagenet_over_a_128th_of_it": found, "rounds": ROUNDS}
    energy_benchmark.pedantic(large, rounds=5)
    print(energy_benchmark.extra_info)
    assert found < 2


def steps_of(run: Run) -> Iterator[None]:
    """A step for each `next`, batches and all."""
    run.epoch_number = 1
    batches = iter(run.batches(run.data))
    while True:
        run.step(next(batches))
        run.epoch_number = 2  # from here on it draws
        yield


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("importance", {"alpha": 0.1, "epsilon": 0.01}), ("with_replacement", {}), ("low", {})],
)
def test_a_whole_step_with_drawing_weighing_and_scoring_takes_little_more_than_a_plain_one(
    name: str, parameters: dict[str, Any], energy_benchmark: Any
) -> None:
    """Of 1,281,167 samples, in a network so small that its step is a tenth of 50 ms."""

    def steps(methods: list[Any]) -> Callable[[], None]:
        data = Data(StandIn((1, 28, 28), IMAGENET, CPU), Images([0.5], [0.5], [], CPU))
        torch.manual_seed(0)
        model: nn.Module = models.build("cnn", (1, 28, 28), 10, {"channels": [16, 16]})
        run = Run(Classification(), methods, Recipe(epochs=2, batch=64), model, data, seed=1, device=CPU)
        going = steps_of(run)
        next(going)
        next(going)  # what an epoch does once
        return lambda: next(going)

    method = discovery.build(discovery.load(discovery.sources()[name]), name, parameters)
    found, _ = at_most(1.1, lambda: ratio(steps([method]), steps([]), (8, 8)))
    energy_benchmark.extra_info |= {"method_over_plain": found, "rounds": ROUNDS}
    energy_benchmark.pedantic(steps([]), rounds=3)
    print(name, energy_benchmark.extra_info)
    assert found < 1.25
