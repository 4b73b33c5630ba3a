"""docs/glossary.md has every word that a report, a verdict, a flag or a gate uses, once, under an anchor of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_args

import pytest

from energybench.gate.regression import Outcome
from energybench.records.record import Claim, Role
from energybench.report import terminal
from energybench.report.pages import contents
from energybench.stats.paired import RowVerdict, Verdict
from energybench.train.method import Method
from energybench.verdict.flag_codes import Severity
from energybench.verdict.summary import summarise

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import GPU, Run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r'^- <a id="([\w-]+)"></a>\*\*(.+?)\*\*(?:[^:]*(?<!\.)): ', PAGE, re.MULTILINE)
WORDS = set(re.findall(r"\*\*([^*]+)\*\*", PAGE))
# Terms of our own, whatever page they stand on.
OURS = """
    workload method stack sweep variant cell block trial pair twin baseline matched_control suite task recipe target
    claimed estimated counted measured realised margin quality_margin look alpha_fraction adjusted_confidence flag
    severity counting_run profiling_run ledger counter estimate estimate_gap hook wrapper_chain probe window phase
    reading sensor source scope channel tick error_budget modelled warm-up stamp digest seal record run fingerprint
"""


def test_every_entry_has_an_anchor_that_is_its_own_and_stands_once() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("- ")]
    assert len(ENTRIES) == len(lines)
    anchors = [anchor for anchor, _ in ENTRIES]
    assert len(set(anchors)) == len(anchors)
    for anchor, word in ENTRIES:
        first = re.split(r"\W+", word.lower())[0]
        assert anchor.startswith(first) or word == "Δ", (anchor, word)


@pytest.mark.parametrize("kind", [Verdict, RowVerdict, Severity, Outcome])
def test_every_word_of_a_verdict_a_requirement_a_flag_and_a_gate_stands_in_it(kind: object) -> None:
    assert set(get_args(kind)) - WORDS == set()


def test_every_role_of_a_cell_and_every_hook_stands_in_it() -> None:
    assert {"matched control" if role == "control" else role for role in get_args(Role)} - WORDS == set()
    (hooks,) = re.findall(r"\*\*hook\*\*: (.*?)\.\n", PAGE, re.DOTALL)
    named = re.findall(r"`(\w+)`", hooks)
    assert named == ["epoch", "batches", "step", "gradients", "update"]
    assert all(callable(getattr(Method, name)) for name in named)


def test_every_word_of_ours_stands_in_it() -> None:
    assert {word.replace("_", " ") for word in OURS.split()} - WORDS == set()


def bare(title: str) -> str:
    """A column's word without its interval, its quantity and the metric that stands before Δ."""
    title = re.sub(r"\\?\[.*", "", title.replace("\n", " ")).strip()
    title = re.sub(r"^measured (energy|time)$", "measured", title)
    return "Δ" if title.endswith(" Δ") else title.lower()


def test_every_column_of_a_report_stands_in_it(tmp_path: Path) -> None:
    claim = Claim(saving_rel=0.4, source="Table 4")
    run, trials, counting_runs = (
        Run(sensors=(GPU,), blocks=3).method("half", time=0.5, energy=0.5, claim=claim).records()
    )
    summary = summarise(run, trials, counting_runs)
    page = str(contents(summary, trials, tmp_path)["report.md"])
    head = next(line for line in page.splitlines() if line.startswith("| Method |"))
    cells = [cell for cell in re.split(r"(?<!\\)\|", head) if cell.strip()]
    cells += [column.title for column in terminal._columns(summary.workloads[0].rows, "accuracy")]
    titles = {bare(part) for cell in cells for part in re.split(r"\s= ", cell)}  # one column of what agrees
    assert {"claimed", "estimated", "counted", "measured", "verdict", "Δ"} <= titles
    assert titles - WORDS == set()


def test_documents_link_to_it_and_every_anchor_that_they_name_is_there() -> None:
    anchors = {anchor for anchor, _ in ENTRIES} | {
        re.sub(r"[^\w -]", "", line[3:].lower()).replace(" ", "-") for line in PAGE.splitlines() if line[:3] == "## "
    }
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text(encoding="utf-8")
        written_by_code = document.name in ("claims.md", "what-happens-when.md")
        assert "glossary.md" in text or document.name == "glossary.md" or written_by_code, document.name
        assert set(re.findall(r"glossary\.md#([\w-]+)", text)) <= anchors, document.name
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
