"""`--help` and `list` answer at once: against an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from perf.ratios import Bench, Side, timed

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 11
# Wanted are 100 ms, which are 9.1 starts of a bare interpreter where one takes 11 ms (two quiet cores of an AMD EPYC).
GOAL = 9.1


def test_starting_the_commands_that_answer_at_once(bench: Bench) -> None:
    def start(*arguments: str) -> Side:
        command = [sys.executable, *arguments]
        return timed(lambda: subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True))

    times = bench.turns(
        {
            "--help": start("-m", "energybench", "--help"),
            "list": start("-m", "energybench", "list"),
            "nothing": start("-c", "pass"),
        },
        ROUNDS,
    )
    for name in ("--help", "list"):
        bench.cost(
            f"energybench {name}",
            times[name],
            times["nothing"],
            of="python -c pass",
            goal=GOAL,
            limit=(1, "starting Python"),
        )
