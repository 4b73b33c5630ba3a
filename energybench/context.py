"""What the layers of a run may use: counted passes, a random stream of one's own, the learning rate, the optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from energybench.method import Batch, Forward, Method, Task
from energybench.recipe import Recipe
from energybench.seeds import stable_seed
from energybench.tally import Tally
from energybench.workloads.data import Data

if TYPE_CHECKING:
    from energybench.loop import Run

Item = TypeVar("Item")


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


class Context:
    """A model, its data, its recipe and the stack around it; `Run` adds the verbs."""

    def __init__(self, task: Task, methods: Sequence[Method], recipe: Recipe, model: nn.Module, data: Data,
                 *, seed: int, device: torch.device, epochs: int | None = None) -> None:  # fmt: skip
        self.task, self.methods, self.recipe = task, list(methods), recipe
        self.model, self.data, self.seed, self.device = model, data, seed, device
        self.epochs = epochs or recipe.epochs
        self.epoch_number, self.step_in_epoch = 1, 0  # epochs are counted from 1, steps within one from 0
        self.skip_update = False  # set inside a step: its update does not happen
        self.tally = Tally(recipe.accumulate)
        self._optimizers: dict[str, Optimizer] = {}
        self._parameters: dict[str, list[nn.Parameter]] = {}
        self._mode = ""

    @property
    def layers(self) -> list[Method]:
        """Innermost first."""
        return [self.task, *reversed(self.methods)]

    def forward(self, batch: Batch, mode: str = "train", grad: bool = True) -> Forward:
        """The only way to a forward pass. mode: train | eval | frozen_stats (batch statistics, running ones kept)."""
        self.tally.forwards += 1
        self.tally.samples_forward += len(batch)
        self.set_mode(mode)
        with torch.set_grad_enabled(grad), self.recipe.autocast(self.device):
            return self.task.forward(self._run, batch)

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
        choosing = Waiting(
            batches
        )  # no wait for data: a method may draw the positions when they are asked for
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
            self._parameters[part] = [p for p in self.task.parameters(self._run, part) if p.requires_grad]
        return self._parameters[part]

    def optimizer(self, part: str = "main") -> Optimizer:
        """Built on first use, so that a forward-only method builds none."""
        if part not in self._optimizers:
            chain: Callable[[list[nn.Parameter]], Optimizer] = self.recipe.build_optimizer
            for layer in self.layers:
                chain = partial(layer.optimizer, self._run, inner=chain)
            self._optimizers[part] = chain(self.parameters(part))
        return self._optimizers[part]

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
                stack.enter_context(layer.resting(self._run))
            self.set_mode("eval")
            return self.task.evaluate(self._run, data)

    def finish(self) -> None:
        """Leave a plain model behind, outermost layer first."""
        for layer in reversed(self.layers):
            layer.finish(self._run)

    @property
    def _run(self) -> Run:
        return self  # type: ignore[return-value]  # a Context is only ever built as a Run
