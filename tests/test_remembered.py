"""What is remembered of files is what reading them again would give, or it is read again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from energybench.cli import listing as lists
from energybench.common.remembered import Remembered
from energybench.train.discovery import cards
from energybench.workloads import catalogue


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "energybench" / "facts.json"


def old(path: Path, text: str, age_s: int = 60) -> Path:
    """A file that was changed that long ago."""
    path.write_text(text, encoding="utf-8")
    then = os.stat(path).st_mtime_ns - age_s * 10**9
    os.utime(path, ns=(then, then))
    return path


class Reader:
    def __init__(self, code: Path, file: Path) -> None:
        self.code, self.file, self.reads = code, file, 0

    def text(self) -> str:
        self.reads += 1
        return self.file.read_text(encoding="utf-8")

    def ask(self) -> Any:
        remembered = Remembered("facts", (str(self.code),))
        found = remembered.get("a", self.file, self.text)
        remembered.save()
        return found


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(old(tmp_path / "code.py", "x = 1"), old(tmp_path / "file.txt", "one"))


def test_a_file_is_read_once_until_it_or_its_reader_changes(reader: Reader) -> None:
    assert [reader.ask() for _ in range(3)] == ["one"] * 3
    assert reader.reads == 1
    old(reader.file, "two", age_s=50)
    assert [reader.ask() for _ in range(2)] == ["two"] * 2
    assert reader.reads == 2
    old(reader.code, "x = 22")
    assert reader.ask() == "two"
    assert reader.reads == 3


def test_a_file_that_has_just_been_written_is_read_again_each_time(reader: Reader) -> None:
    """It may be written again within the same tick, at the same size."""
    old(reader.file, "new", age_s=0)
    assert [reader.ask() for _ in range(2)] == ["new"] * 2
    assert reader.reads == 2


@pytest.mark.parametrize("kept", [b"", b"[", b"[]", b'{"code": 1}', b"\xff", b'{"facts": [3]}', b"[" * 99999])
def test_a_cache_that_is_no_cache_is_none(reader: Reader, own_cache: Path, kept: bytes) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_bytes(kept)
    assert reader.ask() == "one"
    assert reader.ask() == "one"
    assert reader.reads == 1


@pytest.mark.parametrize("fact", [None, 3, [], [1], [1, 2, 3], {"a": 1}])
def test_and_so_is_a_fact_of_another_form(reader: Reader, own_cache: Path, fact: Any) -> None:
    reader.ask()
    kept = json.loads(own_cache.read_text(encoding="utf-8"))
    own_cache.write_text(json.dumps(kept | {"facts": {"a": fact}}), encoding="utf-8")
    assert reader.ask() == "one"


def test_where_nothing_can_be_written_nothing_is_remembered(reader: Reader, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    assert [reader.ask() for _ in range(2)] == ["one"] * 2
    assert reader.reads == 2


def test_nothing_but_the_cache_is_left_behind(reader: Reader, own_cache: Path) -> None:
    reader.ask()
    assert [each.name for each in own_cache.parent.iterdir()] == ["facts.json"]


def test_the_lists_say_what_the_files_say_the_first_time_and_the_second(tmp_path: Path) -> None:
    first, second = lists.listing(tmp_path), lists.listing(tmp_path)
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(second))
    told = {
        entry["name"]: (entry["summary"], [list(each) for each in entry["parameters"]]) for entry in second["methods"]
    }
    assert told == {card.name: (card.summary, [list(each) for each in card.parameters]) for card in cards(tmp_path)}
    for kind, own in (("tasks", catalogue.tasks()), ("models", catalogue.models()), ("data", catalogue.data_sets())):
        said = {entry["name"]: entry["summary"] for entry in second[kind]}
        assert {each.name: each.summary for each in own}.items() <= said.items()
