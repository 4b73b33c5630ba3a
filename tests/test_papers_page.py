"""docs/papers.md names every suite of a paper, and no other; of each table a report, or why there is none."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from energybench.suite.suite import Suite, load

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
PAPERS = {
    "gradsamp": "GradSamp",
    "ssprop": "ssProp",
    "scotti": "SCoTTi",
    "importance": "Adaptive and importance sampling",
}
LINKED = sorted(set(re.findall(r"\]\(\.\./suites/([\w-]+)\.toml\)", PAGE)))
NOT_YET = re.findall(r"`([\w-]+)` \(not yet\)", PAGE)
OF_PAPERS = sorted(path.stem for path in (ROOT / "suites").glob("paper-*.toml"))


def rows(section: str) -> list[list[str]]:
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines[1:]]


@cache
def loaded(name: str) -> Suite:
    return load(ROOT / "suites" / f"{name}.toml")


def test_there_is_a_section_for_each_paper_and_no_other() -> None:
    assert list(SECTIONS) == list(PAPERS.values())


@pytest.mark.parametrize("name", LINKED)
def test_every_suite_that_is_named_is_there_and_loads(name: str) -> None:
    assert loaded(name).workloads


@pytest.mark.parametrize("name", OF_PAPERS)
def test_every_suite_of_a_paper_is_named_in_its_section(name: str) -> None:
    section = SECTIONS[PAPERS[name.split("-")[1]]]
    assert f"[{name}](../suites/{name}.toml)" in section, f"docs/papers.md: link {name}, without '(not yet)'"


@pytest.mark.parametrize("name", NOT_YET)
def test_what_is_said_to_be_missing_is_missing(name: str) -> None:
    there = (ROOT / "suites" / f"{name}.toml").is_file()
    assert not there, f"docs/papers.md: {name} is there now: link it, and take '(not yet)' away"


@pytest.mark.parametrize("section", PAPERS.values())
def test_every_row_has_a_report_or_one_of_three_words(section: str) -> None:
    found = rows(section)
    assert found
    for row in found:
        assert len(row) == 6, row
        words = set(re.findall(r"\b(licence|data|card)\b", row[5]))
        assert words or "[report](results.md)" in row[5], row
        small = re.findall(r"/suites/([\w-]+)\.toml", row[3])
        committed = [name for name in small if list((ROOT / "reports" / name).glob("*/report.md"))]
        assert ("[report](results.md)" in row[5]) == bool(committed), row
        assert row[4], row
    for word in ("licence", "data", "card"):
        assert f'<a id="{word}"></a>**{word}**:' in PAGE


@pytest.mark.parametrize("section", PAPERS.values())
def test_no_table_and_no_figure_stands_twice(section: str) -> None:
    numbers = [row[0] for row in rows(section)]
    assert len(set(numbers)) == len(numbers)


def numbers(text: str, kind: str) -> set[str]:
    """1, 10 of "Figures 1 and 10"."""
    told = " ".join(re.findall(rf"{kind}s? (\d+(?:(?:, | and )\d+)*)", text))
    return set(re.findall(r"\d+", told))


@pytest.mark.parametrize("name", OF_PAPERS)
def test_every_table_and_figure_that_a_paper_suite_speaks_of_has_a_row(name: str) -> None:
    known = "; ".join(row[0] for row in rows(PAPERS[name.split("-")[1]]))
    for kind in ("Table", "Figure"):
        assert numbers(loaded(name).about, kind) <= numbers(known, kind)
