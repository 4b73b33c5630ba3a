"""What is found before anything trains, in the process that looks for it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from energybench.common import machine
from energybench.flops.counter import Counter
from energybench.flops.work import Work
from energybench.runner import plan_precision
from energybench.runner import planner as plan
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_task
from energybench.suite.suite import load
from energybench.train.batch import Batch
from energybench.train.recipe import Recipe
from energybench.workloads import models
from energybench.workloads.tasks.classification import Classification

SUITE = """schema = 1
suite = "tiny"
[trials]
blocks = 2
warmup = "1 steps"
[measure]
energy = "off"
[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 4] }
data = { use = "digits", batch = 16, subset = 48, test_subset = 16 }
train = { epochs = 4, lr = 0.1 }
"""


def planned(folder: Path, text: str = SUITE, **changes: Any) -> dict[str, Any]:
    file = folder / "tiny.toml"
    file.write_text(text, encoding="utf-8")
    spec = spec_of(load(file), folder, device="cpu", download=False).model_copy(update=changes)
    return plan.Plan(spec).result().model_dump(mode="json")


def problems(folder: Path, text: str) -> list[tuple[str, str]]:
    """(code, line:column) of every mistake."""
    return [(p["code"], p["where"].rpartition("tiny.toml:")[2]) for p in planned(folder, text)["problems"]]


def test_bf16_is_refused_with_a_hint_where_the_processor_emulates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SUITE.replace("lr = 0.1 }", 'lr = 0.1, precision = "bf16" }')
    monkeypatch.setattr(plan_precision, "native_bf16", lambda: True)
    assert problems(tmp_path, text) == []
    monkeypatch.setattr(plan_precision, "native_bf16", lambda: False)
    (found,) = planned(tmp_path, text)["problems"]
    assert (found["code"], found["where"].rpartition("tiny.toml:")[2]) == ("E405", "12:33")
    assert "--set workload.train.precision=fp32" in found["hint"]


def test_fp16_is_noted_where_the_processor_emulates_it_and_refused_where_torch_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SUITE.replace("lr = 0.1 }", 'lr = 0.1, precision = "fp16" }')
    for native in (False, True):
        monkeypatch.setattr(plan_precision, "native_fp16", lambda native=native: native)
        found = planned(tmp_path, text)
        assert found["problems"] == []
        assert any("emulates fp16" in note for note in found["notes"]) is not native
    monkeypatch.setattr(plan_precision, "lacking", lambda *_: "no kernel")
    (problem,) = planned(tmp_path, text)["problems"]
    assert (problem["code"], problem["where"].rpartition("tiny.toml:")[2]) == ("E405", "12:33")
    assert "no kernel" in problem["message"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_torch_is_asked_on_the_device_itself(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_precision.lacking(precision, torch.device("cpu")) is None
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())  # as where it is not supported
    assert "fp32" in str(plan_precision.lacking(precision, torch.device("cpu")))


def test_multipliers_are_held_against_the_model_before_anything_trains(tmp_path: Path) -> None:
    def text(pattern: str) -> str:
        return SUITE.replace("lr = 0.1 }", f'lr = 0.1, lr_multipliers = {{ "{pattern}" = 0.1 }} }}')

    (problem,) = planned(tmp_path, text("bakcbone.*"))["problems"]
    assert (problem["code"], problem["where"].rpartition("tiny.toml:")[2].split(":")[0]) == ("E410", "12")
    found = planned(tmp_path, text("*.bias"))
    assert found["problems"] == []
    assert any("the learning rate × 0.1 for" in note for note in found["notes"])
    plain = planned(tmp_path, SUITE)
    assert found["digest"] != plain["digest"]


@pytest.mark.parametrize(
    ("flags", "native"), [("avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16", True)]
)
def test_a_processor_multiplies_bf16_itself_if_it_says_so(
    flags: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags : fpu {flags}\n")
    assert machine.native_bf16() is native


def test_mistakes_of_models_data_and_metrics_are_told_together_each_with_its_line(tmp_path: Path) -> None:
    text = SUITE.replace("channels", "chanels").replace("test_subset = 16 }", 'test_subset = 16, augment = ["flop"] }')
    text += '[[workload]]\nname = "x"\nextends = "w"\nmodel = { use = "mlp" }\ndata = { use = "digitz", batch = 4 }\n'
    assert sorted(problems(tmp_path, text)) == [
        ("E401", "10:1"),
        ("E402", "17:1"),
        ("E407", "11:69"),
        ("E407", "11:69"),
    ]


def test_a_metric_that_the_task_does_not_report_is_found_before_training(tmp_path: Path) -> None:
    text = SUITE + 'target = { metric = "auc", at_least = 0.5 }\n'
    assert problems(tmp_path, text) == [("E406", "13:1")]


def test_energy_that_is_required_and_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, SUITE.replace('"off"', '"require"')) == [("E501", "7:1")]


def test_every_method_has_a_control_that_says_why_it_is_planned(tmp_path: Path) -> None:
    text = SUITE + '[[method]]\nuse = "gradsamp"\nskip = "every:2"\n[[method]]\nuse = "ssprop"\n'
    text += '[[method]]\nuse = "mezo"\n[[method]]\nuse = "neq"\ncontrol = "none"\n'
    cells = {cell["method"]: cell for cell in planned(tmp_path, text)["cells"]}
    controls = {name: (cell["of"], cell["control"]) for name, cell in cells.items() if cell["role"] == "control"}
    assert controls == {
        "gradsamp matched": ("gradsamp", "declared"),
        "ssprop matched": ("ssprop", "unlikely"),
        "mezo matched": ("mezo", "possible"),
    }
    assert cells["gradsamp matched"]["epochs"] == [2, 2]  # of 4 epochs, the second and fourth are skipped
    assert cells["gradsamp matched"]["expected_s"] == pytest.approx(cells["baseline"]["expected_s"] / 2)
    assert cells["gradsamp"]["expected_s"] == pytest.approx(cells["gradsamp matched"]["expected_s"])
    assert {tuple(cells[f"{name} matched"]["epochs"]) for name in ("ssprop", "mezo")} == {()}


ASKED = '[[method]]\ncontrol = "matched"\n'


@pytest.mark.parametrize(
    ("method", "useless"),
    [
        ('use = "ssprop"', True),  # it makes passes cheaper
        ('use = "dropout"', True),  # it overrides no hook of the loop
        ('use = ["ssprop", "dropout"]', True),
        ('use = "gradsamp"\nskip = "every:5"', True),  # of 4 epochs it skips none
        ('use = "gradsamp"\nskip = "every:2"', False),
        ('use = ["gradsamp", "ssprop"]\ngradsamp = { skip = "every:2" }', False),
        ('use = "mezo"', False),  # its tally tells
    ],
)
def test_a_control_that_would_be_plain_training_itself_is_refused(tmp_path: Path, method: str, useless: bool) -> None:
    found = planned(tmp_path, SUITE + ASKED + method + "\n")["problems"]
    assert [(each["code"], each["where"].rpartition("tiny.toml:")[2]) for each in found] == [("E324", "14:1")] * useless
    assert all('take out control = "matched"' in each["hint"] for each in found)


def test_a_control_that_is_useless_on_one_workload_alone_is_no_mistake(tmp_path: Path) -> None:
    longer = '[[workload]]\nname = "x"\nextends = "w"\ntrain = { epochs = 5, lr = 0.1 }\n'
    text = SUITE + longer + ASKED + 'use = "gradsamp"\nskip = "every:5"\n'
    assert planned(tmp_path, text)["problems"] == []


MODELS = """
import torch
from torch import nn

def lazy(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(classes))

class Broken(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        return self.fc(x.flatten(1)) @ torch.eye(3)  # line 14

def broken(shape, classes):
    return Broken(classes)

class Low(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(classes, 2)), nn.Parameter(torch.randn(2, 64))

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.a @ self.b)

def low_rank(shape, classes):
    return Low(classes)

class Rotated(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1) @ torch.matrix_exp(self.turn - self.turn.T))

def exponential(shape, classes):
    model = Rotated(64, classes)
    model.turn = nn.Parameter(torch.randn(64, 64) / 100)
    return model
"""


def of_model(tmp_path: Path, name: str, changed: str = "batch = 16") -> str:
    (tmp_path / "net.py").write_text(MODELS)
    text = re.sub(r"model = \{.*\}", f'model = {{ use = "net.py:{name}" }}', SUITE)
    return text.replace("batch = 16", changed)


def test_a_model_of_lazy_layers_is_planned_like_any_other(tmp_path: Path) -> None:
    found = planned(tmp_path, of_model(tmp_path, "lazy"))
    assert not found["problems"]
    layer = 2 * (64 * 8 + 8 * 10)
    assert found["cells"][0]["plain_flop"] == 4 * 48 * (2 * layer + 2 * 8 * 10)


def test_a_model_that_cannot_be_traced_is_told_with_its_line_and_its_place(tmp_path: Path) -> None:
    found = planned(tmp_path, of_model(tmp_path, "broken"))
    ((code, place),) = {(each["code"], each["where"].rpartition("tiny.toml:")[2]) for each in found["problems"]}
    assert (code, place) == ("E404", "10:1")
    assert any("net.py:14" in note for note in found["notes"])


def test_operators_that_the_ledger_has_no_formula_for_are_named_before_anything_runs(tmp_path: Path) -> None:
    found = planned(tmp_path, of_model(tmp_path, "exponential"))
    name = f"aten.linalg_matrix_exp (net.py:{MODELS.split('matrix_exp')[0].count(chr(10)) + 1})"
    assert not found["problems"]
    assert found["cells"][0]["not_in_ledger"] == [name]
    assert all(not cell["not_in_ledger"] for cell in found["cells"][1:])
    assert any(f"the ledger has no formula for {name}" in note for note in found["notes"])
    assert planned(tmp_path, of_model(tmp_path, "lazy"))["cells"][0]["not_in_ledger"] == []


def test_what_a_step_costs_once_is_planned_for_every_pass_of_a_micro_batch(tmp_path: Path) -> None:
    """48 samples: 3 steps of 16 in 2 passes, or 3 steps of 20, 20 and 8."""
    merged, sample = 2 * 10 * 2 * 64, 2 * 64 * 10
    for changed, train, passes in (("batch = 16", "", 3), ("batch = 20", "", 3), ("batch = 16", "accumulate = 2, ", 6)):
        text = of_model(tmp_path, "low_rank", changed).replace("train = { ", f"train = {{ {train}")
        found = planned(tmp_path, text)["cells"][0]["plain_flop"]
        assert found == 4 * (48 * 2 * sample + passes * 3 * merged)


def test_samples_that_no_epoch_trains_on_cost_nothing_in_the_plan(tmp_path: Path) -> None:
    """48 samples in batches of 32, the last of which is left out: as of 32 samples."""
    kept, all_of_them = (
        planned(tmp_path, SUITE.replace("batch = 16, subset = 48", changed))["cells"][0]["plain_flop"]
        for changed in ("batch = 32, subset = 48, drop_last = true", "batch = 32, subset = 48")
    )
    assert kept == pytest.approx(all_of_them * 32 / 48)


def test_a_workload_whose_every_method_is_skipped_is_not_run_at_all(tmp_path: Path) -> None:
    text = SUITE + '[[method]]\nuse = "ssprop"\n[[skip]]\nworkload = "w"\nbecause = "no time"\n'
    assert {cell["skipped"] for cell in planned(tmp_path, text)["cells"]} == {"no time"}


def test_the_run_digest_depends_on_settings_and_not_on_the_folder(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert planned(one)["digest"] == planned(two)["digest"]
    assert planned(one)["digest"] != planned(two, SUITE.replace("lr = 0.1", "lr = 0.2"))["digest"]


def test_a_requirement_is_part_of_the_run_digest_and_none_leaves_it_as_it_was(tmp_path: Path) -> None:
    """Declared before the first block; a suite written before there were any keeps its digest."""
    methods = '[[method]]\nuse = "dropout"\np = 0.5\n'
    plain = planned(tmp_path, SUITE + methods)["digest"]
    found = [
        planned(tmp_path, f'{SUITE}{methods}[[require]]\nsaves_at_least = "{least} %"\n')["digest"] for least in (5, 6)
    ]
    assert len({plain, *found}) == 3


CLASSIFIERS = ("small", "paper")  # modules; models of other tasks are held to this in tests/workloads


@pytest.mark.parametrize(
    "use", sorted(use for use, where in models.MODELS.items() if where.partition(":")[0].endswith(CLASSIFIERS))
)
def test_on_plain_training_the_ledger_equals_the_counter_for_every_shipped_model(use: str) -> None:
    torch.manual_seed(0)
    model = models.build(use, (3, 16, 16), 10, {"layers": 2} if use == "vit_tiny" else {})
    batch = Batch(torch.randn(4, 3, 16, 16), torch.arange(4), torch.arange(4))
    recipe = Recipe(epochs=1, batch=4)
    lines = trace_task(Classification(), model, recipe, batch, torch.device("cpu")).lines
    with Counter() as counter:
        nn.functional.cross_entropy(model(batch.inputs), batch.targets).backward()
    assert Work(lines, 1, 4).flop == pytest.approx(counter.total, rel=1e-3)
    assert counter.total > 0


def test_a_method_written_for_the_version_before_is_planned_and_its_old_names_are_noted(tmp_path: Path) -> None:
    (tmp_path / "older.py").write_text(
        '"""older: a plug-in of before."""\nfrom energybench.method import Method\n\n\nclass Older(Method):\n'
        "    def refuses(self, train):\n"
        '        return "no momentum" if train["momentum"] else None\n',
        encoding="utf-8",
    )
    suite = SUITE + '[[method]]\nuse = "older.py"\n'
    found = planned(tmp_path, suite)
    assert found["problems"] == []
    assert any("older.py: Older.refuses is called incompatible_recipe now" in note for note in found["notes"])
    assert any("older.py: " in note and "energybench.train.method" in note for note in found["notes"])
    refused = planned(tmp_path, suite.replace("lr = 0.1 }", "lr = 0.1, momentum = 0.9 }"))["problems"]
    assert [problem["code"] for problem in refused] == ["E315"]  # and what it says under the old name holds


REFUSING = '''"""picky: a method that refuses."""
from energybench import Method


class Picky(Method):
    trains_in = {precision!r}

    def incompatible_run(self, run):
        biases = [name for name, _ in run.model.named_parameters() if name.endswith("bias")]
        return f"it has {{len(biases)}} biases" if biases and {run} else None

    def incompatible_hardware(self, device):
        return f"no knob on a {{device}}" if {hardware} else None
'''


def refused_by(folder: Path, *, run: bool = False, hardware: bool = False, precision: str | None = None, **settings):
    text = REFUSING.format(run=run, hardware=hardware, precision=precision)
    (folder / "picky.py").write_text(text, encoding="utf-8")
    return planned(folder, SUITE + '[[method]]\nuse = "picky.py"\n', **settings)


def test_a_method_may_refuse_a_model_and_the_place_and_the_way_out_are_told(tmp_path: Path) -> None:
    (problem,) = refused_by(tmp_path, run=True)["problems"]
    assert problem["code"] == "E327"
    assert "'picky' cannot train 'w': it has " in problem["message"]
    assert 'workload = "w", method = "picky"' in problem["hint"]


def test_a_method_that_refuses_nothing_is_planned(tmp_path: Path) -> None:
    assert refused_by(tmp_path)["problems"] == []


def test_what_needs_a_card_is_refused_where_it_would_run_and_noted_where_it_is_looked_at(tmp_path: Path) -> None:
    (problem,) = refused_by(tmp_path, hardware=True, purpose="run")["problems"]
    assert (problem["code"], "no knob on a cpu" in problem["message"]) == ("E328", True)
    for purpose in ("check", "count", "trace"):
        looked = refused_by(tmp_path, hardware=True, purpose=purpose)
        assert looked["problems"] == []
        assert any("no knob on a cpu" in note for note in looked["notes"])


def test_a_methods_own_precision_is_refused_where_the_processor_emulates_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("energybench.runner.plan_precision.native_bf16", lambda: False)
    (problem,) = refused_by(tmp_path, precision="bf16")["problems"]
    assert (problem["code"], "'picky' asks for bf16" in problem["message"]) == ("E405", True)
    assert problem["where"]


def test_a_method_may_refuse_another_of_its_stack(tmp_path: Path) -> None:
    (tmp_path / "shy.py").write_text(
        '"""shy: trains alone."""\nfrom energybench import Method\n\n\nclass Shy(Method):\n'
        "    def incompatible_run(self, run):\n"
        "        others = [layer.name for layer in run.methods if layer is not self]\n"
        "        return f\"it does not train beside '{others[0]}'\" if others else None\n",
        encoding="utf-8",
    )
    alone = SUITE + '[[method]]\nuse = "shy.py"\n'
    assert planned(tmp_path, alone)["problems"] == []
    (problem,) = planned(tmp_path, alone + '[[method]]\nname = "two"\nuse = ["shy.py", "nothing"]\n')["problems"]
    assert (problem["code"], "beside 'nothing'" in problem["message"]) == ("E327", True)
