"""What a layer may use of a run: the other half of the contract of a method, whose hooks stand in `method.py`.

Whoever writes a method or a task reads this file. `run.py` implements it; nothing else of a run is promised. B is the
number of samples of a batch, N that of a data set; tensors lie on `run.device`.

Who tallies what: `forward` and `backward` count themselves, a step's update is counted around the hook `update`. A pass
that goes past them, by `run.model(...)` or `loss.backward()`, is metered and missing in the tally, by which kinds of
steps are told apart.
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
    from energybench.train.passes import Passes
    from energybench.train.recipe import Recipe
    from energybench.train.tally import Tally


class LayerInterface(Protocol):
    """What a method may know of another layer: its name, which keys its random streams and diagnostics."""

    name: str


class TaskInterface(Protocol):
    """What a method may ask of the task that it trains."""

    name: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the groups of parameters that have an optimizer each: ("main",) or more."""

    @property
    def batch_parts(self) -> tuple[str, ...]:
        """Parts of the data of which every batch has as many samples in `also`."""

    @property
    def replaces(self) -> frozenset[str]:
        """Hooks that it owns outright: with "epoch" it makes its own rounds, of its own choice of data."""

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        """One forward pass of the model as it stands, without tally, mode, autocast and contexts: methods call
        `run.forward` instead.

        Returns:
            The mean loss (), the losses (B,) if the task has them, and the model's outputs.
        """

    def losses(self, run: TrainingRun, outputs: Any, batch: Batch) -> Tensor:
        """The loss of each sample from a forward pass's outputs.

        Args:
            outputs: as `Forward.outputs` has them; they may be detached and require a gradient.

        Returns:
            (B,), differentiable in the outputs.

        Raises:
            NotImplementedError: the task has no losses per sample.
        """

    def output_gradient(self, run: TrainingRun, outputs: Any, batch: Batch) -> Tensor | None:
        """∂ℓᵢ/∂outputᵢ (B, ...), shaped like the outputs, where it has a closed form, else None."""

    def passes(self, run: TrainingRun) -> Passes | None:
        """What this epoch of plain training is where it is no single pass over the training set, else None."""

    def convexity(self, run: TrainingRun) -> Convexity | None:
        """Curvature and minimum of the training loss where they are known, else None."""


class TrainingRun(Protocol):
    """One training run, as its layers see it."""

    model: nn.Module  # on `device`; layers may swap modules in it in `setup`, and swap them back in `finish`
    data: Data  # the training set; its `facts` say what the targets are, its `parts` what else the data has
    recipe: Recipe  # the suite's [train] table: batch, accumulate, lr, momentum, decay, clip, precision, ...
    device: torch.device
    seed: int  # of this trial; draw from `rng`, which is seeded by it
    epochs: int  # planned for this run
    epoch_number: int  # of the current epoch, counted from 1
    step_in_epoch: int  # steps that this epoch has finished, so counted from 0
    steps_per_epoch: int  # planned for the current epoch: one pass, or as a layer's `steps_per_epoch` says
    skip_update: bool  # set inside a step: its update does not happen; False again when the next step begins
    tally: Tally  # passes, updates, steps and marks so far: `tally.mark(self, "kind")`, `tally.steps`, `tally.passes()`
    optimizers: dict[str, Optimizer]  # those built so far, by part; `optimizer` builds them
    curve: list[dict[str, float | None]]  # one point {"epoch", "loss", ...} for each epoch that has ended

    @property
    def task(self) -> TaskInterface:
        """The innermost layer."""

    @property
    def methods(self) -> Sequence[LayerInterface]:
        """The stack, outermost first, without the task."""

    @property
    def layers(self) -> Sequence[LayerInterface]:
        """All layers, innermost first: the task, then the methods from the last to the first."""

    @property
    def epochs_ended(self) -> int:
        """Epochs that are over, skipped ones included."""

    @property
    def continues(self) -> bool:
        """Whether an epoch follows the current one: none does after the last, or after `stop_after_epoch`."""

    # ── the hooks, through the whole stack ────────────────────────────────────────────────────────────────────

    def epoch(self, data: Data) -> None:
        """One pass over `data` through the whole stack."""

    def batches(self, data: Data) -> Iterable[Batch]:
        """The batches of one pass over `data`, as the whole stack chooses them.

        Args:
            data: the training set or a part of it (`data.subset`), such as a federated client's.
        """

    def step(self, batch: Batch) -> None:
        """One update through the whole stack, tallied as one step of `len(batch)` samples. Not to be nested."""

    def gradients(self, batch: Batch) -> Forward:
        """Fill `.grad` through the whole stack.

        Returns:
            The forward pass of the whole batch.
        """

    def update(self, part: str) -> None:
        """Move the parameters of `part` through the whole stack; nothing while `skip_update` is set."""

    # ── passes ────────────────────────────────────────────────────────────────────────────────────────────────

    def forward(self, batch: Batch, mode: str = "train", grad: bool = True) -> Forward:
        """The only way to a forward pass: puts the model into `mode`, tallies the pass and its B samples, and runs the
        task's forward in the recipe's autocast and in every layer's `forward_context`.

        Args:
            mode: "train"; "eval": running statistics, no dropout; "frozen_stats": as "train", but BatchNorm's running
                statistics stay as they are.
            grad: whether a graph is kept for `backward`.

        Returns:
            The mean loss (), the losses (B,) if the task has them, and the model's outputs.
        """

    def backward(self, loss: Tensor) -> None:
        """The only way to a backward pass from a scalar loss (), tallied; adds to `.grad`, which is not zeroed here.

        Under `precision = "fp16"` the loss is scaled on its way and `.grad` is not: it holds the gradient itself. An
        update of which a gradient overflowed is left out by the run, with no call of `update`.
        """

    def add_loss(self, loss: Tensor) -> None:
        """Enter one batch's mean loss into the epoch's point of the curve, once a step. The default `gradients` does
        it; whoever replaces `gradients` does it too. Kept on the device until the epoch ends.

        Args:
            loss: (), detached here; in the unit of the task's loss.
        """

    @property
    def loss_scale(self) -> float:
        """By which `backward` multiplies the loss under `precision = "fp16"`, else 1: for gradients of one's own."""

    # ── data ──────────────────────────────────────────────────────────────────────────────────────────────────

    def rng(self, name: str, *key: Any, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator, seeded by a stable hash of (seed, name, key): no layer's draws move another's.

        Args:
            name: the method's own, `self.name`.
            key: what else tells the stream apart: a word, `run.epoch_number`.
        """

    def order(self, data: Data) -> Tensor:
        """Positions of all samples (N,), on the CPU, as plain training takes them in this pass over `data`. Each pass
        of an epoch has an order of its own, the first plain training's; within a pass it is always the same.
        """

    def load(self, data: Data, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """Batches of these positions, augmented as plain training augments this pass's. The wait is tallied.

        Args:
            data: the training set or a part of it.
            batches: positions (B,) in `data`, one tensor a batch; a generator is asked when the batch is loaded, which
                may be a few steps ahead where worker processes decode files.
        """

    # ── several devices ───────────────────────────────────────────────────────────────────────────────────────

    # A batch of a run on several devices holds this rank's samples: `len(batch)` counts those, `batch.samples` those of
    # the whole batch, and `batch.own_rows(whole)` takes its rows of a tensor that has a row for each of the latter.
    world: int  # ranks that train together; 1: this process alone
    rank_key: tuple[int, ...]  # for `rng(name, ..., *run.rank_key)` of what is drawn for each sample; () in the first

    def all_rows(self, own: Tensor, batch: Batch) -> Tensor:
        """What each rank has of its samples of a batch, put together: to be called by all of them in the same step.

        Args:
            own: (len(batch), ...), without gradient

        Returns:
            (batch.samples, ...), in the order of the whole batch, the same on every rank; alone `own` itself.
        """

    def all_mean(self, value: Tensor, batch: Batch) -> Tensor:
        """The mean over a whole batch from each rank's mean () over its own samples; likewise."""

    # ── the optimizer ─────────────────────────────────────────────────────────────────────────────────────────

    def lr(self, part: str = "main") -> float:
        """The learning rate now: a pure function of progress, so skipped epochs advance it; the same in all steps of an
        epoch where the task says so (`lr_per_epoch`)."""

    def lr_multiplier(self, parameter: nn.Parameter) -> float:
        """By how much a parameter's learning rate is another than `lr`, as the recipe's `lr_multipliers` say; else 1.

        The default `update` heeds it. Whoever replaces `update` does so too, or the run ends with E325 where the recipe
        has some.
        """

    def parameters(self, part: str = "main") -> list[nn.Parameter]:
        """The parameters of `part` that learn, or did so earlier in this run: one that is frozen later stays in the
        list with `requires_grad` off, one that is released later is added at its end, and so is, when the next epoch
        begins, one that the model did not have when the part was listed. The list is the run's own: ask for it anew.
        """

    def optimizer(self, part: str = "main") -> Optimizer:
        """The optimizer of `part`, built on first use through every layer's `optimizer`: a method that never asks for
        it builds none. A parameter that is released later is added to it.
        """

    # ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────

    def stop_after_epoch(self, reason: str) -> None:
        """End training when this epoch is over: curve, tally, estimate and record cover the epochs that ran. The
        schedule of the learning rate stays that of the planned epochs. Its matched control trains as much.

        Args:
            reason: one sentence, kept in the record; the first one that is given holds.
        """

    def set_mode(self, mode: str) -> None:
        """Put the model into a mode of `forward`; `forward` does so itself."""

    def evaluate(self, data: Data) -> dict[str, float]:
        """Quality on `data` as the task defines it, by name, inside every layer's `eval_context`, without grad. Not
        tallied; inside a hook its time and energy are the method's.
        """
