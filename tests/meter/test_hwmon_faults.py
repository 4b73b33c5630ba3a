"""Sensors of hwmon that lie, die or hide, and accelerators that have none: the table, and a test of each row.

Every figure lies within its error of the truth, or is null with a reason that names the fault.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.hwmon import Machine, Part
from sensor_faults import SensorFault

from energybench.meter.combine import metered
from energybench.meter.hwmon import Hwmon, open_hwmon
from energybench.meter.kernel_sensors import look, select
from energybench.meter.plausible import IMPLAUSIBLE
from energybench.meter.reading import Energy, Reading
from energybench.meter.unavailable import Unavailable

FAULTS: list[SensorFault] = [
    SensorFault("counter jump", "i915, xe", "the counter jumps by 40 kJ", "null: more than it can draw"),
    SensorFault("counter reset", "i915, xe", "the counter starts again from 0", "null: the counter went back"),
    SensorFault("counter wrap", "i915, xe", "the counter passes 2³² µJ and goes on from 0", "null: it went back"),
    SensorFault("counter stuck", "i915, xe", "the counter stands still", "null: it stood still for so many seconds"),
    SensorFault("counter negative", "amd_energy", "the counter shows −5 J", "null: no part gives energy back"),
    SensorFault(
        "garbage for a moment", "any", "a read gives text that is no number", "the figure; missed reads counted"
    ),
    SensorFault("garbage for good", "any", "every read gives text that is no number", "null: what the file holds"),
    SensorFault("four gigawatts", "amdgpu", "one sample says 4 GW", "null: more than it can draw"),
    SensorFault("32-bit stub", "amdgpu", "one sample says 0xFFFFFFFF mW", "null: more than it can draw"),
    SensorFault("negative power", "ina3221", "a rail gives power back", "null: no part gives energy back"),
    SensorFault("zero watts", "amdgpu", "a card that trains says 0 W", "null: a power of 0 W"),
    SensorFault("folder vanishes", "any", "the driver is unloaded inside the window", "null: No such file"),
    SensorFault("input/output error", "any", "reads fail with EIO", "null: Input/output error"),
    SensorFault("gone at the end", "i915, xe", "the last read of a counter fails", "null: not read at the end"),
    SensorFault("part-time sensor", "any", "no answer for 3 s inside the window", "null: no power for so many seconds"),
    SensorFault("short gap", "any", "no answer for 0.6 s inside the window", "the figure, and the gap's error in it"),
    SensorFault("suspend", "any", "the machine sleeps inside the window", "null: suspended for so many seconds"),
    SensorFault("denied", "any", "only root may read the file", "not opened: denied, with the remedy"),
    SensorFault("masked", "any", "a container hides what the list leads to", "not opened; cards say that it is hidden"),
    SensorFault("mirrored sockets", "amd_energy", "one counter under two sockets' names", "one figure, not two"),
    SensorFault("rail without a current", "ina3221", "volts without amperes", "not opened: which file is missing"),
    SensorFault("parts beside their sum", "ina3221", "a rail and those that it feeds", "the sum alone"),
    SensorFault("package inside card", "xe", "two counters, one inside the other", "the card's alone"),
    SensorFault("slow mean", "amdgpu", "the power is a mean over a second", "the figure, its lag in the error"),
    SensorFault("gain", "amdgpu", "the sensor says 5 % too much", "not seen in one figure; a ratio is right"),
    SensorFault("nonsense cap", "amdgpu", "power1_cap_max is 0 or 4 GW", "the figure; a bound for any such card"),
    SensorFault("no power file", "amdgpu", "an old driver shows no power", "told as a card that nothing meters"),
    SensorFault("a second driver", "power_meter", "Module and its parts beside each other", "the module alone"),
]
BY_NAME = {fault.name: fault for fault in FAULTS}
CARD, OTHER = "0000:03:00.0", "0000:c3:00.0"
WATTS = 150.0
Outcome = tuple[Energy, Part | None, int, int]  # the figure, what it is of, and when
Injection = Callable[[Machine, pytest.MonkeyPatch], Outcome]
INJECTIONS: dict[str, Injection] = {}


def injects(name: str) -> Callable[[Injection], Injection]:
    assert name in BY_NAME

    def keep(injection: Injection) -> Injection:
        assert name not in INJECTIONS
        INJECTIONS[name] = injection
        return injection

    return keep


def run(machine: Machine, meter: Hwmon, part: Part, then: Callable[[], object], after_s: float = 3.0) -> Outcome:
    """A window of ten seconds in which `then` happens."""
    meter.start()
    began_ns = machine.time.now_ns()
    machine.time.sleep(after_s)
    then()
    machine.time.sleep(10.0 - after_s)
    (energy,) = meter.stop().energy
    return energy, part, began_ns, machine.time.now_ns()


def card(machine: Machine, *, counter: bool) -> tuple[Hwmon, Part, Path]:
    """A card, its meter and the file that is read."""
    if counter:
        part = machine.intel(CARD, "xe", WATTS, labels=["card"])
        file = part.folder / "energy1_input"
    else:
        part = machine.amdgpu(CARD, WATTS)
        file = part.folder / "power1_average"
    return open_hwmon(machine.time, machine.root), part, file


@injects("counter jump")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, _ = card(machine, counter=True)
    return run(machine, meter, part, lambda: setattr(part, "start_j", 40e3))


@injects("counter reset")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, _ = card(machine, counter=True)
    return run(machine, meter, part, lambda: setattr(part, "start_j", -part._drawn_j(machine.time.now_ns())))


@injects("counter wrap")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, file = card(machine, counter=True)
    machine._shows(file, lambda now_ns: f"{int((4000.0 + part.counted_j(now_ns)) * 1e6) % 2**32}")
    return run(machine, meter, part, lambda: None)


@injects("counter stuck")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, file = card(machine, counter=True)
    return run(machine, meter, part, lambda: machine.says.update({file: file.read_text().strip()}))


@injects("counter negative")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    (part,) = machine.sockets(WATTS)
    meter = open_hwmon(machine.time, machine.root)
    return run(machine, meter, part, lambda: machine.says.update({part.folder / "energy10_input": "-5000000"}))


def _for(machine: Machine, file: Path, text: str, seconds: float) -> None:
    machine.says[file] = text
    machine.time.sleep(seconds)
    del machine.says[file]


@injects("garbage for a moment")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, file = card(machine, counter=False)
    return run(machine, meter, part, lambda: _for(machine, file, "1_000", 0.3))


@injects("garbage for good")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, file = card(machine, counter=False)
    return run(machine, meter, part, lambda: machine.says.update({file: "N/A"}))


@injects("four gigawatts")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, file = card(machine, counter=False)
    return run(machine, meter, part, lambda: _for(machine, file, str(4 * 10**15), 0.3))


@injects("32-bit stub")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, file = card(machine, counter=False)
    return run(machine, meter, part, lambda: _for(machine, file, str(0xFFFFFFFF * 1000), 0.3))


@injects("negative power")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    part = machine.rails(VDD_IN=15.0)["VDD_IN"]
    meter = open_hwmon(machine.time, machine.root)
    return run(machine, meter, part, lambda: _for(machine, part.folder / "curr1_input", "-400", 0.3))


@injects("zero watts")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, file = card(machine, counter=False)
    return run(machine, meter, part, lambda: machine.says.update({file: "0"}))


@injects("folder vanishes")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, _ = card(machine, counter=False)
    return run(machine, meter, part, lambda: shutil.rmtree(part.folder))


@injects("input/output error")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, file = card(machine, counter=False)
    patch.setattr("energybench.meter.hwmon_drivers.read_text", machine.read_text)
    return run(machine, meter, part, lambda: machine.errors.update({file: errno.EIO}))


@injects("gone at the end")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, file = card(machine, counter=True)
    patch.setattr("energybench.meter.hwmon_drivers.read_text", machine.read_text)
    return run(machine, meter, part, lambda: machine.errors.update({file: errno.EIO}), after_s=9.9)


def _silent_for(machine: Machine, patch: pytest.MonkeyPatch, seconds: float) -> Outcome:
    meter, part, file = card(machine, counter=False)
    part.power = [(4.0, 100.0), (5.0, 300.0), (60.0, 100.0)]
    return run(machine, meter, part, lambda: _for(machine, file, "busy", seconds))


@injects("part-time sensor")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    return _silent_for(machine, patch, 3.0)


@injects("short gap")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    return _silent_for(machine, patch, 0.6)


@injects("suspend")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    meter, part, _ = card(machine, counter=True)

    def sleep() -> None:
        machine.time.suspend(3600.0)
        part.start_j = -part._drawn_j(machine.time.now_ns())

    return run(machine, meter, part, sleep)


def _refused(machine: Machine) -> Energy:
    """What the machine then says in a reading, as a null figure."""
    with pytest.raises(Unavailable) as caught:
        open_hwmon(machine.time, machine.root)
    silent = select(look(machine.root), None, [], processor=True, time=machine.time).silent
    reason = "; ".join([str(caught.value), *(energy.reason or "" for energy in silent)])
    return Energy(source="unavailable", scope="gpu", reason=reason)


@injects("denied")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    part = machine.amdgpu(CARD, WATTS)
    machine.errors[part.folder / "power1_average"] = errno.EACCES
    patch.setattr("energybench.meter.hwmon_drivers.read_text", machine.read_text)
    return _refused(machine), None, 0, 0


@injects("masked")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    machine.amdgpu(CARD, WATTS)
    machine.mask()
    return _refused(machine), None, 0, 0


@injects("mirrored sockets")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    part, _ = machine.sockets(WATTS, WATTS, mirrored=True)
    return run(machine, open_hwmon(machine.time, machine.root), part, lambda: None)


@injects("rail without a current")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    machine.rails(VDD_IN=None, VDD_SOC=3.0)
    return _refused(machine), None, 0, 0


@injects("parts beside their sum")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    part = machine.rails(VDD_CPU_GPU_CV=8.0, VDD_SOC=3.0, VDD_IN=15.0)["VDD_IN"]
    return run(machine, open_hwmon(machine.time, machine.root), part, lambda: None)


@injects("package inside card")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    part = machine.intel(CARD, "xe", WATTS, labels=["card", "pkg"])
    return run(machine, open_hwmon(machine.time, machine.root), part, lambda: None)


@injects("slow mean")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    part = machine.amdgpu(CARD, [(5.0, 60.0), (10.0, 300.0), (9.0, 60.0)], averaging_s=1.0)
    machine.time.sleep(4.5)
    return run(machine, open_hwmon(machine.time, machine.root), part, lambda: None)


@injects("gain")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    """The ratio of two windows, times the truth of the first, is the truth of the second."""
    meter, part, _ = card(machine, counter=False)
    part.gain, part.power = 1.05, [(10.0, 200.0), (10.0, 120.0), (1.0, 120.0)]
    first, _, began_ns, ended_ns = run(machine, meter, part, lambda: None)
    second, _, *when = run(machine, meter, part, lambda: None)
    assert first.energy_j == pytest.approx(1.05 * part.energy_j(began_ns, ended_ns), rel=0.01)
    assert first.energy_j is not None
    assert second.energy_j is not None
    truth_j = second.energy_j / first.energy_j * part.energy_j(began_ns, ended_ns)
    error_j = (second.error_j or 0.0) + (first.error_j or 0.0)
    return second.model_copy(update={"energy_j": truth_j, "error_j": error_j}), part, when[0], when[1]


@injects("nonsense cap")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    part = machine.amdgpu(CARD, WATTS, cap_w=None, power1_cap_max="0", power1_cap=str(4 * 10**15))
    return run(machine, open_hwmon(machine.time, machine.root), part, lambda: None)


@injects("no power file")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    machine.amdgpu(CARD, WATTS, file="")
    return _refused(machine), None, 0, 0


@injects("a second driver")
def _(machine: Machine, patch: pytest.MonkeyPatch) -> Outcome:
    """Two sensors, one inside the other: of the sum of the reading, as of one figure."""
    part = machine.grace("Module Power Socket 0", 600.0)
    machine.grace("Grace Power Socket 0", 150.0)
    meter = open_hwmon(machine.time, machine.root)
    meter.start()
    began_ns = machine.time.now_ns()
    machine.time.sleep(10.0)
    reading = meter.stop()
    own = Energy(source="gpu_counter", scope="module", device="GPU-1", energy_j=6000.0, error_j=60.0)
    both = metered(Reading(wall_s=10.0, energy=[*reading.energy, own]))  # and NVML counts the same module
    figure = Energy(source="sum", scope="module", energy_j=both.joules, error_j=both.error_j)
    return figure, part, began_ns, machine.time.now_ns()


# What a null figure's reason must name; where there is none, there is a figure, and the truth lies within its error.
REASONS = {
    "counter jump": r"40(\.\d+)? kJ .*more than it can draw.*380 W, twice its power1_rated_max of 190 W",
    "counter reset": r"the counter went back by \d+ J: it was reset",
    "counter wrap": r"the counter went back by",
    "counter stuck": r"the counter stood still for \d",
    "counter negative": r"−?-?5 J, and no part gives energy back|went back",
    "garbage for good": r"no power could be read for 7\.\d s: power1_average holds 'N/A', which is no number",
    "four gigawatts": r"more than it can draw: 800 W, twice its power1_cap_max of 400 W",
    "32-bit stub": r"more than it can draw",
    "negative power": r"it said -2 W, and no part gives energy back",
    "zero watts": r"a power of 0 W, which no part draws while it runs",
    "folder vanishes": r"No such file or directory",
    "input/output error": r"Input/output error",
    "gone at the end": r"it could not be read at the end: Input/output error",
    "part-time sensor": r"no power could be read for 3\.\d s: power1_average holds 'busy'",
    "suspend": r"suspended for 3.6e\+03 s",
    "denied": r"may not be read: Permission denied.*run as root",
    "masked": r"its hwmon folder is hidden, as in a container",
    "rail without a current": r"the rail VDD_IN of ina3221 has no curr1_input, so its power is not known",
    "no power file": r"shows neither power1_average nor power1_input.*update the kernel",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_gives_the_truth_within_its_error_or_its_name(
    fault: SensorFault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path)
    energy, part, began_ns, ended_ns = INJECTIONS[fault.name](machine, monkeypatch)
    expected = REASONS.get(fault.name)
    if expected is None:
        assert energy.energy_j is not None, energy.reason
        assert energy.error_j is not None
        assert part is not None
        assert abs(energy.energy_j - part.energy_j(began_ns, ended_ns)) <= energy.error_j
        return
    assert energy.energy_j is None
    assert energy.error_j is None
    assert re.search(expected, energy.reason or ""), energy.reason


@pytest.mark.parametrize("cap", ["0", "-1", "none", str(4 * 10**15), str(0xFFFFFFFF * 1000)])
def test_a_cap_beyond_reason_is_not_believed(cap: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    part = machine.amdgpu(CARD, WATTS, cap_w=None, power1_cap_max=cap)
    meter, file = open_hwmon(machine.time, machine.root), part.folder / "power1_average"
    energy, *_ = run(machine, meter, part, lambda: _for(machine, file, str(10**11), 0.3))  # 100 kW
    assert energy.energy_j is None
    assert "more than it can draw: 3 kW" in (energy.reason or "").replace("3.00", "3")


@pytest.mark.parametrize(("name", "least_j"), [("counter jump", 40e3), ("four gigawatts", 4e8)])
def test_what_an_implausible_sensor_said_is_kept(
    name: str, least_j: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    energy, *_ = INJECTIONS[name](Machine(tmp_path), monkeypatch)
    assert energy.detail[IMPLAUSIBLE] > least_j


def test_a_socket_that_mirrors_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    energy, *_ = INJECTIONS["mirrored sockets"](Machine(tmp_path), monkeypatch)
    assert (energy.device, energy.detail["mirrors"]) == ("package-0", ["package-1"])


def test_every_fault_is_injected_once_and_every_reason_is_of_one() -> None:
    assert list(BY_NAME) == [fault.name for fault in FAULTS if fault.name in INJECTIONS]
    assert set(REASONS) <= set(BY_NAME)
