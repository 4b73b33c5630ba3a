"""Whole runs on machines with sensors: a fake card under the real binding, a fake processor, on the real clock.

The truth is known, so the first screen can be held to it: measured by what, or modelled, or missing and why.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import UUID, FakeDriver, FakeGpu
from fakes.powercap import RealTimePowercap
from tiny_runs import contents, energybench, only_run, suite_text, wait_for
from tiny_runs import start as started

from energybench.meter.trace import integrate, read
from energybench.record import Reading, Trial

pytestmark = pytest.mark.slow

TICK_S = 0.01
WORKLOAD = """[[workload]]
name = "w"
model = { use = "cnn", channels = [8, 8] }
data = { use = "digits", batch = 16, subset = 512, test_subset = 32 }
train = { epochs = 48, lr = 0.1 }
"""
SKIPPER = '\n[[method]]\nuse = "dropout"\np = 0.1\n'
OTHER = "GPU-00000000-0000-0000-0000-000000000002"


def suite(folder: Path, measure: str, methods: str = "", **trials: Any) -> Path:
    text = suite_text(methods, workload=WORKLOAD, **{"twin": False, **trials})
    path = folder / "metered.toml"
    path.write_text(text.replace('energy = "off"', measure), encoding="utf-8")
    return path


def joules(reading: Reading | None, source: str, device: str = UUID) -> float | None:
    assert reading is not None
    return next((e.energy_j for e in reading.energy if (e.source, e.device) == (source, device)), None)


def run(library: Path, folder: Path, *gpus: FakeGpu, measure: str = 'gpus = "all"', methods: str = "",
        expect: int = 0, **trials: Any) -> tuple[str, Path, dict[str, Trial]]:  # fmt: skip
    """(the terminal's report, the run's folder, its trials)."""
    environment = FakeDriver(library, gpus).environment(folder) if gpus else {}
    path = suite(folder, measure, methods, **trials)
    done = energybench("run", path, cwd=folder, **environment, ENERGYBENCH_POWERCAP=str(folder / "no-rapl"))
    assert done.returncode == expect, done.stderr
    place = only_run(folder)
    return done.stdout, place, contents(place)[1]


def test_a_card_of_300_watts_is_billed_300_joules_a_second_and_the_first_screen_says_measured(
    fake_nvml_library: Path, tmp_path: Path
) -> None:
    gpus = (
        FakeGpu(name="Fake H100", power=300.0, tick_s=TICK_S),
        FakeGpu(uuid=OTHER, power=100.0, tick_s=TICK_S),
    )
    screen, folder, trials = run(fake_nvml_library, tmp_path, *gpus, methods=SKIPPER)
    assert "Energy is measured: gpu by the card's energy counter. Not seen: cpu (RAPL absent)." in " ".join(
        screen.split()
    )
    assert "modelled" not in screen
    page = (folder / "report.md").read_text()
    assert "Energy is measured" in page[:800]
    for trial in trials.values():
        window = trial.train
        assert window is not None
        for uuid, power in ((UUID, 300.0), (OTHER, 100.0)):
            assert joules(window, "gpu_counter", uuid) == pytest.approx(power * window.wall_s, rel=0.01)
            idle = trial.phases["idle_before"]
            assert joules(idle, "gpu_counter", uuid) == pytest.approx(power * idle.wall_s, rel=0.02)
        assert "idle_after" in trial.phases
        assert window.cards[UUID].foreign_pids == []
        assert trial.environment["gpus"][UUID]["name"] == "Fake H100"
        assert trial.trace is not None
        assert_trace_gives_the_integral(folder / trial.trace, window)


def assert_trace_gives_the_integral(path: Path, window: Reading) -> None:
    """What lies beside the record gives the truth, and the record's figure where the window was long enough for one."""
    samples = [s for s in read(path) if s.device == UUID]
    assert {(s.temperature_c, s.sm_clock_mhz) for s in samples} == {(40.0, 1410.0), (None, None)}
    times, powers = [s.time_ns / 1e9 for s in samples], [s.power_w or 0.0 for s in samples]
    again, _ = integrate(times, powers, 0.0, window.wall_s)
    assert again == pytest.approx(300 * window.wall_s, rel=0.01)
    told = joules(window, "gpu_power_integral")
    assert told is None or told == pytest.approx(again, rel=0.01)


def test_a_verdict_on_energy_needs_measured_energy_on_both_sides_and_has_it(
    fake_nvml_library: Path, tmp_path: Path
) -> None:
    screen, _, _ = run(fake_nvml_library, tmp_path, FakeGpu(tick_s=TICK_S), methods=SKIPPER)
    assert "measured energy" in screen


def test_a_machine_without_sensors_says_modelled_and_why(fake_nvml_library: Path, tmp_path: Path) -> None:
    screen, _, trials = run(fake_nvml_library, tmp_path, measure='energy = "if available"')
    flat = " ".join(screen.split())
    assert "Energy is modelled, not measured: this machine has no energy sensor that could be read." in flat
    assert "cpu (RAPL absent)" in flat
    for trial in trials.values():
        assert trial.train is not None
        assert not any(energy.measured for energy in trial.train.energy)
        assert trial.trace is None


def test_what_the_suite_requires_and_the_machine_lacks_is_exit_5(
    fake_nvml_library: Path, tmp_path: Path
) -> None:
    path = suite(tmp_path, 'energy = "require"')
    done = energybench("run", path, cwd=tmp_path, ENERGYBENCH_POWERCAP=str(tmp_path / "nothing"))
    assert done.returncode == 5
    assert "E501" in done.stderr
    assert "RAPL" in done.stderr
    assert not (tmp_path / "reports").exists()


def test_a_country_that_nobody_knows_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    done = energybench("run", suite(tmp_path, 'carbon = { country = "ATL" }'), cwd=tmp_path)
    assert done.returncode == 2
    assert "E502" in done.stderr
    assert not (tmp_path / "reports").exists()


def test_a_meter_that_nobody_offers_is_an_error_with_its_line(tmp_path: Path) -> None:
    done = energybench("check", suite(tmp_path, 'meters = ["plug"]'), cwd=tmp_path)
    assert done.returncode == 2
    assert "E503" in done.stderr
    assert "metered.toml:" in done.stderr


@pytest.mark.parametrize(
    ("what", "reason"), [("pulled", "GPU is lost"), ("reset", "the counter was reset")]
)  # fmt: skip
def test_a_card_pulled_or_reset_in_mid_trial_makes_the_trial_invalid_and_gives_no_number(
    fake_nvml_library: Path, tmp_path: Path, what: str, reason: str
) -> None:
    """The card fails while a method that waits for it trains."""
    (tmp_path / "waiter.py").write_text(
        '"""waiter: trains, once, until the file `gone` is there"""\n'
        "import time\nfrom pathlib import Path\nfrom energybench import Method\n"
        "from energybench.loop import Run\n\n\n"
        "class Waiter(Method):\n"
        "    def epoch(self, run, data, inner):\n"
        "        inner(data)\n"
        "        here = Path(__file__).parent\n"
        "        metered = type(run) is Run and all(m.name != 'witness' for m in run.methods)\n"
        "        if run.epoch_number == run.epochs and metered:\n"
        "            (here / 'training').touch()\n"
        "            while not (here / 'gone').exists(): time.sleep(0.01)\n"
        "            time.sleep(0.5)\n"
    )
    gpu = FakeGpu(tick_s=TICK_S)
    environment = FakeDriver(fake_nvml_library, [gpu]).environment(tmp_path)
    script = Path(environment["FAKE_NVML_SCRIPT"])
    path = suite(tmp_path, 'gpus = "all"', '\n[[method]]\nuse = "waiter.py"\n')
    # The trajectory is fixed when a trial begins, so the failure is set for a time at which the method still waits.
    origin_s = float(script.read_text().split("clock real ")[1].split()[0])
    running = started(
        "run", path, cwd=tmp_path, **environment, ENERGYBENCH_POWERCAP=str(tmp_path / "nothing")
    )
    at_s = 40.0
    line = f"lost {at_s}\n" if what == "pulled" else f"reset {at_s}\n"
    script.write_text(script.read_text() + line)
    wait_for(lambda: (tmp_path / "training").exists())
    began_s = time.clock_gettime(time.CLOCK_MONOTONIC) - origin_s
    assert began_s < at_s, "the trial began too late for this test to mean anything"
    time.sleep(at_s - began_s + 1.0)
    (tmp_path / "gone").touch()
    screen, errors = running.communicate(timeout=120)
    assert running.returncode == 3, errors
    trials = contents(only_run(tmp_path))[1]
    (trial,) = [t for t in trials.values() if t.method == "waiter"]
    assert trial.status == "invalid"
    assert reason in (trial.reason or "")
    assert joules(trial.train, "gpu_counter") is None
    assert "sensor lost" in " ".join(screen.split())


def test_a_processor_with_rapl_is_billed_its_packages_and_memory_once(tmp_path: Path) -> None:
    machine = RealTimePowercap(tmp_path / "sys")
    machine.add("intel-rapl:0", "package-0", 60.0)
    machine.add("intel-rapl:0:0", "core", 40.0)
    machine.add("intel-rapl:0:1", "dram", 5.0)
    machine.add("intel-rapl:1", "psys", 90.0)
    machine.add("intel-rapl-mmio:0", "package-0", 60.0)
    with machine:
        path = suite(tmp_path, 'energy = "require"', SKIPPER)
        done = energybench("run", path, cwd=tmp_path, ENERGYBENCH_POWERCAP=str(machine.flat))
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "Energy is measured: cpu by RAPL, dram by RAPL." in told
    assert "measured energy" in told
    for trial in contents(only_run(tmp_path))[1].values():
        window = trial.train
        assert window is not None
        measured = {e.device: e.energy_j for e in window.energy if e.measured}
        assert measured == {
            "package-0": pytest.approx(60 * window.wall_s, rel=0.05),
            "package-0/dram": pytest.approx(5 * window.wall_s, rel=0.05),
        }
