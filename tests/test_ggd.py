"""The generalized Gaussian against scipy's, against its own moments, and on samples that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from energybench.algorithms import generalized_gaussian as module
from energybench.algorithms import ziggurat
from energybench.algorithms.generalized_gaussian import EXACT_BELOW, GGD, LOCATIONS, SHAPE_MAX, SHAPE_MIN, fit, goodness

SHAPES = [0.3, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0]


def log_density(found: GGD, x: torch.Tensor) -> torch.Tensor:
    """scipy's, so that a fit is not judged by a formula of ours."""
    return torch.from_numpy(stats.gennorm.logpdf(x.double().numpy(), found.shape, found.location, found.scale))


def sample(shape: float, count: int, seed: int = 0, location: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """scipy's own draws, so that fits are not judged by our sampler."""
    return torch.from_numpy(stats.gennorm.rvs(shape, location, scale, size=count, random_state=seed))


def test_a_shape_of_two_is_normal_and_of_one_laplace():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), math.sqrt(0.5) * 1.7)
    torch.testing.assert_close(GGD(0.5, 1.7, 2.0).cdf(x), normal.cdf(x))
    laplace = torch.distributions.Laplace(torch.tensor(0.5, dtype=torch.float64), 1.7)
    torch.testing.assert_close(GGD(0.5, 1.7, 1.0).cdf(x), laplace.cdf(x))


@given(
    shape=st.floats(0.1, 15),
    scale=st.floats(1e-4, 1e3),
    location=st.floats(-5, 5),
    at=st.lists(st.floats(-4, 4), min_size=1, max_size=5),
)
def test_the_distribution_function_is_scipys(shape, scale, location, at):
    x = location + scale * np.array(at)
    found = GGD(location, scale, shape).cdf(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, stats.gennorm.cdf(x, shape, location, scale), rtol=1e-7, atol=1e-12)


def test_the_distribution_function_starts_at_0_is_a_half_at_the_location_and_ends_at_1():
    for shape in (0.3, 1.0, 5.0):
        at = torch.tensor([-math.inf, 0.25, math.inf], dtype=torch.float64)
        assert GGD(0.25, 2.0, shape).cdf(at).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("shape", [0.4, 1.0, 2.0, 9.0])
def test_the_variance_is_scipys(shape):
    assert GGD(3.0, 0.2, shape).variance == pytest.approx(stats.gennorm.var(shape, 3.0, 0.2), rel=1e-9)


# ── fitting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def best_by_scipy(x: torch.Tensor, location: float) -> float:
    """Mean log-likelihood of scipy's fit at that location, its shape held to our range."""
    shape, _, scale = stats.gennorm.fit(x.numpy(), floc=location)
    if not SHAPE_MIN <= shape <= SHAPE_MAX:
        shape, _, scale = stats.gennorm.fit(x.numpy(), f0=min(max(shape, SHAPE_MIN), SHAPE_MAX), floc=location)
    return float(stats.gennorm.logpdf(x.numpy(), shape, location, scale).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [100, 1000])
@pytest.mark.parametrize("location", ["median", "mean", "zero"])
def test_the_fit_is_at_least_as_likely_as_scipys(shape, count, location):
    for seed in range(3):
        x = sample(shape, count, seed, location=0.01, scale=2e-3)
        found = fit(x, location)
        expected = {"median": x.quantile(0.5).item(), "mean": x.mean().item(), "zero": 0.0}[location]
        assert found.location == pytest.approx(expected, abs=1e-15)
        assert log_density(found, x).mean() >= best_by_scipy(x, found.location) - 1e-6


def best_of_all_by_scipy(x: np.ndarray) -> float:
    """Mean log-likelihood of scipy's fit of all three parameters, its shape held to our range."""
    shape, location, scale = stats.gennorm.fit(x)
    if not SHAPE_MIN <= shape <= SHAPE_MAX:
        shape, location, scale = stats.gennorm.fit(x, f0=min(max(shape, SHAPE_MIN), SHAPE_MAX))
    return float(stats.gennorm.logpdf(x, shape, location, scale).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [50, 101, 1000, 2 * EXACT_BELOW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_a_free_location_too_the_fit_is_at_least_as_likely_as_scipys(shape, count, dtype):
    for seed in range(3 if count <= 1000 else 1):
        x = sample(shape, count, seed, location=0.01, scale=2e-3).to(dtype)
        assert log_density(fit(x), x).mean() >= best_of_all_by_scipy(x.double().numpy()) - 1e-6


@pytest.mark.parametrize(("location", "least"), [("free", 0.0), ("median", 2.0)])
def test_on_a_large_sample_both_locations_are_as_likely_as_scipys_fit_of_all_three(location, least):
    """At a shape of 1.5 a median's variance is 1.21 of the least possible: it costs 0.1 χ²/n, which is under 2/n."""
    x = GGD(1e-4, 1e-3, 1.5).sample(60_000, torch.Generator().manual_seed(1))
    expected = best_of_all_by_scipy(x.double().numpy())
    assert log_density(fit(x, location), x).mean() >= expected - 1e-6 - least / len(x)


@pytest.mark.parametrize("count", [300, 20_000])
def test_and_on_lopsided_samples_whose_peak_lies_away_from_the_median(count):
    random = np.random.default_rng(4)
    for x in (
        random.exponential(size=count),
        random.gamma(3, size=count),
        random.lognormal(size=count),
        np.concatenate([random.normal(size=count // 3), random.normal(4, 0.3, size=count)]),
    ):
        values = torch.from_numpy(x)
        assert log_density(fit(values), values).mean() >= best_of_all_by_scipy(x) - 1e-6


@pytest.mark.parametrize("shape", [0.4, 0.8, 1.0, 3.0])
@pytest.mark.parametrize("count", [21, 80, 300])
def test_no_element_is_a_likelier_location_than_the_free_one(shape, count):
    """Where β ≤ 1 the likelihood peaks at elements, so trying all of them finds its maximum."""
    for seed in range(3):
        x = sample(shape, count, seed)
        found = log_density(fit(x), x).mean().item()
        assert found >= max(log_density(fit(x - v, "zero"), x - v).mean().item() for v in x) - 1e-9


@given(
    shape=st.sampled_from([0.3, 1.0, 2.0, 6.0]),
    seed=st.integers(0, 50),
    zeros=st.integers(0, 40),
    shift=st.sampled_from([0.0, 0.7]),
)
def test_a_free_location_is_at_least_as_likely_as_each_that_is_given(shape, seed, zeros, shift):
    x = torch.cat([sample(shape, 150, seed) + shift, torch.zeros(zeros, dtype=torch.float64)])
    found = log_density(fit(x), x).mean().item()
    for centre in (x.median().item(), x.mean().item(), 0.0):
        assert found >= log_density(fit(x - centre, "zero"), x - centre).mean().item() - 1e-6


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bins_lose_less_than_a_tenth_of_a_millionth_of_the_likelihood(location, shape, monkeypatch):
    x = sample(shape, 3 * EXACT_BELOW, seed=3, location=0.3, scale=1e-2).float()
    binned = fit(x, location)
    monkeypatch.setattr(module, "EXACT_BELOW", 10 * EXACT_BELOW)
    exact = fit(x, location)
    assert log_density(binned, x).mean() >= log_density(exact, x).mean() - 1e-7
    assert binned.shape == pytest.approx(exact.shape, rel=2e-3)


def test_bins_hold_tied_elements_exactly_and_far_ones_too():
    """A bin is represented by its mean, so a sample of few values is the same sample in bins."""
    few = torch.tensor([-1.01, -0.3, 0.0, 0.3, 1.01])
    weights = [300, 800, 1500, 900, 200]
    tied = torch.repeat_interleave(few, torch.tensor(weights))
    many = tied.repeat(3)
    assert len(tied) < EXACT_BELOW < len(many)
    for location in LOCATIONS:
        assert close(fit(many, location), fit(tied, location))
    far = torch.cat([sample(2.0, 2 * EXACT_BELOW), torch.tensor([1e6, -1e6], dtype=torch.float64)])
    found = fit(far, "zero")
    assert log_density(found, far).mean() >= best_by_scipy(far, 0.0) - 1e-6


def test_the_median_of_a_large_sample_is_exact_even_where_every_kth_element_misleads():
    random = torch.Generator().manual_seed(2)
    for count in (300_000, 300_001):
        x = torch.randn(count, generator=random)
        assert fit(x, "median").location == pytest.approx(np.median(x.double().numpy()), abs=0)
        x[:: count // 10_000] += 50
        assert fit(x, "median").location == pytest.approx(np.median(x.double().numpy()), abs=0)


@pytest.mark.parametrize(("seed", "count", "small", "shape"), [(2263, 234, 45, 2.0), (3920, 80, 15, 4.0)])
def test_of_two_peaks_close_together_the_higher_is_found(seed, count, small, shape):
    """A trough lies right beside the peak: a bracket wider than needed holds both and has no change of sign."""
    near_zero = torch.from_numpy(1e-3 * np.random.default_rng(seed).normal(size=small))
    x = torch.cat([sample(shape, count, seed), near_zero])
    assert log_density(fit(x, "zero"), x).mean() >= best_by_scipy(x, 0.0) - 1e-6


@pytest.mark.parametrize("shape", [1.0, 2.0, 4.0])
def test_with_some_exact_zeros_the_fit_is_the_likeliest_shape_of_the_whole_range(shape):
    """Zeros pull the likelihood towards small shapes, so it has two peaks and a wide bracket misses one."""
    grid = np.exp(np.linspace(math.log(SHAPE_MIN), math.log(SHAPE_MAX), 300))
    for seed, zeros in enumerate(range(0, 120, 2)):
        x = torch.cat([sample(shape, 200, seed), torch.zeros(zeros, dtype=torch.float64)])
        scales = [(b * (x.abs() ** b).mean().item()) ** (1 / b) for b in grid]
        best = max(log_density(GGD(0.0, s, b), x).mean().item() for b, s in zip(grid, scales, strict=True))
        assert log_density(fit(x, "zero"), x).mean() >= best - 1e-6


def test_an_odd_count_is_fitted_without_the_element_that_is_the_median():
    x = sample(1.5, 101)
    found = fit(x, "median")
    others = x[x != x.median()]
    assert found.location == x.median()
    assert log_density(found, others).mean() >= best_by_scipy(others, found.location) - 1e-6


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_a_large_sample_gives_its_own_parameters_back(shape):
    found = fit(sample(shape, 40_000, location=-0.3, scale=0.02))
    assert found.shape == pytest.approx(shape, rel=0.06)
    assert found.scale == pytest.approx(0.02, rel=0.06)
    assert found.location == pytest.approx(-0.3, abs=1e-3)


@given(factor=st.floats(1e-8, 1e8), shift=st.floats(-1e3, 1e3), shape=st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_scaling_and_shifting_the_sample_scales_and_shifts_the_fit(factor, shift, shape):
    x = sample(shape, 200)
    plain, scaled, shifted = fit(x, "median"), fit(x * -factor, "median"), fit(x + shift, "median")
    assert scaled.shape == pytest.approx(plain.shape, rel=1e-6)
    assert scaled.scale == pytest.approx(plain.scale * factor, rel=1e-6)
    assert scaled.location == pytest.approx(-plain.location * factor, rel=1e-9)
    assert shifted.shape == pytest.approx(plain.shape, rel=1e-4)
    assert shifted.scale == pytest.approx(plain.scale, rel=1e-4)
    assert shifted.location == pytest.approx(plain.location + shift, abs=1e-9)


@given(factor=st.floats(1e-30, 1e30), shape=st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_scaling_the_sample_scales_the_free_fits_likelihood(factor, shape):
    x = sample(shape, 200)
    expected = log_density(fit(x), x).mean().item() - math.log(factor)
    assert log_density(fit(x * factor), x * factor).mean().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [500, 2 * EXACT_BELOW])
def test_a_location_far_from_zero_does_not_cost_precision(count):
    """1000 ± 0.01 has 160 steps of a float32 to a standard deviation; the median of two of them is none itself."""
    x = (1000 + sample(2.0, count, scale=1e-2)).float()
    found = fit(x, "median")
    assert log_density(found, x).mean() >= best_by_scipy(x.double(), found.location) - 1e-6
    assert found.scale == pytest.approx(1e-2, rel=0.1)


def test_shape_of_the_tensor_its_type_and_its_order_do_not_matter():
    x = sample(1.3, 400).float()
    turned = x[torch.randperm(400, generator=torch.Generator().manual_seed(1))].view(4, 5, 20)
    assert close(fit(turned), fit(x))
    assert close(fit(x.double()), fit(x))
    assert x.is_contiguous()  # and the sample is left alone
    assert torch.equal(x, sample(1.3, 400).float())


def close(one: GGD, other: GGD) -> bool:
    pairs = zip((one.location, one.scale, one.shape), (other.location, other.scale, other.shape), strict=True)
    return all(a == pytest.approx(b, rel=1e-6, abs=1e-12) for a, b in pairs)


# ── sampling ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [0.5, 1.0, 1.7, 2.0, 4.0, 8.0, 20.0])
def test_draws_have_the_moments_and_the_distribution_of_the_family(shape):
    ggd, count = GGD(0.7, 0.3, shape), 50_000
    x = ggd.sample(torch.Size([count]), torch.Generator().manual_seed(5))
    assert x.dtype == torch.float32
    centred = (x.double() - 0.7).abs()
    # |x − μ|^β / σ^β ~ Gamma(1/β, 1): mean 1/β, variance 1/β
    mean = (centred / 0.3).pow(shape).mean().item()
    assert abs(mean - 1 / shape) < 4 * math.sqrt(1 / shape / count)
    variance = 0.3**2 * math.exp(math.lgamma(3 / shape) - math.lgamma(1 / shape))
    kurtosis = math.exp(math.lgamma(5 / shape) + math.lgamma(1 / shape) - 2 * math.lgamma(3 / shape))
    assert abs(centred.square().mean().item() / variance - 1) < 4 * math.sqrt((kurtosis - 1) / count)
    assert stats.kstest(x.numpy().astype(np.float64), "gennorm", (shape, 0.7, 0.3)).pvalue > 1e-3


def test_draws_are_the_generators_alone_and_have_the_size_asked_for():
    ggd, size = GGD(0.0, 1.0, 1.5), torch.Size([3, 4, 5])
    first = ggd.sample(size, torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    assert torch.equal(ggd.sample(size, torch.Generator().manual_seed(1)), first)
    assert not torch.equal(ggd.sample(size, torch.Generator().manual_seed(2)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == size
    assert ggd.sample(torch.Size([]), torch.Generator()).shape == ()


@pytest.mark.parametrize("shape", [SHAPE_MIN, SHAPE_MAX])
def test_draws_are_finite_at_the_ends_of_the_range(shape):
    assert torch.isfinite(GGD(0.0, 1e-3, shape).sample(100_000, torch.Generator())).all()


@pytest.mark.parametrize("count", [ziggurat.CHUNK - 1, 2 * ziggurat.CHUNK + 1])
def test_a_draw_in_several_chunks_follows_the_law_in_each(count):
    x = GGD(0.0, 1.0, 0.8).sample(count, torch.Generator().manual_seed(8)).double().numpy()
    for part in (x[: count // 2], x[count // 2 :]):
        assert stats.kstest(part, "gennorm", (0.8,)).pvalue > 1e-3


def test_a_count_is_a_size_and_without_a_generator_torchs_own_is_used():
    ggd = GGD(0.0, 1.0, 1.5)
    seeded = torch.Generator().manual_seed(1)
    assert torch.equal(ggd.sample(7, seeded), ggd.sample(torch.Size([7]), torch.Generator().manual_seed(1)))
    assert ggd.sample((2, 3), generator=seeded).shape == (2, 3)
    assert ggd.sample(0).shape == (0,)
    torch.manual_seed(4)
    first = ggd.sample(5)
    torch.manual_seed(4)
    assert torch.equal(ggd.sample(5), first)


def test_fitting_and_drawing_leave_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        fit(GGD(0.0, 1.0, 2.0).sample(100))
        with pytest.raises(ValueError, match="at least 2"):
            fit(torch.zeros(1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [0.7, 2.0])
def test_fitting_what_was_drawn_finds_it_again(shape):
    drawn = GGD(0.1, 0.5, shape).sample(torch.Size([40_000]), torch.Generator().manual_seed(3))
    found = fit(drawn)
    assert found.shape == pytest.approx(shape, rel=0.06)
    assert found.scale == pytest.approx(0.5, rel=0.06)


# ── goodness of fit ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("count", "off"), [(10, 0.0), (200, 0.0), (200, 0.3), (5000, 0.01)])
def test_the_statistic_and_its_p_value_are_scipys(count, off):
    x, ggd = sample(1.4, count, seed=6), GGD(off, 1.0, 1.4)
    expected = stats.kstest(x.numpy(), "gennorm", (1.4, off, 1.0))
    statistic, p_value = goodness(x.view(2, -1), ggd)
    assert statistic == pytest.approx(expected.statistic, abs=1e-9)
    assert p_value == pytest.approx(expected.pvalue, rel=0.05, abs=1e-3)


def test_of_samples_of_the_law_itself_about_95_in_100_pass_at_5_percent():
    ggd = GGD(0.0, 1.0, 0.9)
    generator = torch.Generator().manual_seed(9)
    passing = sum(goodness(ggd.sample(300, generator), ggd)[1] >= 0.05 for _ in range(400))
    assert abs(passing / 400 - 0.95) < 4 * math.sqrt(0.05 * 0.95 / 400)


# ── samples that are none ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([], "at least 2"),
        ([1.0], "at least 2"),
        ([1.0, math.nan, 2.0], "not all finite"),
        ([1.0, math.inf, 2.0], "not all finite"),
        ([3.0, 3.0], "all equal"),
        ([0.0] * 50, "all equal"),
        ([0.1] * 51, "all equal"),
    ],
)
@pytest.mark.parametrize("location", ["free", "median", "mean"])
def test_what_has_no_fit_is_refused_with_its_reason(values, why, location):
    with pytest.raises(ValueError, match=why):
        fit(torch.tensor(values), location)


def test_about_zero_only_zeros_have_no_fit():
    with pytest.raises(ValueError, match="all equal"):
        fit(torch.zeros(5), "zero")
    assert fit(torch.full((5,), -3.0), "zero") == GGD(0.0, pytest.approx(3 * 20 ** (1 / 20)), SHAPE_MAX)


def test_a_uniform_sample_ends_at_the_largest_shape_near_its_middle():
    for count in (200, 3 * EXACT_BELOW):
        found = fit(torch.from_numpy(np.random.default_rng(1).uniform(2, 4, count)))
        assert found.shape == pytest.approx(SHAPE_MAX)
        assert found.location == pytest.approx(3, abs=0.05)


def test_a_cauchy_sample_has_a_heavy_tailed_fit_with_finite_draws():
    for count in (300, 3 * EXACT_BELOW):
        found = fit(torch.from_numpy(stats.cauchy.rvs(size=count, random_state=2)))
        assert 0.1 < found.shape < 0.8
        assert abs(found.location) < 0.2
        assert torch.isfinite(found.sample(10_000)).all()


def test_two_elements_are_enough_and_a_free_location_is_one_of_them():
    assert fit(torch.tensor([1.0, 3.0])).location in (1.0, 3.0)
    assert fit(torch.tensor([1.0, 3.0])).shape == pytest.approx(SHAPE_MIN)
    assert fit(torch.tensor([1.0, 3.0]), "median").location == 2.0


def test_the_most_common_value_is_found_wherever_it_lies():
    x = torch.cat([sample(2.0, 200), torch.full((60,), 1.7, dtype=torch.float64)])
    assert fit(x).location == pytest.approx(1.7, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_other_types_are_fitted_as_the_numbers_they_are(dtype):
    x = (100 * sample(1.5, 400)).to(dtype)
    assert close(fit(x), fit(x.double()))


@pytest.mark.parametrize("factor", [1e-300, 1e-44, 1e300])
def test_numbers_at_the_ends_of_a_type_have_a_fit_or_a_reason(factor):
    x = sample(2.0, 2 * EXACT_BELOW) * factor
    found = fit(x, "median")
    assert found.scale == pytest.approx(math.sqrt(2) * x.abs().median().item() / 0.6745, rel=0.1)
    assert found.shape == pytest.approx(2, rel=0.15)
    for factor_of_float32 in (1e-37, 7e37):  # many are denormal; differences of two are no float32
        narrow = (sample(2.0, 2 * EXACT_BELOW) * factor_of_float32).float()
        assert fit(narrow).shape == pytest.approx(2, rel=0.15)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("count", [300, 300_001])
def test_a_sample_on_a_gpu_has_the_fit_that_it_has_on_the_cpu(location, count):
    x = sample(1.3, count, scale=1e-3).float()
    there = fit(x.cuda(), location)
    assert close(there, fit(x, location))
    drawn = there.sample((3, 50_000), torch.Generator("cuda").manual_seed(1))
    assert drawn.is_cuda
    assert goodness(drawn, there)[1] > 1e-3


def test_an_unknown_location_is_refused():
    with pytest.raises(ValueError, match="median, mean or zero"):
        fit(torch.tensor([1.0, 2.0]), "mode")


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.0, 1e-6, 1.0, 1000.0]), min_size=2, max_size=60))
def test_ties_and_zeros_give_a_proper_distribution_or_a_reason(values):
    x = torch.tensor(values)
    for location in LOCATIONS:
        try:
            found = fit(x, location)
        except ValueError as reason:
            assert "equal" in str(reason)  # noqa: PT017
            assert len(x[(x != 0) if location == "zero" else (x != x[0])]) <= 1
            continue
        assert all(math.isfinite(v) for v in (found.location, found.scale, found.shape))
        assert found.scale > 0
        assert SHAPE_MIN * 0.999 <= found.shape <= SHAPE_MAX * 1.001
        assert torch.isfinite(found.sample(torch.Size([50]), torch.Generator())).all()


def test_mostly_zeros_end_at_the_smallest_shape_and_two_equal_distances_at_the_largest():
    """Of a point mass the likelihood grows without bound as β → 0, of a uniform law's ends as β → ∞."""
    sparse = torch.zeros(1000)
    sparse[:3] = torch.tensor([1.0, -2.0, 0.5])
    for location in ("free", "median", "zero"):
        assert fit(sparse, location).shape == pytest.approx(SHAPE_MIN)
    assert fit(torch.tensor([-1.0, 1.0, -1.0, 1.0]), "median").shape == pytest.approx(SHAPE_MAX)
