"""What is known of a suite's commands before the first runs: cells, their fingerprints, programs, cards."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import UUID, FakeGpu

from energybench.process.forkserver import Launcher
from energybench.runner import plan_request as planned
from energybench.runner.command_plan import CommandPlan
from energybench.runner.plan_request import spec_of
from energybench.suite import suite

SUITE = """\
schema = 1
suite = "scripts"
[measure]
energy = "off"
[[workload]]
name = "mine"
command = "sh train.sh --epochs {epochs} --seed {seed} --config=conf.txt"
options = { epochs = 3 }
quality = { from = "json" }
[[method]]
name = "trick"
command = "sh train.sh --epochs {epochs} --seed {seed} --rate {rate}"
sweep = { rate = [1, 2] }
claims = { training = "20 %", from = "me" }
tuned = { trials = 4 }
"""


def plan(folder: Path, text: str = SUITE, device: str | None = None, **options: Any) -> dict[str, Any]:
    for name in ("train.sh", "conf.txt"):
        if not (folder / name).exists():
            (folder / name).write_text("exit 0\n")
    path = folder / "scripts.toml"
    path.write_text(text)
    spec = spec_of(suite.load(path, **options), folder, device=device, download=False)
    return CommandPlan(spec).result().model_dump(mode="json")


def cells(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["method"]: cell for cell in result["cells"]}


def test_every_cell_has_its_words_with_options_and_sweeps_in_place_and_the_seed_left_open(tmp_path: Path):
    found = cells(plan(tmp_path))
    plain = ["sh", "train.sh", "--epochs", "3", "--seed", "{seed}", "--config=conf.txt"]
    assert list(found) == ["baseline", "twin", "trick[rate=1]", "trick[rate=2]"]
    assert found["baseline"]["command"] == found["twin"]["command"] == plain
    assert found["trick[rate=2]"]["command"][-2:] == ["--rate", "2"]
    assert found["trick[rate=1]"]["claim"] == {"saving_rel": 0.2, "of": "training", "source": "me"}
    assert found["trick[rate=1]"]["tuned_trials"] == 4
    assert {cell["expected_s"] for cell in found.values()} == {None}  # nobody knows


def test_a_fingerprint_covers_what_runs_and_every_file_that_it_names(tmp_path: Path):
    before = plan(tmp_path)
    assert plan(tmp_path)["digest"] == before["digest"]
    assert {"train.sh", "conf.txt"} <= set(before["sources"])
    (tmp_path / "conf.txt").write_text("other\n")  # behind an equals sign; only the baseline names it
    changed = plan(tmp_path)
    assert cells(changed)["baseline"]["digest"] != cells(before)["baseline"]["digest"]
    assert cells(changed)["trick[rate=1]"]["digest"] == cells(before)["trick[rate=1]"]["digest"]
    (tmp_path / "train.sh").write_text("exit 1\n")
    assert cells(plan(tmp_path))["trick[rate=1]"]["digest"] != cells(before)["trick[rate=1]"]["digest"]
    assert plan(tmp_path, overrides=["workload.options.epochs=4"])["digest"] != changed["digest"]


@pytest.mark.parametrize("shape", ["../train.py", "{absolute}", "linked.py", "--main=../train.py"])
def test_a_script_that_stands_outside_the_suites_folder_is_fingerprinted_too(tmp_path: Path, shape: str):
    home, script = tmp_path / "suites", tmp_path / "train.py"
    home.mkdir()
    script.write_text("print(1)\n")
    (home / "linked.py").symlink_to(script)
    text = SUITE.replace("sh train.sh --epochs", f"{shlex.quote(sys.executable)} {shape} --epochs")
    text = text.replace("{absolute}", shlex.quote(str(script)))
    before = plan(home, text)
    assert not before["problems"]
    assert plan(home, text)["digest"] == before["digest"]
    script.write_text("print(2)\n")
    assert plan(home, text)["digest"] != before["digest"]


@pytest.mark.parametrize("shape", ["../fien.py", "{absolute}"])
def test_a_script_outside_the_suites_folder_that_is_not_there_is_told_with_its_neighbour(tmp_path: Path, shape: str):
    home = tmp_path / "suites"
    home.mkdir()
    (tmp_path / "fine.py").write_text("print(1)\n")
    word = shape.replace("{absolute}", str(tmp_path / "fien.py"))
    found = plan(home, SUITE.replace("sh train.sh --epochs", f"python3 {shlex.quote(word)} --epochs"))
    told = [problem for problem in found["problems"] if problem["code"] == "E422"]
    assert told
    assert all(f"did you mean '{word.replace('fien', 'fine')}'?" == problem["hint"] for problem in told)


def test_a_script_that_a_shells_string_names_is_fingerprinted(tmp_path: Path):
    text = SUITE.replace(
        "sh train.sh --epochs {epochs} --seed {seed} --config=conf.txt",
        "sh -c 'sh train.sh --epochs {epochs} > log; cat log'",
    )
    before = plan(tmp_path, text)
    assert "train.sh" in before["sources"]
    (tmp_path / "train.sh").write_text("exit 3\n")
    assert cells(plan(tmp_path, text))["baseline"]["digest"] != cells(before)["baseline"]["digest"]


def test_the_files_that_stand_for_a_seed_or_a_block_are_fingerprinted(tmp_path: Path):
    """Three declared blocks from seed 7: split_7 to split_9 are read, split_10 is not, nor does a block added later
    make another run."""
    text = SUITE.replace("conf.txt", "split_{seed}.txt").replace(
        'suite = "scripts"', 'suite = "scripts"\ntrials = { blocks = 3, seed = 7 }'
    )
    for seed in range(7, 11):
        (tmp_path / f"split_{seed}.txt").write_text("a\n")
    before = plan(tmp_path, text)["digest"]
    for seed, same in ((10, True), (9, False)):
        (tmp_path / f"split_{seed}.txt").write_text("b\n")
        assert (plan(tmp_path, text)["digest"] == before) == same


@pytest.mark.parametrize("word", ["x" * 300, "a/" * 300 + "x" * 300, "--set=" + "y" * 300])
def test_a_word_too_long_for_a_files_name_names_no_file(tmp_path: Path, word: str):
    found = plan(tmp_path, SUITE.replace("--seed {seed} --config=conf.txt", f"--seed {{seed}} {word}"))
    assert not found["problems"]
    assert cells(found)["baseline"]["command"][-1] == word


def test_what_the_suite_requires_is_part_of_the_runs_digest(tmp_path: Path):
    """As in a suite that trains: declared before the first block, docs/gates.md says."""

    def digest(more: str) -> str:
        (tmp_path / "train.sh").write_text("exit 0\n")
        path = tmp_path / "scripts.toml"
        path.write_text(SUITE + more)
        return planned.plan(suite.load(path), Launcher(), tmp_path).digest

    asked = '[[require]]\nmethod = "trick*"\nsaves_at_least = "{} %"\n'
    assert len({digest(""), digest(asked.format(5)), digest(asked.format(6))}) == 3


def test_another_program_of_the_same_name_is_another_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = plan(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert plan(tmp_path)["digest"] != before["digest"]


def test_a_python_that_is_not_ours_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    text = SUITE.replace("sh train.sh", "python train.sh")
    assert any("'python' is" in note for note in plan(tmp_path, text)["notes"])
    assert not plan(tmp_path)["notes"]


def test_a_skipped_command_need_not_be_there(tmp_path: Path):
    text = SUITE.replace(
        'command = "sh train.sh --epochs {epochs} --seed {seed} --rate', 'command = "nosuch {epochs} --rate'
    )
    assert [p["code"] for p in plan(tmp_path, text)["problems"]] == ["E421"]
    skip = '[[skip]]\nmethod = "trick"\nbecause = "not installed here"\n'
    found = plan(tmp_path, text + skip)
    assert not found["problems"]
    assert cells(found)["baseline"]["skipped"] == "not installed here"  # nothing to compare it with


def test_the_cards_that_a_command_can_see_are_its_device(
    tmp_path: Path, fake_driver: Any, monkeypatch: pytest.MonkeyPatch
):
    other = "GPU-00000000-0000-0000-0000-000000000002"
    fake_driver(FakeGpu(), FakeGpu(uuid=other))
    path = tmp_path / "scripts.toml"
    path.write_text(SUITE.replace('energy = "off"', ""))

    def planned(device: str | None = None) -> CommandPlan:
        return CommandPlan(spec_of(suite.load(path), tmp_path, device=device, download=False))

    assert planned().device_name == f"{UUID}+{other}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert (planned().device_name, planned().gpus()) == (other, (other,))
    assert (planned("cpu").device_name, planned("cpu").gpus()) == ("cpu", "used")
    assert [p.code for p in planned("cuda:1").problems] == ["E521"]
