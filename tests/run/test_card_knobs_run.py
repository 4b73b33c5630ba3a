"""Whole runs with a method that sets a card, on a fake driver whose limits bind: what it costs, and how it ends.

The card draws P at its full clock f, all of it dynamic. A limit L leaves the clock f (L/P)^(1/3), so that work of a
second takes (P/L)^(1/3) s and L (P/L)^(1/3) J: an eighth of the power is twice the time and a quarter of the energy.
A clock c leaves P (c/f)^3, so that the work takes f/c s and P (c/f)^2 J: half the clock costs the same.
What trains is a processor, beside a card that [measure] names; so the method says nothing against a processor.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from command_line import energybench, start
from fakes import in_children
from fakes.billed import figure
from fakes.nvml import UUID, FakeDriver, FakeGpu, sets_of
from faults import fault
from tiny_runs import contents, only_run, suite_text, wait_for

from energybench.records.record import Trial
from energybench.verdict.devices import facts
from energybench.verdict.flags import check_pair, check_trial

pytestmark = pytest.mark.slow

FULL_W, FULL_MHZ, FORWARD_S = 320.0, 1410.0, 0.1
STATED_W = 400.0  # the limit that the card has, above all that it draws
WORKLOAD = """[[workload]]
name = "w"
task = "paced.py:Paced"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 256, test_subset = 32 }
train = { epochs = 2, lr = 0.1 }
"""
# The work of a step is so many cycles of the card's clock, whatever that is now.
PACED = f"""
import pathlib, time
import pynvml
from energybench.workloads.tasks.classification import Classification


class Paced(Classification):
    def forward(self, run, batch):
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        mhz = [pynvml.nvmlDeviceGetFieldValues(card, [74]), pynvml.nvmlDeviceGetClockInfo(card, 1)][-1]
        time.sleep({FORWARD_S} * {FULL_MHZ} / mhz)
        return super().forward(run, batch)
"""
KNOB = '''"""knob: sets the card"""
import os, pathlib, time
from dataclasses import dataclass
import pynvml
from energybench import Method


def limit_w():
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByIndex(0)) / 1e3


@dataclass
class Knob(Method):
    """watts: of the power limit

    mhz: of the clock
    ends: how its second epoch ends in a trial, in which alone the card is set
    """

    watts: float = 0.0
    mhz: float = 0.0
    ends: str = ""

    def card_settings(self):
        return {"power_limit_w": self.watts} if self.watts else {"clock_limit_hz": self.mhz * 1e6}

    def epoch(self, run, data, inner):
        if self.ends and run.epoch_number == 2 and limit_w() == self.watts:
            pathlib.Path("in-its-trial").touch()
            if self.ends == "killed":
                os.kill(os.getpid(), 9)
            if self.ends == "raises":
                raise ValueError("it broke")
            while not pathlib.Path("never").exists():
                time.sleep(0.05)
        inner(data)
'''
EIGHTH = '\n[[method]]\nuse = "knob.py"\nwatts = 40.0\n'
HALF = '\n[[method]]\nuse = "knob.py"\nmhz = 705.0\n'


def written(
    folder: Path, methods: str, library: Path, *, virtual: bool = True, **gpu: object
) -> tuple[Path, dict[str, str]]:
    """(a suite, the environment of a machine whose card has a limit of STATED_W)."""
    (folder / "paced.py").write_text(PACED)
    (folder / "knob.py").write_text(KNOB)
    path = folder / "s.toml"
    text = suite_text(methods, workload=WORKLOAD, twin=False, turns="auto")
    path.write_text(text.replace('energy = "off"', f"gpus = {json.dumps([UUID])}"), encoding="utf-8")
    card = FakeGpu(power=FULL_W, power_limit_w=STATED_W, sm_clock_mhz=FULL_MHZ, tick_s=0.01, **gpu)  # type: ignore[arg-type]
    clock = "virtual" if virtual else None
    environment = FakeDriver(library, [card]).environment(folder, clock=clock)
    nothing = {"ENERGYBENCH_POWERCAP": str(folder / "no-rapl")}
    return path, in_children.environment(clock="virtual" if virtual else "real", **environment) | nothing


def trials_of(folder: Path) -> dict[str, Trial]:
    return {trial.method.partition(" ")[0]: trial for trial in contents(only_run(folder))[1].values()}


@pytest.mark.parametrize(
    ("methods", "times", "energy"), [(EIGHTH, 2.0, 0.25), (HALF, 2.0, 0.25)], ids=["power", "clock"]
)
def test_the_same_work_at_other_watts_is_where_energy_and_time_part(
    fake_nvml_library: Path, tmp_path: Path, methods: str, times: float, energy: float
) -> None:
    path, environment = written(tmp_path, methods, fake_nvml_library)
    done = energybench("run", path, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = trials_of(tmp_path)
    plain, limited = trials["baseline"], trials["knob"]
    assert (plain.status, limited.status) == ("ok", "ok"), limited.reason
    assert plain.train is not None
    assert limited.train is not None
    assert limited.weights_sha256 == plain.weights_sha256
    assert limited.train.wall_s / plain.train.wall_s == pytest.approx(times, rel=0.01)
    joules = [figure(trial.train, "gpu_counter", UUID).energy_j or 0.0 for trial in (plain, limited)]
    assert joules[0] == pytest.approx(FULL_W * plain.train.wall_s, rel=0.01)
    assert joules[1] / joules[0] == pytest.approx(energy, rel=0.01)
    assert not check_pair(limited, plain)
    assert not {flag.code for flag in check_trial(limited)} & {"throttled", "unlike"}
    run = contents(only_run(tmp_path))[0]
    assert dict(facts(run, limited)) == dict(facts(run, plain))
    for trial in trials.values():
        assert trial.turns is not None
        assert "sets the card's" in (trial.turns.reason or "")
    limit_w, clock_mhz, times_set = sets_of(tmp_path)
    assert limit_w in (0, STATED_W)  # 0: as it was, for nothing set it
    assert clock_mhz == 0
    assert times_set >= 2


@fault("kill while set")
@pytest.mark.parametrize("ends", ["killed", "raises"])
def test_a_trial_that_is_killed_by_force_or_fails_leaves_the_card_as_it_was(
    fake_nvml_library: Path, tmp_path: Path, ends: str
) -> None:
    path, environment = written(tmp_path, f'{EIGHTH}ends = "{ends}"\n', fake_nvml_library)
    done = energybench("run", path, cwd=tmp_path, **environment)
    assert done.returncode == 3, done.stdout + done.stderr
    assert (tmp_path / "in-its-trial").exists()
    assert trials_of(tmp_path)["knob"].status != "ok"
    assert sets_of(tmp_path)[0] == STATED_W


@fault("kill while set")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_in_mid_trial_leaves_the_card_as_it_was(
    fake_nvml_library: Path, tmp_path: Path, number: int
) -> None:
    path, environment = written(tmp_path, f'{EIGHTH}ends = "never"\n', fake_nvml_library, virtual=False)
    running = start("run", path, cwd=tmp_path, **environment)
    try:
        wait_for(lambda: (tmp_path / "in-its-trial").exists())
        assert sets_of(tmp_path)[0] == 40.0
        os.kill(running.pid, number)
        wait_for(lambda: sets_of(tmp_path)[0] == STATED_W)
    finally:
        running.kill()
        running.communicate()


REFUSED = {
    "no root": ({"errors": [("nvmlDeviceSetPowerManagementLimit", 4)]}, EIGHTH, "run it as root"),
    "too low": ({"min_power_limit_w": 100.0}, EIGHTH, "from 100 W to 400 W"),
    "no such clock": ({}, '\n[[method]]\nuse = "knob.py"\nmhz = 700.0\n', "the nearest one is 705 MHz"),
    "used": ({"compute": [(4_000_000,)]}, EIGHTH, "process 4000000 uses the card"),
    "drawn on": ({"graphics": [(4_000_000,)]}, EIGHTH, "process 4000000 uses the card"),
    "sliced": ({"mig": True}, EIGHTH, "sliced"),
}


@pytest.mark.parametrize(("gpu", "methods", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_set_is_refused_before_the_run_with_the_remedy(
    fake_nvml_library: Path, tmp_path: Path, gpu: dict[str, object], methods: str, said: str
) -> None:
    path, environment = written(tmp_path, methods, fake_nvml_library, **gpu)
    done = energybench("run", path, cwd=tmp_path, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "E505" in done.stderr
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "reports").exists()
    assert sets_of(tmp_path)[1] == 0


def test_a_card_that_cannot_be_set_when_a_trial_is_due_is_a_failed_trial_and_nothing_is_measured(
    fake_nvml_library: Path, tmp_path: Path
) -> None:
    cannot = [("nvmlDeviceSetGpuLockedClocks", 3)]
    path, environment = written(tmp_path, HALF, fake_nvml_library, errors=cannot)
    done = energybench("run", path, cwd=tmp_path, **environment)
    assert done.returncode == 3, done.stdout + done.stderr
    trials = trials_of(tmp_path)
    assert (trials["baseline"].status, trials["knob"].status) == ("ok", "failed")
    assert "clock limit cannot be set" in (trials["knob"].reason or "")
    assert trials["knob"].train is None


def test_without_a_card_it_is_refused_and_can_be_checked_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(suite_text('\n[[method]]\nuse = "power_limit"\nlimit = "200 W"\n'), encoding="utf-8")
    refused = energybench("run", path, cwd=tmp_path)
    assert refused.returncode == 2
    assert "E328" in refused.stderr
    checked = energybench("check", path, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    counted = energybench("flops", path, cwd=tmp_path)
    assert counted.returncode == 0, counted.stderr


def test_two_that_set_the_same_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    (tmp_path / "knob.py").write_text(KNOB)
    method = '\n[[method]]\nuse = ["power_limit", "knob.py"]\npower_limit = { share = 0.5 }\nknob = { watts = 40.0 }\n'
    path.write_text(suite_text(method), encoding="utf-8")
    done = energybench("check", path, cwd=tmp_path)
    assert "E329" in done.stderr, done.stderr
    assert "both set the card's power limit" in " ".join(done.stderr.split())
