"""One counter or two: names that mirror each other are billed once, sockets that are alike are never merged."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
from fakes.powercap import SERVER_UJ, Powercap
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_rapl import a_machine, opened, truth

from energybench.meter import rapl

POWERS = st.lists(st.tuples(st.floats(0.001, 0.2), st.floats(5.0, 300.0)), min_size=1, max_size=6)
TICKS = st.sampled_from([100_000, 976_000, 1_000_000, 10_000_000])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Powercap:
    made = Powercap(tmp_path)
    monkeypatch.setattr(rapl, "read_text", made.read_text)
    return made


@given(POWERS, TICKS, st.integers(0, SERVER_UJ))
def test_two_names_of_one_counter_are_billed_once_whatever_it_does(
    power: list[tuple[float, float]], tick_ns: int, start_uj: int
) -> None:
    with a_machine() as machine:
        zone = machine.add("intel-rapl:0", "package-0", power, start_uj=start_uj, range_uj=SERVER_UJ, tick_ns=tick_ns)
        machine.add("intel-rapl:1", "package-1", 1.0, range_uj=SERVER_UJ, mirror_of=zone)
        reading, true_j = truth(machine, zone, opened(machine), 2.0)
        (energy,) = reading.energy
        assert energy.detail["mirrors"] == ["package-1"]
        assert energy.energy_j == pytest.approx(true_j, abs=2 * tick_ns / 1e9 * 300.0 + 1e-3)


@given(POWERS, TICKS, st.integers(0, SERVER_UJ - 1), st.integers(1, 2**32 - 1), st.floats(0.0, 0.99))
def test_two_sockets_of_equal_power_and_other_counts_are_two(
    power: list[tuple[float, float]], tick_ns: int, start_uj: int, ahead: int, phase: float
) -> None:
    """Even if they differ by one unit of the hardware for ever."""
    unit_uj = SERVER_UJ / (2**32 - 1)
    ahead_uj = start_uj + round(ahead * unit_uj)
    with a_machine() as machine:
        machine.add("intel-rapl:0", "package-0", power, start_uj=start_uj, range_uj=SERVER_UJ, tick_ns=tick_ns)
        options = {"start_uj": ahead_uj, "range_uj": SERVER_UJ, "tick_ns": tick_ns}
        machine.add("intel-rapl:1", "package-1", power, phase_ns=round(phase * tick_ns), **options)  # type: ignore[arg-type]
        zones = list(machine.zones.values())
        assume(zones[0].count(0) != zones[1].count(0))
        assert [domain.device for domain in opened(machine).domains] == ["package-0", "package-1"]


@settings(max_examples=30)
@given(st.floats(5.0, 300.0), st.floats(0.05, 0.95))
def test_two_sockets_of_equal_power_and_equal_counts_in_another_phase_are_two(watts: float, phase: float) -> None:
    with a_machine() as machine:
        machine.add("intel-rapl:0", "package-0", watts, start_uj=10**9)
        machine.add("intel-rapl:1", "package-1", watts, start_uj=10**9, phase_ns=round(phase * 1e6))
        assert len(opened(machine).domains) == 2


def test_two_counters_that_agree_to_the_microjoule_for_twelve_updates_are_one(machine: Powercap) -> None:
    """No two sockets draw the same to the microjoule since they were started: only a fake can make them."""
    for i in (0, 1):
        machine.add(f"intel-rapl:{i}", f"package-{i}", 100.0)
    assert [domain.mirrors for domain in opened(machine).domains] == [("package-1",)]


def test_four_names_of_two_counters_are_two(machine: Powercap) -> None:
    first = machine.add("intel-rapl:0", "package-0", 100.0)
    second = machine.add("intel-rapl:1", "package-1", 100.0, start_uj=10**9)
    machine.add("intel-rapl:2", "package-2", 1.0, mirror_of=first)
    machine.add("intel-rapl:3", "package-3", 1.0, mirror_of=second)
    found = {domain.device: domain.mirrors for domain in opened(machine).domains}
    assert found == {"package-0": ("package-2",), "package-1": ("package-3",)}


def test_a_counter_that_moves_whenever_it_is_read_is_one_with_its_mirror(machine: Powercap) -> None:
    """A fast counter on a slow clock: never twice the same count, and always between two of the other's."""
    zone = machine.add("intel-rapl:0", "package-0", 100.0, tick_ns=1)
    machine.add("intel-rapl:1", "package-1", 1.0, mirror_of=zone)
    machine.add("intel-rapl:2", "package-2", 100.0, tick_ns=1, start_uj=1_000_000)

    def read(path: Path) -> str:
        if path.name == "energy_uj":
            machine.time._set(machine.time.now_ns() + 10_000)
        return machine.read_text(path)

    with patch.object(rapl, "read_text", read):
        assert {domain.device: domain.mirrors for domain in opened(machine).domains} == {
            "package-0": ("package-1",),
            "package-2": (),
        }
