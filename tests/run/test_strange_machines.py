"""The harness itself on machines that are not as ours: whatever they are, a run ends well and says the same.

These are light runs (light.py): everything is real but the training.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import light
import pytest
from command_line import energybench
from fakes import in_children
from fakes.powercap import Powercap, without_energy_pkg

from energybench.common.processes import LONGEST_SOCKET
from energybench.records.reader import read_folder

pytestmark = pytest.mark.slow

SCRIPT = str(Path(light.__file__))
SIGNS = "\N{LATIN SMALL LETTER O WITH DIAERESIS}\N{GREEK SMALL LETTER SIGMA}"


def begun(place: Path, prepare: Callable[[], Any] | None = None, **environment: str) -> Any:
    (place / "light.toml").write_text(light.SUITE, encoding="utf-8")
    return subprocess.run(
        [sys.executable, SCRIPT, "light.toml"],
        cwd=place,
        env=light.environment(**environment),
        timeout=600,
        capture_output=True,
        check=False,
        preexec_fn=prepare,
    )


def ended_well(place: Path, done: Any) -> None:
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    (folder,) = (file.parent for file in (place / "reports/light").glob("*/run.json"))
    run, trials, _ = read_folder(folder)
    assert run.finished
    assert {(trial.block, trial.method) for trial in trials if trial.status == "ok"} == {
        (block, method) for block in range(light.BLOCKS) for method in light.METHODS
    }
    assert (folder / "report.md").read_text(encoding="utf-8").startswith("#")


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def deaf() -> None:
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def held_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})


def nothing_open() -> None:
    os.close(0)


@pytest.mark.parametrize(
    "prepare",
    [one_core, few_files, deaf, held_signals, nothing_open, lambda: os.umask(0o077)],
    ids=["one core", "64 open files", "deaf to signals", "signals held back", "no standard input", "umask 077"],
)
def test_what_a_run_inherits_changes_nothing(tmp_path: Path, prepare: Callable[[], Any]) -> None:
    ended_well(tmp_path, begun(tmp_path, prepare))


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "iso-8859-9"},
        {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"},
        {"COLUMNS": "10", "LINES": "2", "FORCE_COLOR": "1", "TERM": "dumb"},
        {"TZ": "STRANGE-13:37", "PYTHONWARNINGS": "default", "PYTHONHASHSEED": "0", "PYTHONOPTIMIZE": "2"},
    ],
    ids=["ASCII", "a terminal of ISO 8859-9", "no home", "a narrow terminal", "another Python"],
)
def test_the_environment_of_a_run_changes_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    ended_well(tmp_path, begun(tmp_path, **environment))


def test_a_turkish_locale_changes_nothing(tmp_path: Path) -> None:
    """Its letters are ISO 8859-9, by default, wherever a file or a pipe is opened without a word."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/tr_TR").exists():
        pytest.skip("there are no sources of locales; on Debian: apt-get install locales")
    command = ["localedef", "-i", "tr_TR", "-f", "ISO-8859-9", str(tmp_path / "tr_TR")]
    subprocess.run(command, check=True, capture_output=True)
    ended_well(tmp_path, begun(tmp_path, LOCPATH=str(tmp_path), LANG="tr_TR"))


@pytest.mark.parametrize("length", [LONGEST_SOCKET - 32, LONGEST_SOCKET - 31, 200])
def test_a_long_folder_for_temporary_files_with_blanks_in_it_will_do(tmp_path: Path, length: int) -> None:
    """The server's socket would get a path that the kernel refuses."""
    folder = tmp_path / os.fsdecode(f"a b{SIGNS}".encode())  # these bytes, whatever names are encoded in here
    folder /= "l" * max(1, length - len(os.fsencode(folder)) - 1)
    folder.mkdir(parents=True)
    ended_well(tmp_path, begun(tmp_path, TMPDIR=str(folder)))
    assert list(folder.iterdir()) == []


STREAMED = """
import sys, torch
from energybench.workloads.data import Streamed
data = Streamed(sys.argv[1:], torch.tensor([3, 5]), (4, 4), 2, torch.device("cpu"))
print([targets.tolist() for _, _, targets in data.fetch([torch.tensor([1, 0]), torch.tensor([0])])])
"""


def test_workers_that_decode_images_hand_them_over_where_that_folder_is_long(tmp_path: Path) -> None:
    """Without a listener they waited for ever."""
    from PIL import Image

    folder = tmp_path / ("l" * 100)
    folder.mkdir()
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    for file in files:
        Image.new("RGB", (4, 4)).save(file)
    done = subprocess.run(
        [sys.executable, "-c", STREAMED, *files],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        timeout=600,
        check=True,
    )
    assert done.stdout == b"[[5, 3], [3]]\n"


@pytest.mark.parametrize("encoding", ["iso-8859-9", "koi8-r", "cp1252"])
def test_a_terminal_of_few_letters_is_told_all_the_same(tmp_path: Path, encoding: str) -> None:
    """−, → and … are in some of them and not in others. (What says that it is ASCII gets UTF-8, by click.)"""
    whole = energybench("list", cwd=tmp_path, PYTHONIOENCODING="utf-8").stdout
    done = subprocess.run(
        [sys.executable, "-m", "energybench", "list"],
        cwd=tmp_path,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        check=True,
    )
    told = done.stdout.decode(encoding)
    assert told.count("\n") == whole.count("\n")
    assert "gradsamp" in told
    assert "..." in told or "\N{HORIZONTAL ELLIPSIS}" in told
    assert done.stderr == b""


def test_json_is_utf8_on_every_terminal(tmp_path: Path) -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-m", "energybench", "list", "--json"],
            cwd=tmp_path,
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": encoding},
            check=True,
        ).stdout
        for encoding in ("utf-8", "iso-8859-9", "koi8-r")
    ]
    assert json.loads(outputs[0].decode("utf-8"))
    assert outputs[0] == outputs[1] == outputs[2]


def test_a_power_pmu_without_energy_pkg_is_told_by_doctor_and_check(tmp_path: Path) -> None:
    system = str(without_energy_pkg(tmp_path))
    told = json.loads(energybench("doctor", "--json", cwd=tmp_path, ENERGYBENCH_SYSFS=system).stdout)
    rapl = {sensor["way"]: sensor for sensor in told["sensors"] if "way" in sensor}
    assert (rapl["powercap"]["usable"], rapl["powercap"]["kind"]) == (False, "absent")
    assert (rapl["perf_events"]["usable"], rapl["perf_events"]["kind"]) == (False, "unsupported")
    assert rapl["perf_events"]["why"] == "energy-pkg cannot be read: No such file or directory"
    assert told["energy"] == "modelled"


def test_a_machine_whose_sys_is_mounted_elsewhere_is_measured_there(tmp_path: Path) -> None:
    machine = Powercap(tmp_path / "sys")
    machine.add("intel-rapl:0", "package-0", 50.0)
    there = in_children.environment(powercap=machine) | {"ENERGYBENCH_SYSFS": str(tmp_path / "sys")}
    del there["ENERGYBENCH_POWERCAP"]
    told = json.loads(energybench("doctor", "--json", cwd=tmp_path, **there).stdout)
    assert told["energy_by"] == {"cpu": ["package-0"]}


def test_a_name_that_the_file_system_cannot_have_is_told(tmp_path: Path) -> None:
    """A suite is UTF-8; names of files are what the locale says, here ASCII."""
    kept = '[[workload]]\nname = "w"\nmodel = { use = "NAME.py:net" }\ndata = { use = "digits", batch = 8 }\n'
    text = f'schema = 1\nsuite = "s"\n{kept}train = {{ epochs = 1, lr = 0.1 }}\n'.replace("NAME", SIGNS)
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "energybench", "check", "s.toml"],
        cwd=tmp_path,
        capture_output=True,
        env=os.environ | locale,
        check=False,
    )
    assert done.returncode == 2
    assert b"error[E" in done.stderr
    assert b"Traceback" not in done.stderr
