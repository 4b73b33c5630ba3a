"""Whole runs with a known truth through `summarise`: what their reports say is wrong no more often than is promised."""

from __future__ import annotations

import math

import pytest
from simulated_runs import MACHINES, simulate


def most(share: float, of: int) -> float:
    """A share and three standard deviations of its estimate."""
    return share + 3 * math.sqrt(share * (1 - share) / of)


def hold(machine: str, blocks: int, runs: int) -> None:
    tally = simulate(machine, blocks, runs)
    shares = tally.shares
    assert shares["covers"] >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / tally.compared)
    assert shares["faster, nothing saved"] <= most(0.01, tally.of_each["same"])
    assert shares["faster, at the margin"] <= most(0.015, tally.of_each["margin"])
    assert shares["struck"] <= most(0.02, runs)
    assert shares["held, at the quality margin"] <= most(0.05, runs)
    assert shares["lost, at the quality margin"] <= most(0.05, runs)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_a_few_runs_of_each_machine_are_judged_within_what_is_promised(machine: str) -> None:
    hold(machine, 5, 40)


@pytest.mark.perf  # no time is judged: it takes a quarter of an hour, and fills the table of docs/statistics.md
@pytest.mark.parametrize("blocks", [3, 5, 10])
@pytest.mark.parametrize("machine", MACHINES)
def test_reports_are_wrong_no_more_often_than_docs_statistics_says(machine: str, blocks: int) -> None:
    hold(machine, blocks, 1000)
