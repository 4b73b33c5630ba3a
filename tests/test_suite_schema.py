"""What an editor knows of a suite: names and their parameters are completed, and no typo is admitted."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_schema import refusal
from support import data_settings

from energybench.cli.described import describe
from energybench.cli.starting import METHOD, write_suite
from energybench.cli.suite_schema import suite_schema, without_null
from energybench.common.errors import EnergybenchError
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.parameter_schema import MISSING, Parameter
from energybench.workloads import catalogue, datasets, models

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = [discovery.card(discovery.Source(p.stem, p, "shipped")) for p in sorted((ROOT / "methods").glob("[!_]*.py"))]
SCHEMA = suite_schema(SHIPPED)
HEAD = 'schema = 1\nsuite = "s"\n'
WORKLOAD = """[[workload]]
name = "w"
model = { use = "cnn", channels = [4, 8] }
data = { use = "digits", batch = 8, augment = ["flip", "crop2"] }
train = { epochs = 2, lr = 0.1 }
"""
METHODS = """[[method]]
use = "gradsamp"
skip = "every:2"
location = "mean"
[[method]]
use = "ssprop"
name = "swept"
sweep = { schedule = ["constant", "bar"], period = ["2 epochs"] }
[[method]]
use = ["ssprop", "dropout"]
ssprop = { drop = 0.8 }
dropout = { p = 0.2 }
[[method]]
use = "importance"
alpha = 0.1
epsilon = 0.01
"""
GOOD = HEAD + WORKLOAD + METHODS


def parsed(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def test_the_schema_that_shipped_suites_name_is_the_one_that_is_written() -> None:
    """After a new method, model or key, from the checkout's root: energybench schema > suites/suite.schema.json"""
    committed = json.loads((ROOT / "suites" / "suite.schema.json").read_text(encoding="utf-8"))
    assert committed == json.loads(json.dumps(SCHEMA))
    for path in (ROOT / "suites").glob("*.toml"):
        assert path.read_text(encoding="utf-8").startswith("#:schema ./suite.schema.json\n"), path.name


@pytest.mark.parametrize(
    "change",
    [
        ("", ""),
        ('use = "gradsamp"', 'use = "GradSamp"'),
        ('use = "cnn", channels = [4, 8]', 'use = "resnet18", stem = "small"'),
        ('use = "cnn", channels = [4, 8]', 'use = "mine.py:mine", whatever = 3'),
        ('use = "cnn", channels = [4, 8]', "channels = [4]"),  # of a workload that extends another
        ('use = "digits"', 'use = "./pets", split = 0.2, split_seed = 3'),
        ('use = "digits"', 'use = "CIFAR10"'),
        ('use = "digits"', 'use = "mine.py:data", options = { n = 3 }'),
        ('use = "gradsamp"\nskip', 'use = "mine.py"\nwhatever'),
        ('["ssprop", "dropout"]', '["mine.py:Mine", "ssprop", "dropout"]\nMine = { a = 1 }'),
        ('skip = "every:2"', 'skip = "late-random:0.25"'),
        ('skip = "every:2"', 'skip = "table2:Pr=0.5"'),
        ('name = "w"', 'name = "w"\ntask = "Ridge"'),
    ],
)
def test_what_a_suite_may_hold_is_admitted(change: tuple[str, str]) -> None:
    assert change[0] in GOOD
    assert refusal(SCHEMA, parsed(GOOD.replace(*change))) is None


TYPOS = {
    "a method": ('"gradsamp"', '"gradsmp"'),
    "a method in a stack": ('["ssprop", "dropout"]', '["ssprop", "dropuot"]'),
    "a method twice in a stack": ('["ssprop", "dropout"]', '["ssprop", "ssprop"]'),
    "a parameter": ("skip =", "skipp ="),
    "a parameter of another method": ('skip = "every:2"', "drop = 0.5"),
    "a parameter in a stack": ("ssprop = { drop", "ssprop = { dorp"),
    "a stack's table": ("dropout = {", "dropuot = {"),
    "a parameter of a sweep": ("sweep = { schedule", "sweep = { shedule"),
    "a word": ('location = "mean"', 'location = "maen"'),
    "a word of a sweep": ('"constant", "bar"', '"constant", "baar"'),
    "a value twice in a sweep": ('"constant", "bar"', '"bar", "bar"'),
    "a rule of skipping": ('"every:2"', '"evry:2"'),
    "a number of such a rule": ('"every:2"', '"every:1"'),
    "a chance of such a rule": ('"every:2"', '"random:1.5"'),
    "a row of such a rule": ('"every:2"', '"table2:Pr=0.3"'),
    "a quantity of a method": ('["2 epochs"]', '["2 epochz"]'),
    "a number for a word": ('location = "mean"', "location = 3"),
    "a word for a number": ("p = 0.2", 'p = "0.2"'),
    "a share above one": ("p = 0.2", "p = 2"),
    "a negative share": ("drop = 0.8", "drop = -0.8"),
    "a model": ('"cnn"', '"cn"'),
    "a model of torchvision": ('"cnn", channels = [4, 8]', '"resnet19"'),
    "a parameter of a model": ("channels =", "chanels ="),
    "a parameter of torchvision's model": ('"cnn", channels = [4, 8]', '"resnet18", stm = "small"'),
    "a stem": ('"cnn", channels = [4, 8]', '"resnet18", stem = "smal"'),
    "a type of a model's parameter": ("channels = [4, 8]", 'channels = ["4"]'),
    "a data set": ('"digits"', '"digit"'),
    "a key of the data": ("batch =", "bacth ="),
    "a split above one": ('"digits"', '"./pets", split = 20'),
    "an augmentation": ('"flip"', '"flipp"'),
    "an augmentation's number": ('"crop2"', '"crop0"'),
    "a task": ('name = "w"', 'name = "w"\ntask = "clasification"'),
    "an optimizer": ("lr = 0.1", 'lr = 0.1, optimizer = "agad"'),
    "a schedule": ("lr = 0.1", 'lr = 0.1, schedule = "cosin"'),
    "a key of the recipe": ("lr = 0.1", "rl = 0.1, lr = 0.1"),
    "a key at the top": ("schema = 1", "schema = 1\nsweet = 1"),
    "a table at the top": (WORKLOAD, WORKLOAD + "[trails]\nblocks = 3\n"),
    "a key of a table": (WORKLOAD, WORKLOAD + "[trials]\nblcks = 3\n"),
    "a unit": (WORKLOAD, WORKLOAD + '[trials]\nlimit = "30 mins"\n'),
    "a missing unit": (WORKLOAD, WORKLOAD + "[trials]\nlimit = 30\n"),
    "a word of a table": (WORKLOAD, WORKLOAD + '[measure]\nenergy = "if availabel"\n'),
    "a verdict": (WORKLOAD, WORKLOAD + '[[require]]\nverdict = ["savs"]\n'),
    "a key of the overlay": (WORKLOAD, WORKLOAD + "[quick]\nworkload.trian = { epochs = 1 }\n"),
    "a data set of the overlay": (WORKLOAD, WORKLOAD + '[quick]\nworkload.data = { use = "mnsit" }\n'),
    "a model of the overlay": (WORKLOAD, WORKLOAD + '[quick]\nworkload.model = { use = "cnnn" }\n'),
    "a control": ('skip = "every:2"', 'skip = "every:2"\ncontrol = "matchd"'),
    "a key of the claims": ('skip = "every:2"', 'skip = "every:2"\nclaims = { trainig = "3 %" }'),
}


@pytest.mark.parametrize("typo", TYPOS)
def test_no_typo_passes(typo: str) -> None:
    written, wrong = TYPOS[typo]
    assert written in GOOD
    assert refusal(SCHEMA, parsed(GOOD.replace(written, wrong, 1))), typo


# ── what is admitted is what is built, parameter by parameter ─────────────────────────────────────────────────────────

KINDS = {card.name: discovery.load(discovery.Source(card.name, Path(card.path), "shipped")) for card in SHIPPED}
PARAMETERS = [(card.name, each) for card in SHIPPED for each in card.details]
# A parameter whose value another one forbids: that is the method's own to say.
DEPENDENT = {("layer_freezing", "start"), ("layer_freezing", "unfreeze"), ("sgld", "power"), ("ssprop", "dimension")}


def built(name: str, values: Mapping[str, Any]) -> bool:
    example = getattr(KINDS[name], "example", {})
    required = {each.name: example[each.name] for method, each in PARAMETERS if method == name and each.required}
    try:
        discovery.build(KINDS[name], name, {**required, **values})
    except EnergybenchError:
        return False
    return True


def values_near(parameter: Parameter) -> st.SearchStrategy[Any]:
    """Of every type, about its bounds, its own words and slips of them."""
    words: list[Any] = [parameter.value] if parameter.value is not MISSING else []
    for option in (parameter.schema, *parameter.schema.get("anyOf", ())):
        words += [*option.get("enum", ()), *option.get("examples", ())]
    slips = [f"{word}x" for word in words if isinstance(word, str)]
    numbers = [-1, -0.5, 0, 0.0, 0.5, 1, 1.0, 2, 3, 1e-9, 0.999, "1", True, [], {}]
    return st.one_of(st.sampled_from([*words, *slips, *numbers]), st.floats(-2, 2), st.integers(-3, 3))


@given(st.data())
@pytest.mark.parametrize(("name", "parameter"), PARAMETERS, ids=lambda each: getattr(each, "name", each))
def test_the_schema_admits_of_a_parameter_what_the_method_takes(name: str, parameter: Parameter, data: Any) -> None:
    value = data.draw(values_near(parameter))
    schema = SCHEMA["$defs"][f"Method_{name}"]["properties"][parameter.name]
    admitted = refusal(SCHEMA, value, schema) is None
    if isinstance(value, float) and value.is_integer() and "integer" in json.dumps(schema):
        return  # 2.0 is an integer to JSON Schema's words and none to TOML
    if (name, parameter.name) in DEPENDENT and admitted:
        return
    assert built(name, {parameter.name: value}) == admitted


skips = st.one_of(
    st.builds(
        "{}{}:{}".format,
        st.sampled_from(["", "late-", "late"]),
        st.sampled_from(["every", "random", "evry"]),
        st.one_of(st.integers(-1, 30), st.floats(-0.5, 1.5), st.sampled_from(["", "x", "1e-2", "5.0", "0.50"])),
    ),
    st.builds(
        "table2:{}={}".format,
        st.sampled_from(["Pe", "DP", "Pr", "DR", "XX"]),
        st.sampled_from([5, 10, 0.2, 0.5, 0.7, 0.3, "", "5.0", "0.50"]),
    ),
    st.text(max_size=8),
)


@given(skips)
def test_the_grammar_of_skipping_is_that_of_the_method(skip: str) -> None:
    schema = SCHEMA["$defs"]["Method_gradsamp"]["properties"]["skip"]
    if refusal(SCHEMA, skip, schema) is None:
        assert built("gradsamp", {"skip": skip})
    elif "e" not in skip.partition(":")[2] and not skip.startswith(("table2:Pr", "table2:DR")):
        assert not built("gradsamp", {"skip": skip})


@pytest.mark.parametrize("card", SHIPPED, ids=lambda card: card.name)
def test_the_example_that_list_prints_is_a_suite(card: discovery.MethodCard, tmp_path: Path) -> None:
    text = HEAD + WORKLOAD + describe(card.name)["example"]
    assert refusal(SCHEMA, parsed(text)) is None
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    (variant,) = load(tmp_path / "s.toml").variants()
    assert built(card.name, variant.stack[0].parameters)


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_that_are_read_as_text_are_those_that_the_code_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from energybench.common.torchvision_shim import import_torchvision
    from energybench.workloads.tasks import TASKS

    vision = import_torchvision().models
    assert set(catalogue.torchvision_models()) == set(vision.list_models(module=vision))
    assert [each.name for each in catalogue.models()] == list(models.MODELS)
    assert [each.name for each in catalogue.tasks()] == list(TASKS)
    assert {*datasets.DATA_SETS, *datasets.TORCHVISION} <= set(catalogue.data_set_names())
    monkeypatch.setattr("energybench.workloads.names.missing_packages", lambda extra: [])
    for model in catalogue.models():
        signature = models.inspect.signature(models.NAMES.load(model.name)).parameters
        assert [each.name for each in model.parameters] == [n for n in signature if n not in ("shape", "classes")]


def test_methods_and_data_of_the_user_are_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "half.py").write_text(METHOD.format(name="half", class_name="Half"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    schema = suite_schema(folders=["Birds"])
    own = parsed(GOOD.replace('"gradsamp"\nskip = "every:2"\nlocation = "mean"', '"half"\nevery = 2'))
    assert refusal(schema, own) is None
    own["workload"][0]["data"]["use"] = "birds"
    assert refusal(schema, own) is None
    own["method"][0]["evry"] = 2
    assert refusal(schema, own)
    assert data_settings({"use": "birds"}).use == "birds"


def test_no_key_of_the_schema_can_be_null() -> None:
    assert '"null"' not in json.dumps(SCHEMA)
    assert without_null({"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}) == {"type": "string"}


def test_every_key_says_what_it_is() -> None:
    """An editor shows it, and docs/suite.md prints it; a key that holds a table may leave that to the table."""
    untold = [
        f"{name}.{key}"
        for name, table in {"": SCHEMA, **SCHEMA["$defs"]}.items()
        if not name.startswith(("Method_", "Stack"))
        for key, inner in table.get("properties", {}).items()
        if not inner.get("description") and "$defs" not in json.dumps(inner)
    ]
    assert untold == []


def test_a_new_suite_names_a_schema_that_admits_it(tmp_path: Path) -> None:
    written = write_suite("mine", tmp_path, lambda: json.dumps(SCHEMA).encode())
    assert [path.name for path in written] == ["mine.toml", "suite.schema.json"]
    text = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    assert text.startswith("#:schema ./suite.schema.json\n")
    assert refusal(SCHEMA, parsed(text)) is None
    assert load(tmp_path / "mine.toml", quick=True).methods
