"""Power over time: integrals from calculus, files that give back what went in, and a replay that sees it again."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
from fakes.replay import Replay, VirtualTime
from hypothesis import assume, given
from hypothesis import strategies as st

from energybench.meter.trace import Sample, integrate, pack, read

POWER = st.floats(1, 1000)


@given(POWER, st.floats(0.1, 1000), st.integers(1, 50))
def test_constant_power_is_power_times_time_and_repeated_samples_count(
    power: float, seconds: float, samples: int
) -> None:
    times = [seconds * i / samples for i in range(samples)]
    joules, error = integrate(times, [power] * samples, 0.0, seconds)
    assert joules == pytest.approx(power * seconds)
    assert error == pytest.approx(0.0, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0.01, 5), POWER), min_size=2, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_power_that_is_linear_between_samples_is_integrated_exactly_and_parts_add_up(
    gaps: list[tuple[float, float]], a: float, b: float
) -> None:
    times = [math.fsum(gap for gap, _ in gaps[: i + 1]) for i in range(len(gaps))]
    powers = [power for _, power in gaps]
    start, middle, end = sorted(
        [times[0], times[0] + min(a, b) * (times[-1] - times[0]), times[0] + max(a, b) * (times[-1] - times[0])]
    )
    exact = math.fsum(
        (t1 - t0) * (p0 + p1) / 2 for t0, t1, p0, p1 in zip(times, times[1:], powers, powers[1:], strict=False)
    )
    assert integrate(times, powers, times[0], times[-1])[0] == pytest.approx(exact)
    whole = integrate(times, powers, start, end)[0]
    parts = integrate(times, powers, start, middle)[0] + integrate(times, powers, middle, end)[0]
    assert whole == pytest.approx(parts, abs=1e-6)


@given(st.integers(2, 40), st.floats(0, 1), POWER, POWER)
def test_a_step_of_power_between_two_samples_stays_inside_the_error(
    samples: int, when: float, before: float, after: float
) -> None:
    times = [10 * i / (samples - 1) for i in range(samples)]
    step = 10 * when
    powers = [before if t < step else after for t in times]
    joules, error = integrate(times, powers, 0.0, 10.0)
    assert abs(joules - (before * step + after * (10 - step))) <= error + 1e-6


def test_before_the_first_sample_and_after_the_last_power_is_taken_as_constant_and_the_swing_is_in_the_error() -> None:
    joules, error = integrate([1.0, 2.0], [100.0, 300.0], 0.0, 4.0)
    assert joules == pytest.approx(100 + 200 + 600)
    assert error == pytest.approx(1 * 200 / 2 + 3 * 200)


def test_without_a_sample_there_is_no_integral() -> None:
    with pytest.raises(ValueError, match="no sample"):
        integrate([], [], 0.0, 1.0)


SAMPLES = st.lists(
    st.builds(
        Sample,
        time_ns=st.integers(0, 10**12).map(lambda us: us * 1000),  # the file keeps microseconds
        device=st.sampled_from(["GPU-1", "package-0"]),
        power_w=st.one_of(st.none(), st.integers(0, 700).map(float)),
        temperature_c=st.one_of(st.none(), st.integers(0, 100).map(float)),
        sm_clock_mhz=st.one_of(st.none(), st.integers(0, 3000).map(float)),
    ),
    max_size=30,
)


@given(SAMPLES, st.integers(0, 10**6).map(lambda us: us * 1000))
def test_a_trace_is_read_back_as_it_was_written_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], start_ns: int
) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.csv.gz"
    samples = sorted(samples, key=lambda sample: sample.time_ns)  # as a window gives them
    path.write_bytes(pack(samples, start_ns))
    moved = [Sample(s.time_ns - start_ns, s.device, s.power_w, s.temperature_c, s.sm_clock_mhz) for s in samples]
    assert read(path) == moved
    assert pack(read(path), 0) == path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip",
        gzip.compress(b"a,b\n1,2\n"),
        gzip.compress(b"\xff\xfe"),
        gzip.compress(b"time_s,device,power_w,temperature_c,sm_clock_mhz\nx,GPU-1,1,2,3\n"),
        gzip.compress(b"time_s,device,power_w,temperature_c,sm_clock_mhz\n1,GPU-1\n"),
        gzip.compress(b"time_s,device,power_w,temperature_c,sm_clock_mhz\n1,GPU-1,nan,,\n"),
        pack([Sample(0, "GPU-1", 1.0)], 0)[:-9],
        pack([Sample(0, "GPU-1", 1.0)], 0)[:12] + b"\xff" * 20,
        pack([Sample(0, "GPU-1", -1.0)], 0),
        pack([Sample(0, "GPU-1", 1e300)], 0),
        pack([Sample(10**9, "GPU-1", 1.0), Sample(0, "GPU-1", 1.0)], 0),
        gzip.compress(b"time_s,device,power_w,temperature_c,sm_clock_mhz\n1,GPU-1,1_000,,\n"),
    ],
    ids=[
        "empty",
        "not gzip",
        "other header",
        "not text",
        "no number",
        "too few fields",
        "not finite",
        "cut short",
        "damaged inside",
        "less than no power",
        "more than any power",
        "times that go back",
        "digits apart",
    ],
)
def test_a_file_that_is_no_trace_or_is_cut_short_is_an_error_that_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="trace"):
        read(path)


def test_a_small_file_that_unpacks_to_any_size_is_refused_without_unpacking_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("energybench.meter.trace.TRACE_B", 100_000)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"0" * 50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="unpacks to more than 100,000 bytes"):
        read(path)


@given(st.lists(POWER, min_size=2, max_size=20), st.floats(0, 5), st.floats(0.1, 5))
def test_a_replay_gives_the_integral_of_the_trace_and_never_calls_it_measured(
    tmp_path_factory: pytest.TempPathFactory, powers: list[float], wait: float, seconds: float
) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.csv.gz"
    path.write_bytes(pack([Sample(i * 10**9, "GPU-1", round(power)) for i, power in enumerate(powers)], 0))
    time = VirtualTime(12345)
    assume(seconds > 0)
    meter = Replay(path, time)
    time.sleep(wait)
    meter.start()
    start_ns = time.now_ns()
    time.sleep(seconds)
    reading = meter.stop()
    (energy,) = reading.energy
    window = ((start_ns - 12345) / 1e9, (time.now_ns() - 12345) / 1e9)
    expected = integrate([float(i) for i in range(len(powers))], [float(round(p)) for p in powers], *window)[0]
    assert energy.energy_j == pytest.approx(expected)
    assert reading.wall_s == pytest.approx(seconds, abs=1e-8)
    assert not energy.measured
    assert energy.source == "replay(t.csv.gz)"
