"""Features of a frozen backbone as data: its own output to the bit, kept under a key of all that they depend on."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from support import CPU, assert_same_state, data_settings, make_run, run_or_refusal, state
from torch import Tensor, nn

from energybench.common import user_cache
from energybench.common.errors import UsageError
from energybench.common.hashing import stable_seed
from energybench.common.open_tables import DataFacts
from energybench.flops.work import Work
from energybench.records.record import RunFile
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_run
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.data import Data
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.verdict import sentences
from energybench.verdict.figures import Baseline, Workload
from energybench.verdict.workload import notes_of
from energybench.workloads import catalogue, datasets, models, stand_in
from energybench.workloads.datasets import backbones, kept_tensors
from energybench.workloads.datasets import features as features_module
from energybench.workloads.datasets.kept_tensors import Kept
from energybench.workloads.description import DataDescription
from energybench.workloads.models.features import Extractor, vgg_small
from energybench.workloads.tasks.classification import Classification

ROOT = Path(__file__).resolve().parents[2]
METHODS = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}
WIDTHS = [4, 6]
VGG = {"use": "vgg_small", "widths": WIDTHS}
OPTIONS: dict[str, Any] = {"of": "digits", "backbone": VGG, "layer": "features"}
SUBSETS = {"subset": 24, "test_subset": 12}
# Products of two convolutions at 8×8 and two at 4×4, of one digit.
ONE_DIGIT_FLOP = 2 * 9 * (64 * (1 * 4 + 4 * 4) + 16 * (4 * 6 + 6 * 6))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)


def prepared(
    folder: Path, options: dict[str, Any] | None = None, known: bool = False, **keys: Any
) -> tuple[DataDescription, Data, Data]:
    """A set of features, described and opened."""
    values = {"use": "features", "batch": 8, "options": OPTIONS | (options or {})} | SUBSETS | keys
    table = data_settings(values)
    described = datasets.prepare(table, folder / "cache", base=folder, known=known)
    return (described, *datasets.open_data(described, table, CPU))


def refused(folder: Path, code: str = "E402", known: bool = False, **options: Any) -> str:
    """What a refusal says, and its hint."""
    with pytest.raises(UsageError) as caught:
        prepared(folder, options, known)
    (problem,) = caught.value.problems
    assert problem.code == code
    return f"{problem.message} | {problem.hint}"


def whole(data: Data) -> tuple[Tensor, Tensor]:
    """All of its inputs and targets."""
    batches = list(data.in_order(7))
    return torch.cat([batch.inputs for batch in batches]), torch.cat([batch.targets for batch in batches])


def images(folder: Path, **keys: Any) -> tuple[Data, Data]:
    """The digits themselves, as training is handed them."""
    table = data_settings({"use": "digits", "batch": 8} | SUBSETS | keys)
    return datasets.open_data(datasets.prepare(table, folder / "plain"), table, CPU)


def fresh_vgg(seed: int = 0, classes: int = 1000) -> nn.Module:
    """As the seed of a backbone makes it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(stable_seed(seed, "backbone"))
        return models.build("vgg_small", (1, 8, 8), classes, {"widths": WIDTHS})


def own_output(model: nn.Module, layers: Callable[[Any], nn.Module], data: Data) -> Tensor:
    """What the model's layers make of the images by themselves."""
    model.eval()
    with torch.no_grad():
        batches = data.in_order(features_module.AT_ONCE)
        return torch.cat([layers(model)(batch.inputs) for batch in batches])


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that features are computed, or a backbone is trained."""
    seen: list[str] = []
    for module, name in ((features_module, "_computed"), (backbones, "_train")):
        original = getattr(module, name)

        def counted(*arguments: Any, _name: str = name, _original: Any = original) -> Any:
            seen.append(_name)
            return _original(*arguments)

        monkeypatch.setattr(module, name, counted)
    return seen


# ── what they are ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_features_are_the_backbones_own_output_to_the_bit_and_labels_stay(tmp_path):
    described, *parts = prepared(tmp_path)
    assert (described.shape, described.classes, described.targets) == ((6, 2, 2), 10, "class")
    assert (described.kind, described.train, described.test) == ("resident", 24, 12)
    for part, original in zip(parts, images(tmp_path), strict=True):
        found, targets = whole(part)
        assert found.dtype == torch.float32
        assert torch.equal(found, own_output(fresh_vgg(), lambda model: model.features, original))
        assert torch.equal(targets, whole(original)[1])


def test_maps_are_averaged_to_the_side_that_was_asked_for(tmp_path):
    _, train, _ = prepared(tmp_path, {"pool": 1})
    maps = own_output(fresh_vgg(), lambda model: model.features, images(tmp_path)[0])
    torch.testing.assert_close(whole(train)[0], maps.mean((2, 3), keepdim=True))


def test_without_a_layer_they_are_what_the_last_linear_layer_is_given(tmp_path):
    described, train, _ = prepared(tmp_path, {"layer": None})
    body = own_output(fresh_vgg(), lambda model: model[:-1], images(tmp_path)[0])
    assert described.shape == (6,)
    assert torch.equal(whole(train)[0], body)


def test_images_are_resized_before_the_backbone_sees_them(tmp_path):
    described, train, _ = prepared(tmp_path, {"of": {"use": "digits", "resize": 16}})
    assert described.shape == (6, 4, 4)
    original = images(tmp_path, resize=16)[0]
    assert torch.equal(whole(train)[0], own_output(fresh_vgg(), lambda model: model.features, original))


def test_only_what_the_suite_keeps_passes_through_the_backbone(tmp_path, computed):
    _, few, _ = prepared(tmp_path, subset=5)
    assert torch.equal(whole(few)[1], whole(images(tmp_path, subset=5)[0])[1])
    assert len(few) == 5
    assert computed == ["_computed"]


def test_a_script_may_call_it_and_finds_the_same(tmp_path):
    made = features_module.features("digits", VGG, layer="features", pool=1)
    _, train, test = prepared(tmp_path, {"pool": 1}, subset=None, test_subset=None)
    assert torch.equal(made.train[0], whole(train)[0])
    assert torch.equal(made.test[1], whole(test)[1])


def test_a_suite_cannot_set_what_the_run_says(tmp_path):
    names = {parameter.name for parameter in catalogue.by_name("data")["features"].parameters}
    assert names == {"of", "backbone", "trained_on", "layer", "pool", "standardised_by", "seed"}
    assert "takes no option '_asked'" in refused(tmp_path, _asked=1)


# ── the cut-off model ─────────────────────────────────────────────────────────────────────────────────────────────────


class Explodes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("it was computed")


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(108, 2)
    )


def test_a_frozen_backbone_is_left_as_it_is_and_gives_the_same_again():
    model = net()
    before = state(model)
    extractor, shown = Extractor(model, "3"), torch.randn(5, 1, 8, 8)
    one, other = extractor(shown), extractor(shown)
    assert torch.equal(one, other)
    assert not one.requires_grad
    assert_same_state(before, state(model))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_what_stands_behind_the_layer_is_not_computed():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), Explodes(), nn.Flatten(), nn.Linear(108, 2))
    shown = torch.randn(2, 1, 8, 8)
    assert torch.equal(Extractor(model, "0")(shown), model[0](shown))
    with pytest.raises(AssertionError):
        Extractor(model)(shown)


def test_an_output_that_a_later_layer_overwrites_is_taken_before():
    model = net()
    found = Extractor(model, "1")(torch.randn(4, 1, 8, 8))
    assert (found < 0).any()


@pytest.mark.parametrize(
    ("model", "layer", "pool", "said"),
    [
        (net(), "6", None, "no layer '6'"),
        (net(), "4", 2, "not pooled to 2"),
        (net(), "3", 7, "not pooled to 7"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), None, None, "no linear layer"),
        (nn.ModuleDict({"a": nn.Flatten(), "b": nn.Linear(4, 1)}), "b", None, "is not called"),
        (nn.Sequential(nn.Flatten(0), nn.Identity()), "1", None, "a row of numbers each"),
        (nn.Sequential(nn.LSTM(8, 3), nn.Identity()), "0", None, "gives tuple"),
    ],
    ids=["unknown", "flat", "small", "no-linear", "not-called", "one-row", "tuple"],
)
def test_a_layer_that_gives_no_features_is_refused(model, layer, pool, said):
    shape = (3, 1, 8, 8)
    if isinstance(model, nn.ModuleDict):
        model.forward = lambda images: images  # type: ignore[method-assign]
    elif isinstance(model[0], nn.LSTM):
        shape = (3, 8, 8)
    with pytest.raises(ValueError, match=said):
        Extractor(model, layer, pool)(torch.randn(shape))


def test_it_knows_which_tensors_the_features_depend_on():
    model = net()
    names = list(model.state_dict())
    used = Extractor(model, "2").uses(names, (1, 8, 8))
    assert used == [name for name in names if name.startswith(("0.", "1."))]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_small_vgg_halves_its_maps_once_for_each_width():
    model = vgg_small((3, 32, 24), 7, (4, 8, 16)).eval()
    shown = torch.randn(2, 3, 32, 24)
    with torch.no_grad():
        assert model.features(shown).shape == (2, 16, 4, 3)
        assert model(shown).shape == (2, 7)
    for wrong in ((3, 7, 32), (3, 32)):
        with pytest.raises(UsageError) as caught:
            models.build("vgg_small", wrong, 7, {})
        assert "8 pixels at least" in caught.value.problems[0].message


# ── kept ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_they_are_computed_once_and_found_again_bit_by_bit(tmp_path, computed):
    first, second = prepared(tmp_path / "one"), prepared(tmp_path / "two")
    assert computed == ["_computed"]
    assert first[0].sha256 == second[0].sha256
    for one, other in zip(first[1:], second[1:], strict=True):
        assert all(map(torch.equal, whole(one), whole(other)))
    assert "computed now" in first[0].notes[0]
    assert "read from the cache" in second[0].notes[0]


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"pool": 1}, {}),
        ({"layer": "features.2"}, {}),
        ({"seed": 1}, {}),
        ({"backbone": {"use": "vgg_small", "widths": [4, 7]}}, {}),
        ({"backbone": {"use": "cnn", "channels": [4]}, "layer": "0"}, {}),
        ({"of": {"use": "digits", "resize": 12}}, {}),
        ({}, {"subset": 23}),
        ({}, {"test_subset": 11}),
    ],
    ids=lambda value: ",".join(f"{key}" for key in value) or "-",
)
def test_a_change_of_anything_that_they_depend_on_is_another_key(options, keys, tmp_path, computed):
    prepared(tmp_path)
    prepared(tmp_path, options, **keys)
    prepared(tmp_path)
    assert computed == ["_computed"] * 2


@pytest.mark.parametrize("number", range(3))
def test_so_are_other_versions_of_torch_torchvision_and_energybench(number, tmp_path, computed, monkeypatch):
    prepared(tmp_path)
    before = backbones.versions()
    after = [*before[:number], "another", *before[number + 1 :]]
    for module in (features_module, backbones):
        monkeypatch.setattr(module, "versions", lambda: after)
    prepared(tmp_path)
    assert computed == ["_computed"] * 2
    assert torch.__version__ in before


def test_so_are_other_images_of_the_same_name(tmp_path, computed, monkeypatch):
    first = offer(monkeypatch, "odd", lambda: IMAGE_SET)
    prepared(tmp_path, {"of": "odd"})
    inputs, targets = IMAGE_SET["train"]
    changed = inputs.clone()
    changed[3, 0, 2, 2] ^= 1
    first.odd = lambda: IMAGE_SET | {"train": (changed, targets)}
    prepared(tmp_path / "again", {"of": "odd"})
    assert computed == ["_computed"] * 2


def one_kept_file() -> Path:
    (file,) = user_cache.place("features").glob("features-*.pt")
    return file


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def no_archive(file: Path) -> None:
    file.write_bytes(b"\x80\x04 not what torch writes")


def number_changed(file: Path) -> None:
    """One bit of one feature."""
    content = file.read_bytes()
    tensor = torch.load(file, weights_only=True)["tensors"]["train.inputs"]
    at = content.index(tensor.numpy().tobytes()[:64])
    file.write_bytes(content[: at + 9] + bytes([content[at + 9] ^ 1]) + content[at + 10 :])


def labels_changed(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    content["tensors"]["train.targets"][0] += 1
    torch.save(content, file)


def key_changed(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    torch.save(content | {"key": "0" * 24}, file)


def another_file(file: Path) -> None:
    torch.save({"weights": torch.ones(3)}, file)


def runs_code(file: Path) -> None:
    torch.save({"key": Runs()}, file)


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["XDG_CACHE_HOME"] + "/it-ran",)


@pytest.mark.parametrize(
    "damage",
    [cut, emptied, no_archive, number_changed, labels_changed, key_changed, another_file, runs_code],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_file_is_never_used_and_written_anew(damage, tmp_path, computed):
    first = prepared(tmp_path)
    file = one_kept_file()
    damage(file)
    again = prepared(tmp_path / "again")
    assert computed == ["_computed"] * 2
    assert again[0].sha256 == first[0].sha256
    assert not (user_cache.place().parent / "it-ran").exists()
    prepared(tmp_path / "third")
    assert computed == ["_computed"] * 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing half written


KEPT = Kept({"a": torch.arange(5.0), "b": torch.tensor(3)}, {"flop": 12, "accuracy": 0.5})


@given(st.data())
@settings(max_examples=60)
def test_whatever_byte_is_damaged_nothing_else_is_read_than_what_was_written(data):
    file = kept_tensors.place("features", "k" * 24)
    assert kept_tensors.write("features", "k" * 24, KEPT) == ""
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content[: data.draw(st.sampled_from([len(content), at]))])
    found = kept_tensors.read("features", "k" * 24)
    if found is not None:  # a byte that says nothing
        assert found.facts == KEPT.facts
        assert_same_state(dict(found.tensors), dict(KEPT.tensors))


def test_another_keys_file_is_not_used_whatever_its_name():
    kept_tensors.write("features", "a" * 24, KEPT)
    os.rename(kept_tensors.place("features", "a" * 24), kept_tensors.place("features", "b" * 24))
    assert kept_tensors.read("features", "b" * 24) is None
    assert kept_tensors.read("features", "a" * 24) is None


def writes(number: int, start: Any) -> None:
    start.wait(20)
    for _ in range(20):
        assert kept_tensors.write("features", "k" * 24, KEPT) == ""


def test_two_processes_that_keep_the_same_at_once_leave_one_whole_file():
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    both = [context.Process(target=writes, args=(number, start)) for number in range(2)]
    for process in both:
        process.start()
    start.wait(20)
    found = []
    while any(process.is_alive() for process in both):
        found.append(kept_tensors.read("features", "k" * 24))
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    found.append(kept_tensors.read("features", "k" * 24))
    first = next(number for number, kept in enumerate(found) if kept is not None)
    for kept in found[first:]:  # from the first on it is always there, and whole
        assert kept is not None
        assert_same_state(dict(kept.tensors), dict(KEPT.tensors))
    assert len(list(user_cache.place("features").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_the_next_run_the_computation_and_is_told(tmp_path, computed, monkeypatch):
    nowhere = tmp_path / "a-file"
    nowhere.write_text("", encoding="ascii")
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere))
    first, second = prepared(tmp_path / "one"), prepared(tmp_path / "two")
    assert computed == ["_computed"] * 2
    assert first[0].sha256 == second[0].sha256
    assert "not kept for the next run: Not a directory" in first[0].notes[0]


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_nor_may_its_folder_be_read_only(tmp_path):
    folder = user_cache.place("features")
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    try:
        assert "not kept for the next run: Permission denied" in prepared(tmp_path)[0].notes[0]
    finally:
        folder.chmod(0o700)


def test_a_folder_in_the_files_place_is_told_too(tmp_path, computed):
    prepared(tmp_path)
    file = one_kept_file()
    file.unlink()
    file.mkdir()
    assert "not kept for the next run: Is a directory" in prepared(tmp_path / "again")[0].notes[0]
    assert computed == ["_computed"] * 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# ── what it says ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cost_is_told_and_where_the_weights_are_from_and_it_is_in_the_record(tmp_path):
    described, *_ = prepared(tmp_path)
    (note,) = described.notes
    assert f"{ONE_DIGIT_FLOP * 36 / 1e6:.3g} MFLOP for 36 images" in note
    assert "random weights (seed 0)" in note
    assert "once, for all cells alike and in none of the figures" in note
    record = described.for_record()
    assert record["notes"] == [note]
    assert record["source"] == "features of digits by vgg_small"
    TypeAdapter(DataFacts).validate_python({"w": record})
    plain = datasets.prepare(data_settings({"use": "digits"}), tmp_path / "cache")
    assert "notes" not in plain.for_record()


SUITE = """schema = 1
suite = "tiny"
trials = { blocks = 3, warmup = "2 steps" }
[measure]
energy = "off"
[[workload]]
name = "one"
model = { use = "mlp", hidden = [5] }
train = { epochs = 2, lr = 0.1 }
[workload.data]
use = "features"
batch = 8
subset = 24
test_subset = 12
[workload.data.options]
of = "digits"
layer = "features"
backbone = { use = "vgg_small", widths = [4, 6] }
[[workload]]
name = "two"
extends = "one"
train = { epochs = 3 }
[[method]]
use = "low"
"""


def planned(folder: Path, purpose: str, text: str = SUITE) -> Any:
    file = folder / "tiny.toml"
    file.write_text(text, encoding="utf-8")
    spec = spec_of(load(file), folder, device="cpu", download=purpose == "run")
    return planner.Plan(spec.model_copy(update={"purpose": purpose})).result()


def test_check_computes_nothing_and_says_so_and_a_run_computes_once_for_all_workloads(tmp_path, computed):
    checked = planned(tmp_path, "check")
    assert (checked.problems, computed) == ((), [])
    (note,) = [note for note in checked.notes if "features" in note]
    assert "not computed yet" in note
    assert "zeros stand in" in note
    run = planned(tmp_path, "run")
    assert (run.problems, computed) == ((), ["_computed"])
    (note,) = [note for note in run.notes if "features" in note]
    assert "computed now" in note
    after = planned(tmp_path, "check")
    assert computed == ["_computed"]
    kinds = [each.workloads["one"].data.kind for each in (checked, run, after)]
    assert kinds == [stand_in.KIND, "resident", "resident"]
    known = [each.workloads["two"] for each in (checked, run, after)]
    assert len({(each.data.shape, each.samples, each.ledger) for each in known}) == 1
    assert known[1].data.sha256 == known[2].data.sha256 != known[0].data.sha256


def test_a_report_says_what_the_record_says_of_the_data():
    figures = Baseline(3, None, (), {}, None, None, None, None, None)
    told = Workload("w", None, figures, None, (), (), data_notes=("features of x: 3 GFLOP",))
    alone = sentences.baseline(replace(told, data_notes=()))
    assert alone.startswith("Plain training: ")
    assert sentences.baseline(told) == f"{alone} Its data: features of x: 3 GFLOP."
    file = RunFile.model_construct(data={"w": {"notes": ["made so"]}, "v": {}})
    assert [notes_of(file, name) for name in ("w", "v", "u")] == [("made so",), (), ()]


def test_zeros_stand_in_as_numbers_not_as_images(tmp_path):
    described, train, _ = prepared(tmp_path, known=True)
    batch = next(iter(train.in_order(3)))
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs.shape == (3, *described.shape)
    assert not batch.inputs.any()


# ── where the weights are from ────────────────────────────────────────────────────────────────────────────────────────

TRAINING = {"use": "digits", "subset": 40, "test_subset": 20, "epochs": 2, "batch": 20}


def test_a_backbone_is_trained_once_and_its_training_is_told(tmp_path, computed):
    described, train, _ = prepared(tmp_path, {"trained_on": TRAINING})
    assert computed == ["_train", "_computed"]
    (note,) = described.notes
    assert "vgg_small trained on digits (40 images, 2 epochs, accuracy 0." in note
    head = 2 * 6 * 10
    per_sample = 3 * (ONE_DIGIT_FLOP + head) - 2 * 9 * 64 * 4  # the first layer has no gradient of its input
    assert f"and {80 * per_sample / 1e6:.3g} MFLOP to train the backbone" in note
    random = own_output(fresh_vgg(classes=10), lambda model: model.features, images(tmp_path)[0])
    assert not torch.allclose(whole(train)[0], random)
    again, *_ = prepared(tmp_path / "again", {"trained_on": TRAINING, "pool": 1})
    assert computed == ["_train", "_computed", "_computed"]
    assert again.notes[0].endswith(note[-12:])  # the same weights
    prepared(tmp_path / "again", {"trained_on": TRAINING | {"epochs": 1}})
    assert computed[3:] == ["_train", "_computed"]


def test_the_same_training_gives_the_same_features_and_draws_from_nobody_elses_chance(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, *_ = prepared(tmp_path / "one", {"trained_on": TRAINING})
    assert torch.equal(before, torch.get_rng_state())
    shutil.rmtree(user_cache.place())
    torch.manual_seed(6)
    second, *_ = prepared(tmp_path / "two", {"trained_on": TRAINING})
    assert first.sha256 == second.sha256
    assert first.notes == second.notes


def test_check_trains_no_backbone(tmp_path, computed):
    described, *_ = prepared(tmp_path, {"trained_on": TRAINING}, known=True)
    assert (described.kind, computed) == (stand_in.KIND, [])
    assert "it is not trained yet" in described.notes[0]
    assert "and the training of the backbone" in described.notes[0]
    absent, *_ = prepared(tmp_path, {"trained_on": "mnist"}, known=True)
    assert "'mnist' is not on this machine" in absent.notes[0]


def test_weights_come_from_a_file_which_is_told_and_held_to(tmp_path, computed):
    model = fresh_vgg(seed=3)
    torch.save(model.state_dict(), tmp_path / "start.pt")
    given = {"backbone": VGG | {"weights": "start.pt"}}
    described, train, _ = prepared(tmp_path, given)
    assert torch.equal(whole(train)[0], own_output(model, lambda each: each.features, images(tmp_path)[0]))
    assert "the weights of 'start.pt' (sha256 " in described.notes[0]
    with torch.no_grad():
        model.features[0].weight[0, 0, 0, 0] += 1
    torch.save(model.state_dict(), tmp_path / "start.pt")
    changed, *_ = prepared(tmp_path, given)
    assert changed.sha256 != described.sha256
    assert computed == ["_computed"] * 2


def test_a_file_with_another_head_is_read_where_it_is_said_how_many_classes_that_has(tmp_path):
    torch.save(fresh_vgg(seed=3, classes=17).state_dict(), tmp_path / "start.pt")
    assert "(17, 6) in the file" in refused(tmp_path, "E401", backbone=VGG | {"weights": "start.pt"})
    prepared(tmp_path, {"backbone": VGG | {"weights": "start.pt", "classes": 17}})


def test_weights_that_the_features_pass_through_are_never_left_to_chance(tmp_path):
    whole_state = fresh_vgg(seed=3).state_dict()
    lacking_head = {name: value for name, value in whole_state.items() if not name.startswith("head")}
    torch.save(lacking_head, tmp_path / "body.pt")
    loose = VGG | {"weights_strict": False}
    prepared(tmp_path, {"backbone": loose | {"weights": "body.pt"}})
    lacking_first = {name: value for name, value in whole_state.items() if name != "features.0.weight"}
    torch.save(lacking_first, tmp_path / "part.pt")
    said = refused(tmp_path, backbone=loose | {"weights": "part.pt"})
    assert "weights that the file lacks: features.0.weight" in said


def test_a_file_that_is_not_there_is_refused_by_a_run_and_told_by_check(tmp_path):
    given = {"backbone": VGG | {"weights": "none.pt"}}
    assert "none.pt" in refused(tmp_path, "E401", **given)
    described, *_ = prepared(tmp_path, given, known=True)
    assert (described.kind, described.shape) == (stand_in.KIND, (6, 2, 2))
    assert "'none.pt' is not on this machine" in described.notes[0]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────

IMAGE_SET = {
    "train": (torch.arange(12 * 64).remainder(251).view(12, 1, 8, 8).to(torch.uint8), torch.arange(12) % 3),
    "test": (torch.arange(6 * 64).remainder(241).view(6, 1, 8, 8).to(torch.uint8), torch.arange(6) % 3),
}


def offer(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[[], Any]) -> Any:
    """A data set of that name, of a module that is made here."""
    module = types.ModuleType(f"set_{name}")
    setattr(module, name, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(datasets.DATA_SETS, name, f"{module.__name__}:{name}")
    return module


def both(change: Callable[[Tensor, Tensor], Any]) -> dict[str, Any]:
    return {part: change(*pair) for part, pair in IMAGE_SET.items()}


ODD: dict[str, tuple[Any, str]] = {
    "vectors": (both(lambda x, y: (x.flatten(1).float(), y)), "holds no images"),
    "trees": (both(lambda x, y: ({"a": x, "b": x}, y)), "holds no images"),
    "unlabelled": (both(lambda x, y: (x, None)), "of the kind 'none'"),
    "masks": (both(lambda x, y: (x, x[:, 0].long() % 3)), "of the kind 'mask'"),
    "pairs": (both(lambda x, y: (x, {"one": y})), "a tree"),
    "more": (IMAGE_SET | {"target": (IMAGE_SET["train"][0], None)}, "further parts (target)"),
}


@pytest.mark.parametrize("name", ODD)
def test_sets_of_which_there_are_no_features_are_refused_in_words(name, tmp_path, monkeypatch):
    content, said = ODD[name]
    offer(monkeypatch, name, lambda: content)
    assert said in refused(tmp_path, of=name)


def test_numbers_as_targets_are_kept_as_they_are(tmp_path, monkeypatch):
    content = both(lambda x, y: (x, y / 7))
    offer(monkeypatch, "odd", lambda: content)
    described, train, _ = prepared(tmp_path, {"of": "odd"}, subset=None)
    assert (described.targets, described.classes) == ("value", None)
    assert torch.equal(whole(train)[1], content["train"][1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"of": 5}, "options.of is 5"),
        ({"of": {}}, "options.of.use: Field required"),
        ({"of": "digit"}, "no data set is called 'digit'"),
        ({"of": "features"}, "features themselves"),
        ({"of": "mine.py:mine"}, "is a file"),
        ({"of": {"use": "digits", "subset": 3}}, 'beside use = "features"'),
        ({"of": {"use": "digits", "augment": ["flip"]}}, "images are not augmented"),
        ({"of": {"use": "digits", "resiz": 3}}, "did you mean 'resize'"),
        ({"of": {"use": "digits", "resize": "big"}}, "options.of.resize"),
        ({"of": {"use": "digits", "split": 0.2}}, "split is for a folder"),
        ({"layer": "featurs"}, "did you mean 'features'"),
        ({"layer": ""}, "the name of a layer"),
        ({"pool": 0}, "options.pool is 0"),
        ({"pool": True}, "options.pool is True"),
        ({"pool": 99}, "not pooled to 99"),
        ({"standardised_by": "me"}, "options.standardised_by"),
        ({"standardised_by": "imagenet"}, "have 3 channels, and these 1"),
        ({"seed": -1}, "options.seed is -1"),
        ({"bacbone": "cnn"}, "did you mean 'backbone'"),
        ({"backbone": {"use": "vgg_small", "weights": 3}}, "options.backbone"),
        ({"backbone": VGG | {"classes": 0}}, "options.backbone.classes is 0"),
        ({"backbone": "mine.py:net"}, "is a file"),
        (
            {"backbone": {"use": "vit_tiny", "patch": 4, "layers": 1}, "of": {"use": "digits", "resize": 9}},
            "indivisible",
        ),
        ({"trained_on": TRAINING, "backbone": VGG | {"weights": "a.pt"}}, "take one of them out"),
        ({"trained_on": TRAINING, "backbone": VGG | {"classes": 10}}, "is of a file's head"),
        ({"trained_on": TRAINING | {"epochs": 0}}, "options.trained_on.epochs is 0"),
        ({"trained_on": TRAINING | {"lr": 0}}, "options.trained_on.lr is 0"),
        ({"trained_on": TRAINING | {"epoch": 1}}, "did you mean 'epochs'"),
        ({"trained_on": "features"}, "features themselves"),
        ({"trained_on": {"use": "digits", "batch": 0}}, "options.trained_on.batch"),
        ({"trained_on": TRAINING | {"lr": 1e30}}, "a smaller lr"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_are_refused_in_words(options, said, tmp_path):
    assert said in refused(tmp_path, **options)


@pytest.mark.parametrize(
    "backbone", ["vgg_smal", {"use": "vgg_small", "depth": 3}, {"use": "vgg_small", "widths": [4] * 9}]
)
def test_a_backbone_that_cannot_be_is_refused_as_a_model_is(backbone, tmp_path):
    assert refused(tmp_path, "E401", backbone=backbone)


def test_channels_that_differ_are_refused_before_anything_is_trained(tmp_path, monkeypatch, computed):
    content = both(lambda x, y: (x.expand(-1, 3, -1, -1), y))
    offer(monkeypatch, "coloured", lambda: content)
    assert "has 3 channels, and the images have 1" in refused(tmp_path, trained_on="coloured")
    assert computed == []
    described, train, _ = prepared(tmp_path, {"of": "coloured", "standardised_by": "imagenet"})
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in features_module.IMAGENET)
    shown = (content["train"][0].float() / 255 - mean) / std
    with torch.random.fork_rng([]):
        torch.manual_seed(stable_seed(0, "backbone"))
        model = models.build("vgg_small", (3, 8, 8), 1000, {"widths": WIDTHS}).eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(train)[0], model.features(shown))
    assert described.mean is None


def test_what_is_not_finite_is_refused(tmp_path):
    model = fresh_vgg()
    with torch.no_grad():
        model.features[0].weight.fill_(math.inf)
    torch.save(model.state_dict(), tmp_path / "start.pt")
    assert "not finite" in refused(tmp_path, backbone=VGG | {"weights": "start.pt"})
    assert not user_cache.place("features").exists()


def test_features_larger_than_the_memory_are_refused_before_anything_is_computed(tmp_path, monkeypatch, computed):
    monkeypatch.setattr(features_module, "MOST_OF_MEMORY", 1e-9)
    assert "features of 36 images take" in refused(tmp_path)
    assert computed == []


@pytest.mark.parametrize(("key", "value"), [("augment", ["flip"]), ("resize", 16)])
def test_features_are_neither_augmented_nor_resized(key, value, tmp_path):
    with pytest.raises(UsageError) as caught:
        prepared(tmp_path, **{key: value})
    assert "holds no images" in caught.value.problems[0].message


# ── Oxford's flowers ──────────────────────────────────────────────────────────────────────────────────────────────────


def flowers(folder: Path, labels: Any = (5, 1, 102, 5, 7, 1, 9), setid: dict[str, list[int]] | None = None) -> Path:
    """Seven images in the authors' layout, the n-th of brightness 30 n."""
    from PIL import Image
    from scipy.io import savemat

    place = folder / "flowers102"
    (place / "jpg").mkdir(parents=True)
    for number in range(1, 8):
        Image.new("RGB", (12, 9), (30 * number,) * 3).save(place / "jpg" / f"image_{number:05d}.jpg")
    savemat(place / "imagelabels.mat", {"labels": [list(labels)]})
    splits = {"trnid": [[7, 1]], "valid": [[3]], "tstid": [[6, 2, 4, 5]]}
    savemat(place / "setid.mat", splits | (setid or {}))
    return place


def brightness(data: Data, described: DataDescription) -> list[int]:
    mean, std = torch.tensor(described.mean), torch.tensor(described.std)
    shown = whole(data)[0].mean((2, 3)) * std + mean
    return (shown[:, 0] * 255 / 30).round().int().tolist()


def opened_flowers(folder: Path, monkeypatch: pytest.MonkeyPatch, known: bool = False, **options: Any) -> Any:
    monkeypatch.setenv("ENERGYBENCH_DATA", str(folder))
    table = data_settings({"use": "flowers102", "options": options})
    described = datasets.prepare(table, folder / "cache", known=known)
    return (described, *datasets.open_data(described, table, CPU))


@pytest.mark.parametrize(
    ("options", "train", "test"),
    [
        ({}, [1, 7], [2, 4, 5, 6]),
        ({"train": "test", "test": "train"}, [2, 4, 5, 6], [1, 7]),
        ({"train": ["train", "val"]}, [1, 3, 7], [2, 4, 5, 6]),
    ],
)
def test_the_authors_layout_is_read_with_any_of_its_splits(options, train, test, tmp_path, monkeypatch):
    flowers(tmp_path)
    described, *parts = opened_flowers(tmp_path, monkeypatch, size=8, **options)
    assert (described.shape, described.classes, described.targets) == ((3, 8, 8), 102, "class")
    labels = dict(enumerate((5, 1, 102, 5, 7, 1, 9), 1))
    for part, numbers in zip(parts, (train, test), strict=True):
        assert brightness(part, described) == numbers
        assert whole(part)[1].tolist() == [labels[number] - 1 for number in numbers]


def test_folders_of_classes_are_read_too(tmp_path, monkeypatch):
    from PIL import Image

    for part, count in (("train", 3), ("test", 2)):
        for name in ("daisy", "rose"):
            place = tmp_path / "flowers102" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number,) * 3).save(place / f"{number}.png")
    described, train, test = opened_flowers(tmp_path, monkeypatch, size=8, train="test", test="train")
    assert (described.class_names, len(train), len(test)) == (("daisy", "rose"), 4, 6)
    with pytest.raises(UsageError) as caught:
        opened_flowers(tmp_path, monkeypatch, train="val")
    assert "'val' was asked for" in caught.value.problems[0].message


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda place: None, {"train": "tset"}, "did you mean 'test'"),
        (lambda place: None, {"train": []}, "train, val, test"),
        (lambda place: None, {"train": "test"}, "the same images"),
        (lambda place: None, {"size": 0}, "[height, width]"),
        (lambda place: (place / "setid.mat").unlink(), {}, "has no setid.mat"),
        (lambda place: (place / "imagelabels.mat").write_bytes(b"no"), {}, "no table of whole numbers 'labels'"),
        (lambda place: (place / "jpg/image_00004.jpg").unlink(), {}, "1 of 4 images of test are not there"),
        (lambda place: (place / "jpg/image_00004.jpg").write_bytes(b"no"), {}, "cannot be read"),
    ],
)
def test_flowers_that_cannot_be_read_are_told(change, options, said, tmp_path, monkeypatch):
    change(flowers(tmp_path))
    with pytest.raises(UsageError) as caught:
        opened_flowers(tmp_path, monkeypatch, known=True, **options)
    (problem,) = caught.value.problems
    assert said in f"{problem.message} | {problem.hint}"


@pytest.mark.parametrize(
    ("labels", "setid", "said"),
    [
        ((0, 1, 2, 3, 4, 5, 6), None, "none of 1 to 102"),
        ((103, 1, 2, 3, 4, 5, 6), None, "none of 1 to 102"),
        ((1, 2, 3, 4, 5, 6, 7), {"tstid": [[8]]}, "the split 'test' is no list"),
        ((1, 2, 3, 4, 5, 6, 7), {"tstid": [[2, 2]]}, "the split 'test' is no list"),
    ],
)
def test_tables_of_flowers_that_contradict_the_images_are_told(labels, setid, said, tmp_path, monkeypatch):
    flowers(tmp_path, labels, setid)
    with pytest.raises(UsageError) as caught:
        opened_flowers(tmp_path, monkeypatch)
    assert said in caught.value.problems[0].message


def test_the_published_counts_are_known_where_the_flowers_are_not(tmp_path, monkeypatch):
    described, *_ = opened_flowers(tmp_path, monkeypatch, known=True, train="test", test="train")
    assert (described.kind, described.train, described.test) == (stand_in.KIND, 6149, 1020)
    assert (described.shape, described.classes) == ((3, 224, 224), 102)
    with pytest.raises(UsageError):
        opened_flowers(tmp_path, monkeypatch, known=True, train="tset")
    with pytest.raises(UsageError):
        opened_flowers(tmp_path, monkeypatch)


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def trained_features() -> tuple[Data, Data]:
    """Of the digits, by a small VGG that has seen some of them: what the training tests share."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_CACHE_HOME", folder)
        training = {"use": "digits", "subset": 300, "test_subset": 50, "epochs": 3, "batch": 30}
        _, *parts = prepared(Path(folder), {"trained_on": training}, subset=96, test_subset=96)
        return parts[0], parts[1]


def head() -> nn.Module:
    """Two fully connected layers."""
    return models.build("mlp", (6, 2, 2), 10, {"hidden": [16]})


def features_run(methods: Any = (), **given: Any) -> Any:
    plain = {"data": trained_features()[0], "batch": 16, "epochs": 4, "lr": 0.05}
    return make_run(methods, head, **plain | given)


def test_two_layers_learn_from_them_and_the_ledger_is_what_is_counted():
    counter = StepCounter(10**9)
    run = features_run(counter=counter, optimizer="adam", lr=0.01, epochs=20, momentum=0.0)
    work = Work(trace_run(run, CPU).lines, epochs=20, samples=96, batch=16)
    test = trained_features()[1]
    before = run.evaluate(test)["accuracy"]
    run.train()
    after = run.evaluate(test)["accuracy"]
    assert after > max(0.3, before)  # chance is 0.1
    assert work.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-3)
    forward = 2 * (24 * 16 + 16 * 10)
    assert counter.result(run).counted_flop == 20 * 96 * (3 * forward - 2 * 24 * 16)


WITHOUT_EFFECT = {"ssprop", "dropout"}  # which look for convolutions, and for BatchNorm


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_them(name):
    kind = discovery.load(METHODS[name])
    method = discovery.build(kind, name, dict(kind.example))
    assert check_stack([method], Classification()) == []
    run = run_or_refusal(lambda: features_run([method], epochs=6))
    if run is None:
        return
    run.train()
    assert run.uncalled_overrides() == []
    assert (method.acted is False) == (name in WITHOUT_EFFECT)
    assert all(math.isfinite(point["loss"]) for point in run.curve if point["loss"] is not None)
    assert 0 <= run.evaluate(trained_features()[1])["accuracy"] <= 1
    run.finish()
    assert [type(module) for module in run.model.modules()] == [type(module) for module in head().modules()]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_accumulation_and_clipping_hold(precision):
    run = features_run(precision=precision, accumulate=2, clip=1.0)
    run.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    pieces, once = (features_run(accumulate=count, momentum=0.0, clip=0.1) for count in (4, 1))
    for each in (pieces, once):
        each.step(next(iter(each.data.in_order(16))))
    for one, other in zip(pieces.model.parameters(), once.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_training_on_them_twice_gives_the_same_weights():
    runs = [features_run(), features_run()]
    for run in runs:
        run.train()
    assert_same_state(*(state(run.model) for run in runs))


# ── suites ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def traced_suite(name: str) -> Any:
    """What is known of a shipped suite where there are no data."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.delenv("ENERGYBENCH_DATA", raising=False)
        spec = spec_of(load(ROOT / "suites" / f"{name}.toml"), Path(folder), device="cpu", download=False)
        return planner.Plan(spec.model_copy(update={"purpose": "trace"})).result()


@pytest.mark.parametrize(
    ("name", "workload", "shape", "hidden", "classes", "samples"),
    [
        ("tasks-features", "flowers17-vgg-small", (64, 4, 4), 512, 17, 1088),
        ("paper-importance-flowers", "vgg16-flowers102", (512, 7, 7), 256, 102, 6149),
    ],
)
def test_its_suites_are_traced_where_there_are_no_data(name, workload, shape, hidden, classes, samples):
    found = traced_suite(name)
    assert found.problems == ()
    known = found.workloads[workload]
    assert (known.data.kind, known.data.shape, known.data.classes) == (stand_in.KIND, shape, classes)
    assert known.samples == samples
    forward = sum(line.flop for line in known.ledger if line.phase == "forward")
    assert forward == 2 * hidden * (math.prod(shape) + classes)


def test_the_papers_backbone_costs_what_its_convolutions_do():
    widths, sides = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)], [224] * 2
    widths += [(256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)]
    sides += [112] * 2 + [56] * 3 + [28] * 3 + [14] * 3
    one = sum(2 * 9 * before * after * side**2 for (before, after), side in zip(widths, sides, strict=True))
    (note,) = [note for note in traced_suite("paper-importance-flowers").notes if "features" in note]
    assert f"{one * 7169 / 1e12:.0f} TFLOP for 7,169 images" in note
    assert "'flowers102' is not on this machine" in note
