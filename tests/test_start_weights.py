"""A model that starts from a file of weights: what fits, what does not, and what is never run."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_plan import SUITE, planned
from torch import Tensor, nn

from energybench.common.errors import Problem, UsageError
from energybench.suite.suite import load
from energybench.suite.tables import ModelTable, WorkloadTable
from energybench.trial.build import build_model
from energybench.workloads.description import DataDescription, StartWeights
from energybench.workloads.start_weights import load_start

DATA = DataDescription(kind="resident", shape=(1, 8, 8), classes=10, train=8, test=4, sha256="d")


def net(hidden: int = 3, out: int = 2) -> nn.Module:
    torch.manual_seed(hidden * 100 + out)
    return nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def table(**keys: Any) -> ModelTable:
    return ModelTable.model_validate({"use": "net", "weights": "start.pt", **keys})


def save(folder: Path, content: Any, file: str = "start.pt") -> Path:
    torch.save(content, folder / file)
    return folder / file


def refused(folder: Path, model: nn.Module | None = None, **keys: Any) -> Problem:
    with pytest.raises(UsageError) as caught:
        load_start(model or net(), table(**keys), folder)
    (problem,) = caught.value.problems
    assert problem.hint
    return problem


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


# ── what is loaded ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrap", [dict, lambda state: {"epoch": 3, "state_dict": state}, lambda state: {"model": state}]
)
def test_a_model_is_filled_with_every_tensor_of_the_file(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    saved, model = net(), net()
    for value in saved.state_dict().values():
        value += 1
    path = save(tmp_path, wrap(saved.state_dict()))
    found = load_start(model, table(), tmp_path)
    assert found == StartWeights(
        file="start.pt", sha256=hashlib.sha256(path.read_bytes()).hexdigest(), tensors=len(tensors(saved))
    )
    assert all(torch.equal(value, tensors(saved)[name]) for name, value in tensors(model).items())


def test_without_a_file_nothing_is_loaded(tmp_path: Path) -> None:
    model, before = net(), net()
    assert load_start(model, ModelTable(use="net"), tmp_path) is None
    assert all(torch.equal(value, tensors(before)[name]) for name, value in tensors(model).items())


def test_half_precision_is_widened_to_the_models_own(tmp_path: Path) -> None:
    saved, model = net().half(), net()
    save(tmp_path, saved.state_dict())
    load_start(model, table(), tmp_path)
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, saved[0].weight.float())


def test_a_safetensors_file_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("safetensors.torch")
    saved, model = net(out=2), net(out=2)
    with torch.no_grad():
        saved[0].weight += 1
    library.save_file(saved.state_dict(), tmp_path / "start.safetensors")
    load_start(model, table(weights="start.safetensors"), tmp_path)
    assert torch.equal(model[0].weight, saved[0].weight)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    problem = refused(tmp_path, weights="start.safetensors")
    assert (problem.code, problem.hint) == ("E401", "pip install safetensors")


# ── what does not fit ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = dict(net(out=5).state_dict())
    del state["0.bias"]
    save(tmp_path, {**state, "9.extra": torch.zeros(1)})
    problem = refused(tmp_path)
    assert problem.code == "E401"
    assert "lacks 0.bias" in problem.message
    assert "the model has no 9.extra" in problem.message
    assert "3.weight is (5, 3) in the file and (2, 3) in the model" in problem.message
    assert "weights_strict = false" in problem.hint


def test_a_fresh_head_is_what_its_seed_makes_of_it_and_is_recorded(tmp_path: Path) -> None:
    saved, model, fresh = net(out=5), net(out=2), net(out=2)
    save(tmp_path, {**saved.state_dict(), "9.extra": torch.zeros(1)})
    found = load_start(model, table(weights_strict=False), tmp_path)
    assert found is not None
    assert (set(found.fresh), found.unused) == ({"3.weight", "3.bias"}, ("9.extra",))
    assert found.tensors == len(tensors(saved)) - 2
    for name, value in tensors(model).items():
        assert torch.equal(value, tensors(fresh if name.startswith("3.") else saved)[name]), name


@given(st.sets(st.sampled_from(sorted(net().state_dict())), max_size=6), st.integers(0, 3))
def test_each_tensor_is_filled_or_fresh_and_each_of_the_file_used_or_not(
    tmp_path_factory: pytest.TempPathFactory, dropped: set[str], added: int
) -> None:
    folder, whole = tmp_path_factory.mktemp("w"), dict(net().state_dict())
    dropped -= {"1.num_batches_tracked"}  # which layers of an old version had not, so that torch takes it as it is
    kept = {name: value for name, value in whole.items() if name not in dropped}
    save(folder, kept | {f"extra{n}": torch.zeros(n) for n in range(added)})
    found = load_start(net(), table(weights_strict=False), folder)
    assert found is not None
    assert set(found.fresh) == dropped
    assert (found.tensors, len(found.unused)) == (len(kept), added)
    if dropped or added:
        refused(folder)
    else:
        load_start(net(), table(), folder)


def test_a_file_of_another_model_is_refused_however_lenient_the_suite(tmp_path: Path) -> None:
    save(tmp_path, {"other.weight": torch.zeros(3)})
    assert "nothing in 'start.pt' fits 'net'" in refused(tmp_path, weights_strict=False).message


def test_a_tensor_of_another_kind_does_not_fit(tmp_path: Path) -> None:
    save(tmp_path, {**net().state_dict(), "0.bias": torch.zeros(3, dtype=torch.int8)})
    assert "0.bias is int8 in the file and float32 in the model" in refused(tmp_path).message


@pytest.mark.parametrize(("prefix", "wrapper"), [("module.", "DataParallel"), ("_orig_mod.", "torch.compile")])
def test_the_names_that_a_wrapper_gave_are_recognised(tmp_path: Path, prefix: str, wrapper: str) -> None:
    save(tmp_path, {f"{prefix}{name}": value for name, value in net().state_dict().items()})
    assert wrapper in refused(tmp_path).hint
    assert wrapper in refused(tmp_path, weights_strict=False).hint


# ── what is no file of weights ────────────────────────────────────────────────────────────────────────────────────────


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    save(tmp_path, {"state_dict": net().state_dict(), "other": Trap(tmp_path / "ran")})
    problem = refused(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert (problem.code, "without running code" in problem.message) == ("E401", True)
    save(tmp_path, net())  # a whole model is code too
    assert "torch.save(model.state_dict()" in refused(tmp_path).hint


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [torch.zeros(3)], {}, {"a": 3}, {"a": {"b": torch.zeros(1)}}, {3: torch.zeros(1)}, "x"]
)
def test_what_is_no_table_of_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    save(tmp_path, content)
    assert refused(tmp_path).code == "E401"


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(4, 3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.quantize_per_tensor(torch.ones(3), 1, 0, torch.qint8),
    ],
    ids=["sparse", "meta", "quantized"],
)
def test_a_tensor_that_is_no_plain_one_is_refused(tmp_path: Path, content: Tensor) -> None:
    save(tmp_path, {**net().state_dict(), "0.bias": content})
    assert refused(tmp_path).code == "E401"


@given(st.binary(max_size=300), st.sampled_from(["start.pt", "start.safetensors"]))
def test_bytes_that_are_no_weights_are_told(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, file: str
) -> None:
    folder = tmp_path_factory.mktemp("w")
    (folder / file).write_bytes(content)
    assert refused(folder, weights=file).code == "E401"


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = save(tmp_path, net().state_dict())
    path.write_bytes(path.read_bytes()[:-200])
    assert refused(tmp_path).code == "E401"


def test_no_path_is_anything_but_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("missing.pt", "pipe", "folder", "/dev/zero", "a\0b", "x" * 300):
        problem = refused(tmp_path, weights=name)
        assert (problem.code, "looked at" in problem.hint) == ("E401", True), name


def test_a_file_larger_than_the_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, net().state_dict())
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 100}.__getitem__)
    assert refused(tmp_path).code == "E207"


def test_another_file_than_was_checked_is_refused(tmp_path: Path) -> None:
    save(tmp_path, net().state_dict())
    found = load_start(net(), table(), tmp_path)
    assert load_start(net(), table(), tmp_path, found) == found
    save(tmp_path, {name: value + 1 for name, value in net().state_dict().items()})
    with pytest.raises(UsageError, match="has changed since the suite was checked"):
        load_start(net(), table(), tmp_path, found)


# ── in a suite ────────────────────────────────────────────────────────────────────────────────────────────────────────

CNN = 'model = { use = "cnn", channels = [2, 4] }'


def workload(folder: Path, model: str) -> WorkloadTable:
    (folder / "s.toml").write_text(SUITE.replace(CNN, f"model = {model}"), encoding="utf-8")
    (found,) = load(folder / "s.toml").workloads
    assert isinstance(found, WorkloadTable)
    return found


def test_it_is_no_argument_of_the_model_and_starts_every_seed_alike(tmp_path: Path) -> None:
    plain = workload(tmp_path, '{ use = "cnn", channels = [2, 4] }')
    save(tmp_path, build_model(plain, DATA, tmp_path, seed=1).state_dict())
    started = workload(tmp_path, '{ use = "cnn", channels = [2, 4], weights = "start.pt" }')
    assert started.settings()["model"] == {**plain.settings()["model"], "weights": "start.pt"}
    first = tensors(build_model(plain, DATA, tmp_path, seed=1))
    for seed in (1, 2):
        again = tensors(build_model(started, DATA, tmp_path, seed=seed))
        assert all(torch.equal(value, again[name]) for name, value in first.items())


OWN = """from torch import nn


def own(shape, classes, weights=None, weights_strict=0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    model.given = weights, weights_strict
    return model


def other(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def test_an_argument_of_the_users_function_stays_its_own(tmp_path: Path) -> None:
    """Of any type, as before there were such keys."""
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    for written, value in (("[1, 2]", [1, 2]), ("false", False), ('"IMAGENET"', "IMAGENET")):
        asked = workload(tmp_path, f'{{ use = "own.py:own", weights = {written}, weights_strict = 3 }}')
        model: Any = build_model(asked, DATA, tmp_path, 0)
        assert model.given == (value, 3)
        assert asked.settings()["model"] == {"use": "own.py:own", "weights": value, "weights_strict": 3}
    with pytest.raises(UsageError, match="expected the name of a file"):
        build_model(workload(tmp_path, '{ use = "own.py:other", weights = 3 }'), DATA, tmp_path, 0)
    with pytest.raises(UsageError, match="no weights"):
        build_model(workload(tmp_path, '{ use = "own.py:other", weights_strict = false }'), DATA, tmp_path, 0)
    save(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict())
    build_model(workload(tmp_path, '{ use = "own.py:other", weights = "start.pt" }'), DATA, tmp_path, 0)


@pytest.mark.parametrize(
    ("keys", "key", "says"),
    [
        ("weights = 3", "weights =", "expected the name of a file, not 3"),
        ('weights = ""', "weights =", "expected the name of a file"),
        ('weights = "a.pt", weights_strict = "no"', "weights_strict", "expected true or false"),
        ("weights_strict = false", "weights_strict", "there are no weights"),
    ],
)
def test_a_mistake_of_type_is_told_before_anything_is_built(tmp_path: Path, keys: str, key: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        workload(tmp_path, f'{{ use = "cnn", channels = [2, 4], {keys} }}')
    (problem,) = caught.value.problems
    assert problem.code == "E202"
    assert says in problem.message
    (line,) = (line for line in (tmp_path / "s.toml").read_text(encoding="utf-8").splitlines() if key in line)
    assert problem.where.endswith(f":10:{line.index(key) + 1}"), problem.where


def test_the_check_of_a_suite_has_the_file_in_each_cell_and_tells_what_is_fresh(tmp_path: Path) -> None:
    plain = planned(tmp_path)
    state = build_model(workload(tmp_path, '{ use = "cnn", channels = [2, 4] }'), DATA, tmp_path, 7).state_dict()
    head = [name for name in state if state[name].shape[:1] == (10,)]
    path = save(tmp_path, {name: value for name, value in state.items() if name not in head})
    text = SUITE.replace(CNN, CNN.replace(" }", ', weights = "start.pt", weights_strict = false }'))
    before = planned(tmp_path, text)
    assert before["problems"] == []
    weights = before["workloads"]["w"]["weights"]
    assert (weights["sha256"], weights["fresh"]) == (hashlib.sha256(path.read_bytes()).hexdigest(), head)
    save(tmp_path, {name: value * 2 for name, value in state.items() if name not in head})
    after = planned(tmp_path, text)
    assert len({found["cells"][0]["digest"] for found in (plain, before, after)}) == 3
    assert plain["workloads"]["w"]["weights"] is None
    (problem,) = planned(tmp_path, text.replace("start.pt", "absent.pt"))["problems"]
    assert (problem["code"], ":10:" in problem["where"]) == ("E401", True)
    assert "weights" in text.splitlines()[9][int(problem["where"].rpartition(":")[2]) - 1 :][:7]
