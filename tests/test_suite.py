import itertools
import json
import math
import pickle
import re
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.common.errors import Problem, UsageError
from energybench.common.shipped import shipped
from energybench.common.units import Quantity
from energybench.records.record import Claim
from energybench.suite import suite

SMALL = """\
schema = 1
suite = "small"

[[workload]]
name = "first"
model = { use = "cnn", channels = [8] }
data = { use = "digits", batch = 64, augment = ["flip"] }
train = { epochs = 3, lr = 0.1, momentum = 0.9 }

[[workload]]
name = "second"
extends = "first"
model = { use = "mlp" }
train = { optimizer = "adamw", lr = 1e-3 }

[[method]]
use = "gradsamp"
epsilon = 1e-3
sweep = { skip = ["every:5", "random:0.2"] }

[[method]]
use = ["ssprop", "dropout"]
ssprop = { drop = 0.8 }

[[skip]]
workload = "sec*"
method = "ssprop*"
because = "no convolutions"

[quick]
trials = { blocks = 1, warmup = "3 steps" }
workload.train = { epochs = 2 }
workload.data = { subset = 32 }
"""


def write(folder: Path, text: str, name: str = "small") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(folder: Path, text: str, **options: Any) -> list[Problem]:
    with pytest.raises(UsageError) as caught:
        suite.load(write(folder, text), **options)
    return caught.value.problems


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, "\n".join(map(str, problems))
    return problems[0]


def place(problem: Problem) -> tuple[int, int]:
    line, column = problem.where.rsplit(":", 2)[1:]
    return int(line), int(column)


# ── what a good suite means ───────────────────────────────────────────────────────────────────────────────


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    loaded = suite.load(write(tmp_path, SMALL))
    assert (loaded.trials.blocks, loaded.trials.twin, loaded.trials.threads) == (5, True, "auto")
    assert loaded.trials.warmup == Quantity(20, "s")
    assert loaded.trials.limit == 1800
    assert loaded.measure.energy == "if available"
    assert (loaded.accept.margin, loaded.accept.estimate_gap) == (0.01, 0.02)
    assert (loaded.accept.quality.metric, loaded.accept.quality.loses_at_most) == ("accuracy", 0.005)
    assert loaded.workloads[0].task == "classification"
    assert loaded.workloads[0].data.resident == 2 * 10**9
    assert loaded.workloads[0].train.precision == "fp32"
    assert loaded.stamp == []
    assert loaded.text == SMALL
    assert loaded.path == tmp_path / "small.toml"


def test_extends_takes_every_key_that_the_child_does_not_write(tmp_path: Path) -> None:
    first, second = suite.load(write(tmp_path, SMALL)).workloads
    assert second.name == "second"
    assert second.data == first.data
    assert (second.train.epochs, second.train.lr) == (first.train.epochs, 1e-3)


def test_a_new_choice_does_not_inherit_what_belonged_to_the_old_one(tmp_path: Path) -> None:
    _, second = suite.load(write(tmp_path, SMALL)).workloads
    assert second.model.parameters == {}  # the CNN's channels mean nothing to an MLP
    assert second.train.momentum == 0  # nor SGD's momentum to AdamW


def test_extends_reaches_through_several_workloads(tmp_path: Path) -> None:
    more = SMALL.replace("[[method]]", '[[workload]]\nname = "third"\nextends = "second"\n[[method]]', 1)
    third = suite.load(write(tmp_path, more)).workloads[2]
    assert (third.model.use, third.train.optimizer, third.data.batch) == ("mlp", "adamw", 64)


def test_a_sweep_makes_one_variant_per_value_and_a_stack_one(tmp_path: Path) -> None:
    every, random, stack = suite.load(write(tmp_path, SMALL)).variants()
    assert [every.label, random.label] == ["gradsamp[skip=every:5]", "gradsamp[skip=random:0.2]"]
    assert every.stack[0].parameters == {"epsilon": 1e-3, "skip": "every:5"}
    assert stack.label == "ssprop+dropout"
    assert [(layer.use, layer.parameters) for layer in stack.stack] == [("ssprop", {"drop": 0.8}), ("dropout", {})]
    assert (stack.claim, stack.control) == (None, "auto")


def test_two_swept_parameters_multiply_inside_their_method_only(tmp_path: Path) -> None:
    text = SMALL.replace("sweep = { skip = [", "sweep = { other = [1, 2.5, true], skip = [")
    labels = [variant.label for variant in suite.load(write(tmp_path, text)).variants()]
    assert len(labels) == 3 * 2 + 1
    assert labels[0] == "gradsamp[other=1,skip=every:5]"
    assert "gradsamp[other=true,skip=random:0.2]" in labels


def test_skipped_pairs_carry_their_reason(tmp_path: Path) -> None:
    pairs = suite.load(write(tmp_path, SMALL)).pairs()
    assert len(pairs) == 2 * 3
    assert [(w.name, v.label, why) for w, v, why in pairs if why] == [("second", "ssprop+dropout", "no convolutions")]


def test_a_skip_names_one_variant_or_every_variant_of_an_entry(tmp_path: Path) -> None:
    for pattern, count in (("gradsamp", 2), ("gradsamp[skip=every:5]", 1), ("gradsamp[skip=*]", 2)):
        text = SMALL.replace('method = "ssprop*"', f'method = "{pattern}"')
        assert sum(why is not None for _, _, why in suite.load(write(tmp_path, text)).pairs()) == count


def test_claims_have_the_fields_of_a_record(tmp_path: Path) -> None:
    claims = 'claims = { backward = "40 %", from = "Table 4" }\n'
    text = SMALL.replace("epsilon = 1e-3\n", claims)
    claim = suite.load(write(tmp_path, text)).variants()[0].claim
    assert claim is not None
    assert Claim(**claim) == Claim(saving_rel=0.4, of="backward", source="Table 4")


def test_methods_from_files_are_labelled_by_their_name(tmp_path: Path) -> None:
    text = SMALL.replace('["ssprop", "dropout"]', '["mine/my_method.py:Mine", "other.py"]')
    text = text.replace("ssprop = {", "Mine = {").replace('"ssprop*"', '"Mine*"')
    stack = suite.load(write(tmp_path, text)).variants()[-1]
    assert stack.label == "Mine+other"
    assert stack.stack[0].parameters == {"drop": 0.8}


def test_quick_lays_its_overlay_over_every_workload_and_keeps_one_value_of_a_sweep(tmp_path: Path) -> None:
    loaded = suite.load(write(tmp_path, SMALL), quick=True)
    assert [workload.train.epochs for workload in loaded.workloads] == [2, 2]
    assert [workload.data.subset for workload in loaded.workloads] == [32, 32]
    assert (loaded.trials.blocks, loaded.trials.warmup) == (1, Quantity(3, "steps"))
    assert [variant.label for variant in loaded.variants()] == ["gradsamp[skip=every:5]", "ssprop+dropout"]
    assert loaded.stamp == ["quick"]


def test_a_skip_of_a_variant_that_quick_leaves_out_is_no_mistake(tmp_path: Path) -> None:
    text = SMALL.replace('method = "ssprop*"', 'method = "gradsamp[skip=random*"')
    assert all(why is None for _, _, why in suite.load(write(tmp_path, text), quick=True).pairs())


def test_resolved_settings_are_plain_json_in_si_units_and_whole(tmp_path: Path) -> None:
    loaded = suite.load(write(tmp_path, SMALL))
    settings = loaded.digest_source()
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    assert settings["trials"]["limit"] == 1800
    assert settings["accept"]["noise"] == 0.01
    assert settings["workload"][1]["data"]["batch"] == 64
    assert "quick" not in settings
    of_workload = {key: value for key, value in settings["workload"][1].items() if key != "extends"}
    assert loaded.workloads[1].settings() == of_workload  # where a value came from is no setting of it


def test_a_suite_crosses_a_process_border_whole(tmp_path: Path) -> None:
    loaded = suite.load(write(tmp_path, SMALL), quick=True)
    copied = pickle.loads(pickle.dumps(loaded))
    assert copied.digest_source() == loaded.digest_source()
    assert (copied.stamp, copied.variants()) == (loaded.stamp, loaded.variants())


def test_every_key_knows_its_line_wherever_it_came_from(tmp_path: Path) -> None:
    loaded = suite.load(write(tmp_path, SMALL), quick=True, overrides=["workload[second].train.lr=0.5"])
    expected = {
        ("workload", 0, "train", "lr"): "small.toml:8:23",
        ("workload", 1, "data", "augment"): "small.toml:7:38",  # inherited
        ("workload", 1, "data", "subset"): "small.toml:33:19",  # the overlay
        ("workload", 1, "train", "lr"): "--set workload[second].train.lr=0.5",
        ("method", 0, "skip"): "small.toml:19:11",  # swept
        ("method", 1, "ssprop", "drop"): "small.toml:23:12",
        ("method", 1, "ssprop", "unwritten"): "small.toml:23:1",
        (): "small.toml:1:1",
    }
    assert {loc: loaded.where(loc).rpartition("/")[2] for loc in expected} == expected


def test_a_file_below_the_working_directory_is_named_as_one_would_type_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suites").mkdir()
    write(tmp_path / "suites", SMALL)
    monkeypatch.chdir(tmp_path)
    assert suite.load("small").where(("schema",)) == "suites/small.toml:1:1"


# ── looking it up ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_bare_name_is_looked_up_in_order(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    for folder in (near, far):
        folder.mkdir()
        write(folder, SMALL.replace('suite = "small"', f'suite = "{folder.name}"'))
    assert suite.load("small", search=[near, far]).suite == "near"
    assert suite.load("small", search=[tmp_path, far]).suite == "far"


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    with pytest.raises(UsageError) as caught:
        suite.load("smal", search=[tmp_path])
    problem = only(caught.value.problems)
    assert (problem.code, problem.hint) == ("E101", "did you mean 'small'?")


def test_a_file_of_that_name_in_the_current_folder_is_named_and_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, SMALL)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        suite.load("small")
    problem = only(caught.value.problems)
    assert problem.code == "E101"
    assert problem.hint.endswith("small.toml")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    for path, says in ((tmp_path / "smal.toml", "small.toml"), (tmp_path, "folder")):
        with pytest.raises(UsageError) as caught:
            suite.load(path)
        problem = only(caught.value.problems)
        assert problem.code == "E101"
        assert says in problem.message + problem.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [("schema = 1\nsuite = small\n", 2), ("schema = 1\n\nschema = 2\n", 3), ("schema = 1\n[trials\n", 2), ("a =", 1)],
)
def test_a_toml_mistake_has_its_line(tmp_path: Path, text: str, line: int) -> None:
    problem = only(problems_of(tmp_path, text))
    assert problem.code == "E102"
    assert place(problem)[0] == line


def test_a_text_without_quotes_is_told_about_quotes(tmp_path: Path) -> None:
    assert "quotes" in only(problems_of(tmp_path, "suite = small\n")).hint


def test_a_file_that_is_not_utf8_or_nests_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    for content in (b'about = "\xff"', b"a = " + b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            suite.load(path)
        assert only(caught.value.problems).code == "E102"


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert suite.load(path).digest_source() == suite.load(write(tmp_path, SMALL)).digest_source()


# ── what a bad one is told ────────────────────────────────────────────────────────────────────────────────

BROKEN = """\
schema = 2
suite = "Two Words"
colour = "red"

[trials]
blocks = 0
warmup = 3
limit = "30 mni"

[accept]
margin = 0.01
quality = { metric = "accuracy", looses_at_most = "0.5 pp" }

[[workload]]
name = "one"
epochs = 3
model = { use = "cnn" }
data = { use = "digits", augment = "flip" }
train = { epochs = "3", optimizer = "adma", lr = 0.1 }

[[workload]]
name = "one"
extends = "on"

[[method]]
use = "gradsamp"
sweep = { skip = [], epsilon = 1e-3 }

[[method]]
use = ["ssprop", "dropout"]
drop = 0.8

[[method]]
use = "ssprop"
claims = { training = "20 %", backward = "40 %" }

[quick]
trails = { blocks = 1 }
workload.train = { epoch = 2 }
"""


def test_every_mistake_is_collected_and_each_has_its_code_and_line(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, BROKEN)
    found = [(problem.code, *place(problem)) for problem in problems]
    assert sorted(found) == sorted(
        [
            ("E202", 1, 1),  # schema 2
            ("E202", 2, 1),  # not a folder name
            ("E201", 3, 1),  # colour
            ("E202", 6, 1),  # no blocks
            ("E204", 7, 1),  # 3 of what
            ("E204", 8, 1),  # mni
            ("E204", 11, 1),  # no %
            ("E201", 12, 34),  # looses
            ("E201", 16, 1),  # epochs outside train
            ("E203", 18, 1),  # no batch
            ("E202", 18, 26),  # augment is no array
            ("E202", 19, 11),  # epochs in quotes
            ("E202", 19, 25),  # adma
            ("E205", 22, 1),  # second "one"
            ("E205", 23, 1),  # extends "on"
            ("E207", 27, 11),  # empty
            ("E207", 27, 22),  # no array
            ("E201", 31, 1),  # drop of which one
            ("E202", 35, 31),  # two claims
            ("E201", 38, 1),  # trails
            ("E201", 39, 20),  # epoch
        ]
    ), "\n".join(map(str, problems))
    assert [place(problem) for problem in problems] == sorted(place(problem) for problem in problems)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (8, "min"),
        (11, '"1 %"'),
        (12, "did you mean 'loses_at_most'?"),
        (16, "'epochs' belongs in workload.train"),
        (19, "epochs = 3"),
        (22, "small.toml:15:1"),
        (27, "epsilon = [0.001]"),
        (31, "ssprop = { drop = 0.8 }"),
        (38, "did you mean 'trials'?"),
        (39, "did you mean 'epochs'?"),
    ],
)
def test_hints_say_what_to_type(tmp_path: Path, line: int, hint: str) -> None:
    hints = [problem.hint for problem in problems_of(tmp_path, BROKEN) if place(problem)[0] == line]
    assert any(hint in given for given in hints), hints


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "says"),
    [
        ("schema = 1\n", "\n", "E203", 1, "lacks 'schema'"),
        ("batch = 64, ", "", "E203", 7, "add batch = 128"),
        ("epochs = 3", "epochs = 3.5", "E202", 8, "3.5; expected a whole number"),
        ("epochs = 3", "epochs = true", "E202", 8, "true; expected a whole number"),
        ("epochs = 3", "epochs = 0", "E202", 8, "at least 1"),
        ("lr = 0.1", "lr = nan", "E202", 8, "not a finite number"),
        ("lr = 0.1", "lr = 2026-01-01", "E202", 8, "date"),
        ("lr = 0.1", "lr = 0", "E202", 8, "more than 0"),
        ("lr = 1e-3", "lr = 1e-3, nesterov = true", "E202", 14, "adamw has no nesterov"),
        ("momentum = 0.9", "nesterov = true", "E202", 8, "nesterov needs momentum"),
        ("momentum = 0.9", "betas = [0.9, 0.99]", "E202", 8, "sgd has no betas"),
        ("momentum = 0.9", "accumulate = 65", "E202", 8, "65 splits a batch of 64"),
        ("batch = 64", "batch = '64'", "E202", 7, "without quotes: batch = 64"),
        ('augment = ["flip"]', 'resident = "2 G"', "E204", 7, "unknown unit 'G'"),
        ('extends = "first"', 'extends = "fist"', "E205", 12, "did you mean 'first'?"),
        ('extends = "first"', 'extends = "second"', "E205", 12, "'second' → 'second'"),
        ('workload = "sec*"', 'workload = "vit-*"', "E205", 26, "no workload matches 'vit-*'"),
        ('method = "ssprop*"', 'method = "gradsam"', "E205", 27, "did you mean 'gradsamp'?"),
        ('workload = "sec*"\nmethod = "ssprop*"', "", "E202", 25, "skips everything"),
        ('because = "no convolutions"', "", "E203", 25, "lacks 'because'"),
        ('use = "gradsamp"', 'use = "gradsamp"\nname = "twin"', "E205", 18, "cannot be named 'twin'"),
        ('use = "gradsamp"', 'use = "gradsamp"\nname = "plain training"', "E205", 18, "'plain training': every suite"),
        ('use = "gradsamp"', 'use = "gradsamp"\nname = "a matched"', "E205", 18, "cannot be named"),
        ('use = "gradsamp"', "use = []", "E202", 17, "outermost first"),
        ('use = "gradsamp"', 'ues = "gradsamp"', "E203", 16, "did you mean 'use' instead of 'ues'?"),
        ('use = "gradsamp"', 'comand = "true"', "E203", 16, "did you mean 'command' instead of 'comand'?"),
        ('use = "gradsamp"', "epsilonn = 1", "E203", 16, "add use ="),
        ('["every:5", "random:0.2"]', '["every:5", "every:5"]', "E207", 19, "twice"),
        ("epsilon = 1e-3", 'skip = "every:2"', "E207", 19, "both fixed and swept"),
        ('["ssprop", "dropout"]', '["ssprop", "ssprop"]', "E205", 22, "twice in one stack"),
        ("ssprop = { drop = 0.8 }", "ssprop = 0.8", "E202", 23, "expected a table of its parameters"),
        ("ssprop = {", "sweep = {", "E207", 23, "a stack cannot be swept"),
        ("[[skip]]", "[skip]", "E202", 25, "in double brackets: [[skip]]"),
        ("workload.train = {", "workload.name = {", "E201", 32, "'name'"),
        ("workload.train = { epochs = 2 }", "workload = 2", "E202", 32, "expected a table"),
        ("trials = { blocks = 1, ", "trials = { blocks = -1, ", "E202", 31, "at least 1"),
    ],
)
def test_one_mistake_is_one_problem_that_says_what_and_where(
    tmp_path: Path, old: str, new: str, code: str, line: int, says: str
) -> None:
    assert old in SMALL
    text = SMALL.replace(old, new, 1)
    if new == "workload = 2":
        text = text.replace("workload.data = { subset = 32 }\n", "")
    if new.startswith("sweep = {"):
        text = text.replace("{ drop = 0.8 }", "{ p = [0.1, 0.2] }")
    problem = only(problems_of(tmp_path, text))
    assert (problem.code, place(problem)[0]) == (code, line), str(problem)
    assert says in str(problem)


def test_a_circle_of_extends_is_told_once(tmp_path: Path) -> None:
    text = SMALL.replace('name = "first"', 'name = "first"\nextends = "second"')
    problem = only(problems_of(tmp_path, text))
    assert problem.code == "E205"
    assert "circle" in problem.message


def test_two_methods_of_one_label_need_a_name(tmp_path: Path) -> None:
    problem = only(problems_of(tmp_path, SMALL + '[[method]]\nuse = "ssprop"\n[[method]]\nuse = "ssprop"\n'))
    assert (problem.code, place(problem)[0]) == ("E205", 36)
    assert 'name = "..."' in problem.hint


def test_more_cells_than_anyone_can_mean_are_counted_and_refused(tmp_path: Path) -> None:
    wide = SMALL.replace('["every:5", "random:0.2"]', str(list(range(1000))))
    blocks = wide.replace("[[workload]]", "[trials]\nblocks = 50\n[[workload]]", 1)
    problem = only(problems_of(tmp_path, blocks))
    cells = 2 * (1000 + 1 + 2)  # two workloads; swept variants, the stack, baseline and twin
    assert (problem.code, place(problem)) == ("E207", (5, 1))
    assert f"{cells * 50:,}" in problem.message


def test_a_sweep_too_large_to_list_is_refused_before_it_is_listed(tmp_path: Path) -> None:
    sweeps = ", ".join(f"p{i} = {list(range(100))}" for i in range(10))
    problem = only(problems_of(tmp_path, SMALL.replace('skip = ["every:5", "random:0.2"]', sweeps)))
    assert problem.code == "E207"
    assert f"{100**10:,}" in problem.message


def test_a_mistake_in_the_overlay_is_found_without_quick(tmp_path: Path) -> None:
    problem = only(problems_of(tmp_path, SMALL.replace('warmup = "3 steps"', "warmup = 3")))
    assert (problem.code, place(problem)) == ("E204", (31, 24))


def test_quick_without_an_overlay_is_refused(tmp_path: Path) -> None:
    problem = only(problems_of(tmp_path, SMALL[: SMALL.index("[quick]")], quick=True))
    assert (problem.code, "[quick]" in problem.hint) == ("E203", True)


# ── --set ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_set_changes_every_entry_or_one_and_is_stamped(tmp_path: Path) -> None:
    overrides = [
        "workload.train.epochs=7",
        "workload[second].train.lr=0.5",
        "trials.limit=10 min",
        'trials.warmup="5 s"',
        "method[ssprop+dropout].ssprop.drop=0.5",
    ]
    loaded = suite.load(write(tmp_path, SMALL), overrides=overrides)
    assert [workload.train.epochs for workload in loaded.workloads] == [7, 7]
    assert [workload.train.lr for workload in loaded.workloads] == [0.1, 0.5]
    assert (loaded.trials.limit, loaded.trials.warmup) == (600, Quantity(5, "s"))
    assert loaded.variants()[-1].stack[0].parameters == {"drop": 0.5}
    assert loaded.stamp == [f"--set {text}" for text in overrides]


def test_set_wins_over_quick(tmp_path: Path) -> None:
    loaded = suite.load(write(tmp_path, SMALL), quick=True, overrides=["workload.train.epochs=9"])
    assert [workload.train.epochs for workload in loaded.workloads] == [9, 9]


def test_a_parameter_that_is_set_is_no_longer_swept(tmp_path: Path) -> None:
    loaded = suite.load(write(tmp_path, SMALL), overrides=["method[gradsamp].skip=every:2"])
    assert [variant.label for variant in loaded.variants()] == ["gradsamp", "ssprop+dropout"]
    assert loaded.variants()[0].stack[0].parameters["skip"] == "every:2"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("workload.train.epochs=x", 'workload.train.epochs is "x"; expected a whole number'),
        ("workload.train.epoch=2", "did you mean 'epochs'?"),
        ("workload.trian.epochs=2", "did you mean 'train'?"),
        ("workload.train.lr=inf", "not a finite number"),
        ("trials.limit=10", "seconds or minutes"),
        ("trials.blocks", "KEY=VALUE"),
        ("trials.blocks=", "no value"),
        ("trails.blocks=2", "did you mean 'trials'?"),
        ("schema=2", "cannot be set"),
        ("workload[secnd].train.epochs=2", "did you mean 'second'?"),
        ("method[gradsamp[skip=every:5]].epsilon=1", "no method is named 'gradsamp[skip=every:5]'"),
        ("workload.name=x", "cannot be set"),
        ("workload=x", "cannot be set"),
        ("trials[a].blocks=2", "only workload[NAME] and method[NAME]"),
    ],
)
def test_a_bad_set_is_reported_as_typed(tmp_path: Path, override: str, says: str) -> None:
    problem = only(problems_of(tmp_path, SMALL, overrides=[override]))
    assert (problem.code, problem.where) == ("E206", f"--set {override}")
    assert says in str(problem)


# ── names, schema, the suites we ship ─────────────────────────────────────────────────────────────────────


def test_slugs_of_ordinary_labels_are_the_labels() -> None:
    assert suite.slug("ssprop+dropout") == "ssprop+dropout"
    assert re.fullmatch(r"gradsamp-skip-every-5-[0-9a-f]{8}", suite.slug("gradsamp[skip=every:5]".replace("=", " ")))


@given(st.text(max_size=300), st.text(max_size=300))
def test_slugs_are_file_names_and_tell_labels_apart(one: str, other: str) -> None:
    for text in (one, other):
        slug = suite.slug(text)
        assert 0 < len(slug) <= 100
        assert set(slug) <= set(string.ascii_letters + string.digits + "._+=-")
        assert slug[0] not in ".-"
    assert (suite.slug(one) == suite.slug(other)) == (one == other)


def test_the_schema_covers_every_key_of_the_shipped_suite_and_asks_for_units() -> None:
    schema = suite.schema_json()
    tables = schema["$defs"]
    assert set(schema["required"]) == {"schema", "suite", "workload"}
    assert tables["WorkloadTable"]["required"] == ["name"]
    assert "required" not in tables["TrainTable"]
    assert set(schema["properties"]["quick"]["properties"]) == {"trials", "measure", "accept", "workload", "skip"}
    pattern = tables["TrialsTable"]["properties"]["limit"]["pattern"]
    assert re.search(pattern, "30 min")
    assert not re.search(pattern, "30")
    json.dumps(schema)


def test_what_is_right_in_an_invalid_suite_is_kept_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        'schema = 1\nsuite = "bad"\nblocks = 3\ntrials = { blocks = "three", seed = 7 }\n'
        '[[workload]]\nname = "broken"\nextends = "nobody"\n'
        '[[workload]]\nname = "whole"\nmodel = { use = "cnn" }\ndata = { use = "digits", batch = 8 }\n'
        'train = { epochs = 1, lr = 0.1, optimzer = "sgd" }\n'
        '[[method]]\nuse = "gradsamp"\nskip = 1\n',
        encoding="utf-8",
    )
    with pytest.raises(suite.SuiteError) as caught:
        suite.load(file)
    rest = caught.value.rest
    assert rest is not None
    assert [workload.name for workload in rest.workloads] == ["whole"]
    assert rest.trials.seed == 7
    assert rest.where(("workload", 0, "model")).endswith("bad.toml:10:1")
    assert [variant.label for variant in rest.variants()] == ["gradsamp"]
    assert {problem.where.rpartition("bad.toml:")[2] for problem in caught.value.problems} == {
        "3:1",
        "4:12",
        "7:1",
        "12:33",
    }


def test_the_quick_overlay_adds_its_skips_to_the_suites_own() -> None:
    folder = [shipped("suites")]
    whole, quick = suite.load("cifar", search=folder), suite.load("cifar", search=folder, quick=True)
    skipped = [{(w.name, v.entry) for w, v, why in loaded.pairs() if why} for loaded in (whole, quick)]
    assert skipped[0] == {("vit-tiny-cifar10", "ssprop"), ("vit-tiny-cifar10", "ssprop+dropout")}
    everything = {("vit-tiny-cifar10", v.entry) for v in quick.variants()}
    assert skipped[1] == everything | {("resnet18-cifar10", "ssprop+dropout")}


def test_the_shipped_cifar_suite_is_the_one_of_the_design() -> None:
    loaded = suite.load("cifar", search=[shipped("suites")])
    resnet, vit = loaded.workloads
    assert (resnet.model.use, resnet.train.epochs, resnet.train.lr, resnet.train.precision) == (
        "resnet18",
        30,
        0.1,
        "bf16",
    )
    assert (vit.model.parameters, vit.data, vit.train.decay) == ({"patch": 4}, resnet.data, 0.05)
    assert len(loaded.variants()) == 3 + 1 + 1
    assert {v.label for w, v, why in loaded.pairs() if why} == {"ssprop", "ssprop+dropout"}
    quick = suite.load("cifar", quick=True, search=[shipped("suites")])
    assert {(w.data.subset, w.train.epochs, w.train.precision) for w in quick.workloads} == {(96, 5, "fp32")}
    assert math.prod((quick.trials.blocks, len(quick.variants()))) == 3


def test_reading_a_suite_imports_neither_torch_nor_rich_nor_click() -> None:
    code = (
        "import sys, energybench.suite.suite as s; from energybench.common.shipped import shipped; "
        "s.load(shipped('suites') / 'cifar.toml'); print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "rich", "click", "numpy"} & set(modules.split())


JUNK = st.sampled_from(["1", "true", '"x"', "[]", "[1]", "{}", "{ a = 1 }", "nan", "1979-05-27", '["a", "b"]', "[{}]"])
KEYS = [
    "schema",
    "suite",
    "trials",
    "trials.warmup",
    "measure.carbon",
    "accept.quality",
    "quick",
    "quick.trials",
    "quick.workload",
    "quick.workload.train",
    "workload",
    "method",
    "skip",
]
ENTRY_KEYS = [
    "name",
    "extends",
    "use",
    "model",
    "data",
    "train",
    "train.lr",
    "sweep",
    "sweep.p",
    "claims",
    "because",
    "workload",
    "method",
    "target",
    "ssprop",
    "data.options",
    "train.betas",
    "control",
]


@given(
    st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=4),
    st.lists(
        st.tuples(st.sampled_from(["workload", "method", "skip"]), st.dictionaries(st.sampled_from(ENTRY_KEYS), JUNK))
    ),
    st.booleans(),
    st.lists(st.sampled_from(["workload.train.lr=2", "method.p=1", "trials.blocks=2", "measure=3"]), max_size=2),
)
def test_any_toml_gives_a_suite_or_placed_problems_and_never_a_trace(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, str], entries: list[Any], quick: bool, overrides: list[str]
) -> None:
    lines = [f"{key} = {value}" for key, value in top.items()]
    for table, keys in entries:
        lines += [f"[[{table}]]", *(f"{key} = {value}" for key, value in keys.items())]
    path = write(tmp_path_factory.mktemp("any"), "\n".join(lines))
    problems: list[Problem] = []
    try:
        suite.load(path, quick=quick, overrides=overrides)
    except UsageError as error:
        problems = error.problems
    assert len(set(problems)) == len(problems)
    for problem in problems:
        assert re.fullmatch(r"E(102|20[1-7])", problem.code), problem
        assert re.search(r":\d+:\d+$", problem.where) or problem.where.startswith("--set "), problem


def test_problems_do_not_depend_on_the_order_of_tables(tmp_path: Path) -> None:
    tables = re.split(r"\n(?=\[)", BROKEN)
    whole = sorted(problem.message for problem in problems_of(tmp_path, BROKEN))
    for first, second in itertools.pairwise(range(1, 4)):
        swapped = list(tables)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        assert sorted(problem.message for problem in problems_of(tmp_path, "\n".join(swapped))) == whole
