"""One's own images: a path in a suite, two parts or a split of ours, and what is said of any other folder."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import CPU, data_settings

from energybench.common.errors import Problem, UsageError
from energybench.common.names import known_as
from energybench.suite.tables import DataTable
from energybench.workloads import datasets, models, tasks
from energybench.workloads.datasets import image_folders
from energybench.workloads.datasets.image_folders import ImageParts, read_parts


def write_images(folder: Path, classes: dict[str, int], suffix: str = ".png") -> None:
    for shade, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 3), (40 * shade, number % 250, 0)).save(folder / name / f"{number}{suffix}")


def refusal(folder: Path, split: float | None = None) -> Problem:
    with pytest.raises(UsageError) as refused:
        read_parts(folder, f"./{folder.name}", split)
    (problem,) = refused.value.problems
    assert problem.code == "E402"
    return problem


def names(parts: ImageParts, folder: Path) -> tuple[set[str], set[str]]:
    train, test = ({os.path.relpath(file, folder) for file in part.files} for part in (parts.train, parts.test))
    return train, test


def prepared(use: str, base: Path, **keys: Any) -> Any:
    settings = data_settings({"use": use, "resident": 10**9} | keys)
    return datasets.prepare(settings, base / "cache", base=base, download=False)


# ── two parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("Train", "VAL"), ("train", "validation")])
def test_a_folder_with_two_parts_is_read_from_the_suites_own_folder(parts: tuple[str, str], tmp_path: Path) -> None:
    for part, count in zip(parts, (5, 2), strict=True):
        write_images(tmp_path / "pets" / part, {"cat": count, "dog": count + 1})
    described = prepared("./pets", tmp_path)
    assert (described.train, described.test, described.classes) == (11, 5, 2)
    assert described.source == "./pets, an image folder"
    train, test = datasets.open_data(described, data_settings({}), CPU)
    assert train.store.targets.tolist() == [0] * 5 + [1] * 6
    assert test.store.targets.tolist() == [0] * 2 + [1] * 3


@pytest.mark.parametrize("form", ["./pets", "pets/", "./a/../pets", "{here}/pets", "~/pets"])
def test_a_path_may_be_relative_absolute_or_of_ones_home(form: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path / "pets", {"cat": 4, "dog": 4})
    (tmp_path / "a").mkdir()
    assert prepared(form.format(here=tmp_path), tmp_path, split=0.25).train == 6


# ── a split of ours ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flat") / "pets"
    write_images(folder, {"ant": 2, "bee": 7, "cat": 40})
    return folder


@given(share=st.floats(0.001, 0.999), seed=st.integers(0, 2**63 - 1))
def test_a_split_keeps_each_classs_share_and_takes_every_image_once(flat: Path, share: float, seed: int) -> None:
    parts = read_parts(flat, "./pets", share, seed)
    assert parts.classes == ("ant", "bee", "cat")
    train, test = Counter(parts.train.labels), Counter(parts.test.labels)
    for label, total in enumerate((2, 7, 40)):
        assert train[label] + test[label] == total
        assert 1 <= test[label] < total
        assert abs(test[label] - share * total) <= 1  # as near as whole images come, and at least one
    everything = {os.path.relpath(file, flat) for file in map(str, flat.rglob("*.png"))}
    trained, tested = names(parts, flat)
    assert trained | tested == everything
    assert not trained & tested
    for part in (parts.train, parts.test):
        assert [Path(file).parent.name for file in part.files] == [parts.classes[label] for label in part.labels]


def test_a_split_is_of_seed_and_names_alone(flat: Path, tmp_path: Path) -> None:
    """The rule, written out again: of each class the first by SHA-256 of seed and name."""
    tested = names(read_parts(flat, "./pets", 0.2, 5), flat)[1]
    for name, count in (("ant", 1), ("bee", 1), ("cat", 8)):
        files = [f"{name}/{path.name}" for path in (flat / name).iterdir()]
        files.sort(key=lambda file: hashlib.sha256(f"5/{file}".encode()).hexdigest())
        assert {file for file in tested if file.startswith(name)} == set(files[:count])
    files = [path.relative_to(flat) for path in flat.rglob("*.png")]
    random.Random(1).shuffle(files)  # another machine made them in another order
    for file in files:
        (tmp_path / "elsewhere" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere" / file).write_bytes((flat / file).read_bytes())
    again = read_parts(tmp_path / "elsewhere", "x", 0.2, 5)
    assert [os.path.relpath(file, tmp_path / "elsewhere") for file in again.test.files] == [
        os.path.relpath(file, flat) for file in read_parts(flat, "./pets", 0.2, 5).test.files
    ]
    assert names(read_parts(flat, "./pets", 0.2, 6), flat)[1] != tested


def test_a_split_is_recorded_and_another_is_another_data_set(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", {"cat": 10, "dog": 20})
    one, other = (prepared("./pets", tmp_path, split=0.2, split_seed=seed) for seed in (0, 1))
    assert one.source == "./pets, an image folder, 20 % of each class for testing, split by seed 0"
    assert (one.train, one.test) == (24, 6)
    assert one.sha256 == prepared("./pets", tmp_path, split=0.2).sha256 != other.sha256
    assert prepared("./pets", tmp_path, split=0.2, resident=0, workers=0).kind == "streamed"


def test_settings_name_a_split_only_where_there_is_one() -> None:
    plain = DataTable(use="digits", batch=8).model_dump(mode="json")
    assert not {"split", "split_seed"} & set(plain)
    split = DataTable(use="./pets", batch=8, split=0.2).model_dump(mode="json")
    assert (split["split"], split["split_seed"]) == (0.2, 0)


def test_training_images_alone_may_be_split_and_a_test_part_may_not(tmp_path: Path) -> None:
    write_images(tmp_path / "pets" / "train", {"cat": 4, "dog": 4})
    assert "has train/ and no test/ or val/" in refusal(tmp_path / "pets").message
    assert names(read_parts(tmp_path / "pets", "./pets", 0.5), tmp_path / "pets")[1]
    write_images(tmp_path / "pets" / "test", {"cat": 1, "dog": 1})
    assert "has a test/ of its own" in refusal(tmp_path / "pets", 0.5).message


def test_what_has_parts_of_its_own_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="test part of its own"):
        prepared("digits", tmp_path, split=0.2)


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", {"cat": 1, "dog": 4})
    assert refusal(tmp_path / "pets", 0.2).message.startswith("pets/cat/ has one image")


# ── what is said of any other folder ──────────────────────────────────────────────────────────────────────────────────


def test_class_folders_without_a_split_are_told_as_they_were_found(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", {"cat": 2, "dog": 2})
    problem = refusal(tmp_path / "pets")
    assert problem.message == "pets/ has cat, dog and no train/"
    assert problem.hint.startswith("add split = 0.2")


def test_an_unpacked_archive_is_looked_into(tmp_path: Path) -> None:
    write_images(tmp_path / "archive" / "PetImages", {"cat": 2, "dog": 2})
    for split in (None, 0.2):
        assert refusal(tmp_path / "archive", split).hint.endswith('use = "./archive/PetImages"')


@pytest.mark.parametrize("split", [None, 0.2])
def test_a_folder_without_classes_says_what_it_has(split: float | None, tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    assert refusal(folder, split).message == "pets/ is empty"
    (folder / "notes.txt").write_text("cats")
    assert refusal(folder, split).message == "pets/ has 1 file, no image and no folder"
    for number in range(2):
        Image.new("RGB", (2, 2)).save(folder / f"{number}.JPG")
    assert refusal(folder, split).message == "pets/ has 2 images and no folder of a class"


def test_an_empty_class_is_named_with_what_it_holds(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", {"cat": 2, "dog": 2, "emu": 0})
    assert "pets/emu/ is empty" in refusal(tmp_path / "pets", 0.5).message
    (tmp_path / "pets" / "emu" / "a.HEIC").write_text("")
    assert "pets/emu/ has only .heic" in refusal(tmp_path / "pets", 0.5).message


def test_one_class_is_no_classification(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", {"cat": 4})
    assert "pets/ has one class, 'cat'" in refusal(tmp_path / "pets", 0.5).message
    for part in ("train", "test"):
        write_images(tmp_path / "two" / part, {"cat": 2})
    assert "one class, 'cat'" in refusal(tmp_path / "two").message


def test_only_images_count_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", {"cat": 3, "dog": 3}, ".JPG")
    write_images(tmp_path / "pets" / "dog", {"puppies": 2}, ".PNG")
    (tmp_path / "pets" / "cat" / "Thumbs.db").write_text("")
    (tmp_path / "pets" / "cat" / "._0.JPG").write_text("")  # what macOS leaves beside each file
    for hidden in (".ipynb_checkpoints", "__MACOSX", ".git"):
        (tmp_path / "pets" / hidden).mkdir()
    parts = read_parts(tmp_path / "pets", "./pets", 0.34)
    assert parts.classes == ("cat", "dog")
    assert len(parts.train.files) + len(parts.test.files) == 8


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    write_images(tmp_path / "store", {"c": 3, "d": 3})
    (tmp_path / "pets" / "dog").mkdir(parents=True)
    (tmp_path / "pets" / "cat").symlink_to(tmp_path / "store" / "c")
    for number in range(3):
        (tmp_path / "pets" / "dog" / f"{number}.png").symlink_to(tmp_path / "store" / "d" / f"{number}.png")
    (tmp_path / "pets" / "dog" / "again").symlink_to(tmp_path / "pets" / "dog")
    assert prepared("./pets", tmp_path, split=0.34).train == 4


def test_images_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", {"cat": 3, "dog": 3})
    (tmp_path / "pets" / "cat" / "text.jpg").write_text("no image")
    (tmp_path / "pets" / "dog" / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pets" / "dog" / "pipe.png")
    with pytest.raises(UsageError) as refused:
        prepared("./pets", tmp_path, split=0.34)
    message = refused.value.problems[0].message
    assert message.startswith("3 images of 9 cannot be read: ")
    for told in ("cat/text.jpg (no image)", "dog/gone.png (a link that leads nowhere)", "dog/pipe.png (no regular"):
        assert told in message


def test_an_image_that_is_cut_off_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", {"cat": 3, "dog": 3})
    large = tmp_path / "pets" / "cat" / "large.png"
    Image.effect_noise((64, 64), 50).save(large)
    large.write_bytes(large.read_bytes()[:300])
    with pytest.raises(UsageError, match=r"cat/large\.png \(.*truncated"):
        prepared("./pets", tmp_path, split=0.34)


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_is_never_said_to_be_meant_by_its_own_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    write_images(tmp_path / "data" / "pets", {"cat": 4, "dog": 4})
    with pytest.raises(UsageError) as refused:
        prepared("pets", tmp_path)
    assert "pets/ has cat, dog and no train/" in str(refused.value)
    assert "did you mean" not in str(refused.value)
    assert prepared("PETS", tmp_path, split=0.25).test == 2
    write_images(tmp_path / "birds", {"owl": 4, "tit": 4})
    with pytest.raises(UsageError) as refused:
        prepared("birds", tmp_path)
    assert refused.value.problems[0].hint.endswith('use = "./birds"')


def test_a_path_that_is_wrong_says_where_was_looked_and_what_is_near(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets.zip").write_text("")
    monkeypatch.chdir(tmp_path / "pets")
    (tmp_path / "pets" / "inner").mkdir()
    told = {"./pest": "did you mean 'pets'?", "./pets.zip": "unpack it", "./inner": f'use = "{tmp_path}/pets/inner"'}
    for use, hint in told.items():
        with pytest.raises(UsageError) as refused:
            prepared(use, tmp_path)
        assert hint in refused.value.problems[0].hint


@given(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), st.lists(st.text(max_size=3)))
def test_a_name_is_meant_whatever_its_capitals_and_itself_before_others(name: str, others: list[str]) -> None:
    assert known_as(name, [*others, name]) == name
    if all(other.casefold() != name.casefold() for other in others):
        assert known_as(name.swapcase(), [*others, name]) == name
        assert known_as(name, others) == name


def test_data_models_and_tasks_are_found_whatever_their_capitals(tmp_path: Path) -> None:
    assert prepared("Digits", tmp_path).sha256 == prepared("digits", tmp_path).sha256
    assert datasets.prepare(data_settings({"use": "CIFAR10"}), tmp_path, download=False, known=True).classes == 10
    for use in ("CNN", "ResNet18"):
        assert models.build(use, (3, 8, 8), 2, {}).training
    assert type(tasks.task_named("Classification", tmp_path)) is type(tasks.task_named("classification", tmp_path))


def test_every_kind_that_is_read_is_one_that_torchvision_reads_too() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(image_folders.SUFFIXES) == set(IMG_EXTENSIONS)
