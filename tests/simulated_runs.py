"""Runs on machines that drift, stall and differ from launch to launch, judged by `summarise` as any run is.

Run as a script it fills the table of docs/statistics.md, a row for each machine and number of blocks:

    python tests/simulated_runs.py 2000 > table.md          # so many runs for each row: half an hour on one core
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import SECONDS, Run

from energybench.meter.reading import Reading
from energybench.records.record import Trial
from energybench.verdict.summary import summarise

MARGIN, QUALITY_MARGIN, QUALITY_SD = 0.02, 0.005, 0.004
AT_MARGIN = -math.log1p(-MARGIN)  # in logs, as a cost
# label → what it truly costs, in logs. The last loses exactly the quality that is accepted.
TRUTHS = {"same": 0.0, "also same": 0.0, "margin": -AT_MARGIN, "also margin": -AT_MARGIN, "quality": math.log(0.5)}


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


MACHINES: dict[str, Callable[[random.Random, int], Iterator[float]]] = {
    "quiet": quiet,
    "drifting": drifting,
    "stalling": stalling,
    "launching": launching,
}


@dataclass
class Tally:
    """Counts over runs of one machine and one number of blocks."""

    runs: int = 0
    struck: int = 0  # runs in which plain training was said to differ from itself
    covered: int = 0
    compared: int = 0
    faster: dict[str, int] = field(default_factory=lambda: {"same": 0, "margin": 0})
    of_each: dict[str, int] = field(default_factory=lambda: {"same": 0, "margin": 0})
    held: int = 0
    lost: int = 0

    @property
    def shares(self) -> dict[str, float]:
        return {
            "covers": self.covered / self.compared,
            "faster, nothing saved": self.faster["same"] / self.of_each["same"],
            "faster, at the margin": self.faster["margin"] / self.of_each["margin"],
            "held, at the quality margin": self.held / self.runs,
            "lost, at the quality margin": self.lost / self.runs,
            "struck": self.struck / self.runs,
        }


def simulate(machine: str, blocks: int, runs: int, seed: int = 1) -> Tally:
    """So many runs of one workload with its twin, in random order in each block."""
    accept = {"quality": {"metric": "accuracy", "loses_at_most": QUALITY_MARGIN}, "margin": MARGIN}
    template = Run(blocks=blocks, sensors=(), accept=accept)
    for label in TRUTHS:
        template.method(label)
    run, trials, counting_runs = template.records()
    by_block = [[trial for trial in trials if trial.block == block] for block in range(blocks)]
    rng, tally = random.Random(f"{machine} {blocks} {seed}"), Tally()
    for _ in range(runs):
        noise = MACHINES[machine](rng, len(trials))
        drawn = [
            _drawn(trial, next(noise), rng) for of_block in by_block for trial in rng.sample(of_block, len(of_block))
        ]
        _count(tally, summarise(run, drawn, counting_runs).workloads[0])
    return tally


def _drawn(trial: Trial, noise: float, rng: random.Random) -> Trial:
    seconds = SECONDS * math.exp(TRUTHS.get(trial.method, 0.0) + noise)
    quality = {"accuracy": 0.9}
    if trial.method == "quality":
        quality = {"accuracy": 0.9 - QUALITY_MARGIN + rng.gauss(0, QUALITY_SD)}
    update = {"phases": {"train": Reading(wall_s=seconds, cpu_s=seconds)}, "quality": quality}
    return trial.model_copy(update=update)


def _count(tally: Tally, workload: object) -> None:
    tally.runs += 1
    tally.struck += any(flag.code == "aa_failed" for flag in workload.flags)  # type: ignore[attr-defined]
    for row in workload.rows:  # type: ignore[attr-defined]
        truth = -math.expm1(TRUTHS[row.method])
        tally.compared += 1
        tally.covered += row.measured.low_rel <= truth <= row.measured.high_rel
        if row.method == "quality":
            tally.held += row.quality_verdict == "held"
            tally.lost += row.quality_verdict == "lost"
        else:
            kind = row.method.removeprefix("also ")
            tally.of_each[kind] += 1
            tally.faster[kind] += row.verdict == "faster"


def main(runs: int) -> None:
    """Print the table's rows."""
    for machine in MACHINES:
        for blocks in (3, 5, 10):
            shares = simulate(machine, blocks, runs).shares.values()
            cells = [f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %" for share in shares]
            print(f"| {machine} | {blocks} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
