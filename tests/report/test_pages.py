"""A run's files: written from its records, found again below a folder, links that lead to them, stale ones removed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner
from synthetic import Run
from traced import EVIL, example, traced

from energybench.cli.command_line import app
from energybench.records.reader import read_folder
from energybench.records.record import write_json
from energybench.report.pages import contents, rewrite, runs
from energybench.report.rows import GLOSSARY
from energybench.verdict.summary import summarise


def save(run: Run, folder: Path) -> Path:
    """The run's files, as `energybench run` leaves them; without pages."""
    meta, trials, counting_runs = traced(run, folder)
    write_json(folder / "run.json", meta)
    for number, trial in enumerate(trials):
        write_json(folder / "records" / f"{number:03}.json", trial)
    for number, counting_run in enumerate(counting_runs):
        write_json(folder / "witness" / f"{number}.json", counting_run)
    return folder


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["report", *arguments])
    return done.exit_code, done.output


def test_every_picture_of_the_page_lies_beside_it_and_every_file_is_in_the_page(tmp_path: Path) -> None:
    folder = save(example(), tmp_path)
    page = rewrite(folder).read_text(encoding="utf-8")
    linked = re.findall(r"!\[[^\n]*\]\((figures/[^)]+)\)", page)
    assert sorted(map(unquote, linked)) == sorted(f"figures/{file.name}" for file in folder.glob("figures/*"))
    assert len(linked) == len(set(linked)) >= 6


def test_the_first_picture_of_a_workload_comes_first_in_its_part_and_says_the_finding(tmp_path: Path) -> None:
    page = rewrite(save(example(), tmp_path)).read_text(encoding="utf-8")
    first = page.index("![Savings on cnn-digits. half: claimed 50.0 %")
    assert page.index("| Method |") < page.index("## cnn-digits") < first < page.index("### Where the saving went")


def test_writing_twice_changes_nothing_and_a_picture_no_longer_drawn_is_removed(tmp_path: Path) -> None:
    folder = save(example(), tmp_path)
    rewrite(folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    shutil.copy(next((folder / "figures").glob("ladder-*.svg")), folder / "figures" / "ladder-gone.svg")
    rewrite(folder)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_hostile_name_ends_no_picture_early_in_the_page(tmp_path: Path) -> None:
    run = example(workload=EVIL).method(f"{EVIL}](http://evil)", time=0.9)
    meta, trials, counting_runs = run.records()
    page = contents(summarise(meta, trials, counting_runs), trials, tmp_path)["report.md"]
    assert "<script" not in page
    targets = re.findall(r"(?<!\\)\]\(([^)]*)\)", page)
    assert targets
    assert all(re.fullmatch(r"(records|figures)/[^\s<>|`]*", target) for target in targets if target != GLOSSARY)


def test_what_was_not_drawn_is_listed_with_its_reason(tmp_path: Path) -> None:
    meta, trials, counting_runs = example().records()
    page = contents(summarise(meta, trials, counting_runs), trials, tmp_path)["report.md"]
    assert "| power | no power trace was kept | cnn-digits |" in page.split("## Pictures left out, and why")[1]


@pytest.mark.parametrize("extra", [[], ["--html"]])
def test_one_command_writes_every_report_below_a_folder(tmp_path: Path, extra: list[str]) -> None:
    folders = [save(example(blocks=blocks), tmp_path / "reports" / "s" / f"r{blocks}") for blocks in (1, 3)]
    assert runs(tmp_path) == folders
    code, said = call("--all", str(tmp_path), *extra)
    assert code == 0, said
    for folder in folders:
        run, trials, counting_runs = read_folder(folder)
        for path, text in contents(summarise(run, trials, counting_runs), trials, folder).items():
            assert (folder / path).read_text(encoding="utf-8") == text
        assert (folder / "report.html").exists() == bool(extra)


def test_write_and_html_name_what_they_wrote(tmp_path: Path) -> None:
    folder = save(example(), tmp_path)
    code, said = call(str(folder), "--write", "--html")
    assert code == 0
    assert f"{folder / 'report.md'} written" in said
    assert f"{folder / 'report.html'} written" in said
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_folder_without_a_run_below_it_is_told(tmp_path: Path) -> None:
    from energybench.common.errors import UsageError

    done = CliRunner().invoke(app, ["report", "--all", str(tmp_path)])
    assert isinstance(done.exception, UsageError)
