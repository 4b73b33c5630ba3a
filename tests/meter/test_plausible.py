"""The bound on what a part can have drawn: power times time, no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.plausible import PowerLimit


@given(st.floats(1, 1000), st.floats(0.001, 3600), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 2))
def test_whatever_stays_below_the_limit_passes_though_the_sensor_lags_by_a_tick_at_either_look(
    limit_w: float, gap_s: float, tick_s: float, load: float, ticks: float
) -> None:
    drawn_j = limit_w * load * (gap_s + ticks * tick_s)
    assert PowerLimit(limit_w, "its limit").excess(drawn_j, gap_s, tick_s) is None


def test_a_package_of_65_w_cannot_have_drawn_52_kj_in_ten_seconds() -> None:
    reason = PowerLimit(130.0, "twice its rating of 65 W").excess(51_800.0, 10.0, 0.001)
    assert reason == "51.8 kJ in 10 s is more than it can draw: 130 W, twice its rating of 65 W"
    assert PowerLimit(130.0, "").possible_j(10.0, 0.001) == pytest.approx(1300.26)
