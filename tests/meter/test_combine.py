"""Which figures of one window are added, and what is known of their sum's error."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.combine import added_error, metered
from energybench.meter.reading import Energy, Reading

ERRORS = st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=6)


def energy(error_j: float | None, device: str, joules: float = 100.0, source: str = "rapl") -> Energy:
    return Energy(source=source, scope="cpu", device=device, energy_j=joules, error_j=error_j)


@given(ERRORS)
def test_the_error_of_a_sum_is_known_where_that_of_every_part_is(errors: list[float | None]) -> None:
    total = added_error(errors)
    assert (total is None) == (None in errors)
    if total is not None:
        assert total == pytest.approx(math.fsum(error or 0.0 for error in errors))


@given(ERRORS.filter(bool))
def test_a_window_has_an_error_where_each_of_its_devices_has_one(errors: list[float | None]) -> None:
    parts = [energy(error, f"package-{number}") for number, error in enumerate(errors)]
    window = metered(Reading(wall_s=10.0, energy=parts))
    assert window.joules == pytest.approx(100.0 * len(errors))
    assert window.error_j == (None if None in errors else pytest.approx(math.fsum(map(float, errors))))  # type: ignore[arg-type]


def test_the_unknown_error_of_a_second_channel_which_is_not_added_says_nothing_of_the_sum() -> None:
    counter = Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=100.0, error_j=1.0)
    integral = Energy(source="gpu_power_integral", scope="gpu", device="GPU-1", energy_j=103.0)
    assert metered(Reading(wall_s=10.0, energy=[integral, counter])).error_j == 1.0
    assert metered(Reading(wall_s=10.0, energy=[integral])).error_j is None
