"""The training loop: five hooks, and a wrapper chain of layers around each.

    run.train()
    └─ for each epoch: epoch(data)        one pass, or one round
       ├─ batches(data)                   which samples, with what weights
       └─ step(batch)                     one update
          ├─ gradients(batch)             fill .grad, return the Forward
          └─ update(part)                 move the parameters

Each hook is a chain: methods outermost first, then the Task, then the default written here; `inner` in a method is
the rest of its chain. Nothing synchronises inside a step: losses stay on the device until the epoch ends. What a layer
may use of a run is stated in `interface.py` and written below the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from energybench.common.errors import UsageError
from energybench.common.hashing import stable_seed
from energybench.train import evaluation
from energybench.train.batch import Batch, Forward
from energybench.train.data import Data, Random, Waiting
from energybench.train.fingerprint import SamplesSeen
from energybench.train.graph_hooks import on_backward
from energybench.train.learning_parameters import LearningParameters
from energybench.train.loss_scaling import LossScaler
from energybench.train.method import HOOKS, Method, Task, input_chain, overrides
from energybench.train.method_check import check_method
from energybench.train.one_process import OneProcess
from energybench.train.parameter_groups import KEY, Multipliers, deaf
from energybench.train.part_optimizers import PartOptimizers
from energybench.train.part_streams import PartStreams
from energybench.train.pass_keys import PassKeys
from energybench.train.plain_epochs import plain_samples, plain_steps
from energybench.train.recipe import Recipe
from energybench.train.refusals import refuse_run
from energybench.train.results import RESULTS, call_checked, check_losses, checked
from energybench.train.tally import Tally
from energybench.train.trees import join, split

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Diverged(Exception):
    """The loss is no longer a finite number."""


class Run(OneProcess):
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
        self.task, self.methods = task, list(methods)
        self.recipe = recipe = recipe.in_precision(next((m.trains_in for m in methods if m.trains_in), None))
        self.model, self.seed, self.device = model, seed, device
        self.epochs = epochs or recipe.epochs
        self.schedule_epochs: float = self.epochs  # over which the learning rate moves
        self.epoch_number, self.step_in_epoch = 1, 0  # epochs are counted from 1, steps within one from 0
        self.skip_update = False  # set inside a step: its update does not happen
        self.tally, self._samples_seen = Tally(recipe.accumulate), SamplesSeen()
        self.curve: list[dict[str, float | None]] = []
        self.stop_reason: str | None = None  # of a run that ended before its last planned epoch
        self._multipliers = Multipliers(model, recipe.lr_multipliers)  # by the names before methods
        self._optimizers = PartOptimizers(self, self.layers, self._multipliers)
        self.optimizers = self._optimizers.built
        joined, updates = self._optimizers.join, lambda: self.tally.updates
        self._learning = LearningParameters(partial(task.parameters, self), joined, updates)
        self.loss_scaler = LossScaler(device) if recipe.precision == "fp16" else None
        self._mode = ""
        self._losses: list[Tensor] = []
        if problems := [problem for layer in self.layers for problem in check_method(layer, provided=task.provides)]:
            raise UsageError(problems)
        self.epoch = self._chain("epoch", self._epoch)
        self.batches = partial(self._whole_pass, self._chain("batches", self._batches))
        self.step = partial(self._whole_step, self._chain("step", self._step))
        self.gradients = self._chain("gradients", self._gradients)
        if any("gradients" in layer.replaces for layer in self.layers):
            self.gradients = partial(self._from_zero, self.gradients)
        self.update = partial(self._whole_update, self._chain("update", self._update))
        self._forward_layers = [layer for layer in reversed(self.layers) if overrides(layer, "forward_context")]
        self._lr_layers = [layer for layer in self.layers if overrides(layer, "lr_factor")]
        self._steps_layers = [layer for layer in reversed(self.layers) if overrides(layer, "steps_per_epoch")]
        self._prepare = input_chain(self, self.layers)
        self.data = self.prepared(data.zipped(task.batch_parts))
        self._part_streams = PartStreams(self.rng)
        self._pass_keys = PassKeys(self.data)
        self.epochs_with_steps: list[int] = []  # their numbers
        self._losses_unchecked = bool(task.batch_parts)
        self.steps_per_epoch, self._counts_passes = data.steps(recipe.batch), False
        if problems := refuse_run([layer for layer in self.layers if overrides(layer, "incompatible_run")], self, "it"):
            raise UsageError(problems)
        for layer in self.layers:  # innermost first: outer layers see what inner ones built
            layer.setup(self)
        self._plan_epoch()

    def train(self, after_epoch: Callable[[Run], None] | None = None) -> None:
        """Raises Diverged at the end of the epoch in which the loss stops being finite."""
        for number in range(1, self.epochs + 1):
            self.train_epoch(number)
            if after_epoch:
                after_epoch(self)
            if not self.continues:
                return

    def train_epoch(self, number: int) -> None:
        self.epoch_number, self.step_in_epoch = number, 0
        self._plan_epoch()
        steps, samples = self.tally.steps, self.tally.samples
        torch.manual_seed(stable_seed(self.seed, "model", number, *self.rank_key))  # the model's own dropout
        self._train_epoch()
        if self.tally.steps > steps:
            self.epochs_with_steps.append(number)
        if self._counts_passes:
            self.tally.epochs_trained += (self.tally.samples - samples) / plain_samples(self)
        else:
            self.tally.epochs_trained += self.tally.steps > steps
        self._close_epoch()

    def _train_epoch(self) -> None:
        self.epoch(self.data)

    # ── the hooks' defaults ───────────────────────────────────────────────────────────────────────────────────

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
            group["lr"] = self.lr(part) * group.get(KEY, 1.0)
        for parameter in (parameters := self.parameters(part)):
            if not parameter.requires_grad:  # frozen since its gradient was computed
                parameter.grad = None
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        optimizer.step()

    # ── the wrapper chain ─────────────────────────────────────────────────────────────────────────────────────

    def _chain(self, hook: str, default: Callable[[Argument], Result]) -> Callable[[Argument], Result]:
        """Every layer's hook around those further in, and around the default."""
        chain = default
        for layer in self.layers:
            if overrides(layer, hook):
                call = partial(getattr(layer, hook), self)
                if hook in RESULTS:
                    call = partial(call_checked, (layer.name, hook), call)
                chain = partial(self._enter, (layer.name, hook), call, chain)
        return chain

    def _enter(self, key: tuple[str, str], call: Callable[..., Any], inner: Callable[..., Any], argument: Any) -> Any:
        self.tally.entered[key] += 1
        return call(argument, inner)

    def _whole_pass(self, chain: Callable[[Data], Iterable[Batch]], data: Data) -> Iterable[Batch]:
        self._pass_keys.begin(self.epoch_number, data)
        return chain(data)

    def _whole_step(self, chain: Callable[[Batch], None], batch: Batch) -> None:
        self.skip_update = False
        if self.loss_scaler:
            self.loss_scaler.begin_step()
        self.tally.begin_step()
        chain(batch)
        self.tally.end_step(batch.samples)
        self.step_in_epoch += 1

    def _whole_update(self, chain: Callable[[str], None], part: str) -> None:
        if self.skip_update:
            return
        if self.loss_scaler and self.loss_scaler.leaves_out(self.epoch_number):
            self.tally.updates_skipped += 1
            return
        self.tally.updates += 1
        chain(part)
        if self._multipliers.unheard:
            raise deaf(self.layers)

    def _from_zero(self, chain: Callable[[Batch], Forward], batch: Batch) -> Forward:
        """Where a layer owns `gradients` no default zeroes them: what a step adds to is the same for every method."""
        for parameter in self.parameters(batch.part):
            parameter.grad = None
        return chain(batch)

    def _plan_epoch(self) -> None:
        """How many steps the epoch has, of which the learning rate is a function; plain training's where none says."""
        told = (layer.steps_per_epoch(self) for layer in self._steps_layers)
        planned = next((steps for steps in told if steps is not None), None)
        self._counts_passes = planned is not None
        self.steps_per_epoch = max(1, plain_steps(self) if planned is None else planned)
        self._learning.list_new()

    def _close_epoch(self) -> None:
        losses = torch.stack(self._losses) if self._losses else None
        if losses is not None and self.loss_scaler:
            losses = self.loss_scaler.finite(losses)
        loss = None if losses is None else losses.mean().item()
        self._losses.clear()
        self._samples_seen.close_epoch()
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
        self._samples_seen.add(batch.index)
        self.set_mode(mode)
        with torch.set_grad_enabled(grad), self.recipe.autocast(self.device), ExitStack() as stack:
            for layer in self._forward_layers:
                stack.enter_context(checked(layer.name, "forward_context", layer.forward_context(self, mode)))
            forward = self._task_forward(batch, mode, grad)
        if self._losses_unchecked:
            self._losses_unchecked = False
            check_losses(self.task.name, forward)
        on_backward(forward, self.tally.pass_sizes.add_forward(len(batch)))
        return forward

    def _task_forward(self, batch: Batch, mode: str, grad: bool) -> Forward:
        return self.task.forward(self, batch)

    def backward(self, loss: Tensor) -> None:
        """The only way to a backward pass; adds to `.grad`."""
        self.tally.backwards += 1
        backward: Callable[[], None] = loss.backward
        if self.loss_scaler:
            every = [parameter for part in self.task.parts for parameter in self.parameters(part)]
            backward = partial(self.loss_scaler.backward, loss, every)
        self.tally.pass_sizes.add_backward(backward)

    @property
    def loss_scale(self) -> float:
        """By which `backward` multiplies what it differentiates; `.grad` holds the gradient all the same."""
        return self.loss_scaler.scale if self.loss_scaler else 1.0

    def rng(self, name: str, *key: Any, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator seeded by a stable hash of (seed, name, key), so that no layer's draws move another's."""
        return torch.Generator(device).manual_seed(stable_seed(self.seed, name, *key))

    def order(self, data: Data) -> Tensor:
        """Positions of all samples, as plain training takes them in this pass over them."""
        return torch.randperm(len(data), generator=self.rng("order", *self._pass_keys.order(self.epoch_number, data)))

    def load(self, data: Data, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """Batches of these positions, augmented as plain training augments this pass's. Tallies the wait for them."""
        key, end = self._pass_keys.load(self.epoch_number, data)
        return self._load(data, batches, partial(self.rng, "augment", *key), end)

    def _load(self, data: Data, batches: Iterable[Tensor], random: Random, end: Callable[[], None]) -> Iterator[Batch]:
        choosing = Waiting(batches)  # no wait for data: a method may draw the positions when they are asked for
        loading = Waiting(self._fetch(self.prepared(data), choosing, random))
        try:
            for batch in loading:
                self.tally.data_wait_ns += loading.taken_ns - choosing.taken_ns
                loading.taken_ns = choosing.taken_ns = 0
                yield batch
        finally:
            end()

    def _fetch(self, data: Data, batches: Iterable[Tensor], random: Random) -> Iterator[Batch]:
        return data.load(batches, random, self._part_streams)

    def lr(self, part: str = "main") -> float:
        """The learning rate now: a pure function of progress, so skipped epochs advance it."""
        within = 0.0 if self.task.lr_per_epoch else min(1.0, self.step_in_epoch / self.steps_per_epoch)
        rate = self.recipe.lr_at(min(1.0, (self.epoch_number - 1 + within) / self.schedule_epochs))
        return rate * math.prod(layer.lr_factor(self) for layer in self._lr_layers)

    def lr_multiplier(self, parameter: nn.Parameter) -> float:
        """What a parameter's learning rate is of `lr`: 1 where no pattern of the recipe's `lr_multipliers` fits it."""
        return self._multipliers.of(parameter)

    def parameters(self, part: str = "main") -> list[nn.Parameter]:
        """Those that learn or have learned: what is frozen later stays, what is released later is added at the end."""
        return self._learning.of(part)

    def untrained(self) -> dict[str, str]:
        """Names of parameters that got a gradient and stood still, each with the reason: asked when a run is over."""
        return self._learning.untrained(self.model, self.task.parts)

    def optimizer(self, part: str = "main") -> Optimizer:
        """Built on first use, so that a forward-only method builds none."""
        return self._optimizers.of(part, self.parameters(part))

    def set_mode(self, mode: str) -> None:
        if mode == self._mode:  # walking the modules costs more than a small step
            return
        self._mode = mode
        self.model.train(mode != "eval")
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.track_running_stats = mode != "frozen_stats"

    def evaluate(self, data: Data) -> dict[str, float]:
        return evaluation.evaluate(self, self.methods, self.task.evaluate, lambda: data)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Forward passes in here are nobody's: a task may evaluate by `forward`, and training tallies none of it."""
        before = self.tally.forward_counts, self._samples_seen
        self._samples_seen = SamplesSeen()
        try:
            yield
        finally:
            self.tally.forward_counts, self._samples_seen = before

    def prepared(self, data: Data) -> Data:
        """The data with its inputs as the layers want them."""
        return data if self._prepare is None or data.prepare is self._prepare else data.prepared(self._prepare)

    def samples_sha256(self) -> str:
        """Of the numbers of all samples that went forward in the epochs that are over, in order."""
        return self._samples_seen.sha256()

    @property
    def epochs_ended(self) -> int:  # skipped ones included
        return len(self.curve)

    @property
    def epochs_of_work(self) -> float:
        """Of which an estimate is: all that were planned, or those before it was stopped."""
        return self.epochs if self.stop_reason is None else self.epochs_ended

    @property
    def continues(self) -> bool:
        """Whether an epoch follows the current one."""
        return self.stop_reason is None and self.epoch_number < self.epochs

    def stop_after_epoch(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason or "no reason given"

    def finish(self) -> None:
        """Leave a plain model behind, outermost layer first."""
        for layer in reversed(self.layers):
            layer.finish(self)

    def uncalled_overrides(self) -> list[str]:
        """Overrides that were never entered, as "method.hook": such a trial proves nothing about its method."""
        entered = self.tally.entered
        return [
            f"{m.name}.{hook}"
            for m in self.methods
            for hook in HOOKS
            if overrides(m, hook) and not entered[m.name, hook]
        ]
