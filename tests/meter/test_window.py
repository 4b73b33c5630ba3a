"""Windows: pieces add up, and what was not seen is null, never 0 and never a part of the whole."""

from __future__ import annotations

import itertools

import pytest
from fakes.clock import put_behind
from fakes.replay import VirtualTime
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.clock import WallClock
from energybench.meter.counter import AT_MOST
from energybench.meter.reading import CardState, Energy, Reading, SamplerState
from energybench.meter.window import AT_ONCE_S, FEWEST_TICKS, Window, refuse_short, sum_pieces

JOULES = st.floats(0.001, 1e6)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    """Stands still, so that a meter takes no time but what it is given."""
    return put_behind(monkeypatch, VirtualTime())


class Scripted:
    """A meter that says what it is told to, piece by piece."""

    def __init__(self, *pieces: list[Energy], calls: list[str] | None = None, name: str = "") -> None:
        self.pieces = iter(pieces)
        self.calls, self.name = [] if calls is None else calls, name

    def start(self) -> None:
        self.calls.append(f"start {self.name}".strip())

    def stop(self) -> Reading:
        self.calls.append(f"stop {self.name}".strip())
        return Reading(wall_s=0.0, energy=next(self.pieces))


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
    assert energy.error_j is None
    assert energy.reason == "NVML: lost"
    assert energy.lost


@pytest.mark.parametrize("present", [p for p in itertools.product([True, False], repeat=3) if True in p and False in p])
def test_a_sensor_that_says_nothing_in_one_piece_has_no_total(present: tuple[bool, ...]) -> None:
    (energy,) = read(Scripted(*[[gpu(1.0)] if here else [] for here in present]), pieces=3).energy
    assert energy.energy_j is None
    assert energy.reason


def test_sensors_are_summed_apart_and_one_loss_does_not_touch_the_others() -> None:
    reading = read(Scripted([gpu(1.0), gpu(10.0, "GPU-1")], [gpu(2.0), gpu(None, "GPU-1")]), pieces=2)
    totals = {e.device: e.energy_j for e in reading.energy}
    assert totals == {"GPU-0": 3.0, "GPU-1": None}


def test_errors_of_the_pieces_add_up() -> None:
    pieces = [[gpu(100.0, error_j=2.0, detail={"tick_s": 0.1})] for _ in range(3)]
    (energy,) = read(Scripted(*pieces), pieces=3).energy
    assert energy.error_j == pytest.approx(6.0)


@given(st.lists(st.one_of(st.none(), st.floats(0, 10.0)), min_size=2, max_size=5).filter(lambda errors: None in errors))
def test_one_piece_of_unknown_error_leaves_a_total_of_unknown_error(errors: list[float | None]) -> None:
    pieces = [[gpu(100.0, error_j=error)] for error in errors]
    (energy,) = read(Scripted(*pieces), pieces=len(pieces)).energy
    assert (energy.energy_j, energy.error_j) == (pytest.approx(100.0 * len(errors)), None)


def test_a_piece_too_short_to_be_seen_makes_no_unknown_error_known() -> None:
    unseen = gpu(None, detail={AT_MOST: 0.5})
    (energy,) = read(Scripted([gpu(100.0)], [unseen]), pieces=2).energy
    assert (energy.energy_j, energy.error_j) == (100.0, None)
    (energy,) = read(Scripted([gpu(100.0, error_j=2.0)], [unseen]), pieces=2).energy
    assert (energy.energy_j, energy.error_j) == (100.0, 2.5)


def test_amounts_among_the_details_add_up_and_what_differs_is_kept_piece_by_piece() -> None:
    pieces = [[gpu(1.0, detail={"wraps": n, "tick_s": 0.1, "tail_w": 100.0 + n})] for n in (1, 0, 2)]
    (energy,) = read(Scripted(*pieces), pieces=3).energy
    assert energy.detail == {"wraps": 3, "tick_s": 0.1, "tail_w": [101.0, 100.0, 102.0]}


def test_a_window_never_opened_has_no_energy_rather_than_zero() -> None:
    reading = Window([Scripted()], lambda: None).reading()
    assert reading.energy == []
    assert reading.pieces == 0


def test_devices_are_waited_for_before_each_reading_and_never_inside() -> None:
    meter = Scripted([gpu(1.0)])
    window = Window([meter], lambda: meter.calls.append("wait"))
    window.start()
    window.stop()
    assert meter.calls == ["wait", "start", "wait", "stop"]


def test_a_sensor_that_waits_for_an_edge_encloses_those_that_answer_at_once() -> None:
    calls: list[str] = []
    meters = [Scripted([gpu(1.0)], calls=calls, name="slow"), Scripted([], calls=calls, name="quick")]
    window = Window(meters, lambda: None)
    window.start()
    window.stop()
    assert calls == ["start slow", "start quick", "stop quick", "stop slow"]
    assert [e.source for e in window.reading().energy] == ["gpu_counter"]


class Slow(Scripted):
    """A meter of another package that takes a while to start and to stop."""

    def __init__(self, clock: VirtualTime, start_s: float, stop_s: float, *pieces: list[Energy]) -> None:
        super().__init__(*pieces)
        self.clock, self.start_s, self.stop_s = clock, start_s, stop_s

    def start(self) -> None:
        self.clock.sleep(self.start_s)

    def stop(self) -> Reading:
        found = super().stop()
        self.clock.sleep(self.stop_s)
        return found


def test_what_a_slow_sensor_takes_to_start_and_to_stop_is_not_billed(clock: VirtualTime) -> None:
    window = Window([Slow(clock, 0.2, 0.2, [gpu(1.0)])], lambda: None)
    window.start()
    clock.sleep(0.3)
    window.stop()
    assert window.reading().wall_s == pytest.approx(0.3)


class Drawing:
    """A card that draws 300 W, whether it works or not. late_s: between a call and its first and last reading, in which
    a busy machine lets nobody run."""

    def __init__(self, clock: VirtualTime, late_s: float = 0.0) -> None:
        self.clock, self.late_s = clock, late_s

    def start(self) -> None:
        self.began_ns = self.clock.now_ns()
        self.clock.sleep(self.late_s)

    def stop(self) -> Reading:
        self.clock.sleep(self.late_s)
        seconds = (self.clock.now_ns() - self.began_ns) / 1e9
        return Reading(wall_s=seconds, energy=[gpu(300.0 * seconds, error_j=0.5)])


@pytest.mark.parametrize("wait_s", [0.0, 0.004, 0.006, 0.2, 5.0])
@pytest.mark.parametrize("late_s", [0.0, 0.004, 0.006, 0.2, 5.0])
def test_the_truth_lies_within_the_error_however_late_a_sensor_and_its_neighbours_are(
    clock: VirtualTime, wait_s: float, late_s: float
) -> None:
    card, beside = Drawing(clock, late_s), Slow(clock, wait_s, wait_s, [gpu(9.0, "other", error_j=0.1)])
    window = Window([card, beside], lambda: None)
    window.start()
    clock.sleep(0.3)
    window.stop()
    reading = window.reading()
    seen, slow = reading.energy
    assert reading.wall_s == pytest.approx(0.3)
    assert seen.energy_j == pytest.approx(300 * (0.3 + 2 * wait_s + 2 * late_s))
    assert seen.error_j is not None
    around_j = 300 * 2 * (wait_s + late_s)
    if around_j < 300 * AT_ONCE_S:
        assert seen.error_j == 0.5
    else:
        assert seen.error_j == pytest.approx(0.5 + around_j)
    assert (slow.energy_j, slow.error_j) == (9.0, 0.1)  # it was innermost, and saw nothing but the window


def test_an_error_that_a_meter_does_not_tell_stays_unknown_beside_a_slow_one(clock: VirtualTime) -> None:
    untold = Energy(source="meter(untold)", scope="cpu", energy_j=9.0)
    window = Window([Scripted([untold]), Slow(clock, 0.05, 0.0, [gpu(3.0)])], lambda: None)
    window.start()
    window.stop()
    assert next(e.error_j for e in window.reading().energy if e.source == "meter(untold)") is None


def test_time_between_the_pieces_is_not_billed(clock: VirtualTime) -> None:
    window = Window([], lambda: None, WallClock())
    for _ in range(2):
        window.start()
        clock.sleep(0.05)
        window.stop()
        clock.sleep(0.2)
    reading = window.reading()
    assert reading.wall_s == pytest.approx(0.1)
    assert reading.pieces == 2


def test_a_window_that_is_already_closed_is_not_billed_again(clock: VirtualTime) -> None:
    """As when the evaluation that paused it fails, and whoever cleans up closes it once more."""
    meter = Scripted([gpu(10.0)], [gpu(10.0)])
    window = Window([meter], lambda: None)
    window.stop()
    window.start()
    window.stop()
    before = window.reading()
    clock.sleep(0.05)
    window.stop()
    assert window.reading() == before
    assert (before.pieces, before.energy[0].energy_j) == (1, 10.0)
    assert meter.calls == ["start", "stop"]


def test_two_adjacent_readings_add_up_to_one() -> None:
    sampler = SamplerState(period_s=0.1, samples=10, missed=1, largest_gap_s=0.2, cpu_s=0.01)
    first = Reading(
        wall_s=1.0,
        cpu_s=2.0,
        steal_s=0.0,
        energy=[gpu(10.0)],
        sampler=sampler,
        cards={
            "GPU-0": CardState(
                temperature_start_c=40,
                temperature_end_c=50,
                temperature_max_c=55,
                throttled_s={"board limit": 0.5},
                foreign_pids=[3],
            )
        },
    )
    second = Reading(
        wall_s=2.0,
        cpu_s=1.0,
        steal_s=None,
        energy=[gpu(5.0)],
        sampler=sampler,
        cards={
            "GPU-0": CardState(
                temperature_start_c=50,
                temperature_end_c=60,
                temperature_max_c=60,
                throttled_s={"board limit": 0.25, "power brake": 1},
                mig=True,
            )
        },
    )
    both = sum_pieces([first, second])
    assert (both.wall_s, both.cpu_s, both.steal_s, both.pieces) == (3.0, 3.0, None, 2)
    card = both.cards["GPU-0"]
    assert (card.temperature_start_c, card.temperature_end_c, card.temperature_max_c) == (40, 60, 60)
    assert card.throttled_s == {"board limit": 0.75, "power brake": 1.0}
    assert card.foreign_pids == [3]
    assert card.mig is True
    assert both.sampler == SamplerState(period_s=0.1, samples=20, missed=2, largest_gap_s=0.2, cpu_s=0.02)


@given(st.floats(0.01, 1.0), st.floats(0.01, 100.0), st.integers(1, 4))
def test_under_ten_ticks_there_is_no_figure_but_a_reason(tick_s: float, wall_s: float, pieces: int) -> None:
    energy = gpu(5.0, error_j=0.1, detail={"tick_s": tick_s})
    (kept,) = refuse_short(Reading(wall_s=wall_s, pieces=pieces, energy=[energy])).energy
    if wall_s / pieces >= FEWEST_TICKS * tick_s:
        assert kept == energy
    else:
        assert (kept.energy_j, kept.error_j, kept.source) == (None, None, "unavailable")
        assert "gpu_counter" in (kept.reason or "")
        assert not kept.lost  # it was there, and the window was not long enough for it


def test_the_seconds_so_far_grow_inside_and_stand_still_in_a_pause_and_end_as_the_windows_own(
    clock: VirtualTime,
) -> None:
    window = Window([], lambda: None)
    assert window.elapsed_s() == 0.0
    clock.sleep(7.0)
    for so_far in (0.0, 0.01):
        window.start()
        assert window.elapsed_s() == pytest.approx(so_far)
        clock.sleep(0.01)
        assert window.elapsed_s() == pytest.approx(so_far + 0.01)
        window.stop()
        clock.sleep(0.02)
        assert window.elapsed_s() == window.reading().wall_s == pytest.approx(so_far + 0.01)


def test_a_stretch_that_somebody_else_timed_has_its_seconds_and_what_sensors_can_say_of_a_part() -> None:
    """A sensor that keeps its readings gives a figure; one that was read at the ends has none, and says so; what others
    and this process did meanwhile nobody knows."""
    kept = Energy(source="rapl", scope="cpu", device="package-0", energy_j=30.0, error_j=1.0)
    once = Energy(source="gpu_counter", scope="gpu", device="GPU-a", energy_j=500.0, error_j=2.0)

    class AtItsEnds:
        def start(self) -> None: ...

        def stop(self) -> Reading:
            return Reading(wall_s=1.0, energy=[once])

    class Kept(AtItsEnds):
        def stop(self) -> Reading:
            return Reading(wall_s=1.0, energy=[kept])

        def of_stretch(self, start_ns: int, stop_ns: int) -> list[Energy]:
            return [kept.model_copy(update={"energy_j": 10.0 * (stop_ns - start_ns) / 1e9})]

    window = Window([AtItsEnds(), Kept()], lambda: None)
    window.start()
    window.stop()
    reading = window.of_stretch(2_000_000_000, 4_500_000_000)
    assert reading.wall_s == 2.5
    assert (reading.cpu_s, reading.other_cpu_s, reading.steal_s) == (None, None, None)
    found = {energy.scope: energy for energy in reading.energy}
    assert found["cpu"].energy_j == 25.0
    assert found["gpu"].energy_j is None
    assert (found["gpu"].source, found["gpu"].device) == ("unavailable", "GPU-a")
    assert "gpu_counter: the script timed its window itself" in (found["gpu"].reason or "")
