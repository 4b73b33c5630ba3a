"""What a trial costs beside its command: starting, opening sensors, writing its record; against a bare interpreter."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from perf.ratios import Bench, timed

from energybench.records.reader import read
from energybench.records.record import Trial

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 7
# Wanted are 150 ms, which are 13.6 starts of a bare interpreter where one takes 11 ms (two quiet cores of an AMD EPYC).
GOAL = 13.6
SUITE = """schema = 1
suite = "nothing"
[trials]
blocks = {blocks}
warmup = "0 s"
[[workload]]
name = "nothing"
command = "true"
quality = "none"
[[method]]
name = "as little"
command = "true"
"""


def beside_the_command_s(blocks: int) -> float:
    """Of a run of trials that do nothing: seconds from one record to the next, less the command's own; the median.

    The first trial is left out, which waits until the interpreter that starts all of them has imported what it needs.
    """
    with TemporaryDirectory() as home:
        Path(home, "suite.toml").write_text(SUITE.format(blocks=blocks))
        command = [sys.executable, "-m", "energybench", "run", "suite.toml"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=home, env=environment, capture_output=True, check=True)
        records = sorted(Path(home).glob("reports/*/*/records/*.json"), key=lambda path: path.stat().st_mtime_ns)
        ended_s = [path.stat().st_mtime_ns / 1e9 for path in records]
        took_s = [read(path, Trial).phases["command"].wall_s for path in records]
    in_order = zip(pairwise(ended_s), took_s[1:], strict=True)
    return statistics.median(after - before - command_s for (before, after), command_s in in_order)


def test_what_a_trial_costs_beside_its_command(bench: Bench) -> None:
    blocks = bench.size(8, smoke=1)
    times = bench.turns(
        {
            "ours": lambda: beside_the_command_s(blocks),
            "nothing": timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), repeats=5),
        },
        ROUNDS,
    )
    assert min(times["ours"]) > 0
    bench.cost("a trial beside its command", times["ours"], times["nothing"], of="python -c pass", goal=GOAL)
