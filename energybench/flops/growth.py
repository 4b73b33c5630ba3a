"""How work grows with the batch: traces of a few sizes, fitted exactly by a constant, a linear and a quadratic part.

Sizes are small whole numbers and what is counted are whole numbers too, so finite differences in fractions give the
parts without an error. Whether they are the right ones, one trace more must confirm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from energybench.flops.work import Line

if TYPE_CHECKING:
    from energybench.flops.values import Cost, Entry

Parts = tuple[Fraction, Fraction, Fraction]  # per step, per sample, per pair of samples
PAIRED = 2


class NotPolynomialError(ValueError):
    """The traces do not have the same operators, or something grows neither linearly nor with the square."""


def fit(traces: dict[int, list[Entry]]) -> list[tuple[Cost, Parts]]:
    """The parts of every cost, from the traces of at least three batch sizes; any further size confirms them.

    Raises:
        NotPolynomialError: the traces differ in more than their numbers, or there is no such fit.
    """
    sizes = sorted(traces)
    kinds = [[_kind(cost) for cost, _ in traces[size]] for size in sizes]
    if any(kind != kinds[0] for kind in kinds[1:]):
        raise NotPolynomialError("which operators run depends on the batch or its numbers")
    fitted = []
    for entries in zip(*(traces[size] for size in sizes), strict=True):
        costs = [cost for cost, _ in entries]
        parts = _parts(sizes, [amount for _, amount in entries])
        shape = {
            name: _per_sample(_parts(sizes, [dict(cost.shape)[name] for cost in costs])) for name, _ in costs[0].shape
        }
        fitted.append((replace(costs[0], shape=tuple(shape.items()), per_step=False), parts))
    return fitted


def single(trace: list[Entry], batch: int) -> list[tuple[Cost, Parts]]:
    """The parts as one trace alone lets us suppose them: constant where nothing of the batch is in it, else linear."""
    fitted = []
    for cost, amount in trace:
        parts = (Fraction(amount), Fraction(0), Fraction(0))
        if not cost.per_step:
            parts = (Fraction(0), Fraction(amount) / batch, Fraction(0))
        batched = () if cost.op == "conv" else ("positions", "stacks", "heads")
        shape = tuple((name, value / batch if name in batched else value) for name, value in cost.shape)
        fitted.append((replace(cost, shape=shape, per_step=False), parts))
    return fitted


def is_quadratic(fitted: list[tuple[Cost, Parts]]) -> bool:
    return any(parts[PAIRED] for _, parts in fitted)


def lines(fitted: list[tuple[Cost, Parts]]) -> tuple[Line, ...]:
    """One line for all costs that differ in their operand alone, in the order of the trace."""
    found: dict[Cost, Line] = {}
    for cost, parts in fitted:
        key = replace(cost, operand="")
        step, sample, pair = map(float, parts)
        line = found.setdefault(key, Line(cost.phase, cost.module, cost.op, 0.0, dict(cost.shape)))
        if not cost.operand:
            found[key] = replace(
                line, flop=line.flop + sample, step_flop=line.step_flop + step, pair_flop=line.pair_flop + pair
            )
            continue
        for moved_b, amount in ((line.step_b, step), (line.sample_b, sample), (line.pair_b, pair)):
            if amount:
                moved_b[cost.operand] = moved_b.get(cost.operand, 0.0) + amount
    return tuple(found.values())


def _kind(cost: Cost) -> tuple[object, ...]:
    return cost.phase, cost.module, cost.op, cost.operand, tuple(name for name, _ in cost.shape)


def _parts(sizes: Sequence[int], amounts: Sequence[float]) -> Parts:
    """Newton's divided differences through the first three sizes; the others must lie on the same curve."""
    if all(amount == amounts[0] for amount in amounts):
        return Fraction(amounts[0]), Fraction(0), Fraction(0)
    values = [Fraction(amount) for amount in amounts]
    n0, n1, n2 = sizes[:3]
    slope = (values[1] - values[0]) / (n1 - n0)
    pair = ((values[2] - values[1]) / (n2 - n1) - slope) / (n2 - n0)
    sample = slope - pair * (n0 + n1)
    step = values[0] - sample * n0 - pair * n0**2
    for size, value in zip(sizes[3:], values[3:], strict=True):
        if step + sample * size + pair * size**2 != value:
            raise NotPolynomialError("something grows neither linearly nor with the square of the batch")
    return step, sample, pair


def _per_sample(parts: Parts) -> float:
    """A size that the batch is in, per sample; one that it is not in, as it is."""
    step, sample, pair = parts
    return float(pair or sample or step)
