"""Every test, and everything that a test starts, sees a neutral machine: `fakes.neutral` holds, whatever is outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pynvml
import pytest
import torch
from fakes.hwmon import Machine
from fakes.neutral import PLACE, forget, kept, neutral
from fakes.nvml import FakeGpu, build, script
from fakes.powercap import Powercap, without_energy_pkg

from energybench.meter.accelerators import accelerators
from energybench.meter.hwmon_drivers import find
from energybench.meter.perf_events import sysfs
from energybench.meter.rapl import survey
from energybench.meter.unavailable import Unavailable

ROOT = Path(__file__).resolve().parents[1]
SEEN = """
import json, os, pathlib, signal, sys, time
import energybench, pynvml
from energybench.meter import accelerators, hwmon_drivers, perf_events, rapl
try:
    pynvml.nvmlInit()
    driver = "there"
except pynvml.NVMLError as error:
    driver = str(error)
mask = os.umask(0)
found = hwmon_drivers.find(perf_events.sysfs())
kernel = [*accelerators.accelerators(), *found.channels, *found.refused]
print(json.dumps({
    "energybench": energybench.__file__, "driver": driver, "umask": mask, "zone": time.tzname[0],
    "kernel": len(kernel),
    "sensors": [row["kind"] for row in rapl.survey()], "environment": dict(os.environ), "utf8": sys.flags.utf8_mode,
    "deaf": sorted(n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN),
}))
"""


def seen(environment: dict[str, str] | None = None) -> Any:
    """What a process sees that a test starts."""
    return json.loads(subprocess.check_output([sys.executable, "-c", SEEN], env=environment, cwd="/"))


def is_neutral(found: Any) -> None:
    assert found["energybench"] == str(ROOT / "energybench/__init__.py")
    assert found["driver"] == "NVML Shared Library Not Found"
    assert found["sensors"] == ["absent", "absent"]
    assert found["kernel"] == 0
    assert (found["umask"], found["zone"]) == (0o022, "UTC")
    assert set(found["deaf"]) == {signal.SIGPIPE, signal.SIGXFSZ}  # which Python itself ignores
    ours = {
        PLACE,
        "HOME",
        "TZ",
        "ENERGYBENCH_SYSFS",
        "ENERGYBENCH_PROC",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "LC_CTYPE",
        "HF_HUB_OFFLINE",
        "KERAS_BACKEND",
    }
    added = {name for name in found["environment"] if not kept(name)} - ours
    assert all(name.startswith("GIT_CONFIG_") for name in added), added
    assert found["environment"].get("LC_CTYPE") in (None, "C.UTF-8")  # Python's own


def test_this_process_sees_a_neutral_machine() -> None:
    assert [row["kind"] for row in survey()] == ["absent", "absent"]
    assert accelerators() == []
    assert find(sysfs()).channels == []
    with pytest.raises(pynvml.NVMLError, match="Not Found"):
        pynvml.nvmlInit()
    assert not torch.cuda.is_available()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert time.tzname[0] == "UTC"
    assert Path.home().is_dir()
    assert Path.home().parent == Path(os.environ[PLACE])
    assert not {n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN} - {
        signal.SIGPIPE,
        signal.SIGXFSZ,
    }


@pytest.fixture(scope="module")
def seen_by_a_module() -> Any:
    return seen()


def test_what_a_fixture_of_a_module_starts_sees_a_neutral_machine(seen_by_a_module: Any) -> None:
    is_neutral(seen_by_a_module)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine with a driver, a power device and a terminal of its own."""
    place = tmp_path_factory.mktemp("strange")
    (place / "cards.txt").write_text(script([FakeGpu(name="Strange Card")], clock=0.0), encoding="utf-8")
    build(place, place / "cards.txt")
    card = Machine(place / "card")
    card.amdgpu("0000:03:00.0", 100.0)
    card.root.rename(place / "sys-without-energy-pkg")
    return os.environ | {
        "ENERGYBENCH_SYSFS": str(without_energy_pkg(place)),
        "ENERGYBENCH_DATA": "/nonexistent",
        "LD_LIBRARY_PATH": str(place),
        "HOME": "/nonexistent",
        "COLUMNS": "40",
        "FORCE_COLOR": "1",
        "NO_COLOR": "1",
        "CI": "true",
        "TZ": "XYZ-13:37",
        "GITHUB_STEP_SUMMARY": "/nonexistent",
        "SLURM_MEM_PER_NODE": "1",
        "OMP_NUM_THREADS": "7",
        "LANG": "tr_TR",
        "PYTHONWARNINGS": "error",
        "PYTEST_ADDOPTS": "--durations=3",
        "CUDA_VISIBLE_DEVICES": "0",
    }


def test_the_strange_machine_is_strange(strange: dict[str, str]) -> None:
    """Else the test after this one would prove nothing."""
    found = seen(strange)
    assert found["driver"] == "there"
    assert found["sensors"] == ["absent", "unsupported"]
    assert found["kernel"] == 2  # a card and its sensor
    assert found["zone"] == "XYZ"


def test_on_a_strange_machine_these_tests_pass_as_well(strange: dict[str, str], tmp_path: Path) -> None:
    """A whole pytest of this project, from another folder, deaf to signals and with another umask."""

    def deaf() -> None:
        os.umask(0o077)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    environment = {name: value for name, value in strange.items() if not name.startswith("PYTEST_XDIST_")}
    processor = Powercap(tmp_path / "processor")
    processor.add("intel-rapl:0", "package-0", 50.0)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(ROOT / "tests/test_neutral_machine.py"),
            "-p",
            "no:cacheprovider",
            "-k",
            "this_process or of_a_module",
            "--color=no",
        ],
        env=environment | {"ENERGYBENCH_POWERCAP": str(processor.flat), "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        preexec_fn=deaf,
        capture_output=True,
    )
    told = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    assert done.returncode == 0, told
    assert "2 passed" in told
    assert not list(tmp_path.glob("neutral-machine-*")), "the neutral machine is left behind"


def test_a_neutral_environment_is_the_same_of_any_other(tmp_path: Path) -> None:
    usual = {"PATH": "/bin", "TMPDIR": "/tmp"}
    planted = {
        "ENERGYBENCH_POWERCAP": "x",
        "LANG": "tr_TR",
        "COLUMNS": "3",
        "CI": "1",
        "PYTHONHASHSEED": "1",
        "OMP_NUM_THREADS": "9",
        "CUDA_VISIBLE_DEVICES": "0",
        "HOME": "/no",
        "GIT_DIR": "x",
        "TZ": "y",
    }
    assert neutral(usual | planted, tmp_path) == neutral(usual, tmp_path)
    told = {"ENERGYBENCH_FUZZ_SEED": "3", "https_proxy": "http://localhost"}
    assert neutral(usual | told, tmp_path) == neutral(usual, tmp_path) | told


def test_a_fake_driver_is_found_before_none(fake_nvml_library: Path, tmp_path: Path) -> None:
    from fakes.nvml import FakeDriver

    with FakeDriver(fake_nvml_library, [FakeGpu()]) as driver:
        assert seen(os.environ | driver.environment(tmp_path))["driver"] == "there"


def test_git_has_no_settings_and_reads_any_tree(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("there is no git here")
    told = subprocess.check_output(["git", "config", "--list", "--name-only"], cwd=tmp_path).decode().split()
    assert told == ["safe.directory"]


def test_where_the_kernel_describes_the_machine_is_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENERGYBENCH_SYSFS")
    assert sysfs() == Path("/sys")
    try:
        survey()  # whatever this machine has: it answers
    except Unavailable as error:
        pytest.fail(f"the survey ended: {error}")


def test_what_an_earlier_test_left_in_the_environment_is_forgotten() -> None:
    os.environ["KMP_DUPLICATE_LIB_OK"] = "TRUE"  # as torch's peers do when they are imported
    del os.environ["TZ"]
    forget()
    assert "KMP_DUPLICATE_LIB_OK" not in os.environ
    assert os.environ["TZ"] == "UTC"
