"""Records → figures: everything a report prints, computed once. Printers only choose words and columns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from energybench.common.renamed import as_data
from energybench.flops.unpriced import matrix_operators
from energybench.meter import combine
from energybench.meter.not_seen import not_seen_of
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.suite.sweep_keys import plain_names
from energybench.verdict import devices, flags, interim, interim_notes, pairing, requirements, wording
from energybench.verdict.checks import checks
from energybench.verdict.devices import Pooling
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Accept, Added, Failure, NotRun, Summary, Uncounted
from energybench.verdict.headline import busy_note, headline
from energybench.verdict.interim import Look
from energybench.verdict.next_steps import more_blocks_for
from energybench.verdict.overall import over_all
from energybench.verdict.workload import WorkloadComparison, raised


def summarise(
    run: RunFile,
    trials: Sequence[Trial],
    counting_runs: Sequence[CountingRun],
    examination: Examination | None = None,
    pooling: Pooling | None = None,
) -> Summary:
    """Everything there is to say about a run. The order of the records does not matter.

    Args:
        run: with the suite as it was resolved
        trials: of the run, good and failed
        counting_runs: its unmetered, counted runs
        examination: of these trials, for whoever asks it further questions; by default they are examined here
        pooling: of their devices, as `run_parts` has it; by default that of one folder
    """
    trials = pairing.order(trials)
    examination = examination or Examination(trials)
    pooling = pooling or devices.pooling(run, trials)
    of_run = trials if pooling.whole is None else pairing.order(pooling.whole)
    counting_runs = sorted(counting_runs, key=lambda w: (w.workload, w.method))
    names = dict.fromkeys([c.workload for c in run.cells] + [t.workload for t in trials])
    look = interim.current_look(run, of_run)
    by_name: dict[str, list[Trial]] = {name: [] for name in names}
    for trial in trials:
        by_name[trial.workload].append(trial)
    comparisons = [
        WorkloadComparison(name, run, by_name[name], counting_runs, look, examination, pooling) for name in names
    ]
    workloads = tuple(comparison.workload() for comparison in comparisons)
    run_flags = raised(flags.check_run(run, trials), "this run")
    return Summary(
        suite=run.suite,
        about=run.about,
        run=run.run,
        stamp=tuple(run.stamp),
        finished=run.finished,
        blocks=run.blocks,
        headline=wording.plain((interim_notes.headline(look, workloads) or headline(workloads)) + busy_note(run)),
        energy_note=_energy_note(run, trials, pooling.several),
        accept=Accept.of(run),
        workloads=workloads,
        flags=run_flags,
        checks=checks(workloads, run_flags, trials, counting_runs, examination),
        failures=_failures(trials, examination),
        not_run=_not_run(run, of_run, look) + _uncounted(counting_runs),
        machine=run.machine,
        invocations=tuple(tuple(call.argv) for call in run.invocations),
        digest=run.digest,
        sources=dict(sorted(run.sources.items())),
        look=look,
        look_note=wording.plain(interim_notes.note(look)),
        overall=over_all(comparisons, workloads),
        added=_added(run, trials, counting_runs, look, examination, pooling),
        uncounted=_without_price(counting_runs),
        required=requirements.held(
            run.resolved.get("require") or (), workloads, look, plain_names(run.resolved.get("workload") or ())
        ),
        decide="" if look.next else more_blocks_for(run, workloads),
        device_note=wording.plain(pooling.note),
    )


def _energy_note(run: RunFile, trials: Sequence[Trial], pooled: bool) -> str:
    """The first screen's word on energy: measured by what, or modelled, or not to be had, and why.

    pooled: over devices, each of which was measured by itself
    """
    windows = [trial.train for trial in trials if trial.train is not None]
    sensors = [combine.metered(window).sensors for window in windows]
    if (run.resolved.get("measure") or {}).get("energy") == "off":
        return wording.ENERGY_OFF
    missing = [e for window in windows for e in window.energy if e.energy_j is None]
    unseen = not_seen_of(e for window in windows for e in window.energy)
    if any(sensors):
        measured_by = dict.fromkeys(sensor for of_window in sensors for sensor in sorted(of_window))
        of: dict[tuple[str, str], list[str]] = {}
        channels = () if pooled else dict.fromkeys(c for w in windows for c in sorted(combine.metered(w).channels))
        for source, scope, device in channels:  # whose joules are added
            of.setdefault((source, scope), []).append(device)
        return wording.energy_measured(list(measured_by), all(sensors), missing, unseen, of)
    modelled = any(e.energy_j is not None for window in windows for e in window.energy)
    return wording.energy_not_measured(modelled, missing, unseen) if windows else ""


def _failures(trials: Sequence[Trial], examination: Examination) -> tuple[Failure, ...]:
    last_usable: dict[tuple[str, str, int], int] = {}  # (workload, method, block) → invocation
    for trial in examination.usable(trials):
        key = (trial.workload, trial.method, trial.block)
        last_usable[key] = max(trial.invocation, last_usable.get(key, trial.invocation))
    return tuple(
        Failure(
            trial.trial,
            trial.workload,
            trial.method,
            trial.block,
            "invalid" if trial.status == "ok" else trial.status,
            reason,
            repeated=last_usable.get((trial.workload, trial.method, trial.block), -1) > trial.invocation,
        )
        for trial in trials
        if (reason := examination.reason_unusable(trial)) is not None
    )


def _not_run(run: RunFile, trials: Sequence[Trial], look: Look) -> tuple[NotRun, ...]:
    without = interim.missing_blocks(run.cells, trials, look.blocks)
    not_run = []
    for cell in run.cells:
        missing = [str(block) for block in without[cell.workload, cell.method]]
        if cell.skipped is not None:
            not_run.append(NotRun(cell.workload, cell.method, cell.skipped))
        elif missing:
            plural = "s" * (len(missing) != 1)
            not_run.append(NotRun(cell.workload, cell.method, f"no trial of block{plural} {', '.join(missing)}"))
    return tuple(not_run)


def _added(
    run: RunFile,
    trials: Sequence[Trial],
    counting_runs: Sequence[CountingRun],
    look: Look,
    examination: Examination,
    pooling: Pooling,
) -> tuple[Added, ...]:
    """Every comparison over all blocks, where some were added to the finished run."""
    count = interim_notes.added_blocks(run, trials)
    if not count:
        return ()
    everything = dataclasses.replace(look, blocks=max(t.block for t in trials) + 1, alpha_fraction=1.0)
    names = dict.fromkeys(t.workload for t in trials)
    comparisons = [
        WorkloadComparison(name, run, trials, counting_runs, everything, examination, pooling) for name in names
    ]
    return tuple(
        Added(comparison.name, label, count, comparison.measured(*comparison.compare(pairs)))
        for comparison in comparisons
        for label, pairs in comparison.compared.items()
        if pairs
    )


def _uncounted(counting_runs: Sequence[CountingRun]) -> tuple[NotRun, ...]:
    """Counted runs that gave no figure: their `counted` stays blank, with this reason."""
    return tuple(
        NotRun(w.workload, w.method, f"not counted: {w.reason or w.status}")
        for w in counting_runs
        if w.status != "ok" or w.counted_flop is None
    )


def _without_price(counting_runs: Sequence[CountingRun]) -> tuple[Uncounted, ...]:
    """What the counted runs called and nobody prices; those of schema 1 listed known names alone."""
    listed = []
    for w in counting_runs:
        if w.status == "ok" and w.uncounted_calls:
            hiding = tuple(matrix_operators(w.uncounted_calls))
            looked = hiding or w.schema_ > 1
            calls = dict(sorted(w.uncounted_calls.items()))
            listed.append(Uncounted(w.workload, w.method, calls, hiding if looked else None))
    return tuple(listed)


def to_json(summary: Summary) -> dict[str, Any]:
    """Plain data for `--json`: fractions and SI units as in the names; what is not finite becomes null."""
    return {"schema": 1, **plain_data(as_data(summary))}


def plain_data(value: Any) -> Any:
    """JSON-able: what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return wording.plain(value) if isinstance(value, str) else value
