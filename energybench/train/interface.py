"""What a layer may use of a run: the other half of the contract of a method, whose hooks stand in `method.py`.

Whoever writes a method or a task reads this file. `run.py` implements it; nothing else of a run is promised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from energybench.train.batch import Batch, Forward
from energybench.train.convexity import Convexity

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from energybench.train.data import Data
    from energybench.train.recipe import Recipe
    from energybench.train.tally import Tally


class TaskInterface(Protocol):
    """What a method may ask of the task that it trains."""

    name: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the groups of parameters that have an optimizer each: ("main",) or more."""

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        """One forward pass, untallied: methods call `run.forward`."""

    def losses(self, run: TrainingRun, outputs: Any, batch: Batch) -> Tensor:
        """The per-sample losses (B,) from a forward pass's outputs. Raises NotImplementedError where there are none."""

    def output_gradient(self, run: TrainingRun, outputs: Any, batch: Batch) -> Tensor | None:
        """∂ℓᵢ/∂outputᵢ (B, ...) where it has a closed form, else None."""

    def convexity(self, run: TrainingRun) -> Convexity | None:
        """Curvature and minimum of the training loss where they are known, else None."""


class TrainingRun(Protocol):
    """One training run, as its layers see it."""

    model: nn.Module
    data: Data  # the training set
    recipe: Recipe
    device: torch.device
    seed: int
    epochs: int  # passes that this run makes: `kept_epochs` may have lowered it
    epoch_number: int  # counted from 1
    step_in_epoch: int  # counted from 0
    skip_update: bool  # set inside a step: its update does not happen
    tally: Tally  # passes and marks; `tally.mark(self, "kind")` says that a method acted in this step
    optimizers: dict[str, Optimizer]  # those built so far, by part
    curve: list[dict[str, float | None]]  # one point for each epoch that has ended

    @property
    def task(self) -> TaskInterface:
        """The innermost layer."""

    def epoch(self, data: Data) -> None:
        """One pass over `data` through the whole stack."""

    def batches(self, data: Data) -> Iterable[Batch]:
        """The batches of one pass over `data`, as the whole stack chooses them."""

    def step(self, batch: Batch) -> None:
        """One update through the whole stack."""

    def gradients(self, batch: Batch) -> Forward:
        """Fill `.grad` through the whole stack."""

    def update(self, part: str) -> None:
        """Move the parameters of `part` through the whole stack; nothing while `skip_update` is set."""

    def forward(self, batch: Batch, mode: str = "train", grad: bool = True) -> Forward:
        """The only way to a forward pass. mode: train | eval | frozen_stats (batch statistics, running ones kept)."""

    def backward(self, loss: Tensor) -> None:
        """The only way to a backward pass from a scalar loss (); adds to `.grad`."""

    def add_loss(self, loss: Tensor) -> None:
        """A batch's mean loss (), for the curve; whoever replaces `gradients` says it too."""

    def rng(self, name: str, *key: Any, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator seeded by a stable hash of (seed, name, key): no layer's draws move another's."""

    def order(self, data: Data) -> Tensor:
        """Positions of all samples (N,), as plain training takes them in this epoch."""

    def load(self, data: Data, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """Batches of these positions, augmented as plain training augments this epoch's."""

    def lr(self, part: str = "main") -> float:
        """The learning rate now: a pure function of progress, so skipped epochs advance it."""

    def parameters(self, part: str = "main") -> list[nn.Parameter]:
        """The parameters of `part` that were trainable when first asked for."""

    def optimizer(self, part: str = "main") -> Optimizer:
        """Built on first use, through every layer's `optimizer`."""

    def set_mode(self, mode: str) -> None:
        """Put the model into a mode of `forward`."""

    def evaluate(self, data: Data) -> dict[str, float]:
        """Quality as the task defines it, inside every layer's `resting`."""

    @property
    def methods(self) -> Sequence[Any]:
        """The stack, outermost first."""
