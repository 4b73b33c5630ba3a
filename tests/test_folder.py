"""Where a run goes, and that two never write into one folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from energybench.errors import UsageError
from energybench.folder import Folder, choose
from energybench.record import RunFile, write_json


def run_file(digest: str = "d", finished: bool = False) -> RunFile:
    return RunFile(suite="s", run="r", digest=digest, suite_path="s.toml", suite_text="", resolved={}, blocks=1,
                   finished=finished)  # fmt: skip


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


def test_a_broken_run_file_is_left_as_it_is() -> None:
    Path("reports/s/9").mkdir(parents=True)
    Path("reports/s/9/run.json").write_text('{"suite"')
    assert choose("s", "d", None, False).path.name != "9"
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


def test_a_folder_that_cannot_be_written_is_told() -> None:
    Path("file").touch()
    assert code_of(lambda: Folder(Path("file/run")).lock().__enter__()) == ("E605", "file/run")


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else() -> None:
    keep = ["run.json", "notes.txt", "records/b0.json", "logs/full.log", "records/mine.part"]
    stray = [".run.json.x1.part", "records/.b0.json.x2.part", "witness/.w.json.x3.part", "logs/empty.log"]
    for name in [*keep, *stray]:
        path = Path("there") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "logs/empty.log" else "x")
    with Folder(Path("there")).lock():
        left = {str(p.relative_to("there")) for p in Path("there").rglob("*") if p.is_file()}
    assert left == {*keep, ".lock"}
