"""Whole runs with a known truth through `summarise`: what their reports say is wrong no more often than is promised."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

import pytest
from simulated_runs import BLOCKS, COLUMNS, MACHINES, WORKLOADS, Tally, simulate, strike

STATISTICS = Path(__file__).parents[1] / "docs" / "statistics.md"
RUNS = 1000  # behind each row of the table
AT_MOST = {
    "faster, nothing saved": 0.01,
    "faster, at the margin": 0.015,
    "held, at the quality margin": 0.05,
    "lost, at the quality margin": 0.05,
    "struck": 0.02,
}
SEVERAL = f"struck, {WORKLOADS} workloads"


def error(share: float, of: int) -> float:
    """Three standard deviations of an estimated share."""
    return 3 * math.sqrt(share * (1 - share) / of)


def hold(tally: Tally) -> None:
    if "covers" in tally.chances:
        assert tally.share("covers") >= 0.93 - error(0.93, tally.chances["covers"])
    for column, share in AT_MOST.items():
        if column in tally.chances:
            assert tally.share(column) <= share + error(share, tally.chances[column]), column


@cache
def table() -> dict[tuple[str, int], dict[str, float]]:
    """(machine, blocks) → column → share, as docs/statistics.md prints it."""
    rows = re.findall(rf"^\| ({'|'.join(MACHINES)}) \| (\d+) \| (.+) \|$", STATISTICS.read_text("utf-8"), re.M)
    columns = (*COLUMNS, SEVERAL)
    shares = [[float(cell.removesuffix(" %")) / 100 for cell in cells.split(" | ")] for _, _, cells in rows]
    return {
        (machine, int(blocks)): dict(zip(columns, of_row, strict=True))
        for (machine, blocks, _), of_row in zip(rows, shares, strict=True)
    }


def test_the_table_has_every_machine_at_every_number_of_blocks() -> None:
    assert list(table()) == [(machine, blocks) for machine in MACHINES for blocks in BLOCKS]


@pytest.mark.parametrize("column", [*AT_MOST, SEVERAL])
def test_no_figure_of_the_table_is_more_than_is_promised(column: str) -> None:
    promised = AT_MOST.get(column, AT_MOST["struck"])
    for of, shares in table().items():
        assert shares[column] <= promised + error(promised, RUNS), (of, column)


def test_every_interval_of_the_table_covers_the_truth_and_every_quiet_machine_keeps_its_promise() -> None:
    assert all(shares["covers"] >= 0.93 for shares in table().values())
    quiet = [shares["promised saving found"] for (machine, _), shares in table().items() if machine == "quiet"]
    assert all(abs(share - 0.8) <= 0.05 for share in quiet)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_few_runs_of_each_machine_are_judged_as_the_table_says(machine: str) -> None:
    """Few enough to be quick: of what is rare they see nothing, of what is common whether the table is of this code."""
    tally, printed = simulate(machine, 3, 25, seed=2), table()[machine, 3]
    hold(tally)
    hold(strike(machine, 3, 25, seed=2))
    for column in ("covers", "promised saving found"):
        away = abs(tally.share(column) - printed[column])
        assert away <= 1.5 * error(printed[column], 25), column  # rows of a run share its baseline


@pytest.mark.perf  # no time is judged: it takes some ten minutes, and fills the table of docs/statistics.md
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("machine", MACHINES)
def test_reports_are_wrong_no_more_often_than_docs_statistics_says(machine: str, blocks: int) -> None:
    hold(simulate(machine, blocks, 1000, seed=3))
    hold(strike(machine, blocks, 1000, seed=3))
