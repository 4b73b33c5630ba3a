"""Merging the shards of a run: CPU seconds of 1,000 one-block folders, and against those of 250.

That no folder is compared with more than one other is counted, not timed, in tests/report/test_pooling.py.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from perf.ratios import Bench, Side

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))

GOAL_S = 5.0


def merging(folder: Path, blocks: int) -> Side:
    """Reads, merges and summarises a run of so many one-block shards on eight cards."""
    from sharded import card, put_shards, spread

    from energybench.verdict import run_parts

    put_shards(folder, spread([card(number) for number in range(8)], blocks=blocks))

    def side() -> float:
        started = time.process_time()
        (part,) = run_parts.read([folder])
        row = part.summary().workloads[0].rows[0]
        taken = time.process_time() - started
        assert (row.n, row.units) == (blocks, min(8, blocks))
        return taken

    return side


def test_merging_a_thousand_folders(bench: Bench, tmp_path: Path) -> None:
    few, many = bench.size((250, 1000), smoke=(4, 8))
    sides = {"many": merging(tmp_path / "many", many), "few": merging(tmp_path / "few", few)}
    times = bench.turns(sides)
    bench.cost("report of 1,000 shards", times["many"], GOAL_S, of=f"{GOAL_S:g} s", goal=1.0)
    bench.cost(
        "report of four times the shards", times["many"], times["few"], of="report of 250", goal=8, limit=(4, "linear")
    )
