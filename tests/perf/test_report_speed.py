"""A report of 10,000 trials: CPU seconds against a fixed piece of pure Python, and against those of 1,000 trials."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from perf.ratios import Bench, Side

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))

# Wanted are 5 s, which are 134 of `unit` where it takes 37 ms (a quiet core of an AMD EPYC).
GOAL_IN_UNITS = 134
SHAPES = {"many workloads": (100, 10, 10), "many methods": (5, 200, 10), "many blocks": (2, 10, 500)}
SMOKE = (2, 3, 3)


def records(workloads: int, methods: int, blocks: int) -> Any:
    from synthetic import GPU, Run, merge

    runs = []
    for number in range(workloads):
        run = Run(workload=f"w{number:03}", blocks=blocks, noise=0.03, quality_noise=0.01, sensors=(GPU,), seed=number)
        for method in range(methods - 2):
            run.method(f"m{method:02}", time=0.8 + 0.01 * method, energy=0.7, flop=0.6)
        runs.append(run)
    found = merge(*runs)
    assert len(found[1]) == workloads * methods * blocks
    return found


def report(found: Any) -> str:
    """Terminal and Markdown, as after a run; the records are read already."""
    from rich.console import Console

    from energybench.report.markdown import markdown
    from energybench.report.terminal import render
    from energybench.verdict.summary import summarise

    summary = summarise(*found)
    render(summary, Console(file=io.StringIO(), width=100))
    return markdown(summary)


def cpu(call: Callable[[], object]) -> Side:
    def side() -> float:
        started = time.process_time()
        call()
        return time.process_time() - started

    return side


def unit() -> None:
    sorted(map(str, range(300_000)))


@pytest.mark.parametrize("shape", SHAPES)
def test_reporting_ten_thousand_trials(shape: str, bench: Bench) -> None:
    found = records(*bench.size(SHAPES[shape], smoke=SMOKE))
    times = bench.turns({"ours": cpu(lambda: report(found)), "unit": cpu(unit)})
    bench.cost(
        f"report of 10,000 trials, {shape}",
        times["ours"],
        times["unit"],
        of="sorting 300,000 strings",
        goal=GOAL_IN_UNITS,
    )


def test_reporting_ten_times_the_trials(bench: Bench) -> None:
    few, many = bench.size(((10, 10, 10), (100, 10, 10)), smoke=(SMOKE, (3, *SMOKE[1:])))
    small, large = records(*few), records(*many)
    times = bench.turns({"many": cpu(lambda: report(large)), "few": cpu(lambda: report(small))})
    bench.cost(
        "report of ten times the trials",
        times["many"],
        times["few"],
        of="report of 1,000 trials",
        goal=15,
        limit=(10, "linear"),
    )
