"""What the intervals and verdicts promise, held over hundreds of thousands of simulated experiments."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from energybench.stats import paired, power

REPEATS, NOISE, SD = 200_000, 0.01, 0.05
H = -math.log1p(-NOISE)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def clean(random: np.random.Generator, n: int) -> np.ndarray:
    return random.normal(0, SD, (REPEATS, n))


def wild(random: np.random.Generator, n: int) -> np.ndarray:
    """Every tenth block scatters five times as widely (Tukey's contaminated normal)."""
    return clean(random, n) * np.where(random.random((REPEATS, n)) < 0.1, 5, 1)


def disturbed(random: np.random.Generator, n: int) -> np.ndarray:
    """Every tenth trial, of either side, is slowed down by something else, by three standard deviations on average."""

    def side() -> np.ndarray:
        slow = (random.random((REPEATS, n)) < 0.1) * random.exponential(3 * SD, (REPEATS, n))
        return random.normal(0, SD, (REPEATS, n)) / math.sqrt(2) + slow

    return side() - side()


DRAWS = [clean, wild, disturbed]


def bounds(d: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """One-sided lower and upper bounds of each row's mean."""
    n = d.shape[1]
    reach = paired.student(confidence, n - 1) * d.std(1, ddof=1) / math.sqrt(n)
    return d.mean(1) - reach, d.mean(1) + reach


@pytest.mark.parametrize("draw", DRAWS)
def test_the_vectors_are_what_the_module_computes(draw: Draw) -> None:
    d = draw(np.random.default_rng(1), 5)[:50]
    for confidence in (0.975, paired.CLAIM):
        low, high = bounds(d, confidence)
        for row, values in enumerate(d):
            one = paired.paired(np.exp(values), np.ones(5))  # type: ignore[arg-type]
            assert (one.lower(confidence), one.upper(confidence)) == pytest.approx((low[row], high[row]))


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("draw", DRAWS)
def test_a_nominal_95_percent_interval_covers_the_truth_94_to_97_times_in_100(draw: Draw, n: int) -> None:
    low, high = bounds(draw(np.random.default_rng(n), n), 0.975)
    assert 0.94 <= ((low <= 0) & (high >= 0)).mean() <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("draw", DRAWS)
def test_no_effect_is_called_a_saving_at_most_once_in_100(draw: Draw, n: int) -> None:
    _, high = bounds(draw(np.random.default_rng(10 + n), n), paired.CLAIM)
    assert (high < -H).mean() <= 0.01  # no effect at all
    assert (high < 0).mean() <= 0.01 + 3 * math.sqrt(0.01 / REPEATS)  # exactly at the margin: 1 % by construction


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("alpha_fraction", [1.0, 0.25])
def test_the_printed_detectable_saving_is_found_80_times_in_100(n: int, alpha_fraction: float) -> None:
    """Over first runs, each of which prints its own, and a fresh run after it."""
    random, claim = np.random.default_rng(20 + n), paired.adjusted_confidence(paired.CLAIM, alpha_fraction)
    printed = H + power.reach(n - 1, n - 1, claim) * clean(random, n).std(1, ddof=1) / math.sqrt(n)
    _, high = bounds(clean(random, n) - printed[:, None], claim)
    assert 0.79 <= (high < -H).mean() <= 0.81


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
def test_quality_that_is_better_than_accepted_is_called_lost_at_most_5_times_in_100(n: int) -> None:
    margin = 0.005
    d = np.random.default_rng(40 + n).normal(-margin, 0.004, (REPEATS, n))
    _, high = bounds(d, paired.QUALITY)
    assert (high < -margin).mean() <= 0.05 + 3 * math.sqrt(0.05 / REPEATS)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
def test_quality_that_is_worse_than_accepted_passes_at_most_5_times_in_100(n: int) -> None:
    margin = 0.005
    d = np.random.default_rng(30 + n).normal(-margin, 0.004, (REPEATS, n))
    low, _ = bounds(d, paired.QUALITY)
    assert (low >= -margin).mean() <= 0.05 + 3 * math.sqrt(0.05 / REPEATS)
