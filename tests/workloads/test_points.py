"""Clouds of points: meshes read and drawn from, ModelNet's two layouts, PointNet, and every method that trains it."""

from __future__ import annotations

import math
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CPU, assert_same_state, data_settings, make_run, run_or_refusal, state
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_run
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.method import Method
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import datasets, models
from energybench.workloads.datasets.meshes import Mesh, read_off, surface_points
from energybench.workloads.datasets.points import _some_points, modelnet10, normalised
from energybench.workloads.models.points import Transform, pointnet
from energybench.workloads.tasks.classification import Classification

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}


def refused(code: str, call: Any) -> str:
    """What a refusal says, and its hint."""
    with pytest.raises(UsageError) as caught:
        call()
    (problem,) = caught.value.problems
    assert problem.code == code
    return f"{problem.message} | {problem.hint}"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ── a mesh is read ────────────────────────────────────────────────────────────────────────────────────────────────────

VERTICES = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
SQUARE = f"OFF\n4 2 0\n{VERTICES}3 0 1 2\n3 0 2 3\n"
TRIANGLES = [[0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize(
    "text",
    [
        SQUARE,
        SQUARE.replace("OFF\n4 2 0", "OFF4 2 0"),  # as some of ModelNet's are
        SQUARE.replace("OFF\n4 2 0", "OFF 4 2 0"),
        SQUARE.replace("4 2 0", "4 2"),
        SQUARE.replace("\n", "\r\n"),
        SQUARE.replace("\n", "  # a comment\n\n"),
        f"# first\n\n{SQUARE}",
        f"\ufeff{SQUARE}\n\n",
        SQUARE.replace("1 1 0", " 1.0e0\t1. 0 "),
        SQUARE.replace("3 0 1 2", "3 0 1 2 255 0 0").replace("3 0 2 3", "3 0 2 3 0.5 0.5 0.5 1"),
        SQUARE.replace("OFF", "COFF").replace("1 1 0", "1 1 0 255 255 0 1"),
        f"OFF\n4 1 0\n{VERTICES}4 0 1 2 3\n",  # one polygon
        f"OFF\n4 4 0\n{VERTICES}3 0 1 2\n2 0 1\n1 3\n3 0 2 3\n",  # an edge and a point have no area
    ],
)
def test_every_way_to_write_a_mesh_gives_the_same_triangles(text):
    mesh = read_off(text)
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert mesh.triangles.tolist() == TRIANGLES
    assert mesh.areas().tolist() == [0.5, 0.5]


@given(corners=st.integers(3, 12), radius=st.floats(0.01, 100), colour=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_polygon_has_the_area_that_geometry_says(corners, radius, colour, seed):
    """A regular polygon of n corners, anywhere in space: n·r²·sin(2π/n)/2."""
    angles = 2 * math.pi * torch.arange(corners, dtype=torch.float64) / corners
    flat = torch.stack([angles.cos(), angles.sin(), torch.zeros(corners)], 1) * radius
    turned = flat @ torch.linalg.qr(torch.randn(3, 3, generator=seeded(seed), dtype=torch.float64))[0].T + 7
    rows = [" ".join(map(repr, row)) for row in turned.tolist()]
    face = " ".join(map(str, [corners, *range(corners)])) + (" 10 20 30" if colour else "")
    mesh = read_off("\n".join([f"OFF{corners} 1 {corners}", *rows, face]))
    assert len(mesh.triangles) == corners - 2
    assert mesh.areas().sum().item() == pytest.approx(corners * radius**2 * math.sin(2 * math.pi / corners) / 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("ply\n4 2 0\n", "'ply'"),
        ("OFF\n", "no numbers"),
        ("OFF BINARY\nxx", "BINARY"),
        ("OFF\n0 0 0\n", "0 vertices"),
        ("OFF\n4 -1 0\n", "-1 faces"),
        (SQUARE.replace("3 0 2 3\n", ""), "5 of 6 lines"),
        (SQUARE.replace("1 1 0", "1 1"), "2 coordinates"),
        (SQUARE.replace("1 1 0", "1 nan 0"), "not finite"),
        (SQUARE.replace("1 1 0", "1 one 0"), "no number"),
        (SQUARE.replace("3 0 2 3", "3 0 2 4"), "none of its 4 vertices"),
        (SQUARE.replace("3 0 2 3", "3 0 2 -1"), "none of its 4 vertices"),
        (SQUARE.replace("3 0 2 3", "3 0 2 2.5"), "none of its 4 vertices"),
        (SQUARE.replace("3 0 2 3", "4 0 2 3"), "how many corners"),
        (SQUARE.replace("3 0 2 3", "2.5 0 2 3"), "how many corners"),
    ],
)
def test_what_is_no_mesh_is_refused_with_the_reason(text, said):
    with pytest.raises(ValueError, match=r".") as caught:
        read_off(text)
    assert said in str(caught.value)


# ── and drawn from ────────────────────────────────────────────────────────────────────────────────────────────────────

COUNT = 20_000


def within(share: float, expected: float, count: int = COUNT) -> bool:
    """Whether a share of independent draws lies within five standard deviations."""
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


def test_a_triangle_gets_points_by_its_area_and_not_by_its_number():
    """Areas 1/2, 9/2 and 0 in two planes, z = 0 and z = 1: a tenth of the points lies in the first."""
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 0, 1], [0, 3, 1]], dtype=torch.float64)
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [3, 3, 4], [3, 4, 5]]))
    points = surface_points(mesh, COUNT, seeded(1))
    assert mesh.areas().tolist() == [0.5, 0.0, 4.5]
    assert within((points[:, 2] == 0).double().mean().item(), 0.1)
    assert ((points[:, 2] == 0) | ((points[:, 2] - 1).abs() < 1e-12)).all()


def test_within_a_triangle_every_place_is_as_likely():
    """Of the triangle x, y ≥ 0, x + y ≤ 1: x + y ≤ t has the share t², x ≤ t the share 1 − (1 − t)²; so has y."""
    triangle = Mesh(torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64), torch.tensor([[0, 1, 2]]))
    x, y, z = surface_points(triangle, COUNT, seeded(2)).unbind(1)
    assert min(x.min(), y.min()) >= 0
    assert (x + y).max() <= 1 + 1e-12
    assert not z.any()
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert within((x + y <= t).double().mean().item(), t**2)
        assert within((x <= t).double().mean().item(), 1 - (1 - t) ** 2)
        assert within((y <= t).double().mean().item(), 1 - (1 - t) ** 2)
    assert within(((x <= 0.5) & (y <= 0.5)).double().mean().item(), 0.5)


def test_however_a_square_is_cut_its_quarters_get_a_quarter_each():
    uneven = f"OFF\n5 3 0\n{VERTICES}0.1 0.2 0\n4 4 1 2 3\n3 0 1 4\n3 0 4 3\n"
    for text in (SQUARE, uneven):
        x, y, _ = surface_points(read_off(text), COUNT, seeded(3)).unbind(1)
        for left in (x < 0.5, x >= 0.5):
            for low in (y < 0.5, y >= 0.5):
                assert within((left & low).double().mean().item(), 0.25)


def test_a_mesh_without_an_area_is_refused():
    flat = Mesh(torch.zeros(3, 3, dtype=torch.float64), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="no area"):
        surface_points(flat, 3, seeded(0))
    with pytest.raises(ValueError, match="no area"):
        surface_points(read_off(f"OFF\n4 1 0\n{VERTICES}2 0 1\n"), 3, seeded(0))


@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=20, deadline=None)
def test_a_cloud_is_centred_and_reaches_the_unit_sphere_wherever_it_was(seed, scale):
    cloud = torch.randn(2, 50, 3, generator=seeded(seed), dtype=torch.float64)
    found = normalised(cloud * scale + 3 * scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.norm(dim=2).amax(1), torch.ones(2))
    torch.testing.assert_close(found, normalised(cloud), atol=1e-5, rtol=1e-5)


def test_a_cloud_of_one_place_stays_at_nothing():
    assert not normalised(torch.full((1, 4, 3), 7.0)).any()


# ── ModelNet's layouts ────────────────────────────────────────────────────────────────────────────────────────────────

CLASSES = ("chair", "desk")


def box(height: float) -> str:
    corners = [f"{x} {y} {z}" for x in (0, 1) for y in (0, 1) for z in (0, height)]
    faces = ["4 0 1 3 2", "4 4 5 7 6", "4 0 1 5 4", "4 2 3 7 6", "4 0 2 6 4", "4 1 3 7 5"]
    return "\n".join(["OFF8 6 0", *corners, *faces]) + "\n"


def meshes(folder: Path, pattern: str = "{name}/{part}") -> Path:
    for number, name in enumerate(CLASSES):
        for part, count in (("train", 3), ("test", 2)):
            place = folder / pattern.format(name=name, part=part)
            place.mkdir(parents=True)
            for shape in range(count):
                (place / f"{name}_{shape:04}.off").write_text(box(1 + number + shape / 10), encoding="utf-8")
    (folder / "README.txt").write_text("as the archive has it", encoding="utf-8")
    (place / "._desk_0000.off").write_bytes(b"hidden")
    (place / "notes.txt").write_text("none", encoding="utf-8")
    return folder


def archive(folder: Path, points: int = 12, **changes: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays = {"classes": np.array(CLASSES)}
    for part, count in (("train", 4), ("test", 2)):
        arrays[f"{part}_points"] = random.integers(-32767, 32767, (count, points, 3)).astype(np.int16)
        arrays[f"{part}_labels"] = np.arange(count) % 2
    arrays |= changes
    np.savez(folder / "clouds.npz", **{name: array for name, array in arrays.items() if array is not None})
    return arrays


@pytest.mark.parametrize("pattern", ["{name}/{part}", "{part}/{name}"])
def test_folders_of_meshes_are_clouds_with_their_classes(pattern, tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    meshes(tmp_path / "ModelNet10", pattern)
    keys = data_settings({"use": "modelnet10", "options": {"points": 16}})
    described = datasets.prepare(keys, tmp_path / "cache")
    assert (described.train, described.test, described.shape) == (6, 4, (16, 3))
    assert (described.classes, described.class_names, described.targets) == (2, CLASSES, "class")
    train, test = datasets.open_data(described, keys, CPU)
    batch = next(iter(train.in_order()))
    assert batch.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.inputs.dtype == torch.float32
    torch.testing.assert_close(batch.inputs.norm(dim=2).amax(1), torch.ones(6))
    assert next(iter(test.in_order())).targets.tolist() == [0, 0, 1, 1]


def test_a_shapes_points_depend_on_the_seed_and_itself_alone(tmp_path):
    few, many = meshes(tmp_path / "few"), meshes(tmp_path / "many")
    (many / "chair" / "train" / "aaa.off").write_text(box(9), encoding="utf-8")
    one, again, more, other = (
        modelnet10(str(folder), 8, seed)["train"][0] for folder, seed in ((few, 0), (few, 0), (many, 0), (few, 1))
    )
    assert torch.equal(one, again)
    assert torch.equal(one, more[1:])
    assert not torch.isclose(one, other).all(-1).any()
    assert len({tuple(cloud.flatten().tolist()) for cloud in one}) == len(one)


def test_an_archives_clouds_are_whole_or_some_of_their_points(tmp_path):
    arrays = archive(tmp_path / "m")
    whole = modelnet10(str(tmp_path / "m"), 12)
    torch.testing.assert_close(whole["train"][0], normalised(torch.from_numpy(arrays["train_points"])))
    assert whole["train"][1].tolist() == [0, 1, 0, 1]
    assert whole["facts"] == {"targets": "class", "class_names": list(CLASSES)}
    some, again, other = (modelnet10(str(tmp_path / "m"), 5, seed)["train"][0] for seed in (0, 0, 1))
    assert some.shape == (4, 5, 3)
    assert torch.equal(some, again)
    assert not torch.equal(some, other)


def test_points_that_are_chosen_are_a_clouds_own_each_once_and_every_one_as_often():
    clouds = torch.arange(400 * 8 * 3).view(400, 8, 3)
    found = _some_points(clouds, 3, 0, "train")
    rows = (found[..., 0] - clouds[:, :1, 0]) // 3  # which of its cloud's points each is
    assert torch.equal(clouds.gather(1, rows[..., None].expand(-1, -1, 3)), found)
    assert all(len(set(each)) == 3 for each in rows.tolist())
    for point in range(8):
        assert within((rows == point).any(1).double().mean().item(), 3 / 8, 400)
    assert not torch.equal(_some_points(clouds, 3, 0, "test"), found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_points": None}, "train_points"),
        ({"test_points": np.zeros((2, 12, 2))}, "(N, points, 3)"),
        ({"test_points": np.full((2, 12, 3), np.nan)}, "not finite"),
        ({"train_labels": np.zeros(3, int)}, "train_labels"),
        ({"train_labels": np.zeros(4)}, "whole numbers"),
        ({"train_labels": np.array([0, 1, -1, 0])}, "count from 0"),
        ({"train_labels": np.array([0, 1, 2, 0])}, "2 classes and a label 2"),
        ({"test_points": np.zeros((2, 4, 3))}, "ask for 12"),
        ({"classes": np.array(list(CLASSES), dtype=object)}, "cannot be read"),
    ],
)
def test_an_archive_that_is_none_is_refused(changes, said, tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    archive(tmp_path / "modelnet10", **changes)
    keys = data_settings({"use": "modelnet10", "options": {"points": 12}})
    assert said in refused("E402", lambda: datasets.prepare(keys, tmp_path / "cache", known=True))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"\x93NUMPY"])
def test_a_broken_archive_is_refused_with_its_name(content, tmp_path):
    (tmp_path / "clouds.npz").write_bytes(content)
    assert "clouds.npz cannot be read" in refused("E402", lambda: modelnet10(str(tmp_path)))


def test_two_archives_a_broken_mesh_and_a_class_without_training_are_refused(tmp_path):
    archive(tmp_path / "two")
    (tmp_path / "two" / "more.npz").write_bytes(b"")
    assert "keep one" in refused("E402", lambda: modelnet10(str(tmp_path / "two"), 4))
    meshes(tmp_path / "broken")
    (tmp_path / "broken" / "desk" / "test" / "desk_0001.off").write_text("OFF\n1 1 0\n0 0 0\n", encoding="utf-8")
    assert "desk/test/desk_0001.off cannot be read" in refused("E402", lambda: modelnet10(str(tmp_path / "broken"), 4))
    meshes(tmp_path / "strange")
    (tmp_path / "strange" / "chairs" / "test").mkdir(parents=True)
    (tmp_path / "strange" / "chairs" / "test" / "a.off").write_text(box(1), encoding="utf-8")
    assert "did you mean 'chair'" in refused("E402", lambda: modelnet10(str(tmp_path / "strange"), 4))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "images").mkdir()
    assert "images" in refused("E402", lambda: modelnet10(str(tmp_path / "other"), 4))


@pytest.mark.parametrize("options", [{"points": 0}, {"points": "many"}, {"points": True}, {"seed": 0.5}, {"point": 3}])
def test_options_that_are_none_are_refused_with_and_without_the_data(options, tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    keys = data_settings({"use": "modelnet10", "options": options})
    if "seed" not in options:
        refused("E402", lambda: datasets.prepare(keys, tmp_path / "cache", known=True))
    archive(tmp_path / "modelnet10")
    refused("E402", lambda: datasets.prepare(keys, tmp_path / "cache", known=True))


@pytest.mark.parametrize(
    ("use", "classes", "train", "test"), [("modelnet10", 10, 3_991, 908), ("ModelNet40", 40, 9_843, 2_468)]
)
def test_a_set_by_its_name_has_its_published_facts_where_it_is_not(use, classes, train, test, tmp_path, monkeypatch):
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    keys = data_settings({"use": use, "options": {"points": 32}, "test_subset": 5})
    found = datasets.prepare(keys, tmp_path, known=True)
    assert (found.kind, found.targets, found.shape, found.classes) == ("stand-in", "class", (32, 3), classes)
    assert (found.train, found.test) == (train, 5)
    assert datasets.prepare(data_settings({"use": use}), tmp_path, known=True).shape == (1024, 3)
    batch = next(iter(datasets.open_data(found, keys, CPU)[0].in_order(2)))
    assert (batch.inputs.shape, batch.inputs.dtype, batch.targets.tolist()) == ((2, 32, 3), torch.float32, [0, 0])
    refused("E402", lambda: datasets.prepare(keys, tmp_path))
    elsewhere = data_settings({"use": use, "options": {"folder": "elsewhere"}})
    refused("E402", lambda: datasets.prepare(elsewhere, tmp_path, known=True))


# ── PointNet ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = {"before": [8], "shared": [8, 16], "head": [12], "dropout": 0.0}
POINTS = 24


def small(**changes: Any) -> nn.Module:
    return pointnet((POINTS, 3), 2, **SMALL | changes)


def with_transforms() -> nn.Module:
    return small(transforms=True)


def two_layers() -> nn.Module:
    """As the suite has it: one perceptron and one linear layer."""
    return small(before=[], head=[])


MODELS = [small, two_layers, with_transforms]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


def stirred(model: nn.Module) -> nn.Module:
    """With weights of no special kind: transforms are none at first."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(number)))
    return model


@each_model
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_the_same_in_whatever_order_the_points_come(model, training):
    network = stirred(model()).double().train(training)
    clouds = torch.randn(5, POINTS, 3, generator=seeded(0), dtype=torch.float64)
    shuffled = torch.stack([cloud[torch.randperm(POINTS, generator=seeded(n))] for n, cloud in enumerate(clouds)])
    assert not torch.equal(clouds, shuffled)
    with torch.no_grad():
        torch.testing.assert_close(network(shuffled), network(clouds))
        assert not torch.allclose(network(clouds.flip(2)), network(clouds))  # other clouds have others


@each_model
def test_a_point_that_is_there_twice_changes_nothing(model):
    network = stirred(model()).double().eval()
    clouds = torch.randn(3, POINTS, 3, generator=seeded(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(torch.cat([clouds, clouds[:, :7]], 1)), network(clouds))


def test_it_is_the_largest_of_each_points_own_features():
    network = stirred(two_layers()).double().eval()
    clouds = torch.randn(2, POINTS, 3, generator=seeded(2), dtype=torch.float64)
    x = clouds.reshape(-1, 3)
    for conv, norm, _ in zip(*[iter(network.shared)] * 3, strict=True):
        x = x @ conv.weight[..., 0].T
        x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        x = x.clamp(min=0)
    wanted = x.view(2, POINTS, -1).max(1).values @ network.classify.weight.T + network.classify.bias
    torch.testing.assert_close(network(clouds), wanted)


@pytest.mark.parametrize(("transforms", "millions", "multiply_adds"), [(False, 0.8, 148e6), (True, 3.5, 440e6)])
def test_it_has_the_size_that_its_paper_gives(transforms, millions, multiply_adds):
    """Table 6 of Qi et al.: parameters, and the multiply-adds of one cloud of 1,024 points, to 3 %."""
    with torch.device("meta"):
        network = pointnet((1024, 3), 40, transforms=transforms)
        clouds = torch.zeros(2, 1024, 3)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    with FlopCounterMode(display=False) as counter:
        network(clouds)
    assert counter.get_total_flops() / len(clouds) == pytest.approx(2 * multiply_adds, rel=0.03)


def test_a_transform_is_none_at_first_and_then_multiplies_every_point_by_one_matrix():
    transform = Transform(3).double().eval()
    x = torch.randn(2, 3, POINTS, generator=seeded(3), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(transform(x), x)
        turned = stirred(transform)(x)
        flat = transform.matrix(transform.head(transform.shared(x).amax(2)))
    for sample in range(2):
        for point in range(POINTS):
            wanted = flat[sample].view(3, 3) @ x[sample, :, point]
            torch.testing.assert_close(turned[sample, :, point], wanted)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shared": []},
        {"shared": [0]},
        {"head": [-1]},
        {"dropout": 1.0},
        {"transforms": True, "before": []},
        {"layers": 3},
    ],
)
def test_a_pointnet_that_cannot_be_is_refused(wrong):
    refused("E401", lambda: models.build("pointnet", (16, 3), 4, wrong))


def test_neither_images_nor_values_are_clouds_with_a_class():
    assert "no classes" in refused("E401", lambda: models.build("pointnet", (16, 3), None, {}))
    with pytest.raises(TypeError, match=r"samples, points, coordinates"):
        models.build("pointnet", (3, 32, 32), 10, SMALL)(torch.zeros(2, 3, 32, 32))


def test_dropout_is_drawn_in_training_alone():
    network = small(dropout=0.5)
    clouds = torch.randn(4, POINTS, 3, generator=seeded(4))
    with torch.no_grad():
        assert not torch.equal(network(clouds), network(clouds))
        network.eval()
        assert torch.equal(network(clouds), network(clouds))


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def two_shapes() -> Data:
    """Points of a flat box and of a tall one, 24 of each kind."""
    clouds = [
        surface_points(read_off(box(height)), POINTS, seeded(number)) for number, height in enumerate([0.2, 3.0] * 24)
    ]
    labels = torch.arange(48) % 2
    return Data(Resident(normalised(torch.stack(clouds)), labels, CPU), facts=Facts("class", 2))


def points_run(methods: Any = (), model: Any = small, **given_: Any) -> Any:
    plain = {"data": two_shapes(), "batch": 12, "epochs": 4, "optimizer": "adam", "lr": 1e-2, "momentum": 0.0}
    return make_run(methods, model, **plain | given_)


@each_model
def test_it_learns_and_its_ledger_is_what_is_counted(model):
    counter = StepCounter(10**9)
    run = points_run(model=model, counter=counter, epochs=15)  # until BatchNorm's averages have followed
    traced = trace_run(run, CPU)
    work = Work(traced.lines, epochs=15, samples=48, batch=12)
    run.train()
    assert traced.unknown == ()
    assert work.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-3)
    assert run.evaluate(run.data)["accuracy"] > 0.9
    if model is two_layers:
        forward = sum(line.flop for line in traced.lines if line.phase == "forward")
        assert forward == pytest.approx(2 * POINTS * (3 * 8 + 8 * 16) + 2 * 16 * 2, rel=1e-3)


def fresh(name: str, **given_: Any) -> Method:
    kind = discovery.load(SOURCES[name])
    return discovery.build(kind, name, dict(kind.example) | given_)


@pytest.mark.parametrize("name", SOURCES)
def test_every_method_trains_it(name):
    method = fresh(name)
    assert check_stack([method], Classification()) == []
    run = run_or_refusal(lambda: points_run([method], epochs=6, optimizer="sgd", lr=0.05))
    if run is None:
        return
    run.train()
    assert run.uncalled_overrides() == []
    assert method.acted is not False
    assert all(math.isfinite(point["loss"]) for point in run.curve if point["loss"] is not None)
    run.finish()
    assert [type(module) for module in run.model.modules()] == [type(module) for module in small().modules()]


@pytest.mark.parametrize("score", ["output-gradient", "loss", "last-layer-gradient", "parameter-gradient"])
def test_every_score_of_samples_is_to_be_had(score):
    method = fresh("importance", score=score)
    points_run([method]).train()
    assert method.acted
    assert method.diagnostics()["refused_scores"] == 0


@each_model
@pytest.mark.parametrize("recipe", [{"precision": "bf16"}, {"precision": "fp16"}, {"accumulate": 3, "clip": 0.1}])
def test_half_precision_micro_batches_and_clipping_train(model, recipe):
    run = points_run(model=model, epochs=2, **recipe)
    run.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve)
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in run.model.parameters())


def test_the_same_seed_gives_the_same_weights():
    found = []
    for _ in range(2):
        run = points_run(model=partial(small, dropout=0.5))
        run.train()
        found.append(state(run.model))
    assert_same_state(*found)


# ── suites ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "widths", "points", "classes", "samples"),
    [
        ("tasks-points", (3, 64, 128, 256), 256, 10, 1_000),
        ("paper-importance-points", (3, 64, 128, 1024), 1024, 40, 9_843),
    ],
)
def test_its_suites_are_traced_where_there_are_no_data(name, widths, points, classes, samples, tmp_path, monkeypatch):
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    spec = spec_of(load(ROOT / "suites" / f"{name}.toml"), tmp_path, device="cpu", download=False)
    found = planner.Plan(spec.model_copy(update={"purpose": "trace"})).result()
    assert found.problems == ()
    (known,) = found.workloads.values()
    assert (known.samples, known.data.classes) == (samples, classes)
    forward = sum(line.flop for line in known.ledger if line.phase == "forward")
    wanted = 2 * points * sum(a * b for a, b in pairwise(widths)) + 2 * widths[-1] * classes
    assert forward == pytest.approx(wanted, rel=1e-3)
