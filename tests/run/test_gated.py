"""Real runs of one suite, held against each other and against what the suite requires."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import light
import pytest
from command_line import energybench
from tiny_runs import suite_text

from energybench.stats import paired

pytestmark = pytest.mark.slow

METHODS = '\n[[method]]\nuse = "gradsamp"\nskip = "every:2"\n'
ANY = [word for word in get_args(paired.Verdict) if word not in ("no verdict", "not reached")]


def write(home: Path, require: str = "", blocks: int = 1, **trials: object) -> Path:
    path = home / "tiny.toml"
    path.write_text(suite_text(METHODS + require, blocks=blocks, **trials), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BASE and HEAD: one suite run twice."""
    home = tmp_path_factory.mktemp("gated")
    write(home)
    for name in ("base", "head"):
        done = energybench("run", "tiny.toml", "--new", "--out", name, cwd=home)
        assert done.returncode == 0, done.stderr
    return home


def test_two_runs_of_one_suite_count_the_same_and_can_be_compared_level_by_level(home: Path) -> None:
    done = energybench(
        "compare", "base", "head", "--level", "counts", "--level", "savings", "--level", "absolute", "--json", cwd=home
    )
    found = json.loads(done.stdout)["findings"]
    # What became slower between two runs of this machine is not for us to say, but its status is that of what it says.
    fails = {"regression", "changed", "gone", "not met"}
    if any(each["outcome"] in fails for each in found):
        assert done.returncode == 1, done.stderr
    else:  # one block of each sees nothing, and says so
        assert done.returncode == 4, done.stderr
    counts = [each for each in found if each["level"] == "counts"]
    assert {each["outcome"] for each in counts} == {"same"}
    assert {each["method"] for each in counts} == {"baseline", "gradsamp", "gradsamp matched"}
    assert {each["method"] for each in found if each["level"] == "absolute"} == {"baseline", "gradsamp"}


def test_what_flops_counts_without_metering_is_what_the_run_counted(home: Path) -> None:
    done = energybench("flops", "tiny.toml", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "flops.json").write_text(done.stdout)
    for base, head in (("base", "flops.json"), ("flops.json", "head")):
        done = energybench("compare", base, head, "--json", cwd=home)
        assert done.returncode == 0, done.stderr
        assert {each["outcome"] for each in json.loads(done.stdout)["findings"]} == {"same"}


def test_a_method_that_computes_something_else_breaks_the_golden_counts(home: Path) -> None:
    assert energybench("compare", "golden.json", "base", "--accept", cwd=home).returncode == 0
    shutil.copy(home / "tiny.toml", home / "keep.toml")
    try:
        text = (home / "tiny.toml").read_text().replace('"every:2"', '"every:3"')
        (home / "tiny.toml").write_text(text)
        counted = energybench("flops", "tiny.toml", "--json", cwd=home)
        (home / "other.json").write_text(counted.stdout)
    finally:
        shutil.copy(home / "keep.toml", home / "tiny.toml")
    done = energybench("compare", "golden.json", "other.json", cwd=home)
    assert done.returncode == 1
    assert "w: gradsamp, counted_flop" in " ".join(done.stdout.split())


def test_a_requirement_ends_run_report_and_compare_with_one_code(tmp_path: Path) -> None:
    """A run whose seconds are given (light.py): what is asked for is never there."""
    never = f'\n[[require]]\nmethod = "mine"\nnever = {json.dumps(ANY)}\n'
    (tmp_path / "light.toml").write_text(light.SUITE + never, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(light.__file__), "light.toml", "--out", "out"],
        cwd=tmp_path,
        text=True,
        env=light.environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "not met: w: mine must never be: saves" in " ".join(done.stdout.split())
    assert "## What the suite requires" in (tmp_path / "out" / "report.md").read_text()
    assert energybench("report", "out", "--require", cwd=tmp_path).returncode == 1
    assert energybench("compare", "out", cwd=tmp_path).returncode == 1


def test_one_block_leaves_a_requirement_undecided_which_only_strict_minds(tmp_path: Path) -> None:
    """Whatever was measured: one block decides nothing."""
    write(tmp_path, '\n[[require]]\nsaves_at_least = "90 %"\n')
    assert energybench("run", "tiny.toml", "--out", "out", "--strict", cwd=tmp_path).returncode == 4
    assert energybench("report", "out", "--require", cwd=tmp_path).returncode == 0
    assert energybench("report", "out", "--require", "--strict", cwd=tmp_path).returncode == 4
