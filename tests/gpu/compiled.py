"""Part 6. CUDA graphs and torch.compile: refused in words, or the same training as plain.

"The same" is judged beside a second training of the same stack without them: kernels that add in another order differ
in the last digits, and a training enlarges that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gpu.card import Card
from gpu.results import Results
from torch import Tensor, nn

from energybench import Batch, Method, TrainingRun
from energybench.common.errors import UsageError
from energybench.train import discovery
from energybench.train.data import Data, Resident
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.workloads.tasks.classification import Classification

NEAR = 0.02  # of what the training changed
Stack = list[tuple[str, dict[str, Any]]]
BESIDE: Stack = [
    ("channels_last", {}),
    ("fused_optimizer", {}),
    ("gradsamp", {"skip": "every:2"}),
    ("scotti", {}),
    ("importance", {"alpha": 0.1, "epsilon": 0.01}),
    ("layer_freezing", {}),
    ("selective_backprop", {}),
]


def measure(card: Card, results: Results) -> None:
    graphs: Stack = [("cuda_graphs", {})]
    compiled: Stack = [("compile", {"backend": "eager"} if card.fake else {})]
    wholly: Stack = [("compile", {"mode": "reduce-overhead"})]
    refused(card, results, [*graphs, ("ssprop", {})])
    refused(card, results, [*compiled, *graphs])
    words = build(*graphs[0]).incompatible_recipe({"accumulate": 2})
    results.check("cuda_graphs with micro-batches is refused in words", bool(words), words or "it was let in")
    alone = [graphs, compiled, *card.size([wholly], [])]
    with_others = [[*kind, other] for kind in (graphs, compiled) for other in BESIDE]  # compiling takes its time
    without: dict[str, Reference] = {}
    for stack in [*alone, *with_others]:
        if results.left_s < 8:
            results.check(named(stack), None, "no time was left")
            continue
        rest = stack[1:]
        if named(rest) not in without:
            without[named(rest)] = reference(card, rest)
        right_or_refused(card, results, stack, without[named(rest)])


class Clock(Method):
    """The outermost layer: seconds of each step, the device being waited for."""

    name = "clock"

    def __init__(self, card: Card) -> None:
        self._card = card
        self.seconds: list[float] = []

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        self._card.sync()
        began = time.perf_counter()
        inner(batch)
        self._card.sync()
        self.seconds.append(time.perf_counter() - began)


class Trained:
    """Where a training began and ended, what its steps took once it went as it goes, and what its method told."""

    def __init__(self, begin: list[Tensor], end: list[Tensor], seconds: list[float], told: dict[str, Any]) -> None:
        self.begin, self.end, self.told = begin, end, told
        self.step_s = statistics.median(seconds[len(seconds) // 2 :])


def build(name: str, parameters: dict[str, Any]) -> Any:
    return discovery.build(discovery.load(discovery.sources()[name]), name, parameters)


def named(stack: Stack) -> str:
    return " + ".join(name + "".join(f" {key}={value}" for key, value in given.items()) for name, given in stack)


def made(card: Card, stack: Stack) -> tuple[Run, list[Any], Clock]:
    torch.manual_seed(0)
    width = card.size(64, 4)
    layers: list[nn.Module] = []
    for into in (3, width, width, width):
        layers += [nn.Conv2d(into, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).to(card.device)
    generator = torch.Generator().manual_seed(1)
    count, side = card.size(32 * 40, 8 * 4), card.size(16, 8)
    images = torch.randn(count, 3, side, side, generator=generator).to(card.device)
    labels = torch.randint(10, (count,), generator=generator).to(card.device)
    data = Data(Resident(images, labels, card.device))
    methods, clock = [build(*each) for each in stack], Clock(card)
    recipe = Recipe(epochs=2, batch=card.size(32, 8), lr=0.01)
    run = Run(Classification(), [*methods, clock], recipe, model, data, seed=1, device=card.device)
    return run, methods, clock


def train(card: Card, stack: Stack) -> Trained:
    run, methods, clock = made(card, stack)
    begin = [tensor.detach().clone() for tensor in run.model.parameters()]
    run.train()
    end = [tensor.detach().clone() for tensor in run.model.parameters()]
    told = {key: value for method in methods for key, value in method.diagnostics().items()}
    return Trained(begin, end, clock.seconds, told)


class Reference(NamedTuple):
    """A training without what compiles or records, and how far a second one of the same is from it."""

    trained: Trained
    noise: float


def reference(card: Card, stack: Stack) -> Reference:
    first = train(card, stack)
    return Reference(first, distance(train(card, stack), first))


def distance(one: Trained, other: Trained) -> float:
    """Between two trainings' ends, relative to the way that the second has gone."""
    apart = sum(float((a - b).square().sum()) for a, b in zip(one.end, other.end, strict=True))
    way = sum(float((a - b).square().sum()) for a, b in zip(other.end, other.begin, strict=True))
    return (apart / way) ** 0.5


def right_or_refused(card: Card, results: Results, stack: Stack, without: Reference) -> None:
    what = f"{named(stack)}: refused in words, or right"
    words = next(filter(None, (build(*each).incompatible_hardware(card.device.type) for each in stack)), None)
    if words:
        results.row("trainings", method=named(stack), refused=words)
        results.check(what, True, f"refused: {words}")
        return
    try:
        found = train(card, stack)
    except (UsageError, ValueError) as error:
        results.row("trainings", method=named(stack), refused=str(error))
        results.check(what, True, f"refused: {error}")
        return
    apart, noise = distance(found, without.trained), without.noise
    results.row(
        "trainings",
        method=named(stack),
        refused=None,
        distance_rel=apart,
        step_s=found.step_s,
        without_it_rel=noise,
        step_s_without_it=without.trained.step_s,
        told=", ".join(f"{key} {value}" for key, value in found.told.items()),
    )
    beside = f"{apart:.2g} from the training without it, which is {noise:.2g} from itself"
    results.check(what, apart <= max(NEAR, 3 * noise), beside)


def refused(card: Card, results: Results, stack: Stack) -> None:
    """Before the training, or by the first step that cannot be: there is no other way to see what a method does."""
    what = f"{named(stack)} is refused in words"
    try:
        made(card, stack)
        if any(build(*each).incompatible_hardware(card.device.type) for each in stack):
            results.check(what, None, "it is not refused before it trains, and this device trains plainly")
            return
        train(card, stack)
    except (UsageError, ValueError) as error:
        results.check(what, True, f"{type(error).__name__}: {error}")
    else:
        results.check(what, False, "it was let in")
