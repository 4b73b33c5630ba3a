"""What an NVIDIA driver may answer wrongly, through the real binding: never a false joule, whatever it is.

Every figure that a reading gives lies within its error of what the fake card really drew; the others are null with a
reason that names the fault.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import UUID, FakeDriver, FakeGpu, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_faults import SensorFault

from energybench.meter.combine import metered
from energybench.meter.gpu import GpuMeter
from energybench.meter.nvml import find_gpus, open_gpus
from energybench.meter.plausible import IMPLAUSIBLE
from energybench.meter.reading import Energy, Reading
from energybench.meter.unavailable import Unavailable

OTHER, THIRD = (f"GPU-00000000-0000-0000-0000-00000000000{number}" for number in (2, 3))
Plug = Callable[..., FakeDriver]
NONSENSE_MW = 0xFFFFFFFF
COUNTER, INTEGRAL = "gpu_counter", "gpu_power_integral"


@dataclass(frozen=True, slots=True)
class Injection:
    """A card with a fault, for 30 s from the second 1 on; what each channel must then be.

    nulls: source → a word of its reason; every other figure must lie within its error of the truth
    """

    card: dict[str, Any]
    nulls: dict[str, str] = field(default_factory=dict)
    driver: dict[str, Any] = field(default_factory=dict)
    suspend_at_s: float | None = None


NVML = "NVML"
FAULTS: dict[SensorFault, Injection] = {
    SensorFault("jump", NVML, "the counter gains 1 MJ at once", "null, more than the card can draw"): Injection(
        {"jump": [(1e6, 12.34)]}, {COUNTER: "more than it can draw"}
    ),
    SensorFault(
        "jump in the last tick", NVML, "the counter gains 1 MJ just before the end", "null, more than the card can draw"
    ): Injection({"jump": [(1e6, 31.2)]}, {COUNTER: "more than it can draw"}),
    SensorFault(
        "many jumps", NVML, "the counter gains 2 kJ every few seconds", "null, more than the card can draw"
    ): Injection({"jump": [(2e3, float(second)) for second in range(3, 30, 4)]}, {COUNTER: "more than it can draw"}),
    SensorFault("backwards", NVML, "the counter loses 500 J", "null, it was reset"): Injection(
        {"counter_start_j": 9e5, "jump": [(-500.0, 12.34)]}, {COUNTER: "reset"}
    ),
    SensorFault("reset", NVML, "the counter starts again from 0", "null, it was reset"): Injection(
        {"counter_start_j": 9e5, "reset": [15.0]}, {COUNTER: "reset"}
    ),
    SensorFault("frozen", NVML, "the counter stands still", "null, it stood still"): Injection(
        {"frozen": [(20.0,)]}, {COUNTER: "stood still"}
    ),
    SensorFault("power of 4.29 MW", NVML, "power answers 0xFFFFFFFF mW, with success", "null, impossible"): Injection(
        {"nonsense": [(NONSENSE_MW,)]}, {INTEGRAL: "a power of 4.29 MW is more than it can draw"}
    ),
    SensorFault("burst of 4.29 MW", NVML, "power answers 0xFFFFFFFF mW once", "null, impossible"): Injection(
        {"nonsense": [(NONSENSE_MW, 12.0, 12.3)]}, {INTEGRAL: "a power of 4.29 MW is more than it can draw"}
    ),
    SensorFault("3.7 MW", NVML, "a 32-bit stub answers 3.7 MW", "null, impossible"): Injection(
        {"nonsense": [(3.7e9, 5.0)]}, {INTEGRAL: "a power of 3.7 MW is more than it can draw"}
    ),
    SensorFault("power of 0 W", NVML, "power answers 0, with success", "null, no power could be read"): Injection(
        {"nonsense": [(0, 5.0)]}, {INTEGRAL: "no power could be read"}
    ),
    SensorFault("card lost", NVML, "the card falls off the bus", "null, it is lost"): Injection(
        {"lost": [(12.0,)]}, {COUNTER: "lost", INTEGRAL: "no power could be read"}
    ),
    SensorFault("card away for a while", NVML, "the card is lost and comes back", "null, it was lost"): Injection(
        {"lost": [(12.0, 15.0)]}, {COUNTER: "lost", INTEGRAL: "no power could be read"}
    ),
    SensorFault("suspend", NVML, "the machine sleeps for an hour", "null, it was suspended"): Injection(
        {}, {COUNTER: "suspended for 3.6e+03 s"}, suspend_at_s=10.0
    ),
    SensorFault("suspend with reset", NVML, "the machine sleeps, its counters restart", "null, suspended"): Injection(
        {"counter_start_j": 9e5, "reset": [10.0]}, {COUNTER: "suspended"}, suspend_at_s=10.0
    ),
    SensorFault(
        "part-time sensor",
        NVML,
        "power is looked at for 25 of 100 ms, the load beats with it",
        "the error holds the truth",
    ): Injection({"power": [(0.0, 100.0), (0.05, 400.0)], "repeat_s": 0.1}),
    SensorFault(
        "blind sensor",
        NVML,
        "the same, and no field tells the mean of a second",
        "an error as wide as what may be unseen",
    ): Injection({"power": [(0.0, 100.0), (0.05, 400.0)], "repeat_s": 0.1, "errors": [("185", 3)]}),
    SensorFault(
        "no counter, old power", NVML, "nobody says what the power is a mean of", "the worst case as its error"
    ): Injection(
        {
            "power": [(0.0, 100.0), (0.3, 400.0)],
            "repeat_s": 0.6,
            "errors": [("185", 3), ("186", 3), ("nvmlDeviceGetTotalEnergyConsumption", 3)],
        },
        {"unavailable": "Not Supported"},
    ),
    SensorFault("hot nonsense", NVML, "temperature and clock answer 0xFFFFFFFF", "the figures, and no temperature"): (
        Injection({"temperature_c": float(NONSENSE_MW), "sm_clock_mhz": float(NONSENSE_MW)})
    ),
    SensorFault("nothing", NVML, "the card answers neither energy nor power", "null twice"): Injection(
        {
            "errors": [
                ("185", 3),
                ("186", 3),
                ("nvmlDeviceGetPowerUsage", 3),
                ("nvmlDeviceGetTotalEnergyConsumption", 3),
            ]
        },
        {"unavailable": "Not Supported"},
    ),
}


def windows(driver: FakeDriver, injection: Injection) -> tuple[Reading, float]:
    """(the reading of about 30 s, what the card really drew in them)."""
    meter = GpuMeter(open_gpus(), driver.time)
    driver.time.sleep(1.0)
    meter.start()
    start_s = driver.time.now_ns() / 1e9
    for _ in range(300):
        driver.time.sleep(0.1)
        if injection.suspend_at_s is not None and driver.time.now_ns() / 1e9 >= injection.suspend_at_s:
            driver.time.suspend(0.0 if driver.time.suspended_ns() else 3600.0)
    end_s = driver.time.now_ns() / 1e9
    return meter.stop(), driver.energy_j(0, start_s, end_s)


@pytest.mark.parametrize(("fault", "injection"), FAULTS.items(), ids=[fault.name for fault in FAULTS])
def test_no_fault_of_a_card_gives_a_false_joule(fake_driver: Plug, fault: SensorFault, injection: Injection) -> None:
    driver = fake_driver(FakeGpu(**{"power": 300.0} | injection.card), call_s=20e-6, **injection.driver)
    reading, true_j = windows(driver, injection)
    assert reading.energy
    for energy in reading.energy:
        if energy.source in injection.nulls:
            assert energy.energy_j is None
            assert injection.nulls[energy.source] in (energy.reason or "")
        elif energy.energy_j is None:  # unavailable from the start, and said so
            assert energy.source == "unavailable"
            assert any(word in (energy.reason or "") for word in injection.nulls.values())
        else:
            assert energy.error_j is not None
            assert abs(energy.energy_j - true_j) <= energy.error_j, (energy, true_j)


def test_what_an_impossible_counter_said_is_kept_beside_the_reason(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=300.0, jump=[(1e6, 12.34)]), call_s=20e-6)
    reading, _ = windows(driver, Injection({}))
    (counter,) = [energy for energy in reading.energy if energy.source == COUNTER]
    assert counter.lost
    assert counter.detail[IMPLAUSIBLE] == pytest.approx(1e6, abs=1e3)
    assert "twice" not in (counter.reason or "")
    assert "2 times its enforced limit of 400 W" in (counter.reason or "")


@pytest.mark.parametrize("limit", [{"errors": [("nvmlDeviceGetEnforcedPowerLimit", 3)]}, {"power_limit_w": 4e6}])
def test_a_card_that_states_no_limit_or_a_nonsensical_one_is_bounded_all_the_same(
    fake_driver: Plug, limit: dict[str, Any]
) -> None:
    driver = fake_driver(FakeGpu(power=300.0, jump=[(1e6, 12.34)], **limit), call_s=20e-6)
    reading, true_j = windows(driver, Injection({}))
    by_source = {energy.source: energy for energy in reading.energy}
    assert by_source[COUNTER].energy_j is None
    assert by_source[INTEGRAL].energy_j == pytest.approx(true_j, rel=1e-3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit_w=st.floats(50, 1200), load=st.floats(0.01, 1.5), tick_s=st.sampled_from([0.01, 0.02, 0.1]))
def test_a_healthy_card_with_transients_above_its_limit_passes(
    fake_nvml_library: Path, limit_w: float, load: float, tick_s: float
) -> None:
    gpu = FakeGpu(power=[(0.0, 0.2 * limit_w), (3.0, load * limit_w)], power_limit_w=limit_w, tick_s=tick_s)
    with FakeDriver(fake_nvml_library, [gpu], call_s=20e-6) as driver:
        reading, true_j = windows(driver, Injection({}))
    for energy in reading.energy:
        assert energy.energy_j is not None, energy.reason
        assert energy.error_j is not None
        assert abs(energy.energy_j - true_j) <= energy.error_j


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    period_s=st.floats(0.03, 3.0),
    duty=st.floats(0.05, 0.95),
    low_w=st.floats(20, 200),
    high_w=st.floats(100, 600),
    capability=st.sampled_from([0.0, 6.1, 7.0, 7.5, 8.0, 8.6, 8.9, 9.0]),
    errors=st.sampled_from([[], [("185", 3)], [("186", 3)], [("185", 3), ("186", 3)]]),
    seconds=st.floats(4, 20),
)
def test_whatever_square_wave_a_card_draws_the_truth_lies_within_the_integrals_error(
    fake_nvml_library: Path,
    period_s: float,
    duty: float,
    low_w: float,
    high_w: float,
    capability: float,
    errors: list[tuple[str, float]],
    seconds: float,
) -> None:
    """Each card looks as its architecture is documented to; one that does not tell looks for 25 of 100 ms."""
    every_s, seen_s = {6.1: (0.02, 0.01), 7.0: (0.02, 0.01), 7.5: (0.1, 0.1), 8.6: (0.1, 0.1), 8.9: (0.1, 0.1)}.get(
        capability, (0.1, 0.025)
    )
    averaged_s = 1.0 if capability in (0.0, 8.6, 8.9, 9.0) else seen_s  # of nvmlDeviceGetPowerUsage
    gpu = FakeGpu(
        power=[(0.0, high_w), (duty * period_s, low_w)],
        repeat_s=period_s,
        compute_capability=capability,
        sampling_s=every_s,
        duty_s=seen_s,
        average_s=1.0 if ("185", 3) not in errors else averaged_s,
        errors=errors,
    )
    with FakeDriver(fake_nvml_library, [gpu], call_s=20e-6) as driver:
        meter = GpuMeter(open_gpus(), driver.time)
        driver.time.sleep(1.5)
        meter.start()
        start_s = driver.time.now_ns() / 1e9
        driver.time.sleep(seconds)
        end_s = driver.time.now_ns() / 1e9
        reading = meter.stop()
        true_j = driver.energy_j(0, start_s, end_s)
    (integral,) = [energy for energy in reading.energy if energy.source == INTEGRAL]
    assert integral.energy_j is not None
    assert integral.error_j is not None
    assert abs(integral.energy_j - true_j) <= integral.error_j


def test_a_quarter_of_a_look_at_a_square_wave_says_how_little_it_knows(fake_driver: Plug) -> None:
    """100 and 400 W, 50 ms each, of which 25 ms of every 100 are seen: 2.00 kJ where 1.25 were drawn."""
    gpu = FakeGpu(power=[(0.0, 100.0), (0.05, 400.0)], repeat_s=0.1, errors=[("185", 3)], compute_capability=8.0)
    driver = fake_driver(gpu, call_s=20e-6)
    meter = GpuMeter(open_gpus(), driver.time)
    meter.start()
    start_s = driver.time.now_ns() / 1e9
    driver.time.sleep(5.0)
    reading, true_j = meter.stop(), driver.energy_j(0, start_s, start_s + 5.0)
    (integral,) = [energy for energy in reading.energy if energy.source == INTEGRAL]
    assert true_j == pytest.approx(1250, rel=0.01)
    assert integral.energy_j == pytest.approx(2000, rel=0.01)
    assert integral.error_j is not None
    assert abs(2000 - true_j) < integral.error_j <= 2000
    assert (integral.detail["seen_s"], integral.detail["every_s"]) == (0.025, 0.1)
    assert integral.detail["look"] == "documented"


# ── one card hides no other ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("code", "words"), [(4, "Insufficient Permissions"), (15, "GPU is lost"), (999, "Unknown")])
def test_a_card_that_cannot_be_opened_is_named_and_the_others_are_metered(
    fake_driver: Plug, code: int, words: str
) -> None:
    refused = FakeGpu(uuid=OTHER, errors=[("nvmlDeviceGetHandleByIndex", code), ("nvmlDeviceGetHandleByUUID", code)])
    fake_driver(FakeGpu(power=300.0), refused, FakeGpu(uuid=THIRD, power=200.0))
    cards = find_gpus()
    assert [gpu.uuid for gpu in cards.opened] == [UUID, THIRD]
    assert list(cards.refused) == ["GPU 1"]
    assert words in cards.refused["GPU 1"].reason
    assert cards.refused["GPU 1"].remedy
    assert [gpu.uuid for gpu in open_gpus()] == [UUID, THIRD]
    with pytest.raises(Unavailable, match=OTHER):  # a card that is named must be there
        open_gpus([UUID, OTHER])
    assert list(find_gpus([UUID, OTHER]).refused) == [OTHER]


def test_a_driver_that_does_not_fit_its_library_says_what_helps(fake_driver: Plug) -> None:
    fake_driver(FakeGpu(), errors=[("nvmlInitWithFlags", 18)])
    with pytest.raises(Unavailable, match="mismatch") as caught:
        find_gpus()
    assert "start the machine again" in caught.value.remedy
    assert caught.value.kind == "unsupported"


def test_a_driver_without_the_newest_process_query_is_asked_by_the_older_one(tmp_path: Path) -> None:
    """nvidia-ml-py raises NVMLLibraryMismatchError there, which is no NVMLError."""
    gpu = FakeGpu(power=300.0, compute=[(os.getpid(),), (4711, 3.0)])
    with FakeDriver(build(tmp_path, without_v3=True), [gpu], call_s=20e-6, driver_version="470.82") as driver:
        reading, true_j = windows(driver, Injection({}))
    assert reading.cards[UUID].foreign_pids == [4711]
    assert metered(reading).joules == pytest.approx(true_j, rel=1e-3)


def test_a_card_that_does_not_tell_whether_it_is_sliced_is_not_taken_for_a_whole_one(fake_driver: Plug) -> None:
    fake_driver(
        FakeGpu(errors=[("nvmlDeviceGetMigMode", 4)]), FakeGpu(uuid=OTHER, errors=[("nvmlDeviceGetMigMode", 3)])
    )
    refused, cannot = open_gpus()
    assert refused.mig() is None
    assert cannot.mig() is False  # no card that could be


# ── scopes ────────────────────────────────────────────────────────────────────────────────────────────────


def energies(reading: Reading) -> dict[tuple[str, str], Energy]:
    return {(energy.source, energy.scope): energy for energy in reading.energy}


def test_on_grace_hopper_the_counter_is_the_modules_and_instant_power_the_gpus(fake_driver: Plug) -> None:
    """300 W of the GPU and 250 W beside it on the module: two scopes, each with a figure of its own."""
    driver = fake_driver(FakeGpu(power=300.0, module_w=250.0, compute_capability=9.0), call_s=20e-6)
    reading, gpu_j = windows(driver, Injection({}))
    found = energies(reading)
    seconds = reading.wall_s
    assert set(found) == {(COUNTER, "module"), (INTEGRAL, "gpu"), (INTEGRAL, "module")}
    assert found[COUNTER, "module"].energy_j == pytest.approx(gpu_j + 250 * seconds, rel=1e-3)
    assert found[INTEGRAL, "gpu"].energy_j == pytest.approx(gpu_j, rel=1e-3)
    assert found[INTEGRAL, "module"].energy_j == pytest.approx(gpu_j + 250 * seconds, rel=1e-3)


def test_a_module_holds_its_gpu_and_its_processor_so_that_nothing_is_added_twice(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=300.0, module_w=250.0), call_s=20e-6)
    reading, gpu_j = windows(driver, Injection({}))
    cpu = Energy(source="rapl", scope="cpu", device="package-0", energy_j=1000.0, error_j=1.0)
    total = metered(reading.model_copy(update={"energy": [*reading.energy, cpu]}))
    assert total.sensors == {(COUNTER, "module")}
    assert total.joules == pytest.approx(gpu_j + 250 * reading.wall_s, rel=1e-3)


def test_the_modules_limit_bounds_the_modules_counter(fake_driver: Plug) -> None:
    """1200 W of a module whose GPU may draw 400 are no jump; a megajoule is."""
    driver = fake_driver(FakeGpu(power=400.0, module_w=800.0), call_s=20e-6)
    assert energies(windows(driver, Injection({}))[0])[COUNTER, "module"].energy_j is not None
    driver = fake_driver(FakeGpu(power=400.0, module_w=800.0, jump=[(1e6, 9.0)]), call_s=20e-6)
    assert energies(windows(driver, Injection({}))[0])[COUNTER, "module"].energy_j is None


def test_two_cards_are_named_and_added(fake_driver: Plug) -> None:
    driver = fake_driver(FakeGpu(power=300.0), FakeGpu(uuid=OTHER, power=100.0), call_s=20e-6)
    reading, first_j = windows(driver, Injection({}))
    assert metered(reading).joules == pytest.approx(4 / 3 * first_j, rel=1e-3)
    assert {device for _, _, device in metered(reading).channels} == {UUID, OTHER}


# ── long runs ─────────────────────────────────────────────────────────────────────────────────────────────


def test_two_days_of_samples_are_kept_in_bounded_memory_and_add_up_all_the_same(
    fake_driver: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    from energybench.meter import kept_trace

    monkeypatch.setattr(kept_trace, "MOST_SAMPLES", 500)
    driver = fake_driver(FakeGpu(power=[(0.0, 300.0), (30.0, 100.0)], repeat_s=60.0))
    meter = GpuMeter(open_gpus(), driver.time, period_s=30.0)  # the rest does not change with the period
    meter.start()
    start_s = driver.time.now_ns() / 1e9
    driver.time.sleep(2 * 86_400.0)
    end_s = driver.time.now_ns() / 1e9
    reading = meter.stop()
    assert len(meter.samples) <= 500
    found = {energy.source: energy for energy in reading.energy}
    true_j = driver.energy_j(0, start_s, end_s)
    assert found[COUNTER].energy_j == pytest.approx(true_j, rel=1e-5)
    assert found[INTEGRAL].energy_j is not None
    assert found[INTEGRAL].error_j is not None
    assert abs(found[INTEGRAL].energy_j - true_j) <= found[INTEGRAL].error_j
    assert reading.sampler is not None
    assert reading.sampler.samples > 5_700
