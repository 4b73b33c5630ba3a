"""The training loop: five verbs, and an onion of layers around each.

    run.train()
    └─ for each epoch: epoch(data)        one pass, or one round
       ├─ batches(data)                   which samples, with what weights
       └─ step(batch)                     one update
          ├─ gradients(batch)             fill .grad, return the Forward
          └─ update(part)                 move the parameters

Each verb is a chain: methods outermost first, then the Task, then the default written here; `inner` in a method is
the rest of its chain. Nothing synchronises inside a step: losses stay on the device until the epoch ends. What a layer
may use of a run is stated in `interface.py` and written below the loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from energybench.common.hashing import stable_seed
from energybench.train.batch import Batch, Forward
from energybench.train.data import Data
from energybench.train.method import VERBS, Method, Task, overrides
from energybench.train.recipe import Recipe
from energybench.train.tally import Tally
from energybench.train.trees import join, split

Item = TypeVar("Item")


class Diverged(Exception):
    """The loss is no longer a finite number."""


class Run:
    """One training run: a task, a stack of methods (outermost first), a model, data and a recipe."""

    epoch: Callable[[Data], None]
    batches: Callable[[Data], Iterable[Batch]]
    step: Callable[[Batch], None]
    gradients: Callable[[Batch], Forward]
    update: Callable[[str], None]

    def __init__(
        self,
        task: Task,
        methods: Sequence[Method],
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        *,
        seed: int,
        device: torch.device,
        epochs: int | None = None,
    ) -> None:
        self.task, self.methods, self.recipe = task, list(methods), recipe
        self.model, self.data, self.seed, self.device = model, data, seed, device
        self.epochs = epochs or recipe.epochs
        self.epoch_number, self.step_in_epoch = 1, 0  # epochs are counted from 1, steps within one from 0
        self.skip_update = False  # set inside a step: its update does not happen
        self.tally = Tally(recipe.accumulate)
        self.optimizers: dict[str, Optimizer] = {}
        self._parameters: dict[str, list[nn.Parameter]] = {}
        self._mode = ""
        self.curve: list[dict[str, float | None]] = []
        self._losses: list[Tensor] = []
        for verb in VERBS:
            setattr(self, verb, self._chain(verb))
        for layer in self.layers:  # innermost first: outer layers see what inner ones built
            layer.setup(self)

    def train(self, after_epoch: Callable[[Run], None] | None = None) -> None:
        """Raises Diverged at the end of the epoch in which the loss stops being finite."""
        for number in range(1, self.epochs + 1):
            self.train_epoch(number)
            if after_epoch:
                after_epoch(self)

    def train_epoch(self, number: int) -> None:
        self.epoch_number, self.step_in_epoch, steps = number, 0, self.tally.steps
        torch.manual_seed(stable_seed(self.seed, "model", self.epoch_number))  # the model's own dropout
        self.epoch(self.data)
        self.tally.epochs_trained += self.tally.steps > steps
        self._close_epoch()

    # ── the verbs' defaults ───────────────────────────────────────────────────────────────────────────────────

    def _epoch(self, data: Data) -> None:
        for batch in self.batches(data):
            self.step(batch)

    def _batches(self, data: Data) -> Iterable[Batch]:
        return self.load(data, data.cut(self.order(data), self.recipe.batch))

    def _step(self, batch: Batch) -> None:
        self.gradients(batch)
        self.update(batch.part)

    def _gradients(self, batch: Batch) -> Forward:
        for parameter in self.parameters(batch.part):
            parameter.grad = None
        forwards, pieces = [], split(batch, self.recipe.accumulate)
        for piece in pieces:
            forward = self.forward(piece)
            loss = forward.weighted(piece.weights)
            self.backward(loss if piece is batch else loss * (len(piece) / len(batch)))
            forwards.append(forward)
        whole = join(forwards, [len(piece) for piece in pieces])
        self.add_loss(whole.weighted(batch.weights))  # of drawn samples too, the loss of the set
        return whole

    def _update(self, part: str) -> None:
        optimizer = self.optimizer(part)
        for group in optimizer.param_groups:
            group["lr"] = self.lr(part)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters(part), self.recipe.clip)
        optimizer.step()

    # ── the onion ─────────────────────────────────────────────────────────────────────────────────────────────

    def _chain(self, verb: str) -> Callable[..., Any]:
        chain = getattr(self, f"_{verb}")
        for layer in self.layers:
            if overrides(layer, verb):
                chain = partial(self._enter, (layer.name, verb), partial(getattr(layer, verb), self), chain)
        return partial(getattr(self, f"_whole_{verb}"), chain) if verb in ("step", "update") else chain

    def _enter(self, key: tuple[str, str], call: Callable[..., Any], inner: Callable[..., Any], argument: Any) -> Any:
        self.tally.entered[key] += 1
        return call(argument, inner)

    def _whole_step(self, chain: Callable[[Batch], None], batch: Batch) -> None:
        self.skip_update = False
        self.tally.begin_step()
        chain(batch)
        self.tally.end_step(len(batch))
        self.step_in_epoch += 1

    def _whole_update(self, chain: Callable[[str], None], part: str) -> None:
        if not self.skip_update:
            self.tally.updates += 1
            chain(part)

    def _close_epoch(self) -> None:
        loss = torch.stack(self._losses).mean().item() if self._losses else None
        self._losses.clear()
        self.curve.append({"epoch": self.epoch_number, "loss": loss})
        if loss is not None and not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} in epoch {self.epoch_number}")

    # ── what layers may use: interface.py ──────────────────────────────────────────────────────────────────────────

    @property
    def layers(self) -> list[Method]:
        """Innermost first."""
        return [self.task, *reversed(self.methods)]

    def add_loss(self, loss: Tensor) -> None:
        """A batch's loss (), for the curve; whoever owns `gradients` says it too. Read when the epoch ends."""
        self._losses.append(loss.detach())

    def forward(self, batch: Batch, mode: str = "train", grad: bool = True) -> Forward:
        """The only way to a forward pass. mode: train | eval | frozen_stats (batch statistics, running ones kept)."""
        self.tally.forwards += 1
        self.tally.samples_forward += len(batch)
        self.set_mode(mode)
        with torch.set_grad_enabled(grad), self.recipe.autocast(self.device):
            return self.task.forward(self, batch)

    def backward(self, loss: Tensor) -> None:
        """The only way to a backward pass; adds to `.grad`."""
        self.tally.backwards += 1
        loss.backward()

    def rng(self, name: str, *key: Any, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator seeded by a stable hash of (seed, name, key), so that no layer's draws move another's."""
        return torch.Generator(device).manual_seed(stable_seed(self.seed, name, *key))

    def order(self, data: Data) -> Tensor:
        """Positions of all samples, as plain training takes them in this epoch."""
        return torch.randperm(len(data), generator=self.rng("order", self.epoch_number))

    def load(self, data: Data, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """Batches of these positions, augmented as plain training augments this epoch's. Tallies the wait for them."""
        choosing = Waiting(batches)  # no wait for data: a method may draw the positions when they are asked for
        loading = Waiting(data.load(choosing, partial(self.rng, "augment", self.epoch_number)))
        for batch in loading:
            self.tally.data_wait_ns += loading.taken_ns - choosing.taken_ns
            loading.taken_ns = choosing.taken_ns = 0
            yield batch

    def lr(self, part: str = "main") -> float:
        """The learning rate now: a pure function of progress, so skipped epochs advance it."""
        within = min(1.0, self.step_in_epoch / self.data.steps(self.recipe.batch))
        return self.recipe.lr_at((self.epoch_number - 1 + within) / self.epochs)

    def parameters(self, part: str = "main") -> list[nn.Parameter]:
        if part not in self._parameters:
            self._parameters[part] = [p for p in self.task.parameters(self, part) if p.requires_grad]
        return self._parameters[part]

    def optimizer(self, part: str = "main") -> Optimizer:
        """Built on first use, so that a forward-only method builds none."""
        if part not in self.optimizers:
            chain: Callable[[list[nn.Parameter]], Optimizer] = self.recipe.build_optimizer
            for layer in self.layers:
                chain = partial(layer.optimizer, self, inner=chain)
            self.optimizers[part] = chain(self.parameters(part))
        return self.optimizers[part]

    def set_mode(self, mode: str) -> None:
        if mode == self._mode:  # walking the modules costs more than a small step
            return
        self._mode = mode
        self.model.train(mode != "eval")
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.track_running_stats = mode != "frozen_stats"

    def evaluate(self, data: Data) -> dict[str, float]:
        """Quality as the task defines it, inside every layer's `resting`."""
        with ExitStack() as stack, torch.no_grad(), self.recipe.autocast(self.device):
            for layer in self.methods:
                stack.enter_context(layer.resting(self))
            self.set_mode("eval")
            return self.task.evaluate(self, data)

    def finish(self) -> None:
        """Leave a plain model behind, outermost layer first."""
        for layer in reversed(self.layers):
            layer.finish(self)

    def dead_layers(self) -> list[str]:
        """Overrides that were never entered, as "method.verb": such a trial proves nothing about its method."""
        entered = self.tally.entered
        return [
            f"{m.name}.{verb}"
            for m in self.methods
            for verb in VERBS
            if overrides(m, verb) and not entered[m.name, verb]
        ]


class Waiting(Iterator[Item]):
    """`items`, and the nanoseconds that asking for them took."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self.taken_ns = 0

    def __next__(self) -> Item:
        asked = time.perf_counter_ns()
        try:
            return next(self._items)
        finally:
            self.taken_ns += time.perf_counter_ns() - asked
