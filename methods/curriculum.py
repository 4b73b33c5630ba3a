"""curriculum: begin with the samples that the model itself finds easiest, and add harder ones until all are trained on.

After `look_after` plain epochs every sample's loss is taken once, in evaluation mode; the smaller, the easier. From
then on an epoch trains on the share g(p) of the samples, the easiest first, with the linear pacing
g(p) = min(1, start + (1 − start)·p/until) of the progress p over the epochs that are left.

Sources: Bengio et al. 2009; Hacohen & Weinshall 2019, §2 (scoring by the model's own loss, pacing); Platanios et al.
2019, Eq. 4, for linear pacing. Promises fewer samples early with steps = "fewer"; with "same" as many steps as plain
training, so no FLOPs, and better ones. The papers' own controls are order = "hard" and "random". Costs the look, a
forward pass over all samples. Composes with what leaves `epoch` a pass over the data that it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from energybench import Data, Method, TrainingRun, Work
from energybench.algorithms.passes_taken import PassesTaken, samples_of

ORDERS = ("easy", "hard", "random")


@dataclass
class Curriculum(Method):
    """start: share of the samples in the first epoch after the look

    until:      share of the epochs after the look from which on all samples are trained on
    look_after: plain epochs before the look
    order:      "easy" samples first | "hard" | "random": the controls
    steps:      "fewer": an epoch is one pass over its samples | "same": as many samples as plain training's has
    """

    by_epoch: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"forward", "per_sample_loss"})
    example: ClassVar[Mapping[str, Any]] = {"start": 0.5}

    start: Annotated[float, Field(gt=0, le=1)] = 0.3
    until: Annotated[float, Field(gt=0, le=1)] = 0.6
    look_after: Annotated[int, Field(ge=0)] = 1
    order: Literal["easy", "hard", "random"] = "easy"
    steps: Literal["fewer", "same"] = "fewer"

    def __post_init__(self) -> None:
        for name in ("start", "until"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share in (0, 1], not {getattr(self, name)}")
        if self.look_after < 0:
            raise ValueError(f"look_after is 0 epochs or more, not {self.look_after}")
        if self.order not in ORDERS or self.steps not in ("fewer", "same"):
            raise ValueError(f"order is one of {', '.join(ORDERS)}, and steps is fewer or same")

    def incompatible_devices(self, devices: int) -> str | None:
        return "each rank would order the samples by losses of its own"

    def incompatible_run(self, run: TrainingRun) -> str | None:
        if "epoch" in run.task.replaces:
            return "the task makes its own rounds, and would not keep to some of the samples"
        if run.task.batch_parts:
            return f"the loss is one of a batch with {', '.join(run.task.batch_parts)} beside it, which no sample has"
        if len(run.task.parts) > 1:
            return f"the samples have a loss for each of {', '.join(run.task.parts)}, and no one order"
        if run.epochs <= self.look_after:
            return f"the look comes after {self.look_after} epochs, and there are {run.epochs}"
        return None

    def setup(self, run: TrainingRun) -> None:
        self.acted = False if self.start < 1 else None
        self._ranks: Tensor | None = None  # indices of the samples in the whole set, the first to be trained on first
        self._passes = PassesTaken(run)
        self._shares: list[float] = []

    def share(self, epoch: int, epochs: int) -> float:
        """Of the samples, in an epoch counted from 1; progress is 0 in the first one after the look."""
        if epoch <= self.look_after:
            return 1.0
        progress = (epoch - 1 - self.look_after) / (epochs - self.look_after)
        return min(1.0, self.start + (1 - self.start) * progress / self.until)

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        share = self.share(run.epoch_number, run.epochs)
        self._shares.append(share)
        some = data
        if share < 1:
            if self._ranks is None:
                self._ranks = self._look(run)
            self.acted = True
            some = self._first(data, max(1, round(share * len(data))))
            if self.steps == "same":
                some = some.subset(self._repeated(run, len(some), len(data)))
        before = run.tally.steps
        inner(some)
        if run.tally.steps > before:  # else a layer further in has skipped the epoch
            self._passes.replaced(data.sizes(run.recipe.batch), some.sizes(run.recipe.batch))

    def _repeated(self, run: TrainingRun, count: int, wanted: int) -> Tensor:
        """Positions (wanted,) of `count` samples, each as often as any other or once more often, so that an epoch has
        the steps of plain training."""
        whole, left = divmod(wanted, count)
        more = torch.randperm(count, generator=run.rng(self.name, "repeated", run.epoch_number))[:left]
        return torch.cat([torch.arange(count).repeat(whole), more.sort().values])

    def _first(self, data: Data, count: int) -> Data:
        """Of these data the samples that come first, as data of their own, in their old order."""
        assert self._ranks is not None
        place = torch.empty(int(self._ranks.max()) + 1, dtype=torch.long)
        place[self._ranks] = torch.arange(len(self._ranks))
        return data.subset(place[data.indices].argsort()[:count].sort().values)

    def _look(self, run: TrainingRun) -> Tensor:
        if self.order == "random":
            return run.data.indices[torch.randperm(len(run.data), generator=run.rng(self.name, "order"))]
        losses = []
        for batch in run.data.in_order():
            each = run.forward(batch, "eval", grad=False).each
            assert each is not None  # the task provides it, or the stack was refused
            losses.append(each)
            self._passes.looked.add(len(batch))
        return run.data.indices[torch.cat(losses).cpu().argsort(descending=self.order == "hard", stable=True)]

    def estimate(self, work: Work) -> Work:
        """Passes over the samples that came first, and the look."""
        return self._passes.instead(work).add(*self._passes.looks(work))

    def diagnostics(self) -> dict[str, Any]:
        return {
            "shares": [round(share, 4) for share in self._shares],
            "samples_looked_at": samples_of(self._passes.looked.whole()),
        }
