"""A suite is data: nothing that it says runs, but a file that it names; and that one not under --no-user-code."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import command_line
import pytest
import tomli_w
from click.testing import CliRunner

from energybench.cli import app
from energybench.common.errors import EnergybenchError
from energybench.common.shipped import shipped
from energybench.runner.user_code import user_code
from energybench.suite.suite import InvalidSuite, load
from energybench.train import discovery

ROOT = Path(__file__).parents[1]
CANARY = """from pathlib import Path
Path({marker!r}).write_text("ran")
"""
SUITE = """
schema = 1
suite = "s"
about = "text"

[trials]
blocks = 1
warmup = "1 steps"
limit = "60 s"
threads = 1

[measure]
energy = "off"
gpus = "used"
meters = []
carbon = { country = "FRA" }

[accept]
quality = { metric = "accuracy", loses_at_most = "1 pp" }

[[workload]]
name = "base"
task = "classification"
model = { use = "cnn", channels = [2, 2], stem = "text" }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32, augment = ["flip"], options = { size = "text" } }
train = { epochs = 1, lr = 0.1, optimizer = "sgd", schedule = "constant", precision = "fp32", activation = "relu" }
target = { metric = "accuracy", at_least = 0.5 }

[[workload]]
name = "w"
extends = "base"

[[method]]
use = "nothing"
name = "n"
claims = { training = "1 %", from = "text" }
parameter = "text"

[[method]]
use = ["gni", "nothing"]
gni = { parameter = "text" }

[[method]]
use = "dropout"
sweep = { p = ["text", "more"] }

[[skip]]
workload = "base"
method = "n"
because = "text"

[quick]
about2 = "text"
workload.model = { use = "mlp" }
"""
STRANGE = (
    "canary.py",
    "canary.py:f",
    "./canary.py:Canary",
    "../canary.py",
    "{absolute}",
    "{absolute}:f",
    "canary",
    "os:system",
    "__import__('os').system('touch ran')",
    "../../x",
    "canary.pyc:f",
    "canary.py/../canary.txt:f",
)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which every file that could be run leaves a mark; returns the mark's path."""
    marker, here = tmp_path / "ran", tmp_path / "here"
    (here / "methods").mkdir(parents=True)
    text = CANARY.format(marker=str(marker))
    for file in ("canary.py", "canary.txt", "canary.pyc", "../canary.py", "methods/canary.py", "methods/nothing.py"):
        (here / file).write_text(text)
    monkeypatch.chdir(here)
    return marker


def leaves(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where each text of a suite stands."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, (dict, list)):
            yield from leaves(item, (*at, key))
        elif isinstance(item, str):
            yield (*at, key)


def replaced(way: tuple[str | int, ...], text: str) -> dict[str, Any]:
    tables: Any = tomllib.loads(SUITE)
    inner = tables
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = text
    return dict(tables)


WAYS = list(leaves(tomllib.loads(SUITE)))
FILES = {"task", "model.use", "data.use", "use"}  # keys that may name a file


def spelled(way: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in way)


def write(tables: dict[str, Any]) -> Path:
    path = Path("s.toml")
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path.absolute()


@pytest.mark.parametrize("way", WAYS, ids=spelled)
def test_no_text_of_a_suite_runs_anything_when_it_is_read_and_a_named_file_is_refused_with_its_line(
    way: tuple[str | int, ...], canary: Path
) -> None:
    may_name = spelled(tuple(part for part in way if isinstance(part, str))[1:]) in FILES and way[0] != "quick"
    for strange in STRANGE:
        use = strange.replace("{absolute}", str(Path("canary.py").absolute()))
        tables = replaced(way, use)
        tables.pop("quick", None)
        tables["method"] = [m for m in tables["method"] if m["use"] != "nothing" or m.get("use") == use]
        path = write(replaced(way, use))
        result = CliRunner().invoke(app, ["check", "--no-user-code", str(path)])
        assert isinstance(result.exception, (EnergybenchError, SystemExit))
        assert not canary.exists()
        problems = getattr(result.exception, "problems", [])
        if may_name and discovery.names_file(use):
            refused = [p for p in problems if p.code in ("E306", "E408") and f"'{use}'" in p.message]
            assert refused, problems
            assert all(p.where.startswith(("s.toml:", str(path))) and p.hint for p in refused)


def test_a_method_that_a_name_leads_to_in_the_users_folder_is_refused(canary: Path) -> None:
    path = write(
        tomllib.loads(SUITE.replace('use = ["gni", "nothing"]', 'use = ["gni", "canary"]').partition("[quick]")[0])
    )
    found = {problem.message.split("'")[1] for problem in _mended(path)}
    assert found == {"nothing", "canary"}  # both stand in ./methods; gni is energybench's own
    assert not canary.exists()


def _mended(path: Path) -> list[Any]:
    """The refusals of what is left of the suite without its mistakes."""
    try:
        return user_code(load(path))
    except InvalidSuite as error:
        return [] if error.rest is None else user_code(error.rest)


def test_the_shipped_suites_run_no_code_but_energybenchs_own_in_a_checkout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in sorted(shipped("suites").glob("*.toml")):
        assert user_code(load(path)) == [], path.name


@pytest.mark.parametrize("verb", ["run", "check", "flops"])
def test_every_verb_that_trains_or_builds_refuses_it_before_a_process_starts(verb: str, canary: Path) -> None:
    path = write(replaced(("workload", 0, "model", "use"), "canary.py:f") | {"quick": {}})
    for arguments in ([], ["--quick"], ["--set", "workload.train.epochs=wrong"]):
        result = CliRunner().invoke(app, [verb, "--no-user-code", *arguments, str(path)])
        assert isinstance(result.exception, EnergybenchError)
        assert result.exception.exit_code == 2
        assert not canary.exists()
    assert not Path("reports").exists()


def test_a_file_is_refused_too_where_set_or_quick_brings_it_in(canary: Path) -> None:
    tables = tomllib.loads(SUITE.partition("[[method]]")[0].replace(', stem = "text"', ""))
    path = write({**tables, "quick": {"workload": {"model": {"use": "canary.py:f"}}}})
    assert user_code(load(path)) == []
    assert [p.code for p in user_code(load(path, quick=True))] == ["E408"]  # both take it from one line
    set_ = load(path, overrides=["workload.model.use='canary.py:f'"])
    assert {p.where for p in user_code(set_)} == {"--set workload.model.use='canary.py:f'"}


# ── what runs really ──────────────────────────────────────────────────────────────────────────────────────────

energybench = partial(command_line.energybench, cwd=Path())  # where the canary is


@pytest.mark.parametrize("verb", ["run", "check", "flops"])
def test_a_command_is_refused_with_its_line(verb: str, tmp_path: Path) -> None:
    marker, suite = tmp_path / "ran", tmp_path / "s.toml"
    touch = f"command = 'touch {marker}'\n"
    suite.write_text(
        f"schema = 1\nsuite = 's'\n[[workload]]\nname = 'w'\n{touch}quality = 'none'\n[[method]]\nname = 'm'\n{touch}"
    )
    done = CliRunner().invoke(app, [verb, str(suite), "--no-user-code"])
    assert isinstance(done.exception, EnergybenchError)
    found = [(problem.code, problem.where.rsplit(":", 2)[1]) for problem in done.exception.problems]
    assert found == [("E408", "5"), ("E408", "9")]
    assert not marker.exists()


@pytest.mark.slow
def test_without_the_option_the_canary_sings(canary: Path) -> None:
    tables = tomllib.loads(SUITE.partition("[[method]]")[0].replace(', stem = "text"', ""))
    tables["workload"][0]["model"] = {"use": "canary.py:f"}
    assert energybench("check", str(write(tables))).returncode == 2  # it has no function f
    assert canary.read_text() == "ran"


@pytest.mark.slow
def test_texts_that_look_like_code_run_nothing_in_the_child_that_builds_everything_either(canary: Path) -> None:
    (Path("methods") / "nothing.py").unlink()
    absolute = str(Path("canary.py").absolute())
    tables: Any = tomllib.loads(SUITE.partition("[quick]")[0].replace('"text"', json.dumps(absolute)))
    for workload in tables["workload"]:  # else the mistakes of one table hide the next
        workload.get("model", {}).pop("stem", None)
        workload.get("data", {}).pop("options", None)
    tables["method"] = [{"use": "dropout", "p": absolute, "name": "canary.py:f"}]
    for text in (SUITE.partition("[quick]")[0].replace('"text"', '"canary.py:f"'), tomli_w.dumps(tables)):
        Path("s.toml").write_text(text)
        result = energybench("check", "--no-user-code", "s.toml")
        assert result.returncode == 2, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert not canary.exists()


@pytest.mark.slow
def test_reading_verbs_run_nothing(canary: Path) -> None:
    folder = ROOT / "reports" / "quick" / "2026-11-21-170504"
    record = next((folder / "records").glob("*.json"))
    for arguments in (
        ["list"],
        ["list", "methods", "--json"],
        ["schema"],
        ["report", str(folder)],
        ["show", str(folder)],
        ["show", str(record)],
        ["export", str(folder), "--to", "csv"],
        ["report", str(folder), "--carbon"],
        ["report", str(folder), "--json"],
        ["compare", str(folder), str(folder)],
        ["compare", "--history", str(folder.parent)],
    ):
        result = energybench(*arguments)
        assert result.returncode in ((0, 4) if arguments[0] == "compare" else (0,)), result.stderr  # 4: undecided
        assert not canary.exists(), arguments
