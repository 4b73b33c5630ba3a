"""How many steps of plain training a run's own tally paid for: the budget of its matched control.

A pass is paid by its samples: a forward by the ledger's forward FLOPs in a pass of so many, a backward by those of both
gradients and of what is computed again, wherever the method spent them. The plain steps that cost as much are counted
off in plain training's own order, the smaller last batch of each epoch included. So a method that skips every second
step, trains on half of each batch, or in half of the epochs gets half of the steps; one that looks at every sample to
train on half of them gets more; and one that only makes passes cheaper pays for every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from energybench.flops.work import BACKWARD, FORWARD, RECOMPUTE, Line, micro_batches
from energybench.records.record import Budget
from energybench.train.method import overrides
from energybench.train.passes import Passes, mean_epoch
from energybench.train.plain_epochs import every_epoch
from energybench.train.run import Run

PHASES_BACKWARD = BACKWARD | {RECOMPUTE}
FORWARD_PRICE, BACKWARD_PRICE = 1.0, 2.0  # of a sample, where there is no ledger: a product, and its two gradients


@dataclass(frozen=True, slots=True)
class PassPrices:
    """FLOPs of one pass of plain training, by its samples."""

    ledger: tuple[Line, ...]

    def forward(self, samples: float) -> float:
        return self._of(frozenset({FORWARD}), samples) if self._known else FORWARD_PRICE * samples

    def backward(self, samples: float) -> float:
        return self._of(PHASES_BACKWARD, samples) if self._known else BACKWARD_PRICE * samples

    @property
    def _known(self) -> bool:
        return any(line.has_flop for line in self.ledger)

    def _of(self, phases: frozenset[str], samples: float) -> float:
        return sum(line.flop_in(samples) for line in self.ledger if line.phase in phases)


def budget(ledger: tuple[Line, ...], run: Run) -> Budget:
    """What a run has paid so far, in steps of plain training.

    Args:
        ledger: of one plain training sample; empty where the model could not be traced
    """
    prices, sizes, recipe = PassPrices(ledger), run.tally.pass_sizes, run.recipe
    paid = _sum(prices.forward, sizes.forward) + _sum(prices.backward, sizes.backward)
    if rounds := every_epoch(run, range(1, recipe.epochs + 1)):
        return _in_rounds(paid, [_round_flop(prices, each, recipe.accumulate) for each in rounds], rounds, run)
    # Each rank sends a sample forward at least.
    cut = [micro_batches(max(size, run.world), recipe.accumulate * run.world) for size in run.data.sizes(recipe.batch)]
    step_flop = [
        sum(prices.forward(piece) + prices.backward(piece) for piece in pieces)
        for pieces in cut
        for _ in run.task.parts
    ]
    planned = len(step_flop) * recipe.epochs
    return Budget(
        steps=min(planned, plain_steps(paid, step_flop)),
        planned_steps=planned,
        paid_rel=paid / (sum(step_flop) * recipe.epochs),
    )


def _round_flop(prices: PassPrices, epoch: Passes, accumulate: int) -> float:
    """Of an epoch that is no single pass over the data."""
    mean = mean_epoch([epoch])
    return math.fsum(
        times * (prices.forward(piece) + mean.backward_rel * prices.backward(piece))
        for size, times in mean.sizes
        for piece in micro_batches(size, accumulate)
    )


def _in_rounds(paid: float, round_flop: Sequence[float], rounds: Sequence[Passes], run: Run) -> Budget:
    """The steps of the rounds that cost as much, the nearest number; of a task that makes its own epochs whole rounds,
    since what a part of one would leave behind is no model: a client's, before the server has them all."""
    whole = overrides(run.task, "epoch")
    steps, left = 0, paid
    for flop, epoch in zip(round_flop, rounds, strict=True):
        share = left / flop if flop else 0.0
        if share >= 1 - 1e-9:
            steps, left = steps + epoch.updates, left - flop
            continue
        steps += epoch.updates * (share >= 0.5) if whole else math.floor(share * epoch.updates + 0.5)
        break
    planned = sum(each.updates for each in rounds)
    return Budget(
        steps=max(rounds[0].updates if whole else 1, steps),
        planned_steps=planned,
        paid_rel=paid / math.fsum(round_flop),
    )


def plain_steps(paid: float, step_flop: list[float]) -> int:
    """How many plain steps cost as much as was paid: the nearest whole number, half a step up; at least one.

    Args:
        paid:      FLOPs
        step_flop: of each step of an epoch, in order
    """
    epoch_flop = sum(step_flop)
    whole = int(paid // epoch_flop)
    steps, left = whole * len(step_flop), paid - whole * epoch_flop
    for flop in step_flop:
        if left < flop / 2 * (1 - 1e-9):  # the sums of an epoch and of its steps round differently
            break
        steps, left = steps + 1, left - flop
    return max(1, steps)


def _sum(price: Callable[[float], float], sizes: Mapping[int, int]) -> float:
    return sum(price(samples) * passes for samples, passes in sizes.items())
