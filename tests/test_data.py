"""Data: what a batch holds, how images are prepared, and how a data set is found or refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import CPU, data_settings, digits, vectors
from torch import Tensor

from energybench.common.errors import UsageError
from energybench.train import discovery
from energybench.train.data import Data, Resident, Streamed
from energybench.train.images import Images, crop, flip, read_image
from energybench.workloads import datasets

SPEC: dict[str, Any] = {"resident": 10**9}
WHOLE = torch.arange


@pytest.fixture(autouse=True)
def _nothing_can_be_downloaded(monkeypatch, tmp_path):
    """No data set of the machine is found and nothing leaves it."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)


# ── positions, batches, steps ─────────────────────────────────────────────────────────────────────────────────────


def test_a_subset_counts_its_own_positions_and_subsets_of_subsets_compose():
    data = vectors(20)
    odd = data.subset(torch.arange(1, 20, 2), domain="client 3")
    last = odd.subset(torch.tensor([9, 0]))
    assert (len(odd), len(last), odd.domain, last.domain, data.domain) == (10, 2, "client 3", "client 3", "main")
    batch = next(last.load([torch.tensor([0, 1])]))
    assert batch.index.tolist() == [19, 1]  # in the data set
    assert torch.equal(batch.inputs, data.store.inputs[[19, 1]])


@given(count=st.integers(1, 70), batch=st.integers(1, 40), drop=st.booleans())
def test_steps_and_samples_are_what_a_pass_really_has(count, batch, drop):
    data = Data(vectors(count).store, drop_last=drop)
    cut = data.cut(torch.randperm(count), batch)
    loaded = list(data.load(cut))
    assert data.steps(batch) == len(cut) == len(loaded)
    assert data.samples(batch) == sum(len(one) for one in loaded)
    dropped = count % batch if drop and count > batch else 0
    assert data.samples(batch) == count - dropped  # a set smaller than one batch is still used
    if drop and count >= batch:
        assert {len(one) for one in loaded} == {batch}


def test_load_gives_the_samples_asked_for_in_the_order_asked_for():
    data = digits(40)
    order = [torch.tensor([7, 3, 3]), torch.tensor([39])]
    batches = list(data.load(order))
    assert [batch.index.tolist() for batch in batches] == [[7, 3, 3], [39]]
    assert torch.equal(batches[0].inputs[1], batches[0].inputs[2])
    assert torch.equal(batches[1].targets, data.store.targets[39:])


def test_in_order_gives_every_sample_once_and_augments_nothing():
    plain, augmented = digits(50), digits(50, ["flip", "crop2"])
    seen = list(augmented.in_order(batch=16))
    assert [len(batch) for batch in seen] == [16, 16, 16, 2]
    assert torch.cat([batch.index for batch in seen]).tolist() == list(range(50))
    assert torch.equal(torch.cat([b.inputs for b in seen]), torch.cat([b.inputs for b in plain.in_order()]))


def test_in_order_keeps_the_last_batch_even_where_training_drops_it():
    assert sum(len(batch) for batch in digits(50, drop_last=True).in_order(batch=16)) == 50


def test_augmentation_depends_on_the_generator_of_its_batch_alone():
    data = digits(32, ["flip", "crop1"])
    seeded = lambda number: torch.Generator().manual_seed(number)  # noqa: E731
    first = list(data.load([WHOLE(16), WHOLE(16)], seeded))
    torch.rand(1000)
    again = list(data.load([WHOLE(16), WHOLE(16)], seeded))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.inputs, other.inputs)
    assert not torch.equal(first[0].inputs, first[1].inputs)


def test_loading_changes_no_sample_of_the_store():
    data = digits(32, ["flip", "crop1"])
    before = data.store.inputs.clone()
    list(data.load([WHOLE(32)], lambda number: torch.Generator().manual_seed(number)))
    assert torch.equal(data.store.inputs, before)


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────────

shapes = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(2, 7), st.integers(2, 7))


def random_images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@given(shape=shapes, seed=st.integers(0, 999))
def test_flip_mirrors_whole_images_left_to_right(shape, seed):
    images = random_images(shape)
    done = flip(images, torch.Generator().manual_seed(seed))
    coins = torch.rand(shape[0], generator=torch.Generator().manual_seed(seed)) < 0.5
    for image, made, coin in zip(images, done, coins, strict=True):
        naive = torch.stack([image[:, :, shape[3] - 1 - x] for x in range(shape[3])], -1) if coin else image
        assert torch.equal(made, naive)


@given(shape=shapes, amount=st.integers(1, 4), seed=st.integers(0, 999))
def test_crop_shifts_each_image_by_its_own_offset_over_black(shape, amount, seed):
    images = random_images(shape)
    done = crop(images, amount, torch.Generator().manual_seed(seed))
    offsets = torch.randint(0, 2 * amount + 1, (2, shape[0], 1), generator=torch.Generator().manual_seed(seed))
    for number, image in enumerate(images):
        down, right = int(offsets[0, number]), int(offsets[1, number])
        padded = F.pad(image, (amount,) * 4)
        assert torch.equal(done[number], padded[:, down : down + shape[2], right : right + shape[3]])


@given(st.integers(1, 40), st.integers(0, 255))
def test_resizing_keeps_an_even_image_even_and_the_batch_its_length(side, grey):
    images = torch.full((3, 1, 8, 8), grey, dtype=torch.uint8)
    plain, sized = (Images([0.5], [0.25], [], CPU, resize)(images, None) for resize in (None, side))
    assert sized.shape == (3, 1, side, side)
    assert torch.allclose(sized, plain[:, :, :1, :1].expand_as(sized), atol=1e-5)


def test_a_model_is_built_for_the_resized_image_and_what_is_no_image_is_refused(tmp_path):
    found = datasets.prepare(data_settings({"use": "digits", "resize": 32, "resident": 10**9}), tmp_path)
    assert found.shape == (1, 32, 32)
    train, _ = datasets.open_data(found, data_settings({"use": "digits", "resize": 32}), CPU)
    assert next(iter(train.load([torch.arange(4)]))).inputs.shape == (4, 1, 32, 32)

    def vectors():
        part = torch.zeros(6, 3), torch.zeros(6, dtype=torch.long)
        return {"train": part, "test": part}

    with pytest.raises(UsageError, match="no images"):
        datasets.prepare(
            data_settings({"use": "mine.py:vectors", "resize": 32, "resident": 10**9}), tmp_path, function=vectors
        )


def test_about_half_of_many_images_are_mirrored_and_every_offset_occurs():
    pair = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(4000, 1, 1, 2)
    mirrored = (flip(pair, torch.Generator().manual_seed(1))[:, 0, 0, 0] == 255).double().mean().item()
    assert abs(mirrored - 0.5) < 4 * 0.5 / 4000**0.5  # four standard deviations of a fair coin
    marked = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    marked[:, :, 2, 2] = 255
    where = crop(marked, 1, torch.Generator().manual_seed(1)).flatten(1).argmax(1)
    assert sorted(where.unique().tolist()) == [6, 7, 8, 11, 12, 13, 16, 17, 18]


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_the_training_set_has_mean_zero_and_deviation_one_per_channel(name, tmp_path):
    described = datasets.prepare(data_settings(SPEC | {"use": name}), tmp_path)
    train, _ = datasets.open_data(described, data_settings({}), CPU)
    inputs = torch.cat([batch.inputs for batch in train.in_order()]).double()
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_each_channel_is_normalised_by_its_own_moments(tmp_path):
    images = random_images((60, 3, 4, 4)).float().mul(torch.tensor([1, 0.5, 0.1]).view(3, 1, 1)).to(torch.uint8)
    made = {"train": (images, torch.arange(60) % 3), "test": (images[:6], torch.arange(6) % 3)}
    described = datasets.prepare(data_settings(SPEC | {"use": "a.py:made"}), tmp_path, function=lambda: made)
    train, _ = datasets.open_data(described, data_settings({}), CPU)
    inputs = torch.cat([batch.inputs for batch in train.in_order()]).double()
    assert inputs.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert inputs.std((0, 2, 3), unbiased=False).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("name", ["flop", "crop", "crop0", "crop-1", "cropx", ""])
def test_an_unknown_augmentation_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"unknown augmentation '{name}'"):
        Images([0.5], [0.5], [name], CPU)


# ── shipped sets ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [("digits", [1, 8, 8], 1797), pytest.param("mnist5k", [1, 28, 28], 5000, marks=pytest.mark.slow)],
)
def test_shipped_sets_are_whole_disjoint_and_keep_the_classes_shares(name, shape, count, tmp_path):
    described = datasets.prepare(data_settings(SPEC | {"use": name}), tmp_path)
    assert described.shape == tuple(shape)
    assert described.classes == 10
    assert described.train + described.test == count
    parts = datasets.NAMES.load(name)()
    (train, train_labels), (test, test_labels) = parts["train"], parts["test"]
    per_class, test_per_class = (torch.bincount(torch.cat([train_labels, test_labels])), torch.bincount(test_labels))
    assert test_per_class.tolist() == [total // 5 for total in per_class.tolist()]  # every fifth of each class
    seen = {image.numpy().tobytes() for image in train}
    repeated = sum(image.numpy().tobytes() in seen for image in test)
    assert repeated == 0
    again = datasets.prepare(data_settings(SPEC | {"use": name}), tmp_path / "elsewhere")
    assert again.sha256 == described.sha256
    assert again.for_record() == described.for_record()


def test_a_subset_is_the_same_in_every_trial_and_part_of_the_whole(tmp_path):
    spec = SPEC | {"use": "digits", "subset": 100, "test_subset": 30}
    described = datasets.prepare(data_settings(spec), tmp_path)
    torch.rand(10)
    assert datasets.prepare(data_settings(spec), tmp_path / "b").sha256 == described.sha256
    assert (described.train, described.test) == (100, 30)
    train, test = datasets.open_data(described, data_settings({}), CPU)
    whole = {image.numpy().tobytes() for image in datasets.digits()["train"][0]}
    chosen = [image.numpy().tobytes() for image in train.store.inputs]
    assert set(chosen) <= whole
    assert len(set(chosen)) > 90  # not the same image again and again
    assert len(test) == 30
    assert len(train.store.targets.unique()) == 10


def test_a_subset_larger_than_the_set_is_the_set(tmp_path):
    assert datasets.prepare(data_settings(SPEC | {"use": "digits", "subset": 10**6}), tmp_path).train == len(
        datasets.digits()["train"][0]
    )


def test_drop_last_is_for_training_alone(tmp_path):
    described = datasets.prepare(data_settings(SPEC | {"use": "digits"}), tmp_path)
    train, test = datasets.open_data(described, data_settings({"drop_last": True}), CPU)
    assert (train.drop_last, test.drop_last) == (True, False)


# ── folders of images ─────────────────────────────────────────────────────────────────────────────────────────────


def write_images(folder: Path, classes: dict[str, int], size: tuple[int, int] = (9, 7), seed: int = 0) -> None:
    """`size` is (width, height)."""
    random = np.random.default_rng(seed)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture
def pets(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "data" / "pets"
    write_images(folder / "train", {"cat": 6, "dog": 5})
    write_images(folder / "test", {"cat": 2, "dog": 3}, seed=1)
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    return folder


def opened(spec: dict[str, Any], cache: Path, **more: Any) -> tuple[dict[str, Any], Data, Data]:
    described = datasets.prepare(data_settings(SPEC | {"use": "pets"} | spec), cache)
    return (described, *datasets.open_data(described, data_settings(more), CPU))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resident_and_streamed_sets_give_the_same_batches(workers, pets, tmp_path):
    resident, kept, kept_test = opened({}, tmp_path / "a", augment=["flip", "crop1"])
    streamed, read, read_test = opened({"resident": 0}, tmp_path / "b", augment=["flip", "crop1"], workers=workers)
    assert (resident.kind, streamed.kind) == ("resident", "streamed")
    assert isinstance(kept.store, Resident)
    assert isinstance(read.store, Streamed)
    for key in ("shape", "classes", "mean", "std", "train", "test", "source"):
        assert getattr(resident, key) == getattr(streamed, key)
    assert resident.shape == (3, 7, 9)
    batches = [torch.tensor([10, 0, 4]), torch.tensor([3, 3]), torch.tensor([7])]
    seeded = lambda number: torch.Generator().manual_seed(number)  # noqa: E731
    pairs = [(kept.load(batches, seeded), read.load(batches, seeded)), (kept_test.in_order(), read_test.in_order())]
    for one, other in pairs:
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)
            assert torch.equal(a.index, b.index)


def test_streaming_draws_nothing_from_the_models_own_random_stream(pets, tmp_path):
    _, data, _ = opened({"resident": 0}, tmp_path, workers=0)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    list(data.load([torch.arange(4)]))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_folder_is_read_pixel_by_pixel(pets, tmp_path):
    _, data, _ = opened({}, tmp_path)
    files = sorted((pets / "train").rglob("*.png"))
    for file, pixels, label in zip(files, data.store.inputs, data.store.targets, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))
        assert ["cat", "dog"][int(label)] == file.parent.name


def test_images_of_many_sizes_come_out_in_one(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "pets"
    write_images(folder / "train", {"cat": 2}, size=(8, 6))
    write_images(folder / "train", {"dog": 2}, size=(20, 11))
    write_images(folder / "val", {"cat": 1, "dog": 1}, size=(5, 5))
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    described, train, test = opened({}, tmp_path)
    assert described.shape == (3, 6, 8)
    assert train.store.inputs.shape[1:] == test.store.inputs.shape[1:] == (3, 6, 8)
    described, train, test = opened({"options": {"size": 4}}, tmp_path)
    assert described.shape == (3, 4, 4)
    assert train.store.inputs.shape[1:] == test.store.inputs.shape[1:] == (3, 4, 4)


def test_streamed_sets_of_two_sizes_do_not_share_their_description(pets, tmp_path):
    for side in (4, 6):
        described, data, _ = opened({"resident": 0, "options": {"size": side}}, tmp_path, workers=0)
        assert described.shape == (3, side, side)
        assert next(data.load([torch.arange(2)])).inputs.shape == (2, 3, side, side)


def test_a_streamed_sets_moments_are_of_all_its_classes(tmp_path, monkeypatch):
    for part, count in (("train", 280), ("test", 1)):
        for name, grey in (("dark", 0), ("light", 255)):
            folder = tmp_path / "data" / "pets" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (2, 2), (grey, grey, grey)).save(folder / "0.png")
            for number in range(1, count):
                (folder / f"{number}.png").symlink_to(folder / "0.png")
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    described, _, _ = opened({"resident": 0}, tmp_path)
    assert described.mean == pytest.approx([0.5] * 3, abs=0.01)
    assert described.std == pytest.approx([0.5] * 3, abs=0.01)


def test_a_class_that_the_test_set_lacks_leaves_the_labels_of_the_others(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "pets"
    write_images(folder / "train", {"ant": 2, "bee": 2, "cat": 2})
    write_images(folder / "test", {"ant": 1, "cat": 1})
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    described, _, test = opened({}, tmp_path)
    assert test.store.targets.tolist() == [0, 2]
    assert described.classes == 3
    write_images(folder / "test", {"wasp": 1})
    with pytest.raises(UsageError) as refused:
        opened({}, tmp_path)
    assert refused.value.problems[0].code == "E402"
    assert "wasp" in str(refused.value)


def test_a_grey_or_transparent_file_becomes_three_channels_and_keeps_its_centre(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "grey.png")
    pixels = read_image(tmp_path / "grey.png", (3, 4))
    assert pixels.shape == (3, 3, 4)
    assert all(torch.equal(channel.flatten(), torch.arange(12, dtype=torch.uint8)) for channel in pixels)
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png", (4, 4)).unique().tolist() == [200]


# ── torchvision's layout, users' functions, refusals ──────────────────────────────────────────────────────────────


def write_idx(file: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    file.write_bytes(header + array.tobytes())
    with gzip.open(f"{file}.gz", "wb") as packed:
        packed.write(header + array.tobytes())


@pytest.mark.parametrize("inside", ["mnist", "."])
def test_torchvisions_layout_is_found_under_the_sets_name_or_at_the_root(inside, tmp_path, monkeypatch):
    raw = tmp_path / "data" / inside / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 7)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    described = datasets.prepare(data_settings(SPEC | {"use": "mnist"}), tmp_path / "cache", download=False)
    assert (described.shape, described.train, described.test) == ((1, 28, 28), 20, 7)
    assert "as torchvision lays it out" in described.source


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
def test_a_set_that_cannot_be_had_is_refused_with_what_to_do(name, download, tmp_path):
    with pytest.raises(UsageError) as refused:
        datasets.prepare(data_settings(SPEC | {"use": name}), tmp_path, download=download)
    (problem,) = refused.value.problems
    assert problem.code == "E402"
    assert f"'{name}'" in problem.message
    assert ("download failed" in problem.message) == download
    assert f"/{name}/train/<class>/*.png" in problem.hint
    assert "ENERGYBENCH_DATA" in problem.hint


def test_an_unknown_set_is_refused_with_the_nearest_name(pets, tmp_path):
    for wrong, near in (("cifar", "cifar10"), ("digit", "digits"), ("pest", "pets")):
        with pytest.raises(UsageError) as refused:
            datasets.prepare(data_settings(SPEC | {"use": wrong}), tmp_path)
        assert refused.value.problems[0].code == "E402"
        assert f"did you mean '{near}'?" in refused.value.problems[0].hint


def test_a_users_function_makes_any_tree_of_tensors(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def pairs(count=4, scale=1.0):\n"
        "    def part(n):\n"
        "        return {'a': torch.arange(n) * scale, 'b': torch.zeros(n, 2)}, {'y': torch.arange(n)}\n"
        "    return {'train': part(count), 'test': part(3)}\n"
    )
    function = discovery.load_function("mine.py:pairs", tmp_path)
    spec = SPEC | {"use": "mine.py:pairs", "options": {"count": 10, "scale": 2.0}, "subset": 8}
    described = datasets.prepare(data_settings(spec), tmp_path / "cache", function=function)
    assert (described.train, described.test, described.mean, described.classes) == (8, 3, None, None)
    train, _ = datasets.open_data(described, data_settings({}), CPU)
    batch = next(train.load([torch.tensor([2, 5])]))
    assert torch.equal(batch.inputs["a"], 2.0 * batch.targets["y"])
    assert batch.inputs["b"].shape == (2, 2)


def test_a_users_function_is_refused_for_what_it_returns_and_takes(tmp_path):
    for function in (lambda: [1], lambda: {"train": (1, 2)}, lambda: None):
        with pytest.raises(UsageError, match="must return") as refused:
            datasets.prepare(data_settings(SPEC | {"use": "a.py:f"}), tmp_path, function=function)
        assert refused.value.problems[0].code == "E402"
    settings = data_settings({"use": "a.py:f", "options": {"size": 3}})
    with pytest.raises(UsageError, match="takes no parameter 'size'"):
        datasets.prepare(settings, tmp_path, function=lambda side=1: None)


def test_the_same_bytes_in_another_shape_or_type_are_another_set(tmp_path):
    flat = torch.arange(96, dtype=torch.int64)
    views = [flat.view(12, 8), flat.view(12, 2, 4), flat.view(12, 8).view(torch.float64)]
    for view in views:
        made = {"train": (view, torch.arange(12)), "test": (view[:2], torch.arange(2))}
        described = datasets.prepare(data_settings(SPEC | {"use": "a.py:f"}), tmp_path, function=lambda made=made: made)
        train, _ = datasets.open_data(described, data_settings({}), CPU)
        assert described.shape == tuple(view.shape[1:])
        assert train.store.inputs.shape == view.shape
        assert train.store.inputs.dtype == view.dtype
