"""The records of one method on one workload, and the figures that need no measuring: claims, FLOPs, bytes, phases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from energybench.flops.work import BACKWARD
from energybench.records.record import Cell, Claim, CountingRun, Estimate, RunFile, Trial
from energybench.verdict import pairing
from energybench.verdict.figures import Phase, Roofline
from energybench.verdict.pairing import Pair

# Of a profiling run, in the order of a step; "own" is method_overhead in records of before.
PHASES = ("forward", "backward", "update", "data", "method_overhead", "own", "loop")


@dataclass(frozen=True, slots=True)
class CellRecords:
    """Everything that was recorded of one method on one workload."""

    label: str
    pairs: Sequence[Pair]
    trials: Sequence[Trial]  # usable or not
    counting_run: CountingRun | None
    cell: Cell | None  # as planned; None where only trials of it are there

    @property
    def paired_trials(self) -> list[Trial]:
        return [pair.method for pair in self.pairs]

    @property
    def claim(self) -> Claim | None:
        planned = self.cell.claim if self.cell else None
        return planned or next((trial.claim for trial in self.trials if trial.claim), None)

    @property
    def stack(self) -> tuple[str, ...]:
        return tuple(str(layer.get("use", "")) for layer in self.cell.stack) if self.cell else ()

    def estimates(self) -> list[Estimate]:
        return pairing.estimates(self.paired_trials, self.counting_run)


@dataclass(frozen=True, slots=True)
class NominalSavings:
    """Savings that were promised or counted, not measured; fractions."""

    claimed_rel: float | None  # of the whole training
    estimated_rel: float | None
    counted_rel: float | None
    counted_error_rel: float


def nominal_savings(records: CellRecords, baseline_counting_run: CountingRun | None) -> NominalSavings:
    """By the cell's own formulas and counting run; where it has none, by what both commands report of themselves."""
    trials, counting_run = records.paired_trials, records.counting_run
    estimated_rel = pairing.estimated_rel(trials, counting_run)
    if estimated_rel is None:
        estimated_rel = pairing.reported_rel(records.pairs, "estimated")
    counted_flop = pairing.counted_flop(trials, counting_run)
    baseline_flop = pairing.counted_flop([pair.baseline for pair in records.pairs], baseline_counting_run)
    if counted_flop is not None and baseline_flop:
        counted_rel: float | None = 1 - counted_flop / baseline_flop
    else:
        counted_rel = pairing.reported_rel(records.pairs, "counted")
    error_rel = _error_rel(counted_flop, baseline_flop, counting_run, baseline_counting_run)
    return NominalSavings(_claimed_rel(records), estimated_rel, counted_rel, error_rel)


def estimate_gap(records: CellRecords, baseline_counting_run: CountingRun | None) -> float | None:
    """How far the savings are apart that were estimated and counted of one training; None where either is not known.

    That training is the trial of the counting run's seed, where it is there: what rests or is skipped may differ from
    seed to seed, and then the mean over blocks is another training's than what was counted.
    """
    seed = records.counting_run.seed if records.counting_run else None
    like = [pair for pair in records.pairs if pair.method.seed == seed] or records.pairs
    both = nominal_savings(replace(records, pairs=like), baseline_counting_run)
    if both.estimated_rel is None or both.counted_rel is None:
        return None
    return abs(both.estimated_rel - both.counted_rel)


def _error_rel(
    counted_flop: float | None, baseline_flop: float | None, counted: CountingRun | None, plain: CountingRun | None
) -> float:
    """Half width of a 95 % interval of 1 − counted / baseline, which were sampled independently."""
    if not baseline_flop or counted is None:
        return 0.0
    ratio = (counted_flop or 0.0) / baseline_flop
    of_baseline = plain.counted_error_flop if plain else 0.0
    return math.hypot(counted.counted_error_flop, ratio * of_baseline) / baseline_flop


def same_weights(records: CellRecords, baseline_counting_run: CountingRun | None, margin: float) -> int:
    """Blocks in which the method ended with plain training's very weights although its own trial, priced by the count,
    did less: a method that skips by chance may skip nothing in some block, and then its weights are rightly equal."""
    blocks = 0
    for pair in filter(pairing.same_weights, records.pairs):
        method = pairing.counted_flop([pair.method], records.counting_run)
        baseline = pairing.counted_flop([pair.baseline], baseline_counting_run)
        blocks += method is not None and bool(baseline) and 1 - method / (baseline or 1.0) > margin
    return blocks


def _claimed_rel(records: CellRecords) -> float | None:
    """A claim on the backward pass is worth its share of plain training's FLOPs."""
    claim = records.claim
    if claim is None or claim.of == "training":
        return None if claim is None else claim.saving_rel
    estimates = [trial.estimate for trial in records.paired_trials or records.trials]
    estimates.append(records.counting_run.estimate if records.counting_run else None)
    by_phase = next((estimate.plain_by_phase for estimate in estimates if estimate), {})
    total = math.fsum(by_phase.values())
    backward = math.fsum(flop for phase, flop in by_phase.items() if phase in BACKWARD)
    return claim.saving_rel * backward / total if total > 0 else None


def roofline(estimates: Sequence[Estimate]) -> Roofline | None:
    """Means over trials: a machine is timed anew by each invocation."""
    known = [
        (e.balance_flop_b, e.memory_bound_rel, e.roofline_saved_rel)
        for e in estimates
        if e.balance_flop_b and e.memory_bound_rel is not None and e.roofline_saved_rel is not None
    ]
    if not known:
        return None
    return Roofline(*(math.fsum(figures) / len(known) for figures in zip(*known, strict=True)))


def phases(counting_run: CountingRun | None) -> tuple[Phase, ...]:
    """Where the time of a profiled step went; empty where none was profiled."""
    profile = counting_run.profiling_run if counting_run else None
    baseline_s = math.fsum(profile.plain_s.values()) if profile else 0.0
    if profile is None or baseline_s <= 0:
        return ()
    names = [name for name in PHASES if name in profile.plain_s or name in profile.method_s]
    names += sorted({*profile.plain_s, *profile.method_s} - set(names))
    return tuple(
        Phase(name, profile.plain_s.get(name, 0.0) / baseline_s, profile.method_s.get(name, 0.0) / baseline_s)
        for name in names
    )


def unprofiled_reason(counting_run: CountingRun | None) -> str:
    """Why no step was profiled; empty where one was, or none was asked for."""
    profile = counting_run.profiling_run if counting_run else None
    return (profile.reason if profile else None) or ""


def lost(trials: Iterable[Trial]) -> dict[int, str]:
    """Block → how its newest trial ended, of those that diverged or ran past the limit: lost by what they are."""
    latest = {t.block: t.status for t in pairing.order(trials)}
    return {block: status for block, status in latest.items() if status in ("diverged", "timeout")}


def count(ends: Mapping[int, str], status: str) -> int:
    return sum(end == status for end in ends.values())


def is_unjudged(run: RunFile, workload: str) -> bool:
    """Whether the suite says that there is no quality to lose."""
    workloads: Sequence[dict[str, Any]] = run.resolved.get("workload") or ()
    settings = next((each for each in workloads if each.get("name") == workload), {})
    return (settings.get("quality") or {}).get("from") == "none"
