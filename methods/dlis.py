"""dlis: score a larger uniform presample by a forward pass, and train on the part of it that has most to say.

A step draws B' = k·b samples with replacement, scores them in evaluation mode, draws its b samples among them by
p_i = s_i/Σs and weighs their losses by 1/(B'·p_i), so that the mean gradient stays the presample's. It does so only
while a moving average (0.9, from 0) of τ = √(n·Σp²) exceeds (B' + 3b)/(3b), from where the variance saved is worth the
B' forwards; below, it trains as plain training does and looks at τ of that batch's own scores, so that the gate opens.

Paper: Katharopoulos and Fleuret 2018, Algorithm 1. Promises fewer steps to a target; each presampled step costs k
forwards more, here the phase "presample". The gate is one number that a step waits for at its end. Owns `batches`.
Composes with what thins the passes or skips epochs, not with another choice of samples or weights.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from energybench import Batch, Data, Forward, Method, TrainingRun, Work
from energybench.algorithms.epoch_counter import EpochCounter
from energybench.algorithms.sample_scores import Scorer
from energybench.algorithms.weighted_sampling import Sampler, pass_key, unbiased
from energybench.flops.work import FORWARD, PRESAMPLE
from energybench.train.trees import join, split, take

SMOOTHING = 0.9
SCORES = ("output-gradient", "loss", "last-layer-gradient")


@dataclass
class DLIS(Method):
    """presample: k, samples scored per sample trained on; the paper has 3, the later comparison 5

    score:      "output-gradient" | "loss" | "last-layer-gradient" (the last nn.Linear that the model holds)
    resample:   "importance" | "uniform" (weights 1: the control that pays for the presample and does not use it)
    threshold:  of τ's moving average, ≥ 0; without one the paper's, (B' + 3b)/(3b): 2 for k = 3, 2.67 for 5

    While the gate is shut, training is plain training's, bit for bit. Where worker processes read ahead, the gate acts
    as many batches late.
    """

    by_epoch: ClassVar[bool] = True
    replaces: ClassVar[frozenset[str]] = frozenset({"batches"})
    needs: ClassVar[frozenset[str]] = frozenset({"forward", "per_sample_loss"})
    example: ClassVar[Mapping[str, Any]] = {"threshold": 0.3}
    trains_less: ClassVar[bool | None] = False

    presample: Annotated[int, Field(ge=1)] = 3
    score: Literal["output-gradient", "loss", "last-layer-gradient"] = "output-gradient"
    resample: Literal["importance", "uniform"] = "importance"
    threshold: Annotated[float, Field(ge=0)] | None = None

    def __post_init__(self) -> None:
        words = {"score": SCORES, "resample": ("importance", "uniform")}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'")
        if self.presample < 1:
            raise ValueError(f"presample is 1 or more samples per sample, not {self.presample}")
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold is ≥ 0, not {self.threshold}")

    @property
    def gate(self) -> float:
        """What the moving average of τ must exceed."""
        return (self.presample + 3) / 3 if self.threshold is None else self.threshold

    def incompatible_devices(self, devices: int) -> str | None:
        return "a sample that it chooses from the presample lies on one rank, and would have to move to another"

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._scorer = Scorer(run, self.score)
        self._generator = run.rng(self.name, "resample", device=run.device)
        self._average = torch.zeros((), dtype=torch.float64, device=run.device)
        self._open = self._presampled = False
        self._counts: EpochCounter[str] = EpochCounter(run)
        self._opened: list[int] = []  # epochs with a presampled step
        self._averages: list[float] = []  # at each epoch's last step

    def batches(self, run: TrainingRun, data: Data, inner: Callable[[Data], Iterable[Batch]]) -> Iterable[Batch]:
        ahead: deque[int | None] = deque()
        for batch in run.load(data, self._positions(run, data, ahead)):
            size = ahead.popleft()
            yield batch if size is None else _part(batch, slice(size), size, {PRESAMPLE: batch})
        self._averages.append(round(self._average.item(), 4))

    def _positions(self, run: TrainingRun, data: Data, ahead: deque[int | None]) -> Iterator[Tensor]:
        """Of each batch when it is asked for; the size of what shall be left of a presample goes into `ahead`."""
        generator = run.rng(self.name, PRESAMPLE, *pass_key(run))
        for piece in data.cut(run.order(data), run.recipe.batch):
            ahead.append(len(piece) if self._open else None)
            count = self.presample * len(piece)
            yield torch.randint(len(data), (count,), generator=generator) if self._open else piece

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        whole = batch.also.get(PRESAMPLE)
        self._presampled = whole is not None
        self._counts.add("samples", len(batch))
        self._counts.add("steps")
        if whole is not None:
            run.tally.mark(self, "presampled")
            self._counts.add("steps presampled")
            self._counts.add("samples scored", len(whole))
            if run.epoch_number not in self._opened[-1:]:
                self._opened.append(run.epoch_number)
            batch = self._resampled(run, whole, len(batch))
        inner(batch)
        self._open = self._average.item() > self.gate

    def _resampled(self, run: TrainingRun, whole: Batch, size: int) -> Batch:
        self._scorer.listen()
        pieces = split(whole, run.recipe.accumulate)
        forwards = [run.forward(piece, "eval", grad=False) for piece in pieces]
        scores = self._scorer(run, join(forwards, [len(piece) for piece in pieces]), whole)
        self._update_average(scores)
        sampler = Sampler(scores if self.resample == "importance" else torch.ones_like(scores))
        index, probability = sampler.draw(size, self._generator)
        weights = unbiased(probability, len(whole)) if self.resample == "importance" else None
        return replace(_part(whole, index, size), weights=weights)

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        if self._presampled:
            return inner(batch)
        self._scorer.listen()
        forward = inner(batch)
        self._update_average(self._scorer(run, forward, batch))
        before = self.acted
        run.tally.mark(self, "scored")
        self.acted = before  # looking is not acting
        return forward

    def _update_average(self, scores: Tensor) -> None:
        """τ = √(n·Σp²), 1 where all scores are alike, √n where one is everything."""
        scores = scores.double()
        tau = (len(scores) * scores.square().sum()).sqrt() / scores.sum()
        # Scores of 0 prefer nobody; what is not finite ends the epoch by its loss.
        self._average = SMOOTHING * self._average + (1 - SMOOTHING) * torch.nan_to_num(tau, nan=1.0)

    def finish(self, run: TrainingRun) -> None:
        self._scorer.close()

    def estimate(self, work: Work) -> Work:
        """The presample's forwards, which keep no activation but move what a forward moves."""
        counts = self._counts.of(work)
        if not counts["samples scored"]:
            return work
        scored, steps = counts["samples scored"] / counts["samples"], counts["steps presampled"] / counts["steps"]
        forwards = [replace(line, phase=PRESAMPLE).times(scored, steps) for line in work.plain if line.phase == FORWARD]
        return work.add(*forwards)

    def diagnostics(self) -> dict[str, Any]:
        counts = self._counts.whole()
        return {
            "gate": self.gate,
            "average_tau_by_epoch": self._averages,
            "steps_presampled": counts["steps presampled"],
            "steps": counts["steps"],
            "epochs_presampled": self._opened,
            "samples_scored_per_sample": counts["samples scored"] / max(1, counts["samples"]),
        }


def _part(batch: Batch, where: Tensor | slice, size: int, also: Mapping[str, Batch] | None = None) -> Batch:
    """Some samples of a batch, and of what it has beside it the first `size`; with `also` beside those."""
    beside = {name: _part(other, slice(size), size) for name, other in batch.also.items()}
    return replace(
        batch,
        inputs=take(batch.inputs, where),
        targets=take(batch.targets, where),
        index=batch.index[where],
        also={**beside, **(also or {})},
    )
