"""Cards that cannot be metered, at every door: `measure`, `run`, the Python windows and `doctor` say the same.

Each machine is a fake driver behind the real binding. None of them may end a training, give a joule that is not true,
or pass over in silence what is there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import energybench as command
from fakes.clock import put_behind
from fakes.nvml import FakeDriver, FakeGpu, build
from faults import fault
from sensor_faults import SensorFault
from tiny_runs import contents, only_run

import energybench
from energybench.cli import doctor
from energybench.common.errors import CannotMeasure
from energybench.meter import pool
from energybench.meter.carbon import model_parameters
from energybench.meter.combine import metered
from energybench.meter.reading import Reading
from energybench.records.record import Trial

Plug = Callable[..., FakeDriver]
OTHER = "GPU-00000000-0000-0000-0000-000000000002"
TICK_S = 0.02
REFUSED = [("nvmlDeviceGetHandleByIndex", 4), ("nvmlDeviceGetHandleByUUID", 4)]


def ours(**more: Any) -> FakeGpu:
    return FakeGpu(**{"power": 300.0, "tick_s": TICK_S, "name": "Fake H100", "compute": [(os.getpid(),)], **more})


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has, what its environment says, and the words that every door must say.

    metered: whether there are joules of its first card
    """

    gpus: tuple[FakeGpu, ...]
    words: tuple[str, ...]
    metered: bool
    environment: dict[str, str] = field(default_factory=dict)
    driver: dict[str, Any] = field(default_factory=dict)


MACHINES = {
    "a card of another control group": Machine(
        (ours(), FakeGpu(uuid=OTHER, errors=REFUSED)), ("GPU 1", "Insufficient Permissions", "control group"), True
    ),
    "a card that fell off the bus": Machine(
        (ours(), FakeGpu(uuid=OTHER, lost=[(0.0,)])), ("GPU 1", "GPU is lost", "nvidia-smi --gpu-reset"), True
    ),
    "a driver that was updated": Machine(
        (ours(),), ("mismatch", "start the machine again"), False, driver={"errors": [("nvmlInitWithFlags", 18)]}
    ),
    "a slice of a card": Machine(
        (ours(),),
        ("a slice of a card (MIG) has no counter of its own", "use whole cards"),
        False,
        {"CUDA_VISIBLE_DEVICES": "MIG-4e817856-1fb8-192a-7ab7-0e0e4476c184"},
    ),
    "two models under number 0": Machine(
        (ours(), FakeGpu(uuid=OTHER, name="Fake T4")),
        ("does not say which of 2 different cards are meant", "CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        False,
        {"CUDA_VISIBLE_DEVICES": "0"},
    ),
}
OTHERS = "the others' figures; it is named with its reason and with what helps, at every door"
NAMED = "null, with the reason and with what helps, at every door"
HAPPENS = {
    "a card of another control group": ("one of several cards may not be opened", OTHERS),
    "a card that fell off the bus": ("one of several cards is lost before anything starts", OTHERS),
    "a driver that was updated": ("the driver and its library are of two versions", NAMED),
    "a slice of a card": ("a program sees a slice of a card (MIG)", NAMED),
    "two models under number 0": ("a number may mean either of two different cards", NAMED),
}
FAULTS = [SensorFault(name, "NVML", *HAPPENS[name]) for name in MACHINES]
each_machine = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)


def assert_said(text: str, machine: Machine) -> None:
    flat = " ".join(text.replace("\u00a0", " ").split())
    for words in machine.words:
        assert words in flat, (words, flat)


def assert_true(reading: Reading | None, machine: Machine) -> None:
    """300 W of the card that is metered, or no joule of any card."""
    assert reading is not None
    total = metered(reading)
    assert bool(total.sensors) == machine.metered
    if machine.metered:
        assert {(source, scope) for source, scope in total.sensors} == {("gpu_counter", "gpu")}
        assert total.error_j is not None
        assert abs(total.joules - 300.0 * reading.wall_s) <= total.error_j + 300.0 * 0.01
    missing = [f"{energy.device}: {energy.reason}" for energy in reading.energy if energy.energy_j is None]
    assert_said("\n".join(missing), machine)


@pytest.fixture
def plugged(fake_driver: Plug, monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], FakeDriver]:
    def plug(machine: Machine) -> FakeDriver:
        driver = fake_driver(*machine.gpus, start_s=1.0, call_s=2e-5, **machine.driver)
        for name, value in machine.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(pool, "_idle", {})
        return driver

    return plug


@each_machine
def test_a_window_in_a_script_names_it(
    machine: Machine, plugged: Callable[[Machine], FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = put_behind(monkeypatch, plugged(machine).time)
    with energybench.measure("train", quiet=True) as window:
        clock.sleep(5.0)
    assert_true(window.reading, machine)


@each_machine
def test_doctor_names_it_with_what_helps(machine: Machine, plugged: Callable[[Machine], FakeDriver]) -> None:
    facts = doctor.examine(plugged(machine).time)
    rows = [f"{s['name']}: {s['why']}: {s['remedy']}" for s in facts["sensors"] if not s["usable"]]
    assert_said("\n".join(rows), machine)


@pytest.mark.slow
@each_machine
def test_measure_names_it_in_its_line_and_its_record(machine: Machine, fake_nvml_library: Path, tmp_path: Path) -> None:
    driver = FakeDriver(fake_nvml_library, nobody_on(machine.gpus), **machine.driver)
    extra = {**driver.environment(tmp_path), **machine.environment}
    done = command("measure", "-o", "record.json", "--", "sleep", "0.3", cwd=tmp_path, **extra)
    assert done.returncode == 0, done.stderr
    assert_said(done.stderr, machine)
    content = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    content.pop("seal", None)
    assert_true(Trial.model_validate(content).train, machine)


def nobody_on(gpus: Sequence[FakeGpu]) -> list[FakeGpu]:
    """As another process finds them."""
    return [replace(gpu, compute=()) for gpu in gpus]


SUITE = """\
schema = 1
suite = "tiny"
[trials]
blocks = 1
twin = false
warmup = "0 s"
cooldown = { longest = "0 s" }
[measure]
energy = "ENERGY"
[[workload]]
name = "w"
command = "sleep 0.3"
quality = "none"
"""


@fault("card refused")
@pytest.mark.slow
@each_machine
def test_a_run_of_commands_names_it_in_its_records_and_on_its_first_screen(
    machine: Machine, fake_nvml_library: Path, tmp_path: Path
) -> None:
    (tmp_path / "doors.toml").write_text(SUITE.replace("ENERGY", "if available"))
    driver = FakeDriver(fake_nvml_library, nobody_on(machine.gpus), **machine.driver)
    extra = {**driver.environment(tmp_path), **machine.environment}
    done = command("run", "doors.toml", cwd=tmp_path, **extra)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    for trial in contents(folder)[1].values():
        assert_true(trial.train, machine)
    assert_said(done.stdout, Machine(machine.gpus, machine.words[:2], machine.metered))
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert_said(page.replace("\\", ""), Machine(machine.gpus, machine.words[:2], machine.metered))


# ── what is required is of what trains ────────────────────────────────────────────────────────────────────


@fault("required")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["a driver that was updated", "a slice of a card", "two models under number 0"])
def test_energy_that_is_required_ends_a_run_before_it_begins(
    name: str, fake_nvml_library: Path, tmp_path: Path
) -> None:
    machine = MACHINES[name]
    (tmp_path / "doors.toml").write_text(SUITE.replace("ENERGY", "require"))
    driver = FakeDriver(fake_nvml_library, nobody_on(machine.gpus), **machine.driver)
    done = command("run", "doors.toml", cwd=tmp_path, **driver.environment(tmp_path), **machine.environment)
    assert done.returncode == 5
    assert "E501" in done.stderr
    assert_said(done.stderr, machine)


SILENT = [("nvmlDeviceGetTotalEnergyConsumption", 3), ("186", 3), ("185", 3), ("nvmlDeviceGetPowerUsage", 3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "gpus", [(ours(errors=SILENT),), (ours(), FakeGpu(uuid=OTHER, errors=SILENT))], ids=["one", "one of two"]
)
def test_a_card_that_answers_nothing_does_not_satisfy_what_is_required(
    gpus: tuple[FakeGpu, ...], fake_nvml_library: Path, tmp_path: Path
) -> None:
    (tmp_path / "doors.toml").write_text(SUITE.replace("ENERGY", "require"))
    extra = FakeDriver(fake_nvml_library, nobody_on(gpus)).environment(tmp_path)
    done = command("run", "doors.toml", cwd=tmp_path, **extra)
    assert done.returncode == 5, done.stdout
    assert "Not Supported" in done.stderr


def test_a_window_that_requires_energy_does_not_open_on_a_silent_card(
    plugged: Callable[[Machine], FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_behind(monkeypatch, plugged(Machine((ours(errors=SILENT),), (), False)).time)
    with pytest.raises(CannotMeasure, match="Not Supported"), energybench.measure("t", quiet=True, energy="require"):
        pass


# ── an old driver ─────────────────────────────────────────────────────────────────────────────────────────


@fault("old driver")
@pytest.mark.slow
def test_a_driver_without_the_newest_process_query_ends_no_training(tmp_path: Path) -> None:
    library = build(tmp_path, without_v3=True)
    extra = FakeDriver(library, [FakeGpu(power=300.0, tick_s=TICK_S)]).environment(tmp_path)
    done = command("measure", "--json", "--", "sleep", "0.3", cwd=tmp_path, **extra)
    assert done.returncode == 0, done.stderr
    assert_true(Trial.model_validate_json(done.stdout).train, Machine((), (), True))


# ── the same flags ────────────────────────────────────────────────────────────────────────────────────────

DOUBTFUL = {
    "sliced": (ours(mig=True), "mig"),
    "sliced, or not: it does not tell": (ours(errors=[("nvmlDeviceGetMigMode", 4)]), "mig"),
    "shared": (ours(mps=[(4711,)]), "mps"),
    "somebody else on it": (ours(compute=[(os.getpid(),), (4711, 2.0)]), "foreign_process"),
    "held back": (ours(throttled=[(74, 1.0, 0.0)]), "throttled"),
    "a jump": (ours(jump=[(1e6, 4.0)]), "implausible"),
}


@pytest.mark.parametrize(("gpu", "code"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_window_in_a_script_raises_the_flags_of_a_run(
    gpu: FakeGpu,
    code: str,
    plugged: Callable[[Machine], FakeDriver],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = put_behind(monkeypatch, plugged(Machine((gpu,), (), True)).time)
    with energybench.measure("train") as window:
        clock.sleep(6.0)
    assert code in [flag.code for flag in window.line.flags]
    sentence = next(flag.detail for flag in window.line.flags if flag.code == code)
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sliced", "shared", "a jump"])
def test_measure_raises_the_flags_of_a_run_in_its_line_and_its_record(
    name: str, fake_nvml_library: Path, tmp_path: Path
) -> None:
    gpu, code = DOUBTFUL[name]
    extra = FakeDriver(fake_nvml_library, [FakeGpu(**{**_fields(gpu), "jump": _early(gpu)})]).environment(tmp_path)
    done = command("measure", "--json", "-o", "record.json", "--", "sleep", "3", cwd=tmp_path, **extra)
    assert done.returncode == 0, done.stderr
    trial = Trial.model_validate_json(done.stdout)
    assert code in [flag.code for flag in trial.flags]
    told = command("show", "record.json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr


def _fields(gpu: FakeGpu) -> dict[str, Any]:
    return {name: getattr(gpu, name) for name in ("power", "tick_s", "name", "mig", "mps", "errors")}


def _early(gpu: FakeGpu) -> list[tuple[float, ...]]:
    """A jump every tenth of a second: one falls into the window, however slow a machine is."""
    return [(1e6, number / 10) for number in range(100)] if gpu.jump else []


def test_nothing_is_modelled_beside_a_card_that_answers() -> None:
    assert model_parameters()["tdp_w"] > 0  # it is what a machine without a sensor gets, and only that


# ── two cards ─────────────────────────────────────────────────────────────────────────────────────────────

TWO = (ours(), ours(uuid=OTHER, power=100.0))


def test_of_two_cards_a_windows_line_names_each_and_gives_their_sum(
    plugged: Callable[[Machine], FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = put_behind(monkeypatch, plugged(Machine(TWO, (), True)).time)
    with energybench.measure("train", quiet=True) as window:
        clock.sleep(10.0)
    line = str(window)
    assert re.search(r"4 kJ gpu_counter ±[0-9.]+ m?J \(gpu 4 kJ = GPU-4e817856 3 kJ \+ GPU-00000000 1 kJ\)", line), line


@pytest.mark.slow
def test_of_two_cards_measures_line_names_each_and_gives_their_sum(fake_nvml_library: Path, tmp_path: Path) -> None:
    extra = FakeDriver(fake_nvml_library, nobody_on(TWO)).environment(tmp_path)
    done = command("measure", "--json", "-o", "r.json", "--", "sleep", "0.3", cwd=tmp_path, **extra)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("energybench: "))
    found = re.search(
        r"([0-9.]+) J ± .*? gpu measured by .*? \(GPU-4e817856 ([0-9.]+) J, GPU-00000000 ([0-9.]+) J\)", line
    )
    assert found is not None, line
    whole, first, second = map(float, found.groups())
    assert whole == pytest.approx(first + second, abs=1.0)
    assert first == pytest.approx(3 * second, rel=0.1)
