"""early_stopping: end training when the loss on held-out samples has not fallen for some epochs.

A share of the training set, drawn once, is never trained on; after each epoch the mean loss on it is taken in
evaluation mode. After `patience` epochs without a new minimum training ends, and the weights of the best epoch are put
back. The test set is never looked at.

Source: Prechelt 1998, Early stopping – but when?, criterion UP with strips of one epoch. Promises the epochs that would
have brought nothing; how many that are nobody knows before. Costs a forward pass over the held-out samples per epoch,
the samples that are not trained on, and, with a decaying learning rate, the late epochs in which it is small: the
schedule stays that of the planned epochs. Composes with everything whose epoch is a pass over the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from energybench import Data, Method, TrainingRun, Work
from energybench.algorithms.passes_taken import PassesTaken


@dataclass
class EarlyStopping(Method):
    """holdout: share of the training samples that are held out, one at least

    patience: epochs without a new minimum after which training ends
    least:    by how much a loss must lie below the minimum to be a new one, in its unit
    restore:  put the weights of the best epoch back
    """

    by_epoch: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    example: ClassVar[Mapping[str, Any]] = {"patience": 2}

    holdout: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    patience: Annotated[int, Field(ge=1)] = 3
    least: Annotated[float, Field(ge=0)] = 0.0
    restore: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.holdout <= 0.5:
            raise ValueError(f"holdout is a share of the samples in (0, 0.5], not {self.holdout}")
        if self.patience < 1:
            raise ValueError(f"patience is 1 epoch or more, not {self.patience}")
        if not 0 <= self.least < math.inf:
            raise ValueError(f"least is a difference of losses ≥ 0, not {self.least}")

    def incompatible_devices(self, devices: int) -> str | None:
        return "each rank would stop by the loss of its own share of the held-out samples"

    def incompatible_run(self, run: TrainingRun) -> str | None:
        if "epoch" in run.task.replaces:
            return "the task makes its own rounds, and a held-out sample would be trained on in them"
        if run.task.batch_parts:
            return f"the loss is one of a batch with {', '.join(run.task.batch_parts)} beside it, which no sample has"
        if len(run.task.parts) > 1:
            return f"there is a loss for each of {', '.join(run.task.parts)}, and none to stop by"
        return None if len(run.data) > 1 else "of one sample none can be held out"

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        order = torch.randperm(len(run.data), generator=run.rng(self.name, "holdout"))
        held = max(1, round(self.holdout * len(run.data)))
        self._held = run.data.subset(order[:held].sort().values)
        self._rest: tuple[Data, Data] | None = None
        self._losses: list[float] = []
        self._best: dict[str, Tensor] = {}
        self._best_epoch, self._minimum = 0, math.inf
        self._passes = PassesTaken(run)

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        if self._rest is None or self._rest[0] is not data:
            keep = ~torch.isin(data.indices, self._held.indices)
            self._rest = (data, data.subset(keep.nonzero().flatten()))
        before = run.tally.steps
        if len(self._rest[1]):  # a layer further out may have left held-out samples alone
            inner(self._rest[1])
        if run.tally.steps > before:  # else a layer further in has skipped the epoch
            self._passes.replaced(data.sizes(run.recipe.batch), self._rest[1].sizes(run.recipe.batch))
        self.acted = True
        loss = self._look(run)
        self._losses.append(loss)
        if math.isnan(loss):  # every number lies below it
            loss = math.inf
        if not self._best_epoch or loss < self._minimum - self.least:
            self._best_epoch, self._minimum = len(self._losses), loss
            if self.restore:
                self._best = {name: value.clone() for name, value in run.model.state_dict().items()}
        elif len(self._losses) - self._best_epoch >= self.patience:
            run.stop_after_epoch(
                f"the loss on held-out samples has not fallen below {self._minimum:.4g}, of epoch {self._best_epoch}, "
                f"for {self.patience} epochs"
            )
        if not run.continues and self._best and self._best_epoch < len(self._losses):
            run.model.load_state_dict(self._best)
        if not run.continues:
            self._best = {}

    def _look(self, run: TrainingRun) -> float:
        """The mean loss on the held-out samples."""
        total = torch.zeros((), dtype=torch.float64, device=run.device)
        for batch in self._held.in_order():
            total += run.forward(batch, "eval", grad=False).value.double() * len(batch)
            self._passes.looked.add(len(batch))
        return total.item() / len(self._held)

    def estimate(self, work: Work) -> Work:
        """Passes over what is not held out, and a forward over what is, per epoch."""
        return self._passes.instead(work).add(*self._passes.looks(work))

    def diagnostics(self) -> dict[str, Any]:
        return {
            "held_out": len(self._held),
            "losses": [float(f"{loss:.6g}") if math.isfinite(loss) else None for loss in self._losses],
            "best_epoch": self._best_epoch,
            "restored": self.restore and self._best_epoch < len(self._losses),
        }
