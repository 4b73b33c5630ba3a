"""The training loop: five verbs, and an onion of layers around each.

    run.train()
    └─ for each epoch: epoch(data)        one pass, or one round
       ├─ batches(data)                   which samples, with what weights
       └─ step(batch)                     one update
          ├─ gradients(batch)             fill .grad, return the Forward
          └─ update(part)                 move the parameters

Each verb is a chain: methods outermost first, then the Task, then the default written here; `inner` in a method is
the rest of its chain. Nothing synchronises inside a step: losses stay on the device until the epoch ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from energybench.context import Context
from energybench.method import VERBS, Batch, Forward, overrides
from energybench.seeds import stable_seed
from energybench.trees import join, split
from energybench.workloads.data import Data


class Diverged(Exception):
    """The loss is no longer a finite number."""


class Run(Context):
    """One training run: a task, a stack of methods (outermost first), a model, data and a recipe."""

    epoch: Callable[[Data], None]
    batches: Callable[[Data], Iterable[Batch]]
    step: Callable[[Batch], None]
    gradients: Callable[[Batch], Forward]
    update: Callable[[str], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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

    def add_loss(self, loss: Tensor) -> None:
        """A batch's loss (), for the curve; whoever owns `gradients` says it too. Read when the epoch ends."""
        self._losses.append(loss.detach())

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

    def _enter(
        self, key: tuple[str, str], call: Callable[..., Any], inner: Callable[..., Any], argument: Any
    ) -> Any:
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

    def dead_layers(self) -> list[str]:
        """Overrides that were never entered, as "method.verb": such a trial proves nothing about its method."""
        entered = self.tally.entered
        return [f"{m.name}.{verb}" for m in self.methods for verb in VERBS
                if overrides(m, verb) and not entered[m.name, verb]]  # fmt: skip
