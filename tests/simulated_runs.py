"""Runs on machines that drift, stall and differ from launch to launch, judged by `summarise` as any run is.

Run as a script it fills the table of docs/statistics.md, a row for each machine and number of blocks:

    python tests/simulated_runs.py 1000 > table.md          # so many runs for each row: five minutes on a free core
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import SECONDS, Run, merge

from energybench.meter.reading import Reading
from energybench.records.record import Trial
from energybench.verdict.figures import Workload
from energybench.verdict.summary import summarise

MARGIN, QUALITY_MARGIN, QUALITY_SD = 0.02, 0.005, 0.004
AT_MARGIN = -math.log1p(-MARGIN)  # in logs, as a cost
# label → what it truly costs, in logs. "quality" loses exactly the quality that is accepted; "promised" saves what the
# run before it said that a fresh run would find.
TRUTHS = {"same": 0.0, "also same": 0.0, "margin": -AT_MARGIN, "also margin": -AT_MARGIN, "quality": math.log(0.5)}
PROMISED, MOST_PROMISED = "promised", 0.99
BLOCKS, WORKLOADS = (3, 5, 10), 6


def quiet(rng: random.Random, slots: int) -> Iterator[float]:
    """Every trial has an error of its own, 3.5 %."""
    return (rng.gauss(0, 0.035) for _ in range(slots))


def drifting(rng: random.Random, slots: int) -> Iterator[float]:
    """And the machine becomes up to 10 % slower or faster over the run, and wanders by 1 % from trial to trial."""
    slope, level = rng.uniform(-0.1, 0.1), 0.0
    for slot in range(slots):
        level += rng.gauss(0, 0.01)
        yield slope * slot / slots + level + rng.gauss(0, 0.03)


def stalling(rng: random.Random, slots: int) -> Iterator[float]:
    """And every tenth trial is held up by something else, by 10 % on average; what is left has tails (t, 4 df)."""
    for _ in range(slots):
        student = rng.gauss(0, 1) / math.sqrt(rng.gammavariate(2, 2) / 4)
        held_up = rng.expovariate(1 / 0.1) if rng.random() < 0.1 else 0.0
        yield 0.025 * student + held_up


def launching(rng: random.Random, slots: int) -> Iterator[float]:
    """And every launch keeps a difference for its life: one of three placements of its pages, 0, 4 or 10 % slower."""
    return (rng.choice((0.0, 0.0, 0.0, 0.04, 0.04, 0.1)) + rng.gauss(0, 0.02) for _ in range(slots))


Machine = Callable[[random.Random, int], Iterator[float]]
MACHINES: dict[str, Machine] = {"quiet": quiet, "drifting": drifting, "stalling": stalling, "launching": launching}


COLUMNS = (
    "covers",
    "faster, nothing saved",
    "faster, at the margin",
    "promised saving found",
    "held, at the quality margin",
    "lost, at the quality margin",
    "struck",
)


class Tally:
    """Of each column: how often it happened, and in how many chances."""

    def __init__(self) -> None:
        self.hits, self.chances = Counter[str](), Counter[str]()

    def count(self, column: str, hit: bool) -> None:
        self.hits[column] += hit
        self.chances[column] += 1

    def share(self, column: str) -> float:
        return self.hits[column] / self.chances[column]


def simulate(machine: str, blocks: int, runs: int, seed: int = 1) -> Tally:
    """So many runs of one workload with its twin, in random order in each block."""
    accept = {"quality": {"metric": "accuracy", "loses_at_most": QUALITY_MARGIN}, "margin": MARGIN}
    template = Run(blocks=blocks, sensors=(), accept=accept)
    for label in (*TRUTHS, PROMISED):
        template.method(label)
    run, trials, counting_runs = template.records()
    by_block = _by_block(trials)
    rng, tally = random.Random(f"{machine} {blocks} {seed}"), Tally()
    truths = {**TRUTHS, PROMISED: 0.0}
    for number in range(runs):
        drawn = _run(MACHINES[machine], by_block, truths, rng)
        workload = summarise(run, drawn, counting_runs).workloads[0]
        _count(tally, workload, truths, promised=number > 0)
        seen = next(row.detectable_rel for row in workload.rows if row.method == PROMISED)
        truths = truths | {PROMISED: math.log1p(-min(seen, MOST_PROMISED))}
    return tally


def strike(machine: str, blocks: int, runs: int, workloads: int = WORKLOADS, seed: int = 1) -> Tally:
    """So many runs of several workloads, of which only plain training's comparison with itself is looked at."""
    templates = [Run(workload=f"workload {number}", blocks=blocks, sensors=()) for number in range(workloads)]
    run, trials, counting_runs = merge(*templates)
    by_block = _by_block(trials)
    rng, tally = random.Random(f"{machine} {blocks} {workloads} {seed}"), Tally()
    for _ in range(runs):
        summary = summarise(run, _run(MACHINES[machine], by_block, {}, rng), counting_runs)
        tally.count("struck", any(_is_struck(workload) for workload in summary.workloads))
    return tally


def _by_block(trials: Sequence[Trial]) -> list[list[Trial]]:
    return [[trial for trial in trials if trial.block == block] for block in sorted({trial.block for trial in trials})]


def _run(
    machine: Machine, by_block: Sequence[Sequence[Trial]], truths: Mapping[str, float], rng: random.Random
) -> list[Trial]:
    """One run's trials in the order in which they ran."""
    noise = machine(rng, sum(map(len, by_block)))
    return [_drawn(trial, truths, next(noise), rng) for block in by_block for trial in rng.sample(block, len(block))]


def _drawn(trial: Trial, truths: Mapping[str, float], noise: float, rng: random.Random) -> Trial:
    seconds = SECONDS * math.exp(truths.get(trial.method, 0.0) + noise)
    quality = {"accuracy": 0.9}
    if trial.method == "quality":
        quality = {"accuracy": 0.9 - QUALITY_MARGIN + rng.gauss(0, QUALITY_SD)}
    update = {"phases": {"train": Reading(wall_s=seconds, cpu_s=seconds)}, "quality": quality}
    return trial.model_copy(update=update)


def _is_struck(workload: Workload) -> bool:
    return any(flag.code == "aa_failed" for flag in workload.flags)


def _count(tally: Tally, workload: Workload, truths: Mapping[str, float], promised: bool) -> None:
    struck = _is_struck(workload)
    tally.count("struck", struck)
    for row in workload.rows:
        truth, faster = -math.expm1(truths[row.method]), row.cost_verdict == "faster"
        tally.count("covers", row.measured.low_rel <= truth <= row.measured.high_rel)
        if row.method == "quality":
            tally.count("held, at the quality margin", row.quality_verdict == "held")
            tally.count("lost, at the quality margin", row.quality_verdict == "lost")
        elif row.method == PROMISED:
            if promised and not struck:
                tally.count("promised saving found", faster)
        else:
            of = "nothing saved" if truth == 0 else "at the margin"
            tally.count(f"faster, {of}", faster)


def row(machine: str, blocks: int, runs: int) -> str:
    """A row of the table in docs/statistics.md."""
    tally, several = simulate(machine, blocks, runs), strike(machine, blocks, runs)
    shares = [*map(tally.share, COLUMNS), several.share("struck")]
    cells = [f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %" for share in shares]
    return f"| {machine} | {blocks} | {' | '.join(cells)} |"


def main(runs: int) -> None:
    """Print the table's rows."""
    for machine in MACHINES:
        for blocks in BLOCKS:
            print(row(machine, blocks, runs), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
