"""How many steps of plain training a run's own tally paid for: the budget of its matched control.

A pass is paid by its samples: a forward by the ledger's forward FLOPs in a pass of so many, a backward by those of both
gradients and of what is computed again, wherever the method spent them. The plain steps that cost as much are counted
off in plain training's own order, the smaller last batch of each epoch included. So a method that skips every second
step, trains on half of each batch, or in half of the epochs gets half of the steps; one that looks at every sample to
train on half of them gets more; and one that only makes passes cheaper pays for every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from energybench.flops.work import BACKWARD, FORWARD, RECOMPUTE, Line, micro_batches
from energybench.records.record import Budget
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
    step_flop = [
        sum(prices.forward(piece) + prices.backward(piece) for piece in micro_batches(size, recipe.accumulate))
        for size in run.data.sizes(recipe.batch)
        for _ in run.task.parts
    ]
    planned = len(step_flop) * recipe.epochs
    return Budget(
        steps=min(planned, plain_steps(paid, step_flop)),
        planned_steps=planned,
        paid_rel=paid / (sum(step_flop) * recipe.epochs),
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
