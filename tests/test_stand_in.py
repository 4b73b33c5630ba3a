"""Data known by its name: enough for `check` and `flops`, refused by everything that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import data_settings

from energybench.common.errors import UsageError
from energybench.flops.work import Line
from energybench.runner import plan_precision
from energybench.runner import planner as plan
from energybench.runner.plan_request import spec_of
from energybench.suite.suite import load
from energybench.workloads import datasets, stand_in

SPEC: dict[str, Any] = {"use": "cifar10", "batch": 16, "resident": 2_000_000_000}
CPU = torch.device("cpu")

SUITE = """schema = 1
suite = "tiny"
[measure]
energy = "off"
[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 4] }
data = { use = "cifar10", batch = 16, augment = ["flip", "crop4"] }
train = { epochs = 2, lr = 0.1 }
"""


@pytest.fixture(autouse=True)
def _nothing_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def planned(folder: Path, text: str = SUITE, **changes: Any) -> dict[str, Any]:
    file = folder / "tiny.toml"
    file.write_text(text, encoding="utf-8")
    spec = spec_of(load(file), folder, device="cpu", download=False).model_copy(update=changes)
    return plan.Plan(spec).result().model_dump(mode="json")


@pytest.mark.parametrize(
    ("name", "shape", "classes", "train", "test"),
    [
        ("cifar10", [3, 32, 32], 10, 50_000, 10_000),
        ("cifar100", [3, 32, 32], 100, 50_000, 10_000),
        ("mnist", [1, 28, 28], 10, 60_000, 10_000),
        ("fashion-mnist", [1, 28, 28], 10, 60_000, 10_000),
        ("tiny-imagenet", [3, 64, 64], 200, 100_000, 10_000),
        ("domainnet-clipart", [3, 224, 224], 345, 33_525, 14_604),
        ("domainnet-painting", [3, 224, 224], 345, 50_416, 21_850),
        ("imagenet", [3, 224, 224], 1000, 1_281_167, 50_000),
    ],
)
def test_a_known_set_has_its_published_shape_and_counts(name, shape, classes, train, test, tmp_path):
    described = datasets.prepare(data_settings(SPEC | {"use": name}), tmp_path, download=False, known=True)
    assert [list(described.shape), described.classes, described.train, described.test] == [shape, classes, train, test]
    assert "not on this machine" in described.source


def test_subsets_and_sizes_are_the_suites(tmp_path):
    spec = data_settings(SPEC | {"subset": 100, "test_subset": 20, "resize": 64})
    described = datasets.prepare(spec, tmp_path, download=False, known=True)
    assert (described.train, described.test, described.shape) == (100, 20, (3, 64, 64))
    train, test = datasets.open_data(described, spec, CPU)
    assert (len(train), len(test), train.steps(16), train.samples(16)) == (100, 20, 7, 100)
    batch = next(train.load([torch.arange(5)]))
    assert batch.inputs.shape == (5, 3, 64, 64)
    assert batch.targets.tolist() == [0] * 5
    spec = data_settings(SPEC | {"use": "imagenet", "options": {"size": 96}})
    assert datasets.prepare(spec, tmp_path, download=False, known=True).shape == (3, 96, 96)


def test_nothing_stands_in_unless_it_is_asked_for_nor_for_an_unknown_name(tmp_path):
    for spec, known in ((SPEC, False), (SPEC | {"use": "cifar11"}, True)):
        with pytest.raises(UsageError) as refused:
            datasets.prepare(data_settings(spec), tmp_path, download=False, known=known)
        assert refused.value.problems[0].code == "E402"


def test_nor_where_a_folder_of_that_name_holds_something_wrong(tmp_path, monkeypatch):
    (tmp_path / "data" / "cifar10" / "train").mkdir(parents=True)
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    with pytest.raises(UsageError):
        datasets.prepare(data_settings(SPEC), tmp_path, download=False, known=True)


def test_a_suite_is_checked_without_its_data_and_says_so(tmp_path):
    found = planned(tmp_path)
    assert found["problems"] == []
    assert any("'cifar10' is not on this machine" in note for note in found["notes"])
    known = found["workloads"]["w"]
    assert (known["steps"], known["samples"], known["data"]["kind"]) == (3125, 50_000, stand_in.KIND)
    assert known["step_s"] > 0
    flop = sum(line["flop"] for line in known["ledger"])
    convs = 2 * (3 * 2 * 9 * 32 * 32 + 2 * 4 * 9 * 16 * 16)
    no_dx = 2 * 3 * 2 * 9 * 32 * 32
    assert flop == 3 * convs - no_dx + 3 * 2 * 4 * 10


def test_what_several_workloads_lack_is_said_once(tmp_path):
    other = SUITE[SUITE.index("[[workload]]") :].replace('"w"', '"other"').replace("batch = 16", "batch = 32")
    notes = planned(tmp_path, SUITE + other)["notes"]
    assert [note for note in notes if "is not on this machine" in note] == notes[:1]


def test_a_run_of_it_is_refused(tmp_path):
    (problem,) = planned(tmp_path, purpose="run")["problems"]
    assert problem["code"] == "E402"


def test_a_trace_computes_nothing_so_neither_sensors_nor_precision_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_precision, "native_bf16", lambda: False)
    timed: list[int] = []
    monkeypatch.setattr(plan, "time_step", lambda *_: timed.append(1) or 0.1)
    text = SUITE.replace('"off"', '"require"').replace("lr = 0.1 }", 'lr = 0.1, precision = "bf16" }')
    found = planned(tmp_path, text, purpose="trace")
    assert found["problems"] == []
    assert found["workloads"]["w"]["ledger"]
    assert not timed
    codes = {problem["code"] for problem in planned(tmp_path, text, purpose="count")["problems"]}
    assert codes == {"E405"}


@pytest.mark.parametrize(
    ("use", "folder", "classes", "void", "train", "test"),
    [
        ("mask_folder", "voc2012", 21, 255, 1_464, 1_449),
        ("mask_folder", "ade20k", 150, 255, 20_210, 2_000),
        ("mask_folder", "CamVid", 11, 11, 367, 233),
        ("coco_folder", "coco2017", 80, None, 118_287, 5_000),
    ],
)
def test_a_known_folder_has_its_published_facts_and_targets_of_its_kind(
    use, folder, classes, void, train, test, tmp_path
):
    spec = data_settings({"use": use, "options": {"folder": folder, "size": [8, 12]}, "batch": 2})
    found = datasets.prepare(spec, tmp_path, download=False, known=True)
    assert (found.classes, found.void, found.train, found.test) == (classes, void, train, test)
    assert folder in found.source
    data, _ = datasets.open_data(found, spec, CPU)
    batch = next(data.load([torch.arange(3)]))
    assert batch.inputs.shape == (3, 3, 8, 12)
    if found.targets == "mask":
        assert torch.equal(batch.targets, torch.zeros(3, 8, 12, dtype=torch.int64))
    else:
        assert batch.targets["boxes"].tolist() == [[[0, 0, 12, 8]]] * 3
        assert batch.targets["labels"].tolist() == [[0]] * 3
    other = "coco_folder" if use == "mask_folder" else "mask_folder"
    for wrong in (spec.model_copy(update={"use": other}), data_settings({"use": use, "options": {"folder": "mine"}})):
        with pytest.raises(UsageError):
            datasets.prepare(wrong, tmp_path, download=False, known=True)
    with pytest.raises(UsageError):
        datasets.prepare(spec, tmp_path, download=False)


@pytest.mark.parametrize(("sample_flop", "samples"), [(0.0, 8), (1e9, 8), (50e9, 4), (220e9, 2), (1e15, 2)])
def test_a_step_is_timed_with_fewer_black_images_where_one_costs_much(sample_flop, samples):
    lines = [Line("forward", "", "conv", sample_flop / 4), Line("weight_gradient", "", "conv", sample_flop * 3 / 4)]
    assert stand_in.timed_samples(lines) == samples
    assert stand_in.timed_samples([]) == 8


@pytest.mark.parametrize(("about_flop", "timed", "judged"), [(1e15, 8, 2), (1.0, 2, 1)])
def test_of_images_that_cost_much_two_are_timed_and_one_is_judged(about_flop, timed, judged, tmp_path, monkeypatch):
    seen: list[int | None] = []
    time_step, evaluate = plan.time_step, plan.Run.evaluate
    monkeypatch.setattr(stand_in, "ABOUT_FLOP", about_flop)
    monkeypatch.setattr(plan, "time_step", lambda run, most: seen.append(most) or time_step(run, most))
    monkeypatch.setattr(plan.Run, "evaluate", lambda run, data: seen.append(len(data)) or evaluate(run, data))
    assert planned(tmp_path)["problems"] == []
    assert seen == [timed, judged]
