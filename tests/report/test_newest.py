"""`energybench report` without a folder, or with a suite's name: which run it means, and what it says where none is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from synthetic import Run

from energybench.cli.command_line import app
from energybench.common.errors import UsageError
from energybench.report import newest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runs_on_disk import written


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, day: int, suite: str = "a", **changes: Any) -> Path:
    """A run's folder below reports/, begun on that day."""
    return written(Path("reports") / suite / name, Run().method("half", time=0.5), day=day, suite=suite, **changes)


def report(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["report", *arguments])


def problem(*arguments: str) -> Any:
    done = report(*arguments)
    assert isinstance(done.exception, UsageError), done.output
    return done.exception.problems[0]


def test_without_a_folder_it_is_the_run_that_was_begun_last_whatever_its_suite_or_name() -> None:
    run("2026-01-09", 1, suite="z")
    last = run("2026-01-01", 3, suite="b")
    run("zzz", 2)
    done = report()
    assert done.exit_code == 0
    assert f"report of {last}" in done.stderr
    assert "b · run 2026-01-01" in done.stdout


def test_a_run_that_was_continued_is_newer_than_one_that_began_after_it() -> None:
    from energybench.records.reader import read_folder
    from energybench.records.record import write_json

    old, _ = run("old", 1), run("newer", 2)
    meta = read_folder(old)[0]
    again = meta.invocations[0].model_copy(update={"number": 1, "started_at": "2026-01-03T00:00:00+00:00"})
    write_json(old / "run.json", meta.model_copy(update={"invocations": [*meta.invocations, again]}))
    assert newest.folders([], lambda text: None) == [old]


def test_moments_are_compared_as_moments_and_not_as_texts() -> None:
    run("east", 1, invocations=[call("2026-01-02T01:00:00+09:00")])  # 16 h on the first, universal time
    west = run("west", 1, invocations=[call("2026-01-01T23:00:00-03:00")])  # 2 h on the second
    assert newest.folders([], lambda text: None) == [west]


def call(started_at: str) -> Any:
    from energybench.records.record import Invocation

    return Invocation(number=0, argv=["run", "a"], started_at=started_at, outcome="done")


def test_a_suites_name_or_its_file_is_its_newest_run() -> None:
    run("1", 1)
    second = run("2", 2)
    run("3", 3, suite="b")
    Path("mine.toml").write_text('schema = 1\nsuite = "a"\n')
    for name in ("a", "mine.toml", "reports/a", "./reports/a/"):
        assert newest.folders([name], lambda text: None) == [second], name


def test_a_runs_folder_is_itself_even_where_a_suite_has_its_name() -> None:
    run("1", 1, suite="here")
    own = written(Path("here"), Run().method("half"), day=1)
    assert newest.folders(["here"], lambda text: pytest.fail(text)) == [own]


def test_a_folder_of_ones_own_that_has_a_suites_name_does_not_hide_its_runs() -> None:
    only = run("1", 1, suite="pets")
    Path("pets").mkdir()
    assert newest.folders(["pets"], lambda text: None) == [only]


def test_a_run_that_cannot_be_read_is_said_and_the_next_one_is_taken() -> None:
    good = run("1", 1)
    for name, content in (("2", '{"suite"'), ("3", "[]"), ("4", '{"invocations": []}'), ("5", '{"invocations": [{}]}')):
        Path(f"reports/a/{name}").mkdir()
        Path(f"reports/a/{name}/run.json").write_text(content)
    said: list[str] = []
    assert newest.folders([], said.append) == [good]
    assert len(said) == 5
    assert all(f"reports/a/{name}: its run.json cannot be read" in " ".join(said) for name in "2345")


def test_where_there_is_no_run_it_says_what_to_type() -> None:
    assert problem().code == "E601"
    assert "energybench run" in problem().hint
    run("1", 1, suite="quick")
    assert problem("quik").hint == "did you mean 'quick'?"
    Path("notes.txt").write_text("")
    Path("empty").mkdir()
    assert problem("notes.txt").code == "E601"
    assert problem("empty").code == "E601"


@pytest.mark.parametrize("name", [".", "/nowhere", "", "a/../b", "x" * 5000, "broken.toml", "../reports"])
def test_an_odd_name_is_an_error_with_a_code_and_never_a_trace(name: str) -> None:
    Path("broken.toml").write_text("suite = [")
    done = report(name)
    assert done.exit_code != 0
    assert isinstance(done.exception, UsageError), done.exception


def test_html_and_write_and_json_are_of_the_newest_too() -> None:
    last = run("1", 1)
    assert report("--html").exit_code == 0
    assert (last / "report.html").exists()
    assert report("a", "--write").exit_code == 0
    assert (last / "report.md").exists()
    assert report("--json").stdout.startswith("{")


def test_html_before_the_folder_is_of_that_folder_and_never_a_place_to_write() -> None:
    last = run("1", 1)
    assert report("--html", "a").exit_code == 0
    assert (last / "report.html").exists()
    assert report("a", "--html", "site").exit_code == 2
    assert not Path("site").exists()


def test_what_run_tells_to_type_for_more_means_that_run() -> None:
    by_default, elsewhere = run("1", 1, suite="my suite"), written(Path("out/1"), Run().method("half"))
    for folder in (by_default, elsewhere):
        for command in newest.commands(folder):
            import shlex

            program, verb, *words = shlex.split(command)
            assert (program, verb) == ("energybench", "report")
            assert newest.folders([w for w in words if not w.startswith("-")], lambda text: None) == [folder]
            assert report(*words).exit_code == 0
    assert newest.commands(by_default) == ["energybench report 'my suite' -v", "energybench report 'my suite' --html"]


def test_a_run_that_lies_elsewhere_may_be_linked_below_reports(tmp_path: Path) -> None:
    run("1", 1)
    elsewhere = written(tmp_path / "far" / "2", Run().method("half"), day=9)
    os.symlink(elsewhere, "reports/a/linked")
    assert newest.folders([], lambda text: None) == [Path("reports/a/linked")]
