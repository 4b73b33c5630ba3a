"""What SECURITY.md promises: no unsafe call, no name that leaves its folder, no network, pinned packages."""

from __future__ import annotations

import ast
import fcntl
import os
import pickle
import re
import stat
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import fault
from report.synthetic import Run
from support import data_settings

from energybench.common.errors import EnergybenchError
from energybench.meter.trace import Sample, pack
from energybench.records import run_folder as folders
from energybench.records.reader import read_folder
from energybench.records.record import write_json
from energybench.records.run_folder import Folder
from energybench.records.scratch_folder import scratch
from energybench.report import pages
from energybench.report.html import page
from energybench.report.power_traces import power
from energybench.suite.suite import slug
from energybench.verdict.summary import summarise

ROOT = Path(__file__).parents[1]
PRODUCTION = sorted(
    path for room in ("energybench", "methods", ".ci") for path in (ROOT / room).rglob("*.py") if path.is_file()
)

# ── calls that run what they read ─────────────────────────────────────────────────────────────────────────────

FORBIDDEN = frozenset(
    (
        "eval",
        "exec",
        "compile",
        "os.system",
        "os.popen",
        "os.execv",
        "os.execvp",
        "os.spawnl",
        "pickle.load",
        "pickle.loads",
        "marshal.load",
        "marshal.loads",
        "shelve.open",
        "dill.load",
        "joblib.load",
        "cloudpickle.load",
        "yaml.load",
        "yaml.unsafe_load",
        "commands.getoutput",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
        "torch.hub.load",
        "pandas.read_pickle",
        "urllib.request.urlopen",
        "tempfile.mktemp",
    )
)
PICKLES = ("allow_pickle", False)
NEEDS = {"torch.load": ("weights_only", True), "np.load": PICKLES, "numpy.load": PICKLES}
NETWORK = frozenset({"socket", "urllib.request", "http", "http.client", "requests", "httpx", "ftplib", "smtplib"})


def unsafe(text: str) -> Iterator[str]:
    """Every call in a file that runs what it reads, starts a shell or opens the network."""
    aliases: dict[str, str] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                full = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                aliases[alias.asname or alias.name] = full
                if full in NETWORK or full.partition(".")[0] in {"requests", "httpx", "socket", "ftplib", "smtplib"}:
                    yield f"{node.lineno}: imports {full}"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        written = ast.unparse(node.func)
        head, dot, rest = written.partition(".")
        name = f"{aliases.get(head, head)}{dot}{rest}"
        given = {word.arg: word.value for word in node.keywords}
        if name in FORBIDDEN:
            yield f"{node.lineno}: {name}"
        if name in NEEDS:
            key, value = NEEDS[name]
            found = given.get(key)
            if not (isinstance(found, ast.Constant) and found.value is value):
                yield f"{node.lineno}: {name} without {key}={value}"
        shell = given.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            yield f"{node.lineno}: {name} with a shell"


# What may be there, and once: it becomes the program that its own command line names, without a shell.
ALLOWED = {"energybench/cluster/tied_child.py": ["os.execv"]}


@pytest.mark.parametrize("path", PRODUCTION, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_production_file_runs_what_it_reads_or_opens_the_network(path: Path) -> None:
    found = [each.partition(": ")[2] for each in unsafe(path.read_text(encoding="utf-8"))]
    assert found == ALLOWED.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load(f)",
        "import torch; torch.load(f, weights_only=False)",
        "import numpy as np; np.load(f)",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "import pickle; pickle.loads(b)",
        "from pickle import load; load(f)",
        "eval(x)",
        "exec(x)",
        "import os; os.system(x)",
        "import os as o; o.popen(x)",
        "import yaml; yaml.load(x)",
        "import subprocess; subprocess.run(x, shell=True)",
        "import socket",
        "import requests",
        "from urllib import request",
    ],
)
def test_and_the_search_finds_each_of_them(line: str) -> None:
    assert list(unsafe(line))


def test_a_pickle_in_place_of_cifar_10_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's CIFAR batches are pickles: each must have the sum of the published file before it is read."""
    from energybench.workloads import datasets

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    home = tmp_path / "cifar10" / "cifar-10-batches-py"
    home.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (home / name).write_bytes(pickle.dumps(Bomb()))
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    spec = {"use": "cifar10", "batch": 8, "resident": 2 * 10**9}
    with pytest.raises(EnergybenchError, match="E402"):
        datasets.prepare(data_settings(spec), tmp_path / "cache", download=False)
    assert not (tmp_path / "ran").exists()


# ── names and links ───────────────────────────────────────────────────────────────────────────────────────────

SECRET = "the contents of a file that is nobody's business"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder, with a secret trace beside it that a hostile record would like to show."""
    folder = tmp_path / "run"
    run, trials, counting_runs = Run().method("half", time=0.7).records()
    write_json(folder / "run.json", run)
    for trial in trials:
        write_json(folder / "records" / f"{trial.trial}.json", trial)
    for counting_run in counting_runs:
        write_json(folder / "witness" / f"{counting_run.workload}.{counting_run.method}.json", counting_run)
    samples = [Sample(i * 10**8, SECRET, 100.0 + i) for i in range(20)]
    (tmp_path / "secret.csv.gz").write_bytes(pack(samples, 0))
    (folder / "traces").mkdir()
    return folder


HOSTILE = (
    "../secret.csv.gz",
    "traces/../../secret.csv.gz",
    "{outside}",
    "traces/link.csv.gz",
    "traces/out/secret.csv.gz",
    "\0",
    "traces/\0",
    "x" * 5000,
    "traces/loop",
    ".",
    "",
    "/dev/zero",
    "/proc/self/environ",
)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:30]))
def test_a_trace_outside_the_runs_folder_is_neither_read_nor_shown(name: str, run_folder: Path) -> None:
    outside = run_folder.parent / "secret.csv.gz"
    (run_folder / "traces" / "link.csv.gz").symlink_to(outside)
    (run_folder / "traces" / "out").symlink_to(run_folder.parent)
    (run_folder / "traces" / "loop").symlink_to("loop")
    name = name.replace("{outside}", str(outside))
    run, trials, counting_runs = read_folder(run_folder)
    trials = [trial.model_copy(update={"trace": name}) for trial in trials]
    assert isinstance(power(trials[0], run_folder), str)
    summary = summarise(run, trials, counting_runs)
    text = page(summary, trials, run_folder)
    assert SECRET not in text


def test_a_trace_inside_is_shown_so_that_the_test_above_can_fail(run_folder: Path) -> None:
    (run_folder / "traces" / "t.csv.gz").write_bytes((run_folder.parent / "secret.csv.gz").read_bytes())
    trial = read_folder(run_folder)[1][0].model_copy(update={"trace": "traces/t.csv.gz"})
    assert isinstance(found := power(trial, run_folder), dict)
    assert list(found) == [SECRET]


@pytest.mark.parametrize("part", ["run.json", "records", "witness", "records/b0-i0-cnn-digits.half.json"])
def test_a_record_that_is_a_link_out_of_the_folder_is_refused(part: str, run_folder: Path) -> None:
    moved = run_folder.parent / "elsewhere"
    (run_folder / part).rename(moved)
    (run_folder / part).symlink_to(moved)
    with pytest.raises(EnergybenchError, match="E612"):
        read_folder(run_folder)


def test_a_record_that_is_a_pipe_is_refused_and_not_waited_for(run_folder: Path) -> None:
    os.mkfifo(run_folder / "records" / "z.json")
    with pytest.raises(EnergybenchError, match="no regular file"):
        read_folder(run_folder)


def test_a_record_larger_than_any_is_refused_unread(run_folder: Path) -> None:
    with (run_folder / "records" / "z.json").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(EnergybenchError, match="20,000,000 bytes"):
        read_folder(run_folder)


def test_writing_a_report_follows_no_link_and_removes_nothing_elsewhere(run_folder: Path) -> None:
    pictures = run_folder.parent / "pictures"
    pictures.mkdir()
    (pictures / "mine.svg").write_text("mine")
    (run_folder / "figures").symlink_to(pictures)
    run, trials, counting_runs = read_folder(run_folder)
    with pytest.raises(EnergybenchError, match="E612"):
        pages.write(summarise(run, trials, counting_runs), trials, run_folder)
    assert [file.name for file in pictures.iterdir()] == ["mine.svg"]


def test_a_report_that_is_a_link_is_replaced_and_what_it_led_to_stays(run_folder: Path) -> None:
    other = run_folder.parent / "other.md"
    other.write_text("mine")
    (run_folder / "report.md").symlink_to(other)
    run, trials, counting_runs = read_folder(run_folder)
    pages.write(summarise(run, trials, counting_runs), trials, run_folder)
    assert other.read_text() == "mine"
    assert not (run_folder / "report.md").is_symlink()


@pytest.mark.parametrize("part", folders.PARTS)
def test_a_run_is_not_continued_in_a_folder_whose_parts_lead_elsewhere(part: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnergybenchError, match="E612"), Folder(tmp_path / "run").lock():
        pass


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(EnergybenchError, match="E605"), Folder(tmp_path / "run").lock():
        pass
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "\0",
        "\n",
        "",
        "~",
        "-rf",
        "x" * 300,
        "名",
        "\ud800",
        "con",
        "a\u202eb",
    ],
)
def test_a_name_becomes_one_part_of_a_path(name: str) -> None:
    made = slug(name)
    assert re.fullmatch(r"[A-Za-z0-9._+=-]{1,100}", made)
    assert made not in (".", "..")
    assert (Path("/run") / f"b0-i0-{made}.json").parent == Path("/run")


def test_scratch_folders_of_others_and_links_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    victim, old = tmp_path / "victim", tmp_path / "energybench-old"
    for folder in (victim, old):
        folder.mkdir()
        (folder / "alive").touch()
    (victim / "letters").touch()
    (tmp_path / "energybench-trap").symlink_to(victim)  # leads to a folder that looks like one of ours
    (tmp_path / "energybench-file").mkdir()
    (tmp_path / "energybench-file" / "alive").symlink_to(victim / "letters")
    with scratch() as place:
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert (victim / "letters").exists()
    assert (tmp_path / "energybench-file").exists()
    assert not old.exists()  # what a killed run of ours left


def test_what_another_user_owns_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old = tmp_path / "energybench-old"
    old.mkdir()
    (old / "alive").touch()
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)  # the folder is then somebody else's
    with scratch():
        pass
    assert old.exists()


# ── network ───────────────────────────────────────────────────────────────────────────────────────────────────

GUARD = """
import os, socket, traceback

LOG = os.environ["NETWORK_LOG"]


def refuse(what):
    with open(LOG, "a") as file:
        file.write(what + "\\n" + "".join(traceback.format_stack(limit=12)))
    raise OSError("no network: " + what)


class Guarded(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            refuse(f"connect {address}")
        return super().connect(address)

    def connect_ex(self, address):
        if self.family != socket.AF_UNIX:
            refuse(f"connect_ex {address}")
        return super().connect_ex(address)

    def sendto(self, *arguments):
        if self.family != socket.AF_UNIX:
            refuse("sendto")
        return super().sendto(*arguments)


socket.socket = Guarded
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
    setattr(socket, name, lambda *a, name=name, **k: refuse(f"{name} {a}"))
with open(os.environ["NETWORK_LOG"] + ".seen", "a") as file:
    file.write(f"{os.getpid()}\\n")
"""

GUARDED = f'''"""guarded: trains as plain training does."""
from dataclasses import dataclass

from energybench import Method
{GUARD}

@dataclass
class GuardedMethod(Method):
    def gradients(self, run, batch, inner):
        return inner(batch)
'''


@pytest.mark.slow
def test_no_verb_tries_to_reach_the_network(tmp_path: Path) -> None:
    """Every process refuses and writes down whatever is no socket of this machine. Children of ours read no
    sitecustomize: there a method's file does it, in the process that plans and in its trials and counting runs."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "guarded.py").write_text(GUARDED)
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    log = tmp_path / "log"
    (tmp_path / "tiny.toml").write_text(
        textwrap.dedent("""
        schema = 1
        suite = "tiny"
        [trials]
        blocks = 1
        twin = false
        threads = 1
        warmup = "1 steps"
        [measure]
        carbon = { country = "FRA" }
        [[workload]]
        name = "w"
        model = { use = "cnn", channels = [2, 2] }
        data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
        train = { epochs = 1, lr = 0.1 }
        [[method]]
        use = "guarded"
        """)
    )
    paths = [str(tmp_path / "guard"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "NETWORK_LOG": str(log)}

    def energybench(*arguments: str) -> None:
        command = [sys.executable, "-m", "energybench", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr

    energybench("check", "tiny.toml")
    energybench("run", "tiny.toml", "--out", "out")
    for arguments in (
        ["report", "out", "--html"],
        ["report", "out", "--carbon"],
        ["doctor"],
        ["list"],
        ["export", "out", "--to", "csv"],
        ["schema"],
        ["claims"],
    ):
        energybench(*arguments)
    assert not log.exists(), log.read_text()
    assert len(set((tmp_path / "log.seen").read_text().split())) > 11  # nine verbs, and children of theirs
    probe = "import socket; socket.create_connection(('192.0.2.1', 9))"
    refused = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True)
    assert "no network" in refused.stderr  # and it can fail


# ── packages ──────────────────────────────────────────────────────────────────────────────────────────────────


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_has_one_exact_pin() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.+!]*", pin) for pin in pins)
    names = [_plain(pin.partition("==")[0]) for pin in pins]
    assert len(set(names)) == len(names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    needed = {_plain(re.split(r"[<>=!~\[ ;]", each)[0]) for each in wanted} - {"energybench"}
    assert needed <= set(names), sorted(needed - set(names))


def test_every_test_that_the_security_page_names_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert len(named) > 15
    assert named <= there, sorted(named - there)


@fault("scratch race")
def test_a_scratch_folder_that_another_start_takes_for_a_dead_ones_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of its file and its lock it looks as those that killed runs left."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    flock, raced = fcntl.flock, list[Path]()

    def other_start_first(file: Any, operation: int) -> None:
        if not raced:
            raced.append(Path(file.name).parent)
            with scratch() as other:
                assert other != raced[0]
            assert not raced[0].exists()  # it was free, as far as anybody could tell
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", other_start_first)
    with scratch() as place:
        assert place.is_dir()
        assert (place / "alive").exists()
        with scratch() as other:  # whose sweep finds the lock
            assert other != place
        assert place.is_dir()
    assert list(tmp_path.iterdir()) == []
