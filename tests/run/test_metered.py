"""Whole runs on machines with sensors: a fake card under the real binding, a fake processor.

The truth is known, so the first screen can be held to it: measured by what, or modelled, or missing and why. Cards go
by a virtual clock that every process of a run believes (fakes/in_children.py): a forward pass takes a tenth of a second
of it, and no time. The processor goes by the real clock, and what a slow machine does to a reading stands in its error.
The first run is of a fresh interpreter; the others are forks (preloaded.py), held to the same truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import energybench
from fakes import in_children
from fakes.billed import assert_billed, figure
from fakes.nvml import UUID, FakeDriver, FakeGpu
from fakes.powercap import Powercap
from faults import fault
from tiny_runs import contents, only_run, suite_text

from energybench.meter.reading import Reading
from energybench.meter.trace import integrate, read
from energybench.records.record import Trial

pytestmark = pytest.mark.slow

TICK_S, FORWARD_S = 0.01, 0.1
WORKLOAD = """[[workload]]
name = "w"
task = "timed.py:Timed"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 256, test_subset = 32 }
train = { epochs = 2, lr = 0.1 }
"""
TRAINED_S = 2 * 16 * FORWARD_S
TIMED = f"""
import time
from energybench.workloads.tasks.classification import Classification


class Timed(Classification):
    def forward(self, run, batch):
        time.sleep({FORWARD_S})
        return super().forward(run, batch)
"""
SKIPPER = '\n[[method]]\nuse = "dropout"\np = 0.1\n'
OTHER = "GPU-00000000-0000-0000-0000-000000000002"


def suite(folder: Path, measure: str, methods: str = "", **trials: Any) -> Path:
    text = suite_text(methods, workload=WORKLOAD, **{"twin": False, **trials})
    (folder / "timed.py").write_text(TIMED)
    path = folder / "metered.toml"
    path.write_text(text.replace('energy = "off"', measure), encoding="utf-8")
    return path


def run(
    library: Path,
    folder: Path,
    *gpus: FakeGpu,
    measure: str = 'gpus = "all"',
    methods: str = "",
    expect: int = 0,
    fresh: bool = False,
    **trials: Any,
) -> tuple[str, Path, dict[str, Trial]]:
    """On the virtual clock: (the terminal's report, the run's folder, its trials). fresh: as `energybench` has it"""
    cards = FakeDriver(library, gpus).environment(folder, clock="virtual") if gpus else {}
    path = suite(folder, measure, methods, **trials)
    done = energybench(
        "run",
        path,
        cwd=folder,
        fresh=fresh,
        **in_children.environment(clock="virtual", **cards),
        ENERGYBENCH_POWERCAP=str(folder / "no-rapl"),
    )
    assert done.returncode == expect, done.stderr
    place = only_run(folder)
    return done.stdout, place, contents(place)[1]


def test_a_card_of_300_watts_is_billed_300_joules_a_second_and_the_first_screen_says_measured(
    fake_nvml_library: Path, tmp_path: Path
) -> None:
    gpus = (FakeGpu(name="Fake H100", power=300.0, tick_s=TICK_S), FakeGpu(uuid=OTHER, power=100.0, tick_s=TICK_S))
    screen, folder, trials = run(fake_nvml_library, tmp_path, *gpus, methods=SKIPPER, fresh=True)
    cards = "Energy is measured: gpu by the card's energy counter (GPU-00000000 + GPU-4e817856)."
    assert f"{cards} Not seen: cpu (RAPL absent)." in " ".join(screen.split())
    assert "modelled" not in screen
    page = (folder / "report.md").read_text()
    assert "Energy is measured" in page[:800]
    for trial in trials.values():
        window = trial.train
        assert window is not None
        assert window.wall_s == pytest.approx(TRAINED_S, rel=0.01)  # looks at the clock take the rest
        for uuid, power in ((UUID, 300.0), (OTHER, 100.0)):
            for reading in (window, trial.phases["idle_before"], trial.phases["idle_after"]):
                joules = assert_billed(reading, power, "gpu_counter", uuid)
                assert joules == pytest.approx(power * reading.wall_s, rel=0.01)
                assert 0 < (figure(reading, "gpu_counter", uuid).error_j or 0.0) < 0.01 * joules
        assert window.cards[UUID].foreign_pids == []
        assert trial.environment["gpus"][UUID]["name"] == "Fake H100"
        assert trial.trace is not None
        assert_trace_gives_the_integral(folder / trial.trace, window)


def assert_trace_gives_the_integral(path: Path, window: Reading) -> None:
    """What lies beside the record gives the truth, and the record's own figure."""
    samples = [s for s in read(path) if s.device == UUID]
    assert {(s.temperature_c, s.sm_clock_mhz) for s in samples} == {(40.0, 1410.0), (None, None)}
    times, powers = [s.time_ns / 1e9 for s in samples], [s.power_w or 0.0 for s in samples]
    again, _ = integrate(times, powers, 0.0, window.wall_s)
    assert again == pytest.approx(300 * window.wall_s, rel=0.01)
    assert figure(window, "gpu_power_integral", UUID).energy_j == pytest.approx(again, rel=0.01)


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


def test_what_the_suite_requires_and_the_machine_lacks_is_exit_5(fake_nvml_library: Path, tmp_path: Path) -> None:
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


HIT = {
    "pulled": ({"lost": [(40.0,)]}, "GPU is lost"),
    "reset": ({"reset": [40.0]}, "the counter was reset"),
    "jumps": ({"jump": [(1e6, 40.0)]}, "more than it can draw"),
    "answers nonsense": ({"nonsense": [(0xFFFFFFFF, 40.0, 41.0)]}, "more than it can draw"),
}


@fault("sensor jumps")
@fault("sensor lost")
@pytest.mark.parametrize(("hit", "reason"), HIT.values(), ids=HIT)
def test_a_card_pulled_or_reset_in_mid_trial_makes_the_trial_invalid_and_gives_no_number(
    fake_nvml_library: Path, tmp_path: Path, hit: dict[str, Any], reason: str
) -> None:
    """The card fails 40 s after its trial has begun: only the method that then still trains is hit."""
    (tmp_path / "lasting.py").write_text(
        '"""lasting: trains for a minute more"""\n'
        "import time\nfrom energybench import Method\n\n\n"
        "class Lasting(Method):\n"
        "    def epoch(self, run, data, inner):\n"
        "        inner(data)\n"
        "        time.sleep(60 if run.epoch_number == run.epochs else 0)\n"
    )
    gpu = FakeGpu(tick_s=TICK_S, **hit)
    screen, _, trials = run(fake_nvml_library, tmp_path, gpu, methods='\n[[method]]\nuse = "lasting.py"\n', expect=3)
    (trial,) = [t for t in trials.values() if t.method == "lasting"]
    assert trial.status == "invalid"
    assert reason in (trial.reason or "")
    assert trial.train is not None
    assert any(energy.lost and reason in (energy.reason or "") for energy in trial.train.energy)
    assert "sensor lost" in " ".join(screen.split())
    for trial in trials.values():
        if trial.role == "baseline":
            assert trial.status == "ok"
            assert_billed(trial.train, 100.0, "gpu_counter", UUID)


@fault("suspended")
def test_a_machine_that_sleeps_in_a_trial_is_seen_and_its_counters_have_no_figure(
    fake_nvml_library: Path, tmp_path: Path
) -> None:
    (tmp_path / "sleepy.py").write_text(
        '"""sleepy: the machine sleeps for an hour at its end"""\n'
        "import sys\nfrom energybench import Method\n\n\n"
        "class Sleepy(Method):\n"
        "    def epoch(self, run, data, inner):\n"
        "        inner(data)\n"
        "        if run.epoch_number == run.epochs:\n"
        "            sys.modules['fakes.in_children'].CLOCK.suspend(3600)\n"
    )
    gpu = FakeGpu(tick_s=TICK_S, power=300.0)
    screen, _, trials = run(fake_nvml_library, tmp_path, gpu, methods='\n[[method]]\nuse = "sleepy.py"\n', expect=3)
    (trial,) = [t for t in trials.values() if t.method == "sleepy"]
    assert trial.train is not None
    assert trial.train.suspended_s == pytest.approx(3600)
    assert trial.train.wall_s < 3600  # the monotonic clock stood still
    counter = figure(trial.train, "gpu_counter", UUID)
    assert (counter.energy_j, trial.status) == (None, "invalid")
    assert "suspended for 3.6e+03 s" in (counter.reason or "")
    assert "suspended" in " ".join(screen.split())
    for trial in trials.values():
        if trial.role == "baseline":
            assert_billed(trial.train, 300.0, "gpu_counter", UUID)


@fault("channels contradict")
def test_a_run_of_which_no_trial_can_be_used_does_not_end_as_if_all_were_well(
    fake_nvml_library: Path, tmp_path: Path
) -> None:
    """The counter says half as much again as the power: each trial is finished, and none of them may be compared."""
    gpu = FakeGpu(tick_s=TICK_S, power=300.0, counter_gain=1.5)
    screen, _, trials = run(fake_nvml_library, tmp_path, gpu, methods=SKIPPER, expect=3)
    assert {trial.status for trial in trials.values()} == {"ok"}
    assert "one of them is wrong" in " ".join(screen.split())


def test_a_processor_with_rapl_is_billed_its_packages_and_memory_once(tmp_path: Path) -> None:
    machine = Powercap(tmp_path / "sys")
    machine.add("intel-rapl:0", "package-0", 60.0)
    machine.add("intel-rapl:0:0", "core", 40.0)
    machine.add("intel-rapl:0:1", "dram", 5.0)
    machine.add("intel-rapl:1", "psys", 90.0)
    machine.add("intel-rapl-mmio:0", "package-0", 60.0)
    path = suite(tmp_path, 'energy = "require"', SKIPPER)
    path.write_text(path.read_text().replace('task = "timed.py:Timed"\n', ""))
    done = energybench("run", path, cwd=tmp_path, **in_children.environment(powercap=machine))
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "Energy is measured: cpu by RAPL, dram by RAPL." in told
    for trial in contents(only_run(tmp_path))[1].values():
        window = trial.train
        assert window is not None
        measured = {e.device for e in window.energy if e.measured}
        assert measured == {"package-0", "package-0/dram"}
        assert_billed(window, 60.0, "rapl", "package-0")
        assert_billed(window, 5.0, "rapl", "package-0/dram")
