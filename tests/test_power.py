"""What is promised about power, held over many first runs, each followed by a fresh one; scipy as oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

from energybench.stats import paired, power

MARGIN = 0.01
H = -math.log1p(-MARGIN)


def decides(d: np.ndarray, margin: float, alpha_fraction: float = 1.0) -> dict[str, np.ndarray]:
    """Of each row of log ratios, by `paired.cost_verdict`: saves, and decided at all."""
    n, h = d.shape[1], -math.log1p(-margin)
    mean, error = d.mean(1), d.std(1, ddof=1) / math.sqrt(n)
    claim = paired.student(paired.adjusted_confidence(paired.CLAIM, alpha_fraction), n - 1) * error
    inside = paired.student(0.975, n - 1) * error
    saves = mean + claim < -h
    return {"saves": saves, "decided": saves | (mean - claim > h) | ((mean - inside > -h) & (mean + inside < h))}


def test_the_vectors_are_what_the_module_computes() -> None:
    d = np.random.default_rng(1).normal(-0.05, 0.05, (400, 4))
    found = decides(d, MARGIN)
    for row, saves, decided in zip(d, found["saves"], found["decided"], strict=True):
        word = paired.cost_verdict(paired.paired(np.exp(row), np.ones(4)), MARGIN, "energy")  # type: ignore[arg-type]
        assert (word == "saves", word != "inconclusive") == (saves, decided)


@pytest.mark.parametrize("alpha_fraction", [1.0, 0.25])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_over_many_first_runs_a_fresh_run_finds_the_printed_saving_four_times_in_five(
    n: int, alpha_fraction: float
) -> None:
    rng, runs, sd = np.random.default_rng(n), 40_000, 0.05
    seen = sd * np.sqrt(rng.chisquare(n - 1, runs) / (n - 1))
    beyond = power.reach(n - 1, n - 1, paired.adjusted_confidence(paired.CLAIM, alpha_fraction)) * seen / math.sqrt(n)
    one = power.detectable(float(seen[0]), n, MARGIN, alpha_fraction=alpha_fraction)
    assert one == pytest.approx(-math.expm1(-H - beyond[0]))
    found = decides(rng.normal(0, sd, (runs, n)) - (H + beyond)[:, None], MARGIN, alpha_fraction)["saves"].mean()
    assert found == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("alike", [2, 4, 7])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_so_does_a_workload_whose_comparisons_share_their_baseline_and_their_spread(n: int, alike: int) -> None:
    rng, runs = np.random.default_rng(100 * n + alike), 20_000
    pooled_df = alike * (n - 1) / (1 + (alike - 1) / 4)
    level = paired.CLAIM

    def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the first comparison: mean, the sd that bounds it, and the quantile that goes with it."""
        costs = rng.normal(0, 0.05, (runs, alike + 1, n))
        d = costs[:, 1:] - costs[:, :1]
        own, shared = d[:, 0].std(1, ddof=1), np.sqrt(d.var(2, ddof=1).mean(1))
        quantile = np.where(shared >= own, paired.student(level, pooled_df), paired.student(level, n - 1))
        return d[:, 0].mean(1), np.maximum(own, shared), quantile

    _, seen, _ = draw()
    beyond = power.reach_with_pool(n - 1, pooled_df, level) * seen / math.sqrt(n)
    one = power.detectable(float(seen[0]), n, MARGIN, df=pooled_df, pooled_df=pooled_df)
    assert one == pytest.approx(-math.expm1(-H - beyond[0]))
    mean, sd, quantile = draw()
    found = (mean - H - beyond + quantile * sd / math.sqrt(n) < -H).mean()
    assert found == pytest.approx(0.8, abs=0.02)  # the comparisons' own correlation is told by their degrees of freedom


def test_a_pool_that_lends_nothing_promises_what_a_row_does_by_itself() -> None:
    assert power.reach_with_pool(4, 4, 0.99) == power.reach(4, 4, 0.99)
    assert power.reach_with_pool(4, 1e6, 0.99) < power.reach(4, 4, 0.99)


def test_a_spread_that_is_known_well_promises_what_the_noncentral_t_says() -> None:
    saving = power.detectable(0.05, 5, MARGIN, df=1e7)
    assert saving is not None
    nc = (-math.log1p(-saving) - H) * math.sqrt(5) / 0.05
    assert oracle.nct.sf(oracle.t.ppf(0.99, 4), 4, nc) == pytest.approx(0.8, abs=1e-3)


@settings(max_examples=12)
@given(st.integers(2, 40), st.integers(2, 40))
def test_the_fewer_blocks_gave_the_spread_the_more_it_is_stretched(df: int, fresh: int) -> None:
    stretched = power.factor(df, fresh, paired.CLAIM)
    assert stretched > power.factor(2 * df, fresh, paired.CLAIM) > 1


def test_more_blocks_see_smaller_savings_down_to_the_margin() -> None:
    seen = [power.detectable(0.05, n, MARGIN) for n in (3, 5, 10, 100, 10_000)]
    assert seen == sorted(seen, reverse=True)  # type: ignore[type-var]
    assert seen[-1] == pytest.approx(MARGIN, abs=3e-3)
    assert power.detectable(0.0, 3, MARGIN) == pytest.approx(MARGIN)
    assert power.detectable(math.nan, 1, MARGIN) is None


@pytest.mark.parametrize(("mean", "sd"), [(-0.05, 0.04), (0.06, 0.05), (0.0, 0.01), (0.003, 0.01)])
def test_with_a_known_spread_the_named_number_of_blocks_decides_four_times_in_five_and_one_fewer_does_not(
    mean: float, sd: float
) -> None:
    n = power.blocks_needed(mean, sd, MARGIN)
    assert n is not None

    def decided(size: int) -> float:
        return decides(np.random.default_rng(size).normal(mean, sd, (6000, size)), MARGIN)["decided"].mean()

    assert decided(n) >= 0.77
    assert decided(n - 1) <= 0.85  # monotone, and not wastefully many


@pytest.mark.parametrize(("n", "truth"), [(3, 0.05), (5, 0.05), (5, 0.1), (10, 0.0), (10, 0.05)])
def test_a_fresh_run_of_the_named_number_of_blocks_decides_at_least_seven_times_in_ten(n: int, truth: float) -> None:
    """Over first runs that decided nothing and named a number: their mean is an estimate too, so no 80 is exact."""
    rng, sd, margin, found = np.random.default_rng(n), 0.05, 0.02, []
    for d in rng.normal(math.log1p(-truth), sd, (200, n)):
        if decides(d[None], margin)["decided"][0]:
            continue
        needed = power.blocks_needed(float(d.mean()), float(d.std(ddof=1)), margin, df=n - 1)
        if needed is not None:
            size = max(needed, n + 1)
            found.append(decides(rng.normal(math.log1p(-truth), sd, (60, size)), margin)["decided"].mean())
    assert len(found) > 10
    assert np.mean(found) > 0.7


def test_an_effect_at_the_very_margin_is_decided_by_no_number_of_blocks() -> None:
    assert power.blocks_needed(-H, 0.05, MARGIN) is None
    assert power.blocks_needed(-1.0, 0.0, MARGIN) == 3
    assert power.quality_blocks_needed(paired.differences([0.895, 0.896, 0.894], [0.9] * 3), 0.005) is None
    assert power.quality_blocks_needed(paired.differences([0.90, 0.91, 0.9], [0.9, 0.9, 0.9]), 0.005) is not None


def test_what_takes_more_than_200_blocks_is_not_named() -> None:
    assert power.blocks_needed(-0.02, 0.2, MARGIN) is None
    assert power.MOST_BLOCKS == 200


def test_importing_it_costs_no_scipy() -> None:
    import subprocess
    import sys

    code = "import sys, energybench.stats.power; print(sorted({'scipy', 'numpy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
