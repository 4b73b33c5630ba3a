"""What no path can be, given to every verb and every option that takes one: a code and a hint, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest
from fuzzing import bounded, told
from support import data_settings
from test_fuzz_command_line import here  # noqa: F401  (a fixture)

import energybench
from energybench.cli import app, doctor
from energybench.common.errors import EnergybenchError
from energybench.common.sealed_files import refuse_unwritable, write_bytes, write_out
from energybench.gate import compare_runs, golden_counts
from energybench.records import record
from energybench.records.reader import read
from energybench.records.run_folder import Folder, choose
from energybench.runner.plan_request import spec_of
from energybench.runner.planner import Plan
from energybench.suite.command_tables import QualitySourceTable
from energybench.suite.suite import cell_name, load, slug
from energybench.train import discovery
from energybench.trial.command_quality import NoQuality, QualityReader
from energybench.windows import file as windows
from energybench.workloads import datasets, tasks

LONG = "x" * 300
PATHS = {
    "a name of 300 characters": LONG,
    "a file's name of 300 characters": f"{LONG}.toml",
    "a name of 130 characters and 260 bytes": "é" * 130,
    "a path of 6,000 characters": "/".join(["y" * 199] * 30),
    "a NUL": "a\0b.toml",
    "no text": "\udcff.toml",
    "nothing": "",
    "a loop of links": "loop",
    "a file beyond a loop of links": "loop/s.toml",
    "a link to nothing": "dangling",
    "a file below a file": "file/s.toml",
    "a folder": "empty",
    "a folder that is called like a suite": "folder.toml",
    "a socket": "socket",
    "a device without an end": "/dev/zero",
    "a device without content": "/dev/null",
    "a file that cannot be read": "/proc/self/mem",
    "a pipe": "pipe.toml",
}
# Where a word stands for the path, in every verb that takes one.
READ = (
    ["check", "@"],
    ["check", "missing.toml", "@"],
    ["run", "@"],
    ["flops", "@"],
    ["show", "@"],
    ["report", "@"],
    ["report", "--all", "@"],
    ["report", "run", "@"],
    ["export", "@", "--to", "csv"],
    ["compare", "@"],
    ["compare", "run", "@"],
    ["compare", "@", "run"],
    ["compare", "run", "same", "--rerun", "@"],
    ["compare", "run", "same", "--rerun", "run", "--rerun-base", "@"],
    ["compare", "--history", "@"],
    ["cell", "@", "out.json"],
    ["overhead", "@", "."],
    ["overhead", ".", "@"],
)
WRITTEN = (
    ["export", "run", "--to", "csv", "-o", "@"],
    ["compare", "@", "run", "--accept"],
    ["compare", "golden.json", "run", "--to", "junit=@"],
    ["cell", "empty.json", "@"],
    ["measure", "--energy", "off", "-o", "@", "--", "true"],
)
OTHER = (
    ["measure", "--energy", "off", "--", "@"],
    ["measure", "--energy", "off", "--vs", "@", "--", "true"],
    ["new", "method", "@"],
    ["list", "@"],
    ["@"],
)
BY_NAME = pytest.mark.parametrize("name", PATHS)


@pytest.fixture
def strange(here: Path) -> Iterator[Path]:  # noqa: F811
    """A folder where each of them stands that can."""
    (here / "loop").symlink_to("loop")
    (here / "dangling").symlink_to("nowhere")
    (here / "file").write_text("")
    (here / "empty.json").write_text("{}")
    (here / "folder.toml").mkdir()
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind("socket")
        yield here


def hinted(error: EnergybenchError) -> None:
    assert all(problem.hint for problem in error.problems), error.problems


def ends(words: list[str]) -> int:
    """The exit code; an error of ours has a code and a hint."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), bounded():
        try:
            code = app(words, standalone_mode=False)
        except EnergybenchError as error:
            told(error, "1-6")
            hinted(error)
            return error.exit_code
        except click.ClickException as error:
            return error.exit_code
        except SystemExit as end:
            code = end.code
    return code or 0


@BY_NAME
def test_no_verb_reads_what_is_no_file(strange: Path, name: str) -> None:
    for words in READ:
        if name != "nothing" or "--history" not in words:  # nothing is the folder that one is in: there are runs
            assert ends([word.replace("@", PATHS[name]) for word in words]) == 2, words


@BY_NAME
def test_no_verb_writes_where_nothing_can_be_written(strange: Path, name: str) -> None:
    for words in WRITTEN:
        if name in WRITABLE and words[0] != "cell":
            continue  # bytes that are no text are a name too, and a pipe waits for its reader
        assert ends([word.replace("@", PATHS[name]) for word in words]) == 2, words
        assert (strange / "golden.json").is_file()


@BY_NAME
def test_what_else_is_typed_is_told_too(strange: Path, name: str) -> None:
    for words in OTHER:
        if words[0] == "new" and PATHS[name].isidentifier() and len(PATHS[name]) < 100:
            continue  # a good name for a method, whatever else is called so here
        assert ends([word.replace("@", PATHS[name]) for word in words]) == 2, words


@BY_NAME
def test_a_script_is_told_as_well(strange: Path, name: str) -> None:
    """From Python nothing stands between the system's refusal and the caller."""
    path = Path(PATHS[name] or "missing")
    for call in (
        lambda: load(path),
        lambda: load(str(path)),
        lambda: compare_runs.compare(Path("run"), path),
        lambda: compare_runs.compare(path, Path("run")),
        lambda: golden_counts.read(path),
        lambda: energybench.load(path),
        lambda: discovery.find(f"{path}.py:f"),
        lambda: discovery.load_function(f"{path}.py:f", Path()),
        lambda: tasks.task_named(f"{path}.py:f", Path()),
        lambda: read(path, record.Trial),
    ):
        with pytest.raises(EnergybenchError) as caught, bounded():
            call()
        told(caught.value, "1-6")
        hinted(caught.value)


WRITABLE = ("a device without an end", "a device without content", "a link to nothing", "a pipe", "no text")


@pytest.mark.parametrize("name", [name for name in PATHS if name not in (*WRITABLE, "nothing")])
def test_where_nothing_can_be_written_is_said_before_the_work_and_when_it_is_tried(strange: Path, name: str) -> None:
    path = Path(PATHS[name])
    if name != "a socket":  # it looks as if it could be; whoever opens it is told
        with pytest.raises(EnergybenchError, match="E605"):
            refuse_unwritable(path)
    with pytest.raises(EnergybenchError, match="E620"):
        write_out(path, b"")
    if name.startswith("a folder"):
        return  # a run's folder is one
    with pytest.raises(EnergybenchError, match=r"E60[15]|E612"), Folder(path).lock():
        choose("s", "d", path, fresh=False)


@pytest.mark.parametrize("name", ["n" * 251 + ".csv", "é" * 125 + ".csv", "n" * 255])
def test_the_longest_name_that_a_file_can_have_is_written(tmp_path: Path, name: str) -> None:
    """What is half written has a name of its own, which may be no longer."""
    refuse_unwritable(tmp_path / name)
    write_out(tmp_path / name, b"x")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(name, b"x")]


# ── in a suite ────────────────────────────────────────────────────────────────────────────────────────────────

SUITE = """
schema = 1
suite = "s"
[trials]
blocks = 1
threads = 1
[measure]
energy = "off"
[[workload]]
name = "w"
task = "classification"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 1, lr = 0.1 }
"""
PLACES = {"model": '"cnn"', "data": '"digits"', "task": '"classification"'}


def planned(text: str) -> list[str]:
    """The codes that `check` gives a suite, with hints."""
    Path("s.toml").write_text(text, encoding="utf-8")
    try:
        suite = load("s.toml")
    except EnergybenchError as error:
        told(error, "12")  # the name of a key says what else could stand there
        return [problem.code for problem in error.problems]
    found = Plan(spec_of(suite, Path.cwd(), device="cpu", download=False)).result().problems
    assert all(problem.hint for problem in found), found
    return [problem.code for problem in found]


@BY_NAME
def test_no_path_in_a_suite_ends_its_check(strange: Path, name: str) -> None:
    quoted = json.dumps(f"{PATHS[name]}.py:f".encode("utf-8", "replace").decode())
    for old in PLACES.values():
        assert planned(SUITE.replace(old, quoted)) in (["E401"], ["E403"], ["E201"], ["E202"]), old
    assert planned(f"{SUITE}[[method]]\nuse = {quoted}\n") in (["E301"], ["E202"], ["E205"])


@BY_NAME
def test_no_name_of_a_folder_for_data_ends_a_check(strange: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\0" not in PATHS[name]:  # no environment can hold one
        monkeypatch.setenv("ENERGYBENCH_DATA", PATHS[name])
    assert planned(SUITE.replace('"digits"', '"birds"')) == ["E402"]
    assert planned(SUITE) == []
    assert doctor._data()["folder"] in (None, str(Path(PATHS[name])))


@pytest.mark.parametrize("name", ["n" * 200, "é" * 200, "名" * 200, "/" * 200, ".." * 100, "a/../b"])
def test_a_name_in_a_suite_becomes_a_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    for file in (cell_name(name, name), slug(name)):
        assert "/" not in file
        write_bytes(tmp_path / f"b999999-i999999-{file}.csv.gz", b"")
    write_bytes(tmp_path / "deeper" / f"{slug(name)}.json", b"")


def test_the_data_of_a_long_path_are_kept_under_a_name_that_a_file_can_have(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 150) / ("d" * 150)
    folder.mkdir(parents=True)
    (folder / "own.py").write_text(
        "import torch\ndef f():\n"
        "    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)\n"
        "    return {'train': x, 'test': x}\n"
    )
    use = f"{folder / 'own.py'}:f"
    spec = data_settings({}).model_copy(update={"use": use})
    found = datasets.prepare(spec, tmp_path / "cache", function=discovery.load_function(use, tmp_path))
    assert Path(str(found.file)).parent == tmp_path / "cache"
    assert Path(str(found.file)).is_file()


# ── in files ──────────────────────────────────────────────────────────────────────────────────────────────────


@BY_NAME
def test_no_file_of_windows_or_of_a_quality_is_waited_for(strange: Path, name: str) -> None:
    path = Path(PATHS[name] or "nowhere")
    with bounded():
        if os.path.isfile(path) or os.path.lexists(path) or name not in ("nothing", "a link to nothing"):
            with contextlib.suppress(EnergybenchError):
                assert windows.read_windows(path) == []
        source = QualitySourceTable.model_construct(where="file", path=str(path), key=None, pattern=None)
        reader = QualityReader(source, "accuracy", Path(), {})
        with pytest.raises(NoQuality):
            reader.result([])


def test_a_link_that_leads_to_itself_in_a_runs_folder_is_told(strange: Path) -> None:
    for part in ("records/b0.json", "witness/w.json"):
        (strange / "run" / part).symlink_to("w.json" if "w" in part else "b0.json")
        assert ends(["report", "run"]) == 2
        (strange / "run" / part).unlink()
    for part in ("records", "witness"):
        (strange / "run" / part).rename(strange / "aside")
        (strange / "run" / part).write_text("")
        assert ends(["report", "run"]) == 2
        (strange / "run" / part).unlink()
        (strange / "aside").rename(strange / "run" / part)
    assert ends(["report", "run"]) == 0


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")
def test_what_one_may_not_enter_is_told(strange: Path) -> None:
    (strange / "shut").mkdir(mode=0)
    (strange / "run" / "records").chmod(0)
    try:
        assert ends(["report", "run"]) == 2
        for words in (*READ, *WRITTEN):
            assert ends([word.replace("@", "shut/s.toml") for word in words]) == 2, words
    finally:
        (strange / "run" / "records").chmod(0o755)
        (strange / "shut").chmod(0o755)
