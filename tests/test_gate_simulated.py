"""The tables of docs/gates.md, simulated again: how often the gate cries wolf, and what it misses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtr

from energybench.gate.regression import FAMILY, chance, detectable, holm, welch
from energybench.stats import paired

MARGIN = -math.log1p(-0.01)


def chances(base: Any, head: Any) -> Any:
    """`chance(welch(…))` for arrays whose last axis holds the blocks."""
    n = base.shape[-1]
    a, b = base.var(-1, ddof=1) / n, head.var(-1, ddof=1) / n
    df = (a + b) ** 2 / (a**2 + b**2) * (n - 1)
    return stdtr(df, -(head.mean(-1) - base.mean(-1) - MARGIN) / np.sqrt(a + b))


def suspects(p: Any) -> Any:
    """`holm` for arrays whose last axis holds the cells."""
    cells = p.shape[-1]
    order = np.argsort(p, -1)
    falls = np.cumprod(np.take_along_axis(p, order, -1) <= FAMILY / (cells - np.arange(cells)), -1).astype(bool)
    found = np.zeros_like(falls)
    np.put_along_axis(found, order, falls, -1)
    return found


def confirmed(first: Any, again: Any) -> Any:
    """Whether any suspicion is found again, in a family of the suspected alone."""
    count = np.maximum(first.sum(-1), 1)
    return np.where(first, again, 2.0).min(-1) <= FAMILY / count


def drawn(rng: Any, times: int, cells: int, n: int, sd: float, mean: Any = 0.0) -> Any:
    return rng.normal(mean, sd, (times, cells, n))


def test_the_fast_arithmetic_here_is_the_gates_own() -> None:
    rng = np.random.default_rng(2)
    base, head = drawn(rng, 200, 4, 5, 0.02), drawn(rng, 200, 4, 5, 0.02, 0.04)
    fast = chances(base, head)
    falls = suspects(fast)
    for i in range(200):
        own = [chance(welch(*(_mean(side[i, cell]) for side in (base, head))), MARGIN) for cell in range(4)]
        assert own == pytest.approx(fast[i])
        assert holm(own) == list(falls[i])


def _mean(values: Any) -> paired.Mean:
    return paired.Mean(len(values), float(values.mean()), float(values.std(ddof=1)), len(values) - 1)


WORST = {3: (0.6, 0.05, 0.005), 5: (0.8, 0.1, 0.005), 10: (1.0, 0.15, 0.01)}  # %, as docs/gates.md has them


@pytest.mark.slow
@pytest.mark.parametrize("cells", [1, 6])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_false_alarms_are_as_rare_as_the_page_says(cells: int, n: int) -> None:
    rng, times = np.random.default_rng(1000 * cells + n), 100_000
    base, base2 = (drawn(rng, times, cells, n, 0.02) for _ in range(2))
    same = suspects(chances(base, drawn(rng, times, cells, n, 0.02)))
    assert same.any(-1).mean() <= 0.002
    head, head2 = (drawn(rng, times, cells, n, 0.02, MARGIN) for _ in range(2))
    first = suspects(chances(base, head))
    found = [
        first.any(-1).mean(),
        confirmed(first, chances(base, head2)).mean(),
        confirmed(first, chances(base2, head2)).mean(),
    ]
    assert found[0] <= FAMILY + 3 * math.sqrt(FAMILY / times)
    for rate, told in zip(found, WORST[n], strict=True):
        assert rate <= 1.3 * told / 100 + 3 * math.sqrt(told / 100 / times)
    assert found[2] < found[1] / 5 < found[0] / 20


POWER = {
    (3, 0.02): (3, 22, 74, 99),
    (5, 0.02): (21, 94, 100, 100),
    (10, 0.02): (80, 100, 100, 100),
    (5, 0.05): (2, 14, 77, 100),
}


@pytest.mark.slow
@pytest.mark.parametrize(("n", "sd"), POWER)
def test_losses_are_found_as_often_as_the_page_says(n: int, sd: float) -> None:
    rng, times = np.random.default_rng(n), 20_000
    for loss, told in zip((0.05, 0.1, 0.2, 0.5), POWER[n, sd], strict=True):
        truth = np.zeros((6, 1))
        truth[0] = math.log1p(loss)
        first = suspects(chances(drawn(rng, times, 6, n, sd), drawn(rng, times, 6, n, sd, truth)))
        assert 100 * first[:, 0].mean() == pytest.approx(told, abs=2)


@pytest.mark.slow
@pytest.mark.parametrize("cells", [1, 6])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_loss_that_sees_from_names_is_found_by_two_fresh_runs_four_times_in_five(n: int, cells: int) -> None:
    rng, pairs, fresh, found = np.random.default_rng(n), 400, 80, []
    truth = np.zeros((cells, 1))
    for _ in range(pairs):
        change = welch(*(_mean(drawn(rng, 1, 1, n, 0.02)[0, 0]) for _ in range(2)))
        loss = detectable(change, MARGIN, cells, blocks=(n, n))
        assert loss is not None
        truth[0] = math.log1p(loss)
        first = suspects(chances(drawn(rng, fresh, cells, n, 0.02), drawn(rng, fresh, cells, n, 0.02, truth)))
        found.append(first[:, 0].mean())
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
