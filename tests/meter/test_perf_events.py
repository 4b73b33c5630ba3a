"""RAPL by perf events, on a described `power` device and a clock that the test moves."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.powercap import Powercap
from fakes.replay import VirtualTime

from energybench.meter import perf_events, rapl
from energybench.meter.perf_events import open_event
from energybench.meter.rapl import Rapl, open_rapl, survey
from energybench.meter.unavailable import Unavailable

SCALE = 2.0**-32  # joules per count, as the kernel gives it
WATTS = {0x02: 100.0, 0x03: 10.0}  # energy-pkg, energy-ram
PACKAGES = {0: 0, 1: 0, 16: 1}  # processor → package


class Described:
    """/sys of a machine with power events, and an opener that counts as its packages draw: package 1 twice as much."""

    def __init__(self, folder: Path, cpumask: str = "0,16", events: tuple[str, ...] = ("pkg", "ram", "psys")) -> None:
        self.factors = {0: 1.0, 1: 2.0}  # package → times WATTS
        self.jumps_j: dict[int, float] = {}  # config → what it counts and nobody drew
        self.system, self.time = folder / "sys", VirtualTime()
        self.powercap = folder / "none"
        self.errors: dict[int, int] = {}  # config → errno
        self.opened: list[tuple[int, int, int]] = []
        power = self.system / "bus/event_source/devices/power"
        (power / "events").mkdir(parents=True)
        (power / "type").write_text("12\n")
        (power / "cpumask").write_text(f"{cpumask}\n")
        configs = {"pkg": "0x02", "ram": "0x03", "psys": "0x05"}
        for event in events:
            (power / f"events/energy-{event}").write_text(f"event={configs[event]}\n")
            (power / f"events/energy-{event}.scale").write_text("2.3283064365386962890625e-10\n")
            (power / f"events/energy-{event}.unit").write_text("Joules\n")
        for processor, package in PACKAGES.items():
            topology = self.system / f"devices/system/cpu/cpu{processor}/topology"
            topology.mkdir(parents=True)
            (topology / "physical_package_id").write_text(f"{package}\n")

    def opener(self, kind: int, config: int, processor: int) -> Callable[[], int]:
        if config in self.errors:
            raise OSError(self.errors[config], os.strerror(self.errors[config]))
        self.opened.append((kind, config, processor))
        opened_ns = self.time.now_ns()

        def read() -> int:
            ticks = (self.time.now_ns() - opened_ns) // 1_000_000
            watts = WATTS[config] * self.factors[PACKAGES[processor]]
            return int((watts * ticks / 1e3 + self.jumps_j.get(config, 0.0)) / SCALE)

        return read

    def open(self) -> Rapl:
        return open_rapl(self.time, self.powercap, system=self.system, opener=self.opener)

    def refusal(self) -> Unavailable:
        with pytest.raises(Unavailable) as caught:
            self.open()
        return caught.value


def test_joules_are_counts_times_scale_for_every_package_and_its_memory(tmp_path: Path) -> None:
    machine = Described(tmp_path)
    meter = machine.open()
    meter.start()
    machine.time.sleep(10.0)
    reading = meter.stop()
    found = {energy.device: energy.energy_j for energy in reading.energy}
    expected = {"package-0": 1000, "package-1": 2000, "package-0/dram": 100, "package-1/dram": 200}
    assert found == pytest.approx(expected, rel=1e-3)
    assert {energy.detail["way"] for energy in reading.energy} == {"perf_events"}
    assert all(energy.error_j is not None and energy.error_j < 1.0 for energy in reading.energy)
    assert all(energy.detail["range_j"] is None for energy in reading.energy)


def test_only_package_and_memory_are_opened_on_the_processors_of_the_mask(tmp_path: Path) -> None:
    machine = Described(tmp_path)
    machine.open()
    assert sorted(machine.opened) == [(12, 2, 0), (12, 2, 16), (12, 3, 0), (12, 3, 16)]


def test_a_processor_without_a_counter_of_its_memory_has_its_packages_alone(tmp_path: Path) -> None:
    meter = Described(tmp_path, events=("pkg",)).open()
    assert [domain.device for domain in meter.domains] == ["package-0", "package-1"]
    assert meter.left_out == {}


def test_memory_that_does_not_open_is_left_out_with_the_reason(tmp_path: Path) -> None:
    machine = Described(tmp_path)
    machine.errors[0x03] = errno.EINVAL
    meter = machine.open()
    assert [domain.scope for domain in meter.domains] == ["cpu", "cpu"]
    assert set(meter.left_out) == {"package-0/dram", "package-1/dram"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_an_event_that_may_not_be_opened_names_the_switch(tmp_path: Path, number: int) -> None:
    machine = Described(tmp_path)
    machine.errors[0x02] = number
    why = machine.refusal()
    assert why.kind == "denied"
    assert "kernel.perf_event_paranoid" in why.remedy
    assert "powercap: there is no folder" in why.reason
    assert "perf_events: energy-pkg may not be read" in why.reason


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EINVAL, errno.ENOSYS, errno.ENOENT])
def test_an_event_that_the_kernel_refuses_is_unsupported(tmp_path: Path, number: int) -> None:
    machine = Described(tmp_path)
    machine.errors[0x02] = number
    assert machine.refusal().kind == "unsupported"


def test_two_processors_on_one_package_are_refused_because_mirrors_cannot_be_told(tmp_path: Path) -> None:
    assert Described(tmp_path, cpumask="0-1").refusal().kind == "unsupported"


@pytest.mark.parametrize("mask", ["", "x"])
def test_a_mask_without_a_processor_is_refused(tmp_path: Path, mask: str) -> None:
    assert Described(tmp_path, cpumask=mask).refusal().kind == "unsupported"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("energy-pkg.unit", "Calories"),
        ("energy-pkg.scale", "nan"),
        ("energy-pkg.scale", "0"),
        ("energy-pkg", "umask=1"),
    ],
)
def test_a_description_that_is_not_understood_is_refused(tmp_path: Path, file: str, text: str) -> None:
    machine = Described(tmp_path)
    (machine.system / "bus/event_source/devices/power/events" / file).write_text(f"{text}\n")
    assert machine.refusal().kind == "unsupported"


def test_a_count_that_goes_back_is_a_reset_and_not_a_wrap(tmp_path: Path) -> None:
    machine = Described(tmp_path)
    meter = machine.open()
    meter.start()
    machine.time._now_ns -= 20_000_000
    energy = meter.stop().energy[0]
    assert energy.energy_j is None
    assert "reset" in str(energy.reason)


def test_an_event_that_jumps_has_no_figure_and_the_others_have_theirs(tmp_path: Path) -> None:
    machine = Described(tmp_path)
    meter = machine.open()
    meter.start()
    machine.time.sleep(5.0)
    machine.jumps_j[0x03] = 65_700.0  # the hardware's counter was reset, and the kernel took it for a wrap
    machine.time.sleep(5.0)
    found = {energy.device: energy for energy in meter.stop().energy}
    assert found["package-1"].energy_j == pytest.approx(2000.0, rel=1e-3)
    for device in ("package-0/dram", "package-1/dram"):
        assert found[device].energy_j is None
        assert "more than it can draw: 300 W" in str(found[device].reason)


def test_an_event_is_bound_by_the_limit_of_its_powercap_zone_which_anybody_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the counter beside it is root's alone."""
    tree, machine = Powercap(tmp_path / "tree"), Described(tmp_path / "described")
    monkeypatch.setattr(rapl, "read_text", tree.read_text)
    for package in (0, 1):
        limits_w = {"long_term": 150.0, "short_term": 240.0}
        tree.add(f"intel-rapl:{package}", f"package-{package}", 100.0, limits_w=limits_w)
        tree.errors[f"intel-rapl:{package}"] = errno.EACCES
    machine.powercap = tree.flat
    meter = machine.open()
    meter.start()
    machine.time.sleep(5.0)
    machine.jumps_j[0x02] = 200.0
    machine.time.sleep(5.0)
    found = {energy.device: energy for energy in meter.stop().energy}
    for device in ("package-0", "package-1"):
        assert found[device].energy_j is None
        assert "more than it can draw: 300 W, 1.25 times its short-term limit of 240 W" in str(found[device].reason)
    assert found["package-0/dram"].energy_j == pytest.approx(100.0, rel=1e-3)


def test_two_packages_whose_events_count_the_same_to_the_last_digit_are_one(tmp_path: Path) -> None:
    machine = Described(tmp_path)
    machine.factors[1] = 1.0
    assert {domain.device: domain.mirrors for domain in machine.open().domains} == {
        "package-0": ("package-1",),
        "package-0/dram": ("package-1/dram",),
    }
    machine.factors[1] = 1.0 + 1e-6
    assert len(machine.open().domains) == 4


def test_a_survey_names_what_is_usable(tmp_path: Path) -> None:
    machine = Described(tmp_path, cpumask="0")
    powercap, perf = survey(machine.powercap, machine.time, system=machine.system, opener=machine.opener)
    assert (powercap["usable"], powercap["kind"]) == (False, "absent")
    assert perf["usable"]
    assert perf["domains"] == ["package-0", "package-0/dram"]


def test_the_system_call_opens_a_counter_that_grows() -> None:
    """The clock of a processor, an event that every machine has."""
    try:
        read = open_event(1, 0, min(os.sched_getaffinity(0)))
    except OSError as error:
        pytest.skip(f"perf events are closed here: {error}")
    before = read()
    time.sleep(0.01)
    assert read() > before


def test_a_refused_system_call_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match=r".") as caught:
        open_event(0x7FFFFFF0, 0, 0)  # no such kind of event
    assert caught.value.errno


def test_a_processor_of_another_kind_has_no_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf_events.platform, "machine", lambda: "s390x")
    with pytest.raises(OSError, match="s390x") as caught:
        open_event(1, 0, 0)
    assert caught.value.errno == errno.ENOSYS


def test_a_refusal_crosses_a_process_border_whole() -> None:
    why = pickle.loads(pickle.dumps(Unavailable("the counter is root's", "denied", "sudo chmod")))
    assert (str(why), why.kind) == ("the counter is root's: sudo chmod", "denied")
