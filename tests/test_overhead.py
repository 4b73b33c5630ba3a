"""The harness against itself: trees whose start is known to take longer, and the real tree with a sleep in its loop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from energybench.overhead import compare_overhead

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 4


def tree(folder: Path, sleep_s: float) -> Path:
    """A tree whose command does nothing but sleep."""
    package = folder / "energybench"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(f"import time\ntime.sleep({sleep_s})\n")
    return folder


def overhead(*arguments: object, cwd: Path, **environment: str) -> Any:
    return subprocess.run([sys.executable, "-m", "energybench", "overhead", *map(str, arguments)], cwd=cwd, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, timeout=300,
                          check=False)  # fmt: skip


def test_a_start_that_takes_much_longer_is_slower_twice_and_the_other_way_round_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("energybench.overhead.STARTS", 1)
    quick, slow = tree(tmp_path / "quick", 0.0), tree(tmp_path / "slow", 0.5)
    found = compare_overhead(quick, slow, rounds=ROUNDS, only=["help"])
    (measure,) = found.measures
    assert (measure.verdict, [m.name for m in found.regressions]) == ("slower", ["help"])
    assert measure.series is not None
    assert measure.again is not None  # it was looked at a second time
    assert len(measure.series.base_s) == len(measure.again.head_s) == ROUNDS
    assert min(measure.series.head_s) >= 0.5
    assert measure.series.ratio_low > 1.1
    assert found.to_json()["verdict"] == "regression"
    back = compare_overhead(slow, quick, rounds=ROUNDS, only=["help"])
    assert (back.measures[0].verdict, back.regressions) == ("faster", [])


def test_a_tree_against_itself_is_no_regression(tmp_path: Path) -> None:
    same = tree(tmp_path, 0.02)
    assert not compare_overhead(same, same, rounds=ROUNDS, only=["help"]).regressions


def test_what_a_tree_does_not_have_is_not_measured_and_says_why(tmp_path: Path) -> None:
    same = tree(tmp_path, 0.0)
    found = compare_overhead(same, same, rounds=3, only=["parse", "report"])
    assert [m.verdict for m in found.measures] == ["not measured"] * 2
    assert "no suites/*.toml" in str(found.measures[0].reason)
    assert found.to_json()["verdict"] == "inconclusive"


def test_a_tree_that_breaks_is_not_measured_and_never_slower(tmp_path: Path) -> None:
    broken = tree(tmp_path / "broken", 0.0)
    (broken / "energybench/__main__.py").write_text("raise RuntimeError('on purpose')\n")
    found = compare_overhead(tree(tmp_path / "quick", 0.0), broken, rounds=3, only=["help"])
    assert found.measures[0].verdict == "not measured"
    assert "on purpose" in str(found.measures[0].reason)


@pytest.mark.slow
def test_the_command_exits_1_on_a_regression_and_compares_commits_of_a_repository_leaving_it_as_it_was(
    tmp_path: Path,
) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    git("init", "--quiet")
    for sleep_s in (0.0, 0.8):
        tree(tmp_path, sleep_s)
        git("add", ".")
        git("commit", "--quiet", "-m", str(sleep_s))
    (tmp_path / "inside").mkdir()
    temporary = tmp_path.parent / f"{tmp_path.name}-temporary"
    temporary.mkdir()
    # Run from a folder below, where `-m` finds the real package and git the repository.
    done = overhead("HEAD~1", "HEAD", "--only", "help", "--rounds", ROUNDS, "--json", cwd=tmp_path / "inside",
                    TMPDIR=str(temporary))  # fmt: skip
    assert done.returncode == 1, done.stderr
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
def test_a_mistake_is_told_with_what_to_type(
    tmp_path: Path, arguments: list[Any], code: int, words: list[str]
) -> None:
    done = overhead(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert all(word in done.stderr for word in [*words, "hint:"])
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_table_fits_any_terminal_and_strict_exits_4_where_nothing_is_decided(
    tmp_path: Path, width: int
) -> None:
    same = tree(tmp_path / "a", 0.0)
    done = overhead("a", "a", "--only", "parse", "--rounds", 3, "--strict", cwd=tmp_path, COLUMNS=str(width))
    assert same.exists()
    assert done.returncode == 4
    assert all(len(line) <= width for line in done.stdout.splitlines()), done.stdout
    assert "not measured" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_every_measure_of_this_tree_is_taken_and_against_itself_none_alarms() -> None:
    found = compare_overhead(ROOT, ROOT, rounds=3, methods=["nothing"],
                             only=["step", "help", "list", "parse", "report"])  # fmt: skip
    assert [m.reason for m in found.measures] == [None] * 6
    assert not found.regressions


@pytest.mark.slow
def test_a_sleep_in_the_loop_is_a_regression_of_a_step_and_of_nothing_else(tmp_path: Path) -> None:
    for part in ("energybench", "methods", "suites"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    loop = tmp_path / "energybench/loop.py"
    text = loop.read_text()
    line = "        self.tally.begin_step()\n"
    assert text.count(line) == 1
    loop.write_text(text.replace(line, f"{line}        __import__('time').sleep(0.002)\n"))
    found = compare_overhead(ROOT, tmp_path, rounds=3, only=["step", "parse"])
    assert [m.name for m in found.regressions] == ["step"]
    step = next(m for m in found.measures if m.name == "step")
    assert step.series is not None
    assert min(step.series.head_s) - min(step.series.base_s) >= 0.002 * 0.9


def test_as_a_level_of_the_gate_it_stands_by_itself_and_is_the_same_verb() -> None:
    from click.testing import CliRunner

    from energybench.cli import app
    from energybench.errors import UsageError

    mixed = CliRunner().invoke(app, ["compare", "--level", "overhead", "--level", "counts", "a", "b"])
    assert mixed.exit_code == 2
    assert "stands by itself" in mixed.output
    nowhere = CliRunner().invoke(app, ["compare", "--level", "overhead", "no-such-tree", "."])
    assert isinstance(nowhere.exception, UsageError)
    assert nowhere.exception.problems[0].code == "E660"
