"""The examples, each compared with a variant of itself, end to end: the report holds what a reviewer asks for."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from command_line import energybench
from tiny_runs import Done, contents, only_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {  # folder → suite, metric, trials of the quick overlay, what the variant is called
    "plain_pytorch": ("plain-pytorch", "accuracy", 9, "selective"),
    "huggingface": ("huggingface", "eval_loss", 6, "freeze 2"),
    "shell": ("shell", "ratio", 9, "gzip[level=6]"),
}


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Done]:
    """A copy of the example, run from another folder with nothing but its own files beside it."""
    home = tmp_path_factory.mktemp(request.param)
    if request.param == "huggingface":
        pytest.importorskip("accelerate")
    shutil.copytree(ROOT / "examples" / request.param, home / "example")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = energybench("run", "example/suite.toml", "--quick", cwd=home, timeout=900, PATH=path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return request.param, Done(done, home, home / "example", only_run(home, EXAMPLES[request.param][0]))


def test_every_trial_is_the_command_with_its_own_seed_and_has_its_quality(example: tuple[str, Done]):
    name, done = example
    _, metric, count, _ = EXAMPLES[name]
    run, trials, counting_runs = contents(done.folder)
    assert len(trials) == count
    assert not counting_runs
    for trial in trials.values():
        assert trial.status == "ok", trial.reason
        assert trial.quality[metric] > 0
        if "--seed" in trial.settings["command"]:
            assert trial.settings["command"][trial.settings["command"].index("--seed") + 1] == str(trial.seed)
    assert run.finished
    left = {path.name for path in done.suite.iterdir()} - {"suite.toml", "train.py", "compress.sh", "__pycache__"}
    assert not left


def test_a_pair_shares_its_seed_so_the_twin_has_the_same_quality(example: tuple[str, Done]):
    name, done = example
    _, trials, _ = contents(done.folder)
    by = {(t.method, t.block): t for t in trials.values()}
    for (method, block), trial in by.items():
        if method == "twin":
            assert trial.quality == pytest.approx(by["baseline", block].quality)
    if name != "shell":  # whose result depends on nothing
        qualities = {tuple(t.quality.values()) for t in trials.values() if t.method == "baseline"}
        assert len(qualities) > 1


def test_the_report_says_quantity_interval_verdict_why_not_and_how_to_reproduce(example: tuple[str, Done]):
    name, done = example
    suite, metric, _, method = EXAMPLES[name]
    facts = json.loads(energybench("report", done.folder, "--json", cwd=done.home).stdout)
    row = facts["workloads"][0]["rows"][0]
    assert row["method"] == method
    assert row["n"] == 3
    assert row["measured"]["low_rel"] < row["measured"]["saving_rel"] < row["measured"]["high_rel"]
    assert row["quality"]["metric"] == metric
    assert row["quality"]["bound"] is not None
    assert row["estimated_rel"] is None
    assert row["counted_rel"] is None
    text = (done.folder / "report.md").read_text()
    plain = text.replace("\\", "")
    assert f"| measured {row['measured']['quantity']} " in text
    assert f"**{row['verdict']}**" in text
    assert "not available" in text
    assert "outside energybench's loop" in text
    assert "no matched control" in text
    assert "energybench run example/suite.toml --quick" in text
    assert f"{suite} (quick)" in text
    assert row["command"] in plain
    assert facts["workloads"][0]["command"] in plain
    assert "sha256" in text
    assert (row["claimed_rel"] is not None) == (name != "shell")


def test_every_page_can_be_written(example: tuple[str, Done]):
    _, done = example
    assert energybench("report", done.folder, "--html", cwd=done.home).returncode == 0
    page = (done.folder / "report.html").read_text()
    assert "not available" in page
    for arguments in (
        ["show", done.folder],
        ["report", done.folder, "--carbon"],
        ["export", done.folder, "--to", "csv"],
    ):
        shown = energybench(*arguments, cwd=done.home, COLUMNS="60")
        assert shown.returncode == 0, shown.stderr
        assert "Traceback" not in shown.stderr
