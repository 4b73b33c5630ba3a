"""What build servers read: the shapes that their own documents describe, and pytest-benchmark's own command."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from runs_on_disk import written
from synthetic import GPU, Run, Truth

from energybench.gate import ci_formats
from energybench.gate.compare_runs import GateResult, Side, read_side
from energybench.gate.regression import Finding


def head(tmp_path: Path, **changes: object) -> Side:
    run = Run(blocks=5, noise=0.01, seed=1).method("it", time=0.6).method("slow", time=1.3)
    for name, value in changes.items():
        setattr(run, name, value)
    return read_side(written(tmp_path / "head", run))


FINDINGS = (
    Finding("counts", "w", "it", "all counts", "same"),
    Finding("counts", "w", "it", "counted_flop", "changed", 100.0, 120.0, 0.2),
    Finding("savings", "w", "it", "time", "regression", 0.4, 0.2, 0.33, 0.3, 0.36, 1e-9, 0.05),
    Finding("savings", "w", "<&\x00\x1b\"'>", "time", "suspected", 0.4, 0.2, 0.33, 0.3, 0.36, 1e-9, 0.05),
    Finding("savings", "w", "fine", "time", "held", 0.4, 0.4, 0.0, -0.01, 0.01, 0.5, 0.05),
    Finding("require", "w", "it", "saves at least 5.0 % of the time", "not met", 0.05, 0.01, reason="too little"),
)
GATE = GateResult("s", "a", "b", None, ("counts", "savings"), 0.01, FINDINGS, ("a note | with a pipe",))


# ── JUnit ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_junit_has_a_suite_per_level_a_case_per_comparison_and_counts_that_add_up() -> None:
    root = ET.fromstring(ci_formats.junit(GATE).encode())
    assert root.tag == "testsuites"
    assert [suite.get("name") for suite in root] == ["s.counts", "s.savings", "s.require"]
    for suite in root:
        assert set(suite.attrib) >= {"name", "tests", "failures", "errors", "skipped", "time"}
        cases = suite.findall("testcase")
        assert int(suite.attrib["tests"]) == len(cases) == len(list(suite))
        assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
        assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped"))
        assert all(set(case.attrib) == {"classname", "name", "time"} for case in cases)
    assert [failure.get("type") for failure in root.iter("failure")] == ["changed", "regression", "not met"]


def test_what_is_only_suspected_is_skipped_and_says_why_and_names_hold_no_forbidden_character() -> None:
    root = ET.fromstring(ci_formats.junit(GATE).encode())
    (skipped,) = root.iter("skipped")
    assert "suspected" in (skipped.get("message") or "")
    (case,) = [case for case in root.iter("testcase") if case.find("skipped") is not None]
    assert (case.get("name") or "").startswith("<&\ufffd\ufffd\"'>")


# ── github-action-benchmark ───────────────────────────────────────────────────────────────────────────────────


def test_benchmark_entries_have_the_keys_of_github_action_benchmark_and_both_ways_agree(tmp_path: Path) -> None:
    here = head(tmp_path)
    smaller, bigger = (ci_formats.benchmark(here, bigger=way) for way in (False, True))
    for found in (smaller, bigger):
        assert [set(entry) for entry in found] == [{"name", "unit", "value", "range", "extra"}] * 2
        assert all(isinstance(entry["value"], float) and isinstance(entry["range"], str) for entry in found)
    for cost, saved in zip(smaller, bigger, strict=True):
        assert cost["value"] + saved["value"] == pytest.approx(100)
        assert cost["name"] == saved["name"]
    assert smaller[0]["value"] == pytest.approx(60, abs=2)
    assert smaller[0]["unit"] == "% of plain training"
    assert "verdict: faster" in bigger[0]["extra"]
    assert json.loads(ci_formats.OF_HEAD["smaller-is-better"](here)) == smaller


def test_a_struck_figure_is_no_benchmark_and_energy_is_named_by_its_scope(tmp_path: Path) -> None:
    struck = [Truth("baseline", "baseline"), Truth("twin", "twin", time=1.3), Truth("it", time=0.6)]
    assert ci_formats.benchmark(head(tmp_path / "a", truths=struck), bigger=False) == []
    names = [entry["name"] for entry in ci_formats.benchmark(head(tmp_path / "b", sensors=(GPU,)), bigger=True)]
    assert names == ["cnn-digits: it (energy (gpu))", "cnn-digits: slow (energy (gpu))"]


# ── pytest-benchmark ──────────────────────────────────────────────────────────────────────────────────────────


def test_pytest_benchmark_compares_the_file_with_its_own_command(tmp_path: Path) -> None:
    here = head(tmp_path)
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text(ci_formats.OF_HEAD["pytest-benchmark"](here))
    files = ["one.json", "two.json"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", *files, "--group-by=name", "--csv=out.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "cnn-digits[it]" in ran.stdout
    assert "cnn-digits[baseline]" in ran.stdout
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 2 * 3


def test_its_figures_are_the_blocks_seconds(tmp_path: Path) -> None:
    here = head(tmp_path)
    found = {entry["name"]: entry["stats"] for entry in ci_formats.pytest_benchmark(here)["benchmarks"]}
    assert set(found) == {"cnn-digits[baseline]", "cnn-digits[it]", "cnn-digits[slow]"}
    seconds = [t.phases["train"].wall_s for t in here.records[1] if t.method == "it"]
    stats = found["cnn-digits[it]"]
    assert sorted(stats["data"]) == sorted(seconds)
    assert (stats["min"], stats["max"], stats["rounds"]) == (min(seconds), max(seconds), 5)
    assert stats["median"] == statistics.median(seconds)
    assert stats["stddev"] == pytest.approx(statistics.stdev(seconds))
    assert stats["ops"] * stats["mean"] == pytest.approx(1)


def test_one_block_gives_a_file_too(tmp_path: Path) -> None:
    found = ci_formats.pytest_benchmark(head(tmp_path, blocks=1))["benchmarks"]
    assert {entry["stats"]["stddev"] for entry in found} == {0.0}


# ── Markdown ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_markdown_escapes_names_and_keeps_its_tables_whole() -> None:
    page = ci_formats.OF_THE_GATE["markdown"](GATE)
    assert "**Regression: 1 comparison worse than BASE" in page
    assert "a note &#124; with a pipe" in page
    assert "&lt;&amp;" in page
    assert "\x1b" not in page
    for block in page.split("\n\n"):
        lines = block.splitlines()
        if lines and lines[0].startswith("| "):
            assert len({line.count("|") for line in lines}) == 1
    assert page.endswith("\n")
    assert not page.endswith("\n\n")
