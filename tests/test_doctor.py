"""What the doctor says of machines whose sensors are known: none, RAPL, cards, another package's meter."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import in_children
from fakes.hwmon import Machine
from fakes.nvml import UUID, FakeDriver, FakeGpu
from fakes.powercap import Powercap
from fakes.replay import VirtualTime
from rich.console import Console
from test_calibrate import SECONDS, metered, timed

from energybench.cli import app, doctor
from energybench.cli.show import print_doctor, waiting
from energybench.meter import carbon, rapl
from energybench.meter.clock import REAL_TIME
from energybench.meter.rapl_remedies import Processor
from energybench.meter.reading import Energy, Reading
from energybench.meter.unavailable import Unavailable
from energybench.process import forkserver
from energybench.trial.calibrate import noise_floor

GPUS = doctor.survey.gpus  # before a test puts another in its place
MODEL = {"cpu": None, "tdp_w": 8.0, "tdp_source": "a guess", "ram_w": 20.0}
NO_GPU = Unavailable("NVML: NVML Shared Library Not Found", "absent", "install the driver")
WORKLOAD = {"model": {"use": "cnn"}, "data": "digits, shipped with a dependency"}

Driver = Callable[..., FakeDriver]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine without sensors, whatever this one has; and nothing slow."""
    monkeypatch.setattr(doctor.survey, "gpus", lambda uuids=None, time=REAL_TIME: ([], NO_GPU))
    bare_metal = Processor(kernel=(6, 1), vendor="GenuineIntel", family=6, virtual=False)
    survey = partial(rapl.survey, system=tmp_path / "no events", processor=lambda: bare_metal)
    monkeypatch.setattr(doctor.rapl, "survey", survey)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where a calibration is kept
    monkeypatch.setenv(rapl.VARIABLE, str(tmp_path / "no powercap"))
    monkeypatch.setattr(carbon, "model_parameters", lambda: MODEL)
    monkeypatch.setattr(doctor, "offered", dict)
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    return monkeypatch


def sensor(facts: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (sensor for sensor in facts["sensors"] if sensor["name"] == name)
    return found


def printed(facts: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), highlight=False)
    print_doctor(facts, console)
    return console.export_text()


def words(text: str) -> str:
    """Without line breaks, which depend on the width."""
    return " ".join(text.split())


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


# ── sensors ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_machine_without_sensors_names_each_remedy_and_why_energy_is_modelled() -> None:
    facts = doctor.examine()
    text = words(printed(facts))
    remedies = {
        "NVML": "install the driver",
        "RAPL by powercap": "sudo modprobe intel_rapl_msr",
        "RAPL by perf_events": "sudo modprobe rapl",
    }
    for name, remedy in remedies.items():
        assert not sensor(facts, name)["usable"]
        assert sensor(facts, name)["remedy"].startswith(remedy)
        assert f"{name}: not usable: {sensor(facts, name)['why']} remedy: {remedy}" in text
    assert (facts["energy"], facts["energy_by"]) == ("modelled", {})
    assert set(facts["energy_missing"]) == {"gpu", "cpu"}
    real = "Energy cannot be measured here: time and FLOPs are real, joules are modelled and never a saving"
    assert f"{real} (no GPU: NVML Shared Library Not Found; no RAPL: there is no folder" in text


def test_the_model_is_named_a_model_and_never_a_saving() -> None:
    model = sensor(doctor.examine(), "codecarbon's model")
    assert (model["usable"], model["measured"]) == (True, False)
    assert model["why"] == "8 W CPU (a guess) × load, 20 W memory: an estimate, never a saving"


def test_a_container_without_its_cards_is_told_how_to_get_them(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "module/nvidia").mkdir(parents=True)
    bare.setenv("ENERGYBENCH_SYSFS", str(tmp_path))
    bare.setattr(doctor.survey, "gpus", GPUS)
    assert "--gpus all" in sensor(doctor.examine(), "NVML")["remedy"]


def in_real_time(machine: Powercap, monkeypatch: pytest.MonkeyPatch) -> Powercap:
    """The fake tree behind $ENERGYBENCH_POWERCAP, whose counters have moved on whenever they are read."""
    machine.add("intel-rapl:0", "package-0", 100.0)
    began = time.perf_counter()

    def read_text(path: Path) -> str:
        machine.time.sleep(max(0.0, time.perf_counter() - began - machine.time.now_ns() / 1e9))
        return machine.read_text(path)

    monkeypatch.setenv(rapl.VARIABLE, str(machine.flat))
    monkeypatch.setattr(rapl, "read_text", read_text)
    return machine


def test_a_powercap_tree_is_usable_and_is_what_a_run_will_measure(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = in_real_time(Powercap(tmp_path), bare)
    machine.add("intel-rapl:0:0", "dram", 10.0)
    machine.add("intel-rapl:0:1", "core", 50.0)
    machine.add("intel-rapl:1", "psys", 200.0)
    facts = doctor.examine()
    found = sensor(facts, "RAPL by powercap")
    assert found["usable"]
    assert found["domains"] == ["package-0", "package-0/dram"]  # core lies inside, psys outside
    assert facts["energy"] == "measured"
    assert facts["energy_by"] == {"cpu": ["package-0", "package-0/dram"]}
    text = words(printed(facts))
    assert "RAPL by powercap: usable: package-0, package-0/dram" in text
    assert "Energy can be measured here. A run will measure the processor: package-0, package-0/dram" in text
    assert "(no GPU: NVML Shared Library Not Found)." in text


def test_hwmons_sensors_and_cards_that_nothing_meters_are_listed_with_what_would_help(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(tmp_path)
    machine.amdgpu("0000:03:00.0", 100.0)
    machine.amdgpu("0000:43:00.0", 100.0, file="")
    machine.pci("0000:65:00.0", 0x10DE, 0x2330, "nouveau", 0x030200)
    machine.accel(machine.pci("0000:19:00.0", 0x1DA3, 1, "habanalabs", 0x120000))
    machine.rails(VDD_IN=None)
    bare.setenv("ENERGYBENCH_SYSFS", str(machine.root))
    facts = doctor.examine()
    assert sensor(facts, "hwmon(amdgpu) 0000:03:00.0")["usable"]
    remedies = {
        "AMD GPU 0000:43:00.0 (amdgpu)": "update the kernel",
        "NVIDIA GPU 0000:65:00.0 (nouveau)": "install NVIDIA's own driver",
        "Habana accelerator 0000:19:00.0 (habanalabs)": "",
        "hwmon VDD_IN": "no command mends it",
    }
    text = words(printed(facts))
    for name, remedy in remedies.items():
        assert not sensor(facts, name)["usable"]
        assert sensor(facts, name)["remedy"].startswith(remedy)
        assert f"{name}: not usable: {sensor(facts, name)['why']}" in text
    assert sensor(facts, "Habana accelerator 0000:19:00.0 (habanalabs)")["remedy"] == ""
    assert facts["energy_by"] == {"gpu": ["hwmon(amdgpu) 0000:03:00.0"]}
    assert "A run will measure the GPU that trains: hwmon(amdgpu) 0000:03:00.0" in text


def test_a_boards_rails_are_what_a_run_will_measure(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.tegra()
    machine.rails(VDD_IN=15.0, VDD_SOC=3.0)
    bare.setenv("ENERGYBENCH_SYSFS", str(machine.root))
    facts = doctor.examine()
    assert facts["energy_by"] == {"module": ["hwmon(ina3221) VDD_IN"]}
    assert "A run will measure the module: hwmon(ina3221) VDD_IN" in words(printed(facts))


def test_a_memory_counter_that_is_not_real_is_left_out_and_told(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = in_real_time(Powercap(tmp_path), bare)
    machine.add("intel-rapl:0:0", "dram", 10.0, still=True)
    facts = doctor.examine()
    assert facts["energy_by"] == {"cpu": ["package-0"]}
    assert "left out: package-0/dram: package-0/dram is listed, but its counter stood still" in words(printed(facts))


def test_counters_for_root_alone_come_with_the_command_that_opens_them(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = in_real_time(Powercap(tmp_path), bare)
    machine.errors["intel-rapl:0"] = errno.EACCES
    found = sensor(doctor.examine(), "RAPL by powercap")
    assert (found["usable"], found["kind"]) == (False, "denied")
    assert found["remedy"].startswith("sudo chmod a+r ")


# ── cards ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def cards(bare: pytest.MonkeyPatch, fake_driver: Driver) -> Callable[..., dict[str, Any]]:
    """The doctor's facts of a machine with these cards, on their clock."""
    from energybench.meter import nvml, survey

    def examined(*gpus: FakeGpu, **options: Any) -> dict[str, Any]:
        driver = fake_driver(*gpus, **options)
        seen = [survey.facts(gpu, driver.time) for gpu in nvml.open_gpus()]
        bare.setattr(doctor.survey, "gpus", lambda uuids=None, time=REAL_TIME: (seen, None))
        return doctor.examine()

    return examined


Cards = Callable[..., dict[str, Any]]
POWERS = ("186", "185", "nvmlDeviceGetPowerUsage")


def test_a_card_says_how_often_its_counter_moves_and_what_its_power_means(cards: Cards) -> None:
    facts = cards(FakeGpu(tick_s=0.02), driver_version="550.54.15")
    card = sensor(facts, "Fake A100")
    assert card["usable"]
    assert (card["uuid"], card["driver"], card["counter"], card["warnings"]) == (UUID, "550.54.15", True, [])
    assert card["tick"]["seconds"] == pytest.approx(0.02, abs=0.001)
    assert card["tick"]["least_s"] <= card["tick"]["seconds"] <= card["tick"]["most_s"]
    text = words(printed(facts))
    assert "Fake A100: usable: energy counter, and power to check it" in text
    assert "counter: yes, moves every 20 ms (" in text
    assert "power: NVML_FI_DEV_POWER_INSTANT, scope 0: of the moment" in text
    assert "A run will measure the GPU that trains: Fake A100 (no RAPL:" in text


def test_a_card_without_a_counter_is_metered_by_its_power_and_says_so(cards: Cards) -> None:
    facts = cards(FakeGpu(errors=[("nvmlDeviceGetTotalEnergyConsumption", 3, 0)]))
    card = sensor(facts, "Fake A100")
    assert (card["usable"], card["counter"], card["tick"]) == (True, False, None)
    assert card["counter_reason"] == "NVML: Not Supported"
    assert "Volta" in card["counter_remedy"]
    text = words(printed(facts))
    assert "usable: power, integrated, for want of a counter" in text
    assert "counter: no: NVML: Not Supported remedy: no command mends it" in text


def test_a_counter_that_stands_still_is_none(cards: Cards) -> None:
    card = sensor(cards(FakeGpu(frozen=[(0,)])), "Fake A100")
    assert (card["counter"], card["tick"]) == (False, None)
    assert "stood still" in card["counter_reason"]
    assert card["counter_remedy"].startswith("update the driver")


def test_a_card_with_neither_is_not_usable(cards: Cards) -> None:
    denied = [(name, 4, 0) for name in ("nvmlDeviceGetTotalEnergyConsumption", *POWERS)]
    denied = [(int(name) if name.isdigit() else name, *rest) for name, *rest in denied]
    facts = cards(FakeGpu(errors=denied))
    card = sensor(facts, "Fake A100")
    assert (card["usable"], facts["energy"]) == (False, "modelled")
    assert card["why"] == "counter: NVML: Insufficient Permissions; power: NVML: Insufficient Permissions"
    assert card["remedy"].startswith("run as root")
    assert "counter: no: NVML: Insufficient Permissions" in words(printed(facts))


def test_slices_and_shared_contexts_are_warned_of_with_the_command_that_ends_them(cards: Cards) -> None:
    facts = cards(FakeGpu(mig=True, mps=[(4711, 0)]))
    text = words(printed(facts))
    assert len(sensor(facts, "Fake A100")["warnings"]) == 2
    assert f"the whole card, not a slice remedy: sudo nvidia-smi -i {UUID} -mig 0" in text
    assert "remedy: echo quit | nvidia-cuda-mps-control" in text


def test_a_calibration_lasts_fifty_ticks_of_the_slowest_counter(cards: Cards) -> None:
    other = FakeGpu(uuid="GPU-0", name="Slow", tick_s=0.1)
    facts = cards(FakeGpu(tick_s=0.02), other)
    assert doctor.shortest_s(facts) == pytest.approx(5, rel=0.05)
    assert doctor.expected_s(facts, 30) > 60  # five pairs and one that does not count
    assert doctor.expected_s(facts, 300) == 300


def test_a_machine_without_cards_trains_for_a_second() -> None:
    facts = doctor.examine()
    assert doctor.shortest_s(facts) == 1
    assert doctor.expected_s(facts, 30) == 30


# ── meters of other packages ──────────────────────────────────────────────────────────────────────────────────


class Wall:
    """A meter as another package writes it."""

    energy: Energy | None = Energy(source="plug", scope="machine", energy_j=12.0)

    def start(self) -> None: ...

    def stop(self) -> Reading:
        return Reading(wall_s=1.0, energy=[self.energy] if self.energy else [])


class Silent(Wall):
    energy = Energy(source="plug", scope="machine", reason="the plug does not answer")


class Modelled(Wall):
    energy = Energy(source="model(guess)", scope="machine", energy_j=12.0)


def absent() -> Wall:
    raise Unavailable("no plug is paired", "absent", "plugs pair")


def broken() -> Wall:
    raise OSError("no such port")


def offering(bare: pytest.MonkeyPatch, what: str) -> dict[str, Any]:
    point = EntryPoint("plug", f"test_doctor:{what}", "energybench.meters")
    bare.setattr(doctor, "offered", lambda: {"plug": point})
    return sensor(doctor.examine(VirtualTime()), "meter plug")


def test_a_meter_of_another_package_is_looked_through(bare: pytest.MonkeyPatch) -> None:
    found = offering(bare, "Wall")
    assert (found["usable"], found["measured"], found["scope"]) == (True, True, "machine")
    assert found["why"] == 'meter(plug) of machine; read where a suite has meters = ["plug"]'
    assert doctor.examine(VirtualTime())["energy_by"] == {"machine": ["meter plug"]}


def test_a_meter_that_only_models_measures_nothing(bare: pytest.MonkeyPatch) -> None:
    found = offering(bare, "Modelled")
    assert (found["usable"], found["measured"]) == (True, False)
    assert doctor.examine(VirtualTime())["energy"] == "modelled"


@pytest.mark.parametrize(
    ("what", "why", "remedy"),
    [
        ("absent", "no plug is paired", "plugs pair"),
        ("broken", "OSError: no such port", "see the documentation of test_doctor:broken"),
        ("Silent", "the plug does not answer", "see the documentation of test_doctor:Silent"),
    ],
)
def test_a_meter_that_does_not_answer_says_why_and_whom_to_ask(
    bare: pytest.MonkeyPatch, what: str, why: str, remedy: str
) -> None:
    found = offering(bare, what)
    assert (found["usable"], found["why"], found["remedy"]) == (False, why, remedy)


# ── calibration ───────────────────────────────────────────────────────────────────────────────────────────────


def child(bare: pytest.MonkeyPatch, found: dict[str, Any] | None, reason: str | None = None, log: str = "") -> None:
    """The launcher's child finds this, or dies for this reason after saying so much."""

    class Launcher:
        def call(self, target: str, in_path: Path, out_path: Path, **options: Any) -> forkserver.ChildOutcome:
            Launcher.spec = json.loads(in_path.read_text())
            if found is not None:
                out_path.write_text(json.dumps(found))
            if log:
                options["log"].write_text(log)
            return forkserver.ChildOutcome(1.0, reason=reason)

    bare.setattr(doctor, "Launcher", Launcher)


def measured_floor() -> dict[str, Any]:
    found = noise_floor([(metered(a), metered(b)) for a, b in SECONDS], 25.0)
    return json.loads(json.dumps({"device": "cpu", "workload": WORKLOAD} | found))


def test_a_calibration_is_told_in_percent_and_minutes(bare: pytest.MonkeyPatch) -> None:
    child(bare, measured_floor())
    done = command("--calibrate")
    assert done.exit_code == 0
    assert done.stderr == "calibrating, about 30 s\n"
    text = words(done.stdout)
    assert "A/A calibration: 5 pairs of identical trainings of 1.05 s; cnn on digits, cpu" in text
    assert "energy (rapl of cpu): noise floor " in text
    assert "1 min, 2 pairs – –" in text
    assert "10 min, 24 pairs" in text
    assert "60 min, 144 pairs" in text
    assert "–: not with fewer than 3 pairs" in text


def test_a_bias_beyond_the_margin_is_a_warning(bare: pytest.MonkeyPatch) -> None:
    slower = noise_floor(timed([(1.0, 1.05), (1.0, 1.051), (1.0, 1.052)]), 2.0)
    facts = doctor.examine() | {"calibration": {"device": "cpu", "workload": WORKLOAD} | slower}
    assert "warning: identical trainings differ" in words(printed(facts))


def test_the_same_facts_come_as_json(bare: pytest.MonkeyPatch) -> None:
    child(bare, measured_floor())
    facts = json.loads(command("--json", "--seconds", "12").stdout)
    assert facts["calibration"]["energy"]["sensors"] == ["rapl of cpu"]
    for quantity in ("time", "energy"):
        floor = facts["calibration"][quantity]
        assert floor["sd_log"] > 0
        assert [row["within_s"] for row in floor["detectable"]] == [60, 600, 3600]
    assert facts["calibration_reason"] is None
    keys = {"machine", "versions", "sensors", "scripts", "data", "disk_free_b", "energy", "energy_by", "energy_missing"}
    assert keys | {"calibration", "calibration_reason"} == set(facts)
    for found in facts["sensors"]:
        assert {"name", "scope", "measured", "usable", "why", "remedy"} <= set(found)
        assert found["usable"] or found["remedy"]


def test_without_calibration_the_floor_is_null_and_the_command_is_named() -> None:
    facts = json.loads(command("--json").stdout)
    assert facts["calibration"] is None
    assert "energybench doctor --calibrate" in facts["calibration_reason"]
    assert "energybench doctor --calibrate" in words(printed(facts))


@pytest.mark.parametrize(
    ("found", "reason", "log", "told"),
    [
        ({"reason": "Diverged: the loss is nan"}, None, "", "Diverged: the loss is nan"),
        (None, "it was killed by SIGKILL", "", "it was killed by SIGKILL"),
        (None, "it ended with status 1", "one\nbad luck\n", "it ended with status 1; its last words: bad luck"),
    ],
)
def test_a_failure_in_the_child_is_told_and_exits_3_after_all_other_facts(
    bare: pytest.MonkeyPatch, found: Any, reason: str | None, log: str, told: str
) -> None:
    child(bare, found, reason, log)
    done = command("--calibrate")
    assert done.exit_code == 3
    assert f"error[E504]: the calibration failed: {told}\n" in done.stderr
    assert f"the calibration failed: {told}" in words(done.stdout)
    assert "versions: " in done.stdout


def test_a_plug_is_calibrated_where_there_is_nothing_else(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child(bare, {"reason": "enough"})
    offering(bare, "Wall")
    doctor.calibrate(doctor.examine(VirtualTime()), 1, lambda elapsed_s: None)
    assert doctor.Launcher.spec["meters"] == ["plug"]
    in_real_time(Powercap(tmp_path), bare)
    bare.setattr(doctor, "LOOK_S", 0.0)
    doctor.calibrate(doctor.examine(), 1, lambda elapsed_s: None)
    assert doctor.Launcher.spec["meters"] == []


# ── on a terminal ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_narrow_terminal_loses_no_word_and_breaks_no_command(cards: Cards, width: int) -> None:
    facts = cards(FakeGpu(mig=True)) | {"calibration": measured_floor()}
    text = printed(facts, width)
    wide = printed(facts, 1000)
    assert words(text).replace("─", "").split() == words(wide).replace("─", "").split()
    for line in text.splitlines():
        one_word = len(line.split()) == 1  # a path, a UUID
        assert len(line.rstrip()) <= width or "remedy: " in line or one_word, line
    for found in facts["sensors"]:
        assert not found["remedy"] or f"remedy: {found['remedy']}" in text


def test_waiting_is_one_line_and_leaves_none_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(True, "xterm", 20), (True, "xterm", 80), (False, "xterm", 80), (True, "dumb", 80)]
    for terminal, kind, width in cases:
        monkeypatch.setenv("TERM", kind)
        with (tmp_path / "out").open("w+", newline="", encoding="utf-8") as file:
            console = Console(file=file, force_terminal=terminal, width=width, color_system=None)
            with waiting(console, "calibrating, about 30 s") as tick:
                tick(5.0)
            file.seek(0)
            text = file.read()
        if terminal and kind != "dumb":  # which would print the sequences
            assert "\n" not in text
            assert text.endswith("\r\x1b[2K")
            assert all(len(line) < width for line in text.split("\r\x1b[2K"))
        else:
            assert text == "calibrating, about 30 s\n"


# ── whole ─────────────────────────────────────────────────────────────────────────────────────────────────────


def begin(*arguments: str, **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "energybench", "doctor", *arguments],
        env=os.environ | extra,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def alive(marker: str) -> list[str]:
    """Processes whose environment holds this marker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            running = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
            if running and marker.encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


def soon(condition: Callable[[], Any], seconds: float = 600) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
def test_a_real_calibration_finds_a_floor(tmp_path: Path) -> None:
    done = begin("--seconds", "1", "--json", TMPDIR=str(tmp_path), OMP_NUM_THREADS="1")
    out, errors = done.communicate(timeout=300)
    assert done.returncode == 0, errors
    assert errors.startswith("calibrating, about ")
    assert errors.count("\n") == 1
    found = json.loads(out)["calibration"]
    assert found["pairs"] == doctor.FEWEST_PAIRS
    assert found["time"]["sd_log"] > 0
    assert (found["energy"] is None) == (found["energy_reason"] is not None)
    assert list(tmp_path.glob("energybench-*")) == []


@pytest.mark.slow
def test_ctrl_c_ends_a_calibration_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    running = begin("--calibrate", TMPDIR=str(tmp_path))
    assert soon(lambda: list(tmp_path.glob("energybench-*/*.pt")))  # the child trains
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert list(tmp_path.glob("energybench-*")) == []
    assert soon(lambda: not alive(str(tmp_path)), 300)


@pytest.mark.slow
def test_a_child_that_cannot_train_is_told_with_its_reason() -> None:
    done = begin("--calibrate", **in_children.environment(FAKE_BROKEN="sklearn"))
    out, errors = done.communicate(timeout=600)
    assert done.returncode == 3
    assert "error[E504]: the calibration failed: ImportError: half installed" in errors
    assert "versions: " in out


# ── what is there and cannot be used is named ─────────────────────────────────────────────────────────────


def test_a_card_that_cannot_be_opened_is_a_sensor_of_its_own_and_hides_no_other(
    fake_driver: Driver, bare: pytest.MonkeyPatch
) -> None:
    bare.setattr(doctor.survey, "gpus", GPUS)
    refused = FakeGpu(uuid="GPU-2", errors=[("nvmlDeviceGetHandleByIndex", 4)])
    driver = fake_driver(FakeGpu(name="Fake H100"), refused, call_s=2e-5)
    facts = doctor.examine(driver.time)
    assert sensor(facts, "Fake H100")["usable"]
    row = sensor(facts, "GPU 1")
    assert not row["usable"]
    assert row["why"] == "Insufficient Permissions"
    assert "control group" in row["remedy"]
    assert "GPU 1: not usable: Insufficient Permissions" in words(printed(facts))


def test_a_driver_that_does_not_fit_its_library_is_told_with_what_mends_it(
    fake_driver: Driver, bare: pytest.MonkeyPatch
) -> None:
    bare.setattr(doctor.survey, "gpus", GPUS)
    driver = fake_driver(FakeGpu(), errors=[("nvmlInitWithFlags", 18)])
    row = sensor(doctor.examine(driver.time), "NVML")
    assert "mismatch" in row["why"]
    assert row["remedy"].startswith("start the machine again")


def test_a_counter_of_a_whole_module_is_told_as_such(fake_driver: Driver, bare: pytest.MonkeyPatch) -> None:
    bare.setattr(doctor.survey, "gpus", GPUS)
    driver = fake_driver(FakeGpu(name="Fake GH200", module_w=200.0), call_s=2e-5)
    row = sensor(doctor.examine(driver.time), "Fake GH200")
    assert (row["scope"], row["usable"]) == ("module", True)
    assert "processor included" in row["why"]


def test_a_power_that_no_card_has_is_no_sensor(fake_driver: Driver, bare: pytest.MonkeyPatch) -> None:
    bare.setattr(doctor.survey, "gpus", GPUS)
    nonsense = FakeGpu(name="Stub", nonsense=[(0xFFFFFFFF,)], errors=[("nvmlDeviceGetTotalEnergyConsumption", 3)])
    driver = fake_driver(nonsense, call_s=2e-5)
    row = sensor(doctor.examine(driver.time), "Stub")
    assert not row["usable"]
    assert "more than it can draw" in row["why"]


def test_another_tracker_that_runs_is_a_warning(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(doctor, "running", lambda: frozenset({"codecarbon in this process"}))
    facts = doctor.examine()
    assert facts["machine"]["trackers"] == ["codecarbon in this process"]
    assert "warning: another tracker of energy runs now: codecarbon in this process" in words(printed(facts))


@pytest.mark.parametrize(("capability", "seen"), [(8.0, "25 ms of every 100 ms (documented)"), (0.0, "(assumed, the")])
def test_how_much_of_the_time_power_is_looked_at_is_told(
    fake_driver: Driver, bare: pytest.MonkeyPatch, capability: float, seen: str
) -> None:
    bare.setattr(doctor.survey, "gpus", GPUS)
    driver = fake_driver(FakeGpu(name="Fake A100", compute_capability=capability), call_s=2e-5)
    assert seen in words(printed(doctor.examine(driver.time)))
