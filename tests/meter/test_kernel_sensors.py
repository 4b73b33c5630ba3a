"""Which of hwmon's sensors a measurement reads, and what it says of every accelerator that it does not."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from fakes.hwmon import Machine, Part
from fakes.nvml import UUID, FakeGpu
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter import devices, pool, sensors, survey
from energybench.meter.combine import metered
from energybench.meter.hwmon import Hwmon
from energybench.meter.not_seen import not_seen
from energybench.meter.pool import MeterRequest, MeterSet
from energybench.meter.reading import Energy, Reading
from energybench.meter.sensors import MeterSelection, open_meters
from energybench.meter.window import Window

NVIDIA = 0x10DE
CARDS = [f"0000:{bus:02x}:00.0" for bus in (0x03, 0x43, 0x83, 0xC3)]
SERIALS = [0xA1B2C3D4E5F60700 + number for number in range(4)]


def rocm_uuid(serial: int) -> str:
    """As torch writes it under ROCm: the serial number's 16 digits, each a byte."""
    digits = f"{serial:016x}".encode().hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setenv("ENERGYBENCH_SYSFS", str(made.root))
    for name in ("kernel_sensors", "sensors"):  # the clock of the probe and of the meter
        monkeypatch.setattr(f"energybench.meter.{name}.REAL_TIME", made.time)
    return made


@pytest.fixture
def four(machine: Machine) -> list[Part]:
    """Four AMD cards, of 100, 200, 300 and 400 W."""
    return [
        machine.amdgpu(address, 100.0 * (number + 1), unique_id=SERIALS[number], cap_w=750.0)
        for number, address in enumerate(CARDS)
    ]


def read(machine: Machine, meters: list[Any], seconds: float = 10.0) -> Reading:
    window = Window(meters, lambda: None)
    window.start()
    machine.time.sleep(seconds)
    window.stop()
    return window.reading()


def opened(machine: Machine, device: str = "cpu", **wanted: Any) -> Reading:
    return read(machine, open_meters(MeterSelection(**wanted), device))


def figures(reading: Reading) -> dict[str, float]:
    """Device → joules, of what was measured."""
    return {energy.device: energy.energy_j or 0.0 for energy in reading.energy if energy.measured}


def test_a_training_on_the_cpu_says_the_cards_beside_it(machine: Machine, four: list[Part]) -> None:
    reading = opened(machine)
    assert figures(reading) == {}
    assert not_seen(reading) == ["4 AMD GPUs (amdgpu)"]
    silent = [energy for energy in reading.energy if energy.unmetered]
    assert [energy.device for energy in silent] == CARDS
    assert all(energy.source == "unavailable" and energy.scope == "gpu" for energy in silent)
    assert 'gpus = "all" meters it' in (silent[0].reason or "")


def test_all_cards_are_metered_where_that_is_asked_for(machine: Machine, four: list[Part]) -> None:
    reading = opened(machine, gpus="all")
    assert figures(reading) == {address: pytest.approx(1000.0 * (n + 1)) for n, address in enumerate(CARDS)}
    assert metered(reading).joules == pytest.approx(10_000.0)
    assert not_seen(reading) == []


@pytest.mark.parametrize("number", range(4))
def test_the_card_that_trains_under_rocm_is_found_by_its_serial_number(
    machine: Machine, four: list[Part], number: int
) -> None:
    reading = opened(machine, rocm_uuid(SERIALS[number]))
    assert figures(reading) == {CARDS[number]: pytest.approx(1000.0 * (number + 1))}
    assert metered(reading).joules == pytest.approx(1000.0 * (number + 1))  # the other three take nothing from it
    assert not_seen(reading) == ["3 AMD GPUs (amdgpu)"]


def test_cards_may_be_named_by_address_or_by_serial_number(machine: Machine, four: list[Part]) -> None:
    reading = opened(machine, gpus=[CARDS[2], rocm_uuid(SERIALS[0]), f"GPU-{SERIALS[3]:016x}"])
    assert set(figures(reading)) == {CARDS[0], CARDS[2], CARDS[3]}


def test_which_of_four_cards_trains_is_not_guessed(machine: Machine, four: list[Part]) -> None:
    reading = opened(machine, rocm_uuid(0xDEAD))
    assert figures(reading) == {}
    assert metered(reading).sensors == frozenset()
    assert not_seen(reading) == ["4 AMD GPUs (amdgpu)"]


def test_a_single_card_without_a_serial_number_is_the_one_that_trains(machine: Machine) -> None:
    machine.amdgpu(CARDS[0], 100.0)
    assert set(figures(opened(machine, "GPU-00000000-0000-0000-0000-000000000000"))) == {CARDS[0]}


def test_but_never_while_nvml_knows_a_card(machine: Machine, fake_driver: Any) -> None:
    """An AMD card for the picture beside the NVIDIA card that trains."""
    fake_driver(FakeGpu())
    machine.amdgpu(CARDS[0], 20.0)
    meters = open_meters(MeterSelection(), UUID)
    assert not any(isinstance(meter, Hwmon) for meter in meters)
    (silent,) = [energy for meter in meters[2:] for energy in meter.stop().energy]
    assert silent.unmetered


def test_a_card_that_should_have_had_a_figure_leaves_its_scope_without_a_sum(machine: Machine) -> None:
    machine.amdgpu(CARDS[0], 100.0, unique_id=SERIALS[0])
    machine.amdgpu(CARDS[1], 100.0, unique_id=SERIALS[1], file="")
    reading = opened(machine, gpus=[CARDS[0], CARDS[1]])
    assert set(figures(reading)) == {CARDS[0]}
    assert metered(reading).sensors == frozenset()
    (told,) = not_seen(reading)
    assert told.startswith(f"{CARDS[1]} (AMD GPU {CARDS[1]} (amdgpu) is there and nothing meters it")


def test_a_boards_rail_is_always_metered_and_its_gpu_is_on_it(machine: Machine) -> None:
    machine.tegra()
    machine.rails(VDD_IN=15.0, VDD_SOC=3.0)
    reading = opened(machine)
    assert figures(reading) == {"VDD_IN": pytest.approx(150.0, rel=1e-3)}
    assert not_seen(reading) == []


def test_a_tegra_without_rails_is_an_accelerator_that_nothing_meters(machine: Machine) -> None:
    machine.tegra()
    (told,) = not_seen(opened(machine))
    assert "NVIDIA GPU" in told


def test_a_rail_that_cannot_be_read_is_told(machine: Machine) -> None:
    machine.tegra()
    machine.rails(VDD_IN=None)
    told = not_seen(opened(machine))
    assert any("VDD_IN" in each and "has no curr1_input" in each for each in told)


def test_a_training_card_of_another_kind_is_told_with_its_own_scope(machine: Machine) -> None:
    for bus in range(8):
        machine.accel(machine.pci(f"0000:{bus + 0x19:02x}:00.0", 0x1DA3, 1, "habanalabs", 0x120000))
    reading = opened(machine)
    assert not_seen(reading) == ["8 Habana accelerators (habanalabs)"]
    assert {energy.scope for energy in reading.energy if energy.unmetered} == {"accelerator"}


@pytest.mark.parametrize(
    ("driver", "why"), [("", "no driver is loaded for it"), ("nouveau", "its driver nouveau"), ("vfio-pci", "virtual")]
)
def test_why_nothing_meters_a_card_is_said(machine: Machine, driver: str, why: str) -> None:
    machine.pci(CARDS[0], NVIDIA, 0x2330, driver, 0x030200)
    (silent,) = [energy for energy in opened(machine).energy if energy.unmetered]
    assert why in (silent.reason or "")


def test_what_is_part_of_the_processor_is_not_told(machine: Machine) -> None:
    machine.drm(machine.pci("0000:00:02.0", 0x8086, 0x7D55, "xe"))
    assert not_seen(opened(machine)) == []


def test_in_a_machines_total_is_every_card_of_it(machine: Machine) -> None:
    machine.mac(40.0)
    machine.accel(machine.pci("0000:19:00.0", 0x1DA3, 1, "habanalabs", 0x120000))
    reading = opened(machine)
    assert metered(reading).joules == pytest.approx(400.0)
    assert not any(energy.unmetered for energy in reading.energy)


def test_sockets_are_metered_where_rapl_is_not(machine: Machine) -> None:
    machine.sockets(200.0)
    assert set(figures(opened(machine))) == {"package-0"}


# ── what children and windows use ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("visible", "metered_cards"),
    [({}, 4), ({"HIP_VISIBLE_DEVICES": "-1"}, 0), ({"ROCR_VISIBLE_DEVICES": ""}, 0), ({"HIP_VISIBLE_DEVICES": "1"}, 0)],
)
def test_a_commands_cards_are_those_that_it_may_see(
    machine: Machine, four: list[Part], monkeypatch: pytest.MonkeyPatch, visible: dict[str, str], metered_cards: int
) -> None:
    for name, value in visible.items():
        monkeypatch.setenv(name, value)
    reading = opened(machine, of_children=True)
    assert len(figures(reading)) == metered_cards
    if visible == {"HIP_VISIBLE_DEVICES": "1"}:
        assert any("does not say which of 4 cards is meant" in (energy.reason or "") for energy in reading.energy)


class Torch:
    """torch under ROCm, as far as it is asked: which of its devices hold tensors, and what it knows of them."""

    def __init__(self, used: set[int], *, bus: bool) -> None:
        self._used, self._bus = used, bus
        self.cuda, self.version = self, types.SimpleNamespace(hip="7.0")

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 4

    def max_memory_reserved(self, number: int) -> int:
        return 1 << 20 if number in self._used else 0

    def get_device_properties(self, number: int) -> Any:
        place = {"pci_domain_id": 0, "pci_bus_id": int(CARDS[number][5:7], 16), "pci_device_id": 0} if self._bus else {}
        return types.SimpleNamespace(uuid=rocm_uuid(SERIALS[number]).removeprefix("GPU-"), **place)


@pytest.mark.parametrize("bus", [True, False])
def test_torch_says_which_cards_hold_tensors_by_the_bus_or_by_the_serial_number(
    machine: Machine, four: list[Part], monkeypatch: pytest.MonkeyPatch, bus: bool
) -> None:
    monkeypatch.setitem(sys.modules, "torch", Torch({0, 3}, bus=bus))
    assert devices.pci_addresses() == {CARDS[0], CARDS[3]}
    assert devices.uuids() == set()  # NVML knows none of them


def test_a_window_is_of_the_cards_that_were_used(
    machine: Machine, four: list[Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter_set = MeterSet(MeterRequest())
    reading = read(machine, list(meter_set.meters))
    assert len(figures(reading)) == 4
    monkeypatch.setitem(sys.modules, "torch", Torch({1}, bus=True))
    mine = meter_set.of_used_cards(reading)
    assert figures(mine) == {CARDS[1]: pytest.approx(2000.0)}
    assert metered(mine).joules == pytest.approx(2000.0)
    assert not_seen(mine) == ["3 AMD GPUs (amdgpu)"]


def test_a_window_whose_card_is_not_placed_has_no_sum(
    machine: Machine, four: list[Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter_set = MeterSet(MeterRequest())
    reading = read(machine, list(meter_set.meters))
    torch = Torch({1}, bus=False)
    monkeypatch.setattr(torch, "get_device_properties", lambda number: types.SimpleNamespace(uuid="0"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    mine = meter_set.of_used_cards(reading)
    assert metered(mine).sensors == frozenset()
    assert any(pool.UNCLEAR in (energy.reason or "") for energy in mine.energy)


# ── plans, sums and words ─────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_names_what_hwmon_will_measure_and_what_nothing_does(machine: Machine) -> None:
    machine.amdgpu(CARDS[0], 100.0)
    machine.pci(CARDS[1], NVIDIA, 0x2330, "nouveau", 0x030200)
    told = survey.sensors(MeterSelection(gpus="all"), "cpu")
    assert told["measured"] == [f"hwmon(amdgpu) {CARDS[0]}"]
    assert "nouveau" in told["missing"][CARDS[1]]
    assert set(survey.sensors(MeterSelection(), "cpu")["missing"]) >= set(CARDS[:2])


def test_a_card_that_nvml_meters_is_not_told_as_missing(
    machine: Machine, fake_driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its address where the driver says it, else by their number."""
    fake_driver(FakeGpu())
    for address in CARDS[:2]:
        machine.pci(address, NVIDIA, 0x2330, "nvidia", 0x030200)
    for places, others in (([CARDS[1]], [CARDS[0]]), ([""], [CARDS[1]])):
        monkeypatch.setattr(sensors, "_places", lambda meters, places=places: places)
        meters = open_meters(MeterSelection(), UUID)
        silent = [energy for meter in meters[2:] for energy in meter.stop().energy]
        assert [energy.device for energy in silent] == others


UNMETERED = Energy(
    source="unavailable",
    scope="gpu",
    device=CARDS[0],
    reason="AMD GPU is there and nothing meters it: why",
    detail={"unmetered": True, "vendor": "AMD", "kind": "gpu", "driver": "amdgpu"},
)


def figure(source: str, scope: str, device: str, joules: float | None = 100.0, **more: Any) -> Energy:
    return Energy(source=source, scope=scope, device=device, energy_j=joules, **more)


@given(st.integers(0, 4), st.integers(1, 4))
def test_a_card_beside_those_that_train_takes_nothing_from_their_sum(beside: int, train: int) -> None:
    cards = [figure("gpu_counter", "gpu", f"GPU-{number}") for number in range(train)]
    others = [UNMETERED.model_copy(update={"device": f"0000:0{number}:00.0"}) for number in range(beside)]
    assert metered(Reading(wall_s=1.0, energy=[*others, *cards])).joules == pytest.approx(100.0 * train)


def test_one_that_should_have_had_a_figure_takes_all() -> None:
    lacks = UNMETERED.model_copy(update={"detail": {}})
    for lost in (lacks, figure("hwmon(amdgpu)", "gpu", CARDS[0], None, reason="gone")):
        reading = Reading(wall_s=1.0, energy=[figure("gpu_counter", "gpu", "GPU-1"), lost])
        assert metered(reading).sensors == frozenset()


def test_a_module_holds_its_gpu_processor_and_memory_and_is_counted_by_one_source() -> None:
    parts = [figure("gpu_counter", "gpu", "GPU-1"), figure("rapl", "cpu", "package-0"), figure("rapl", "dram", "d")]
    modules = [figure("hwmon(power_meter)", "module", f"module-{n}", 400.0) for n in (0, 1)]
    assert metered(Reading(wall_s=1.0, energy=[*parts, *modules])).joules == 800.0
    ours = figure("gpu_counter", "module", "GPU-1", 410.0)
    assert metered(Reading(wall_s=1.0, energy=[*parts, modules[0], ours])).joules == 410.0


def test_words_count_what_is_alike_and_name_what_is_not() -> None:
    cards = [UNMETERED.model_copy(update={"device": address}) for address in CARDS]
    other = UNMETERED.model_copy(
        update={
            "device": "0000:65:00.0",
            "detail": {"unmetered": True, "vendor": "NVIDIA", "kind": "gpu", "driver": ""},
        }
    )
    refused = [
        figure("unavailable", "gpu", "GPU-2", None, reason="energy counter: NVML: Insufficient Permissions"),
        figure("unavailable", "gpu", "GPU-2", None, reason="power: NVML: Insufficient Permissions"),
    ]
    lost = figure("rapl", "cpu", "package-0", None, reason="the counter was reset")
    alone = figure("unavailable", "cpu", "", None, reason="RAPL absent")
    told = not_seen(Reading(wall_s=1.0, energy=[*cards, other, *refused, lost, alone]))
    assert told == [
        "4 AMD GPUs (amdgpu)",
        "NVIDIA GPU 0000:65:00.0 (no driver)",
        "GPU-2 (Insufficient Permissions)",
        "rapl package-0 (the counter was reset)",
    ]


def test_a_device_with_one_good_channel_is_seen() -> None:
    counter = figure("unavailable", "gpu", "GPU-1", None, reason="energy counter: Not Supported")
    assert not_seen(Reading(wall_s=1.0, energy=[counter, figure("gpu_power_integral", "gpu", "GPU-1")])) == []


def test_a_sensor_of_the_whole_machine_saw_it_all() -> None:
    assert not_seen(Reading(wall_s=1.0, energy=[UNMETERED, figure("meter(plug)", "machine", "")])) == []
