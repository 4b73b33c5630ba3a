"""The harness against itself: real starts of trees that say how long they took, and ours with a sleep in its loop."""

from __future__ import annotations

import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from fakes.replay import VirtualTime

from energybench.cli.command_line import app
from energybench.common.errors import UsageError
from energybench.overhead import compare as harness
from energybench.overhead.compare import compare_overhead

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 4


def tree(folder: Path, takes_s: float = 1.0, list_s: float = 1.0) -> Path:
    """A tree whose command does nothing; `given` takes it to have taken so long."""
    package = folder / "energybench"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").touch()
    (folder / "takes").write_text(json.dumps({"--help": takes_s, "list": list_s}))
    return folder


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still while a command really runs, and then moves by what its tree says, give or take 1 %."""
    clock, real, wobble = VirtualTime(), harness._call, itertools.cycle([1.0, 0.99, 1.01, 1.005, 0.995])

    def call(where: Path, arguments: Sequence[str]) -> str:
        told = real(where, arguments)
        clock.sleep(json.loads((where / "takes").read_text())[arguments[-1]] * next(wobble))
        return told

    monkeypatch.setattr(harness, "_call", call)
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: clock.now_ns() / 1e9))


def overhead(*arguments: object, cwd: Path, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "energybench", "overhead", *map(str, arguments)],
        cwd=cwd,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=300,
        check=False,
    )


def test_a_start_that_takes_longer_is_slower_twice_and_the_other_way_round_faster(
    tmp_path: Path, given: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("energybench.overhead.compare.STARTS", 1)
    quick, slow = tree(tmp_path / "quick", 1.0), tree(tmp_path / "slow", 1.5)
    found = compare_overhead(quick, slow, rounds=ROUNDS, only=["help"])
    (measure,) = found.measures
    assert (measure.verdict, [m.name for m in found.regressions]) == ("slower", ["help"])
    assert measure.series is not None
    assert measure.again is not None  # it was looked at a second time
    assert len(measure.series.base_s) == len(measure.again.head_s) == ROUNDS
    for series in (measure.series, measure.again):
        assert series.base_s == pytest.approx([1.0] * ROUNDS, rel=0.011)
        assert series.head_s == pytest.approx([1.5] * ROUNDS, rel=0.011)
        assert series.ratio == pytest.approx(1.5, rel=0.021)
        assert 1.1 < series.ratio_low < series.ratio < series.ratio_high
    assert found.to_json()["verdict"] == "regression"
    back = compare_overhead(slow, quick, rounds=ROUNDS, only=["help"])
    assert (back.measures[0].verdict, back.regressions) == ("faster", [])


def test_a_tree_against_itself_is_no_regression_and_only_what_became_slower_is_one(tmp_path: Path, given: None) -> None:
    same, slow_list = tree(tmp_path / "same"), tree(tmp_path / "list", list_s=2.0)
    found = compare_overhead(same, same, rounds=ROUNDS, only=["help"])
    assert (found.measures[0].verdict, found.regressions) == ("no difference", [])
    found = compare_overhead(same, slow_list, rounds=3, only=["help", "list"])
    assert [m.name for m in found.regressions] == ["list"]


def test_the_fastest_of_a_few_starts_counts(tmp_path: Path, given: None) -> None:
    """What the clock says of the first three: 1.00, 0.99 and 1.01 s."""
    assert harness._start(tree(tmp_path), "--help") == pytest.approx(0.99)


def test_what_a_tree_does_not_have_is_not_measured_and_says_why(tmp_path: Path) -> None:
    same = tree(tmp_path)
    found = compare_overhead(same, same, rounds=3, only=["parse", "report"])
    assert [m.verdict for m in found.measures] == ["not measured"] * 2
    assert "no suites/*.toml" in str(found.measures[0].reason)
    assert found.to_json()["verdict"] == "inconclusive"


def test_a_tree_that_breaks_is_not_measured_and_never_slower(tmp_path: Path) -> None:
    broken = tree(tmp_path / "broken")
    (broken / "energybench/__main__.py").write_text("raise RuntimeError('on purpose')\n")
    found = compare_overhead(tree(tmp_path / "quick"), broken, rounds=3, only=["help"])
    assert found.measures[0].verdict == "not measured"
    assert "on purpose" in str(found.measures[0].reason)


def test_the_command_exits_1_on_a_regression_and_compares_commits_of_a_repository_leaving_it_as_it_was(
    tmp_path: Path, given: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    git("init", "--quiet")
    for takes_s in (1.0, 2.0):
        tree(tmp_path, takes_s)
        git("add", ".")
        git("commit", "--quiet", "-m", str(takes_s))
    (tmp_path / "inside").mkdir()
    temporary = tmp_path.parent / f"{tmp_path.name}-temporary"
    temporary.mkdir()
    monkeypatch.setattr("energybench.overhead.compare.STARTS", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path / "inside")  # a folder below, where git finds the repository
    call = ["overhead", "HEAD~1", "HEAD", "--only", "help", "--rounds", str(ROUNDS), "--json"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 1, done.output
    facts = json.loads(done.stdout)
    assert (facts["level"], facts["verdict"], facts["base"], facts["head"]) == (
        "overhead",
        "regression",
        "HEAD~1",
        "HEAD",
    )
    assert not list(temporary.glob("energybench-*"))
    assert git("status", "--porcelain") == ""
    assert git("worktree", "list").count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mian"], 2, ["E660", "mian"]),
        ([tempfile.gettempdir()], 2, ["E661"]),
        ([ROOT, ROOT, "--only", "stpe"], 2, ["E662", "'step'"]),
        ([ROOT, ROOT, "--margin", "10"], 2, ["E204", "%"]),
        ([ROOT, ROOT, "--margin", "100 %"], 2, ["E204", "99 %"]),
    ],
)
def test_a_mistake_is_told_with_what_to_type(tmp_path: Path, arguments: list[Any], code: int, words: list[str]) -> None:
    done = overhead(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert all(word in done.stderr for word in [*words, "hint:"])
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_table_fits_any_terminal_and_strict_exits_4_where_nothing_is_decided(tmp_path: Path, width: int) -> None:
    same = tree(tmp_path / "a")
    done = overhead("a", "a", "--only", "parse", "--rounds", 3, "--strict", cwd=tmp_path, COLUMNS=str(width))
    assert same.exists()
    assert done.returncode == 4
    assert all(len(line) <= width for line in done.stdout.splitlines()), done.stdout
    assert "not measured" in " ".join(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "help", "list", "parse", "report", "method nothing"])
def test_every_measure_of_this_tree_can_be_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energybench.overhead.compare.STARTS", 1)
    costs = harness._timers(ROOT, list(harness.DESCRIPTIONS), ["nothing"])
    assert list(costs) == [*harness.DESCRIPTIONS, "method nothing"]
    assert costs[name](ROOT) > 0


def test_a_tree_may_keep_what_it_compiles_or_an_unpacked_one_is_slower_at_every_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "energybench").mkdir()
    for name, text in (("__init__", ""), ("__main__", "import energybench.told"), ("told", "print('told')")):
        (tmp_path / f"energybench/{name}.py").write_text(text)
    assert harness._call(tmp_path, ["-m", "energybench"]) == "told\n"
    assert list(tmp_path.rglob("told*.pyc"))


@pytest.mark.parametrize("which", [0, -1], ids=["of today", "of before the rooms"])
def test_what_is_timed_is_found_in_the_layout_of_the_tree(tmp_path: Path, which: int) -> None:
    """Each in the first, or the last, of its places: an attribute of a module, or a module."""
    probe = runpy.run_path(str(harness.PROBE))
    places = {name: f"energybench.{choices[which]}" for name, choices in probe["PLACES"].items()}
    for name, place in places.items():
        module, _, attribute = place.rpartition(".")
        whole = name == "discovery"
        file = tmp_path.joinpath(*(place if whole else module).split(".")).with_suffix(".py")
        for folder in list(file.parents)[: len(file.relative_to(tmp_path).parts) - 1]:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
        with file.open("a") as opened:
            opened.write("" if whole else f"class {attribute}: pass\n")
    assert found_in(tmp_path, list(places)) == list(places.values())


@pytest.mark.parametrize("renamed_here", [True, False], ids=["under its new name", "under its old name"])
def test_a_name_that_changed_inside_its_module_is_found_in_trees_of_either_day(
    tmp_path: Path, renamed_here: bool
) -> None:
    """In a module that both have."""
    (tmp_path / "energybench").mkdir()
    (tmp_path / "energybench" / "__init__.py").touch()
    (tmp_path / "energybench" / "here.py").write_text(f"class {'New' if renamed_here else 'Old'}: pass\n")
    choices = ("here.New", "here.Old")
    place = f"energybench.{choices[0 if renamed_here else 1]}"
    assert found_in(tmp_path, ["it"], f"probe['PLACES']['it'] = {choices!r}") == [place]


def found_in(tree: Path, names: Sequence[str], first: str = "") -> list[str]:
    """Where the probe finds each of these in a tree, as "module.attribute" or "module"."""
    code = (
        f"import runpy; probe = runpy.run_path({str(harness.PROBE)!r})\n{first}\n"
        f"for name in {list(names)!r}:\n"
        "    it = probe['of_tree'](name)\n"
        "    print(f'{it.__module__}.{it.__name__}' if hasattr(it, '__module__') else it.__name__)\n"
    )
    return harness._call(tree, ["-P", "-c", code]).split()


@pytest.mark.slow
def test_a_sleep_in_the_loop_of_a_tree_is_in_the_step_that_is_timed_there(tmp_path: Path) -> None:
    for part in ("energybench", "methods", "suites"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    loop = tmp_path / "energybench/train/run.py"
    text = loop.read_text()
    line = "        self.tally.begin_step()\n"
    assert text.count(line) == 1
    loop.write_text(text.replace(line, f"{line}        __import__('time').sleep(0.002)\n"))
    assert harness._timers(ROOT, ["step"], ())["step"](tmp_path) >= 0.002


def test_as_a_level_of_the_gate_it_stands_by_itself_and_is_the_same_verb() -> None:
    mixed = CliRunner().invoke(app, ["compare", "--level", "overhead", "--level", "counts", "a", "b"])
    assert mixed.exit_code == 2
    assert "stands by itself" in mixed.output
    nowhere = CliRunner().invoke(app, ["compare", "--level", "overhead", "no-such-tree", "."])
    assert isinstance(nowhere.exception, UsageError)
    assert nowhere.exception.problems[0].code == "E660"
