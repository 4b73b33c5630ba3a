"""The table of quick, run twenty times: it stands in docs/statistics.md as its file of figures gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import replications

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "reports" / "quick-twenty-runs.csv"


def line(run: str, row: str, cost: str, quality: str, saving: str = "0.1") -> dict[str, str]:
    return {"run": run, "row": row, "cost": cost, "quality": quality, "saving_rel": saving}


def test_a_row_is_decided_where_both_of_its_verdicts_are() -> None:
    for cost, quality, decided in (
        ("faster", "held", True),
        ("slower", "lost", True),
        ("no difference", "held", True),
        ("faster", "open", False),
        ("inconclusive", "held", False),
        ("no verdict", "held", False),
        ("faster", "no verdict", False),
    ):
        assert replications.is_decided(line("1", "a", cost, quality)) is decided


def test_what_is_open_contradicts_nothing_and_what_is_decided_otherwise_does() -> None:
    calm = [line("1", "a", "faster", "open"), line("2", "a", "inconclusive", "held"), line("2", "b", "slower", "lost")]
    assert replications.contradicted(calm) == []
    assert replications.contradicted([*calm, line("3", "a", "slower", "open")]) == ["a"]
    assert replications.contradicted([*calm, line("3", "b", "slower", "held")]) == ["b"]
    assert replications.decided_of_runs(calm) == [(0, 1), (1, 2)]


def test_the_words_for_a_control_are_those_of_the_verdicts() -> None:
    def measured(saving: float, sd: float) -> dict[str, Any]:
        return {"quantity": "time", "n": 10, "df": 9, "saving_rel": saving, "sd_log": sd}

    assert replications._cost(measured(0.3, 0.05), 0.02) == "faster"
    assert replications._cost(measured(-0.3, 0.05), 0.02) == "slower"
    assert replications._cost(measured(0.0, 0.001), 0.02) == "no difference"
    assert replications._cost(measured(0.02, 0.05), 0.02) == "inconclusive"
    for bound, best, word in ((-0.005, 0.0, "held"), (-0.02, 0.0, "open"), (-0.03, -0.02, "lost")):
        assert replications._quality({"bound": bound, "best": best, "limit": -0.01}) == word


@pytest.mark.skipif(not FIGURES.exists(), reason="the twenty runs are not there")
def test_the_page_prints_the_table_of_the_twenty_runs() -> None:
    lines = replications.read(FIGURES)
    assert len({row["run"] for row in lines}) >= 20
    assert replications.table(lines) in (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert replications.contradicted(lines) == []
