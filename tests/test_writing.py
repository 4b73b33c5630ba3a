"""What helps to write a suite: hints of --set, `list NAME`, `new`, completion; and the two names of a new run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
import torch
from click.shell_completion import ShellComplete
from command_line import energybench
from support import data_settings, digits, make_run

from energybench import Batch, Task, results
from energybench.cli.command_line import app
from energybench.cli.described import describe, print_described
from energybench.cli.starting import class_name, write_data, write_method, write_model, write_suite, write_task
from energybench.common.errors import UsageError
from energybench.common.renamed import RenamedNameWarning
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.workloads import datasets
from energybench.workloads.datasets import image_folders

SUITE = """schema = 1
suite = "s"
trials = { blocks = 2, threads = 1 }
[[workload]]
name = "small"
model = { use = "cnn" }
data = { use = "digits", batch = 8 }
train = { epochs = 2, lr = 0.1 }
[[workload]]
name = "data"
extends = "small"
[[method]]
use = "gradsamp"
sweep = { skip = ["every:2", "every:3"] }
[[method]]
use = "ssprop"
drop = 0.8
[[method]]
use = ["ssprop", "dropout"]
dropout = { p = 0.2 }
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "s.toml").write_text(SUITE, encoding="utf-8")
    return tmp_path / "s.toml"


def hint_of(suite: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(suite, overrides=[text])
    return "\n".join(problem.hint for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("gradsamp.skip=every:4", "method[gradsamp].skip=every:4"),
        ("method.gradsamp.skip=every:4", "method[gradsamp].skip=every:4"),
        ("skip=every:4", None),  # swept, so that no key of that name is in the table
        ("drop=0.5", "method[ssprop].drop=0.5"),
        ("p=0.5", "method[ssprop+dropout].dropout.p=0.5"),
        ("small.train.epochs=1", "workload[small].train.epochs=1"),
        ("workload.small.train.epochs=1", "workload[small].train.epochs=1"),
        ("train.epochs=1", "workload.train.epochs=1"),
        ("epochs=1", "workload.train.epochs=1"),
        ("blocks=1", "trials.blocks=1"),
    ],
)
def test_a_wrong_set_is_told_with_the_right_one_which_then_works(suite: Path, text: str, right: str | None) -> None:
    hint = hint_of(suite, text)
    if right is None:
        assert "sweep.skip" in hint
        return
    assert re.fullmatch(f"--set '?{re.escape(right)}'?", hint)
    assert load(suite, overrides=[right]).stamp == [f"--set {right}"]


def test_a_parameter_that_one_of_several_methods_lacks_is_told_with_how_to_address_the_one_that_has_it(
    suite: Path,
) -> None:
    assert "--set 'method[gradsamp].skip=every:4'" in hint_of(suite, "method.skip=every:4")  # the stack takes none
    assert "--set 'method[ssprop].drop=0.5'" in hint_of(suite, "method.drop=0.5")
    unsaid = hint_of(suite, "method.epsilon=0.5")  # nobody has it written
    assert "method[NAME].epsilon=0.5" in unsaid
    assert "gradsamp or ssprop or ssprop+dropout" in unsaid


def test_a_key_that_is_also_an_entrys_name_is_the_key(suite: Path) -> None:
    assert load(suite, overrides=["workload.data.batch=4"]).workloads[0].data.batch == 4  # type: ignore[union-attr]


def test_the_name_in_brackets_matches_whatever_its_capitals(suite: Path) -> None:
    loaded = load(suite, overrides=["method[GradSamp].skip=every:4"])
    assert [v.stack[0].parameters for v in loaded.variants() if v.stack[0].use == "gradsamp"] == [{"skip": "every:4"}]


def test_check_says_of_a_parameter_that_another_method_takes_how_to_set_it_there(tmp_path: Path) -> None:
    text = SUITE.partition('[[method]]\nuse = ["ssprop"')[0]
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    done = energybench("check", "s.toml", "--set", "method.drop=0.5", cwd=tmp_path)
    assert done.returncode == 2
    assert "'gradsamp' takes no parameter 'drop'" in done.stderr
    assert "--set 'method[ssprop].drop=0.5'" in done.stderr


# ── list NAME ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_about_a_method_is_printed_within_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    print_described(describe("GradSamp"))
    shown = capsys.readouterr().out
    before, _, example = shown.partition("example\n")
    assert max(map(len, before.splitlines())) <= 50
    for name in ("skip", "epsilon", "location", "start_epoch", "min_real_between", "least_shape"):
        assert re.search(rf"^  {name}: ", before, re.MULTILINE)
        assert re.search(rf"^  {name} += ", example, re.MULTILINE)
    assert '"median" | "mean" | "zero" | "free"' in " ".join(before.split())
    assert "Paper: GradSamp, Algorithm 1" in " ".join(before.split())
    assert "energybench check gradsamp" in example  # a suite has that name too


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("quick", "suite"),
        ("ridge", "task"),
        ("cnn", "model"),
        ("ResNet18", "model"),
        ("CIFAR10", "data"),
        ("digits", "data"),
    ],
)
def test_other_names_are_told_of_too(name: str, kind: str) -> None:
    facts = describe(name)
    assert (facts["kind"], facts["name"]) == (kind, name.lower())
    assert json.loads(json.dumps(facts)) == facts


def test_a_name_that_nothing_has_is_told_with_the_nearest_and_never_with_a_list_of_all() -> None:
    for name, nearest in (("gradsmp", "gradsamp"), ("method", "methods"), ("resnet19", "resnet18")):
        with pytest.raises(UsageError, match=f"E615.*'{name}'") as caught:
            describe(name)
        assert f"'{nearest}'" in caught.value.problems[0].hint
    with pytest.raises(UsageError, match="E615") as caught:
        describe("zzzzzz")
    assert caught.value.problems[0].hint == "energybench list"


# ── new ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_task_model_data_set_method_and_suite_fit_each_other(tmp_path: Path) -> None:
    assert write_task("sharp_odds", tmp_path) == Path("sharp_odds.py")
    assert write_model("tiny", tmp_path) == Path("tiny.py")
    assert write_data("blobs", tmp_path) == Path("blobs.py")
    assert write_method("half", tmp_path) == Path("methods/half.py")
    write_suite("mine", tmp_path, lambda: b"{}")
    text = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    text = text.replace('use = "cnn", channels = [16, 32]', 'use = "tiny.py:tiny", width = 4')
    text = text.replace('use = "digits"', 'use = "blobs.py:blobs"').replace("blocks = 3", "blocks = 1")
    text = re.sub(r'use  = "\w+"\nskip .*', 'use = "half"', text)
    told = energybench("new", "task", "unused", cwd=tmp_path).stdout.replace(
        "unused.py:Unused", "sharp_odds.py:SharpOdds"
    )
    lines = told.partition("\n\n")[2]
    text = text.replace(
        'name  = "small"\n', f'name  = "small"\ntarget = {{ metric = "brier", at_most = 0.2 }}\n{lines}'
    )
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    done = energybench("check", "mine.toml", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "No mistake found" in shown
    assert "256 + 103 samples of blobs.py:blobs" in shown  # a fifth of 512 is for testing


def test_a_new_task_learns_as_it_is_written_and_its_score_is_briers(tmp_path: Path) -> None:
    path = tmp_path / write_task("sharp_odds", tmp_path)
    kind = discovery.load(discovery.Source(path.stem, path, "given", class_name("sharp_odds")), Task)
    run = make_run(task=kind(), epochs=3, lr=0.5)
    before = run.evaluate(digits(test=True))["brier"]
    run.train()
    after = run.evaluate(digits(test=True))["brier"]
    assert after < before < 0.91  # of ten classes, chance has a Brier score of 0.9² + 9·0.1² = 0.9
    outputs, targets = torch.tensor([[0.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 1])
    losses = kind(temperature=2.0).losses(run, outputs, Batch(outputs, targets, targets))
    assert losses.tolist() == pytest.approx([0.5, 2.0])  # an even guess; all on the wrong class
    with pytest.raises(ValueError, match="temperature"):
        kind(temperature=0.0)
    assert (kind.name, kind.metrics["brier"].better) == ("sharp_odds", "lower")


@pytest.mark.parametrize("write", [write_task, write_model, write_data, write_method])
def test_a_file_that_is_there_is_never_written_over(write: object, tmp_path: Path) -> None:
    assert callable(write)
    path = tmp_path / write("mine", tmp_path)
    path.write_text("kept", encoding="utf-8")
    with pytest.raises(UsageError, match="E305"):
        write("mine", tmp_path)
    assert path.read_text(encoding="utf-8") == "kept"
    for name in ("a-b", "1st", "class", "../x", "", "_mine"):
        with pytest.raises(UsageError, match="E305"):
            write(name, tmp_path)


def test_a_new_suite_keeps_a_schema_that_is_there_and_has_a_name_that_a_run_can_have(tmp_path: Path) -> None:
    (tmp_path / "suite.schema.json").write_text("kept", encoding="utf-8")
    assert write_suite("a.b-1", tmp_path, lambda: b"{}") == [Path("a.b-1.toml")]
    assert write_suite("other.toml", tmp_path, lambda: b"{}") == [Path("other.toml")]
    assert (tmp_path / "suite.schema.json").read_text(encoding="utf-8") == "kept"
    for name in ("Mine", "a b", "../x", ""):
        with pytest.raises(UsageError, match="E305"):
            write_suite(name, tmp_path, lambda: b"{}")


# ── completion ────────────────────────────────────────────────────────────────────────────────────────────────────────


def completed(*words: str) -> list[tuple[str, str]]:
    shell = ShellComplete(app, {}, "energybench", "_ENERGYBENCH_COMPLETE")
    return [(item.value, item.type) for item in shell.get_completions([*words[:-1]], words[-1])]


def test_a_shell_completes_verbs_options_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed("li") == [("list", "plain")]
    assert completed("run", "qui") == [("quick", "plain")]
    assert completed("run", "--qui") == [("--quick", "plain")]
    assert completed("list", "grads") == [("gradsamp", "plain")]
    assert ("resnet18", "plain") in completed("list", "resnet18")
    assert completed("list", "methods") == [("methods", "plain")]
    assert completed("run", "./mi") == [("./mi", "file")]
    (tmp_path / "quiet.toml").write_text("", encoding="utf-8")
    assert completed("check", "qui") == [("quick", "plain"), ("qui", "file")]
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "quirky.toml").write_text("", encoding="utf-8")
    assert ("quirky", "plain") in completed("flops", "qui")


def test_every_verb_that_takes_a_suite_completes_its_name() -> None:
    for name, command in app.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Argument) and parameter.name in ("suite", "suites"):
                assert parameter._custom_shell_complete is not None, name


# ── new runs, options of data ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_run_has_one_word_and_the_old_one_is_taken_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from energybench.runner import runner

    asked = []

    def stop(*_: object, **arguments: object) -> None:
        asked.append((arguments["fresh"], "--new" in arguments["argv"]))  # type: ignore[operator]
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", stop)
    for arguments in ({"new": True}, {}):
        with pytest.raises(KeyboardInterrupt):
            results.run("quick", **arguments)
    with pytest.warns(RenamedNameWarning, match="new"), pytest.raises(KeyboardInterrupt):
        results.run("quick", fresh=True)
    assert asked == [(True, True), (False, False), (True, True)]


@pytest.mark.parametrize(
    ("use", "options"),
    [("digits", {"size": 8}), ("./pets", {"sise": 8}), ("./pets", {"size": 0}), ("./pets", {"size": "8"})],
)
def test_an_option_that_would_change_nothing_is_refused(use: str, options: dict[str, object], tmp_path: Path) -> None:
    settings = data_settings({"use": use, "options": options, "split": None if use == "digits" else 0.5})
    with pytest.raises(UsageError, match=r"E402.*(option|size)"):
        datasets.prepare(settings, tmp_path / "cache", base=tmp_path)


def test_a_part_of_a_set_is_told_as_such(tmp_path: Path) -> None:
    for folder in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "pets" / folder).mkdir(parents=True)
    with pytest.raises(UsageError) as caught:
        image_folders.read_parts(tmp_path / "pets" / "train", "./pets/train")
    assert 'use = "./pets"' in caught.value.problems[0].hint
