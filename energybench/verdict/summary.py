"""Records → figures: everything a report prints, computed once. Printers only choose words and columns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from energybench.common.renamed import as_data
from energybench.meter import combine
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.stats import paired
from energybench.verdict import flag_codes, flags, interim, interim_notes, pairing, requirements, wording
from energybench.verdict.figures import (
    Accept,
    Added,
    Check,
    Failure,
    Measured,
    NotRun,
    Raised,
    Result,
    Summary,
    Workload,
)
from energybench.verdict.headline import headline
from energybench.verdict.interim import Look
from energybench.verdict.overall import over_all
from energybench.verdict.workload import WorkloadComparison, raised

COUNTER, INTEGRAL = "gpu_counter", "gpu_power_integral"


def summarise(run: RunFile, trials: Sequence[Trial], counting_runs: Sequence[CountingRun]) -> Summary:
    """Everything there is to say about a run. The order of the records does not matter."""
    trials = pairing.order(trials)
    counting_runs = sorted(counting_runs, key=lambda w: (w.workload, w.method))
    names = dict.fromkeys([c.workload for c in run.cells] + [t.workload for t in trials])
    look = interim.current_look(run, trials)
    by_name: dict[str, list[Trial]] = {name: [] for name in names}
    for trial in trials:
        by_name[trial.workload].append(trial)
    benches = [WorkloadComparison(name, run, by_name[name], counting_runs, look) for name in names]
    workloads = tuple(bench.workload() for bench in benches)
    here = raised(flags.check_run(run, trials), "this run")
    return Summary(
        suite=run.suite,
        about=run.about,
        run=run.run,
        stamp=tuple(run.stamp),
        finished=run.finished,
        blocks=run.blocks,
        headline=wording.plain(interim_notes.headline(look, workloads) or headline(workloads)),
        energy_note=_energy_note(run, trials),
        accept=Accept.of(run),
        workloads=workloads,
        flags=here,
        checks=_checks(workloads, here, trials, counting_runs),
        failures=_failures(trials),
        not_run=_not_run(run, trials, look) + _uncounted(counting_runs),
        machine=run.machine,
        invocations=tuple(tuple(call.argv) for call in run.invocations),
        digest=run.digest,
        sources=dict(sorted(run.sources.items())),
        look=look,
        look_note=wording.plain(interim_notes.note(look)),
        overall=over_all(benches, workloads),
        added=_added(run, trials, counting_runs, look),
        required=requirements.held(run.resolved.get("require") or (), workloads, look),
    )


def _energy_note(run: RunFile, trials: Sequence[Trial]) -> str:
    """The first screen's word on energy: measured by what, or modelled, or not to be had, and why."""
    windows = [trial.train for trial in trials if trial.train is not None]
    sensors = [combine.metered(window).sensors for window in windows]
    if (run.resolved.get("measure") or {}).get("energy") == "off":
        return wording.ENERGY_OFF
    missing = [e for window in windows for e in window.energy if e.energy_j is None]
    if any(sensors):
        by = dict.fromkeys(sensor for found in sensors for sensor in sorted(found))
        return wording.energy_measured(list(by), all(sensors), missing)
    modelled = any(e.energy_j is not None for window in windows for e in window.energy)
    return wording.energy_not_measured(modelled, missing) if windows else ""


def _failures(trials: Sequence[Trial]) -> tuple[Failure, ...]:
    reasons = [(trial, pairing.unusable(trial)) for trial in trials]
    good = [trial for trial, reason in reasons if reason is None]

    def repeated(failed: Trial) -> bool:
        key = (failed.workload, failed.method, failed.block)
        return any((t.workload, t.method, t.block) == key and t.invocation > failed.invocation for t in good)

    return tuple(
        Failure(
            trial.trial,
            trial.workload,
            trial.method,
            trial.block,
            "invalid" if trial.status == "ok" else trial.status,
            reason,
            repeated(trial),
        )
        for trial, reason in reasons
        if reason is not None
    )


def _not_run(run: RunFile, trials: Sequence[Trial], look: Look) -> tuple[NotRun, ...]:
    seen = {(t.workload, t.method, t.block) for t in trials}
    found = []
    for cell in run.cells:
        missing = [str(b) for b in range(look.blocks) if (cell.workload, cell.method, b) not in seen]
        if cell.skipped is not None:
            found.append(NotRun(cell.workload, cell.method, cell.skipped))
        elif missing:
            plural = "s" * (len(missing) != 1)
            found.append(NotRun(cell.workload, cell.method, f"no trial of block{plural} {', '.join(missing)}"))
    return tuple(found)


def _added(
    run: RunFile, trials: Sequence[Trial], counting_runs: Sequence[CountingRun], look: Look
) -> tuple[Added, ...]:
    """Every comparison over all blocks, where some were added to the finished run."""
    count = interim_notes.added_blocks(run, trials)
    if not count:
        return ()
    everything = dataclasses.replace(look, blocks=max(t.block for t in trials) + 1, alpha_fraction=1.0)
    names = dict.fromkeys(t.workload for t in trials)
    benches = [WorkloadComparison(name, run, trials, counting_runs, everything) for name in names]
    return tuple(
        Added(bench.name, label, count, Measured.of(*bench.compare(found)))
        for bench in benches
        for label, found in bench.against.items()
        if found
    )


def _uncounted(counting_runs: Sequence[CountingRun]) -> tuple[NotRun, ...]:
    """Counted runs that gave no figure: their `counted` stays blank, with this reason."""
    return tuple(
        NotRun(w.workload, w.method, f"not counted: {w.reason or w.status}")
        for w in counting_runs
        if w.status != "ok" or w.counted_flop is None
    )


def _checks(
    workloads: Sequence[Workload], here: Sequence[Raised], trials: Sequence[Trial], counting_runs: Sequence[CountingRun]
) -> tuple[Check, ...]:
    """The whole list of reasons: raised somewhere, clear, or not checked for want of evidence."""
    all_raised = [*here, *(flag for w in workloads for flag in (*w.flags, *(f for r in w.rows for f in r.flags)))]
    for trial in trials:
        if pairing.unusable(trial) is not None:  # set aside, so no row carries its flags
            all_raised += raised(flags.check_trial(trial), f"{trial.workload}: {trial.method}, block {trial.block}")
    all_raised += _beside(trials, {flag.code for flag in all_raised})
    counted = any(counting_run.status == "ok" for counting_run in counting_runs)
    windows = [trial.train for trial in trials if trial.train is not None]
    measured = {energy.source for window in windows for energy in window.energy if energy.measured or energy.lost}
    cards = any(window.cards for window in windows)
    possible = {
        "witness_differs": counted,
        "uncounted_steps": counted,
        "estimate_gap": counted,
        "ledger_differs": counted,
        "control_differs": any(row.control for w in workloads for row in w.rows),
        **dict.fromkeys(("sensor_lost", "window_short", "sensor_error"), bool(measured)),
        **dict.fromkeys(("channels_contradict", "channels_apart"), {COUNTER, INTEGRAL} <= measured),
        **dict.fromkeys(("mig", "mps", "foreign_process", "throttled", "temperature", "aliasing"), cards),
        **dict.fromkeys(("reads_missed", "harness_overhead"), any(w.sampler for w in windows)),
        "not_settled": any(trial.warmup and trial.warmup.settled is not None for trial in trials),
    }
    found: list[Check] = []
    unknown = {flag.code: flag_codes.kind(flag.code) for flag in all_raised if flag.code not in flag_codes.KINDS}
    for kind in (*flag_codes.REGISTRY, *(unknown[code] for code in sorted(unknown))):
        places = [flag for flag in all_raised if flag.code == kind.code]
        found += [Check(kind.code, f.where, "raised", kind.severity, kind.sentence, f.detail) for f in places]
        if kind.code == "aa_failed":
            found += [_aa(w) for w in workloads if not any(f.code == "aa_failed" for f in w.flags)]
        elif not places:
            result: Result = "clear" if possible.get(kind.code, bool(trials)) else "not checked"
            found.append(Check(kind.code, "this run", result, kind.severity, kind.sentence, ""))
    return tuple(found)


def _beside(trials: Sequence[Trial], told: set[str]) -> list[Raised]:
    """What only twins and controls raised: no row carries their flags, and a check that one raised is not clear."""
    found: dict[tuple[str, str], Raised] = {}
    for trial in trials:
        if trial.role in ("twin", "control"):
            for flag in raised(flags.check_trial(trial), f"{trial.workload}: {trial.method}"):
                found.setdefault((flag.code, flag.where), flag)
    return [flag for flag in found.values() if flag.code not in told]


def _aa(workload: Workload) -> Check:
    """The A/A check always shows its figure: how far plain training lies from itself."""
    kind, twin = flag_codes.KINDS["aa_failed"], workload.twin
    if twin is None or twin.n < paired.FEWEST_BLOCKS:
        detail = "no twin" if twin is None else wording.plain(wording.blocks(twin.n))
        return Check(kind.code, workload.name, "not checked", kind.severity, kind.sentence, detail)
    detail = wording.plain(f"{wording.measured(twin)} {wording.what(twin.quantity, twin.scope)}")
    return Check(kind.code, workload.name, "clear", kind.severity, kind.sentence, detail)


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
