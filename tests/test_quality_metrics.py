"""Metrics that tasks share, held to their definitions, to scikit-learn and to closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from energybench.workloads.metrics.confusion import Confusion
from energybench.workloads.metrics.distributions import frechet_distance
from energybench.workloads.metrics.signals import peak_signal_to_noise_db

labels = st.integers(2, 4).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=30),
    )
)


def counted(classes: int, pairs: list[tuple[int, int]], batch: int = 7) -> Confusion:
    found = Confusion(classes)
    for start in range(0, len(pairs), batch):
        predicted, true = torch.tensor(pairs[start : start + batch]).T
        found.add(predicted, true)
    return found


# ── the confusion matrix ──────────────────────────────────────────────────────────────────────────────────────────────


@given(labels)
def test_shares_are_those_of_scikit_learn_however_the_set_is_cut(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    from sklearn import metrics

    classes, pairs = drawn
    predicted, true = zip(*pairs, strict=True)
    found, other = counted(classes, pairs), counted(classes, pairs, batch=3)
    assert torch.equal(found.counts, other.counts)
    assert found.counts.tolist() == metrics.confusion_matrix(true, predicted, labels=range(classes)).tolist()
    assert found.accuracy() == pytest.approx(metrics.accuracy_score(true, predicted))
    names = ("precision", "recall", "f1")
    expected = metrics.precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)
    assert [getattr(found, name)() for name in names] == pytest.approx(expected[:3])
    assert found.intersection_over_union() == pytest.approx(
        metrics.jaccard_score(true, predicted, average="macro", zero_division=0)
    )
    expected = metrics.precision_recall_fscore_support(true, predicted, labels=[1], zero_division=0)
    assert [getattr(found, name)(positive=1) for name in names] == pytest.approx([each[0] for each in expected[:3]])


def test_pixels_that_are_no_class_count_for_nothing() -> None:
    true = torch.tensor([[0, 1, 255], [1, 255, 1]])
    predicted = torch.tensor([[0, 1, 1], [0, 0, 1]])
    found = Confusion(2)
    found.add(predicted, true, void=255)
    assert found.counts.tolist() == [[1, 0], [1, 2]]
    assert found.intersection_over_union() == pytest.approx((1 / 2 + 2 / 3) / 2)
    nothing = Confusion(2)
    nothing.add(predicted, torch.full_like(true, 255), void=255)
    assert math.isnan(nothing.accuracy())
    assert math.isnan(nothing.intersection_over_union())


@pytest.mark.parametrize(("predicted", "true"), [([0, 2], [0, 1]), ([0, 1], [0, 255]), ([0, 1], [-1, 0])])
def test_a_number_that_is_no_class_is_refused_and_never_counted_as_another(
    predicted: list[int], true: list[int]
) -> None:
    found = Confusion(2)
    with pytest.raises(ValueError, match="classes are 0 to 1"):
        found.add(torch.tensor(predicted), torch.tensor(true))
    assert found.counts.sum() == 0


# ── signals ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(1e-9, 1e3), st.floats(1e-3, 1e3))
def test_ten_decibels_are_a_tenth_of_the_error(error: float, peak: float) -> None:
    ratio = peak_signal_to_noise_db(error / 10, peak) - peak_signal_to_noise_db(error, peak)
    assert ratio == pytest.approx(10)
    assert peak_signal_to_noise_db(peak**2, peak) == pytest.approx(0, abs=1e-9)


def test_an_exact_copy_has_no_noise_and_what_is_no_error_is_refused() -> None:
    assert peak_signal_to_noise_db(0.0) == math.inf
    for error, peak in ((-1.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="at least 0"):
            peak_signal_to_noise_db(error, peak)


# ── distributions ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(0.1, 3))
def test_the_distance_of_a_shifted_and_stretched_set_has_a_closed_form(seed: int, shift: float, factor: float) -> None:
    """Y = f·X + s: Σ₂ = f²Σ₁ commutes with Σ₁, so that the distance is ‖μ₁ − μ₂‖² + (1 − f)²·tr Σ₁."""
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = factor * x + shift
    apart = (x.mean(0) - y.mean(0)).square().sum().item()
    expected = apart + (1 - factor) ** 2 * x.T.cov().trace().item()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_it_is_that_of_the_matrix_root_in_general_and_of_fewer_samples_than_features() -> None:
    from scipy.linalg import sqrtm

    random = torch.Generator().manual_seed(1)
    mix = torch.randn(4, 4, generator=random, dtype=torch.float64)
    x, y = (torch.randn(60, 4, generator=random, dtype=torch.float64) @ m for m in (mix, mix.T + 1))
    one, other = x.T.cov(), y.T.cov()
    root = torch.from_numpy(sqrtm((one @ other).numpy()).real)
    expected = (x.mean(0) - y.mean(0)).square().sum() + (one + other - 2 * root).trace()
    assert frechet_distance(x.float(), y.float()) == pytest.approx(expected.item(), rel=1e-4)
    few = torch.randn(3, 6, generator=random)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    one_feature = frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [7.0]]))
    assert one_feature == pytest.approx(25)


def test_features_of_other_shapes_are_refused() -> None:
    for first, second in (((3, 2), (3, 3)), ((3,), (3, 2)), ((1, 2), (3, 2))):
        with pytest.raises(ValueError, match=r"features|two samples"):
            frechet_distance(torch.zeros(first), torch.zeros(second))
