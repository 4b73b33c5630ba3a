"""What so many blocks can see, and how many are needed: promises that a fresh run keeps four times in five.

The spread between blocks is itself an estimate from a few blocks. Whoever plugs it in promises too much: a fresh run
finds the saving that was named so in 58, 69 and 71 of 100 at 3, 5 and 10 blocks. Here a saving is named so that it is
found in 80 of 100 on average over both runs, the one that named it and the fresh one. With sᵢ = σ·Sᵢ, Sᵢ² = χ²/ν, the
fresh run's upper bound lies below −h when Z + t·S₂ < k·S₁, where the saving lies k·s₁/√n beyond the margin; so k solves

    E[ P(Z + t·S₂ < k·S₁) ] = 0.8

which no σ enters: exact for normal blocks, at every number of blocks. k over the k that knows σ is `factor`: the root
of an upper confidence limit of s² (chi-square), at a confidence that follows from the blocks. Where a workload's
comparisons share one spread (`paired.pool`), S is the larger of a row's own and the shared one, t the quantile that
belongs to it, in both runs: `reach_with_pool`.

Where a run counts devices (`replication.py`), so do these: sd is that of the devices' means, n and what is needed are
devices, with as many blocks on each as in the run at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from energybench.stats.paired import (
    CLAIM,
    FEWEST_BLOCKS,
    INTERVAL,
    QUALITY,
    Mean,
    adjusted_confidence,
    saving_of,
    student,
)

POWER = 0.8
MOST_BLOCKS = 200  # beyond it: not on this machine
NODES, FEWER_NODES = 64, 24  # of the quadratures over S₁
GRID, QUANTILES = 96, 192  # of the one over two spreads: nodes on either side, and what they are summed up to


@lru_cache(maxsize=4096)
def reach(df: float, fresh_df: float, level: float, power: float = POWER) -> float:
    """How many standard errors beyond a margin a fresh run's one-sided bound clears with this power.

    Args:
        df: degrees of freedom of the sd that is at hand
        fresh_df: those that the fresh run will have
        level: confidence of the fresh run's bound

    Returns:
        k, in units of s / √n with the sd at hand; infinite where a df is not above 0.
    """
    import numpy as np
    from scipy.special import chdtri, nctdtr

    if df <= 0 or fresh_df <= 0 or not 0.5 < level < 1:
        return math.inf
    points, weights = np.polynomial.legendre.leggauss(NODES)
    tails, weights = (points + 1) / 2, weights / 2
    spreads = np.sqrt(chdtri(df, tails) / df)
    bound = student(level, fresh_df)

    def found(k: float) -> float:
        return float(weights @ np.nan_to_num(1 - nctdtr(fresh_df, np.minimum(k * spreads, 1e4), bound), nan=1.0))

    return _root(found, power, bound + 1.0)


@lru_cache(maxsize=4096)
def reach_with_pool(own_df: float, pooled_df: float, level: float, power: float = POWER) -> float:
    """The same, where both runs take the larger of a row's own sd and the one that a workload's comparisons share.

    Args:
        own_df: degrees of freedom of a row's own sd
        pooled_df: those that the shared one is worth, its own among them
        level: confidence of the fresh run's bound
    """
    import numpy as np
    from scipy.special import chdtri, ndtr

    others_df = pooled_df - own_df
    if own_df <= 0 or others_df <= 0:
        return reach(own_df, own_df, level, power)
    middles = (np.arange(GRID) + 0.5) / GRID
    own, others = np.meshgrid(chdtri(own_df, middles) / own_df, chdtri(others_df, middles) / others_df)
    pooled = (own_df * own + others_df * others) / pooled_df
    lent = pooled >= own
    spreads = np.sqrt(np.where(lent, pooled, own))
    bounds = spreads * np.where(lent, student(level, pooled_df), student(level, own_df))
    spreads, bounds = (np.sort(each, axis=None).reshape(QUANTILES, -1).mean(1) for each in (spreads, bounds))

    def found(k: float) -> float:
        return float(ndtr(k * spreads[:, None] - bounds[None]).mean())

    return _root(found, power, student(level, own_df) + 1.0)


def _root(found: Callable[[float], float], power: float, high: float) -> float:
    """The smallest k that is found with this power; infinite where none is. What is found grows with k."""
    low = 0.0
    while found(high) < power:
        low, high = high, 2 * high
        if high > 1e6:
            return math.inf
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high


def factor(df: float, fresh_df: float, level: float, power: float = POWER) -> float:
    """By how much an sd of so many degrees of freedom is stretched to be taken for the truth."""
    from scipy.special import nctdtrinc

    return reach(df, fresh_df, level, power) / float(nctdtrinc(fresh_df, 1 - power, student(level, fresh_df)))


def detectable(
    sd: float,
    n: int,
    margin: float,
    power: float = POWER,
    df: float | None = None,
    alpha_fraction: float = 1.0,
    pooled_df: float | None = None,
) -> float | None:
    """The smallest true saving that a fresh run of n blocks calls one with this power; None below two blocks.

    Args:
        sd: of the log ratios, as seen
        n: blocks of the fresh run
        margin: of the saving, as a fraction
        power: the chance to call it, over the run that gave the sd and the fresh one
        df: degrees of freedom of sd, n − 1 by default
        alpha_fraction: of every chance of error, what the interim analysis may use
        pooled_df: what the spread is worth that the workload's comparisons share, where they share one; sd is the
            larger of the two, and df is not asked for
    """
    df = n - 1 if df is None else df
    if n < 2 or df <= 0 or not math.isfinite(sd):
        return None
    h = math.log1p(-margin)
    if sd == 0:
        return saving_of(h)
    level = adjusted_confidence(CLAIM, alpha_fraction)
    k = reach(df, n - 1, level, power) if pooled_df is None else reach_with_pool(n - 1, pooled_df, level, power)
    return saving_of(h - k * sd / math.sqrt(n)) if math.isfinite(k) else None


def _beyond(distance: float, sd: float, n: int, confidence: float) -> float:
    """Chance that a one-sided bound clears a margin from which the true mean is `distance` away."""
    from scipy.special import nctdtr

    if sd == 0:
        return float(distance > 0)
    return 1 - float(nctdtr(n - 1, distance * math.sqrt(n) / sd, student(confidence, n - 1)))


def _fewest(chance: Callable[[int], float], power: float) -> int | None:
    """The smallest n, FEWEST_BLOCKS to MOST_BLOCKS, whose chance reaches the power; chance grows with n."""
    if not chance(MOST_BLOCKS) >= power:
        return None
    low, high = FEWEST_BLOCKS, MOST_BLOCKS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= power else (middle + 1, high)
    return low


def _over_spreads(chance: Callable[[float], float], sd: float, df: float) -> float:
    """The mean chance over the true spreads that an sd of so many degrees of freedom leaves possible: sd / S₁."""
    if sd == 0 or df <= 0 or math.isinf(df):
        return chance(sd)
    return math.fsum(weight * chance(sd * stretch) for weight, stretch in _stretches(df))


@lru_cache(maxsize=256)
def _stretches(df: float) -> tuple[tuple[float, float], ...]:
    """(weight, σ / s) of the true spreads that s leaves possible; the weights add up to 1."""
    import numpy as np
    from scipy.special import chdtri

    points, weights = np.polynomial.legendre.leggauss(FEWER_NODES)
    stretches = 1 / np.sqrt(chdtri(df, (points + 1) / 2) / df)
    return tuple(zip((weights / 2).tolist(), stretches.tolist(), strict=True))


def blocks_needed(
    mean: float, sd: float, margin: float, power: float = POWER, alpha_fraction: float = 1.0, df: float = math.inf
) -> int | None:
    """How many blocks of a fresh run would decide, were the mean seen so far the truth; None beyond MOST_BLOCKS.

    Args:
        mean, sd: of the log ratios
        margin: of the saving, as a fraction
        power: the chance to decide, over the true spreads that the sd leaves possible
        alpha_fraction: of every chance of error, what the interim analysis may use
        df: degrees of freedom of sd; by default it is the truth

    For a mean inside the margin both ends of the 95 % interval must clear it; the two misses are added, which
    asks for a block too many rather than one too few.
    """
    if not (math.isfinite(mean) and math.isfinite(sd)):
        return None
    h = -math.log1p(-margin)
    if abs(mean) > h:
        claim = adjusted_confidence(CLAIM, alpha_fraction)
        return _fewest(lambda n: _over_spreads(lambda s: _beyond(abs(mean) - h, s, n, claim), sd, df), power)
    side = adjusted_confidence((1 + INTERVAL) / 2, alpha_fraction)

    def inside(n: int, s: float) -> float:
        return max(0.0, _beyond(h - mean, s, n, side) + _beyond(h + mean, s, n, side) - 1)

    return _fewest(lambda n: _over_spreads(lambda s: inside(n, s), sd, df), power)


def quality_blocks_needed(quality: Mean, quality_margin: float, power: float = POWER) -> int | None:
    """How many blocks of a fresh run would decide whether quality is held or lost; None beyond MOST_BLOCKS."""
    if not math.isfinite(quality.sd):
        return None
    confidence = adjusted_confidence(QUALITY, quality.alpha_fraction)
    distance = abs(quality.mean + quality_margin)
    return _fewest(
        lambda n: _over_spreads(lambda s: _beyond(distance, s, n, confidence), quality.sd, quality.df), power
    )
