"""Suites whose trials are commands: what is read, what is refused, and with which hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.suite import suite
from energybench.suite.command_tables import fill, shell_operator
from energybench.suite.placeholders import placeholders
from energybench.suite.suite import SuiteError

SCRIPTS = """\
schema = 1
suite = "scripts"

[[workload]]
name = "mine"
command = "python train.py --epochs {epochs} --seed {seed}"
options = { epochs = 30 }
quality = { from = "json", key = "accuracy" }

[[method]]
name = "trick"
command = "python train.py --epochs {epochs} --seed {seed} --trick"
claims = { training = "20 %", from = "me" }

[[method]]
name = "amount"
command = "python train.py --epochs {epochs} --seed {seed} --drop {drop}"
sweep = { drop = [0.1, 0.5] }
"""
TRAINED = """
[[workload]]
name = "first"
model = { use = "cnn", channels = [8] }
data = { use = "digits", batch = 64 }
train = { epochs = 3, lr = 0.1 }

[[method]]
use = "gradsamp"
skip = "every:2"
"""


def load(folder: Path, text: str, **options: Any) -> suite.Suite:
    path = folder / "scripts.toml"
    path.write_text(text, encoding="utf-8")
    return suite.load(path, **options)


def problems(folder: Path, text: str, **options: Any) -> list[tuple[str, str, str, str]]:
    with pytest.raises(SuiteError) as caught:
        load(folder, text, **options)
    return [(p.code, p.where.rpartition("scripts.toml:")[2], p.message, p.hint) for p in caught.value.problems]


def only(found: list[tuple[str, str, str, str]]) -> tuple[str, str, str, str]:
    assert len(found) == 1, found
    return found[0]


def test_a_suite_of_commands_has_a_variant_for_each_method_and_swept_value(tmp_path: Path):
    loaded = load(tmp_path, SCRIPTS)
    assert [v.label for v in loaded.variants()] == ["trick", "amount[drop=0.1]", "amount[drop=0.5]"]
    assert [v.values for v in loaded.variants()] == [{}, {"drop": 0.1}, {"drop": 0.5}]
    assert loaded.variants()[0].claim == {"saving_rel": 0.2, "of": "training", "source": "me"}
    assert {v.control for v in loaded.variants()} == {"none"}  # its kept budget cannot be known
    assert [why for _, _, why in loaded.pairs()] == [None] * 3


def test_quick_keeps_one_value_of_a_sweep_and_overlays_options_for_all_commands_alike(tmp_path: Path):
    text = f"{SCRIPTS}\n[quick]\nworkload.options = {{ epochs = 1 }}\n"
    loaded = load(tmp_path, text, quick=True)
    assert [v.label for v in loaded.variants()] == ["trick", "amount[drop=0.1]"]
    assert loaded.workloads[0].options == {"epochs": 1}
    assert load(tmp_path, text).workloads[0].options == {"epochs": 30}


def test_set_changes_an_option_and_a_methods_command(tmp_path: Path):
    loaded = load(tmp_path, SCRIPTS, overrides=["workload.options.epochs=2", "method[trick].command=python t.py"])
    assert loaded.workloads[0].options == {"epochs": 2}
    assert loaded.variants()[0].command == "python t.py"


def test_a_workload_extends_another_and_chooses_its_own_quality(tmp_path: Path):
    more = """
[[workload]]
name = "longer"
extends = "mine"
options = { epochs = 60 }
quality = { from = "regex", pattern = 'acc=([0-9.]+)' }
"""
    longer = load(tmp_path, SCRIPTS + more).workloads[1]
    assert longer.command == "python train.py --epochs {epochs} --seed {seed}"
    assert (longer.quality.where, longer.quality.key, longer.quality.pattern) == ("regex", None, "acc=([0-9.]+)")


def test_commands_and_trainings_stand_in_one_suite_and_meet_only_their_own_kind(tmp_path: Path):
    loaded = load(tmp_path, SCRIPTS + TRAINED + "\n[quick]\nworkload.train = { epochs = 1 }\n", quick=True)
    run = {(w.name, v.label) for w, v, why in loaded.pairs() if why is None}
    assert run == {("mine", "trick"), ("mine", "amount[drop=0.1]"), ("first", "gradsamp")}
    whys = {(w.name, v.label): why for w, v, why in loaded.pairs() if why}
    assert "cannot change a training" in whys["first", "trick"]
    assert "is a command" in whys["mine", "gradsamp"]


def test_no_quality_is_said_and_never_assumed(tmp_path: Path):
    none = SCRIPTS.replace('{ from = "json", key = "accuracy" }', '"none"')
    assert load(tmp_path, none).workloads[0].quality.where == "none"
    code, where, message, hint = only(problems(tmp_path, SCRIPTS.replace("quality", "#")))
    assert (code, where) == ("E203", "4:3")
    assert "lacks 'quality'" in message
    assert hint.startswith("add quality = ")


@pytest.mark.parametrize(
    ("old", "new", "code", "where", "message", "hint"),
    [
        (
            'command = "python train.py --epochs {epochs} --seed {seed}"',
            'comand = "python"',
            "E201",
            "6:1",
            "comand",
            "did you mean 'command'?",
        ),
        (
            "options = { epochs = 30 }",
            "options = { epochs = 30, epoch = 1 }",
            "E202",
            "7:26",
            "does not use {epoch}",
            "write {epoch} in the command, or remove it",
        ),
        ("options = { epochs = 30 }", "options = { epochs = 30, seed = 1 }", "E202", "7:26", "energybench's own", ""),
        ("options = ", "optons = ", "E201", "7:1", "optons", "did you mean 'options'?"),
        ('from = "json"', 'from = "jason"', "E202", "8:13", "one of: json, file, regex", "did you mean 'json'?"),
        ('key = "accuracy"', 'pattern = "a"', "E202", "8:28", 'from = "json" has no pattern', "its keys: key"),
        (
            '{ from = "json", key = "accuracy" }',
            '{ from = "file" }',
            "E202",
            "8:1",
            "needs a path",
            'add path = "{scratch}/metrics.json"',
        ),
        (
            '{ from = "json", key = "accuracy" }',
            '{ from = "regex", pattern = "acc" }',
            "E202",
            "8:29",
            "no group",
            "put brackets around the number: 'accuracy (\\S+)'",
        ),
        (
            '{ from = "json", key = "accuracy" }',
            '{ from = "regex", pattern = "(" }',
            "E202",
            "8:29",
            "not a regular expression",
            "",
        ),
        ('{ from = "json", key = "accuracy" }', '"some"', "E202", "8:1", "expected a table or 'none'", ""),
        ('--trick"', "--trick '\"", "E202", "12:1", "No closing quotation", ""),
        ('--trick"', '--trick | tee log"', "E202", "12:1", "'|' would be an argument of python", "command = '''sh -c"),
        ('name = "trick"\n', "", "E203", "10:3", "lacks 'name'", "add name = "),
        ("--drop {drop}", "--drop 0.1", "E202", "18:11", "does not use {drop}", "write {drop} where"),
        ('name = "trick"', 'name = "trick"\nuse = "gradsamp"', "E201", "12:1", "unknown key 'use' in method", ""),
        ('name = "trick"', 'name = "trick"\ncontrl = "none"', "E201", "12:1", "contrl", ""),
        (
            '"python train.py --epochs {epochs} --seed {seed} --trick"',
            '{ mien = "python t.py" }',
            "E205",
            "12:13",
            "no workload that is a command is named 'mien'",
            "did you mean 'mine'?",
        ),
        (
            '"python train.py --epochs {epochs} --seed {seed} --trick"',
            '{ mine = "" }',
            "E202",
            "12:13",
            "an empty command",
            'command = "python train.py"',
        ),
        ("[0.1, 0.5]", "0.1", "E207", "18:11", "expected an array", "drop = [0.1]"),
    ],
)
def test_every_mistake_has_its_line_and_what_to_type(
    tmp_path: Path, old: str, new: str, code: str, where: str, message: str, hint: str
):
    assert SCRIPTS.count(old) == 1
    found = problems(tmp_path, SCRIPTS.replace(old, new))
    match = [each for each in found if each[0] == code and message in each[2]]
    assert len(match) == 1, found
    assert (match[0][1], match[0][3].startswith(hint)) == (where, True), match


def test_a_method_that_fits_no_workload_of_the_suite_is_a_mistake(tmp_path: Path):
    code, where, message, hint = only(problems(tmp_path, SCRIPTS + '\n[[method]]\nuse = "gradsamp"\n'))
    assert (code, where.split(":")[0]) == ("E205", "20")
    assert "'gradsamp' fits no workload here" in message
    assert 'command = "..."' in hint
    trained = f"schema = 1\nsuite = 'x'\n{TRAINED}\n[[method]]\nname = 'trick'\ncommand = 'python t.py'\n"
    code, _, message, _ = only(problems(tmp_path, trained))
    assert (code, "a command cannot change a training" in message) == ("E205", True)


def test_one_command_for_two_different_baselines_is_a_mistake_unless_options_tell_them_apart(tmp_path: Path):
    other = '\n[[workload]]\nname = "other"\ncommand = "python other.py"\nquality = "none"\n'
    same = SCRIPTS.replace("--epochs {epochs} --seed {seed} --trick", "--trick")
    same = same.partition('\n[[method]]\nname = "amount"')[0]
    code, where, message, hint = only(problems(tmp_path, same + other))
    assert (code, where) == ("E205", "12:1")
    assert "'mine' and 'other'" in message
    assert hint.startswith("command = { mine = ")
    apart = '\n[[workload]]\nname = "other"\nextends = "mine"\noptions = { epochs = 3 }\n'
    assert [why for *_, why in load(tmp_path, SCRIPTS + apart).pairs()] == [None] * 6


def test_a_table_of_commands_leaves_out_the_workloads_that_it_does_not_name(tmp_path: Path):
    other = '\n[[workload]]\nname = "other"\ncommand = "python other.py"\nquality = "none"\n'
    head = SCRIPTS.partition("\n[[method]]")[0]
    loaded = load(tmp_path, f'{head}{other}\n[[method]]\nname = "t"\ncommand = {{ other = "python o.py -t" }}\n')
    assert [why for *_, why in loaded.pairs()] == ["it has no command for this workload", None]


def test_an_overlay_for_a_workload_that_is_no_command_is_refused(tmp_path: Path):
    text = f"schema = 1\nsuite = 'x'\n{TRAINED}\n[quick]\nworkload.options = {{ epochs = 1 }}\n"
    code, _, message, _ = only(problems(tmp_path, text))
    assert (code, "options" in message) == ("E201", True)


def test_mistakes_in_several_tables_are_told_at_once(tmp_path: Path):
    text = SCRIPTS.replace("options = ", "optons = ").replace('from = "json"', 'from = "jason"') + "\n[acept]\n"
    assert [code for code, *_ in problems(tmp_path, text)].count("E201") == 2
    assert len(problems(tmp_path, text)) >= 3


def test_the_schema_knows_both_kinds():
    schema = suite.schema_json()
    assert {"command", "quality", "options"} <= set(schema["$defs"]["CommandWorkloadTable"]["properties"])
    kinds = {each["$ref"].rpartition("/")[2] for each in schema["properties"]["workload"]["items"]["anyOf"]}
    assert kinds == {"WorkloadTable", "CommandWorkloadTable"}
    assert "options" in schema["properties"]["quick"]["properties"]["workload"]["properties"]


@given(st.lists(st.text("ab {}'\\\"$%", min_size=1, max_size=6), min_size=1, max_size=5))
def test_words_without_names_of_ours_come_out_as_a_shell_would_split_them(words: list[str]):
    import shlex

    assert fill(shlex.join(["x", *words]), {"epochs": 3}) == ["x", *words]


def test_only_known_names_in_braces_are_replaced():
    assert fill("awk '{print $1}' {file} {n}", {"file": "a b", "n": 0.5}) == ["awk", "{print $1}", "a b", "0.5"]
    assert fill("x {flag}", {"flag": True}) == ["x", "true"]
    assert placeholders("{a} {b_1} {} {not one}") == {"a", "b_1"}


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("a; b", ";"),
        ("a&&b", "&&"),
        ("a | b", "|"),
        ("a 2>&1", "2>&1"),
        ("a >out", ">"),
        ("a 'b; c' \"d | e\"", None),
        ("python -c 'print(1 > 0)'", None),
        ("grep ';' file", None),
        ("find . -exec echo {} \\;", None),
        ('a "b \\" ; c"', None),
    ],
)
def test_a_shells_operator_is_one_where_no_quotation_holds_it(text: str, operator: str | None) -> None:
    assert shell_operator(text) == operator
