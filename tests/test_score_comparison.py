"""How scores are held against the norm of the whole gradient: ranks, correlations, and what a run's record has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support import assert_same_state, digits, make_run, state, tiny_cnn
from torch import nn

from energybench.algorithms.score_comparison import MOST_POINTS, compare, pearson, ranks
from energybench.common.errors import UsageError
from energybench.train import discovery

KIND: Any = discovery.load(discovery.sources()["importance"])
NUMBERS = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=40)


@given(NUMBERS)
def test_ranks_are_scipys(values: list[float]) -> None:
    found = ranks(torch.tensor(values, dtype=torch.float64))
    assert found.tolist() == stats.rankdata(values).tolist()


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=40))
def test_a_correlation_is_numpys_and_none_where_one_side_is_constant(pairs: list[tuple[int, int]]) -> None:
    one, other = (torch.tensor([float(pair[side]) for pair in pairs], dtype=torch.float64) for side in (0, 1))
    found = pearson(one, other)
    if len(set(one.tolist())) < 2 or len(set(other.tolist())) < 2:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-9)
    assert pearson(one, torch.full_like(one, torch.nan)) is None


def line() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_of_one_linear_layer_its_own_score_is_the_norm_of_the_whole_gradient() -> None:
    run = make_run(model=line, data=digits(48))
    run.train()
    before = state(run.model)
    found = compare(run, ("last-layer-gradient", "loss"), 40, remembered={"minus": -torch.arange(48.0)})
    exact, loss = found["correlations"]["last-layer-gradient"], found["correlations"]["loss"]
    assert (exact["pearson"], exact["spearman"]) == pytest.approx((1.0, 1.0), abs=1e-5)
    assert 0 < loss["spearman"] < 1
    assert (found["samples"], found["reference"]) == (40, "parameter-gradient")
    assert_same_state(before, state(run.model))
    points = {each["name"]: each for each in found["scatter"]}
    assert points.keys() == {"last-layer-gradient", "loss", "minus"}
    assert points["last-layer-gradient"]["y"] == pytest.approx(points["last-layer-gradient"]["x"], rel=1e-3)
    assert points["minus"]["y"] == sorted(points["minus"]["y"], reverse=True)  # samples in their order in the set
    assert len(set(points["minus"]["y"])) == 40
    again = compare(run, ("loss",), 40)
    assert again["correlations"]["loss"] == loss  # the same samples, drawn by the seed
    assert len(points["loss"]["x"]) <= MOST_POINTS


def trained(**parameters: Any) -> Any:
    made = discovery.build(KIND, "importance", {"alpha": 0.1, "epsilon": 0.01} | parameters)
    run = make_run([made], model=tiny_cnn, data=digits(64), epochs=2)
    run.train()
    return run


def test_the_record_has_what_a_suite_names_and_training_is_as_without_it() -> None:
    plain, run = trained(), trained(compare=["output-gradient", "loss"], compare_samples=32)
    assert_same_state(state(plain.model), state(run.model))
    assert plain.tally.passes() == run.tally.passes()
    assert "against_gradient_norm" not in plain.methods[0].diagnostics()
    found = run.methods[0].diagnostics()["against_gradient_norm"]
    assert list(found["correlations"]) == ["output-gradient", "loss", "remembered importance"]
    assert found["samples"] == 32
    assert all(-1 <= value <= 1 for each in found["correlations"].values() for value in each.values())
    assert_same_state(state(plain.model), state(run.model))


@pytest.mark.parametrize(
    "wrong", [{"compare": ["parameter-gradient"]}, {"compare": ["losses"]}, {"compare_samples": 1}]
)
def test_a_comparison_of_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        discovery.build(KIND, "importance", {"alpha": 0.1, "epsilon": 0.01} | wrong)
    assert refused.value.problems[0].code == "E304"


def test_a_score_that_the_model_does_not_have_is_refused_before_it_trains() -> None:
    made = discovery.build(KIND, "importance", {"alpha": 0.1, "epsilon": 0.01, "compare": ["last-layer-gradient"]})
    with pytest.raises(UsageError, match="no linear layer"):
        make_run([made], model=lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()))
