"""Where a run goes, and that two never write into one folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from faults import fault

from energybench.common.errors import UsageError
from energybench.records.record import RunFile, write_json
from energybench.records.run_folder import Folder, abandoned, choose


def run_file(digest: str = "d", finished: bool = False) -> RunFile:
    return RunFile(
        suite="s", run="r", digest=digest, suite_path="s.toml", suite_text="", resolved={}, blocks=1, finished=finished
    )


def code_of(call: object) -> tuple[str, str]:
    with pytest.raises(UsageError) as caught:
        call()  # type: ignore[operator]
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 2
    assert problem.hint
    return problem.code, problem.where


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_new_run_gets_a_folder_of_its_own_below_reports() -> None:
    first = choose("s", "d", None, False).path
    assert first.parent == Path("reports/s")
    first.mkdir(parents=True)
    assert choose("s", "d", None, False).path != first


def test_the_newest_unfinished_run_of_the_same_settings_is_continued() -> None:
    for name, digest, finished in (("1", "d", False), ("2", "d", False), ("3", "d", True), ("4", "e", False)):
        write_json(Path("reports/s") / name / "run.json", run_file(digest, finished))
    assert choose("s", "d", None, False).path == Path("reports/s/2")
    assert choose("s", "other", None, False).path.name not in {"1", "2", "3", "4"}


def test_new_starts_anew_beside_an_unfinished_run() -> None:
    write_json(Path("reports/s/1/run.json"), run_file())
    assert choose("s", "d", None, True).path.name != "1"


@fault("cut run.json")
def test_a_broken_run_file_is_left_as_it_is() -> None:
    Path("reports/s/9").mkdir(parents=True)
    Path("reports/s/9/run.json").write_text('{"suite"')
    said: list[str] = []
    assert choose("s", "d", None, False, say=said.append).path.name != "9"
    assert ["reports/s/9/run.json" in text for text in said] == [True]
    assert Path("reports/s/9/run.json").read_text() == '{"suite"'


def test_out_with_a_finished_run_is_refused() -> None:
    write_json(Path("there/run.json"), run_file(finished=True))
    assert code_of(lambda: choose("s", "d", Path("there"), False)) == ("E602", "there")


def test_out_with_a_run_of_other_settings_is_refused() -> None:
    write_json(Path("there/run.json"), run_file("other"))
    assert code_of(lambda: choose("s", "d", Path("there"), False)) == ("E603", "there")


def test_out_with_an_unfinished_run_of_the_same_settings_is_continued() -> None:
    write_json(Path("there/run.json"), run_file())
    assert choose("s", "d", Path("there"), False).path == Path("there")


def test_the_tenth_run_of_a_second_comes_after_the_ninth() -> None:
    for number in ("2026-01-01-000000", "2026-01-01-000000-9", "2026-01-01-000000-10"):
        write_json(Path("reports/s") / number / "run.json", run_file())
    assert choose("s", "d", None, False).path.name == "2026-01-01-000000-10"


@fault("clock step")
def test_a_new_folder_is_named_after_all_others_when_the_clock_went_back() -> None:
    write_json(Path("reports/s/2999-12-31-235959/run.json"), run_file())
    names = []
    for _ in range(10):
        folder = choose("s", "d", None, True)
        write_json(folder.path / "run.json", run_file())
        names.append(folder.path.name)
        assert choose("s", "d", None, False).path == folder.path  # the newest is continued
    assert names == [f"2999-12-31-235959-{number}" for number in range(2, 12)]


@fault("no run.json")
def test_records_that_nobody_explains_are_not_added_to() -> None:
    write_json(Path("there/records/b0-i0-w.m.json"), {})
    assert code_of(lambda: choose("s", "d", Path("there"), False)) == ("E624", "there")


@fault("changed settings")
def test_who_came_between_choosing_and_locking_is_seen() -> None:
    folder = choose("s", "d", Path("there"), False)
    write_json(Path("there/run.json"), run_file("other"))
    with folder.lock():
        assert code_of(lambda: folder.admit("d", lambda _: "all")) == ("E603", "there")


@fault("changed method")
def test_the_newest_run_of_the_same_command_is_told_if_it_is_unfinished() -> None:
    assert abandoned("s", []) is None
    write_json(Path("reports/s/1/run.json"), run_file("old"))
    found = abandoned("s", [])
    assert found is not None
    assert found[0] == Path("reports/s/1")
    assert abandoned("s", ["quick"]) is None  # another command
    write_json(Path("reports/s/2/run.json"), run_file("newer", finished=True))
    assert abandoned("s", []) is None  # finished since


@fault("half a file")
def test_a_run_that_was_killed_before_it_said_what_it_is_leaves_no_folder() -> None:
    for name in ("stillborn", "held", "owned"):
        Path("reports/s", name).mkdir(parents=True)
        Path("reports/s", name, ".lock").touch()
    Path("reports/s/stillborn/.run.json.abc.part").touch()
    Path("reports/s/owned/notes.txt").touch()
    with Path("reports/s/held/.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        choose("s", "d", None, False)
    assert sorted(os.listdir("reports/s")) == ["held", "owned"]


def test_a_locked_folder_refuses_a_second_run() -> None:
    with Folder(Path("there")).lock():
        assert code_of(lambda: Folder(Path("there")).lock().__enter__()) == ("E604", "there")


def test_a_lock_is_gone_when_the_run_is_over_even_by_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), Folder(Path("there")).lock():
        raise KeyboardInterrupt
    assert os.listdir("there") == []
    with Folder(Path("there")).lock():
        pass


def test_the_lock_of_a_killed_run_does_not_hold() -> None:
    Path("there").mkdir()
    Path("there/.lock").touch()
    with Folder(Path("there")).lock():
        assert Path("there/.lock").exists()
    assert not Path("there/.lock").exists()


def test_a_lock_file_that_was_unlinked_meanwhile_is_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """We opened the file of a run that ends and unlinks it before we lock: a third run could lock a new one."""
    real = fcntl.flock

    def unlink_first(handle: int, flags: int) -> None:
        Path("there/.lock").unlink()
        Path("there/.lock").touch()
        real(handle, flags)

    monkeypatch.setattr(fcntl, "flock", unlink_first)
    assert code_of(lambda: Folder(Path("there")).lock().__enter__()) == ("E604", "there")


@fault("read-only folder")
def test_a_folder_that_cannot_be_written_is_told() -> None:
    Path("file").touch()
    assert code_of(lambda: Folder(Path("file/run")).lock().__enter__()) == ("E605", "file/run")


@fault("half a file")
def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else() -> None:
    keep = ["run.json", "notes.txt", "records/b0.json", "logs/full.log", "records/mine.part"]
    stray = [".run.json.x1.part", ".report.md.x4.part", "records/.b0.json.x2.part", "witness/.w.json.x3.part"]
    stray += ["figures/.w.svg.x5.part", "traces/.b0.csv.gz.x6.part", "state/.b0.npz.x7.part", "logs/empty.log"]
    for name in [*keep, *stray]:
        path = Path("there") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "logs/empty.log" else "x")
    write_json(Path("there/run.json"), run_file())
    folder = Folder(Path("there"))
    with folder.lock():
        assert Path("there/.run.json.x1.part").exists()  # it may be another run's until it is known
        folder.admit("d", lambda _: "all")
        left = {str(p.relative_to("there")) for p in Path("there").rglob("*") if p.is_file()}
    assert left == {*keep, ".lock"}


def test_more_blocks_than_a_finished_run_declared_are_refused_in_words_that_name_the_way() -> None:
    write_json(Path("there/run.json"), run_file("other", finished=True))
    for differs, told in (("trials.blocks 3 → 10", True), ("blocks 3 → 24", True), ("torch 2.11 → 2.12", False)):
        with pytest.raises(UsageError) as caught:
            choose("s", "d", Path("there"), False, differs=lambda _, text=differs: text)
        hint = caught.value.problems[0].hint
        assert ("energybench run s --new --until-decided" in hint) == told
        assert ("--add-blocks" in hint) == told
