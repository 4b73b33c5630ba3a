"""ema: judge the model by a moving average of its weights: after each update a ← d·a + (1 − d)·θ, training as ever.

With d_n = min(decay, (1 + n)/(10 + n)) at the n-th update, so that the start does not weigh for ever. The average is
swapped in around every evaluation and back after it, and is what the model has in the end. Running statistics of
BatchNorm are averaged too, as detectors' recipes have it, or kept as training has them.

Paper: Polyak and Juditsky 1992, with a constant weight of the newest; the ramp is TensorFlow's. Promises 0 %: a pass
over the weights in every update, and memory for one more copy of them.
Composes with every method that updates. It acts after each `update`, outside of whoever owns it or puts weights back:
use = ["ema", "mezo"], ["ema", "neq"]. An epoch without updates, such as one that gradsamp samples, moves the weights
past it: the average stays where it was, as in the papers. The record names these epochs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from energybench import Batch, Method, TrainingRun


@dataclass
class EMA(Method):
    """decay:  d, the weight of the old average at each update; 0 is the weights themselves

    ramp:    let d rise from 2/11 as (1 + n)/(10 + n) until it is `decay`
    buffers: "average": the model's floating buffers too, such as running statistics | "keep": as training has them
    """

    trains_less: ClassVar[bool | None] = False

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    ramp: bool = True
    buffers: Literal["average", "keep"] = "average"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is the weight of the old average in [0, 1), not {self.decay}")
        if self.buffers not in ("average", "keep"):
            raise ValueError(f"buffers is average or keep, not '{self.buffers}'")

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._run = run
        self._weights: dict[str, list[Tensor]] = {}  # those of each part that learn, and beside them
        self._averages: dict[str, list[Tensor]] = {}  # their averages
        self._buffers: list[Tensor] | None = None
        self._buffer_averages: list[Tensor] = []
        self._in_step = False
        self._due: list[str] = []  # parts that were updated in this step
        self._updates: Counter[str] = Counter()
        self._epochs: set[int] = set()  # with an update

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        self._in_step = True
        inner(batch)
        self._in_step = False
        for part in self._due:
            self._average(run, part)
        self._due.clear()

    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        self._list(run, part)
        inner(part)
        if self._in_step:  # a layer further in may still put back what shall rest
            self._due.append(part)
        else:
            self._average(run, part)

    @torch.no_grad()
    def _average(self, run: TrainingRun, part: str) -> None:
        self._updates[part] += 1
        keep = self.weight(self._updates[part])
        averages, weights = self._averages[part], self._weights[part]
        if part == run.task.parts[0]:
            averages, weights = averages + self._buffer_averages, weights + (self._buffers or [])
        torch._foreach_lerp_(averages, weights, 1 - keep)
        self._epochs.add(run.epoch_number)
        self.acted = True  # and no mark: the step costs what it costs without

    def weight(self, number: int) -> float:
        """d at the update of this number, counted from 1."""
        return min(self.decay, (1 + number) / (10 + number)) if self.ramp else self.decay

    def _list(self, run: TrainingRun, part: str) -> None:
        """The average of a weight starts at its value before its first update: the first one's, or after its release.

        Not in setup, where layers further out have yet to change the model.
        """
        weights, averages = self._weights.setdefault(part, []), self._averages.setdefault(part, [])
        for parameter in run.parameters(part)[len(weights) :]:
            weights.append(parameter)
            averages.append(parameter.detach().clone())
        if self._buffers is None:
            found = [b for b in run.model.buffers() if b.is_floating_point()] if self.buffers == "average" else []
            self._buffers, self._buffer_averages = found, [buffer.clone() for buffer in found]

    @contextmanager
    def eval_context(self, run: TrainingRun) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Weights and averages change places, bit for bit; one tensor at a time, so that no third copy is held."""
        for weight, average in self._pairs():
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part, weights in self._weights.items():
            yield from zip(weights, self._averages[part], strict=True)
        yield from zip(self._buffers or [], self._buffer_averages, strict=True)

    def finish(self, run: TrainingRun) -> None:
        """The averages are the model; there is nothing left to swap in."""
        self._swap()
        self._weights, self._averages, self._buffers, self._buffer_averages = {}, {}, [], []

    def diagnostics(self) -> dict[str, Any]:
        passed = sorted({*range(1, self._run.epochs_ended + 1)} - self._epochs)
        facts: dict[str, Any] = {"updates_averaged": dict(self._updates), "epochs_without_update": passed}
        if passed:
            facts["warning"] = (
                f"{len(passed)} epochs had no update, from epoch {passed[0]}: they moved the weights past the average"
            )
        return facts
