"""What drawing by importance costs, against torch.multinomial and against the step that it is added to.

A step of the sampler is all that a method needs: draw B of N, average the scores of repeats, change B importances.
Measured on one core of an AMD EPYC at N = 1,281,167, in steps of 56 ms: 0.29 ms for B = 64, 0.40 ms for 256; a slow
phase of the machine stretches both and the step alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from perf.ratios import Bench, timed
from torch import nn

from energybench.algorithms.weighted_sampling import Sampler, average_repeats
from energybench.train import discovery
from energybench.train.data import Data, Resident, StandIn
from energybench.train.images import Images
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.workloads import models
from energybench.workloads.tasks.classification import Classification

IMAGENET, MOST_OF_MULTINOMIAL = 1_281_167, 2**24 - 1
SMOKE = 2000
ROUNDS = 9
CPU = torch.device("cpu")


def sampler_step(count: int, batch: int) -> Callable[[], None]:
    sampler, generator = Sampler(torch.rand(count)), torch.Generator().manual_seed(0)
    scores = torch.rand(batch)

    def step() -> None:
        index, _ = sampler.draw(batch, generator)
        mean, _ = average_repeats(index, scores)
        sampler.set(index, mean)

    return step


@pytest.mark.parametrize("batch", [64, 256])
@pytest.mark.parametrize(("count", "goal"), [(IMAGENET, 0.6), (MOST_OF_MULTINOMIAL, 0.05)])
def test_drawing_and_updating_against_one_draw_of_multinomial(
    count: int, goal: float, batch: int, bench: Bench
) -> None:
    of = bench.size(count, SMOKE)
    step, weights = sampler_step(of, batch), torch.rand(of)
    times = bench.turns(
        {
            "ours": timed(step, bench.size(10, 1)),
            "multinomial": timed(lambda: torch.multinomial(weights, batch, True), bench.size(3, 1)),
        },
        ROUNDS,
    )
    bench.cost(f"drawing {batch} of {count:,}", times["ours"], times["multinomial"], of="torch.multinomial", goal=goal)


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
@pytest.mark.parametrize(("batch", "goal"), [(64, 0.01), (128, 0.01), (256, 0.015)])
def test_drawing_at_imagenets_size_in_a_step_of_50_ms(batch: int, goal: float, bench: Bench) -> None:
    step = sampler_step(bench.size(IMAGENET, SMOKE), batch)
    times = bench.turns({"ours": timed(step, bench.size(20, 1)), "step": timed(plain_step())}, ROUNDS)
    bench.cost(f"drawing {batch} of {IMAGENET:,}", times["ours"], times["step"], of="a step of 50 ms", goal=goal)


def test_drawing_from_128_times_the_samples(bench: Bench) -> None:
    count = bench.size(IMAGENET, SMOKE)
    large, small = sampler_step(count, 64), sampler_step(count // 128, 64)
    repeats = bench.size(20, 1)
    times = bench.turns({"large": timed(large, repeats), "small": timed(small, repeats)}, ROUNDS)
    bench.cost(
        f"drawing 64 of {IMAGENET:,}",
        times["large"],
        times["small"],
        of="drawing from a 128th",
        goal=2,
        limit=(1.5, "tree levels"),
    )


def steps_of(run: Run) -> Iterator[None]:
    """A step for each `next`, batches and all."""
    run.epoch_number = 1
    batches = iter(run.batches(run.data))
    while True:
        run.step(next(batches))
        run.epoch_number = 2  # from here on it draws
        yield


@pytest.mark.parametrize(
    ("name", "parameters"), [("importance", {"alpha": 0.1, "epsilon": 0.01}), ("with_replacement", {}), ("low", {})]
)
def test_a_whole_step_with_drawing_weighing_and_scoring(name: str, parameters: dict[str, Any], bench: Bench) -> None:
    """Of 1,281,167 samples, in a network so small that its step is a tenth of 50 ms."""

    def steps(methods: list[Any]) -> Callable[[], None]:
        data = Data(StandIn((1, 28, 28), bench.size(IMAGENET, SMOKE), CPU), Images([0.5], [0.5], [], CPU))
        torch.manual_seed(0)
        model: nn.Module = models.build("cnn", (1, 28, 28), 10, {"channels": [16, 16]})
        run = Run(Classification(), methods, Recipe(epochs=2, batch=64), model, data, seed=1, device=CPU)
        going = steps_of(run)
        next(going)
        next(going)  # what an epoch does once
        return lambda: next(going)

    method = discovery.build(discovery.load(discovery.sources()[name]), name, parameters)
    repeats = bench.size(8, 1)
    times = bench.turns({"ours": timed(steps([method]), repeats), "plain": timed(steps([]), repeats)}, ROUNDS)
    bench.cost(f"a whole step of {name}", times["ours"], times["plain"], of="a plain step of 5 ms", goal=1.1)
