"""What only shows where everything is built: what no model, data set or machine can have is told with a code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzzing import hunt, told
from hypothesis import strategies as st

from energybench.common.errors import EnergybenchError, Problem
from energybench.records.record import Cell, RunFile
from energybench.runner.plan_request import spec_of
from energybench.runner.plan_spec import PlanSpec
from energybench.runner.planner import Plan
from energybench.suite.suite import load

SUITE = """
schema = 1
suite = "s"
[trials]
blocks = 1
threads = 1
[measure]
energy = "off"
carbon = { country = "FRA" }
[accept]
[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 1, lr = 0.1 }
"""
BIG = 2**62
METHOD = "\n[[method]]\nuse = "
CASES: dict[str, tuple[str, str, str]] = {  # what is replaced by what, and the code it gets; "" for what is fine
    "nothing": ("", "", ""),
    "epochs": ("epochs = 1", f"epochs = {BIG}", "E202"),
    "as many epochs as are allowed": ("epochs = 1", "epochs = 1_000_000", ""),
    "threads": ("threads = 1", f"threads = {BIG}", "E202"),
    "a batch": ("batch = 16", f"batch = {BIG}", "E202"),
    "a subset": ("subset = 64", f"subset = {BIG}", ""),
    "a limit": ("threads = 1", 'threads = 1\nlimit = "1e300 s"', "E202"),
    "a seed": ("threads = 1", f"threads = 1\nseed = {2**63 - 1}", ""),
    "a margin that hides everything": ("[accept]", '[accept]\nmargin = "100 %"', "E202"),
    "pue": ('"FRA" }', '"FRA", pue = 1e300 }', "E202"),
    "a learning rate": ("lr = 0.1", "lr = 1e308", "E202"),
    "a learning rate that only diverges": ("lr = 0.1", "lr = 1e300", ""),
    "an unknown augmentation": ("batch = 16", 'batch = 16, augment = ["cutout"]', "E407"),
    "no channel": ("[2, 2]", "[0]", "E404"),
    "less than no channel": ("[2, 2]", "[-1]", "E404"),
    "more channels than memory": ("[2, 2]", f"[{BIG}]", "E404"),
    "channels that are text": ("[2, 2]", '["a"]', "E401"),
    "a patch of nothing": ('"cnn", channels = [2, 2]', '"vit_tiny", patch = 0', "E404"),
    "a patch that does not fit": ('"cnn", channels = [2, 2]', '"vit_tiny", patch = 3', "E404"),
    "weights from elsewhere": ('"cnn", channels = [2, 2]', '"resnet18", weights = "DEFAULT"', "E401"),
    "a share": ("lr = 0.1 }", f'lr = 0.1 }}{METHOD}"dropout"\np = 1e300', "E304"),
    "a list for a number": ("lr = 0.1 }", f'lr = 0.1 }}{METHOD}"dropout"\np = [[1]]', "E304"),
    "tuning": ("lr = 0.1 }", f'lr = 0.1 }}{METHOD}"nothing"\ntuned = {{ trials = {BIG} }}', "E202"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_tells_what_cannot_be_built_and_never_ends_early(name: str, tmp_path: Path) -> None:
    old, new, code = CASES[name]
    path = tmp_path / "s.toml"
    path.write_text(SUITE.replace(old, new) if old else SUITE, encoding="utf-8")
    if code == "E202":
        with pytest.raises(EnergybenchError, match=code):
            load(path)
        return
    result = planned(path)
    assert {problem["code"] for problem in result["problems"]} == ({code} if code else set())


def planned(path: Path) -> dict[str, Any]:
    """The plan of a suite that can be read; where nothing is wrong with it, it can be kept."""
    suite = load(path)
    spec_of(suite, path.parent, device="cpu", download=False).write(path.with_suffix(".in.json"))
    answer = Plan(PlanSpec.read(path.with_suffix(".in.json"))).result()
    result: dict[str, Any] = json.loads(json.dumps(answer.model_dump(mode="json"), allow_nan=False))
    if not result["problems"]:
        cells = [Cell.model_validate(cell) for cell in result["cells"]]
        RunFile(
            suite="s",
            run="r",
            digest="d",
            suite_path="s",
            suite_text="",
            resolved=suite.digest_source(),
            cells=cells,
            blocks=1,
            machine=result["machine"],
        )
    return result


# ── any values ────────────────────────────────────────────────────────────────────────────────────────────────

# Nothing between what is built at once and what no machine can hold: this one has to live through it.
VALUES = (
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "64",
    "1e300",
    "5e-324",
    "-0.0",
    "0.5",
    "nan",
    "inf",
    str(2**45),
    str(2**62),
    "true",
    "[]",
    "[1]",
    "[0, 1]",
    "[[1]]",
    "{}",
    "{ a = 1 }",
    '""',
    '"a"',
    '"x.py:f"',
    '"x.py"',
    '"\\u0000"',
    '"../../etc/passwd"',
    f'"{"n" * 300}"',
    f'"{"é" * 128}.py"',
    '"os:system"',
    '"10 s"',
    '"50 %"',
    "1979-05-27",
)
TABLES = {
    "model": ("use", "channels", "patch", "depth", "width", "x"),
    "data": ("use", "batch", "subset", "test_subset", "resize", "augment", "options", "workers", "resident"),
    "train": (
        "epochs",
        "lr",
        "momentum",
        "clip",
        "decay",
        "betas",
        "optimizer",
        "schedule",
        "accumulate",
        "label_smoothing",
        "activation",
        "warmup_epochs",
    ),
    "method": ("use", "p", "skip", "warmup", "every", "sigma", "sweep", "claims", "tuned", "x"),
}
PLAIN = {
    "model": {"use": '"cnn"', "channels": "[2, 2]"},
    "data": {"use": '"digits"', "batch": "16", "subset": "64", "test_subset": "32"},
    "train": {"epochs": "1", "lr": "0.1"},
}
METHODS = ("nothing", "dropout", "gradsamp", "ssprop", "sgld", "gni", "scotti", "low", "importance")
changes = st.lists(
    st.sampled_from([(table, key) for table, keys in TABLES.items() for key in keys]).flatmap(
        lambda place: st.tuples(st.just(place), st.sampled_from(VALUES))
    ),
    min_size=1,
    max_size=2,
)


def a_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="utf-8")
    try:
        result = planned(path)
    except EnergybenchError as error:
        told(error, "12")
        return
    if result["problems"]:
        told(EnergybenchError(Problem(**problem) for problem in result["problems"]), "2345")


def _written(drawn: Any) -> tuple[str]:
    method, changed = drawn
    tables = {name: dict(keys) for name, keys in PLAIN.items()} | {"method": {"use": f'"{method}"'}}
    for (table, key), value in changed:
        tables[table][key] = value
    head, _, _ = SUITE.partition("model = ")
    rows = [f"{name} = {{ {', '.join(f'{k} = {v}' for k, v in tables[name].items())} }}\n" for name in PLAIN]
    method_rows = [f"{key} = {value}\n" for key, value in tables["method"].items()]
    return (head + "".join(rows) + "[[method]]\n" + "".join(method_rows),)


@pytest.mark.soak
def test_any_values_are_planned_or_told(tmp_path: Path) -> None:
    hunt("plans", st.tuples(st.sampled_from(METHODS), changes), a_plan, _written, tmp_path=tmp_path)
