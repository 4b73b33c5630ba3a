"""Files that lie where somebody starts energybench run in no process of it: neither modules nor programs."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import energybench, environment
from faults import fault
from tiny_runs import write_suite

from energybench.records.reader import read_folder

ROOT = Path(__file__).resolve().parents[2]
RUN = min((ROOT / "reports" / "quick").iterdir())
SCRIPT = "import sys\nfrom energybench.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
PROGRAMS = (
    "nvidia-smi",
    "lscpu",
    "uname",
    "dmesg",
    "git",
    "cat",
    "python",
    "python3",
    "ps",
    "sysctl",
    "ldconfig",
    "gcc",
)
PROGRAM = "#!/bin/sh\necho {name} >> {log}\nexit 1\n"
METHOD = '[[method]]\nuse = "gradsamp"\nskip = "every:2"\n'
VERBS = {
    "check": ("check", "tiny.toml", "--no-user-code"),
    "run": ("run", "tiny.toml", "--no-user-code"),
    "flops": ("flops", "tiny.toml"),
    "doctor": ("doctor",),
    "report": ("report", str(RUN)),
    "export": ("export", str(RUN), "--to", "csv"),
    "list": ("list",),
    "measure": ("measure", "--", "/bin/true"),
}


@functools.cache
def loaded_by_python() -> frozenset[str]:
    """What `python -m` has imported before the module that it is asked for: Python's own, before any line of ours."""
    command = [sys.executable, "-c", "import runpy, sys; print(*sys.modules)"]
    return frozenset(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def found_by_python(names: set[str]) -> set[str]:
    """Those that a fresh interpreter finds: in this one, a test before may have left more."""
    code = "import sys\nfrom importlib.util import find_spec\nprint(*filter(find_spec, sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code, *names]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def every_module() -> set[str]:
    """Of the standard library and of every installed package, by the name that stands first."""
    installed = importlib.metadata.packages_distributions()
    names = sys.stdlib_module_names | installed.keys() | {"sitecustomize", "usercustomize"}
    return {name for name in names if name.isidentifier()} - {"energybench"}


def plant(folder: Path, names: set[str], log: Path) -> Path:
    """A file for each, which tells when it is run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        text = f"with open({str(log)!r}, 'a') as file:\n    file.write('{name} ')\nraise EOFError('planted')\n"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def plant_programs(folder: Path, log: Path) -> None:
    for name in PROGRAMS:
        (folder / name).write_text(PROGRAM.format(name=name, log=log), encoding="utf-8")
        (folder / name).chmod(0o755)


def ran(log: Path) -> str:
    return log.read_text(encoding="utf-8") if log.exists() else ""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(the folder beside the suite, the console script, what ran)."""
    place = tmp_path_factory.mktemp("planted")
    folder, log, script = place / "here", place / "ran", place / "bin" / "energybench"
    write_suite(plant(folder, every_module(), log), METHOD)
    plant_programs(folder, log)
    script.parent.mkdir()
    script.write_text(SCRIPT, encoding="utf-8")
    return folder, script, log


@fault("planted module")
@pytest.mark.parametrize("verb", VERBS)
def test_no_file_of_the_current_folder_runs(planted: tuple[Path, Path, Path], verb: str) -> None:
    """One for every module of the standard library and of installed packages; and programs: PATH begins here."""
    folder, script, log = planted
    log.unlink(missing_ok=True)
    path = f":.:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, script, *VERBS[verb]],
        cwd=folder,
        env=environment(PATH=path, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, ran(log)) == (0, ""), done.stderr


@pytest.mark.parametrize("where", ["current folder", "PYTHONPATH", "PYTHONPATH by its name"])
def test_nor_by_python_m_or_pythonpath_once_python_has_started(tmp_path: Path, where: str) -> None:
    log = tmp_path / "ran"
    names = every_module() - loaded_by_python() - {"sitecustomize"}
    if where == "PYTHONPATH by its name":  # a folder that was asked for comes last, after what is here
        names = found_by_python(names)
    folder = plant(tmp_path / "here", names, log)
    added = {"current folder": "", "PYTHONPATH": ":.", "PYTHONPATH by its name": f":{folder}"}[where]
    cwd = folder if where != "PYTHONPATH by its name" else tmp_path
    write_suite(cwd, METHOD)
    done = subprocess.run(
        [sys.executable, "-m", "energybench", "check", "tiny.toml"],
        cwd=cwd,
        env=environment(PYTHONPATH=f"{ROOT}{added}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, ran(log)) == (0, ""), done.stderr


def test_a_sitecustomize_of_pythonpath_runs_in_the_process_that_python_starts_and_in_none_of_ours(
    tmp_path: Path,
) -> None:
    """And commands that are measured get the PYTHONPATH of who measures them."""
    log = tmp_path / "ran"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import sys\nwith open({str(log)!r}, 'a') as file:\n    file.write(repr(sys.orig_argv) + '\\n')\n",
        encoding="utf-8",
    )
    write_suite(tmp_path, METHOD)
    command = [sys.executable, "-m", "energybench", "check", "tiny.toml"]
    path = os.pathsep.join([str(ROOT), str(tmp_path / "site")])
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(PYTHONPATH=path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ran(log).splitlines() == [repr(command)]


def test_code_that_was_asked_for_finds_its_neighbours_and_the_standard_library_stays(tmp_path: Path) -> None:
    """`mine.py` imports a neighbour; its neighbour random.py is never `random`."""
    log = tmp_path / "ran"
    plant(tmp_path, {"random", "json", "torch"}, log)
    (tmp_path / "neighbour.py").write_text("EVERY = 2\n", encoding="utf-8")
    text = (
        "from dataclasses import dataclass\nimport random\nimport neighbour\nfrom energybench import Method\n"
        "random.random()\n\n\n@dataclass\nclass Mine(Method):\n    every: int = neighbour.EVERY\n"
    )
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    write_suite(tmp_path, '[[method]]\nuse = "mine.py"\n')
    done = energybench("check", "tiny.toml", cwd=tmp_path)
    assert (done.returncode, ran(log)) == (0, ""), done.stderr


@pytest.mark.parametrize("ending", ["raise EOFError", "raise KeyboardInterrupt", "raise SystemExit(0)"])
def test_a_method_in_a_file_called_random_that_ends_badly_is_a_mistake_of_the_suite_and_no_interruption(
    tmp_path: Path, ending: str
) -> None:
    (tmp_path / "random.py").write_text(f"{ending}\n", encoding="utf-8")
    write_suite(tmp_path, '[[method]]\nuse = "random.py"\n')
    done = energybench("check", "tiny.toml", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "random.py" in done.stderr or "ended early" in done.stderr
    assert "interrupted" not in done.stderr


def without_proc() -> bool:
    """Whether this user may make /proc empty for a process: root, in a mount namespace of its own."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/proc"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def joules(value: Any) -> Iterator[float | None]:
    """Every `energy_j` of a record."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "energy_j":
            yield inner
        elif isinstance(inner, (dict, list)):
            yield from joules(inner)


@fault("no proc")
@pytest.mark.skipif(not without_proc(), reason="it takes root and a mount namespace")
@pytest.mark.parametrize("verb", ["run", "measure", "doctor"])
def test_an_empty_proc_ends_nothing_and_what_it_would_tell_is_not_known(tmp_path: Path, verb: str) -> None:
    suite = write_suite(tmp_path, METHOD)
    suite.write_text(suite.read_text(encoding="utf-8").replace('"off"', '"if available"'), encoding="utf-8")
    words = {"run": ("run", "tiny.toml", "--out", "out"), "measure": ("measure", "--json", "--", "/bin/true")}
    command = [sys.executable, "-P", "-m", "energybench", *words.get(verb, (verb,))]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh", *command],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if verb == "run":
        run, trials, _ = read_folder(tmp_path / "out")
        assert run.finished
        assert {trial.status for trial in trials} == {"ok"}
        files = (tmp_path / "out" / "records").iterdir()
        values = [value for file in files for value in joules(json.loads(file.read_bytes()))]
        assert values
        assert set(values) == {None}  # never 0
