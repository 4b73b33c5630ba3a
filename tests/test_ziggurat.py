"""The ziggurat: strips of equal area that cover the density, and draws that have its law, in the tail too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from energybench.algorithms import ziggurat as module
from energybench.algorithms.ziggurat import SIDE, STRIPS, fill, ziggurat

SHAPES = [0.05, 0.3, 0.7, 1.0, 1.5, 2.0, 8.0, 20.0]


def drawn(shape: float, count: int, seed: int = 1) -> torch.Tensor:
    out = torch.empty(count)
    fill(shape, out, torch.Generator().manual_seed(seed))
    return out


@given(st.floats(0.3, 20))  # below, float32 has no number as small as the highest strips are wide
def test_strips_have_equal_areas_and_reach_the_top(shape):
    tables = ziggurat(shape)
    widths, there = tables.widths.double() * SIDE, tables.widths > 0
    strips = int(there.sum())
    areas = (widths * (tables.high - tables.low))[:strips]
    assert torch.allclose(areas, areas[0].expand_as(areas), rtol=1e-5)
    assert tables.high[strips - 1] >= 1 - 1e-9
    assert torch.allclose(tables.high[: strips - 1], tables.low[1:strips], rtol=1e-9)
    total = math.gamma(1 + 1 / shape)  # ∫ exp(−x^β), which all strips together cover, and little more
    assert total <= areas[0].item() * strips * (1 + 1e-3) <= 1.15 * total


@given(st.floats(0.3, 20))
def test_what_lies_within_the_next_strip_lies_below_the_density(shape):
    tables = ziggurat(shape)
    within = tables.inner.double() * tables.widths.double()
    density = torch.exp(-(within**shape))
    there = (tables.widths > 0) & (tables.inner > 0)
    assert (density[there] >= tables.high[there] - 1e-5).all()
    assert special.gammaincc(1 / shape, within[0].item() ** shape) == pytest.approx(tables.outside, rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_magnitudes_have_the_gamma_law_and_signs_are_even(shape):
    """|x|^β ~ Gamma(1/β, 1), whatever β is."""
    x = drawn(shape, 200_000)
    powers = x.double().abs() ** shape
    assert stats.kstest(powers.numpy(), "gamma", (1 / shape,)).pvalue > 1e-3
    assert stats.binomtest(int((x > 0).sum()), len(x)).pvalue > 1e-3
    positive = powers[x > 0].numpy()
    assert stats.ks_2samp(positive, powers[x < 0].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
def test_as_many_draws_lie_in_the_tail_as_the_law_has_there(shape):
    tables, count = ziggurat(shape), 1_000_000
    edge = float(tables.inner[0] * tables.widths[0])
    beyond = drawn(shape, count).double().abs()
    tail = beyond[beyond > edge]
    assert stats.binomtest(len(tail), count, tables.outside).pvalue > 1e-3
    left = special.gammaincc(1 / shape, tail.numpy() ** shape) / tables.outside
    assert stats.kstest(left, "uniform").pvalue > 1e-3


def test_draws_follow_the_generator_alone_and_the_size_of_a_chunk_is_no_part_of_the_law(monkeypatch):
    first = drawn(1.5, 10_000)
    state = torch.get_rng_state()
    assert torch.equal(first, drawn(1.5, 10_000))
    assert not torch.equal(first, drawn(1.5, 10_000, seed=2))
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(module, "CHUNK", 1000)
    parts = drawn(1.5, 100_500).double().numpy()
    for part in (parts[:1000], parts[50_000:51_000], parts[-500:], parts):
        assert stats.kstest(part, "gennorm", (1.5,)).pvalue > 1e-3


@pytest.mark.parametrize("count", [0, 1, module.FEW - 1, module.FEW])
def test_few_draws_need_no_tables(count):
    ziggurat.cache_clear()
    assert torch.isfinite(drawn(1.5, count)).all()
    assert ziggurat.cache_info().currsize == (count >= module.FEW)


def test_there_is_room_for_every_shape_in_the_first_area_that_is_tried(monkeypatch):
    """Else tables would be made several times over."""
    tried = []
    edges = module._edges
    monkeypatch.setattr(module, "_edges", lambda *given: tried.append(given) or edges(*given))
    ziggurat.cache_clear()
    shapes = [0.05 * 400 ** (step / 40) for step in range(41)]
    for shape in shapes:
        assert (ziggurat(shape).widths > 0).sum() <= STRIPS
    assert len(tried) == len(shapes)
