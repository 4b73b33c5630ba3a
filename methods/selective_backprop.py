"""selective_backprop: look at every sample's loss, and go backward for those that lose much: P(ℓ) = CDF_R(ℓ)^β.

CDF_R is the share of the last R losses that are no larger. Who is chosen waits until a full batch is together; then the
batch is trained on, forward and backward. Of every batch there is thus a forward pass, and for 1/(1 + β) of the samples
on average, where losses are alike, a training step.

Paper: Jiang et al. 2019, Accelerating Deep Learning by Focusing on the Biggest Losers, Algorithm 1 (R = 1024). Promises
steps for 1/(1 + β) of the samples, less the looks, here the phase "look": of three parts a sample one is paid for all,
and the chosen ones pay three more, so at β = 1 it costs a sixth less, at 2 a third. Gradients are biased towards large
losses on purpose; wrong labels too lose much. The look is in evaluation mode, so it moves no statistics and no dropout.
Composes with what leaves samples their losses. In a step without a full batch nothing is updated; who waits when the
samples' shape changes, as another size of images does, is let go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from energybench import Batch, Method, TrainingRun, Work
from energybench.algorithms.passes_taken import PassesTaken, samples_of
from energybench.train.trees import split, take


@dataclass
class SelectiveBackprop(Method):
    """beta: selectivity β; 0 chooses every sample

    history: R, losses that a loss is ranked among
    """

    by_epoch: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"forward", "per_sample_loss"})

    beta: Annotated[float, Field(ge=0)] = 1.0
    history: Annotated[int, Field(ge=1)] = 1024

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta is ≥ 0, not {self.beta}")
        if self.history < 1:
            raise ValueError(f"history is 1 loss or more, not {self.history}")

    def incompatible_devices(self, devices: int) -> str | None:
        return "each rank would choose another number of samples, and wait for a full batch alone"

    def incompatible_run(self, run: TrainingRun) -> str | None:
        if run.task.batch_parts:
            return (
                f"each batch has samples of {', '.join(run.task.batch_parts)} beside it, which cannot be chosen among"
            )
        if "epoch" in run.task.replaces:
            return "the task makes its own rounds, and who waits for a full batch would be trained on in another's"
        if len(run.task.parts) > 1:
            return f"losses of {', '.join(run.task.parts)} have no ranks among each other"
        return None

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._generator = run.rng(self.name, "choice")
        self._losses: deque[Tensor] = deque()
        self._waiting: Batch | None = None
        self._full = 0  # samples that are trained on together
        self._passes = PassesTaken(run, in_steps=True)

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        losses = torch.cat([self._look(run, piece) for piece in split(batch, run.recipe.accumulate)])
        self._passes.handed.add(len(batch))
        self._passes.looked.add(len(batch))
        self._see_size(run, len(batch))
        chances = self.chances(losses)
        draws = torch.rand(len(batch), generator=self._generator)
        chosen = (draws < chances).nonzero().flatten().to(run.device)
        run.tally.mark(self)
        if len(chosen):
            picked = _part(batch, chosen)
            alike = self._waiting is not None and _shapes(self._waiting) == _shapes(picked)
            self._waiting = _joined(self._waiting, picked) if alike and self._waiting else picked
        if self._waiting is None or len(self._waiting) < self._full:
            return
        whole, left = self._full, len(self._waiting)
        ready = _part(self._waiting, slice(0, whole))
        self._waiting = _part(self._waiting, slice(whole, left)) if left > whole else None
        self._passes.given.add(len(ready))
        inner(ready)

    def _see_size(self, run: TrainingRun, samples: int) -> None:
        """A full batch is as large as those of this epoch, which need not be the recipe's; the last may be smaller.

        Were it smaller than what is chosen of a batch on average, more and more would wait.
        """
        self._full = max(run.recipe.batch, samples, self._full if run.step_in_epoch else 0)

    def _look(self, run: TrainingRun, piece: Batch) -> Tensor:
        each = run.forward(piece, "eval", grad=False).each
        assert each is not None  # the task provides it, or the stack was refused
        return each.detach().float().cpu()

    def chances(self, losses: Tensor) -> Tensor:
        """P(ℓ) of each (B,), ranked among the last `history` losses, themselves included; equal ones count as no
        larger, and what is no number is chosen, so that a loss that diverges is seen."""
        self._losses.append(losses)
        while len(self._losses) > 1 and sum(map(len, self._losses)) - len(self._losses[0]) >= self.history:
            self._losses.popleft()
        known = torch.cat([*self._losses])[-max(self.history, len(losses)) :].sort().values
        no_larger = torch.searchsorted(known, losses, right=True) / len(known)
        return torch.where(losses.isnan(), torch.ones(()), no_larger**self.beta)

    def estimate(self, work: Work) -> Work:
        """A forward for every sample, and the steps that were taken."""
        return self._passes.instead(work).add(*self._passes.looks(work))

    def diagnostics(self) -> dict[str, Any]:
        seen, trained = samples_of(self._passes.looked.whole()), samples_of(self._passes.given.whole())
        return {"samples_looked_at": seen, "samples_trained_on": trained, "share": trained / seen if seen else None}


def _part(batch: Batch, where: Tensor | slice) -> Batch:
    return replace(
        batch,
        inputs=take(batch.inputs, where),
        targets=take(batch.targets, where),
        index=batch.index[where],
        weights=None if batch.weights is None else batch.weights[where],
    )


def _shapes(batch: Batch) -> list[Any]:
    """Of a sample."""
    return [getattr(leaf, "shape", [None])[1:] for leaf in tree_leaves([batch.inputs, batch.targets])]


def _joined(one: Batch, other: Batch) -> Batch:
    def both(first: Any, second: Any) -> Any:
        return torch.cat([first, second]) if isinstance(first, Tensor) else first

    weights = None if one.weights is None or other.weights is None else torch.cat([one.weights, other.weights])
    return replace(
        other,
        inputs=tree_map(both, one.inputs, other.inputs),
        targets=None if other.targets is None else tree_map(both, one.targets, other.targets),
        index=torch.cat([one.index, other.index]),
        weights=weights,
    )
