"""Every fault of RAPL that is known, on a machine whose power is known: a right figure or none, and the fault by name.

`FAULTS` are the rows of the docs' table of sensor faults. A machine has two sockets of 60 W and 50 W, which may draw
128 W for a while, with memory of 5 W and 4 W; its window lasts 20 s, and what goes wrong does so in the first gap
between two readings, in the middle or in the last gap.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakes.powercap import CLIENT_UJ, SERVER_UJ, Powercap, Zone
from hypothesis import given
from hypothesis import strategies as st
from sensor_faults import SensorFault
from test_rapl import a_machine

from energybench.meter import rapl
from energybench.meter.combine import metered_by_scope
from energybench.meter.domains import Domain
from energybench.meter.plausible import IMPLAUSIBLE, PowerLimit
from energybench.meter.rapl import REMEDIES, Rapl, open_rapl
from energybench.meter.reading import Energy, Reading
from energybench.meter.unavailable import Unavailable

WINDOW_S = 20.0
LIMITS_W = {"long_term": 65.0, "short_term": 128.0}  # so the bound is 160 W
BOUND_J = 1.25 * 128.0 * (rapl.LONGEST_PERIOD_S + 2 * 0.001)  # what no reading of a package exceeds
SOCKETS_W = {"package-0": 60.0, "package-1": 50.0, "package-0/dram": 5.0, "package-1/dram": 4.0}
ZONES = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1"}
ANYWHEN = (0.004, 0.5, 0.99)  # shares of the window: in the first gap, in the middle, in the last gap


@dataclass(frozen=True)
class Case:
    """One fault: how it comes about and what a reading must say.

    before: does it to a machine whose sensors are not open yet, in place of `sockets`
    inside: does it to one whose window begins now: (machine, its zones by device, when it goes wrong in seconds)
    reasons: device → pattern of why it has no figure; what is not named is right
    refused: pattern of why the sensors cannot be opened at all
    """

    fault: SensorFault
    before: Callable[[Powercap], dict[str, Zone]] = field(default_factory=lambda: sockets)
    inside: Callable[[Powercap, Mapping[str, Zone], float], None] = lambda machine, zones, at_s: None
    reasons: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    when: tuple[float, ...] = (0.5,)


def sockets(machine: Powercap, **more: object) -> dict[str, Zone]:
    found: dict[str, Zone] = {}
    for number, (zone, package) in enumerate(ZONES.items()):
        options = {"range_uj": SERVER_UJ, "limits_w": LIMITS_W, "start_uj": (number + 50) * 10**9, **more}
        found[package] = machine.add(zone, package, SOCKETS_W[package], **options)  # type: ignore[arg-type]
        memory = f"{package}/dram"
        options |= {"limits_w": None, "rated_w": 20.0}
        found[memory] = machine.add(f"{zone}:0", "dram", SOCKETS_W[memory], **options)  # type: ignore[arg-type]
    return found


def jump(joules: float, device: str = "package-0", again_s: tuple[float, ...] = (0.0,)) -> Callable[..., None]:
    def inside(machine: Powercap, zones: Mapping[str, Zone], at_s: float) -> None:
        zones[device].jumps += [(at_s + later_s, joules) for later_s in again_s]

    return inside


def reset(device: str = "package-0") -> Callable[..., None]:
    return lambda machine, zones, at_s: zones[device].resets_s.append(at_s)


def still(device: str) -> Callable[..., None]:
    def inside(machine: Powercap, zones: Mapping[str, Zone], at_s: float) -> None:
        zones[device].still_from_ns = round(at_s * 1e9)

    return inside


def garbage(text: str, lasting_s: float = 1e9) -> Callable[..., None]:
    return lambda machine, zones, at_s: zones["package-0"].garbage.append((at_s, at_s + lasting_s, text))


def at(machine: Powercap, at_s: float, call: Callable[[], object]) -> None:
    """Once, when the clock of the machine shows that."""

    def once() -> None:
        stop()
        call()

    stop = machine.time.every(max(1e-9, at_s - machine.time.now_ns() / 1e9), once)


def nap(seconds: float, *, resets: bool) -> Callable[..., None]:
    def inside(machine: Powercap, zones: Mapping[str, Zone], at_s: float) -> None:
        at(machine, at_s, lambda: machine.suspend(seconds) if resets else machine.time.suspend(seconds))

    return inside


def one_memory_still(machine: Powercap) -> dict[str, Zone]:
    found = sockets(machine)
    found["package-1/dram"].still_from_ns = 0
    return found


def one_package_still(machine: Powercap) -> dict[str, Zone]:
    found = sockets(machine)
    found["package-1"].still_from_ns = 0
    return found


def one_memory_missing(machine: Powercap) -> dict[str, Zone]:
    found = sockets(machine)
    del machine.zones["intel-rapl:1:0"]
    shutil.rmtree(found["package-1/dram"].folder)
    (machine.flat / "intel-rapl:1:0").unlink()
    return found


def mirrored(machine: Powercap) -> dict[str, Zone]:
    found = sockets(machine)
    found["package-1"].mirror_of, found["package-1/dram"].mirror_of = found["package-0"], found["package-0/dram"]
    return {device: found[device] for device in ("package-0", "package-0/dram")}


def mirrored_dies(machine: Powercap) -> dict[str, Zone]:
    found = {}
    for die in (0, 1):
        device = f"package-0-die-{die}"
        found[device] = machine.add(f"intel-rapl:{die}", device, 60.0, mirror_of=found.get("package-0-die-0"))
    return {"package-0-die-0": found["package-0-die-0"]}


def memory_that_is_its_package(machine: Powercap) -> dict[str, Zone]:
    found = {"package-0": machine.add("intel-rapl:0", "package-0", 60.0)}
    found["package-0/dram"] = machine.add("intel-rapl:0:0", "dram", 5.0, mirror_of=found["package-0"])
    return found


def unlimited(machine: Powercap) -> dict[str, Zone]:
    return sockets(machine, limits_w={"long_term": 4095.0, "short_term": 65535.0}, rated_w=65.0)


def limits_of_nothing(machine: Powercap) -> dict[str, Zone]:
    return sockets(machine, limits_w={"long_term": 0.0, "short_term": 0.0})


def wrong_range(machine: Powercap) -> dict[str, Zone]:
    found = sockets(machine, start_uj=SERVER_UJ - 500_000_000)
    (found["package-0"].folder / "max_energy_range_uj").write_text(f"{CLIENT_UJ}\n")
    return found


def with_a_wide_range(machine: Powercap) -> dict[str, Zone]:
    return sockets(machine, range_uj=CLIENT_UJ)


def near_the_top(machine: Powercap) -> dict[str, Zone]:
    return sockets(machine, start_uj=SERVER_UJ - 1_500_000_000)


def about_to_wrap(machine: Powercap) -> dict[str, Zone]:
    return sockets(machine, start_uj=SERVER_UJ - 30_000_000)


def unreadable(number: int) -> Callable[..., None]:
    def inside(machine: Powercap, zones: Mapping[str, Zone], at_s: float) -> None:
        at(machine, at_s, lambda: machine.errors.update({"intel-rapl:0": number}))

    return inside


def gone(machine: Powercap, zones: Mapping[str, Zone], at_s: float) -> None:
    at(machine, at_s, machine.mask)


def denied(machine: Powercap) -> dict[str, Zone]:
    found = sockets(machine)
    machine.errors["intel-rapl:1"] = errno.EACCES
    return found


def masked(machine: Powercap) -> dict[str, Zone]:
    found = sockets(machine)
    machine.mask()
    return found


def fault(name: str, happens: str, seen: str) -> SensorFault:
    return SensorFault(name, "RAPL", happens, seen)


NULL = "no figure: "
CASES = [
    Case(
        fault("jump", "the counter jumps forward by 51.8 kJ", NULL + "more than it can draw, with the limit"),
        before=with_a_wide_range,
        inside=jump(51_800.0),
        reasons={
            "package-0": r"^51\.8 kJ in 0\.25 s is more than it can draw: 160 W, 1\.25 times its short-term limit"
        },
        when=ANYWHEN,
    ),
    Case(
        fault(
            "small jump",
            "the counter jumps by 41 J, what a limit of 128 W allows in a quarter of a second",
            NULL + "more than it can draw",
        ),
        inside=jump(BOUND_J),
        reasons={"package-0": "is more than it can draw: 160 W"},
        when=ANYWHEN,
    ),
    Case(
        fault("several jumps", "the counter jumps again and again", NULL + "more than it can draw"),
        inside=jump(1000.0, again_s=(0.0, 0.05, 0.1)),
        reasons={"package-0": "is more than it can draw: 160 W"},
        when=(0.004, 0.5, 0.98),
    ),
    Case(
        fault("jump over a wrap", "the counter jumps over its largest value", NULL + "the counter went back"),
        before=near_the_top,
        inside=jump(5000.0),
        reasons={"package-0": "^the counter went back by 6.* kJ; as a wrap, .* is more than it can draw"},
        when=ANYWHEN,
    ),
    Case(
        fault("jump of memory", "a memory's counter jumps forward", NULL + "more than it can draw; no sum of memory"),
        inside=jump(400.0, "package-1/dram"),
        reasons={"package-1/dram": "is more than it can draw: 80 W, 4 times its rating of 20 W"},
        when=ANYWHEN,
    ),
    Case(
        fault(
            "jump without a limit",
            "a BIOS states 4095 W, and the counter jumps",
            NULL + "more than it can draw, 4 times its rating",
        ),
        before=unlimited,
        inside=jump(400.0),
        reasons={"package-0": "is more than it can draw: 260 W, 4 times its rating of 65 W"},
        when=ANYWHEN,
    ),
    Case(
        fault("jump, nothing stated", "no limit is stated, and the counter jumps", NULL + "more than a kilowatt"),
        before=limits_of_nothing,
        inside=jump(400.0),
        reasons={"package-0": "is more than it can draw: 1 kW, the most that a package is taken to draw"},
        when=ANYWHEN,
    ),
    Case(
        fault("spike", "the counter is far ahead for a second, then right again", NULL + "more than it can draw"),
        inside=lambda machine, zones, at_s: zones["package-0"].jumps.extend([(at_s, 900.0), (at_s + 1.0, -900.0)]),
        reasons={"package-0": "is more than it can draw"},
    ),
    Case(
        fault("reset", "the counter starts again from 0", NULL + "the counter was reset"),
        inside=reset(),
        reasons={
            "package-0": r"^the counter was reset; as a wrap, 1[45]\.. kJ in 0.25 s is more than it can draw: 160 W"
        },
        when=ANYWHEN,
    ),
    Case(
        fault("suspend", "the machine sleeps and its counters start again from 0", NULL + "the machine was suspended"),
        inside=nap(3600.0, resets=True),
        reasons=dict.fromkeys(SOCKETS_W, r"^the machine was suspended for 3\.6e\+03 s in the window"),
        when=ANYWHEN,
    ),
    Case(
        fault("nap", "the machine sleeps, and its counters do not", NULL + "the machine was suspended"),
        inside=nap(0.5, resets=False),
        reasons=dict.fromkeys(SOCKETS_W, r"^the machine was suspended for 0\.5 s in the window"),
        when=ANYWHEN,
    ),
    Case(
        fault("small step back", "the counter is read a little lower than before", NULL + "the counter went back"),
        inside=jump(-60.0 * rapl.LONGEST_PERIOD_S - 0.02),  # what is drawn between two readings, and a little
        reasons={
            "package-0": r"^the counter went back by 0\.0. J; as a wrap, 65.7 kJ in 0.25 s is more than it can draw"
        },
    ),
    Case(
        fault("step back", "the counter goes back by 500 J", NULL + "the counter went back"),
        inside=jump(-500.0),
        reasons={"package-0": "^the counter went back by 4.. J; as a wrap, .* is more than it can draw"},
        when=ANYWHEN,
    ),
    Case(
        fault("stop", "a package's counter stops", NULL + "it stood still; no sum of packages"),
        inside=still("package-1"),
        reasons={"package-1": "the counter stood still"},
        when=ANYWHEN,
    ),
    Case(
        fault("stop of memory", "the memory counter of one socket stops", NULL + "it stood still; no sum of memory"),
        inside=still("package-0/dram"),
        reasons={"package-0/dram": "the counter stood still"},
        when=ANYWHEN,
    ),
    Case(
        fault("dead memory", "the memory of one socket is listed and never counts", "not seen, in every reading"),
        before=one_memory_still,
        reasons={"package-1/dram": "is listed, but its counter stood still for 100 ms"},
    ),
    Case(
        fault("missing memory", "one socket lists its memory and another does not", "not seen, in every reading"),
        before=one_memory_missing,
        reasons={"package-1/dram": "package-1 lists no counter of its memory, and another package does"},
    ),
    Case(
        fault("dead package", "a package is listed and never counts", "RAPL is unsupported: it stood still"),
        before=one_package_still,
        refused="package-1 is listed, but its counter stood still",
    ),
    Case(fault("mirrored sockets", "two sockets show one counter", "billed once, the other name beside it"), mirrored),
    Case(fault("mirrored dies", "two dies of a package show one counter", "billed once"), mirrored_dies),
    Case(
        fault("mirrored memory", "a memory shows its package's counter", "not seen, in every reading"),
        before=memory_that_is_its_package,
        reasons={"package-0/dram": "is listed, but its counter is that of package-0"},
    ),
    Case(
        fault("garbage", "the counter's file holds no number", NULL + "it could not be read at the end, with the text"),
        inside=garbage("a\x01b_c"),
        reasons={"package-0": r"^it could not be read at the end: energy_uj says 'a\\x01b_c', no number$"},
        when=ANYWHEN,
    ),
    Case(
        fault("no plain number", "the counter's file holds 1_000", NULL + "it could not be read at the end"),
        inside=garbage("1_000\n"),
        reasons={"package-0": "it could not be read at the end: energy_uj says '1_000', no number"},
    ),
    Case(
        fault("negative", "the counter is negative", NULL + "it could not be read at the end"),
        inside=garbage("-5\n"),
        reasons={"package-0": "it could not be read at the end: energy_uj says '-5', no number"},
    ),
    Case(
        fault("beyond its range", "the counter is larger than its largest value", NULL + "it is outside its range"),
        inside=garbage(f"{SERVER_UJ + 1}\n"),
        reasons={"package-0": f"it could not be read at the end: {SERVER_UJ + 1} µJ, outside 0 … {SERVER_UJ}"},
    ),
    Case(
        fault("wrong range", "the kernel states another range than the counter has", NULL + "the counter was reset"),
        before=wrong_range,
        reasons={"package-0": "^the counter was reset; as a wrap, 196 kJ in 0.25 s is more than it can draw"},
    ),
    Case(
        fault("garbage for a moment", "the counter cannot be read for a second", "the right figure"),
        inside=garbage("", 1.0),
    ),
    Case(fault("wrap", "the counter wraps", "the right figure"), before=about_to_wrap),
    Case(
        fault("withdrawn", "the right to read the counter is withdrawn", NULL + "it could not be read at the end"),
        inside=unreadable(errno.EACCES),
        reasons={"package-0": "it could not be read at the end: Permission denied"},
        when=ANYWHEN,
    ),
    Case(
        fault("module unloaded", "the counters vanish", NULL + "it could not be read at the end"),
        inside=gone,
        reasons=dict.fromkeys(SOCKETS_W, "it could not be read at the end: No such file or directory"),
        when=ANYWHEN,
    ),
    Case(
        fault("root's alone", "only root may read a counter", "RAPL is denied: chmod"),
        denied,
        refused="may not be read",
    ),
    Case(
        fault("hidden", "a container lists the counters and hides them", "RAPL is masked: the mount"),
        before=masked,
        refused="is listed but hidden, as in a container",
    ),
]
FAULTS = [case.fault for case in CASES]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Powercap:
    made = Powercap(tmp_path)
    monkeypatch.setattr(rapl, "read_text", made.read_text)
    return made


def opened(machine: Powercap) -> Rapl:
    return open_rapl(machine.time, machine.flat, system=machine.system)


def assert_right(energy: Energy, zone: Zone, began_ns: int, ended_ns: int) -> None:
    assert energy.energy_j is not None, energy.reason
    assert energy.error_j is not None
    assert abs(energy.energy_j - zone.energy_j(began_ns, ended_ns)) <= energy.error_j < 1.0
    assert energy.reason is None


@pytest.mark.parametrize(
    ("case", "share"),
    [pytest.param(case, share, id=f"{case.fault.name}-{share:g}") for case in CASES for share in case.when],
)
def test_a_fault_gives_the_right_figure_or_none_and_is_named(machine: Powercap, case: Case, share: float) -> None:
    zones = case.before(machine)
    if case.refused:
        with pytest.raises(Unavailable, match=case.refused):
            opened(machine)
        return
    meter = opened(machine)
    meter.start()
    began_ns = machine.time.now_ns()
    case.inside(machine, zones, began_ns / 1e9 + share * WINDOW_S)
    machine.time.sleep(WINDOW_S)
    ended_ns = machine.time.now_ns()
    reading = meter.stop()
    assert {energy.device for energy in reading.energy} == set(zones)
    for energy in reading.energy:
        if energy.device not in case.reasons:
            assert_right(energy, zones[energy.device], began_ns, ended_ns)
            continue
        assert (energy.energy_j, energy.error_j) == (None, None)
        assert re.search(case.reasons[energy.device], energy.reason or ""), energy.reason
    blind = {energy.scope for energy in reading.energy if energy.energy_j is None}
    assert set(metered_by_scope(reading)) == {energy.scope for energy in reading.energy} - blind


def test_each_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 16


# ── jumps and resets of any size, at any time ──────────────────────────────────────────────────────────────────


def faulty_window(
    machine: Powercap, zone: Zone, seconds: float, inside: Callable[[float], None]
) -> tuple[Energy, float]:
    """(the figure, the truth). inside: gets the second in which the window begins."""
    meter = opened(machine)
    meter.start()
    began_ns = machine.time.now_ns()
    inside(began_ns / 1e9)
    machine.time.sleep(seconds)
    ended_ns = machine.time.now_ns()
    (energy,) = meter.stop().energy
    return energy, zone.energy_j(began_ns, ended_ns)


def one_package(machine: Powercap, **options: object) -> Zone:
    return machine.add("intel-rapl:0", "package-0", 60.0, **{"limits_w": LIMITS_W, **options})  # type: ignore[arg-type]


@given(
    st.floats(0.002, 60.0),
    st.lists(st.tuples(st.floats(0.0, 0.999), st.floats(BOUND_J, 60_000.0)), max_size=3),
    st.integers(0, CLIENT_UJ),
)
def test_jumps_of_any_size_at_any_time_are_seen(
    seconds: float, jumps: list[tuple[float, float]], start_uj: int
) -> None:
    """A jump larger than what may be drawn between two readings; none is taken for energy, before or after a wrap."""
    with a_machine() as machine:
        zone = one_package(machine, start_uj=start_uj)
        energy, true_j = faulty_window(
            machine,
            zone,
            seconds,
            lambda began_s: zone.jumps.extend((began_s + share * seconds, joules) for share, joules in jumps),
        )
        if energy.energy_j is None:
            assert jumps or seconds < 0.003
            assert any(words in str(energy.reason) for words in ("can draw", "reset", "went back", "did not move"))
        else:
            assert not jumps
            assert energy.error_j is not None
            assert abs(energy.energy_j - true_j) <= energy.error_j


@given(st.floats(0.02, 30.0), st.floats(0.0, 0.999), st.floats(100.0, 250_000.0))
def test_a_reset_at_any_count_and_time_is_never_a_wrap(seconds: float, share: float, count_j: float) -> None:
    with a_machine() as machine:
        zone = one_package(machine, start_uj=round(count_j * 1e6))
        energy, _ = faulty_window(
            machine, zone, seconds, lambda began_s: zone.resets_s.append(began_s + share * seconds)
        )
        assert energy.energy_j is None
        assert "the counter was reset" in str(energy.reason)


@given(st.floats(0.02, 30.0), st.floats(0.0, 1.0), st.integers(100, 10**7), st.booleans())
def test_no_window_in_which_the_machine_slept_has_a_figure(
    seconds: float, share: float, milliseconds: int, resets: bool
) -> None:
    with a_machine() as machine:
        zone = one_package(machine)

        def inside(began_s: float) -> None:
            nap(milliseconds / 1e3, resets=resets)(machine, {}, began_s + max(1e-6, 0.999 * share * seconds))

        energy, _ = faulty_window(machine, zone, seconds, inside)
        assert energy.energy_j is None
        assert "the machine was suspended for" in str(energy.reason)


@given(st.floats(0.6, 20.0), st.floats(0.0, 1.0))
def test_a_counter_that_stops_at_any_time_has_no_figure(seconds: float, share: float) -> None:
    with a_machine() as machine:
        zone = one_package(machine)
        stopped_s = share * (seconds - 4 * 0.001)  # in its last updates it is within the error, or nearly
        energy, _ = faulty_window(
            machine, zone, seconds, lambda began_s: setattr(zone, "still_from_ns", round((began_s + stopped_s) * 1e9))
        )
        assert energy.energy_j is None
        assert "the counter stood still" in str(energy.reason)


@given(st.floats(0.002, 0.9), st.floats(0.001, 0.05))
def test_a_step_back_by_less_than_an_update_is_within_the_error_or_seen(seconds: float, back_j: float) -> None:
    """Just before the end; where nothing was drawn since the last reading it is never a wrap of 262 kJ."""
    with a_machine() as machine:
        zone = one_package(machine)
        energy, true_j = faulty_window(
            machine, zone, seconds, lambda began_s: zone.jumps.append((began_s + seconds - 1e-9, -back_j))
        )
        if energy.energy_j is None:
            assert re.search("went back by 0|did not move", str(energy.reason))
        else:
            assert energy.error_j is not None
            assert abs(energy.energy_j - true_j) <= energy.error_j < 1.0


def test_a_step_back_just_after_a_reading_is_seen_as_what_it_is(machine: Powercap) -> None:
    zone = one_package(machine)
    energy, _ = faulty_window(
        machine, zone, 2 * rapl.LONGEST_PERIOD_S, lambda began_s: zone.jumps.append((began_s + 0.5 - 1e-9, -15.03))
    )
    assert energy.energy_j is None
    assert str(energy.reason).startswith("the counter went back by 0.0")


def test_what_was_said_stands_beside_the_reason(machine: Powercap) -> None:
    zone = machine.add("intel-rapl:0", "package-0", 25.0, rated_w=65.0)
    energy, true_j = faulty_window(machine, zone, 10.0, lambda began_s: zone.jumps.append((began_s + 5.0, 51_800.0)))
    assert true_j == pytest.approx(250.0)
    assert energy.energy_j is None
    assert energy.detail[IMPLAUSIBLE] == pytest.approx(52_050.0, abs=1.0)
    assert "is more than it can draw: 260 W, 4 times its rating of 65 W" in str(energy.reason)


def test_a_jump_that_the_limit_allows_cannot_be_seen_and_is_small(machine: Powercap) -> None:
    """What is not claimed: below the bound a jump is a load."""
    zone = one_package(machine)
    energy, true_j = faulty_window(machine, zone, 10.0, lambda began_s: zone.jumps.append((began_s + 5.1, 24.0)))
    assert energy.energy_j == pytest.approx(true_j + 24.0, abs=1.0)
    assert BOUND_J < 41.0


# ── what is healthy passes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "watts"),
    [
        ({"rated_w": 65.0, "limits_w": {"long_term": 65.0, "short_term": 128.0}}, 128.0),
        ({"rated_w": 65.0, "limits_w": {"long_term": 65.0, "short_term": 128.0}}, 128.0 * 1.05),  # a control overshoots
        ({"rated_w": 65.0, "limits_w": {"long_term": 65.0, "short_term": 100.0, "peak_power": 150.0}}, 150.0),
        ({"rated_w": 65.0}, 2.2 * 65.0),
        ({"rated_w": 15.0}, 57.0),
        ({"rated_w": 65.0, "limits_w": {"long_term": 4095.0, "short_term": 4095.0}}, 219.0),
        ({"rated_w": 0.0, "limits_w": {"long_term": 0.0}}, 400.0),
        ({}, 700.0),
    ],
)
def test_a_turbo_burst_is_no_fault(machine: Powercap, options: dict[str, object], watts: float) -> None:
    zone = machine.add("intel-rapl:0", "package-0", [(3.0, 20.0), (28.0, watts), (1.0, 40.0)], **options)  # type: ignore[arg-type]
    energy, true_j = faulty_window(machine, zone, 40.0, lambda _: None)
    assert energy.energy_j is not None, energy.reason
    assert energy.error_j is not None
    assert abs(energy.energy_j - true_j) <= energy.error_j


@given(
    st.lists(st.tuples(st.floats(0.001, 3.0), st.floats(1.0, 160.0)), min_size=1, max_size=8),
    st.floats(0.0, 0.003),
    st.sampled_from([250_000, 1_000_000, 2_500_000]),
    st.floats(0.003, 10.0),
)
def test_no_load_within_the_limit_is_ever_refused(
    power: list[tuple[float, float]], phase_s: float, tick_ns: int, seconds: float
) -> None:
    with a_machine() as machine:
        zone = machine.add("intel-rapl:0", "package-0", power, limits_w=LIMITS_W, tick_ns=tick_ns)
        machine.time.sleep(phase_s)
        energy, _ = faulty_window(machine, zone, seconds, lambda _: None)
        assert energy.energy_j is not None, energy.reason


def test_a_limit_that_is_raised_in_the_window_is_asked_for_again(machine: Powercap) -> None:
    zone = one_package(machine, limits_w={"long_term": 30.0, "short_term": 40.0})

    def raised(_: float) -> None:
        (zone.folder / "constraint_1_power_limit_uw").write_text("80000000\n")

    energy, true_j = faulty_window(machine, zone, 10.0, raised)
    assert energy.energy_j == pytest.approx(true_j, abs=0.2)


@pytest.mark.parametrize("late_s", [0.01, 0.2, 3.0])
def test_a_machine_too_busy_to_look_at_the_clock_in_time_loses_nothing(machine: Powercap, late_s: float) -> None:
    """A thread that waits for a core between the count and the clock: all of its wait lies between two readings."""
    reads = list[int]()

    def read() -> int:
        count = zone.count(machine.time.now_ns())
        reads.append(count)
        if len(reads) % 3 == 1:
            machine.time._now_ns += round(late_s * 1e9)
        return count

    zone = one_package(machine)
    domain = Domain("powercap", "cpu", "package-0", read, 1e-6, REMEDIES, CLIENT_UJ, PowerLimit(62.0, ""), None, 0.001)
    meter = Rapl([domain], machine.time)
    meter.start()
    machine.time.sleep(5.0)
    (energy,) = meter.stop().energy
    assert energy.energy_j == pytest.approx((reads[-1] - reads[0]) / 1e6), energy.reason


def test_a_left_out_memory_leaves_the_sum_of_the_packages(machine: Powercap) -> None:
    one_memory_still(machine)
    meter = opened(machine)
    meter.start()
    machine.time.sleep(10.0)
    reading: Reading = meter.stop()
    assert metered_by_scope(reading) == {"cpu": pytest.approx(1100.0, rel=1e-3)}
