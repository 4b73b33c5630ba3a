"""Scripts as one finds them, in examples/: each runs unchanged as a suite, and each wrongly written one is refused.

One block of a plain command and its variant each; that a report holds what a reviewer asks for is test_examples.py's.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from command_line import energybench
from tiny_runs import Done, contents, only_run

from energybench.records.record import Trial

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COMPILER = pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is no C compiler")
LEAST = ("--quick", "--set", "trials.blocks=1", "--set", "trials.twin=false", "--set", "measure.energy=off")


def copied(home: Path, name: str, *changes: tuple[str, str, str]) -> Path:
    """An example alone, as a fresh clone has it; changes: (file, what stands there, what shall)."""
    folder = home / name
    shutil.copytree(ROOT / "examples" / name, folder, ignore=shutil.ignore_patterns("__pycache__", "output"))
    for file, old, new in changes:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))
    return folder


def run(folder: Path, *options: str) -> Done:
    home, suite = folder.parent, folder.name.replace("_", "-")
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    process = energybench("run", f"{folder.name}/suite.toml", *LEAST, *options, cwd=home, timeout=600, **path)
    return Done(process, home, folder, only_run(home, suite) if (home / "reports").exists() else home)


def trials_of(done: Done) -> list[Trial]:
    found = contents(done.folder)[1].values()
    return sorted(found, key=lambda trial: (trial.block, trial.position))


def flags_of(trial: Trial) -> list[str]:
    return [flag.code for flag in trial.flags]


def in_folder(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("argparse_percent", {"accuracy"}),
        pytest.param("c_window", {"error"}, marks=COMPILER),
        ("nanogpt_loop", {"val_loss", "train_loss"}),
        ("trainer_output_folder", {"eval_loss"}),
        ("torchrun_gloo", {"loss"}),
    ],
)
def test_a_public_script_runs_unchanged_and_leaves_nothing_in_its_folder(
    tmp_path: Path, name: str, metrics: set[str]
) -> None:
    if name == "trainer_output_folder":
        pytest.importorskip("accelerate")
    folder = copied(tmp_path, name)
    before = in_folder(folder)
    done = run(folder)
    assert done.process.returncode == 0, done.process.stdout + done.process.stderr
    trials = trials_of(done)
    assert len(trials) == 2
    for trial in trials:
        assert trial.status == "ok", trial.reason
        assert set(trial.quality) == metrics
        assert "files_found" not in flags_of(trial)
    assert in_folder(folder) == before
    if name == "argparse_percent":
        assert all(1 < trial.quality["accuracy"] <= 100 for trial in trials)
    if name == "c_window":  # billed for its window, which is less than compiling and starting
        for trial in trials:
            assert trial.train is not None
            assert trial.train.wall_s < 0.9 * trial.phases["command"].wall_s
            assert trial.steps == 2_000
    if name == "torchrun_gloo":
        assert {trial.environment["ranks"] for trial in trials} == {2}
        assert "starts 2 ranks, billed together" in done.process.stderr


def test_a_percentage_under_a_margin_in_points_ends_the_run(tmp_path: Path) -> None:
    folder = copied(tmp_path, "argparse_percent", ("suite.toml", ', scale = "percent"', ""))
    done = run(folder)
    assert done.process.returncode == 3
    (trial,) = trials_of(done)  # no other one ran for nothing
    assert trial.status == "failed"
    assert 'scale = "percent" beside metric = "accuracy"' in (trial.reason or "")
    assert "--keep-going" in done.process.stderr
    assert "energybench reread" in done.process.stderr


def test_quality_is_read_again_from_logs_under_the_margin_that_was_declared(tmp_path: Path) -> None:
    folder = copied(tmp_path, "argparse_percent", ("suite.toml", ', scale = "percent"', ""))
    done = run(folder, "--keep-going")
    assert [trial.status for trial in trials_of(done)] == ["failed", "failed"]
    text = (folder / "suite.toml").read_text()

    def reread(suite: str) -> tuple[int, str]:
        (folder / "suite.toml").write_text(suite)
        again = energybench("reread", done.folder, folder / "suite.toml", cwd=tmp_path)
        return again.returncode, again.stderr

    code, said = reread(text.replace('"1 pp"', '"5 pp", scale = "percent"'))
    assert (code, "the margin of 'clusters' was declared before the first trial" in said) == (2, True)
    code, said = reread(text.replace('"1 pp"', '"1 pp", scale = "percent", better = "lower"'))
    assert (code, "declared better when higher" in said) == (2, True)
    assert [trial.status for trial in trials_of(done)] == ["failed", "failed"]

    code, said = reread(text.replace('"1 pp"', '"1 pp", scale = "percent"'))
    assert (code, "2 trials read again" in said) == (0, True), said
    trials = trials_of(done)
    assert [trial.status for trial in trials] == ["ok", "ok"]
    assert all(1 < trial.quality["accuracy"] <= 100 for trial in trials)
    run_file = contents(done.folder)[0]
    assert "quality read again" in run_file.stamp
    assert run_file.metrics["clusters"]["accuracy"].scale == "percent"
    facts = json.loads(energybench("report", done.folder, "--json", cwd=tmp_path).stdout)
    assert facts["workloads"][0]["rows"][0]["quality"]["metric"] == "accuracy"


@COMPILER
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("t.tv_sec + (double)t.tv_nsec / 1e9", "t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6", "look like milliseconds"),
        ("start, stop, steps", "stop, start, steps", "before it starts"),
    ],
)
def test_a_c_program_that_writes_another_unit_or_order_is_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    done = run(copied(tmp_path, "c_window", ("train.c", old, new)))
    assert done.process.returncode == 3
    (trial,) = trials_of(done)
    assert trial.status == "failed"
    assert words in (trial.reason or "")


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [("nanogpt_loop", "{scratch}", "out", "out/ckpt.pt"), ("trainer_output_folder", 'cwd     = "copy"', "", "output/")],
)
def test_a_script_that_finds_the_last_trials_checkpoint_is_struck(
    tmp_path: Path, name: str, old: str, new: str, found: str
) -> None:
    if name == "trainer_output_folder":
        pytest.importorskip("accelerate")
    done = run(copied(tmp_path, name, ("suite.toml", old, new)))
    first, second = trials_of(done)
    assert "files_found" not in flags_of(first)
    assert "files_found" in flags_of(second)
    assert found in next(flag.detail for flag in second.flags if flag.code == "files_found")


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("--steps {steps}", "--steps {step}", "E202", "did you mean 'step'?"),
        ("nproc_per_node=2", "nproc_per_node={ranks}", "E205", "nothing gives a value to {ranks}"),
    ],
)
def test_a_typo_in_a_command_runs_no_trial(tmp_path: Path, old: str, new: str, code: str, words: str) -> None:
    folder = copied(tmp_path, "torchrun_gloo", ("suite.toml", old, new))
    done = run(folder)
    assert done.process.returncode == 2
    assert code in done.process.stderr
    assert words in done.process.stderr
    assert not (tmp_path / "reports").exists()
