"""Carbon and modelled power, held against codecarbon itself; never over the network."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import pytest
from fakes.replay import VirtualTime
from hypothesis import given, settings
from hypothesis import strategies as st

from energybench.common.errors import UsageError
from energybench.meter import carbon
from energybench.meter.carbon import CodecarbonModel, cpu_power_w, model_parameters
from energybench.meter.zones import intensity


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture(scope="module")
def their_cpu() -> Any:
    from codecarbon.external.hardware import CPU

    return CPU(output_dir="", mode="cpu_load", model="any", tdp=150, tracking_mode="machine")


# ── intensity ─────────────────────────────────────────────────────────────────────────────────────────────


def test_france_is_56_grams_a_kilowatt_hour() -> None:
    facts = intensity("FRA")
    assert facts["intensity_kg_per_j"] * 3.6e6 * 1000 == pytest.approx(56.04, abs=0.005)  # codecarbon 3.3's table
    assert (facts["zone"], facts["country"]) == ("FRA", "France")
    assert "codecarbon" in facts["source"]


def test_a_kilowatt_hour_weighs_what_codecarbon_says_it_weighs() -> None:
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    theirs = Emissions(DataSource())
    for zone in ("FRA", "DEU", "POL", "IND"):
        place = GeoMetadata(country_iso_code=zone, country_name=intensity(zone)["country"])
        kg = theirs.get_country_emissions(Energy.from_energy(kWh=1.0), place)
        assert intensity(zone)["intensity_kg_per_j"] * 3.6e6 == pytest.approx(kg, rel=1e-9)


@pytest.mark.parametrize(("zone", "hint"), [("FRX", "did you mean"), ("France", "FRA"), ("ZZZ", ""), ("", "")])
def test_an_unknown_zone_is_e502_with_a_hint(zone: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        intensity(zone)
    (problem,) = caught.value.problems
    assert problem.code == "E502"
    assert repr(zone) in problem.message
    assert problem.hint
    assert hint in problem.hint


def test_the_tables_come_without_a_single_packet() -> None:
    """In a fresh interpreter: codecarbon must not look anything up while it is imported either."""
    script = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from energybench.meter.carbon import model_parameters, CodecarbonModel\n"
        "from energybench.meter.zones import intensity\n"
        "assert intensity('FRA')['intensity_kg_per_j'] > 0\n"
        "model = CodecarbonModel(model_parameters()); model.start(); print(len(model.stop().energy))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr


# ── modelled power ────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(load=st.floats(0, 1), tdp=st.floats(1, 500))
def test_power_is_codecarbons_own_at_every_load(their_cpu: Any, load: float, tdp: float) -> None:
    their_cpu._tdp = tdp
    with mock.patch.object(their_cpu._cpu_load_meter, "percent", return_value=100 * load):
        theirs = their_cpu._get_power_from_cpu_load().W
    assert cpu_power_w(tdp, load) == pytest.approx(theirs, rel=1e-9)


@given(
    fields=st.lists(st.floats(0, 1e5), min_size=10, max_size=10),
    more=st.lists(st.floats(0, 100), min_size=10, max_size=10),
)
def test_load_is_codecarbons_own(fields: list[float], more: list[float]) -> None:
    """Guest time is inside user time, and waiting for a disk is idle."""
    import psutil
    from codecarbon.external.hardware import SystemCPULoadMeter

    kind = type(psutil.cpu_times())
    before = kind(*fields, *[0.0] * (len(kind._fields) - 10))
    after = kind(*(a + b for a, b in zip(before, more, strict=False)), *before[10:])
    if sum(more[:8]) < 1:
        return
    meter = SystemCPULoadMeter()
    meter._last_times = before
    with mock.patch.object(psutil, "cpu_times", return_value=after):
        theirs = meter.percent() / 100
        busy, total = carbon._busy_and_total()
    with mock.patch.object(psutil, "cpu_times", return_value=before):
        busy_before, total_before = carbon._busy_and_total()
    if before[8] or before[9] or more[8] or more[9]:  # theirs subtracts the guest's, ours leaves it out of the sum
        assert total - total_before == pytest.approx(sum(more[:8]), abs=1e-6)
    assert (busy - busy_before) / (total - total_before) == pytest.approx(theirs, abs=1e-6)


def test_a_window_of_known_load_and_length_costs_power_times_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([(0.0, 0.0), (6.0, 12.0)])  # half of the machine is busy
    monkeypatch.setattr(carbon, "_busy_and_total", lambda: next(clock))
    virtual = VirtualTime()
    model = CodecarbonModel({"tdp_w": 200.0, "ram_w": 6.0}, virtual)
    model.start()
    virtual.sleep(10)
    cpu, ram = model.stop().energy
    assert cpu.energy_j == pytest.approx(200 * (0.1 + 0.9 / 8) * 10)
    assert ram.energy_j == pytest.approx(60)
    assert {cpu.source, ram.source} == {"model(codecarbon cpu_load)", "model(codecarbon ram)"}
    assert not cpu.measured
    assert not ram.measured


def test_the_model_is_codecarbons_own_in_every_parameter() -> None:
    from codecarbon.core.cpu import TDP
    from codecarbon.external.ram import RAM

    facts = model_parameters()
    assert facts["ram_w"] == pytest.approx(RAM(tracking_mode="machine").total_power().W)
    assert facts["tdp_w"] > 0
    if tdp := TDP().tdp:
        assert facts["tdp_w"] == pytest.approx(tdp)
    assert "codecarbon" in facts["tdp_source"]


def test_a_real_window_lies_between_an_idle_and_a_full_machine() -> None:
    model = CodecarbonModel({"tdp_w": 100.0, "ram_w": 5.0})
    started = time.perf_counter()
    model.start()
    time.sleep(0.1)
    cpu, _ = model.stop().energy
    seconds = time.perf_counter() - started
    assert cpu.energy_j is not None
    assert 100 * 0.1 * 0.1 <= cpu.energy_j <= 100 * seconds
