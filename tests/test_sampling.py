"""The sampler against exact cumulative sums, the draws against chi-square, the weights against enumeration."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from energybench.algorithms.weighted_sampling import ROW, TOP, Sampler, average_repeats, unbiased

# Small numbers often, sizes around the borders of rows and levels.
sizes = st.one_of(st.integers(1, 5), st.sampled_from([TOP - 1, TOP, TOP + 1, TOP + ROW, TOP * ROW, TOP * ROW + 1]))


@st.composite
def whole_importances(draw: Any, least: int = 0) -> Tensor:
    """(N,) whole numbers, so that every sum of them is exact; at least one is positive."""
    count = draw(sizes)
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    most = draw(st.sampled_from([1, 2, 7, 1000]))
    values = torch.randint(least, most + 1, (count,), generator=random).double()
    if draw(st.booleans()) and least == 0:  # nearly all are nothing
        values *= torch.rand(count, generator=random) < 0.02
    values[int(torch.randint(count, (1,), generator=random))] += 1
    return values


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ── which sample a number means ───────────────────────────────────────────────────────────────────────────────────


@given(importance=whole_importances(), seed=st.integers(0, 999))
def test_a_number_means_the_first_sample_whose_cumulative_share_exceeds_it(importance, seed):
    sampler, total = Sampler(importance), int(importance.sum())
    part = torch.randint(total, (300,), generator=seeded(seed))
    ends = np.cumsum(importance.numpy())
    expected = np.searchsorted(ends, part.numpy() + 0.5, side="right")
    assert sampler.at((part.double() + 0.5) / total).tolist() == expected.tolist()
    assert sampler.total.item() == total


@given(importance=whole_importances())
@settings(max_examples=15)
def test_of_as_many_even_numbers_as_the_total_each_sample_gets_its_importance(importance):
    sampler, total = Sampler(importance), int(importance.sum())
    assume(total < 1_000_000)  # each of them is drawn
    numbers = (torch.arange(total).double() + 0.5) / total
    found = torch.cat([sampler.at(some) for some in numbers.split(4096)])
    assert torch.equal(torch.bincount(found, minlength=len(importance)).double(), importance)


@given(importance=whole_importances(), scale=st.sampled_from([1e-300, 1e-9, math.pi, 1e9, 1e300]))
def test_the_ends_of_the_numbers_mean_the_first_and_the_last_sample_that_has_importance(importance, scale):
    sampler = Sampler(importance * scale)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    positive = importance.nonzero().flatten()
    assert sampler.at(ends).tolist() == [positive[0], positive[-1]]


@given(seed=st.integers(0, 999), count=sizes)
def test_a_sample_without_importance_is_never_drawn_however_sums_round(seed, count):
    importance = torch.rand(count, generator=seeded(seed), dtype=torch.float64).pow(8)
    importance[torch.rand(count, generator=seeded(seed + 1)) < 0.5] = 0
    importance[seed % count] = 1e-12
    index, probability = Sampler(importance).draw(500, seeded(seed))
    assert (importance[index] > 0).all()
    assert (probability > 0).all()


# ── draws ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def p_value(index: Tensor, importance: Tensor) -> float:
    """Of a chi-square test that `index` was drawn in proportion to `importance`."""
    counts = torch.bincount(index, minlength=len(importance)).numpy()
    expected = (importance.double() / importance.double().sum() * len(index)).numpy()
    return float(chisquare(counts, expected).pvalue)


def test_draws_are_distributed_as_the_importances_say_before_and_after_many_changes():
    importance = torch.rand(1000, generator=seeded(1), dtype=torch.float64) + 0.1
    sampler = Sampler(importance)
    index, _ = sampler.draw(200_000, seeded(2))
    assert p_value(index, importance) > 1e-3
    for step in range(50):
        some = torch.randint(1000, (64,), generator=seeded(step))
        changed = torch.rand(1000, generator=seeded(100 + step), dtype=torch.float64) + 0.1
        importance[some] = changed[some]
        sampler.set(some, changed[some])
    assert torch.equal(sampler.importance, importance)
    index, _ = sampler.draw(200_000, seeded(3))
    assert p_value(index, importance) > 1e-3
    assert p_value(index, torch.ones(1000)) < 1e-9  # the test would notice


def test_draws_of_one_batch_are_independent():
    """Pairs of neighbours in a batch are distributed as products."""
    importance = torch.tensor([1.0, 2.0, 3.0, 0.5])
    index, _ = Sampler(importance).draw(100_000, seeded(4))
    pairs = index[::2] * 4 + index[1::2]
    assert p_value(pairs, torch.outer(importance, importance).flatten()) > 1e-3


@given(importance=whole_importances(), count=st.integers(1, 50))
def test_a_draw_comes_with_its_probability_and_depends_on_the_generator_alone(importance, count):
    sampler = Sampler(importance)
    index, probability = sampler.draw(count, seeded(7))
    assert torch.equal(probability, importance[index] / importance.sum())
    torch.rand(100)
    assert torch.equal(sampler.draw(count, seeded(7))[0], index)
    assert index.shape == (count,)


def test_more_samples_than_multinomial_can_tell_apart():
    count = 2**24 + 1000
    with pytest.raises(RuntimeError, match="2\\^24"):
        torch.multinomial(torch.ones(count), 1)
    importance = torch.full((count,), 1.0, dtype=torch.float64)
    sampler = Sampler(importance)
    shares = torch.arange(0, count, 4_000_037)
    at = shares.double()
    assert sampler.at((at + 0.5) / count).tolist() == shares.tolist()  # neighbours are told apart
    assert sampler.at((at + 1.5) / count).tolist() == (shares + 1).tolist()
    heavy = torch.tensor([5, 2**24 - 1, 2**24, count - 1])
    sampler.set(heavy, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64) * count)
    index, _ = sampler.draw(20_000, seeded(5))
    counts = [int((index == one).sum()) for one in heavy]
    counts.append(len(index) - sum(counts))
    assert chisquare(counts, [len(index) * share / 11 for share in (1, 2, 3, 4, 1)]).pvalue > 1e-3


# ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(importance=whole_importances(), seed=st.integers(0, 999))
def test_after_any_changes_every_sum_is_that_of_a_sampler_made_anew(importance, seed):
    """Of numbers whose sums round: nothing is added up over time. Repeated indices change their sample once."""
    sampler, values = Sampler(importance * 0.1), importance * 0.1
    for step in range(20):
        index = torch.randint(len(values), (9,), generator=seeded(seed + step))
        values[index] = torch.rand(len(values), generator=seeded(step), dtype=torch.float64)[index] * 10.0 ** (step % 7)
        sampler.set(index, values[index])
    fresh = Sampler(values)
    assert torch.equal(sampler.importance, values)
    assert len(sampler._levels) == len(fresh._levels)
    for mine, theirs in zip(sampler._levels, fresh._levels, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-15, atol=0)
    torch.testing.assert_close(sampler.total, values.sum(), rtol=1e-12, atol=0)


@given(index=st.lists(st.integers(0, 12), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_repeats_get_their_mean_and_are_counted(index, seed):
    values = torch.rand(len(index), generator=seeded(seed))
    found, repeats = average_repeats(torch.tensor(index), values)
    for place, position in enumerate(index):
        mine = [values[i].item() for i, other in enumerate(index) if other == position]
        assert found[place].item() == pytest.approx(sum(mine) / len(mine), rel=1e-12)
        if len(mine) == 1:
            assert found[place].item() == mine[0]
    assert repeats.item() == sum(count - 1 for count in Counter(index).values())
    groups = {position: {found[i].item() for i, p in enumerate(index) if p == position} for position in index}
    assert all(len(group) == 1 for group in groups.values())  # bit for bit, or an update would depend on an order


class Sizes(TorchDispatchMode):
    """The largest result of any operator, but for those that change a tensor in place or look at one."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        schema = func._schema
        if not any(given.alias_info for given in schema.arguments):
            self.largest = max([self.largest, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))])
        return out


@pytest.mark.parametrize("count", [9_000, 300_000])
def test_no_operator_of_a_step_makes_anything_as_long_as_the_set(count):
    sampler, batch = Sampler(torch.rand(count)), 16
    generator, scores = seeded(1), torch.rand(batch)
    with Sizes() as seen:
        index, _ = sampler.draw(batch, generator)
        mean, _ = average_repeats(index, scores)
        sampler.set(index, mean)
    assert batch * ROW <= seen.largest <= TOP


# ── what is no importance ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", [-1.0, -1e-300, math.nan, math.inf, -math.inf])
def test_what_is_negative_or_not_finite_is_refused_and_changes_nothing(bad):
    sampler = Sampler(torch.tensor([1.0, 2.0, 3.0]))
    sampler.check()
    sampler.set(torch.tensor([2, 0]), torch.tensor([bad, 5.0], dtype=torch.float64))
    assert sampler.importance.tolist() == [5.0, 2.0, 3.0]
    assert sampler.total.item() == 10
    with pytest.raises(ValueError, match="finite and ≥ 0; 1 were not"):
        sampler.check()
    first = Sampler(torch.tensor([1.0, bad], dtype=torch.float64))
    assert first.importance.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="finite and ≥ 0"):
        first.check()


def test_while_all_importances_are_0_all_samples_are_drawn_alike_and_check_says_so():
    sampler = Sampler(torch.zeros(300))
    index, probability = sampler.draw(60_000, seeded(6))
    assert p_value(index, torch.ones(300)) > 1e-3
    assert probability.unique().tolist() == [1 / 300]
    with pytest.raises(ValueError, match="all 300 importances are 0"):
        sampler.check()
    sampler.set(torch.tensor([200]), torch.tensor([0.5], dtype=torch.float64))
    assert sampler.draw(20, seeded(7))[0].unique().tolist() == [200]


@pytest.mark.parametrize("shape", [(0,), (), (2, 2)])
def test_importances_are_one_number_per_sample(shape):
    with pytest.raises(ValueError, match=r"shape \(N,\)"):
        Sampler(torch.ones(shape))


# ── weights ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(importance=whole_importances(least=1), seed=st.integers(0, 99))
def test_the_expected_weighted_value_is_the_mean_for_any_importances_above_0(importance, seed):
    values = torch.randn(len(importance), generator=seeded(seed), dtype=torch.float64)
    probability = importance / importance.sum()
    expected = (probability * unbiased(probability, len(values)) * values).sum()
    torch.testing.assert_close(expected, values.mean(), rtol=1e-9, atol=1e-12)


def test_what_only_rounding_could_draw_counts_for_nothing():
    assert unbiased(torch.tensor([0.5, 0.0]), 4).tolist() == [0.5, 0.0]
