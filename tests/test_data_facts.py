"""What a data function returns and says: kinds of targets, classes, void labels, trees, further parts, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from support import CPU, data_settings
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.common.open_tables import DataFacts
from energybench.suite.tables import WorkloadTable
from energybench.train.data import Data
from energybench.trial.build import build_model
from energybench.workloads import datasets
from energybench.workloads.datasets.data_facts import Content, facts_of
from energybench.workloads.description import DataDescription

N = 6
IMAGES = torch.arange(N * 3 * 4 * 5).remainder(251).view(N, 3, 4, 5).to(torch.uint8)
LABELS = torch.arange(N) % 3
MASKS = torch.arange(N * 20).remainder(4).view(N, 4, 5)
BOXES = {"boxes": torch.tensor([[[0.0, 0, 2, 2], [1, 1, 5, 4]]]).repeat(N, 1, 1), "labels": torch.tensor([[1, -1]] * N)}


def described(made: dict[str, Any], folder: Path, **settings: Any) -> DataDescription:
    keys = {"use": "mine.py:mine", "resident": 10**9} | settings
    return datasets.prepare(data_settings(keys), folder, function=lambda: made)


def opened(made: dict[str, Any], folder: Path, **settings: Any) -> tuple[DataDescription, Data, Data]:
    found = described(made, folder, **settings)
    keys = data_settings({"use": "mine.py:mine"} | settings)
    return (found, *datasets.open_data(found, keys, CPU))


def both(inputs: Any, targets: Any, **facts: Any) -> dict[str, Any]:
    part = (inputs, targets)
    return {"train": part, "test": part, **({"facts": facts} if facts else {})}


def refusal(made: Any, folder: Path, **settings: Any) -> str:
    with pytest.raises(UsageError) as refused:
        described(made, folder, **settings)
    (problem,) = refused.value.problems
    assert problem.code == "E402"
    assert "mine.py:mine" in problem.message
    return f"{problem.message}; {problem.hint}"


# ── kinds ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("inputs", "targets", "kind", "classes"),
    [
        (IMAGES, LABELS, "class", 3),
        (IMAGES, MASKS, "mask", 4),
        (IMAGES, MASKS.to(torch.uint8), "mask", 4),
        (IMAGES, MASKS[:, None], "mask", 4),
        (IMAGES, BOXES, "boxes", 2),
        (torch.zeros(N, 7), torch.zeros(N), "value", None),
        (torch.zeros(N, 7), torch.zeros(N, 3, 3), "value", None),
        (torch.zeros(N, 9).long(), torch.full((N, 9), 41), "tokens", 42),
        (IMAGES, None, "none", None),
        (torch.zeros(N, 2), {"y": LABELS}, "class", 3),
        (torch.zeros(N, 2), {"y": LABELS, "z": LABELS}, "class", None),
        (IMAGES, {"mask": MASKS, "scene": LABELS}, "mask", 4),
        (torch.zeros(N, 2), {"y": LABELS, "size": torch.zeros(N)}, "value", None),
    ],
)
def test_the_kind_of_targets_is_read_from_them(inputs, targets, kind, classes, tmp_path):
    found, train, test = opened(both(inputs, targets), tmp_path)
    assert (found.targets, found.classes) == (kind, classes)
    assert train.facts == test.facts == found.facts
    assert (len(train), len(test)) == (found.train, found.test) == (N, N)


def test_what_is_said_holds_and_reaches_the_data_and_the_record(tmp_path):
    facts = {"classes": 5, "void": 2, "class_names": ["a", "b", "c", "d", "e"], "extra": {"vocabulary": 9, "rate": 0.5}}
    found, train, _ = opened(both(IMAGES, MASKS, **facts), tmp_path)
    assert (found.classes, found.void, found.class_names) == (5, 2, ("a", "b", "c", "d", "e"))
    assert train.facts.extra == {"vocabulary": 9, "rate": 0.5}
    kept = found.for_record()
    assert {"targets": "mask", "void": 2, "extra": facts["extra"]}.items() <= kept.items()
    assert kept["class_names"] == facts["class_names"]


def test_a_record_of_classes_has_no_key_more_than_before(tmp_path):
    kept = described(both(IMAGES, LABELS), tmp_path).for_record()
    assert set(kept) == {"source", "kind", "shape", "classes", "mean", "std", "train", "test", "sha256"}


def test_a_run_record_holds_what_is_known_of_every_kind(tmp_path):
    made = both({"a": IMAGES, "b": torch.zeros(N, 2)}, MASKS, class_names=["a", "b", "c", "d"], extra={"v": 3})
    made["target"] = ({"a": IMAGES[:2], "b": torch.zeros(2, 2)}, None)
    kept = described(made, tmp_path).for_record()
    assert kept["parts"] == {"target": 2}
    assert TypeAdapter(DataFacts).validate_python({"w": kept}) == {"w": kept}


@pytest.mark.parametrize(
    ("labels", "facts", "classes", "void"),
    [
        ([0, 1, 255], {}, 2, 255),
        ([0, 1, 3], {}, 4, None),
        ([0, 1, 3], {"void": 3}, 2, 3),
        ([0, 1, 11], {"void": 11, "classes": 11}, 11, 11),
        ([0, 1, 255], {"void": None}, 256, None),
        ([0, 1, 255], {"classes": 256}, 256, None),
        ([0, 1, 255], {"classes": 21}, 21, 255),
        ([0, 254, 255], {}, 255, 255),
        ([0, 1, -1], {"void": -1}, 2, -1),
        ([0, 1, 2], {"void": -1}, 3, -1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_void_label_is_no_class(labels, facts, classes, void, dtype, tmp_path):
    if dtype == torch.uint8 and min(labels) < 0:
        return
    masks = torch.tensor(labels, dtype=dtype).repeat(N * 20)[: N * 20].view(N, 4, 5)
    found, train, _ = opened(both(IMAGES, masks, **facts), tmp_path)
    assert (found.targets, found.classes, found.void) == ("mask", classes, void)
    batch = next(train.load([torch.arange(2)]))
    assert batch.targets.dtype == torch.int64
    assert torch.equal(batch.targets, masks[:2].long())


def test_masks_beside_images_that_are_floats_are_labels_too(tmp_path):
    found, train, _ = opened(both(IMAGES.float(), MASKS.to(torch.uint8), targets="mask"), tmp_path)
    assert (found.mean, found.targets) == (None, "mask")
    assert next(train.in_order()).targets.dtype == torch.int64


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_classes_are_counted_over_every_part(train, test):
    content = Content(
        (torch.zeros(len(train), 1), torch.tensor(train)), (torch.zeros(len(test), 1), torch.tensor(test))
    )
    assert facts_of(content, "mine").classes == max(train + test) + 1


# ── trees and sets without targets ────────────────────────────────────────────────────────────────────────────────────


def moments(images: Tensor) -> tuple[list[float], list[float]]:
    values = images.double().div(255)
    return values.mean((0, 2, 3)).tolist(), values.std((0, 2, 3), unbiased=False).tolist()


def test_no_image_of_a_tree_reaches_the_model_as_bytes(tmp_path):
    other = IMAGES.flip(0)[:, :1] // 2
    inputs = {"left": IMAGES, "right": [other], "age": torch.arange(float(N))}
    found, train, test = opened(both(inputs, LABELS), tmp_path)
    assert set(found.images) == {"left", "right.0"}
    for path, images in (("left", IMAGES), ("right.0", other)):
        mean, std = moments(images)
        assert found.images[path].mean == pytest.approx(mean, abs=1e-9)
        assert found.images[path].std == pytest.approx(std, abs=1e-9)
    for data in (train, test):
        batch = next(data.in_order())
        for leaf in (batch.inputs["left"], batch.inputs["right"][0]):
            assert leaf.dtype == torch.float32
            assert leaf.mean((0, 2, 3)).abs().max() < 1e-5
        assert torch.equal(batch.inputs["age"], inputs["age"])


def test_images_of_a_tree_are_resized_and_so_is_what_a_model_is_built_for(tmp_path):
    inputs = {"age": torch.zeros(N, 2), "image": IMAGES}
    found, train, _ = opened(both({"image": IMAGES, "age": torch.zeros(N, 2)}, LABELS), tmp_path, resize=8)
    assert found.shape == (3, 8, 8)
    assert next(train.in_order()).inputs["image"].shape == (N, 3, 8, 8)
    found, train, _ = opened(both(inputs, LABELS), tmp_path / "b", resize=8)
    assert found.shape == (2,)  # the first of the tree, which is no image
    assert next(train.in_order()).inputs["image"].shape == (N, 3, 8, 8)


def test_a_list_of_tensors_is_a_tree_and_no_list_of_files(tmp_path):
    _, train, _ = opened(both([torch.arange(N), torch.zeros(N, 2)], LABELS), tmp_path, subset=4)
    batch = next(train.in_order())
    assert [leaf.shape for leaf in batch.inputs] == [(4,), (4, 2)]


@pytest.mark.parametrize("inputs", [IMAGES, {"image": IMAGES, "t": torch.arange(N)}])
def test_a_set_without_targets_is_a_set(inputs, tmp_path):
    found, train, test = opened(both(inputs, None), tmp_path, subset=5, test_subset=2, augment=["flip", "crop1"])
    assert (found.targets, found.classes, found.train, found.test) == ("none", None, 5, 2)
    assert (len(train), len(test), train.steps(2)) == (5, 2, 3)
    seeded = lambda number: torch.Generator().manual_seed(number)  # noqa: E731
    for batch in (*train.load([torch.arange(3)], seeded), *test.in_order()):
        assert batch.targets is None
        assert len(batch) == len(torch.utils._pytree.tree_leaves(batch.inputs)[0])


# ── further parts ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_further_parts_are_the_training_sets_and_prepared_as_it_is(tmp_path):
    made = both(IMAGES, LABELS) | {"target": (IMAGES[:4].flip(-1), None), "probe": (IMAGES[:2], LABELS[:2])}
    found, train, test = opened(made, tmp_path, subset=5)
    assert found.parts == {"target": 4, "probe": 2}
    assert (set(train.parts), set(test.parts)) == ({"target", "probe"}, set())
    target, probe = train.parts["target"], train.parts["probe"]
    assert (len(target), target.facts.targets, len(probe), probe.facts) == (4, "none", 2, train.facts)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (found.mean, found.std))
    batch = next(target.in_order())
    assert torch.allclose(batch.inputs, (made["target"][0] / 255 - mean) / std, atol=1e-5)
    assert batch.targets is None
    assert torch.equal(next(probe.in_order()).targets, LABELS[:2])


def test_another_part_or_another_word_on_the_targets_is_another_set(tmp_path):
    plain = both(IMAGES, LABELS)
    variants = [
        plain,
        plain | {"target": (IMAGES, None)},
        plain | {"probe": (IMAGES, None)},
        plain | {"target": (IMAGES, LABELS)},
        plain | {"facts": {"classes": 3}},
        plain | {"facts": {"void": 1}},
    ]
    assert len({described(made, tmp_path).sha256 for made in variants}) == len(variants)


def test_the_same_tensors_under_other_names_are_kept_apart(tmp_path):
    made = [
        both({"left": IMAGES, "right": IMAGES}, LABELS),
        both({"right": IMAGES, "wrong": IMAGES}, LABELS),
        both([IMAGES, IMAGES], LABELS),
        both([IMAGES, IMAGES, LABELS], None),
    ]
    trains = [opened(one, tmp_path)[1] for one in made]
    inputs = [next(train.in_order()).inputs for train in trains]
    assert [sorted(tree) if isinstance(tree, dict) else len(tree) for tree in inputs] == [
        ["left", "right"],
        ["right", "wrong"],
        2,
        3,
    ]


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fact": {"void": 3}}, "did you mean 'facts'"),
        ({"target": IMAGES}, "not (inputs, targets)"),
        ({"target": (IMAGES[:, :1], None)}, "not those of 'train'"),
        ({"target": (IMAGES.float(), None)}, "not those of 'train'"),
        ({"target": (IMAGES[:0], None)}, "'target' has no samples"),
        ({"test": (IMAGES, None)}, "one of train and test has no targets"),
        ({"test": (IMAGES[:2], LABELS)}, "inputs 2, targets 6"),
        ({"test": (IMAGES.numpy(), LABELS)}, "torch.from_numpy"),
        ({"test": ({"a": IMAGES, "b": 3}, LABELS)}, "inputs.b of 'test' is of type int"),
        ({"test": (IMAGES, torch.tensor(3))}, "without a dimension"),
        ({"facts": ["mask"]}, "not a mapping"),
        ({"facts": {"target": "mask"}}, "did you mean 'targets'"),
        ({"facts": {"targets": "masks"}}, "one of class, mask"),
        ({"facts": {"classes": 2}}, "2 classes and a label 2"),
        ({"facts": {"classes": 0}}, "facts.classes"),
        ({"facts": {"classes": "3"}}, "facts.classes"),
        ({"facts": {"classes": 4, "class_names": ["a", "b", "c"]}}, "4 classes and 3 class_names"),
        ({"facts": {"extra": {"shape": 3}}}, "cannot have 'shape'"),
        ({"facts": {"extra": {"a b": 3}}}, "cannot have 'a b'"),
        ({"facts": {"targets": "none"}}, "said to be 'none'"),
        ({"facts": {"targets": "boxes"}}, "(N, K, 4)"),
        ({"facts": {"targets": "mask"}}, "(N, H, W)"),
    ],
)
def test_what_a_function_returns_is_refused_in_words(change, words, tmp_path):
    assert words in refusal(both(IMAGES, LABELS) | change, tmp_path)


@pytest.mark.parametrize(
    ("targets", "facts", "words"),
    [
        (MASKS[:, :2], {"targets": "mask"}, "4×5"),
        (MASKS - 1, {}, '{"void": -1}'),
        (torch.full_like(MASKS, 255), {}, "no label but void"),
        ({**BOXES, "boxes": torch.tensor([[[2.0, 2, 1, 1], [0, 0, 0, 0]]] * N)}, {}, "6 of 6 boxes have no area"),
        ({**BOXES, "boxes": torch.tensor([[[9.0, 0, 11, 3], [0, 0, 0, 0]]] * N)}, {}, "outside their image of 4×5"),
        ({**BOXES, "boxes": torch.full((N, 2, 4), float("nan"))}, {}, "not finite"),
        ({**BOXES, "boxes": BOXES["boxes"].long()}, {}, "of floats"),
        ({**BOXES, "labels": torch.full((N, 2), -1)}, {}, "no object"),
        ({**BOXES, "labels": torch.full((N, 2), -2)}, {}, "label -2"),
        ({**BOXES, "labels": torch.full((N, 2), 7)}, {"classes": 3}, "a label 7"),
    ],
)
def test_masks_and_boxes_that_cannot_be_are_refused(targets, facts, words, tmp_path):
    assert words in refusal(both(IMAGES, targets, **facts), tmp_path)


@pytest.mark.parametrize(
    ("inputs", "targets", "facts", "augment", "words"),
    [
        (IMAGES, torch.zeros(N), {}, "flip", '"facts": {"targets": "class"}'),
        (IMAGES, torch.zeros(N, 7).long(), {}, "crop2", "the tokens of an image"),
        (IMAGES, MASKS, {}, "crop2", "no label says void"),
        (IMAGES, {"mask": MASKS, "depth": torch.zeros(N, 4, 5)}, {"targets": "mask"}, "flip", "targets.depth"),
        (IMAGES, {**BOXES, "masks": torch.zeros(N, 2, 4, 5)}, {}, "flip", "targets.masks"),
        ([IMAGES, IMAGES[..., :3]], LABELS, {}, "crop1", "2 sizes"),
        (IMAGES.float(), LABELS, {}, "flip", "no images that could be augmented"),
        (torch.zeros(N, 4), LABELS, {}, "flip", "no images that could be augmented"),
    ],
)
def test_an_image_is_not_moved_where_what_belongs_to_it_would_stay(inputs, targets, facts, augment, words, tmp_path):
    assert words in refusal(both(inputs, targets, **facts), tmp_path, augment=[augment])
    described(both(inputs, targets, **facts), tmp_path)  # as it is, it trains


@pytest.mark.parametrize(
    ("targets", "facts", "augment"),
    [
        (torch.zeros(N), {"targets": "class"}, ["flip", "crop2"]),
        (MASKS, {}, ["flip"]),
        (MASKS, {"void": 7}, ["flip", "crop2"]),
        (BOXES, {}, ["flip", "crop2"]),
        ({**BOXES, "scene": LABELS}, {}, ["flip"]),
        (None, {}, ["flip", "crop2"]),
    ],
)
def test_what_moves_with_an_image_or_needs_not_is_augmented(targets, facts, augment, tmp_path):
    _, train, _ = opened(both(IMAGES, targets, **facts), tmp_path, augment=augment)
    batch = next(train.load([torch.arange(N)], lambda _: torch.Generator().manual_seed(1)))
    assert not torch.equal(batch.inputs, next(train.in_order()).inputs)


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────

MODELS = """
from torch import nn

def told(shape, classes, void, vocabulary, width=1):
    model = nn.Linear(1, 1)
    model.told = (shape, classes, void, vocabulary, width)
    return model

def plain(shape, classes, void=3, **rest):
    model = nn.Linear(1, 1)
    model.told = (void, rest)
    return model
"""


def built(use: str, folder: Path, found: DataDescription, **parameters: Any) -> nn.Module:
    (folder / "mine.py").write_text(MODELS, encoding="utf-8")
    workload = WorkloadTable.model_validate(
        {
            "name": "w",
            "model": {"use": f"mine.py:{use}", **parameters},
            "data": {"use": "digits", "batch": 4},
            "train": {"epochs": 1, "lr": 0.1},
        }
    )
    return build_model(workload, found, folder, 0)


def test_a_model_is_told_what_it_asks_for_by_name(tmp_path):
    found = described(both(IMAGES, MASKS, void=3, extra={"vocabulary": 90}), tmp_path)
    assert built("told", tmp_path, found).told == ((3, 4, 5), 3, 3, 90, 1)
    assert built("told", tmp_path, found, vocabulary=7, width=2).told == ((3, 4, 5), 3, 3, 7, 2)
    # What is not asked for by name is not handed on, and a default stands where the data says nothing.
    assert built("plain", tmp_path, found).told == (3, {})
    assert built("plain", tmp_path, described(both(IMAGES, LABELS), tmp_path)).told == (3, {})


def test_a_model_that_asks_for_what_the_data_does_not_say_is_refused(tmp_path):
    with pytest.raises(UsageError, match="vocabulary"):
        built("told", tmp_path, described(both(IMAGES, MASKS, void=3), tmp_path))


# ── two workloads of one set ──────────────────────────────────────────────────────────────────────────────────────────


def test_workloads_that_differ_in_resize_alone_are_planned_for_their_own_sizes(tmp_path):
    keys = {"use": "mine.py:mine", "resident": 10**9}
    found = datasets.decode(data_settings(keys), tmp_path, function=lambda: both(IMAGES, LABELS))
    shapes = [datasets.fitted(found, data_settings(keys | {"resize": side})).shape for side in (8, 16)]
    assert shapes == [(3, 8, 8), (3, 16, 16)]
    assert datasets.fitted(found, data_settings(keys)).shape == (3, 4, 5)
