"""Part 2. What the harness costs on steps of 1, 10 and 50 ms, against bare PyTorch; beside CodeCarbon and Zeus.

    bare         a loop as a person writes it: batch, forward, loss, backward, update
    metered      the same loop inside one window of the card's meter
    harness      energybench's own loop inside such a window: what a trial is
    codecarbon   the bare loop inside CodeCarbon's offline tracker, which looks LOOK_S apart and writes nothing: by
                 default it looks 15 s apart, which is after these loops have ended
    zeus         the bare loop inside one window of Zeus's monitor

Only the loop is timed, not what a tracker takes to start and to stop.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu.card import Card, in_turns, ratio
from gpu.results import Results
from torch import nn

from energybench.meter.gpu import GpuMeter
from energybench.meter.window import Window
from energybench.train.data import Data, Resident
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.workloads.tasks.classification import Classification

STEPS_S = (0.001, 0.010, 0.050)
LOOP_S = 0.5  # of one side in one round
LOOK_S = 0.2  # between two looks of CodeCarbon
LR = 1e-3
BATCHES, INTO = 32, 64  # of an epoch; features of a sample: so that the data of the largest batch are a gigabyte
Side = Callable[[], float]


def measure(card: Card, results: Results) -> None:
    width = card.size(1024, 32)
    trackers, missing = dict(TRACKERS), dict[str, str]()
    for name, make in TRACKERS.items():
        try:
            make(lambda: None, card)
        except ImportError as error:
            missing[name] = f"not installed ({error.name})"
        except Exception as error:  # another's tracker may fail on a machine in its own way
            missing[name] = f"{type(error).__name__}: {error}"
        if name in missing:
            trackers.pop(name)
    for name in TRACKERS:
        results.fact(name, missing.get(name, "in the same run"))
    for wanted_s in card.size(STEPS_S, STEPS_S[:1]):
        training = Training(card, width, wanted_s)
        steps = max(2, round(card.size(LOOP_S, 0.02) / training.step_s))
        sides: dict[str, Side] = {"bare": lambda t=training, n=steps: t.bare(n)}
        sides["metered"] = lambda t=training, n=steps: metered(card, lambda: t.bare(n))
        sides["harness"] = lambda t=training, n=steps: metered(card, lambda: t.harness(n))
        for name, make in trackers.items():
            sides[name] = lambda t=training, n=steps, make=make: make(lambda: t.bare(n), card)
        times = in_turns(sides, card.size(9 if card.long else 3, 1))
        for name, seconds in times.items():
            found = ratio(seconds, times["bare"])
            step_s = statistics.median(seconds) / steps
            results.row("seconds of a step", wanted_s=wanted_s, side=name, step_s=step_s, **found)
        if results.left_s < 15:
            results.check("every length of step was measured", None, f"no time after {wanted_s} s")
            return


class Training:
    """A perceptron with a batch so large that a step takes about so long; bare and in the harness, on the same data."""

    def __init__(self, card: Card, width: int, wanted_s: float) -> None:
        self.card, self.width = card, width
        self.batch = card.size(256, 16)
        for _ in range(4):
            self._build()
            self.bare(3)
            self.step_s = self.bare(10) / 10
            if 0.8 < self.step_s / wanted_s < 1.25 or card.fake:
                break
            self.batch = min(1 << 17, max(8, round(self.batch * wanted_s / self.step_s)))

    def _build(self) -> None:
        device = self.card.device
        generator = torch.Generator(device).manual_seed(0)
        samples = BATCHES * self.batch
        inputs = torch.randn(samples, INTO, device=device, generator=generator)
        labels = torch.randint(10, (samples,), device=device, generator=generator)
        self.inputs, self.labels = inputs, labels
        self.model = self._model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9)
        data = Data(Resident(inputs, labels, device))
        recipe = Recipe(epochs=1, batch=self.batch, lr=LR, momentum=0.9)
        self.run = Run(Classification(), [], recipe, self._model(), data, seed=1, device=device)
        self.run.epoch_number = 1
        self._going = self._epochs()

    def _model(self) -> nn.Module:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for into in (INTO, self.width, self.width, self.width):
            layers += [nn.Linear(into, self.width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(self.width, 10)).to(self.card.device)

    def bare(self, steps: int) -> float:
        """Seconds of so many steps."""
        order = torch.randperm(len(self.inputs), device=self.card.device)

        def loop() -> None:
            for number in range(steps):
                first = number * self.batch % len(order)
                chosen = order[first : first + self.batch]
                self.optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.model(self.inputs[chosen]), self.labels[chosen])
                loss.backward()
                self.optimizer.step()

        return self.card.elapsed_s(loop)

    def harness(self, steps: int) -> float:
        def loop() -> None:
            for _ in range(steps):
                next(self._going)

        return self.card.elapsed_s(loop)

    def _epochs(self) -> Iterator[None]:
        """A step for each `next`, batches and all."""
        while True:
            for batch in self.run.batches(self.run.data):
                self.run.step(batch)
                yield


def metered(card: Card, loop: Side) -> float:
    window = Window([GpuMeter([card.sensors])], card.sync)
    window.start()
    seconds = loop()
    window.stop()
    return seconds


def codecarbon(loop: Callable[[], Any], card: Card) -> Any:
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA",
        output_methods=[],
        log_level="critical",
        measure_power_secs=LOOK_S,
        allow_multiple_runs=True,
    )
    tracker.start()
    found = loop()
    tracker.stop()
    return found


def zeus(loop: Callable[[], Any], card: Card) -> Any:
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor(gpu_indices=None if card.fake else [0])
    monitor.begin_window("loop")
    found = loop()
    monitor.end_window("loop")
    return found


TRACKERS: dict[str, Callable[[Callable[[], Any], Card], Any]] = {"codecarbon": codecarbon, "zeus": zeus}
