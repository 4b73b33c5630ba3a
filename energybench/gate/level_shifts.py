"""Where the level of a series of runs moved and stayed, and whether runs scatter more than their blocks explain.

Both tests look at run means: Student's t with one standard deviation for both sides of a place, so that scatter between
runs counts, and F of run means inside the parts between steps. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from energybench.gate import regression
from energybench.gate.regression import FAMILY
from energybench.stats import paired

FEWEST_RUNS = 3  # of a trend; a step needs two on either side
LEAST_PART = 2


@dataclass(frozen=True, slots=True)
class Step:
    """The level moved: `run` is the first one at the new level. change_rel: of the cost; positive is worse."""

    run: int
    change_rel: float
    p: float  # over all places, by itself


def steps(means: Sequence[paired.Mean | None], log_margin: float, methods: int) -> Iterator[Step]:
    """Where the level of one method's runs moved and stayed.

    Args:
        means:      each run's mean log cost, in the order of time; None where it has none.
        log_margin: what a step has to exceed, as a log ratio.
        methods:    how many methods are searched together, for Bonferroni's correction.

    Returns:
        Steps in the order of the runs: the clearest one, and those inside either part.
    """
    known = [(run, mean.mean) for run, mean in enumerate(means) if mean is not None]
    yield from _split(known, log_margin, FAMILY / max(methods, 1))


def _split(means: Sequence[tuple[int, float]], log_margin: float, level: float) -> Iterator[Step]:
    """means: (run, its mean log cost)"""
    places = range(LEAST_PART, len(means) - LEAST_PART + 1)
    values = [value for _, value in means]
    best = min((_step_test(values, place, log_margin) for place in places), default=None, key=lambda each: each[0])
    if best is None or best[0] * len(places) > level:
        return
    p, place, change = best
    yield from _split(means[:place], log_margin, level)
    yield Step(means[place][0], math.expm1(change), min(1.0, p * len(places)))
    yield from _split(means[place:], log_margin, level)


def _step_test(values: Sequence[float], place: int, log_margin: float) -> tuple[float, int, float]:
    """(two-sided p, place, change): run means before and after a place, with one standard deviation for both."""
    parts = values[:place], values[place:]
    means = [math.fsum(part) / len(part) for part in parts]
    squares = math.fsum((v - m) ** 2 for part, m in zip(parts, means, strict=True) for v in part)
    df = len(values) - 2
    error = math.sqrt(squares / df * math.fsum(1 / len(part) for part in parts))
    change = paired.Mean(1, abs(means[1] - means[0]), error, df)
    return min(1.0, 2 * regression.chance(change, log_margin)), place, means[1] - means[0]


def scatter(means: Sequence[paired.Mean | None], step_runs: Sequence[int]) -> tuple[float, float] | None:
    """How far the runs of one method lie apart, over how far their blocks let expect.

    One run that lies apart may be a loss that was mended at once: only what stays without it speaks against the gate.

    Args:
        means:     each run's mean log cost, in the order of time; None where it has none.
        step_runs: the first runs at a new level.

    Returns:
        The scatter of run means inside the parts between steps over what blocks explain, about 1 where they explain
        it, and the p of an F test without the run that matters most; None with too few runs.
    """
    part_means = [
        (sum(step <= run for step in step_runs), mean)
        for run, mean in enumerate(means)
        if mean is not None and mean.sd > 0
    ]
    whole = _spread_test(part_means)
    without = [_spread_test(part_means[:left] + part_means[left + 1 :]) for left in range(len(part_means))]
    if whole is None or not all(without):
        return None
    return whole[0], max(each[1] for each in without if each)


def _spread_test(part_means: Sequence[tuple[int, paired.Mean]]) -> tuple[float, float] | None:
    """(ratio of standard deviations, p of F) of run means inside their parts; None with too few.

    part_means: (number of the part between two steps, a run's mean)
    """
    from scipy.special import fdtrc

    parts: dict[int, list[paired.Mean]] = {}
    for part, mean in part_means:
        parts.setdefault(part, []).append(mean)
    runs = len(part_means)
    df = runs - len(parts)
    if runs < FEWEST_RUNS or df < 1:
        return None
    between = 0.0
    for means in parts.values():
        centre = math.fsum(mean.mean for mean in means) / len(means)
        between += math.fsum((mean.mean - centre) ** 2 for mean in means)
    within = math.fsum(mean.sd**2 / mean.n for _, mean in part_means) / runs
    ratio = between / df / within
    return math.sqrt(ratio), float(fdtrc(df, math.fsum(mean.df for _, mean in part_means), ratio))
