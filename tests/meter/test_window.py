"""Windows: pieces add up, and what was not seen is null, never 0 and never a part of the whole."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter import Window
from energybench.record import Energy, Reading

JOULES = st.floats(0.001, 1e6)


class Scripted:
    """A meter that says what it is told to, piece by piece."""

    def __init__(self, *pieces: list[Energy]) -> None:
        self.pieces = iter(pieces)
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> list[Energy]:
        self.calls.append("stop")
        return next(self.pieces)


def gpu(joules: float | None, device: str = "GPU-0", **more: object) -> Energy:
    reason = "NVML: lost" if joules is None else None
    return Energy(source="gpu_counter", scope="gpu", device=device, energy_j=joules, reason=reason, **more)  # type: ignore[arg-type]


def read(*meters: Scripted, pieces: int) -> Reading:
    window = Window(meters, lambda: None)
    for _ in range(pieces):
        window.start()
        window.stop()
    return window.reading()


@given(st.lists(JOULES, min_size=1, max_size=6))
def test_the_total_is_the_sum_of_the_pieces(figures: list[float]) -> None:
    (energy,) = read(Scripted(*[[gpu(j)] for j in figures]), pieces=len(figures)).energy
    assert energy.energy_j == pytest.approx(sum(figures))
    assert energy.reason is None


@given(st.lists(st.one_of(JOULES, st.none()), min_size=1, max_size=6).filter(lambda x: None in x))
def test_one_lost_piece_makes_the_total_null_with_a_reason(figures: list[float | None]) -> None:
    (energy,) = read(Scripted(*[[gpu(j)] for j in figures]), pieces=len(figures)).energy
    assert energy.energy_j is None
    assert energy.reason


@pytest.mark.parametrize(
    "present", [p for p in itertools.product([True, False], repeat=3) if True in p and False in p]
)
def test_a_sensor_that_says_nothing_in_one_piece_has_no_total(present: tuple[bool, ...]) -> None:
    (energy,) = read(Scripted(*[[gpu(1.0)] if here else [] for here in present]), pieces=3).energy
    assert energy.energy_j is None
    assert energy.reason


def test_sensors_are_summed_apart_and_one_loss_does_not_touch_the_others() -> None:
    reading = read(Scripted([gpu(1.0), gpu(10.0, "GPU-1")], [gpu(2.0), gpu(None, "GPU-1")]), pieces=2)
    totals = {e.device: e.energy_j for e in reading.energy}
    assert totals == {"GPU-0": 3.0, "GPU-1": None}


def test_errors_of_the_pieces_add_up() -> None:
    pieces = [[gpu(100.0, detail={"error_j": 2.0, "tick_s": 0.1})] for _ in range(3)]
    (energy,) = read(Scripted(*pieces), pieces=3).energy
    assert energy.detail["error_j"] == pytest.approx(6.0)


def test_a_window_never_opened_has_no_energy_rather_than_zero() -> None:
    assert Window([Scripted()], lambda: None).reading().energy == []


def test_devices_are_waited_for_before_each_reading_and_never_inside() -> None:
    meter = Scripted([gpu(1.0)])
    window = Window([meter], lambda: meter.calls.append("wait"))
    window.start()
    window.stop()
    assert meter.calls == ["wait", "start", "wait", "stop"]


def test_time_between_the_pieces_is_not_billed() -> None:
    import time

    window = Window([], lambda: None)
    for _ in range(2):
        window.start()
        window.stop()
        time.sleep(0.2)
    assert 0 < window.reading().wall_s < 0.1
