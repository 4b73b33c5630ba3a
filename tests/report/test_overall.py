"""Geometric means over workloads: identities, what is left out, and the interval's coverage of a simulated truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import GPU, MODEL, Run, merge

from energybench.report.markdown import markdown
from energybench.verdict import overall
from energybench.verdict.figures import Overall, Summary
from energybench.verdict.summary import summarise, to_json

savings = st.floats(-0.5, 0.8)


def summary(*ratios: float, noise: float = 0.0, **run: Any) -> Summary:
    runs = [
        Run(workload=f"w{i}", seed=i, noise=noise, **({"sensors": (GPU,)} | run)).method("half", energy=r, time=r)
        for i, r in enumerate(ratios)
    ]
    return summarise(*merge(*runs))


def only(found: Summary) -> Overall:
    (each,) = found.overall
    return each


@given(st.lists(savings, min_size=2, max_size=5))
def test_the_mean_is_the_geometric_mean_of_the_ratios_and_the_range_is_theirs(each: list[float]) -> None:
    found = only(summary(*(1 - saving for saving in each)))
    product = math.prod(1 - saving for saving in each) ** (1 / len(each))
    assert found.saving_rel == pytest.approx(1 - product, abs=1e-9)
    assert (found.least_rel, found.most_rel) == pytest.approx((min(each), max(each)), abs=1e-9)


def test_a_ratio_and_its_inverse_save_nothing() -> None:
    assert only(summary(0.5, 2.0)).saving_rel == pytest.approx(0.0, abs=1e-12)


def test_one_workload_has_no_mean_over_workloads() -> None:
    assert summary(0.5).overall == ()
    assert "Over all workloads" not in markdown(summary(0.5))


def test_with_few_workloads_there_is_a_range_and_no_interval() -> None:
    found = summary(0.5, 0.6, 0.7, 0.8, 0.9)
    assert (only(found).low_rel, only(found).high_rel) == (None, None)
    assert "needs 6 workloads" in markdown(found)


def test_with_six_there_is_an_interval_around_the_mean_the_same_each_time() -> None:
    ratios = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    found = only(summary(*ratios, noise=0.02))
    assert found.low_rel is not None
    assert found.high_rel is not None
    assert found.least_rel - 0.1 < found.low_rel < found.saving_rel < found.high_rel < found.most_rel + 0.1
    assert to_json(summary(*ratios, noise=0.02)) == to_json(summary(*ratios, noise=0.02))


def test_workloads_and_blocks_without_scatter_have_an_interval_of_one_point() -> None:
    found = only(summary(*[0.7] * 6))
    assert (found.low_rel, found.saving_rel, found.high_rel) == pytest.approx((0.3, 0.3, 0.3), abs=1e-9)


def test_modelled_energy_enters_no_mean() -> None:
    runs = [Run(workload=f"w{i}", sensors=(MODEL,)).method("half", energy=0.1, time=0.9) for i in range(2)]
    found = only(summarise(*merge(*runs)))
    assert (found.quantity, found.saving_rel) == ("time", pytest.approx(0.1))


def test_where_one_workload_measured_no_energy_all_are_compared_by_time() -> None:
    runs = [
        Run(workload=f"w{i}", sensors=(sensor,)).method("half", energy=0.3, time=0.8)
        for i, sensor in enumerate((GPU, MODEL))
    ]
    found = only(summarise(*merge(*runs)))
    assert (found.quantity, found.scope, found.saving_rel) == ("time", "", pytest.approx(0.2))


def test_a_struck_comparison_is_left_out_and_named() -> None:
    runs = [Run(workload=f"w{i}", sensors=(GPU,)).method("half", energy=0.5) for i in range(3)]
    struck = runs[1]
    struck.change("half", 0, passes=struck.passes(struck.truth("half")).model_copy(update={"updates": 1}))
    found = summarise(*merge(*runs))
    assert (only(found).workloads, only(found).left_out) == (("w0", "w2"), ("w1",))
    assert "without w1" in markdown(found)


def test_how_often_quality_lay_within_the_margin_is_said() -> None:
    runs = [
        Run(workload=f"w{i}", sensors=(GPU,)).method("half", energy=0.5, quality=lost)
        for i, lost in enumerate((0.0, -0.02))
    ]
    assert only(summarise(*merge(*runs))).quality_within_margin == 1


def test_a_name_cannot_break_the_table() -> None:
    runs = [Run(workload=f"w{i}").method("a|b<script>`", time=0.5) for i in range(2)]
    part = markdown(summarise(*merge(*runs))).split("## Over all workloads")[1].split("## ")[0]
    assert "<script" not in part
    assert "a&#124;b" in part


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [3, 5])
@pytest.mark.parametrize("workloads", [6, 10, 20])
def test_the_interval_covers_the_truth_for_workloads_like_these(workloads: int, blocks: int) -> None:
    """Truth −0.2; workloads differ by 0.1, blocks by 0.05."""
    random, repeats, inside = np.random.default_rng(workloads), 1000, 0
    for index in range(repeats):
        own = random.normal(-0.2, 0.1, workloads)
        groups = random.normal(own[:, None], 0.05, (workloads, blocks))
        bounds = overall.interval(list(groups), seed=index, draws=4000)
        assert bounds is not None
        inside += bounds[0] <= -0.2 <= bounds[1]
    assert 0.92 <= inside / repeats <= 0.985
