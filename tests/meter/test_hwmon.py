"""hwmon on a machine whose power is known: what it says must be the integral of that power, and of no part twice."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest
from fakes.hwmon import Machine, Part, Power
from hypothesis import given, settings
from hypothesis import strategies as st

from energybench.meter.combine import metered
from energybench.meter.hwmon import PERIOD_S, Hwmon, open_hwmon
from energybench.meter.hwmon_drivers import find
from energybench.meter.integral import KEPT
from energybench.meter.reading import Energy, Reading
from energybench.meter.unavailable import Unavailable
from energybench.meter.window import refuse_short, sum_pieces

CARD, OTHER = "0000:03:00.0", "0000:c3:00.0"
WATTS = st.floats(5.0, 400.0)
PIECES = st.lists(st.tuples(st.floats(0.01, 20.0), WATTS), min_size=1, max_size=8)
counted = itertools.count()
few = settings(max_examples=15)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def opened(machine: Machine, **options: bool) -> Hwmon:
    return open_hwmon(machine.time, machine.root, **options)


def window(machine: Machine, seconds: float, meter: Hwmon | None = None) -> tuple[Reading, int, int]:
    """(what the meter says, when the window began, when it ended)."""
    meter = meter or opened(machine)
    meter.start()
    began_ns = machine.time.now_ns()
    machine.time.sleep(seconds)
    return meter.stop(), began_ns, machine.time.now_ns()


def one(reading: Reading) -> Energy:
    (energy,) = reading.energy
    return energy


def joules(energy: Energy) -> float:
    assert energy.energy_j is not None, energy.reason
    return energy.energy_j


def error(energy: Energy) -> float:
    assert energy.error_j is not None
    return energy.error_j


def holds(energy: Energy, part: Part, began_ns: int, ended_ns: int) -> None:
    """Whether the truth lies within the error."""
    assert abs(joules(energy) - part.energy_j(began_ns, ended_ns)) <= error(energy)


# ── one sensor ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", ["power1_average", "power1_input"])
def test_300_watts_for_10_seconds_are_3000_joules_by_power(machine: Machine, file: str) -> None:
    machine.amdgpu(CARD, 300.0, file=file)
    reading, _, _ = window(machine, 10.0)
    energy = one(reading)
    assert (energy.source, energy.scope, energy.device) == ("hwmon(amdgpu)", "gpu", CARD)
    assert energy.measured
    assert joules(energy) == pytest.approx(3000.0, rel=1e-6)
    assert energy.detail["file"] == file
    assert energy.detail["period_s"] == PERIOD_S
    assert reading.wall_s == pytest.approx(10.0)
    assert reading.sampler is not None
    assert reading.sampler.samples == 52  # at both ends, and five times a second between them
    assert reading.sampler.missed == 0


@pytest.mark.parametrize(
    ("driver", "labels"), [("i915", [""]), ("xe", ["card"]), ("xe", ["card", "pkg"]), ("xe", [""])]
)
def test_300_watts_for_10_seconds_are_3000_joules_by_counter(machine: Machine, driver: str, labels: list[str]) -> None:
    """The package lies inside the card: it is never added."""
    machine.intel(CARD, driver, 300.0, labels=labels)
    energy = one(window(machine, 10.0)[0])
    assert (energy.source, energy.scope, energy.device) == (f"hwmon({driver})", "gpu", CARD)
    assert joules(energy) == pytest.approx(3000.0, abs=error(energy))
    assert error(energy) < 1.0  # a millisecond at either end


def test_of_a_card_that_counts_only_its_package_that_is_said(machine: Machine) -> None:
    part = machine.intel(CARD, "xe", 0.0, labels=[])
    part.power = 100.0
    (part.folder / "energy2_label").write_text("pkg\n")
    machine.shows_energy(part, "energy2_input", 0.9)
    energy = one(window(machine, 10.0)[0])
    assert joules(energy) == pytest.approx(900.0, abs=error(energy))
    assert energy.detail["label"] == "pkg"


def test_a_slice_of_a_card_is_never_read(machine: Machine) -> None:
    part = machine.intel(CARD, "i915", 100.0)
    machine.hwmon("i915_gt0", part.folder.parent.parent, energy1_input="5000000")
    assert len(window(machine, 5.0)[0].energy) == 1


@few
@given(PIECES, st.floats(2.0, 40.0))
def test_whatever_the_power_did_a_counters_energy_is_its_integral(tmp_path: Path, power: Power, seconds: float) -> None:
    machine = Machine(tmp_path / str(next(counted)))
    part = machine.intel(CARD, "xe", power, labels=["card"], cap_w=400.0)
    reading, began_ns, ended_ns = window(machine, seconds)
    assert joules(one(reading)) == pytest.approx(part.energy_j(began_ns, ended_ns), abs=2 * 0.001 * 400.0)


@few
@given(
    st.lists(st.tuples(st.floats(1.0, 20.0), WATTS), min_size=1, max_size=5),
    st.floats(2.0, 40.0),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_truth_lies_within_the_error_of_a_sampled_power(
    tmp_path: Path, power: Power, seconds: float, averaging_s: float
) -> None:
    """Of a power that holds for longer than there is between two samples, averaged by the card or not."""
    machine = Machine(tmp_path / str(next(counted)))
    part = machine.amdgpu(CARD, power, averaging_s=averaging_s)
    machine.time.sleep(3.0)
    reading, began_ns, ended_ns = window(machine, seconds)
    holds(one(reading), part, began_ns, ended_ns)


def test_adjacent_windows_add_up_to_the_whole(machine: Machine) -> None:
    machine.amdgpu(CARD, [(3.0, 100.0), (4.0, 300.0), (9.0, 50.0)])
    machine.intel(OTHER, "xe", [(3.0, 100.0), (4.0, 180.0), (9.0, 50.0)], labels=["card"])
    whole, part = opened(machine), opened(machine)
    whole.start()
    sums: dict[str, float] = {}
    for seconds in (2.0, 3.4, 5.0):
        part.start()
        machine.time.sleep(seconds)
        for energy in part.stop().energy:
            sums[energy.device] = sums.get(energy.device, 0.0) + joules(energy)
    for energy in whole.stop().energy:
        assert sums[energy.device] == pytest.approx(joules(energy), abs=error(energy))


def test_a_stretch_inside_a_window_is_counted_for_itself(machine: Machine) -> None:
    machine.amdgpu(CARD, [(10.0, 100.0), (10.0, 300.0)])
    around = opened(machine)
    around.start()
    machine.time.sleep(12.0)
    inside = around.nested()
    inside.start()
    machine.time.sleep(4.0)
    assert joules(one(inside.stop())) == pytest.approx(1200.0)
    assert joules(one(around.stop())) == pytest.approx(1000.0 + 6 * 300.0, abs=0.2 * 200)


def test_memory_does_not_grow_with_the_window(machine: Machine) -> None:
    part = machine.amdgpu(CARD, [(50.0, 100.0), (50.0, 300.0)] * 5)
    meter = opened(machine)
    meter.start()
    began_ns = machine.time.now_ns()
    kept = 0
    for _ in range(40):
        machine.time.sleep(10.0)
        kept = max(kept, len(meter._counts[0]._stretch._points))  # type: ignore[union-attr]
    energy = one(meter.stop())
    assert kept <= 2 * KEPT < 40 * 10.0 / PERIOD_S
    holds(energy, part, began_ns, machine.time.now_ns())
    assert error(energy) < 0.01 * joules(energy)


def test_pieces_of_a_window_add_up(machine: Machine) -> None:
    machine.amdgpu(CARD, 200.0)
    meter = opened(machine)
    pieces = [window(machine, seconds, meter)[0] for seconds in (3.0, 5.0)]
    assert joules(one(sum_pieces(pieces))) == pytest.approx(1600.0)


@pytest.mark.parametrize("counter", [False, True])
def test_a_window_too_short_for_the_sensor_has_no_figure(machine: Machine, counter: bool) -> None:
    if counter:
        machine.intel(CARD, "xe", 100.0, labels=["card"])
        seconds = 0.005  # ten milliseconds are ten ticks
    else:
        machine.amdgpu(CARD, 100.0)
        seconds = 1.0
    energy = one(refuse_short(window(machine, seconds)[0]))
    assert energy.energy_j is None
    assert energy.source == "unavailable"
    assert energy.reason


def test_a_counter_that_moves_seldom_says_so_in_its_error(machine: Machine) -> None:
    part = machine.intel(CARD, "xe", [(20.0, 50.0), (20.0, 180.0)], labels=["card"])
    part.tick_ns = 50_000_000
    for phase_s in (0.0, 0.013, 0.049):
        machine.time.sleep(phase_s)
        reading, began_ns, ended_ns = window(machine, 8.02)
        energy = one(reading)
        assert energy.detail["tick_s"] == pytest.approx(0.05, abs=0.002)
        holds(energy, part, began_ns, ended_ns)


# ── which sensors ─────────────────────────────────────────────────────────────────────────────────────────────


def test_only_the_cards_that_are_asked_for_are_read(machine: Machine) -> None:
    machine.amdgpu(CARD, 300.0)
    machine.amdgpu(OTHER, 50.0)
    meter = open_hwmon(machine.time, machine.root, cards=[OTHER])
    assert [channel.device for channel in meter.channels] == [OTHER]
    with pytest.raises(Unavailable):
        open_hwmon(machine.time, machine.root, cards=[])


@pytest.mark.parametrize(
    "driver", ["nouveau", "corsairpsu", "nvme", "k10temp", "acpitz", "spd5118", "ina238", "max34440"]
)
def test_what_is_not_on_the_list_is_never_read(machine: Machine, driver: str) -> None:
    texts = {"power1_input": "5000000", "power1_average": "5000000", "energy1_input": "1", "power1_label": "VDD_IN"}
    machine.hwmon(driver, machine.pci(CARD, 0x10DE, 1), **texts)
    with pytest.raises(Unavailable) as caught:
        opened(machine)
    assert caught.value.kind == "absent"


def test_a_processors_own_graphics_are_in_the_processors_energy(machine: Machine) -> None:
    machine.amdgpu("0000:c4:00.0", 25.0, in1_label="vddnb", in1_input="700")
    assert find(machine.root).channels == []


def test_an_mi300a_is_a_module_of_processor_memory_and_gpu(machine: Machine) -> None:
    machine.amdgpu(CARD, 500.0, device=0x74A0, cap_w=550.0)
    assert one(window(machine, 5.0)[0]).scope == "module"


def test_a_rail_that_feeds_the_others_is_the_module_and_its_parts_are_not_read(machine: Machine) -> None:
    """Jetson Orin NX: 15 W come in, of which 11 go to two rails that are measured again."""
    parts = machine.rails(VDD_IN=15.0, VDD_CPU_GPU_CV=8.0, VDD_SOC=3.0)
    reading, began_ns, ended_ns = window(machine, 10.0)
    energy = one(reading)
    assert (energy.source, energy.scope, energy.device) == ("hwmon(ina3221)", "module", "VDD_IN")
    assert joules(energy) == pytest.approx(150.0, rel=0.001)
    holds(energy, parts["VDD_IN"], began_ns, ended_ns)


def test_the_parts_may_lie_on_another_chip(machine: Machine) -> None:
    machine.rails(VDD_SYS_GPU=5.0, VDD_SYS_SOC=2.0)
    machine.rails(VDD_IN=12.0, VDD_SYS_CPU=3.0)
    assert [channel.device for channel in opened(machine).channels] == ["VDD_IN"]


def test_without_such_a_rail_gpu_and_processor_stand_for_themselves(machine: Machine) -> None:
    """Jetson AGX Orin: its 5 V rail feeds memory and sockets, not the other two."""
    machine.rails(VDD_GPU_SOC=20.0, VDD_CPU_CV=6.0, VIN_SYS_5V0=5.0)
    machine.rails(NC=0.0, VDDQ_VDD2_1V8AO=2.0)
    found = {energy.device: (energy.scope, energy.energy_j) for energy in window(machine, 10.0)[0].energy}
    assert set(found) == {"VDD_GPU_SOC", "VDD_CPU_CV"}
    assert found["VDD_GPU_SOC"] == ("gpu", pytest.approx(200.0, rel=0.001))
    assert found["VDD_CPU_CV"] == ("cpu", pytest.approx(60.0, rel=0.001))


def test_a_gpu_rail_that_is_switched_off_drew_nothing(machine: Machine) -> None:
    machine.rails(VDD_GPU_SOC=0.0, VDD_CPU_CV=6.0)
    energies = {energy.device: energy for energy in window(machine, 10.0)[0].energy}
    assert energies["VDD_GPU_SOC"].energy_j == 0.0
    assert error(energies["VDD_GPU_SOC"]) > 0


@pytest.mark.parametrize("chip", ["ina219", "ina226", "ina230", "ina231"])
def test_a_chip_of_a_single_rail_is_known_by_its_label(machine: Machine, chip: str) -> None:
    part = Part(machine.hwmon(chip, machine._platform("1-0040"), label="VDD_IN"), 12.0)
    machine.shows_power(part, "power1_input")
    assert joules(one(window(machine, 10.0)[0])) == pytest.approx(120.0, rel=1e-4)


def test_a_chip_whose_rail_has_no_name_is_not_read(machine: Machine) -> None:
    part = Part(machine.hwmon("ina226", machine._platform("1-0040")), 12.0)
    machine.shows_power(part, "power1_input")
    assert find(machine.root).channels == []


def test_sockets_are_counted_and_their_cores_are_not(machine: Machine) -> None:
    machine.sockets(200.0, 150.0)
    found = {energy.device: joules(energy) for energy in window(machine, 10.0)[0].energy}
    assert found == {"package-0": pytest.approx(2000.0, abs=1), "package-1": pytest.approx(1500.0, abs=1)}


def test_sockets_are_left_to_rapl_where_it_counts_them(machine: Machine) -> None:
    machine.sockets(200.0)
    machine.amdgpu(CARD, 100.0)
    assert [channel.scope for channel in opened(machine, processor=False).channels] == ["gpu"]


def test_and_are_never_added_to_what_rapl_counts(machine: Machine) -> None:
    machine.sockets(200.0)
    theirs = one(window(machine, 10.0)[0])
    ours = Energy(source="rapl", scope="cpu", device="package-0", energy_j=2001.0, error_j=1.0)
    for order in ([theirs, ours], [ours, theirs]):
        assert metered(Reading(wall_s=10.0, energy=order)).joules == 2001.0


def test_a_macs_total_is_the_machine_and_what_comes_in_is_not_added(machine: Machine) -> None:
    machine.mac(40.0)
    energy = one(window(machine, 10.0)[0])
    assert (energy.scope, joules(energy)) == ("machine", pytest.approx(400.0))


def test_graces_module_and_socket_are_told_apart_and_its_parts_are_not_read(machine: Machine) -> None:
    for label, watts in {"Module": 600.0, "Grace": 150.0, "CPU": 100.0, "SysIO": 50.0}.items():
        machine.grace(f"{label} Power Socket 0", watts)
    reading, _, _ = window(machine, 10.0)
    found = {(energy.scope, energy.device): joules(energy) for energy in reading.energy}
    assert found == {
        ("module", "module-0"): pytest.approx(6000.0, rel=1e-3),
        ("cpu", "package-0"): pytest.approx(1500.0, rel=1e-3),
    }
    assert metered(reading).joules == pytest.approx(6000.0, rel=1e-3)  # the socket lies inside the module


def test_a_power_meter_of_any_other_machine_is_not_read(machine: Machine) -> None:
    machine.grace("Intel Node Manager", 500.0)
    assert find(machine.root).channels == []


# ── what cannot be opened ─────────────────────────────────────────────────────────────────────────────────────


def test_a_driver_without_a_power_file_says_so_and_what_would_help(machine: Machine) -> None:
    machine.amdgpu(CARD, 100.0, file="")
    with pytest.raises(Unavailable, match="neither power1_average nor power1_input") as caught:
        opened(machine)
    assert caught.value.kind == "unsupported"
    assert "update the kernel" in caught.value.remedy


def test_two_rails_of_one_name_are_neither_read_nor_added(machine: Machine) -> None:
    machine.rails(VDD_IN=10.0)
    machine.rails(VDD_IN=10.0)
    with pytest.raises(Unavailable, match="two sensors are both called VDD_IN"):
        opened(machine)


def test_the_machine_that_tests_see_has_no_such_sensor() -> None:
    with pytest.raises(Unavailable) as caught:
        open_hwmon()
    assert caught.value.kind == "absent"


def test_a_card_that_sleeps_is_opened_and_measured_once_it_is_awake(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = machine.amdgpu(CARD, 120.0)
    device = part.folder.parent.parent
    (device / "power").mkdir()
    (device / "power/runtime_status").write_text("suspended\n")
    machine.errors[part.folder / "power1_average"] = errno.EPERM
    monkeypatch.setattr("energybench.meter.hwmon_drivers.read_text", machine.read_text)
    meter = opened(machine)
    asleep = one(window(machine, 3.0, meter)[0])
    assert asleep.energy_j is None
    assert "the card sleeps" in (asleep.reason or "")
    machine.errors.clear()
    assert joules(one(window(machine, 3.0, meter)[0])) == pytest.approx(360.0)
