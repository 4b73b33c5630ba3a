"""What docs/ci.md offers to copy does what it says: the workflows' commands that need no network, and the hook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import SERVER

ROOT = Path(__file__).resolve().parent.parent
OURS = ROOT / ".github/workflows/energybench.yml"
PAGE = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
NEEDS_NETWORK = re.compile(r"pip install|pip-audit|make setup")
SUITE = """schema = 1
suite = "mine"
[trials]
blocks = 1
threads = 1
twin = true
warmup = "1 steps"
[measure]
energy = "off"
[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 2, lr = 0.1 }
[[method]]
use = "dropout"
p = 0.1
"""


def template() -> dict[str, Any]:
    found = re.search(r"<!-- template -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return dict(yaml.safe_load(found[1]))


WORKFLOWS = {"ours": yaml.safe_load(OURS.read_text(encoding="utf-8")), "template": template()}


def commands(workflow: dict[str, Any], job: str) -> list[str]:
    return [step["run"].strip() for step in workflow["jobs"][job]["steps"] if "run" in step]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's repository, and an `energybench` on the path that is this one."""
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites/mine.toml").write_text(SUITE, encoding="utf-8")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    SERVER.command(tmp_path / ".venv/bin/energybench")
    return tmp_path


def shell(text: str, project: Path, **environment: str) -> Any:
    """As a build server calls it."""
    known = {"PATH": f"{project / '.venv/bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text],
        cwd=project,
        text=True,
        env={**os.environ, **known},
        capture_output=True,
        timeout=600,
        check=False,
    )


def knows(verb: str) -> bool:
    from energybench.cli.command_line import app

    return verb in app.commands


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read_ends_by_itself_and_names_every_actions_version(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 360
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step.get("uses", "a/b@v1"))
            assert "${{" not in step.get("run", "")  # what others write reaches a shell through `env` alone
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False


def test_our_workflow_runs_what_decides_whether_a_change_lands() -> None:
    assert commands(WORKFLOWS["ours"], "tests") == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.slow
def test_the_counts_of_a_commit_are_held_against_the_golden_file(project: Path) -> None:
    steps = [text for text in commands(WORKFLOWS["template"], "counts") if not NEEDS_NETWORK.search(text)]
    assert len(steps) == 3
    written = re.findall(r"`(energybench (?:flops|compare)[^`]*)`", PAGE.replace("\n", " "))[:2]
    assert len(written) == 2
    if not knows("compare"):
        written, steps = written[:1], steps[:2]
    for text in (*written, *steps):
        done = shell(text, project)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert (project / "counts.json").stat().st_size
    if not knows("compare"):
        pytest.skip("energybench compare is not there yet; the other commands ran")
    assert (project / "counts.xml").stat().st_size
    changed = SUITE.replace("channels = [2, 2]", "channels = [2, 3]")
    (project / "suites/mine.toml").write_text(changed, encoding="utf-8")
    codes = [shell(text, project).returncode for text in steps]
    assert codes[:2] == [0, 0]
    assert codes[2] != 0


@pytest.mark.slow
def test_the_nights_run_trains_every_cell_and_leaves_its_report_on_the_jobs_page(project: Path) -> None:
    steps = [text for text in commands(WORKFLOWS["template"], "savings") if not NEEDS_NETWORK.search(text)]
    assert len(steps) == 2
    page = project / "summary.md"
    page.write_text("before\n")
    for text in steps:
        done = shell(text, project, GITHUB_STEP_SUMMARY=str(page))
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert page.read_text().startswith("before\n")
    assert "dropout" in page.read_text()


@pytest.mark.slow
def test_our_overhead_job_compares_two_commits(project: Path) -> None:
    """In a fresh clone; with two of its measures in the place of all, and three rounds in that of seven."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    clone = project / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    (project / ".venv").rename(clone / ".venv")
    (clone / ".venv/bin/energybench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m energybench "$@"\n')
    (text,) = [text for text in commands(WORKFLOWS["ours"], "overhead") if not NEEDS_NETWORK.search(text)]
    assert "--rounds 7" in text
    text = text.replace("--rounds 7", "--rounds 3 --only parse --only help")
    done = shell(text, clone, BASE="HEAD", PYTHONPATH=str(clone))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "reading a suite" in done.stdout


# ── the hook ──────────────────────────────────────────────────────────────────────────────────────────────

(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))


def test_the_hook_is_about_suites_alone() -> None:
    files = [
        path
        for path in ("suites/mine.toml", "suites/deep/mine.toml", "pyproject.toml", "suites/mine.toml.md")
        if re.search(HOOK["files"], path)
    ]
    assert files == ["suites/mine.toml", "suites/deep/mine.toml"]
    assert HOOK["id"] in PAGE


@pytest.mark.slow
def test_the_hook_passes_good_suites_and_tells_the_mistakes_of_all_that_are_not(project: Path) -> None:
    for name, wrong in (("a", "channls = [2, 2]"), ("b", 'use = "dropuot"')):
        right = wrong.replace("channls", "channels").replace("dropuot", "dropout")
        (project / f"suites/{name}.toml").write_text(SUITE.replace(right, wrong), encoding="utf-8")
    good = shell(f"{HOOK['entry']} suites/mine.toml", project)
    assert good.returncode == 0, good.stderr
    bad = shell(f"{HOOK['entry']} suites/a.toml suites/mine.toml suites/b.toml", project)
    assert bad.returncode == 2
    assert re.search(r"suites/a\.toml:\d+:\d+: .*channls", bad.stderr)
    assert re.search(r"suites/b\.toml:\d+:\d+: .*dropuot", bad.stderr)
    assert "No mistake found" in bad.stdout  # of the one between them
    assert "Traceback" not in bad.stderr


@pytest.mark.slow
def test_json_is_about_one_suite(project: Path) -> None:
    done = shell("energybench check suites/mine.toml suites/mine.toml --json", project)
    assert done.returncode == 2
    assert "one suite" in done.stderr
