"""mezo: train by forward passes alone: the loss on both sides of the weights along a random direction is the gradient.

With z ~ N(0, I) drawn from a seed: L₁ at θ + εz, L₂ at θ − εz, g = (L₁ − L₂)/2ε, θ −= lr·g·z. z is drawn again from
its seed each time it is needed, tensor by tensor, so memory holds no gradient, no optimizer state and no z. Both
forwards see the same dropout and the same batch statistics.

Paper: MeZO (Malladi et al. 2023), Algorithm 1. Promises memory, not energy: two forwards and no backward are 2/3 of a
step's FLOPs, but one direction among many tells little, so that it takes smaller steps and many more of them.
Owns `gradients` and `update` and builds no optimizer: momentum does not apply, decay and clip are the recipe's.
Composes with what acts on epochs, batches or the forward pass; a skipped epoch under it saves its forwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from energybench import Batch, Forward, Method, TrainingRun, Work
from energybench.flops.work import BACKWARD, FORWARD, RECOMPUTE
from energybench.train.trees import join, split

SECOND = "second_forward"


@dataclass
class MeZO(Method):
    """epsilon: how far the two forwards lie from the weights, in units of z

    lr:       the learning rate, shaped by the recipe's schedule; or "recipe": the recipe's over √d, d the number of
              parameters: between the 1/d that every curvature allows and the 1 that curvature in few directions does
    """

    replaces: ClassVar[frozenset[str]] = frozenset({"gradients", "update"})
    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    runs: ClassVar[frozenset[str] | None] = frozenset({"forward"})

    epsilon: Annotated[float, Field(gt=0)] = 1e-3
    lr: Annotated[float, Field(gt=0)] | Literal["recipe"] = "recipe"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon is > 0, not {self.epsilon}")
        if self.lr != "recipe" and not 0 < self.lr < math.inf:
            raise ValueError(f'lr is > 0 or "recipe", not {self.lr}')

    def setup(self, run: TrainingRun) -> None:
        self._steps = 0
        self._slopes: dict[str, Tensor] = {}  # g of the step, by part
        self._learning: dict[str, list[nn.Parameter]] = {}  # the parameters that the step moves, by part
        normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in run.model.modules())
        # BatchNorm's running statistics see each batch once.
        self._second_mode = "frozen_stats" if normalised else "train"

    @torch.no_grad()
    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        self._steps += 1
        self._learning[batch.part] = [p for p in run.parameters(batch.part) if p.requires_grad]
        pieces = split(batch, run.recipe.accumulate)
        streams = _streams(run)
        states = [stream.get_state() for stream in streams]
        self._move(run, batch.part, self.epsilon)
        above = self._losses(run, pieces, "train")
        for stream, state in zip(streams, states, strict=True):  # dropout has to drop the same in both
            stream.set_state(state)
        self._move(run, batch.part, -2 * self.epsilon)
        below = self._losses(run, pieces, self._second_mode)
        self._move(run, batch.part, self.epsilon)
        rise = run.all_mean(_weighted(above, pieces) - _weighted(below, pieces), batch)
        self._slopes[batch.part] = rise / (2 * self.epsilon)
        whole = join(above, [len(piece) for piece in pieces])
        run.add_loss(whole.weighted(batch.weights))
        return whole

    @torch.no_grad()
    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        rate, slope = self._rate(run, part), self._slopes.pop(part)
        if run.recipe.clip is not None:
            squares = [z.square().sum() for _, z in self._directions(run, part)]
            length = slope.abs() * torch.stack(squares).sum().sqrt()
            slope = slope * (run.recipe.clip / (length + 1e-6)).clamp(max=1)
        for parameter, z in self._directions(run, part):
            own = rate * run.lr_multiplier(parameter)
            if run.recipe.decay:
                parameter.mul_(1 - own * run.recipe.decay)
            parameter.sub_(z.mul_(slope * own))

    def _rate(self, run: TrainingRun, part: str) -> float:
        if self.lr != "recipe":
            return self.lr * run.lr(part) / run.recipe.lr
        return run.lr(part) / math.sqrt(sum(p.numel() for p in run.parameters(part) if p.requires_grad))

    def _losses(self, run: TrainingRun, pieces: list[Batch], mode: str) -> list[Forward]:
        return [run.forward(piece, mode, grad=False) for piece in pieces]

    def _move(self, run: TrainingRun, part: str, distance: float) -> None:
        for parameter, z in self._directions(run, part):
            parameter.add_(z, alpha=distance)

    def _directions(self, run: TrainingRun, part: str) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its part of this step's z, the same ones at every call."""
        generator = run.rng(self.name, part, self._steps, device=run.device)
        for parameter in self._learning[part]:
            z = torch.empty(parameter.shape, dtype=parameter.dtype, device=run.device)
            yield parameter, z.normal_(generator=generator)

    def estimate(self, work: Work) -> Work:
        """Two forwards, no backward; other phases are not this method's.

        The second is a phase of its own, so that what "forward" says stays one pass: others copy it for theirs.
        """
        second = [replace(line, phase=SECOND) for line in work.lines if line.phase == FORWARD]
        return work.change(lambda line: float(line.phase not in (*BACKWARD, RECOMPUTE))).add(*second)


def _weighted(forwards: list[Forward], pieces: list[Batch]) -> Tensor:
    """The whole batch's loss."""
    total = sum(len(piece) for piece in pieces)
    losses = [f.weighted(p.weights) * (len(p) / total) for f, p in zip(forwards, pieces, strict=True)]
    return torch.stack(losses).sum()


def _streams(run: TrainingRun) -> list[torch.Generator]:
    """Every random stream that a forward pass can draw from: torch's own and those that layers hold."""
    streams = [torch.default_generator]
    if run.device.type == "cuda":
        streams.append(torch.cuda.default_generators[run.device.index or 0])
    held = [value for layer in run.layers for value in vars(layer).values()]
    return streams + [value for value in held if isinstance(value, torch.Generator)]
