"""A folder that is held by its handle: no name, link or rename leads out of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.common.errors import CannotWrite, UsageError
from energybench.common.held_folder import HeldFolder

Act = Callable[[HeldFolder, str], object]
WRITING: dict[str, Act] = {
    "write": lambda folder, name: folder.write_bytes(name, b"x"),
    "append": lambda folder, name: os.close(folder.append(name)),
    "create": lambda folder, name: os.close(folder.create(name)),
}
READING: dict[str, Act] = {"read": lambda folder, name: folder.read_bytes(name, 100)}
REMOVING: dict[str, Act] = {"remove": lambda folder, name: folder.remove(name)}
EVERY = {**WRITING, **READING, **REMOVING}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "theirs").write_text("theirs")
    return place


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldFolder]:
    (tmp_path / "run" / "records").mkdir(parents=True)
    (tmp_path / "run" / "records" / "ours").write_text("ours")
    with HeldFolder(tmp_path / "run") as folder:
        yield folder


def untouched(outside: Path) -> bool:
    return {file.name: file.read_text() for file in outside.iterdir()} == {"theirs": "theirs"}


@pytest.mark.parametrize("act", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("linked", ["linked", "records/linked", "records/deep/linked"])
def test_no_folder_that_is_a_link_is_entered(act: Act, linked: str, held: HeldFolder, outside: Path) -> None:
    place = held.path / linked
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside)
    with pytest.raises(UsageError, match="E612"):
        act(held, f"{linked}/theirs")
    assert untouched(outside)


@pytest.mark.parametrize("act", [*READING.values(), WRITING["append"]], ids=["read", "append"])
def test_no_file_that_is_a_link_is_opened(act: Act, held: HeldFolder, outside: Path) -> None:
    for name, target in (("records/x", outside / "theirs"), ("records/new", outside / "new"), ("records/loop", "loop")):
        (held.path / name).symlink_to(target)
        with pytest.raises(UsageError, match="E612"):
            act(held, name)
    assert untouched(outside)


@pytest.mark.parametrize(
    "act", [WRITING["write"], WRITING["create"], REMOVING["remove"]], ids=["write", "create", "rm"]
)
def test_a_name_that_is_a_link_loses_the_link_and_what_it_led_to_stays(
    act: Act, held: HeldFolder, outside: Path
) -> None:
    (held.path / "records/x").symlink_to(outside / "theirs")
    act(held, "records/x")
    assert untouched(outside)
    assert not (held.path / "records/x").is_symlink()


def test_a_second_name_of_a_file_elsewhere_is_written_anew_and_never_appended_to(
    held: HeldFolder, outside: Path
) -> None:
    for name in ("records/w", "records/c", "records/a"):
        os.link(outside / "theirs", held.path / name)
    held.write_bytes("records/w", b"x")
    os.close(held.create("records/c"))
    with pytest.raises(CannotWrite, match="hard link"):
        held.append("records/a")
    assert untouched(outside)


def test_what_is_appended_to_a_file_of_its_own_stands_after_what_was_there(held: HeldFolder) -> None:
    for text in (b"one ", b"two"):
        handle = held.append("logs/a.log")
        os.write(handle, text)
        os.close(handle)
    assert held.read_bytes("logs/a.log", 100) == b"one two"


@pytest.mark.parametrize("act", EVERY.values(), ids=EVERY)
@given(parts=st.lists(st.sampled_from(["..", ".", "", "records", "ours", "\0", "\ud800"]), min_size=1, max_size=4))
def test_no_name_leads_out_of_it(act: Act, parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("place")
    (place / "run" / "records").mkdir(parents=True)
    (place / "ours").write_text("outside")
    with HeldFolder(place / "run") as folder:
        if all(part in ("records", "ours") for part in parts):
            return  # a sound name
        with pytest.raises(UsageError, match="E612"):
            act(folder, "/".join(parts))
    assert sorted(path.name for path in place.rglob("*")) == ["ours", "records", "run"]
    assert (place / "ours").read_text() == "outside"


def test_a_folder_that_was_renamed_is_written_where_it_is_and_another_in_its_place_is_not(
    held: HeldFolder, tmp_path: Path
) -> None:
    assert held.lost() is None
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()
    held.write_bytes("records/new", b"x")
    assert (tmp_path / "moved/records/new").read_bytes() == b"x"
    assert list((tmp_path / "run").iterdir()) == []
    problem = held.lost()
    assert problem is not None
    assert problem.code == "E626"
    assert str(tmp_path / "moved") in problem.message
    assert held.read_bytes("records/ours", 100) == b"ours"


@pytest.mark.parametrize("replaced", [False, True])
def test_what_is_typed_to_have_it_back_puts_it_beside_nothing(replaced: bool, held: HeldFolder, tmp_path: Path) -> None:
    """`mv moved run` would put it into a folder that stands there."""
    (tmp_path / "run").rename(tmp_path / "moved")
    if replaced:
        (tmp_path / "run").mkdir()
    problem = held.lost()
    assert problem is not None
    assert ("move that one away" in problem.hint) == replaced
    assert f"mv {tmp_path / 'moved'} {tmp_path / 'run'}" in problem.hint


def test_a_folder_that_was_deleted_takes_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with HeldFolder(tmp_path / "run") as folder:
        (tmp_path / "run").rmdir()
        assert folder.is_deleted()
        with pytest.raises(CannotWrite, match="deleted or moved"):
            folder.write_bytes("records/new", b"x")
    assert not (tmp_path / "run").exists()


def test_another_process_finds_the_folder_by_its_identity_and_no_other_one(held: HeldFolder, tmp_path: Path) -> None:
    identity = held.identity
    HeldFolder.reopen(identity).close()
    (tmp_path / "run").rename(tmp_path / "moved")
    for again in (False, True):
        if again:
            (tmp_path / "run").mkdir()
        with pytest.raises(CannotWrite, match="E626"):
            HeldFolder.reopen(identity)


def test_a_pipe_is_neither_waited_for_nor_appended_to(held: HeldFolder) -> None:
    os.mkfifo(held.path / "records" / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        held.read_bytes("records/pipe", 100)
    with pytest.raises(CannotWrite):
        held.append("records/pipe")
