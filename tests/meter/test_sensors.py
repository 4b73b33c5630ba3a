"""Which meters a trial gets, and what a machine without them says in their place."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import UUID, FakeDriver, FakeGpu
from fakes.powercap import Powercap, read_computed, without_energy_pkg

from energybench.common.errors import UsageError
from energybench.meter import rapl, sensors, survey
from energybench.meter.gpu import GpuMeter
from energybench.meter.reading import Energy, Reading
from energybench.meter.sensors import MeterSelection, ThirdParty, UnavailableMeter, open_meters
from energybench.meter.unavailable import Unavailable
from energybench.meter.window import Window

Plug = Callable[..., FakeDriver]
MODEL = {"tdp_w": 100.0, "ram_w": 5.0}


def measure(**more: Any) -> MeterSelection:
    return MeterSelection(**{"model": MODEL, **more})


def read(meters: list[Any]) -> list[Energy]:
    window = Window(meters, lambda: None)
    window.start()
    window.stop()
    return window.reading().energy


def test_off_is_off() -> None:
    assert open_meters(measure(energy="off"), "cpu") == []


def test_without_any_sensor_there_is_a_model_and_the_reason_why_it_is_one() -> None:
    found = read(open_meters(measure(), "cpu"))
    assert {e.source for e in found if e.energy_j is not None} == {
        "model(codecarbon cpu_load)",
        "model(codecarbon ram)",
    }
    (missing,) = [e for e in found if e.energy_j is None]
    assert missing.source == "unavailable"
    assert "RAPL absent" in (missing.reason or "")
    assert not any(e.measured for e in found)


def test_a_kernel_that_lists_power_events_without_energy_pkg_is_unsupported_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENERGYBENCH_SYSFS", str(without_energy_pkg(tmp_path)))
    (missing,) = [e for e in read(open_meters(measure(), "cpu")) if e.energy_j is None]
    assert "RAPL unsupported" in (missing.reason or "")
    assert "perf_events: energy-pkg cannot be read: No such file or directory" in (missing.reason or "")
    assert "class/powercap; perf_events" in (missing.reason or "")
    told = survey.sensors(measure(), "cpu")["missing"]["cpu"]
    assert "there is no folder" in told
    assert "energy-pkg cannot be read" in told


def test_a_sys_that_is_mounted_elsewhere_is_read_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its powercap; and ENERGYBENCH_POWERCAP, which says less, is obeyed before it."""
    monkeypatch.setenv("ENERGYBENCH_SYSFS", str(tmp_path))
    zone = Powercap(tmp_path).add("intel-rapl:0", "package-0", 50.0)
    zones = {str(zone.folder.resolve()): zone}
    monkeypatch.setattr(rapl, "read_text", lambda path: read_computed(path, zones, time.perf_counter_ns()))
    assert survey.sensors(measure(), "cpu")["measured"] == ["RAPL package-0"]
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(tmp_path / "nothing"))
    assert survey.sensors(measure(), "cpu")["measured"] == []


def test_a_gpu_that_trains_and_has_no_driver_is_missing_and_says_so() -> None:
    found = read(open_meters(measure(), UUID))
    assert ("unavailable", "gpu") in [(e.source, e.scope) for e in found]
    assert all(e.reason for e in found if e.energy_j is None)


def test_a_card_that_trains_is_metered_and_then_nothing_is_modelled(fake_driver: Plug) -> None:
    fake_driver(FakeGpu(), FakeGpu(uuid="GPU-other"))
    meters = open_meters(measure(), UUID)
    assert [type(meter) for meter in meters] == [GpuMeter, UnavailableMeter]
    assert set(meters[0].temperatures()) == {UUID}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("gpus", "expected"), [("used", set()), ("all", {UUID, "GPU-other"}), (["GPU-other"], {"GPU-other"})]
)
def test_cards_that_a_cpu_trial_is_to_meter_are_those_that_the_suite_names(
    fake_driver: Plug, gpus: Any, expected: set[str]
) -> None:
    fake_driver(FakeGpu(), FakeGpu(uuid="GPU-other"))
    found = [m for m in open_meters(measure(gpus=gpus), "cpu") if isinstance(m, GpuMeter)]
    assert {uuid for meter in found for uuid in meter.temperatures()} == expected


def test_the_survey_of_a_plan_names_what_will_be_measured_and_what_is_missing(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(name="Fake H100", tick_s=0.02), call_s=2e-5)
    (card,), why = survey.gpus(time=driver.time)
    assert why is None
    assert card["tick"]["seconds"] == pytest.approx(0.02, abs=0.001)
    facts = survey.sensors(measure(), "cpu")
    assert facts["measured"] == []
    assert "RAPL" in facts["missing"]["cpu"]


# ── other packages' meters ────────────────────────────────────────────────────────────────────────────────


class Plugged:
    """A meter of another package: a wall plug."""

    def __init__(self, fail: str = "") -> None:
        self.fail = fail

    def start(self) -> None:
        if self.fail == "start":
            raise OSError("the plug does not answer")

    def stop(self) -> Reading:
        if self.fail == "stop":
            raise OSError("the plug does not answer")
        return Reading(wall_s=1.0, energy=[Energy(source="whatever", scope="machine", energy_j=42.0)])


def offer(monkeypatch: pytest.MonkeyPatch, name: str, build: Callable[[], Any]) -> None:
    point = EntryPoint(name, "somewhere:build", sensors.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: build)
    monkeypatch.setattr(sensors, "entry_points", lambda group: [point] if group == sensors.GROUP else [])


def test_a_meter_of_another_package_is_measured_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "plug", Plugged)
    (energy, _) = read(open_meters(measure(meters=["plug"]), "cpu"))
    assert (energy.source, energy.scope, energy.energy_j, energy.measured) == ("meter(plug)", "machine", 42.0, True)


def test_a_meter_of_another_package_cannot_pass_a_model_or_another_sensor_for_its_own() -> None:
    class Modelled(Plugged):
        def stop(self) -> Reading:
            return Reading(
                wall_s=1.0,
                energy=[
                    Energy(source="model(guess)", scope="machine", energy_j=1.0),
                    Energy(source="replay(a.csv.gz)", scope="cpu", energy_j=1.0),
                    Energy(source="gpu_counter", scope="gpu", energy_j=1.0),
                ],
            )

    model, played, other = read([ThirdParty("plug", Modelled())])
    assert not model.measured
    assert (played.source, played.measured) == ("replay(a.csv.gz)", False)
    assert other.source == "meter(plug)"


@pytest.mark.parametrize("fail", ["start", "stop"])
def test_a_meter_of_another_package_that_breaks_is_null_with_its_reason(fail: str) -> None:
    (energy,) = read([ThirdParty("plug", Plugged(fail))])
    assert energy.energy_j is None
    assert energy.lost
    assert "the plug does not answer" in (energy.reason or "")


def test_a_meter_that_breaks_later_leaves_no_partial_total() -> None:
    plug = Plugged()
    window = Window([ThirdParty("plug", plug)], lambda: None)
    for fail in ("", "stop"):
        plug.fail = fail
        window.start()
        window.stop()
    (energy,) = window.reading().energy
    assert energy.energy_j is None


def test_a_meter_that_cannot_be_opened_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise Unavailable("no plug in sight", "absent", "plug one in")

    offer(monkeypatch, "plug", refuse)
    found = read(open_meters(measure(meters=["plug"]), "cpu"))
    assert [e.reason for e in found if e.scope == "machine"] == ["plug: no plug in sight"]


def test_a_meter_that_nobody_offers_is_an_error_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "wallplug", Plugged)
    with pytest.raises(UsageError, match="did you mean 'wallplug'"):
        open_meters(measure(meters=["walplug"]), "cpu")
