"""The results of a run in Python are the report's: the same verdicts in a frame, a notebook, a terminal."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas
import pytest
from rich.console import Console

import energybench
from energybench import EnergybenchError, Results
from energybench.records.record import Flag, write_json
from energybench.report.export import export

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import GPU, Run

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "reports" / "quick" / "2026-11-21-170504"
EVIL = 'm<script>alert("1")</script>&'


def written(folder: Path, run: Run, **meta: Any) -> Path:
    run_file, trials, counting_runs = run.records()
    write_json(folder / "run.json", run_file.model_copy(update=meta))
    for number, trial in enumerate(trials):
        write_json(folder / "records" / f"{number}.json", trial)
    for number, counting_run in enumerate(counting_runs):
        write_json(folder / "witness" / f"{number}.json", counting_run)
    return folder


@pytest.fixture
def saving(tmp_path: Path) -> Path:
    return written(tmp_path / "saving", Run(sensors=(GPU,), blocks=5, noise=0.002).method("half", time=0.6, energy=0.5))


def json_of(*folders: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "energybench", "report", "--json", *map(str, folders)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_every_figure_and_verdict_is_that_of_report_json() -> None:
    results, told = energybench.load(COMMITTED), json_of(COMMITTED)
    assert json.loads(json.dumps(results.to_json())) == told
    verdicts = {(w["name"], row["method"]): row["verdict"] for w in told["workloads"] for row in w["rows"]}
    assert len(verdicts) == 9
    assert {pair: results.verdict(*pair) for pair in verdicts} == verdicts
    assert {pair: row.verdict for pair, row in results.comparisons.items()} == verdicts


def test_a_known_saving_is_called_one(saving: Path) -> None:
    results = energybench.load(str(saving))
    assert results.verdict("cnn-digits", "half") == "saves"
    row = results.comparisons["cnn-digits", "half"]
    assert row.measured is not None
    assert row.measured.quantity == "energy"
    assert row.measured.saving_rel == pytest.approx(0.5, abs=0.01)
    assert len(results.trials) == 15
    assert results.run.suite == "synthetic"
    assert results.folders == [saving]
    assert isinstance(results, Results)


def test_the_frame_holds_what_the_csv_holds(saving: Path) -> None:
    for folder in (saving, COMMITTED):
        frame = energybench.load(folder).frame()
        content, _ = export(folder, "csv")
        again = pandas.read_csv(io.BytesIO(content))
        assert list(frame.columns) == list(again.columns)
        assert len(frame) == len(again)
        for name in ("trial", "method", "status"):
            assert list(frame[name]) == list(again[name])
        for name in ("train_s", "measured_j", "plain_flop", "quality_accuracy", "steps"):
            ours, theirs = frame[name].astype(float), again[name].astype(float)
            pandas.testing.assert_series_equal(ours, theirs, rtol=1e-12)


def test_a_pair_that_was_not_compared_names_the_nearest_and_a_folder_that_is_none_is_told(saving: Path) -> None:
    with pytest.raises(EnergybenchError, match="did you mean 'cnn-digits, half'"):
        energybench.load(saving).verdict("cnn-digit", "half")
    with pytest.raises(EnergybenchError, match="E601"):
        energybench.load(saving / "records")
    with pytest.raises(EnergybenchError, match="E642"):
        energybench.load()


def test_runs_side_by_side_are_never_averaged(saving: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other", Run(sensors=(GPU,), blocks=5, seed=1).method("half", time=0.6), digest="else")
    both = energybench.load(saving, other)
    assert json.loads(json.dumps(both.to_json())) == json_of(saving, other)
    assert [run.verdict("cnn-digits", "half") for run in both.runs] == ["saves", "no saving"]
    assert len(both.trials) == len(both.frame()) == 30
    assert "side by side" in repr(both)
    assert "side by side" in both.table(width=100)
    with pytest.raises(EnergybenchError, match=r"results\.runs\[0\]"):
        _ = both.summary


def test_a_copy_of_a_folder_is_one_run(saving: Path, tmp_path: Path) -> None:
    copy = written(tmp_path / "copy", Run(sensors=(GPU,), blocks=5, noise=0.002).method("half", time=0.6, energy=0.5))
    assert len(energybench.load(saving, copy).runs) == 1


def test_the_repr_is_one_sentence(saving: Path) -> None:
    results = energybench.load(saving)
    assert "\n" not in repr(results)
    assert results.summary.headline in repr(results)


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_a_terminal_shows_the_reports_table_at_its_width(saving: Path, width: int) -> None:
    results, file = energybench.load(saving), io.StringIO()
    Console(file=file, width=width).print(results)
    shown = [line.rstrip() for line in file.getvalue().splitlines()]
    assert shown == [line.rstrip() for line in results.table(width=width).splitlines()]
    assert max(map(len, shown)) <= width
    assert "saves" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_in_a_notebook_the_table_is_still_a_text_and_not_a_display(saving: Path, monkeypatch: Any) -> None:
    """rich's console writes past its file where it finds a notebook around it."""
    plain = energybench.load(saving).table(width=100)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "saves" in plain
    assert energybench.load(saving).table(width=100) == plain


def test_ipython_shows_the_table_where_there_is_no_html(saving: Path) -> None:
    said: list[str] = []
    printer = type("Printer", (), {"text": lambda self, text: said.append(text)})()
    energybench.load(saving)._repr_pretty_(printer, cycle=False)
    assert said == [energybench.load(saving).table().rstrip()]


class Page(HTMLParser):
    """Tags, their balance, and what the page would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href") or name.startswith("on")]
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_the_sentence_the_table_and_the_pictures_and_asks_no_network(saving: Path) -> None:
    results = energybench.load(saving)
    page = Page(results._repr_html_())
    assert page.open == []
    assert results.summary.headline in page.text
    assert {"table", "img", "th"} <= set(page.tags)
    assert "script" not in page.tags
    (glossary,) = [source for source in page.sources if not source.startswith("data:image/svg+xml;base64,")]
    assert Path(glossary) == saving.parents[2] / "docs" / "glossary.md"
    assert re.search(r"half – 0\.0 % 0\.0 % 50\.\d % \[.*?\] energy \(gpu\) .* saves", " ".join(page.text.split()))


def test_no_name_of_a_record_can_become_markup(tmp_path: Path) -> None:
    run = Run(workload=EVIL, blocks=3, noise=0.01).method(EVIL, time=0.5)
    run.change(EVIL, 0, flags=[Flag(code="inert", detail=EVIL)])
    page = Page(energybench.load(written(tmp_path / "evil", run))._repr_html_())
    assert "script" not in page.tags
    assert EVIL in page.text


def test_what_failed_and_what_may_not_be_trusted_is_shown_in_a_notebook_too(tmp_path: Path) -> None:
    run = Run(blocks=3).method("half", time=0.5).change("half", 1, status="failed", reason="ValueError: it broke")
    run.change("half", 0, flags=[Flag(code="inert", detail="half")]).skip("other", "no convolution")
    text = Page(energybench.load(written(tmp_path / "failed", run))._repr_html_()).text
    assert "ValueError: it broke" in text
    assert "no convolution" in text
    assert "half, block 0" in text or "inert" in text or "never acted" in text


def test_the_package_offers_its_names_and_no_others() -> None:
    for name in ("run", "load", "measure", "Results", "EnergybenchError"):
        assert name in energybench.__all__
        assert name in dir(energybench)
        assert getattr(energybench, name)
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        energybench.fit  # noqa: B018
