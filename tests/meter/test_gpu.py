"""The meter of GPUs through the real binding, on cards whose true energy is known: power over time, integrated."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import UUID, FakeDriver, FakeGpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energybench.meter.counter import SensorError, infer_tick
from energybench.meter.gpu import GpuMeter
from energybench.meter.nvml import open_gpus
from energybench.meter.reading import Energy, Reading
from energybench.meter.unavailable import Unavailable
from energybench.meter.window import refuse_short, sum_pieces

OTHER = "GPU-00000000-0000-0000-0000-000000000002"
Plug = Callable[..., FakeDriver]
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def measure(
    driver: FakeDriver, seconds: float, meter: GpuMeter | None = None, **options: Any
) -> tuple[Reading, float, float]:
    """(what the meter says, when the window began, when it ended), in seconds of the driver's clock."""
    meter = meter or GpuMeter(open_gpus(), driver.time, **options)
    meter.start()
    start_s = driver.time.now_ns() / 1e9
    driver.time.sleep(seconds)
    end_s = driver.time.now_ns() / 1e9
    return meter.stop(), start_s, end_s


def channel(reading: Reading, source: str, device: str = UUID) -> Energy:
    (found,) = [energy for energy in reading.energy if (energy.source, energy.device) == (source, device)]
    return found


def work(
    seconds: float, load_w: float = 600.0, idle_w: float = 120.0, start_s: float = 10.0
) -> list[tuple[float, float]]:
    """Idle, then work from `start_s` for `seconds`, then idle again."""
    return [(0.0, idle_w), (start_s, load_w), (start_s + seconds, idle_w)]


@contextmanager
def working(
    library: Path,
    seconds: float,
    tail: list[tuple[float, float]] | None = None,
    load_w: float = 600.0,
    idle_w: float = 120.0,
    **gpu: Any,
) -> Iterator[tuple[FakeDriver, Callable[..., tuple[Reading, float]]]]:
    """A card that works exactly while the window is open: `run` gives the reading and the true joules.

    The meter decides when the work begins, so the trajectory is written once the clock has shown when.
    tail: power after the end, as (seconds after it, watts)
    """

    def trajectory(start_s: float) -> list[tuple[float, float]]:
        after = tail or [(0.0, idle_w)]
        return [(0.0, idle_w), (start_s, load_w), *((start_s + seconds + t, w) for t, w in after)]

    def go(start_s: float, **options: Any) -> tuple[FakeDriver, Reading, float, float]:
        with FakeDriver(library, [FakeGpu(power=trajectory(start_s), **gpu)], call_s=50e-6, start_s=1.0) as driver:
            reading, began_s, ended_s = measure(driver, seconds, **options)
            return driver, reading, began_s, ended_s

    def run(**options: Any) -> tuple[Reading, float]:
        _, _, began_s, _ = go(1e6, **options)  # an idling card shows when the window opens
        driver, reading, began_again_s, ended_s = go(began_s, **options)
        assert began_again_s == pytest.approx(began_s, abs=1e-3)
        return reading, driver.energy_j(0, began_again_s, ended_s)

    with FakeDriver(library, [FakeGpu()]) as driver:
        pass
    yield driver, run


def test_constant_power_for_ten_seconds_is_their_product(fake_driver: Plug) -> None:
    reading, start_s, end_s = measure(fake_driver(FakeGpu(power=300.0)), 10.0)
    assert end_s - start_s == pytest.approx(10.0)
    assert channel(reading, "gpu_counter").energy_j == pytest.approx(3000.0, abs=0.5)
    assert channel(reading, "gpu_power_integral").energy_j == pytest.approx(3000.0, abs=0.5)
    assert reading.wall_s == pytest.approx(10.0)


@many
@given(
    powers=st.lists(st.floats(20, 700), min_size=1, max_size=8),
    seconds=st.floats(5, 60),
    tick_s=st.sampled_from([0.01, 0.02, 0.05, 0.1]),
    phase=st.floats(0, 0.99),
)
def test_the_counter_is_off_by_no_more_than_its_own_error(
    fake_nvml_library: Path, powers: list[float], seconds: float, tick_s: float, phase: float
) -> None:
    trajectory = [(0.7 * i, power) for i, power in enumerate(powers)]
    gpu = FakeGpu(power=trajectory, tick_s=tick_s, phase_s=phase * tick_s)
    with FakeDriver(fake_nvml_library, [gpu], call_s=20e-6) as driver:
        reading, start_s, end_s = measure(driver, seconds)
        true_j = driver.energy_j(0, start_s, end_s)
    found = channel(reading, "gpu_counter")
    assert found.energy_j is not None
    assert found.error_j is not None
    assert abs(found.energy_j - true_j) <= found.error_j + 1e-6 * true_j


@pytest.mark.parametrize("idle_w", [60.0, 120.0, 300.0])
@pytest.mark.parametrize("phase_s", [0.0, 0.03, 0.099])
@pytest.mark.parametrize("seconds", [0.5, 0.531, 0.58])
def test_half_a_second_on_a_tick_of_100_ms_is_right_to_three_thousandths_where_the_tail_is_known(
    fake_nvml_library: Path, seconds: float, phase_s: float, idle_w: float
) -> None:
    with working(fake_nvml_library, seconds, idle_w=idle_w, phase_s=phase_s) as (_, run):
        reading, true_j = run(tail_power_w={UUID: idle_w})
    assert channel(reading, "gpu_counter").energy_j == pytest.approx(true_j, rel=0.003)


@many
@given(
    seconds=st.floats(0.5, 3.0),
    phase=st.floats(0, 0.099),
    idle_w=st.floats(40, 300),
    fall_s=st.floats(0.0, 0.5),
    start_w=st.floats(0, 1),
)
def test_an_unknown_tail_stays_inside_the_error_budget(
    fake_nvml_library: Path, seconds: float, phase: float, idle_w: float, fall_s: float, start_w: float
) -> None:
    """After the work, power falls from somewhere between load and idle to idle, at once or over half a second."""
    from_w = idle_w + start_w * (600.0 - idle_w)
    steps = 20
    tail = [(fall_s * i / steps, from_w + (idle_w - from_w) * i / steps) for i in range(steps + 1)]
    with working(fake_nvml_library, seconds, tail, idle_w=idle_w, phase_s=phase) as (_, run):
        reading, true_j = run()
    found = channel(reading, "gpu_counter")
    assert found.energy_j is not None
    assert found.error_j is not None
    assert abs(found.energy_j - true_j) <= found.error_j + 1e-6 * true_j
    assert found.error_j <= 1.1 * 0.1 * 600  # no more than one tick of the load: a budget, not an excuse


def test_the_window_is_not_scaled_by_time_so_that_the_faster_method_is_not_flattered(fake_nvml_library: Path) -> None:
    """Two runs of the same power, one a fifth shorter: the ratio of their joules is that of their times."""
    figures = []
    for seconds in (5.0, 4.0):
        with working(fake_nvml_library, seconds, phase_s=0.043) as (_, run):
            reading, _ = run(tail_power_w={UUID: 120.0})
            figures.append(channel(reading, "gpu_counter").energy_j or 0.0)
    assert figures[1] / figures[0] == pytest.approx(0.8, abs=0.001)


@many
@given(cuts=st.lists(st.floats(1.5, 6.0), min_size=2, max_size=4), power=st.floats(50, 600))
def test_adjacent_windows_add_up_to_one(fake_nvml_library: Path, cuts: list[float], power: float) -> None:
    with FakeDriver(fake_nvml_library, [FakeGpu(power=power)], call_s=20e-6) as driver:
        meter = GpuMeter(open_gpus(), driver.time)
        pieces = [measure(driver, seconds, meter)[0] for seconds in cuts]
        (counter, integral) = sum_pieces(pieces).energy
    assert counter.energy_j == pytest.approx(power * sum(cuts), abs=counter.error_j)
    assert integral.energy_j == pytest.approx(power * sum(cuts), rel=1e-3)


@many
@given(phase=st.floats(0, 0.099), last_s=st.floats(1e-5, 0.15), idle_w=st.floats(40, 290))
def test_a_last_piece_shorter_than_a_tick_costs_neither_the_figure_nor_its_error(
    fake_nvml_library: Path, phase: float, last_s: float, idle_w: float
) -> None:
    """As when an evaluation that stands apart is the last thing in a training."""
    with FakeDriver(fake_nvml_library, [FakeGpu(power=300.0, phase_s=phase)], call_s=50e-6) as driver:
        meter = GpuMeter(open_gpus(), driver.time)
        pieces, true_j = [], 0.0
        for seconds in (30.0, last_s):
            reading, start_s, end_s = measure(driver, seconds, meter)
            pieces.append(reading)
            true_j += driver.energy_j(0, start_s, end_s)
    counter = channel(refuse_short(sum_pieces(pieces)), "gpu_counter")
    assert counter.energy_j is not None, counter.reason
    assert counter.error_j is not None
    assert abs(counter.energy_j - true_j) <= counter.error_j
    assert counter.error_j <= 2 * 0.1 * 300  # a tick of the load for each end of two pieces: nobody knows the tail


def test_a_window_shorter_than_a_tick_alone_has_no_figure_and_its_sensor_was_not_lost(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=300.0), call_s=50e-6)
    meter = GpuMeter(open_gpus(), driver.time)
    pieces = [measure(driver, 1e-5, meter)[0] for _ in range(6)]
    assert any(e.energy_j is None for piece in pieces for e in piece.energy)  # else this says nothing
    for reading in (*pieces, sum_pieces(pieces)):
        counter = refuse_short(reading).energy[0]
        assert (counter.source, counter.energy_j) == ("unavailable", None)
        assert counter.reason is not None
        assert "shorter than" in counter.reason


@pytest.mark.parametrize("period_s", [0.02, 0.05, 0.1, 0.25])
def test_how_often_power_is_polled_does_not_matter(fake_driver: Plug, period_s: float) -> None:
    driver = fake_driver(FakeGpu(power=[(0, 100), (4, 400), (9, 150)], sampling_s=0.02, duty_s=0.02), call_s=20e-6)
    reading, start_s, end_s = measure(driver, 12.0, period_s=period_s)
    true_j = driver.energy_j(0, start_s, end_s)
    counter, integral = channel(reading, "gpu_counter"), channel(reading, "gpu_power_integral")
    assert counter.energy_j == pytest.approx(true_j, abs=counter.error_j)
    assert integral.energy_j == pytest.approx(true_j, abs=(integral.error_j or 0) + 0.02 * 400)  # and its delay
    assert integral.error_j is not None
    assert integral.error_j <= 0.1 * true_j  # the mean of the last second sees what instant power may miss


def test_a_gain_of_the_sensor_cancels_between_two_windows_of_one_card(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=200.0, gain=1.11))
    meter = GpuMeter(open_gpus(), driver.time)
    long, short = (channel(measure(driver, s, meter)[0], "gpu_counter").energy_j or 0.0 for s in (10.0, 8.0))
    assert long == pytest.approx(1.11 * 2000, rel=1e-3)
    assert short / long == pytest.approx(0.8, rel=1e-3)


# ── several cards ─────────────────────────────────────────────────────────────────────────────────────────


def test_cards_are_kept_apart_and_each_is_right_whatever_the_phase_of_its_ticks(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100.0), FakeGpu(uuid=OTHER, power=350.0, phase_s=0.037), call_s=20e-6)
    reading, start_s, end_s = measure(driver, 8.0)
    for number, (uuid, power) in enumerate([(UUID, 100.0), (OTHER, 350.0)]):
        counter = channel(reading, "gpu_counter", uuid)
        assert counter.energy_j == pytest.approx(power * (end_s - start_s), abs=counter.error_j)
        assert counter.energy_j == pytest.approx(driver.energy_j(number, start_s, end_s), rel=1e-3)
    assert set(reading.cards) == {UUID, OTHER}


def test_the_loss_of_one_card_does_not_touch_the_other(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=100.0, lost=[(5.0,)]), FakeGpu(uuid=OTHER, power=350.0))
    reading, _, _ = measure(driver, 8.0)
    assert channel(reading, "gpu_counter").energy_j is None
    assert channel(reading, "gpu_counter", OTHER).energy_j == pytest.approx(2800, rel=1e-3)


def test_a_card_is_found_by_its_uuid_wherever_it_stands(fake_driver: Plug) -> None:
    fake_driver(FakeGpu(power=100.0), FakeGpu(uuid=OTHER, power=350.0))
    (gpu,) = open_gpus([OTHER])
    assert gpu.uuid == OTHER
    with pytest.raises(Unavailable, match="Not Found"):
        open_gpus(["GPU-unknown"])


# ── what goes wrong gives no false number ─────────────────────────────────────────────────────────────────


def test_a_card_pulled_in_mid_window_is_null_with_its_reason(fake_driver: Plug) -> None:
    reading, _, _ = measure(fake_driver(FakeGpu(lost=[(4.0,)])), 10.0)
    for source in ("gpu_counter", "gpu_power_integral"):
        found = channel(reading, source)
        assert (found.energy_j, found.error_j) == (None, None)
        assert found.lost
    assert "lost" in (channel(reading, "gpu_counter").reason or "")
    assert reading.sampler is not None
    assert reading.sampler.missed > 0


def test_a_card_that_comes_back_after_a_while_has_no_figure_either(fake_driver: Plug) -> None:
    reading, _, _ = measure(fake_driver(FakeGpu(lost=[(4.0, 6.0)])), 10.0)
    assert channel(reading, "gpu_counter").energy_j is None
    assert "no power could be read for 2" in (channel(reading, "gpu_power_integral").reason or "")


@pytest.mark.parametrize("start_j", [0.0, 50_000.0])
def test_a_counter_that_was_reset_is_null_however_far_it_has_come_since(fake_driver: Plug, start_j: float) -> None:
    driver = fake_driver(FakeGpu(power=300.0, counter_start_j=start_j, reset=[2.0]))
    reading, _, _ = measure(driver, 30.0)
    found = channel(reading, "gpu_counter")
    assert found.energy_j is None
    assert found.reason == "the counter was reset"
    assert channel(reading, "gpu_power_integral").energy_j == pytest.approx(9000, rel=1e-3)


@pytest.mark.parametrize("end_s", [10.5, 10.68, 10.82, 11.08])
def test_a_counter_that_was_reset_between_the_last_look_and_the_end_is_null_too(
    fake_driver: Plug, end_s: float
) -> None:
    """Its window began soon after another reset, so that the last count is above the first."""
    gpu = FakeGpu(power=300.0, tick_s=0.02, reset=[0.3, end_s - 0.15])
    driver = fake_driver(gpu, call_s=50e-6)
    driver.time.sleep(0.35)
    meter = GpuMeter(open_gpus(), driver.time)
    meter.start()
    driver.time.sleep(end_s - driver.time.now_ns() / 1e9)
    found = channel(meter.stop(), "gpu_counter")
    assert (found.energy_j, found.reason) == (None, "the counter was reset")


def test_a_counter_that_wraps_is_null_and_not_negative(fake_driver: Plug) -> None:
    reading, _, _ = measure(fake_driver(FakeGpu(power=300.0, wrap_mj=1_000_000)), 10.0)
    assert channel(reading, "gpu_counter").energy_j is None


def test_a_counter_that_stands_still_is_null_and_not_zero(fake_driver: Plug) -> None:
    reading, _, _ = measure(fake_driver(FakeGpu(frozen=[(3.0,)])), 10.0)
    found = channel(reading, "gpu_counter")
    assert found.energy_j is None
    assert "stood still" in (found.reason or "")


def test_waiting_for_an_edge_ends_even_if_there_is_none(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(frozen=[(0.0,)]))
    reading, start_s, _ = measure(driver, 1.0)
    assert start_s < 1.0
    assert channel(reading, "gpu_counter").energy_j is None
    with pytest.raises(SensorError, match="stood still"):
        infer_tick(open_gpus()[0].energy_j, driver.time)


def test_a_card_without_a_counter_is_metered_by_its_power_and_says_so(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=250.0, errors=[("nvmlDeviceGetTotalEnergyConsumption", 3)]))
    reading, _, _ = measure(driver, 12.0)
    assert channel(reading, "gpu_power_integral").energy_j == pytest.approx(3000, rel=1e-3)
    missing = channel(reading, "unavailable")
    assert not missing.lost
    assert "Not Supported" in (missing.reason or "")


@pytest.mark.parametrize(
    ("errors", "field"),
    [
        ([], "NVML_FI_DEV_POWER_INSTANT"),
        ([("186", 3)], "NVML_FI_DEV_POWER_AVERAGE"),
        ([("186", 3), ("185", 3)], "nvmlDeviceGetPowerUsage"),
    ],
)
def test_what_power_means_is_in_the_record(fake_driver: Plug, errors: list[tuple[str, int]], field: str) -> None:
    reading, _, _ = measure(fake_driver(FakeGpu(power=250.0, errors=errors)), 12.0)
    found = channel(reading, "gpu_power_integral")
    assert (found.detail["field"], found.detail["scope"]) == (field, 0)
    assert found.energy_j == pytest.approx(3000, rel=1e-3)


@pytest.mark.parametrize("rise_s", [1.5, 3.0, 5.0])
@pytest.mark.parametrize("powers", [(100.0, 400.0), (400.0, 100.0)])
def test_a_power_that_may_be_the_mean_of_a_second_has_that_in_its_error(
    fake_driver: Plug, rise_s: float, powers: tuple[float, float]
) -> None:
    """nvmlDeviceGetPowerUsage does not say what it is; from Ampere on it lags by half of a second."""
    old = [("186", 3), ("185", 3), ("nvmlDeviceGetTotalEnergyConsumption", 3)]
    driver = fake_driver(FakeGpu(power=[(0.0, powers[0]), (rise_s, powers[1])], errors=old))
    reading, start_s, end_s = measure(driver, 6.0)
    found = channel(reading, "gpu_power_integral")
    assert (found.detail["field"], found.detail["averaging_s"]) == ("nvmlDeviceGetPowerUsage", None)
    assert found.energy_j is not None
    assert found.error_j is not None
    assert abs(found.energy_j - driver.energy_j(0, start_s, end_s)) <= found.error_j


def test_a_card_that_answers_nothing_of_energy_is_unavailable_twice(fake_driver: Plug) -> None:
    failing = [("nvmlDeviceGetTotalEnergyConsumption", 3), ("186", 3), ("185", 3), ("nvmlDeviceGetPowerUsage", 3)]
    reading, _, _ = measure(fake_driver(FakeGpu(errors=failing)), 12.0)
    assert [(e.source, e.energy_j) for e in reading.energy] == [("unavailable", None)] * 2
    assert all(e.reason for e in reading.energy)


@pytest.mark.parametrize("too_fast_code", [0, 3])  # 0 W, or an error
def test_power_asked_for_too_often_is_a_missed_read_and_not_0_watts(fake_driver: Plug, too_fast_code: int) -> None:
    gpu = FakeGpu(power=300.0, shortest_poll_s=0.05, too_fast_code=too_fast_code)
    reading, _, _ = measure(fake_driver(gpu), 10.0, period_s=0.1)
    assert channel(reading, "gpu_power_integral").energy_j == pytest.approx(3000, rel=1e-3)
    assert reading.sampler is not None
    assert reading.sampler.missed <= 2  # the look at the end may fall anywhere
    reading, _, _ = measure(fake_driver(gpu), 10.0, period_s=0.04)
    assert channel(reading, "gpu_power_integral").energy_j is None
    assert reading.sampler is not None
    assert reading.sampler.missed > 200
    assert channel(reading, "gpu_counter").energy_j == pytest.approx(3000, rel=1e-3)


def test_a_load_that_beats_with_the_sensors_period_is_seen_by_the_other_channel(fake_driver: Plug) -> None:
    """Power is high only in the part of each 100 ms that the instant field does not see."""
    pulse = FakeGpu(power=[(0.0, 600.0), (0.05, 100.0)], repeat_s=0.1, tick_s=0.1, duty_s=0.025)
    reading, start_s, end_s = measure(driver := fake_driver(pulse), 10.0)
    true_j = driver.energy_j(0, start_s, end_s)
    counter, integral = channel(reading, "gpu_counter"), channel(reading, "gpu_power_integral")
    assert counter.energy_j == pytest.approx(true_j, rel=0.01)
    assert integral.energy_j is not None
    assert integral.energy_j < 0.5 * true_j
    assert integral.detail["average_field_j"] == pytest.approx(true_j, rel=0.01)


# ── the card's state ──────────────────────────────────────────────────────────────────────────────────────


def test_temperature_clock_and_throttling_of_the_window_are_kept(fake_driver: Plug) -> None:
    gpu = FakeGpu(
        temperature_c=[(0, 40), (10, 60)], sm_clock_mhz=[(0, 1000.0)], throttled=[(74, 0.5, 2.0, 6.0), (271, 1.0, 50.0)]
    )
    reading, _start_s, _end_s = measure(fake_driver(gpu), 10.0)
    card = reading.cards[UUID]
    assert card.temperature_start_c == pytest.approx(40, abs=1)
    assert card.temperature_end_c == card.temperature_max_c == pytest.approx(60, abs=1)
    assert card.sm_clock_mhz == pytest.approx(1000)
    assert card.throttled_s == {"software power cap": pytest.approx(2.0)}


def test_whoever_else_is_on_the_card_is_named_and_we_are_not(fake_driver: Plug) -> None:
    gpu = FakeGpu(compute=[(os.getpid(),), (4711, 3.0, 8.0)])
    reading, _, _ = measure(fake_driver(gpu), 10.0)
    assert reading.cards[UUID].foreign_pids == [4711]


def test_siblings_that_rest_on_the_card_are_spared_and_strangers_are_not(fake_driver: Plug) -> None:
    """Numbered as the driver does, in a container: 900 came before us, 901 is our own, 902 and 903 come later."""
    driver = fake_driver(FakeGpu(compute=[(900,), (901, 1.0), (902, 13.0), (903, 14.0)]))
    meter = GpuMeter(open_gpus(), driver.time)
    assert meter.own_on_cards() == {}
    driver.time.sleep(2.0)
    meter.spare({UUID: [900]})
    reading, _, _ = measure(driver, 10.0, meter)
    assert reading.cards[UUID].foreign_pids == []
    assert meter.own_on_cards() == {UUID: [901]}
    meter.spare({UUID: [902]})
    reading, _, _ = measure(driver, 10.0, meter)
    assert reading.cards[UUID].foreign_pids == [903]


def test_in_a_container_what_came_with_our_own_context_is_taken_for_ours(fake_driver: Plug) -> None:
    """The driver numbers processes as the host does: 900 was there before us, 901 came with us, 902 later."""
    driver = fake_driver(FakeGpu(compute=[(900,), (901, 1.0), (902, 5.0)]))
    meter = GpuMeter(open_gpus(), driver.time)
    driver.time.sleep(2.0)
    reading, _, _ = measure(driver, 10.0, meter)
    assert reading.cards[UUID].foreign_pids == [900, 902]


def test_a_command_and_its_workers_are_ours_whenever_they_come_and_others_are_not(fake_driver: Plug) -> None:
    """The command is on the card from 2 s on, a process of this machine that is no child of ours from 3 s on."""
    command = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    worker = int(command.stdout.readline())
    other = int(subprocess.check_output(["sh", "-c", "sleep 60 >/dev/null & echo $!"]))  # its parent has ended
    try:
        gpu = FakeGpu(compute=[(command.pid, 2.0), (worker, 2.5), (other, 3.0), (900,)])
        driver = fake_driver(gpu)
        reading, _, _ = measure(driver, 10.0, GpuMeter(open_gpus(), driver.time, of_children=True))
        assert reading.cards[UUID].foreign_pids == sorted([900, other])
    finally:
        os.kill(worker, signal.SIGKILL)
        os.kill(other, signal.SIGKILL)
        command.wait()
        command.stdout.close()


def test_in_a_container_a_command_that_comes_later_is_taken_for_ours(fake_driver: Plug) -> None:
    unseen = 2**31 - 7  # beyond every process number of Linux
    driver = fake_driver(FakeGpu(compute=[(unseen - 1,), (unseen, 5.0)]))
    reading, _, _ = measure(driver, 10.0, GpuMeter(open_gpus(), driver.time, of_children=True))
    assert reading.cards[UUID].foreign_pids == [unseen - 1]


def test_a_sliced_or_shared_card_says_so(fake_driver: Plug) -> None:
    reading, _, _ = measure(fake_driver(FakeGpu(mig=True)), 2.0)
    assert (reading.cards[UUID].mig, reading.cards[UUID].mps) == (True, False)
    reading, _, _ = measure(fake_driver(FakeGpu(mps=[(os.getpid(),)])), 2.0)
    assert (reading.cards[UUID].mig, reading.cards[UUID].mps) == (False, True)


def test_facts_that_a_comparison_must_keep_equal_are_told_and_what_is_not_told_has_its_reason(
    fake_driver: Plug,
) -> None:
    fake_driver(FakeGpu(power_limit_w=275.0, errors=[("nvmlDeviceGetEccMode", 3)]), driver_version="999.1")
    (facts,) = (gpu.facts() for gpu in open_gpus())
    assert (facts["uuid"], facts["driver"], facts["power_limit_w"]) == (UUID, "999.1", 275.0)
    assert facts["ecc"] is None
    assert "Not Supported" in facts["ecc_reason"]
    assert facts["counter"] is True


@pytest.mark.parametrize("tick_s", [0.01, 0.02, 0.1])
def test_the_tick_is_inferred_from_ten_intervals_or_more(fake_driver: Plug, tick_s: float) -> None:
    driver = fake_driver(FakeGpu(tick_s=tick_s, phase_s=0.003), call_s=20e-6)
    tick = infer_tick(open_gpus()[0].energy_j, driver.time)
    assert tick.edges >= 11
    assert tick.seconds == pytest.approx(tick_s, abs=0.001)
    assert tick.least_s <= tick.seconds <= tick.most_s


def test_without_a_driver_there_is_a_reason_and_a_remedy() -> None:
    with pytest.raises(Unavailable) as raised:
        open_gpus()
    assert raised.value.kind == "absent"
    assert "NVML" in raised.value.reason
    assert "nvidia-smi" in raised.value.remedy


# ── a stretch that nobody metered while it ran ────────────────────────────────────────────────────────────────


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    powers=st.lists(st.floats(50, 700), min_size=2, max_size=6),
    ends=st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 0.98)),
)
def test_the_joules_of_a_stretch_inside_a_window_lie_within_their_error_of_the_cards(
    fake_nvml_library: Path, powers: list[float], ends: tuple[float, float]
) -> None:
    """A program in any language writes when its training began and ended; the card's power was sampled meanwhile."""
    trajectory = [(4.0 * i, power) for i, power in enumerate(powers)]
    with FakeDriver(fake_nvml_library, [FakeGpu(power=trajectory)], call_s=20e-6) as driver:
        meter = GpuMeter(open_gpus(), driver.time)
        whole, began_s, ended_s = measure(driver, 20.0, meter)
        start_s, stop_s = (began_s + share * (ended_s - began_s) for share in sorted(ends))
        found = meter.of_stretch(round(start_s * 1e9), round(stop_s * 1e9))
        energy = next(each for each in found if each.source == "gpu_power_integral")
        assert channel(whole, "gpu_power_integral").energy_j is not None
        if energy.energy_j is None:  # too short for its samples, which is said
            assert stop_s - start_s < 2.0
            assert energy.reason
            return
        true_j = driver.energy_j(0, start_s, stop_s)
        # A step of power between two samples is seen by the next one: at each end, and where it steps.
        assert abs(energy.energy_j - true_j) <= (energy.error_j or 0.0) + 700.0 * meter._period_s * (len(powers) + 2)
        assert all(each.source != "gpu_counter" or each.energy_j is None for each in found)
