"""Power integrated as it comes: the same as all samples at once, in bounded memory, with errors that hold."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.integral import KEPT, PowerStretch
from energybench.meter.kept_trace import KeptTrace, thinned
from energybench.meter.trace import Look, Sample, integrate

GAPS = st.lists(st.floats(0.01, 2.0), min_size=2, max_size=400)
POWERS = st.floats(1, 700)
LOOKS = st.sampled_from([None, Look(0.025, 0.025, 0.1, 800.0), Look(1.0, 1.0, 0.1, 800.0), Look(0.1, 0.1, 0.1, 800.0)])


@given(GAPS, st.data(), LOOKS)
def test_a_stretch_that_is_summed_as_it_comes_is_the_integral_of_all_its_samples(
    gaps: list[float], data: st.DataObject, look: Look | None
) -> None:
    times = list(itertools.accumulate(gaps))
    powers = data.draw(st.lists(POWERS, min_size=len(times), max_size=len(times)))
    start_s = data.draw(st.floats(times[0], times[len(times) // 2]))
    end_s = data.draw(st.floats(max(start_s, times[-min(len(times), 20)]), times[-1] + 1))
    before = [(t, p) for t, p in zip(times, powers, strict=True) if t <= start_s]
    stretch = PowerStretch(start_s, look, before[-1])
    for t, p in zip(times, powers, strict=True):
        if t > start_s:
            stretch.add(t, p)
    seen = [(t, p) for t, p in zip(times, powers, strict=True) if t >= before[-1][0]]
    joules, error_j = integrate([t for t, _ in seen], [p for _, p in seen], start_s, end_s, look)
    found = stretch.until(end_s)
    assert found.joules == pytest.approx(joules, rel=1e-9, abs=1e-9)
    if end_s > start_s:
        assert found.error_j == pytest.approx(error_j, rel=1e-9, abs=1e-9)


def test_a_week_of_samples_takes_no_more_memory_than_a_minute() -> None:
    stretch, trace = PowerStretch(0.0, None, (0.0, 300.0)), KeptTrace(most=1000)
    for number in range(1, 200_001):
        power = 300.0 + 100.0 * (number % 7 == 0)
        stretch.add(0.2 * number, power)
        trace.add(Sample(200_000_000 * number, "GPU-1", power))
    assert len(stretch._points) <= 2 * KEPT
    assert len(trace.samples) <= 1000
    true_j = 0.2 * (200_000 * 300 + (200_000 // 7) * 100)  # each high sample makes two triangles of 0.2 s
    assert stretch.until(40_000.0).joules == pytest.approx(true_j, rel=1e-9)


def test_the_longest_time_without_a_sample_is_known_at_the_end_too() -> None:
    stretch = PowerStretch(10.0, None, (9.0, 1.0))
    for t in (11.0, 12.0, 15.5, 16.0):
        stretch.add(t, 1.0)
    assert stretch.widest_gap_s(16.5) == 3.5
    assert stretch.widest_gap_s(14.0) == 3.5
    assert stretch.widest_gap_s(30.0) == 14.0
    assert PowerStretch(0.0, None).widest_gap_s(1.0) == math.inf
    with pytest.raises(ValueError, match="no sample"):
        PowerStretch(0.0, None).until(1.0)


@given(st.lists(st.tuples(st.floats(0.01, 3), POWERS), min_size=1, max_size=60))
def test_a_thinned_trace_has_the_same_sum_and_the_same_ends(steps: list[tuple[float, float]]) -> None:
    times = list(itertools.accumulate(gap for gap, _ in steps))
    samples = [Sample(round(t * 1e9), "GPU-1", p) for t, (_, p) in zip(times, steps, strict=True)]
    fewer = thinned(samples)
    assert len(fewer) <= len(samples) // 2 + 1
    assert (fewer[0].time_ns, fewer[-1].time_ns) == (samples[0].time_ns, samples[-1].time_ns)

    def joules(of: list[Sample]) -> float:
        points = [(sample.time_ns / 1e9, sample.power_w or 0.0) for sample in of]
        return math.fsum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))

    assert joules(fewer) == pytest.approx(joules(samples), rel=1e-9, abs=1e-6)


def test_what_a_dropped_sample_knew_beside_its_power_is_kept() -> None:
    samples = [Sample(i * 10**9, "G", 100.0, 40.0 + i if i % 3 == 0 else None) for i in range(10)]
    assert {s.temperature_c for s in thinned(samples) if s.temperature_c is not None} >= {40.0, 43.0, 46.0, 49.0}


# ── a sensor that looks part of the time ──────────────────────────────────────────────────────────────────


@given(
    period_s=st.floats(0.02, 3.0),
    duty=st.floats(0, 1),
    low_w=st.floats(0, 400),
    high_w=st.floats(0, 800),
    phase=st.floats(0, 1),
    seconds=st.floats(2.0, 20.0),
    read_s=st.sampled_from([0.05, 0.1, 0.2]),
    look=st.sampled_from([Look(0.025, 0.025, 0.1, 800.0), Look(0.1, 0.1, 0.1, 800.0), Look(1.0, 1.0, 0.1, 800.0)]),
)
def test_whatever_a_square_wave_hides_from_the_sensor_the_truth_lies_within_the_error(
    period_s: float, duty: float, low_w: float, high_w: float, phase: float, seconds: float, read_s: float, look: Look
) -> None:
    """The truth is a closed form; the sensor shows the mean over the end of each of its own periods."""

    def drawn_j(until_s: float) -> float:
        whole, part = divmod(until_s + phase * period_s, period_s)
        of_part = min(part, duty * period_s) * high_w + max(0.0, part - duty * period_s) * low_w
        return whole * period_s * (duty * high_w + (1 - duty) * low_w) + of_part

    def shown_w(when_s: float) -> float:
        end_s = math.floor(when_s / look.every_s + 1e-9) * look.every_s
        return (drawn_j(end_s) - drawn_j(end_s - look.averaging_s)) / look.averaging_s

    start_s, end_s = 5.03, 5.03 + seconds
    times = [5.0 + read_s * i for i in range(int(seconds / read_s) + 3)]
    joules, error_j = integrate(times, [shown_w(t) for t in times], start_s, end_s, look)
    assert abs(joules - (drawn_j(end_s) - drawn_j(start_s))) <= error_j + 1e-6
