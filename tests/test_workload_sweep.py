"""A workload's own sweep: one workload for each value, of which everything else sees no more than a name."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_schema import refusal

from energybench.cli.suite_schema import suite_schema
from energybench.common.name_patterns import matches
from energybench.common.shipped import shipped
from energybench.common.units import RESOLVED
from energybench.suite import suite
from energybench.suite.suite import SuiteError
from energybench.suite.sweep_keys import mark, plain_name, plain_names

SWEPT = """\
schema = 1
suite = "grid"

[[workload]]
name = "vit"
model = { use = "vit_tiny", width = 48 }
data = { use = "digits", batch = 64 }
train = { epochs = 3, lr = 0.1 }
sweep = { "model.layers" = [2, 4, 6] }

[[workload]]
name = "mlp"
model = { use = "mlp" }
data = { use = "digits", batch = 64 }
train = { epochs = 3, lr = 0.1 }

[[method]]
use = "gradsamp"
skip = "every:2"
"""
SWEEP = 'sweep = { "model.layers" = [2, 4, 6] }'
SCRIPT = """\
schema = 1
suite = "script"

[[workload]]
name = "train"
command = "python train.py --epochs {epochs} --seed {seed}"
quality = { from = "json" }
sweep = { "options.epochs" = [5, 10] }

[[method]]
name = "trick"
command = { train = "python train.py --epochs {epochs} --seed {seed} --trick" }
"""


def load(folder: Path, text: str = SWEPT, **options: Any) -> suite.Suite:
    path = folder / "s.toml"
    path.write_text(text, encoding="utf-8")
    return suite.load(path, **options)


def names(loaded: suite.Suite) -> list[str]:
    return [workload.name for workload in loaded.workloads]


def problems(folder: Path, text: str, **options: Any) -> list[tuple[str, str, str, str]]:
    with pytest.raises(SuiteError) as caught:
        load(folder, text, **options)
    return [(p.code, p.where.rpartition("s.toml:")[2], p.message, p.hint) for p in caught.value.problems]


# ── what it means ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_workload_for_each_value_named_by_the_last_part_of_its_key(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert names(loaded) == ["vit[layers=2]", "vit[layers=4]", "vit[layers=6]", "mlp"]
    assert [w.model.parameters for w in loaded.workloads[:3]] == [{"width": 48, "layers": n} for n in (2, 4, 6)]
    assert {w.plain_name for w in loaded.workloads} == {"vit", "mlp"}


@given(st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True), st.lists(st.integers(1, 9), unique=True))
def test_two_swept_keys_give_every_combination_once(
    tmp_path_factory: pytest.TempPathFactory, layers: list[int], epochs: list[int]
) -> None:
    epochs = epochs or [1]
    text = SWEPT.replace(SWEEP, f'sweep = {{ "model.layers" = {layers}, "train.epochs" = {epochs} }}')
    loaded = load(tmp_path_factory.mktemp("s"), text.replace("epochs = 3, lr = 0.1 }\nsweep", "lr = 0.1 }\nsweep"))
    made = [(w.model.parameters["layers"], w.train.epochs) for w in loaded.workloads[:-1]]
    assert made == list(itertools.product(layers, epochs))
    assert names(loaded)[:-1] == [f"vit[layers={a},epochs={b}]" for a, b in made]


def test_it_may_be_written_as_tables_in_tables(tmp_path: Path) -> None:
    dotted = load(tmp_path)
    for written in ("sweep = { model = { layers = [2, 4, 6] } }", "sweep.model.layers = [2, 4, 6]"):
        assert load(tmp_path, SWEPT.replace(SWEEP, written)).digest_source() == dotted.digest_source()


def test_keys_that_end_alike_are_named_whole() -> None:
    assert mark({"model.depth": 2, "train.lr": 0.1}) == "depth=2,lr=0.1"
    assert mark({"model.size": 2, "data.options.size": 8}) == "model.size=2,data.options.size=8"


def test_it_is_the_workload_that_one_would_write_by_hand(tmp_path: Path) -> None:
    """The settings of its cells, and with them their digests."""
    by_hand = (
        SWEPT.replace('"vit"', '"vit[layers=4]"').replace(SWEEP, "").replace("width = 48", "width = 48, layers = 4")
    )
    assert load(tmp_path).workloads[1].settings() == load(tmp_path, by_hand).workloads[0].settings()


def test_a_suite_without_one_is_resolved_to_what_it_always_was(tmp_path: Path) -> None:
    for text in (SWEPT.replace(SWEEP, ""), SWEPT.replace(SWEEP, "sweep = {}")):
        assert all("sweep" not in table for table in load(tmp_path, text).digest_source()["workload"])
    for file in sorted(shipped("suites").glob("*.toml")):
        swept = any("sweep" in table for table in tomllib.loads(file.read_text(encoding="utf-8"))["workload"])
        for table in suite.load(file).digest_source()["workload"]:
            assert swept or "sweep" not in table, file
            assert not {"weights", "weights_strict"} & {*table, *table.get("model", {})}, file
            assert isinstance(table.get("task", ""), str) or len(table["task"]) > 1


def test_what_it_swept_stands_in_the_resolved_suite_and_crosses_a_process_border(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    resolved = loaded.digest_source()
    assert [table.get("sweep") for table in resolved["workload"]] == [
        *({"model.layers": layers} for layers in (2, 4, 6)),
        None,
    ]
    again = suite.Suite.model_validate(loaded.model_dump(mode="json", by_alias=True), context=RESOLVED)
    assert [w.plain_name for w in again.workloads] == ["vit", "vit", "vit", "mlp"]
    assert plain_names(resolved["workload"]) == {w.name: w.plain_name for w in loaded.workloads}


def test_brackets_of_a_name_that_nobody_swept_are_its_own(tmp_path: Path) -> None:
    assert plain_name("a[b=1]", {}) == "a[b=1]"
    text = SWEPT.replace(SWEEP, "").replace('"vit"', '"vit[layers=2]"')
    skip = '\n[[skip]]\nworkload = "vit"\nmethod = "gradsamp"\nbecause = "no"\n'
    ((code, _, message, _),) = problems(tmp_path, text + skip)
    assert (code, "no workload matches 'vit'" in message) == ("E205", True)


def test_a_key_of_the_data_the_recipe_and_the_task_can_be_swept(tmp_path: Path) -> None:
    for written, label in (
        ('"data.subset" = [32]', "subset=32"),
        ('"data.options.size" = [8]', "size=8"),
        ('"train.optimizer" = ["adam"]', "optimizer=adam"),
        ('task = ["ridge"]', "task=ridge"),
        ('"task.steps" = [4]', "steps=4"),
    ):
        loaded = load(
            tmp_path,
            SWEPT.replace(SWEEP, f"sweep = {{ {written} }}\ntask = 'classification'")
            if "task.steps" in written
            else SWEPT.replace(SWEEP, f"sweep = {{ {written} }}"),
        )
        assert names(loaded)[0] == f"vit[{label}]"
    settings = loaded.workloads[0].settings()
    assert settings["task"] == {"use": "classification", "steps": 4}


# ── patterns ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pattern", "skipped"),
    [
        ("vit", {"vit[layers=2]", "vit[layers=4]", "vit[layers=6]"}),
        ("vit[layers=4]", {"vit[layers=4]"}),
        ("vit[*", {"vit[layers=2]", "vit[layers=4]", "vit[layers=6]"}),
        ("*=6]", {"vit[layers=6]"}),
        ("m*", {"mlp"}),
    ],
)
def test_a_pattern_fits_the_name_in_the_report_or_that_without_the_sweep(
    tmp_path: Path, pattern: str, skipped: set[str]
) -> None:
    skip = f'\n[[skip]]\nworkload = "{pattern}"\nbecause = "not here"\n'
    assert {w.name for w, _, why in load(tmp_path, SWEPT + skip).pairs() if why} == skipped


def test_a_requirement_of_the_plain_name_holds_on_each_of_its_workloads(tmp_path: Path) -> None:
    asked = '\n[[require]]\nworkload = "vit"\nnever = ["slower"]\n'
    loaded = load(tmp_path, SWEPT + asked)
    (table,) = loaded.digest_source()["require"]
    plain = plain_names(loaded.digest_source()["workload"])
    assert [name for name in plain if matches(table["workload"], [name, plain[name]])] == names(loaded)[:3]
    all_skipped = '\n[[skip]]\nworkload = "vit"\nbecause = "not here"\n'
    ((code, _, message, _),) = problems(tmp_path, SWEPT + all_skipped + asked)
    assert (code, "requires nothing" in message) == ("E205", True)


# ── extends, --set and --quick ────────────────────────────────────────────────────────────────────────────────────────

CHILD = '\n[[workload]]\nname = "child"\nextends = "vit"\n'


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        ("", ["child[layers=2]", "child[layers=4]", "child[layers=6]"]),
        ("model.layers = 8", ["child"]),  # what is set is no longer swept
        ('model = { use = "mlp" }', ["child"]),  # another model has no part in the sweep of the first
        ('sweep = { "train.lr" = [0.1, 0.2] }', [f"child[layers={n},lr={lr}]" for n in (2, 4, 6) for lr in (0.1, 0.2)]),
        ('sweep = { "model.layers" = [1] }', ["child[layers=1]"]),
        ('sweep = { "model.width" = [9], "model.layers" = [1] }', ["child[layers=1,width=9]"]),  # set by the first
    ],
)
def test_a_child_takes_the_sweep_as_far_as_it_says_nothing_else(
    tmp_path: Path, child: str, expected: list[str]
) -> None:
    loaded = load(tmp_path, SWEPT + CHILD + child + "\n")
    assert [name for name in names(loaded) if name.startswith("child")] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workload[vit].model.layers=8", ["vit", "mlp"]),
        ("workload[vit].train.epochs=2", ["vit[layers=2]", "vit[layers=4]", "vit[layers=6]", "mlp"]),
        ('workload[vit].sweep."model.layers"=[1]', ["vit[layers=1]", "mlp"]),
        ("workload[vit].sweep.model.layers=[1]", ["vit[layers=1]", "mlp"]),
        ('workload[mlp].sweep."train.lr"=[1.5]', ["vit[layers=2]", "vit[layers=4]", "vit[layers=6]", "mlp[lr=1.5]"]),
    ],
)
def test_a_key_that_is_set_is_no_longer_swept_and_one_that_is_swept_no_longer_set(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    loaded = load(tmp_path, overrides=[text])
    assert names(loaded) == expected
    if "train.epochs" in text:
        assert [w.train.epochs for w in loaded.workloads] == [2, 2, 2, 3]


def test_quick_keeps_the_first_value_and_an_overlay_ends_the_sweep_of_what_it_sets(tmp_path: Path) -> None:
    quick = "\n[quick]\nworkload.train = { epochs = 1 }\n"
    assert names(load(tmp_path, SWEPT + quick, quick=True)) == ["vit[layers=2]", "mlp"]
    assert len(load(tmp_path, SWEPT + quick).workloads) == 4
    over = "\n[quick]\nworkload.train = { epochs = 1 }\n"
    swept = SWEPT.replace("epochs = 3, lr = 0.1 }\nsweep = {", 'lr = 0.1 }\nsweep = { "train.epochs" = [5, 6],')
    assert names(load(tmp_path, swept + over, quick=True)) == ["vit[layers=2]", "mlp"]
    assert names(load(tmp_path, swept + over))[0] == "vit[epochs=5,layers=2]"


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sweep", "code", "column", "says", "hint"),
    [
        ('{ "model.layers" = 2 }', "E207", 11, "expected an array", '"model.layers" = [2]'),
        ('{ "model.layers" = [] }', "E207", 11, "no workload is left", "list its values"),
        ('{ "model.layers" = [2, 2] }', "E207", 11, "twice", "once"),
        ('{ "model.width" = [2, 4] }', "E207", 11, "both fixed and swept", "one of the two"),
        ('{ "modle.layers" = [2] }', "E207", 11, "cannot be swept", "did you mean 'model'?"),
        ("{ layers = [2] }", "E207", 11, "cannot be swept", '"model.layers" = [...]'),
        ('{ "accept.margin" = ["1 %"] }', "E207", 11, "cannot be swept", '"model.depth" = [...]'),
        ('{ "target.at_least" = [0.9] }', "E207", 11, "cannot be swept", '"model.depth" = [...]'),
        ('{ "name" = ["a", "b"] }', "E207", 11, "cannot be swept", "= [...]"),
        ('{ "model" = [{ use = "mlp" }] }', "E207", 11, "cannot be swept", '"model.depth" = [...]'),
        ('{ "model." = [2] }', "E207", 11, "cannot be swept", "= [...]"),
        ('{ "data.btch" = [2] }', "E201", 26, "unknown key 'btch'", "did you mean 'batch'?"),
        ('{ "train.epochz" = [2] }', "E201", 29, "unknown key 'epochz'", "did you mean 'epochs'?"),
        ('{ "data.subset" = [2, "x", 0] }', "E202", 0, "subset", ""),
        ("3", "E202", 1, "expected a table", ""),
    ],
)
def test_a_mistake_is_told_where_it_was_written(
    tmp_path: Path, sweep: str, code: str, column: int, says: str, hint: str
) -> None:
    found = problems(tmp_path, SWEPT.replace(SWEEP, f"sweep = {sweep}"))
    assert {each[0] for each in found} == {code}, found
    assert any(says in message and hint in hints for _, _, message, hints in found), found
    assert all(where.startswith("9:") for _, where, _, _ in found)
    if column == 0:  # each value at its own place
        assert len({where for _, where, _, _ in found}) == len(found) == 2


def test_a_mistake_beside_the_sweep_is_told_once(tmp_path: Path) -> None:
    found = problems(tmp_path, SWEPT.replace("epochs = 3", "epochs = 0", 1))
    assert [(each[0], each[1].split(":")[0]) for each in found] == [("E202", "8")]
    found = problems(tmp_path, SWEPT.replace("epochs = 3", "epochs = 3, epoch = 2", 1))
    assert [(each[0], each[1].split(":")[0]) for each in found] == [("E201", "8")]


def test_more_workloads_than_are_allowed_are_refused_before_they_are_made(tmp_path: Path) -> None:
    many = ", ".join(f'"model.p{n}" = {list(range(100))}' for n in range(8))
    ((code, where, message, _),) = problems(tmp_path, SWEPT.replace(SWEEP, f"sweep = {{ {many} }}"))
    assert (code, where.split(":")[0]) == ("E207", "9")
    assert f"{100**8 + 1:,} workloads" in message


def test_names_that_a_sweep_makes_are_one_anothers_and_short_enough(tmp_path: Path) -> None:
    ((code, where, message, _),) = problems(tmp_path, SWEPT.replace('"mlp"\nmodel', '"vit[layers=2]"\nmodel'))
    assert (code, "a second workload is named 'vit[layers=2]'" in message) == ("E205", True)
    long = SWEPT.replace("[2, 4, 6]", '["' + "x" * 190 + '"]')
    ((code, where, message, _),) = problems(tmp_path, long)
    assert (code, where, "200 are allowed" in message) == ("E205", "5:1", True)


def test_a_set_with_a_mistake_is_told_as_one(tmp_path: Path) -> None:
    ((code, _, message, _),) = problems(tmp_path, SWEPT, overrides=["workload[vit].sweep.layers=[1]"])
    assert (code, "cannot be swept" in message) == ("E206", True)


# ── commands, and an editor ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_options_of_a_command_can_be_swept_and_a_method_has_one_command_for_all(tmp_path: Path) -> None:
    loaded = load(tmp_path, SCRIPT)
    assert names(loaded) == ["train[epochs=5]", "train[epochs=10]"]
    assert [w.options for w in loaded.workloads] == [{"epochs": 5}, {"epochs": 10}]
    assert [why for _, _, why in loaded.pairs()] == [None, None]
    own = SCRIPT.replace("{ train =", '{ "train[epochs=5]" =')
    assert [why for _, _, why in load(tmp_path, own).pairs()] == [None, "it has no command for this workload"]
    ((code, _, _, hint),) = problems(tmp_path, SCRIPT.replace("{ train =", "{ trian ="))
    assert (code, "did you mean 'train'?" in hint) == ("E205", True)
    of_a_training = SCRIPT.replace('"options.epochs" = [5, 10]', '"train.lr" = [1]')
    code, _, _, hint = problems(tmp_path, of_a_training)[0]
    assert (code, '"options.epochs" = [...]' in hint) == ("E207", True)


@pytest.mark.parametrize("text", [SWEPT, SCRIPT])
def test_an_editor_admits_it_and_underlines_a_value_that_is_no_array(text: str) -> None:
    schema = suite_schema()
    assert refusal(schema, tomllib.loads(text)) is None
    assert refusal(schema, tomllib.loads(text.replace("[2, 4, 6]", "2").replace("[5, 10]", "5")))
