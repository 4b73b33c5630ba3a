"""What a counter counted in a stretch that nobody read it for, from the looks around its ends."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter import counter_looks
from energybench.meter.counter_looks import CounterLooks


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 5000)), min_size=2, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_truth_lies_within_the_error_whatever_the_power_did(
    steps: list[tuple[int, int]], first: float, second: float
) -> None:
    """The counter rises by jumps at moments of its own; it is looked at now and then, and each look takes 2 ns."""
    times = list(accumulate(gap for gap, _ in steps))
    counts = list(accumulate(rise for _, rise in steps))

    def truth(moment: float) -> int:
        place = bisect_right(times, moment) - 1
        return counts[place] if place >= 0 else 0

    looks, end = CounterLooks(), times[-1] + 10
    for moment in range(0, end + 40, 37):
        looks.add(moment - 1, moment + 1, truth(moment))
    start, stop = sorted((round(first * end), round(second * end)))
    found = looks.between(start, stop)
    if start < 1:
        assert found is None
        return
    assert found is not None
    count, error = found
    assert abs(count - (truth(stop) - truth(start))) <= error + 1e-6


def test_a_steady_power_is_found_exactly_in_the_middle_of_looks() -> None:
    looks = CounterLooks()
    for second in range(11):
        looks.add(second * 10**9, second * 10**9, 100 * second)
    count, error = looks.between(2_500_000_000, 7_500_000_000) or (0, 0)
    assert count == pytest.approx(500)
    assert error == pytest.approx(100)  # half a look's count at each end


def test_outside_of_the_looks_nothing_is_known() -> None:
    looks = CounterLooks()
    looks.add(10, 12, 0)
    looks.add(20, 22, 5)
    assert looks.between(5, 15) is None
    assert looks.between(15, 25) is None
    assert looks.between(13, 19) is not None


def test_the_looks_of_weeks_are_thinned_and_their_ends_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_looks, "MOST_LOOKS", 64)
    looks = CounterLooks()
    for second in range(10_001):
        looks.add(second, second, 3 * second)
    assert len(looks._counts) <= 65
    count, error = looks.between(1_000, 9_000) or (0.0, 0.0)
    assert count == pytest.approx(24_000)
    assert 0 < error < 6_000
