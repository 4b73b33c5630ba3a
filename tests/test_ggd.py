"""The generalized Gaussian against scipy's, against its own moments, and on samples that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from energybench.ggd import GGD, SHAPE_MAX, SHAPE_MIN, fit

SHAPES = [0.3, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0]


def sample(
    shape: float, count: int, seed: int = 0, location: float = 0.0, scale: float = 1.0
) -> torch.Tensor:
    """scipy's own draws, so that fits are not judged by our sampler."""
    return torch.from_numpy(stats.gennorm.rvs(shape, location, scale, size=count, random_state=seed))


@given(
    shape=st.floats(0.1, 15),
    scale=st.floats(1e-4, 1e3),
    location=st.floats(-5, 5),
    at=st.lists(st.floats(-4, 4), min_size=1, max_size=5),
)
def test_the_density_is_scipys(shape, scale, location, at):
    x = location + scale * np.array(at)
    expected = stats.gennorm.logpdf(x, shape, location, scale)
    found = GGD(location, scale, shape).log_prob(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_a_shape_of_two_is_normal_and_of_one_laplace():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), math.sqrt(0.5) * 1.7)
    torch.testing.assert_close(GGD(0.5, 1.7, 2.0).log_prob(x), normal.log_prob(x))
    laplace = torch.distributions.Laplace(torch.tensor(0.5, dtype=torch.float64), 1.7)
    torch.testing.assert_close(GGD(0.5, 1.7, 1.0).log_prob(x), laplace.log_prob(x))


# ── fitting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def best_by_scipy(x: torch.Tensor, location: float) -> float:
    """Mean log-likelihood of scipy's fit at that location, its shape held to our range."""
    shape, _, scale = stats.gennorm.fit(x.numpy(), floc=location)
    if not SHAPE_MIN <= shape <= SHAPE_MAX:
        shape, _, scale = stats.gennorm.fit(
            x.numpy(), f0=min(max(shape, SHAPE_MIN), SHAPE_MAX), floc=location
        )
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
        assert found.log_prob(x).mean() >= best_by_scipy(x, found.location) - 1e-6


@pytest.mark.parametrize(("seed", "count", "small", "shape"), [(2263, 234, 45, 2.0), (3920, 80, 15, 4.0)])
def test_of_two_peaks_close_together_the_higher_is_found(seed, count, small, shape):
    """A trough lies right beside the peak: a bracket wider than needed holds both and has no change of sign."""
    near_zero = torch.from_numpy(1e-3 * np.random.default_rng(seed).normal(size=small))
    x = torch.cat([sample(shape, count, seed), near_zero])
    assert fit(x, "zero").log_prob(x).mean() >= best_by_scipy(x, 0.0) - 1e-6


@pytest.mark.parametrize("shape", [1.0, 2.0, 4.0])
def test_with_some_exact_zeros_the_fit_is_the_likeliest_shape_of_the_whole_range(shape):
    """Zeros pull the likelihood towards small shapes, so it has two peaks and a wide bracket misses one."""
    grid = np.exp(np.linspace(math.log(SHAPE_MIN), math.log(SHAPE_MAX), 300))
    for seed, zeros in enumerate(range(0, 120, 2)):
        x = torch.cat([sample(shape, 200, seed), torch.zeros(zeros, dtype=torch.float64)])
        scales = [(b * (x.abs() ** b).mean().item()) ** (1 / b) for b in grid]
        best = max(GGD(0.0, s, b).log_prob(x).mean().item() for b, s in zip(grid, scales, strict=True))
        assert fit(x, "zero").log_prob(x).mean() >= best - 1e-6


def test_an_odd_count_is_fitted_without_the_element_that_is_the_median():
    x = sample(1.5, 101)
    found = fit(x)
    others = x[x != x.median()]
    assert found.location == x.median()
    assert found.log_prob(others).mean() >= best_by_scipy(others, found.location) - 1e-6


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_a_large_sample_gives_its_own_parameters_back(shape):
    found = fit(sample(shape, 40_000, location=-0.3, scale=0.02))
    assert found.shape == pytest.approx(shape, rel=0.06)
    assert found.scale == pytest.approx(0.02, rel=0.06)
    assert found.location == pytest.approx(-0.3, abs=1e-3)


@given(factor=st.floats(1e-8, 1e8), shift=st.floats(-1e3, 1e3), shape=st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_scaling_and_shifting_the_sample_scales_and_shifts_the_fit(factor, shift, shape):
    x = sample(shape, 200)
    plain, scaled, shifted = fit(x), fit(x * -factor), fit(x + shift)
    assert scaled.shape == pytest.approx(plain.shape, rel=1e-6)
    assert scaled.scale == pytest.approx(plain.scale * factor, rel=1e-6)
    assert scaled.location == pytest.approx(-plain.location * factor, rel=1e-9)
    assert shifted.shape == pytest.approx(plain.shape, rel=1e-4)
    assert shifted.scale == pytest.approx(plain.scale, rel=1e-4)
    assert shifted.location == pytest.approx(plain.location + shift, abs=1e-9)


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
    assert torch.isfinite(GGD(0.0, 1e-3, shape).sample(torch.Size([100_000]), torch.Generator())).all()


@pytest.mark.parametrize("shape", [0.7, 2.0])
def test_fitting_what_was_drawn_finds_it_again(shape):
    drawn = GGD(0.1, 0.5, shape).sample(torch.Size([40_000]), torch.Generator().manual_seed(3))
    found = fit(drawn)
    assert found.shape == pytest.approx(shape, rel=0.06)
    assert found.scale == pytest.approx(0.5, rel=0.06)


# ── samples that are none ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([], "at least 2"), ([1.0], "at least 2"),
        ([1.0, math.nan, 2.0], "not all finite"), ([1.0, math.inf, 2.0], "not all finite"),
        ([3.0, 3.0], "all equal"), ([0.0] * 50, "all equal"), ([0.1] * 51, "all equal"),
    ],
)  # fmt: skip
def test_what_has_no_fit_is_refused_with_its_reason(values, why):
    with pytest.raises(ValueError, match=why):
        fit(torch.tensor(values))


def test_an_unknown_location_is_refused():
    with pytest.raises(ValueError, match="median, mean or zero"):
        fit(torch.tensor([1.0, 2.0]), "mode")


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.0, 1e-6, 1.0, 1000.0]), min_size=2, max_size=60))
def test_ties_and_zeros_give_a_proper_distribution_or_a_reason(values):
    x = torch.tensor(values)
    for location in ("median", "mean", "zero"):
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
    assert fit(sparse).shape == pytest.approx(SHAPE_MIN)
    assert fit(torch.tensor([-1.0, 1.0, -1.0, 1.0])).shape == pytest.approx(SHAPE_MAX)
