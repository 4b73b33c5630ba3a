"""Part 4. Fitting and drawing a generalized Gaussian for every tensor of ResNet-50 and GPT-2, and drawing by weight.

As GradSamp does it in a skipped epoch: tensors lie on the card, fits run side by side.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from gpu.card import Card, in_turns, ratio
from gpu.results import Results
from torch import Tensor

from energybench.algorithms.generalized_gaussian import GGD, fit
from energybench.algorithms.side_by_side import side_by_side
from energybench.algorithms.weighted_sampling import Sampler, average_repeats
from energybench.algorithms.ziggurat import ziggurat
from energybench.common.torchvision_shim import import_torchvision

SHAPE = 1.5
IMAGENET = 1_281_167
Shapes = list[tuple[int, ...]]
Result = TypeVar("Result")


def measure(card: Card, results: Results) -> None:
    sampler(card, results)
    networks = {"ResNet-50": resnet50(), "GPT-2": gpt2()}
    for name, shapes in networks.items():
        for location in ("median", "free"):
            if results.left_s < (6 if location == "median" else 15):
                results.check(f"{name}, location {location}", None, "no time was left")
                continue
            skipped_epoch(card, results, name, card.size(shapes, [(8, 4), (30,)]), location)


def resnet50() -> Shapes:
    with torch.device("meta"):
        return [tuple(p.shape) for p in import_torchvision().models.resnet50().parameters()]


def gpt2(width: int = 768, layers: int = 12, words: int = 50_257, places: int = 1024) -> Shapes:
    """Of the smallest GPT-2, its output layer being its embedding: 148 tensors, 124,439,808 elements."""
    norm: Shapes = [(width,), (width,)]
    attention: Shapes = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    perceptron: Shapes = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(words, width), (places, width), *layers * (norm + attention + norm + perceptron), *norm]


def skipped_epoch(card: Card, results: Results, name: str, shapes: Shapes, location: str) -> None:
    random = torch.Generator().manual_seed(2)
    updates = [GGD(1e-5, 1e-3, SHAPE).sample(shape, random).to(card.device) for shape in shapes]

    def fitted(number: int) -> GGD:
        return fit(updates[number], location)

    def drawn(found: list[GGD], number: int) -> Tensor:
        return found[number].sample(updates[number].shape, generator(card, number)).to(card.device)

    fits: list[GGD] = []
    fit_s, draw_s = [], []
    for _ in range(card.size(2, 1)):
        ziggurat.cache_clear()  # in training no shape comes twice
        fit_s.append(card.elapsed_s(lambda: fits.__setitem__(slice(None), _all(card, shapes, fitted))))
        draw_s.append(card.elapsed_s(lambda: _all(card, shapes, partial(drawn, fits))))
        if results.left_s < 2 * (fit_s[-1] + draw_s[-1]):
            break
    results.row(
        "a skipped epoch",
        network=name,
        location=location,
        tensors=len(shapes),
        elements=sum(map(math.prod, shapes)),
        fit_s=min(fit_s),
        draw_s=min(draw_s),
    )
    largest = max(range(len(shapes)), key=lambda number: math.prod(shapes[number]))
    if not card.fake:  # a few dozen elements determine no shape
        found = fits[largest].shape
        results.check(
            f"{name}, {location}: the largest tensor's shape is found", abs(found - SHAPE) < 0.1, f"{found:.3f}"
        )


def _all(card: Card, shapes: Shapes, one: Callable[[int], Result]) -> list[Result]:
    """As a method's skipped epoch does it: at once on a processor's cores, one after the other on a card."""
    pieces = [(math.prod(shape), partial(one, number)) for number, shape in enumerate(shapes)]
    return side_by_side(pieces, card.device)


def generator(card: Card, seed: int) -> torch.Generator:
    return torch.Generator(card.device).manual_seed(seed)


def sampler(card: Card, results: Results) -> None:
    """Draw, average the scores of repeats, change as many importances, as a method's step does; torch.multinomial."""
    count, batch = card.size(IMAGENET, 2000), 64
    weights = torch.rand(count, device=card.device, dtype=torch.float64)
    tree, random = Sampler(weights.clone()), generator(card, 0)
    scores = torch.rand(batch, device=card.device, dtype=torch.float64)
    repeats = card.size(20, 2)

    def ours() -> float:
        def steps() -> None:
            for _ in range(repeats):
                index, _ = tree.draw(batch, random)
                mean, _ = average_repeats(index, scores)
                tree.set(index, mean)

        return card.elapsed_s(steps) / repeats

    def multinomial() -> float:
        def draws() -> None:
            for _ in range(repeats):
                torch.multinomial(weights, batch, True)

        return card.elapsed_s(draws) / repeats

    times = in_turns({"ours": ours, "multinomial": multinomial}, card.size(5, 1))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    found = ratio(times["ours"], times["multinomial"])
    results.row(
        f"drawing {batch} by weight and changing as many weights",
        samples=count,
        ours_s=medians["ours"],
        multinomial_s=medians["multinomial"],
        ours_to_multinomial=found["ratio"],
    )
