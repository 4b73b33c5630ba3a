"""Expectations from mathematics: simulated truth, scipy.stats as oracle, identities."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as oracle

from energybench.stats import paired

NOISE = 0.01
H = -math.log1p(-NOISE)
positive = st.floats(1e-6, 1e9)
pairs = st.lists(st.tuples(positive, positive), min_size=3, max_size=12)


def blocks(mean: float, sd: float, n: int, repeats: int, seed: int = 1) -> np.ndarray:
    """`repeats` experiments of n paired log ratios with a known truth."""
    return np.random.default_rng(seed).normal(mean, sd, (repeats, n))


def experiment(d: np.ndarray, **options: object) -> paired.Paired:
    return paired.paired(np.exp(d), np.ones(len(d)), **options)  # type: ignore[arg-type]


def no_change(n: int = 5) -> paired.Mean:
    return paired.differences([0.9] * n, [0.9] * n)


def judge(d: np.ndarray) -> str:
    return paired.verdict(experiment(d), NOISE, "energy", no_change(len(d)), 0.005)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_95_percent_interval_covers_the_truth_about_95_times_in_100(n: int) -> None:
    truth = math.log(0.8)
    inside = 0
    for d in blocks(truth, 0.05, n, 8000):
        low, high = experiment(d).saving_interval()
        inside += low <= 0.2 <= high
    assert 0.94 <= inside / 8000 <= 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("truth", [0.0, -H])
def test_no_effect_beyond_the_noise_is_called_a_saving_at_most_once_in_100(n: int, truth: float) -> None:
    words = [judge(d) for d in blocks(truth, 0.05, n, 8000, seed=n)]
    assert words.count("saves") / len(words) <= 0.0130  # 1 % and its own sampling error, 3 sigma at the edge
    if truth == 0.0:
        assert words.count("saves") / len(words) <= 0.01


@pytest.mark.parametrize("scales", [(1, 1, 1), (3, 1, 1), (4, 1, 1, 1, 1)])
@pytest.mark.parametrize("n", [3, 5])
def test_a_pooled_spread_keeps_coverage_even_where_one_cell_is_noisier(n: int, scales: tuple[float, ...]) -> None:
    random = np.random.default_rng(3)
    repeats, inside, false = 5000, 0, 0
    for _ in range(repeats):
        shared = random.normal(0, 0.02, n)
        d = [random.normal(0, 0.02 * scale, n) - shared for scale in scales]
        spread = paired.pool([experiment(each).residuals for each in d])
        noisy = experiment(d[0], pooled=spread)
        low, high = noisy.interval()
        inside += low <= 0 <= high
        false += noisy.upper(0.99) < 0
    assert 0.935 <= inside / repeats <= 0.985
    assert false / repeats <= 0.018


@given(pairs)
def test_the_interval_is_that_of_a_one_sample_t_test(values: list[tuple[float, float]]) -> None:
    method, baseline = zip(*values, strict=True)
    ours = paired.paired(method, baseline)
    d = np.log(method) - np.log(baseline)
    if np.ptp(d) < 1e-6:
        return
    expected = oracle.ttest_1samp(d, 0.0).confidence_interval(0.95)
    assert ours.interval() == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


def test_a_saves_verdict_is_a_one_sided_t_test_at_1_percent_against_the_noise() -> None:
    for d in blocks(-0.06, 0.03, 5, 300):
        rejected = oracle.ttest_1samp(d, -H, alternative="less").pvalue < 0.01
        assert (judge(d) == "saves") == rejected


@given(pairs, st.floats(1e-6, 1e6))
def test_a_change_of_unit_changes_nothing(values: list[tuple[float, float]], unit: float) -> None:
    method, baseline = zip(*values, strict=True)
    here = paired.paired(method, baseline)
    there = paired.paired([unit * value for value in method], [unit * value for value in baseline])
    assert there.mean == pytest.approx(here.mean, abs=1e-9)
    assert there.sd == pytest.approx(here.sd, abs=1e-9)


@given(pairs)
def test_swapping_method_and_baseline_swaps_the_verdict(values: list[tuple[float, float]]) -> None:
    method, baseline = zip(*values, strict=True)
    there, back = paired.paired(method, baseline), paired.paired(baseline, method)
    assert there.mean == -back.mean
    assert there.interval() == tuple(-bound for bound in reversed(back.interval()))
    opposite = {"saves": "costs more", "costs more": "saves"}
    word = paired.verdict(there, NOISE, "energy", no_change(), 0.005)
    assert paired.verdict(back, NOISE, "energy", no_change(), 0.005) == opposite.get(word, word)


def test_a_true_saving_without_noise_is_reported_exactly() -> None:
    change = paired.paired([8.0, 80.0, 0.8], [10.0, 100.0, 1.0])
    assert change.saving == pytest.approx(0.2, abs=1e-12)
    assert change.saving_interval() == pytest.approx((0.2, 0.2), abs=1e-12)


@pytest.mark.parametrize(
    ("quantity", "ratio", "word"),
    [
        ("energy", 0.8, "saves"),
        ("time", 0.8, "faster"),
        ("energy", 1.25, "costs more"),
        ("time", 1.25, "slower"),
        ("energy", 1.0, "no saving"),
        ("time", 1.0, "no difference"),
    ],
)
def test_each_quantity_has_its_own_words(quantity: paired.Quantity, ratio: float, word: str) -> None:
    change = paired.paired([ratio * 0.999, ratio, ratio * 1.001], [1, 1, 1])
    assert paired.verdict(change, NOISE, quantity, no_change(3), 0.005) == word


def test_two_blocks_have_no_verdict_however_clear_they_are() -> None:
    assert paired.verdict(paired.paired([1, 1], [2, 2]), NOISE, "time", no_change(2), 0.005) == "no verdict"


@pytest.mark.parametrize(
    ("method", "of_quality", "word"),
    [
        ([0.900, 0.900, 0.900], "held", "saves"),
        ([0.895, 0.895, 0.895], "held", "saves"),  # exactly the margin is accepted
        ([0.894, 0.894, 0.894], "lost", "quality lost"),  # without any scatter the mean is the interval
        ([0.880, 0.881, 0.879], "lost", "quality lost"),
        ([0.880, 0.930, 0.890], "open", "quality unproven"),
        ([0.890, 0.840, 0.880], "open", "quality unproven"),  # 3 points lost in the mean, by no more than chance may
        ([0.062, 0.065, 0.059], "lost", "quality lost"),
    ],
)
def test_a_saving_counts_only_where_quality_is_held(method: list[float], of_quality: str, word: str) -> None:
    change = paired.paired([8, 8.01, 7.99], [10, 10, 10])
    quality = paired.differences(method, [0.9, 0.9, 0.9])
    assert paired.quality_verdict(quality, 0.005) == of_quality
    assert paired.verdict(change, NOISE, "energy", quality, 0.005) == word


@pytest.mark.parametrize("cost", ["inconclusive", "no saving", "saves"])
def test_what_lost_its_quality_is_never_inconclusive_nor_without_difference(cost: paired.Verdict) -> None:
    assert paired.in_one_word(cost, "lost") == "quality lost"


def test_what_costs_more_does_so_whatever_its_quality() -> None:
    for word in ("held", "lost", "open"):
        assert paired.in_one_word("slower", word) == "slower"  # type: ignore[arg-type]
        assert paired.in_one_word("no verdict", word) == "no verdict"  # type: ignore[arg-type]


def test_below_three_blocks_quality_is_open_however_clear_it_is() -> None:
    for n in (1, 2):
        assert paired.quality_verdict(paired.differences([0.06] * n, [0.9] * n), 0.005) == "open"


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=9), st.floats(0, 3))
def test_quality_is_held_or_lost_by_one_sided_t_tests_at_5_percent(
    values: list[tuple[float, float]], margin: float
) -> None:
    method, baseline = zip(*values, strict=True)
    d = np.subtract(method, baseline)
    if np.ptp(d) < 1e-6:
        return
    above = oracle.ttest_1samp(d, -margin, alternative="greater").pvalue
    below = oracle.ttest_1samp(d, -margin, alternative="less").pvalue
    if min(abs(above - 0.05), abs(below - 0.05)) < 1e-9:
        return
    expected = "held" if above < 0.05 else "lost" if below < 0.05 else "open"
    assert paired.quality_verdict(paired.differences(method, baseline), margin) == expected


def test_without_a_quality_figure_or_a_margin_a_saving_stays_unproven() -> None:
    change = paired.paired([8, 8, 8], [10, 10, 10])
    assert paired.verdict(change, NOISE, "energy") == "quality unproven"
    assert paired.verdict(change, NOISE, "energy", no_change(3)) == "quality unproven"


def test_where_lower_is_better_a_rise_is_a_loss() -> None:
    assert paired.differences([2.0, 2.2], [1.0, 1.2], higher_is_better=False).mean == pytest.approx(-1)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_factors_of_a_ratio_multiply_to_it(flop: float, seconds: float, joules: float) -> None:
    energy = paired.decompose(flop, seconds, joules)
    assert energy.watts is not None
    product = math.exp(energy.flop) * math.exp(energy.seconds_per_flop) * math.exp(energy.watts)
    assert product == pytest.approx(joules, rel=1e-12)
    assert energy.total == pytest.approx(math.log(joules), abs=1e-12)
    assert paired.decompose(flop, seconds).total == pytest.approx(math.log(seconds), abs=1e-12)


def test_the_designs_own_example_adds_up() -> None:
    parts = paired.decompose(1 - 0.264, (1 - 0.264) * 1.401, (1 - 0.264) * 1.401 * (1 - 0.042))
    assert math.exp(parts.seconds_per_flop) == pytest.approx(1.401)
    assert -math.expm1(parts.total) == pytest.approx(0.012, abs=0.0005)


def test_pooling_agrees_with_bartletts_test() -> None:
    random = np.random.default_rng(5)
    seen = set()
    for _ in range(200):
        groups = [random.normal(0, scale, 6) for scale in (1, random.choice([1, 4]), 1)]
        spread = paired.pool(groups)
        assert (spread is not None) == (oracle.bartlett(*groups).pvalue >= 0.01)
        seen.add(spread is None)
    assert seen == {True, False}


def test_cells_that_share_a_baseline_are_worth_fewer_degrees_of_freedom_than_their_sum() -> None:
    spread = paired.pool([[1, 2, 3], [2, 3, 4], [5, 6, 7]])
    assert spread is not None
    assert spread.sd == pytest.approx(1.0)
    assert spread.df == pytest.approx(6 / 1.5)


def test_a_pooled_spread_never_narrows_a_cell() -> None:
    own = paired.paired([1.0, 1.5, 0.7], [1, 1, 1])
    lent = paired.paired([1.0, 1.5, 0.7], [1, 1, 1], paired.Spread(own.sd / 2, 20))
    assert lent == own
    wider = paired.paired([1.0, 1.5, 0.7], [1, 1, 1], paired.Spread(own.sd * 1.1, 20))
    assert (wider.sd, wider.df) == (own.sd * 1.1, 20)


def test_one_block_has_a_figure_and_an_endless_interval() -> None:
    change = paired.paired([8.0], [10.0])
    assert change.saving == pytest.approx(0.2)
    assert change.interval() == (-math.inf, math.inf)


@pytest.mark.parametrize(("method", "baseline"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([math.nan], [1.0])])
def test_what_has_no_log_ratio_is_refused(method: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pairs needed|above 0"):
        paired.paired(method, baseline)


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one() -> None:
    assert paired.geometric_mean([0.25, 4.0]) == pytest.approx(1.0)
    assert math.isnan(paired.geometric_mean([]))


def test_importing_it_costs_neither_scipy_nor_torch() -> None:
    code = "import sys, energybench.stats.paired; print(sorted({'scipy', 'numpy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
