"""RAPL on a machine whose power is known: what it says must be the integral of that power."""

from __future__ import annotations

import errno
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from fakes.powercap import CLIENT_UJ, SERVER_UJ, Power, Powercap, Zone
from hypothesis import given, settings
from hypothesis import strategies as st

from energybench.meter import rapl
from energybench.meter.clock import REAL_TIME
from energybench.meter.domains import Domain
from energybench.meter.plausible import PowerLimit
from energybench.meter.rapl import REMEDIES, Rapl, open_rapl, survey
from energybench.meter.reading import Energy, Reading
from energybench.meter.unavailable import Unavailable
from energybench.meter.window import refuse_short, sum_pieces

WATTS = st.floats(5.0, 400.0)
PIECES = st.lists(st.tuples(st.floats(0.01, 20.0), WATTS), min_size=1, max_size=8)
# Within a factor of two, the error budget's own condition.
STEADY = st.lists(st.tuples(st.floats(0.001, 5.0), st.floats(100.0, 200.0)), min_size=1, max_size=8)


@contextmanager
def a_machine() -> Iterator[Powercap]:
    """A new one for every example; what its counters show is computed when they are read."""
    with tempfile.TemporaryDirectory() as folder:
        made = Powercap(Path(folder)).only_when_read()
        with patch.object(rapl, "read_text", made.read_text):
            yield made


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Powercap:
    made = Powercap(tmp_path)
    monkeypatch.setattr(rapl, "read_text", made.read_text)
    return made


def opened(machine: Powercap) -> Rapl:
    return open_rapl(machine.time, machine.flat, system=machine.system)


def window(machine: Powercap, meter: Rapl, seconds: float) -> Reading:
    meter.start()
    machine.time.sleep(seconds)
    return meter.stop()


def truth(machine: Powercap, zone: Zone, meter: Rapl, seconds: float) -> tuple[Reading, float]:
    """(the reading of a window, what was drawn in it)."""
    meter.start()
    began_ns = machine.time.now_ns()
    machine.time.sleep(seconds)
    true_j = zone.energy_j(began_ns, machine.time.now_ns())  # stopping may take a moment
    return meter.stop(), true_j


def one(reading: Reading) -> Energy:
    (energy,) = reading.energy
    return energy


def by_device(reading: Reading) -> dict[str, float | None]:
    return {energy.device: energy.energy_j for energy in reading.energy}


def joules(energy: Energy) -> float:
    assert energy.energy_j is not None, energy.reason
    return energy.energy_j


def error(energy: Energy) -> float:
    assert energy.error_j is not None
    return energy.error_j


def refusal(machine: Powercap) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        opened(machine)
    return caught.value


def test_300_watts_for_10_seconds_are_3000_joules(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 300.0)
    reading = window(machine, opened(machine), 10.0)
    energy = one(reading)
    assert (energy.source, energy.scope, energy.device) == ("rapl", "cpu", "package-0")
    assert joules(energy) == pytest.approx(3000.0, abs=error(energy))
    assert error(energy) < 1.0  # a millisecond at either end
    assert reading.wall_s == pytest.approx(10.0)
    assert energy.measured
    assert energy.detail["way"] == "powercap"


@given(PIECES, st.floats(0.05, 60.0), st.integers(0, SERVER_UJ - 1))
def test_whatever_the_power_did_the_energy_is_its_integral(power: Power, seconds: float, start_uj: int) -> None:
    with a_machine() as machine:
        zone = machine.add("intel-rapl:0", "package-0", power, start_uj=start_uj, range_uj=SERVER_UJ)
        reading, true_j = truth(machine, zone, opened(machine), seconds)
        assert joules(one(reading)) == pytest.approx(true_j, abs=0.001 * 400.0 + 1e-5)  # a tick at the highest power


@given(STEADY, st.floats(0.02, 20.0), st.floats(0.0, 0.003), st.sampled_from([250_000, 1_000_000, 2_500_000]))
def test_the_truth_lies_within_the_error(power: Power, seconds: float, phase_s: float, tick_ns: int) -> None:
    with a_machine() as machine:
        zone = machine.add("intel-rapl:0", "package-0", power, tick_ns=tick_ns)
        meter = opened(machine)
        machine.time.sleep(phase_s)
        reading, true_j = truth(machine, zone, meter, seconds)
        assert abs(joules(one(reading)) - true_j) <= error(one(reading))


def test_a_burst_at_the_end_of_an_idle_window_is_within_the_error(machine: Powercap) -> None:
    began_s = 0.0209
    zone = machine.add("intel-rapl:0", "package-0", [(began_s + 100.0, 5.0), (1.0, 400.0)])
    meter = opened(machine)
    machine.time.sleep(began_s - machine.time.now_ns() / 1e9)
    began_ns = machine.time.now_ns()
    energy = one(window(machine, meter, 110.00099))  # the last millisecond of 400 W is not counted yet
    missed_j = zone.energy_j(began_ns, machine.time.now_ns()) - joules(energy)
    assert 0.3 < missed_j <= error(energy) < 1.0


def test_what_the_kernel_rounds_at_every_wrap_is_within_the_error(machine: Powercap) -> None:
    machine.only_when_read()
    zone = machine.add("intel-rapl:0", "package-0", 240.0, range_uj=SERVER_UJ, tick_ns=1)
    # This leaves no other error, and no bound that is exact enough to find what is rounded.
    domain = replace(opened(machine).domains[0], update_s=0.0, opening_w=0.0)
    reading, true_j = truth(machine, zone, Rapl([domain], machine.time), 20.5 * 65_713 / 240.0)
    assert 19 * 15e-6 < true_j - joules(one(reading)) <= error(one(reading)) < 1e-3


@given(PIECES, st.lists(st.floats(0.05, 30.0), min_size=2, max_size=5))
def test_adjacent_windows_add_up_to_the_whole(
    pieces: Sequence[tuple[float, float]], lengths_s: Sequence[float]
) -> None:
    """While power does not fall: there a window ends a moment later, when the counter is seen to go on."""
    power = sorted(pieces, key=lambda piece: piece[1])
    with a_machine() as machine:
        machine.add("intel-rapl:0", "package-0", power, range_uj=SERVER_UJ)
        whole = opened(machine)
        whole.start()
        part = whole.nested()
        parts = []
        for seconds in lengths_s:
            part.start()
            machine.time.sleep(seconds)
            parts.append(joules(one(part.stop())))
        assert sum(parts) == pytest.approx(joules(one(whole.stop())), abs=1e-9)


@settings(max_examples=8)
@given(st.integers(0, SERVER_UJ - 1))
def test_twenty_wraps_lose_nothing(start_uj: int) -> None:
    with a_machine() as machine:
        zone = machine.add("intel-rapl:0", "package-0", 240.0, start_uj=start_uj, range_uj=SERVER_UJ)
        reading, true_j = truth(machine, zone, opened(machine), 20.5 * 65_713 / 240.0)
        energy = one(reading)
        assert energy.detail["wraps"] in (20, 21)
        assert joules(energy) == pytest.approx(true_j, abs=error(energy))
        assert error(energy) < 1.0


@given(PIECES, st.floats(0.1, 20.0), st.lists(st.floats(0.05, 15.0), min_size=2, max_size=3))
def test_how_often_the_counter_is_read_does_not_matter(power: Power, seconds: float, periods_s: list[float]) -> None:
    found = []
    for period_s in periods_s:
        with a_machine() as machine, patch.object(rapl, "LONGEST_PERIOD_S", period_s):
            machine.add("intel-rapl:0", "package-0", power, range_uj=SERVER_UJ)
            found.append(joules(one(window(machine, opened(machine), seconds))))
    assert len(set(found)) == 1


def test_it_is_read_more_than_four_times_in_the_shortest_time_of_a_wrap(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 300.0, range_uj=1_000_000_000, rated_w=400.0)
    meter = opened(machine)
    assert meter.period_s < 1000.0 / (4 * 400.0)
    sampler = window(machine, meter, 20.0).sampler
    assert sampler is not None
    assert sampler.period_s == meter.period_s
    assert sampler.samples == pytest.approx(20.0 / meter.period_s, abs=3)
    assert sampler.largest_gap_s == pytest.approx(meter.period_s, rel=1e-6)
    assert sampler.missed == 0


def test_a_domain_without_a_rating_is_taken_to_draw_a_kilowatt_and_read_four_times_a_second_at_least(
    machine: Powercap,
) -> None:
    machine.add("intel-rapl:0", "package-0", 300.0, range_uj=CLIENT_UJ)
    assert opened(machine).period_s == 0.25
    machine.add("intel-rapl:1", "package-1", 310.0, range_uj=1_000_000_000)
    assert opened(machine).period_s < 1000.0 / (4 * 1000.0)


def test_every_package_is_a_figure_of_its_own_and_its_memory_another(machine: Powercap) -> None:
    for i in (0, 1):
        machine.add(f"intel-rapl:{i}", f"package-{i}", 100.0 * (i + 1))
        machine.add(f"intel-rapl:{i}:0", "dram", 10.0 * (i + 1))
    reading = window(machine, opened(machine), 10.0)
    expected = {"package-0": 1000, "package-1": 2000, "package-0/dram": 100, "package-1/dram": 200}
    assert by_device(reading) == pytest.approx(expected, rel=1e-3)
    assert {energy.device: energy.scope for energy in reading.energy} == {
        device: "dram" if device.endswith("dram") else "cpu" for device in expected
    }


def test_psys_core_and_uncore_are_never_added(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    machine.add("intel-rapl:0:0", "core", 70.0)
    machine.add("intel-rapl:0:1", "uncore", 20.0)
    machine.add("intel-rapl:1", "psys", 180.0)
    assert by_device(window(machine, opened(machine), 10.0)) == pytest.approx({"package-0": 1000}, rel=1e-3)


@pytest.mark.parametrize("tree", ["flat", "nested"])
def test_the_same_domain_by_msr_and_by_mmio_counts_once_and_msr_is_read(machine: Powercap, tree: str) -> None:
    machine.add("intel-rapl-mmio:0", "package-0", 100.5)  # told apart by a different power
    machine.add("intel-rapl-mmio:0:0", "dram", 10.5)
    machine.add("intel-rapl:0", "package-0", 100.0)
    machine.add("intel-rapl:0:0", "dram", 10.0)
    meter = open_rapl(machine.time, getattr(machine, tree), system=machine.system)
    found = by_device(window(machine, meter, 10.0))
    assert found == pytest.approx({"package-0": 1000, "package-0/dram": 100}, rel=1e-3)


def test_the_mmio_counter_is_read_where_the_msr_counter_stands_still(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0, still=True)
    machine.add("intel-rapl-mmio:0", "package-0", 100.0)
    assert by_device(window(machine, opened(machine), 10.0)) == pytest.approx({"package-0": 1000}, rel=1e-3)


@pytest.mark.parametrize("start_uj", [0, CLIENT_UJ - 3_000_000], ids=["", "about to wrap"])
def test_dies_that_mirror_each_other_count_once(machine: Powercap, start_uj: int) -> None:
    for die in (0, 1):
        machine.add(f"intel-rapl:{die}", f"package-0-die-{die}", 100.0, start_uj=start_uj)
        machine.add(f"intel-rapl:{die}:0", "dram", 10.0, start_uj=start_uj)
    reading = window(machine, opened(machine), 100.0)
    expected = {"package-0-die-0": 10_000, "package-0-die-0/dram": 1000}
    assert by_device(reading) == pytest.approx(expected, rel=1e-3)
    assert reading.energy[0].detail["mirrors"] == ["package-0-die-1"]


@pytest.mark.parametrize("crossing_ms", [*range(40), None])
def test_dies_with_counts_of_their_own_are_summed_even_if_they_cross(
    machine: Powercap, crossing_ms: int | None
) -> None:
    ahead_uj = 10_000_000 if crossing_ms is None else crossing_ms * 10_000  # 10 W catch up 10 mJ in a millisecond
    machine.add("intel-rapl:0", "package-0-die-0", 100.0)
    machine.add("intel-rapl:1", "package-0-die-1", 90.0, start_uj=ahead_uj)
    found = by_device(window(machine, opened(machine), 10.0))
    assert found == pytest.approx({"package-0-die-0": 1000, "package-0-die-1": 900}, rel=1e-3)


def test_memory_whose_counter_stands_still_has_no_figure_and_says_why_in_every_reading(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    machine.add("intel-rapl:0:0", "dram", 10.0, still=True)
    meter = opened(machine)
    for reading in (window(machine, meter, 1.0), window(machine, meter.nested(), 1.0)):
        package, dram = reading.energy
        assert joules(package) == pytest.approx(100.0, rel=1e-2)
        assert (dram.source, dram.scope, dram.device, dram.energy_j) == ("unavailable", "dram", "package-0/dram", None)
        assert dram.reason == "package-0/dram is listed, but its counter stood still for 100 ms"
    assert "stood still" in meter.left_out["package-0/dram"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENODATA, errno.EIO, errno.ENODEV])
@pytest.mark.parametrize("when", ["start", "end"])
def test_a_reading_that_fails_at_an_end_is_null_with_a_reason_and_never_zero(
    machine: Powercap, number: int, when: str
) -> None:
    for i in (0, 1):
        machine.add(f"intel-rapl:{i}", f"package-{i}", 100.0 + i)
    meter = opened(machine)
    if when == "start":
        machine.errors["intel-rapl:1"] = number
    meter.start()
    machine.errors.clear()
    machine.time.sleep(5.0)
    if when == "end":
        machine.errors["intel-rapl:1"] = number
    reading = meter.stop()
    found = {energy.device: energy for energy in reading.energy}
    assert joules(found["package-0"]) == pytest.approx(500.0, rel=1e-3)
    lost = found["package-1"]
    assert (lost.energy_j, lost.error_j, lost.measured) == (None, None, False)
    assert lost.reason is not None
    assert when in lost.reason
    assert reading.sampler is not None
    assert reading.sampler.missed == 1


@pytest.mark.parametrize("text", ["", "garbage\n", "-1\n", f"{CLIENT_UJ * 2}\n", "12.5\n"])
def test_garbage_is_a_failed_reading(machine: Powercap, text: str) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    meter = opened(machine)
    meter.start()
    machine.says["intel-rapl:0"] = text
    machine.time.sleep(1.0)
    energy = one(meter.stop())
    assert energy.energy_j is None
    assert energy.reason


def test_a_counter_that_is_gone_for_a_moment_loses_nothing(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 240.0, range_uj=SERVER_UJ)
    meter = opened(machine)
    meter.start()
    machine.time.sleep(15.0)
    machine.block("intel-rapl:0")
    machine.time.sleep(24.0)  # a wrap takes at least 65 s
    machine.unblock("intel-rapl:0")
    machine.time.sleep(61.0)
    reading = meter.stop()
    assert joules(one(reading)) == pytest.approx(24_000.0, abs=error(one(reading)))
    assert reading.sampler is not None
    assert reading.sampler.missed == 24.0 / meter.period_s
    assert reading.sampler.largest_gap_s == pytest.approx(24.0, abs=2 * meter.period_s)


def test_a_counter_that_is_gone_for_as_long_as_a_wrap_has_no_total(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 240.0, range_uj=SERVER_UJ)
    meter = opened(machine)
    meter.start()
    machine.block("intel-rapl:0")
    machine.time.sleep(70.0)
    machine.unblock("intel-rapl:0")
    machine.time.sleep(60.0)
    energy = one(meter.stop())
    assert energy.energy_j is None
    assert "wrapped unseen" in str(energy.reason)


def test_a_counter_that_stops_in_the_middle_has_no_total(machine: Powercap) -> None:
    zone = machine.add("intel-rapl:0", "package-0", 240.0)
    meter = opened(machine)
    meter.start()
    machine.time.sleep(25.0)
    zone.still_from_ns = machine.time.now_ns()
    machine.time.sleep(25.0)
    energy = one(meter.stop())
    assert energy.energy_j is None
    assert "stood still" in str(energy.reason)


def test_a_reset_is_not_taken_for_a_wrap(machine: Powercap) -> None:
    zone = machine.add("intel-rapl:0", "package-0", 240.0, start_uj=10_000_000_000)
    meter = opened(machine)
    meter.start()
    machine.time.sleep(25.0)
    zone.reset(machine.time.now_ns())
    machine.time.sleep(25.0)
    energy = one(meter.stop())
    assert energy.energy_j is None
    assert "reset" in str(energy.reason)


def test_a_window_shorter_than_an_update_is_null_and_not_zero(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 240.0)
    meter = opened(machine)
    machine.time.advance_ns(1_000_000 - machine.time.now_ns() % 1_000_000)
    energy = one(window(machine, meter, 0.0004))
    assert energy.energy_j is None
    assert "shorter" in str(energy.reason)


@pytest.mark.parametrize("last_s", [0.0002, 0.0004, 0.0008])
def test_a_last_piece_shorter_than_an_update_does_not_cost_the_total(machine: Powercap, last_s: float) -> None:
    """As when an evaluation that stands apart is the last thing in a training."""
    zone = machine.add("intel-rapl:0", "package-0", 240.0)
    meter = opened(machine)
    first = window(machine, meter, 10.0)
    machine.time.advance_ns(1_000_000 - machine.time.now_ns() % 1_000_000)
    last = window(machine, meter, last_s)
    assert one(last).energy_j is None
    (total,) = refuse_short(sum_pieces([first, last])).energy
    assert total.source == "rapl"
    assert joules(total) == pytest.approx(240.0 * (10.0 + last_s), abs=error(total))
    assert error(total) <= error(one(first)) + zone.tick_ns / 1e9 * 1000  # a kilowatt is the most it may draw
    (alone,) = refuse_short(last).energy
    assert not alone.lost


def test_a_counter_that_does_not_move_for_many_updates_was_lost(machine: Powercap) -> None:
    zone = machine.add("intel-rapl:0", "package-0", 240.0)
    meter = opened(machine)
    first = window(machine, meter, 10.0)
    zone.still_from_ns = machine.time.now_ns()
    last = window(machine, meter, 0.05)
    (total,) = refuse_short(sum_pieces([first, last])).energy
    assert total.lost


def test_a_window_that_was_abandoned_does_not_count_in_the_next(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 240.0)
    meter = opened(machine)
    meter.start()
    machine.time.sleep(50.0)
    reading = window(machine, meter, 10.0)
    assert joules(one(reading)) == pytest.approx(2400.0, rel=1e-3)
    assert reading.sampler is not None
    assert reading.sampler.samples == 2 + 10.0 / meter.period_s  # and at the start and the end: one reader is at work


def test_on_the_real_clock_a_thread_catches_the_wraps() -> None:
    """A counter that moves on by a quarter of its range whenever it is read: no machine is too slow for it."""
    reads, enough = list[int](), threading.Event()

    def count() -> int:
        reads.append(len(reads) * 30_000_000 % 120_000_000)
        if len(reads) == 10:
            enough.set()
        return reads[-1]

    limit = PowerLimit(1.0, "its limit")
    domain = Domain("powercap", "cpu", "package-0", count, 1e-6, REMEDIES, 120_000_000, limit, None, 100.0)
    meter = Rapl([domain], REAL_TIME)
    meter.period_s = 0.005
    meter.start()
    assert enough.wait(600)
    reading = meter.stop()
    assert joules(one(reading)) == pytest.approx(30.0 * (len(reads) - 1))
    assert one(reading).detail["wraps"] == (len(reads) - 1) // 4
    assert reading.sampler is not None
    assert reading.sampler.samples == len(reads)


def test_no_folder_is_absent(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        open_rapl(root=tmp_path / "powercap", system=tmp_path)
    assert caught.value.kind == "absent"
    assert "there is no folder" in caught.value.reason
    assert "offers no power events" in caught.value.reason


def test_a_folder_without_a_package_is_absent(machine: Powercap) -> None:
    assert refusal(machine).kind == "absent"
    machine.add("intel-rapl:1", "psys", 180.0)
    assert refusal(machine).kind == "absent"


def test_links_that_lead_nowhere_are_masked_and_the_mount_is_named(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    machine.mask()
    why = refusal(machine)
    assert why.kind == "masked"
    assert "-v /sys/devices/virtual/powercap:/host/powercap:ro" in why.remedy
    assert "ENERGYBENCH_POWERCAP=/host/powercap" in why.remedy


def test_the_remedy_for_a_mask_works(machine: Powercap, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    machine.add("intel-rapl:0:0", "dram", 10.0)
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(machine.nested))
    meter = open_rapl(machine.time, system=machine.system)
    found = by_device(window(machine, meter, 10.0))
    assert found == pytest.approx({"package-0": 1000, "package-0/dram": 100}, rel=1e-3)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_counter_that_is_roots_alone_is_denied_and_the_remedy_is_chmod(machine: Powercap, number: int) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    machine.errors["intel-rapl:0"] = number
    why = refusal(machine)
    assert why.kind == "denied"
    assert why.remedy.startswith("sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj ")


@pytest.mark.parametrize("number", [errno.ENODATA, errno.EIO, errno.EOPNOTSUPP])
def test_a_counter_that_the_processor_does_not_keep_is_unsupported(machine: Powercap, number: int) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    machine.errors["intel-rapl:0"] = number
    assert refusal(machine).kind == "unsupported"


def test_a_counter_that_stands_still_is_unsupported(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0, still=True)
    why = refusal(machine)
    assert why.kind == "unsupported"
    assert "stood still" in why.reason


def test_one_package_that_cannot_be_read_makes_all_unavailable(machine: Powercap) -> None:
    for i in (0, 1):
        machine.add(f"intel-rapl:{i}", f"package-{i}", 100.0)
    machine.errors["intel-rapl:1"] = errno.EACCES
    assert refusal(machine).kind == "denied"


def test_a_refusal_says_why_of_both_ways(machine: Powercap) -> None:
    why = refusal(machine)
    assert "powercap: " in why.reason
    assert "perf_events: " in why.reason


def test_a_survey_lists_both_ways_with_their_domains_and_remedies(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    machine.add("intel-rapl:0:0", "dram", 10.0, still=True)
    powercap, perf = survey(machine.flat, machine.time, system=machine.system)
    assert powercap["usable"]
    assert powercap["domains"] == ["package-0"]
    assert "stood still" in powercap["left_out"]["package-0/dram"]
    assert powercap["reason"] is powercap["remedy"] is powercap["kind"] is None
    assert (perf["way"], perf["usable"], perf["kind"], perf["domains"]) == ("perf_events", False, "absent", [])
    assert perf["reason"]
    assert perf["remedy"]


# ── a stretch that nobody read it for ─────────────────────────────────────────────────────────────────────────


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0.3, 3.0), st.floats(20.0, 200.0)), min_size=2, max_size=6),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_joules_of_a_stretch_inside_a_window_lie_within_their_error_of_the_truth(
    pieces: list[tuple[float, float]], first: float, last: float
) -> None:
    """A script in any language writes when its training began and ended; the counter was read every quarter second."""
    seconds = sum(length for length, _ in pieces)

    with a_machine() as machine:
        zone = machine.add("intel-rapl:0", "package-0", 50.0, rated_w=400.0)
        meter = opened(machine)
        zone.power = [(machine.time.now_ns() / 1e9, 50.0), *pieces]
        began_ns = machine.time.now_ns()
        whole = window(machine, meter, seconds)
        start_ns, stop_ns = (began_ns + round(seconds * 1e9 * share) for share in sorted((first, last)))
        (energy,) = meter.of_stretch(start_ns, stop_ns)
        assert whole.energy[0].energy_j is not None, whole.energy[0].reason
        assert energy.energy_j is not None
        assert energy.error_j is not None
        assert abs(energy.energy_j - zone.energy_j(start_ns, stop_ns)) <= energy.error_j + 1e-3
        assert energy.error_j <= 200.0 * 2 * (meter.period_s + 0.01) + (whole.energy[0].error_j or 0.0)


def test_a_stretch_of_a_window_without_a_figure_has_none(machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 50.0)
    meter = opened(machine)
    meter.start()
    machine.time.sleep(2.0)
    machine.errors["intel-rapl:0"] = errno.EIO
    machine.time.sleep(2.0)
    whole = meter.stop()
    (energy,) = meter.of_stretch(1_000_000_000, 2_000_000_000)
    assert (whole.energy[0].energy_j, energy.energy_j) == (None, None)
    assert energy.reason == whole.energy[0].reason
