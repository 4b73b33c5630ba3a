"""All runs on one static site: links that lead somewhere, verdicts of the newest run, nothing of a stranger obeyed."""

from __future__ import annotations

import html
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from click.testing import CliRunner
from synthetic import GPU, Run
from test_inert_pages import NAMES, hostile

from energybench.cli.command_line import app
from energybench.common.errors import UsageError
from energybench.records.record import write_json
from energybench.report import pages, site

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runs_on_disk import put, written


class Links(HTMLParser):
    """Everything in a page that leads or asks somewhere, and every id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            if key in ("href", "src", "action", "xlink:href") and value is not None:
                self.targets.append(value)
            if key == "id" and value is not None:
                self.ids.append(value)


def run(folder: Path, day: int, suite: str = "a", blocks: int = 3, time: float = 0.5, **changes: Any) -> Path:
    of = Run(blocks=blocks, noise=0.01, sensors=(GPU,)).method("half", time=time, energy=time).method("b|b", time=0.9)
    return written(folder, of, day=day, suite=suite, finished=True, **changes)


def made(root: Path, out: Path) -> str:
    """The index of a site of every run below `root`."""
    return site.write(pages.runs(root), out, lambda text: None).read_text(encoding="utf-8")


def checked(out: Path) -> list[str]:
    """Every link of every page leads to a page or an anchor inside the site; which pages are reached."""
    files = {file.resolve(): Links(file.read_text(encoding="utf-8")) for file in out.rglob("*.html") if file.is_file()}
    reached = set()
    for file, page in files.items():
        assert len(page.ids) == len(set(page.ids)), file
        for target in page.targets:
            if target == "data:,":
                continue
            parts = urlsplit(target)
            assert not parts.scheme, target
            assert not parts.netloc, target
            other = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert other in files, f"{file}: {target}"
            if parts.fragment:
                assert parts.fragment in files[other].ids, f"{file}: {target}"
            reached.add(str(other.relative_to(out.resolve())))
    return sorted(reached)


def rows(index: str, table: str = "methods") -> list[str]:
    """The rows of a table as texts."""
    body = re.search(rf'id="{table}".*?<tbody>(.*?)</tbody>', index, re.S)
    assert body is not None
    cells = [re.sub(r"<[^>]*>", " ", row) for row in re.findall(r"<tr>(.*?)</tr>", body[1], re.S)]
    return [" ".join(html.unescape(cell).split()) for cell in cells]


def test_every_link_of_the_site_leads_to_something_in_it_and_every_run_is_reached(tmp_path: Path) -> None:
    for number, suite in enumerate(("a", "b", "a b/c")):
        run(tmp_path / "reports" / f"s{number}" / "r", number + 1, suite=suite)
    made(tmp_path / "reports", tmp_path / "site")
    reached = checked(tmp_path / "site")
    assert len(reached) == 4
    assert "index.html" in reached


def test_the_index_says_suite_workload_method_and_device_with_the_verdict_of_the_newest_run(tmp_path: Path) -> None:
    run(tmp_path / "r/1", 1, time=0.9)
    run(tmp_path / "r/2", 2, time=0.5)
    other = {"cpu": "Other card", "cores": 4}
    run(tmp_path / "r/3", 3, suite="b", time=1.4, machine=other)
    found = [row for row in rows(made(tmp_path / "r", tmp_path / "site")) if row.startswith("half")]
    assert len(found) == 2
    assert "saves" in found[0]
    assert re.search(r"(49|50|51)\.\d %", found[0])  # of the newer one
    assert " a " in found[0]
    assert "costs more" in found[1]
    assert "Other card, 4 cores" in found[1]


def test_a_smoke_test_hides_no_result_and_stands_alone_with_its_mark(tmp_path: Path) -> None:
    run(tmp_path / "r/1", 1, time=0.5)
    run(tmp_path / "r/2", 2, time=1.5, stamp=["quick"])
    run(tmp_path / "r/3", 3, suite="only smoke", stamp=["quick"])
    found = [row for row in rows(made(tmp_path / "r", tmp_path / "site")) if row.startswith("half")]
    assert ["quick" in row for row in found] == [False, True]
    assert "saves" in found[0]
    assert len(rows((tmp_path / "site/index.html").read_text("utf-8"), "runs")) == 3  # all of them


def test_one_run_in_two_folders_is_one_run(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run(tmp_path / "r/1", 1), tmp_path / "r/copy")
    index = made(tmp_path / "r", tmp_path / "site")
    assert len(rows(index)) == 2
    assert len(list((tmp_path / "site").rglob("*.html"))) == 2


def test_the_same_records_give_the_same_site_and_a_run_that_is_gone_leaves_it(tmp_path: Path) -> None:
    import shutil

    run(tmp_path / "r/1", 1)
    gone = run(tmp_path / "r/2", 2, suite="b")
    made(tmp_path / "r", tmp_path / "site")
    before = {file: file.read_bytes() for file in (tmp_path / "site").rglob("*") if file.is_file()}
    (tmp_path / "site" / "runs" / "b" / "mine.html").write_text("<p>of another hand")
    made(tmp_path / "r", tmp_path / "site")
    assert all(file.read_bytes() == content for file, content in before.items())
    shutil.rmtree(gone)
    made(tmp_path / "r", tmp_path / "site")
    assert [file.name for file in (tmp_path / "site").rglob("*.html") if "b" in file.parts] == ["mine.html"]


def test_a_run_that_cannot_be_read_is_left_out_with_its_reason_and_the_others_stand(tmp_path: Path) -> None:
    run(tmp_path / "r/1", 1)
    (tmp_path / "r/2").mkdir()
    (tmp_path / "r/2/run.json").write_text('{"suite"')
    said: list[str] = []
    site.write(pages.runs(tmp_path / "r"), tmp_path / "site", said.append)
    assert any("left out" in text for text in said)
    assert str(tmp_path / "r/2") in rows((tmp_path / "site/index.html").read_text("utf-8"), "left-out-table")[0]
    (tmp_path / "r/1/run.json").write_text("")
    with pytest.raises(UsageError):
        site.write(pages.runs(tmp_path / "r"), tmp_path / "other", said.append)


@pytest.mark.parametrize(
    "name", [*NAMES[1:10:2], NAMES[-1], "\0\r", "../../up", "/etc/x", "index.html", "_under", "a" * 300], ids=ascii
)
def test_a_hostile_name_is_text_on_the_index_and_leads_out_of_no_folder(name: str, tmp_path: Path) -> None:
    meta, trials, counting_runs = hostile(name)
    write_json(tmp_path / "r" / "1" / "run.json", meta)
    for number, record in enumerate((*trials, *counting_runs)):
        kind = "records" if number < len(trials) else "witness"
        write_json(tmp_path / "r" / "1" / kind / f"{number}.json", record)
    index = made(tmp_path / "r", tmp_path / "site")
    parsed = Links(index)
    assert not parsed.tags & {"img", "b", "iframe", "object", "h6"}
    assert index.count("<script") == 1
    assert len(checked(tmp_path / "site")) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r", "site"]
    assert not [c for c in index if not c.isprintable() and c not in "\n\u00a0"]


def test_two_names_that_make_one_file_name_are_two_pages(tmp_path: Path) -> None:
    for number, name in enumerate(("A", "a", "_a")):
        meta, trials, counting_runs = Run().method("half").records()
        call = meta.invocations[0]
        put(
            tmp_path / "r" / str(number),
            meta.model_copy(update={"suite": name, "digest": name, "invocations": [call]}),
            [t.model_copy(update={"digest": name}) for t in trials],
            counting_runs,
        )
    made(tmp_path / "r", tmp_path / "site")
    assert (
        len({file.relative_to(tmp_path).as_posix().casefold() for file in (tmp_path / "site/runs").rglob("*.html")})
        == 3
    )
    assert len(checked(tmp_path / "site")) == 4


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["report", "--all", *arguments])


def test_the_command_writes_a_site_of_all_runs_below_reports_or_below_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "reports/a/1", 1)
    monkeypatch.chdir(tmp_path)
    assert call("--html", "site").exit_code == 0
    assert call("reports/a", "--html", "other").exit_code == 0
    assert (tmp_path / "site/index.html").read_bytes() == (tmp_path / "other/index.html").read_bytes()
    assert not list((tmp_path / "reports").rglob("*.html"))  # each page beside its run is another wish


def test_it_writes_over_nothing_that_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "reports/a/1", 1)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    (home / "index.html").write_text("<h1>mine</h1>")
    for out, code in (("home", "E632"), ("reports", "E609"), (".", "E609")):
        done = call("--html", out)
        assert isinstance(done.exception, UsageError)
        assert done.exception.problems[0].code == code
    assert (home / "index.html").read_text() == "<h1>mine</h1>"
    assert not (tmp_path / "reports/index.html").exists()


def test_a_link_out_of_the_site_is_not_followed(tmp_path: Path) -> None:
    run(tmp_path / "r/1", 1)
    (tmp_path / "far").mkdir()
    for link in ("runs", "runs/a"):
        out = tmp_path / f"site-{link.count('/')}"
        (out / link).parent.mkdir(parents=True)
        (out / link).symlink_to(tmp_path / "far")
        with pytest.raises(UsageError):
            made(tmp_path / "r", out)
    assert not list((tmp_path / "far").iterdir())


def test_a_run_on_two_devices_has_a_page_of_each(tmp_path: Path) -> None:
    folder = run(tmp_path / "r/1", 1)
    for file in sorted((folder / "records").glob("b1-*.json")):
        from energybench.records.reader import read
        from energybench.records.record import Trial

        trial = read(file, Trial)
        write_json(file, trial.model_copy(update={"device": "cuda:0"}))
    made(tmp_path / "r", tmp_path / "site")
    assert len(list((tmp_path / "site/runs").rglob("*.html"))) == 2
    checked(tmp_path / "site")
