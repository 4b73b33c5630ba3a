"""layer_freezing: let the front layers of a model stop learning one after another, and all learn again in the end.

The j-th of the K epochs that begin between `start` and 1 − `unfreeze` of training trains without the first ⌈N·j/K⌉
layers, N = `share` of all, in the order of the forward pass. What rests has no gradient (dW), hands none on where
nothing before it learns (dX), and stays bit for bit: no momentum, no decay. The last layer always learns.

Paper: Brock et al. 2017, FreezeOut, whose layers rest from the front one after another; the code is Composer's
LayerFreezing, which stops a layer at once. FreezeOut also lets each layer's learning rate fall to 0 before it rests,
and that is left out here: the recipe's schedule holds for all. It promises 20 % of the time on ResNets. Coming back to
learning in the end is this project's option: such a layer begins without momentum.
BatchNorm that rests still normalises by the batch and moves its statistics, as any BatchNorm in training; or it does
neither (batch_norm = "running").
Composes with what leaves a backward pass. What another method has frozen stays frozen, and between epochs nothing
rests; so epochs that are skipped or sampled should lie further in: use = ["layer_freezing", "gradsamp"].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from energybench import Batch, Data, Forward, Line, Method, TrainingRun, Work
from energybench.algorithms.epoch_counter import EpochCounter
from energybench.algorithms.front_layers import FrontLayers, RestingFront, reached
from energybench.algorithms.frozen_layers import MOMENTA

RECURRENT_GAP = (
    "of a recurrent layer that is the first to learn, the gradient to its input is not told from that in time"
)


@dataclass
class LayerFreezing(Method):
    """share: of the layers, how many rest in the end; the last one never does

    start:      share of training after which the first of them rest
    unfreeze:   last share of training in which all learn again; 0: they rest to the end
    batch_norm: of layers that rest: "batch": in training mode as ever | "running": normalises by its running
                statistics, which stay
    """

    by_epoch: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"backward"})
    trains_less: ClassVar[bool | None] = False

    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    start: Annotated[float, Field(ge=0, lt=1)] = 0.5
    unfreeze: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_norm: Literal["batch", "running"] = "batch"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is that of the layers in [0, 1], not {self.share}")
        if not (0 <= self.start < 1 and 0 <= self.unfreeze < 1):
            raise ValueError(f"start and unfreeze are shares in [0, 1), not {self.start} and {self.unfreeze}")
        if self.start + self.unfreeze >= 1:
            raise ValueError(f"nothing is left between start = {self.start} and the last unfreeze = {self.unfreeze}")
        if self.batch_norm not in ("batch", "running"):
            raise ValueError(f"batch_norm is batch or running, not '{self.batch_norm}'")

    def most(self, layers: int) -> int:
        """N, of so many layers."""
        return max(0, min(math.floor(self.share * layers + 0.5), layers - 1))

    def count_resting(self, layers: int, epoch: int, epochs: int) -> int:
        """How many of the first layers rest in an epoch, counted from 1."""
        # Products of shares and epochs are rounded: 0.7 · 10 is not 7.
        first, end = (math.ceil(each * epochs - 1e-9) for each in (self.start, 1 - self.unfreeze))
        if not first < epoch <= end:
            return 0
        return math.ceil(self.most(layers) * (epoch - first) / (end - first) - 1e-9)

    def incompatible_run(self, run: TrainingRun) -> str | None:
        if not self.share:
            return None
        if len(run.task.parts) > 1:
            return f"'{run.task.name}' trains several parts in turns, and a whole part could rest"
        layers = len(FrontLayers.of(run).names)
        if not self.most(layers):
            return f"share = {self.share:g} of its layers that learn, {layers}, is none: the last one always learns"
        if not any(self.count_resting(layers, epoch, run.epochs) for epoch in range(1, run.epochs + 1)):
            return (
                f"none of its {run.epochs} epochs begins between start = {self.start:g} and the last unfreeze = "
                f"{self.unfreeze:g} of training"
            )
        return None

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._layers = FrontLayers.of(run)
        self._number = 0  # of layers that rest now
        self._turned_off: dict[nn.Parameter, None] = {}  # by this method, in this epoch; who else froze one keeps it so
        self._rested: dict[nn.Parameter, None] = {}  # in the last epoch that was trained
        self._norms: list[nn.Module] = []  # that rest
        self._samples: EpochCounter[int] = EpochCounter(run)  # by the number of layers that rested
        self._epochs: dict[int, int] = {}  # epoch → that number
        self._reached = {0: reached(run)}
        for epoch in range(1, run.epochs + 1):
            number = self.count_resting(len(self._layers.names), epoch, run.epochs)
            if number not in self._reached:
                self._turn_off(run, number)
                self._reached[number] = reached(run)
                self._turn_on()
        if any(isinstance(module, nn.RNNBase) for module in run.model.modules()):
            self.gap_because = RECURRENT_GAP

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        for part in run.task.parts:
            run.parameters(part)  # in the model's order, as it is listed while all of them learn
        self._number = self.count_resting(len(self._layers.names), run.epoch_number, run.epochs)
        self._turn_off(run, self._number)
        self._begin_anew(run)
        steps = run.tally.steps
        try:
            inner(data)
        finally:
            self._turn_on()
            self._number = 0
        if run.tally.steps > steps:
            self._epochs[run.epoch_number] = self.count_resting(len(self._layers.names), run.epoch_number, run.epochs)

    def _turn_off(self, run: TrainingRun, number: int) -> None:
        for own in self._layers.parameters(run.model)[:number]:
            for parameter in own:
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    self._turned_off[parameter] = None
        if self._turned_off and not any(p.requires_grad for p in run.model.parameters()):
            last = next(reversed(self._turned_off))  # another method froze the rest: a loss needs one that learns
            del self._turned_off[last]
            last.requires_grad_(True)
        places = ((self._layers.place(name), module) for name, module in run.model.named_modules())
        self._norms = [
            module
            for place, module in places
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and place is not None and place < number
        ]

    def _turn_on(self) -> None:
        for parameter in self._turned_off:
            parameter.requires_grad_(True)
        self._turned_off.clear()
        self._norms = []

    @torch.no_grad()
    def _begin_anew(self, run: TrainingRun) -> None:
        """What comes back to learning has no momentum of the time before it rested."""
        states = {p: o.state[p] for o in run.optimizers.values() for g in o.param_groups for p in g["params"]}
        for parameter in self._rested:
            if parameter not in self._turned_off:
                for key in MOMENTA:
                    momentum = states.get(parameter, {}).get(key)
                    if isinstance(momentum, Tensor):
                        momentum.zero_()
        self._rested = dict(self._turned_off)

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        self._samples.add(self._number, len(batch))
        if self._turned_off:
            run.tally.mark(self, f"frozen={self._number}")
        return inner(batch)

    def forward_context(self, run: TrainingRun, mode: str) -> AbstractContextManager[Any]:
        return self._running_statistics() if self._norms and self.batch_norm == "running" else nullcontext()

    @contextmanager
    def _running_statistics(self) -> Iterator[None]:
        before = [module.training for module in self._norms]
        for module in self._norms:
            module.training = False
        try:
            yield
        finally:
            for module, mode in zip(self._norms, before, strict=True):
                module.training = mode

    def estimate(self, work: Work) -> Work:
        """Backward lines, each in the epochs in which it is left: dW of what learns, dX behind it."""
        samples = self._samples.of(work)
        if not samples:
            return work
        front = RestingFront(self._layers, self._reached, work)

        def share(line: Line) -> float:
            return sum(count * front.share(line, number) for number, count in samples.items()) / samples.total()

        return work.change(share)

    def claims(self) -> tuple[float, str, str] | None:
        return 0.2, "training", "Brock et al. 2017, abstract: a fifth of the time on ResNets without loss of accuracy"

    def finish(self, run: TrainingRun) -> None:
        self._turn_on()

    def diagnostics(self) -> dict[str, Any]:
        return {"layers": list(self._layers.names), "resting_by_epoch": self._epochs}
