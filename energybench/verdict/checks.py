"""The whole list of reasons, applied to one run: raised somewhere, clear, or not checked for want of evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from energybench.meter.doubts import COUNTER, INTEGRAL, sees_others
from energybench.records.record import SCHEMA, CountingRun, Trial
from energybench.stats import paired
from energybench.verdict import flag_codes, wording
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Check, RaisedFlag, Result, Workload
from energybench.verdict.workload import raised

COUNTED = ("witness_differs", "same_weights", "uncounted_steps", "unpriced_work", "estimate_gap", "ledger_differs")
SENSED = ("sensor_lost", "implausible", "window_short", "sensor_error")
TWO_CHANNELS = ("channels_contradict", "channels_apart")
CARDS = ("mig", "mps", "foreign_process", "throttled", "temperature", "aliasing")
LOOKED_AROUND = ("suspended", "second_tracker")
SINCE_SCHEMA_2 = ("implausible", "other_load", *LOOKED_AROUND)  # nobody looked when records of schema 1 were made
BY_WEIGHTS = ("weights_changed", "patched", "clock_differs", "same_weights", "outside_work")
BETWEEN_TRIALS = ("files_found", "cliff")
SINCE = {
    **dict.fromkeys(SINCE_SCHEMA_2, 2),
    **dict.fromkeys(("unpriced_work", *BY_WEIGHTS), 3),
    **dict.fromkeys(BETWEEN_TRIALS, 4),
}
SAMPLED = ("reads_missed", "harness_overhead")


def checks(
    workloads: Sequence[Workload],
    run_flags: Sequence[RaisedFlag],
    trials: Sequence[Trial],
    counting_runs: Sequence[CountingRun],
    examination: Examination,
) -> tuple[Check, ...]:
    """Every code in the order of the list, then codes of other versions: an entry for each place that raised it.

    What nobody looked for when the records were made is left out.

    The A/A check has one for each workload, raised or not; any other that nobody raised has one for the run.
    """
    all_raised = _all_raised(workloads, run_flags, trials, examination)
    evidence = _evidence(workloads, trials, counting_runs)
    unknown = {flag.code: flag_codes.kind(flag.code) for flag in all_raised if flag.code not in flag_codes.KINDS}
    schema = max((trial.schema_ for trial in trials), default=SCHEMA)
    result: list[Check] = []
    for kind in (*flag_codes.REGISTRY, *(unknown[code] for code in sorted(unknown))):
        places = [flag for flag in all_raised if flag.code == kind.code]
        result += [Check(kind.code, f.where, "raised", f.severity, kind.said_of(schema), f.detail) for f in places]
        if kind.code == "aa_failed":
            result += [_aa(w) for w in workloads if not any(f.code == "aa_failed" for f in w.flags)]
        elif not places and (schema >= SINCE.get(kind.code, 1)):
            outcome: Result = "clear" if evidence.get(kind.code, bool(trials)) else "not checked"
            result.append(Check(kind.code, "this run", outcome, kind.of_schema(schema), kind.said_of(schema), ""))
    return tuple(result)


def _all_raised(
    workloads: Sequence[Workload], run_flags: Sequence[RaisedFlag], trials: Sequence[Trial], examination: Examination
) -> list[RaisedFlag]:
    """Of the run, its workloads and rows; of trials that were set aside, so that no row carries their flags; and what
    only twins and controls raised."""
    result = list(run_flags)
    for workload in workloads:
        result += [*workload.flags, *(flag for row in workload.rows for flag in row.flags)]
    for trial in trials:
        if examination.reason_unusable(trial) is not None:
            result += raised(examination.flags(trial), f"{trial.workload}: {trial.method}, block {trial.block}")
    known = {flag.code for flag in result}
    return result + [flag for flag in _beside(trials, examination) if flag.code not in known]


def _beside(trials: Sequence[Trial], examination: Examination) -> Iterator[RaisedFlag]:
    """What twins and controls raised, once for each cell: no row carries it, and what one raised is not clear."""
    seen: set[tuple[str, str]] = set()
    for trial in trials:
        if trial.role in ("twin", "control"):
            for flag in raised(examination.flags(trial), f"{trial.workload}: {trial.method}"):
                if (flag.code, flag.where) not in seen:
                    seen.add((flag.code, flag.where))
                    yield flag


def _evidence(
    workloads: Sequence[Workload], trials: Sequence[Trial], counting_runs: Sequence[CountingRun]
) -> Mapping[str, bool]:
    """Code → whether the records hold what its check needs. Codes that are not in it need a trial."""
    windows = [trial.train for trial in trials if trial.train is not None]
    sources = {energy.source for window in windows for energy in window.energy if energy.measured or energy.lost}
    return {
        **dict.fromkeys(COUNTED, any(counting_run.status == "ok" for counting_run in counting_runs)),
        **dict.fromkeys(SENSED, bool(sources)),
        **dict.fromkeys(TWO_CHANNELS, {COUNTER, INTEGRAL} <= sources),
        **dict.fromkeys(CARDS, any(window.cards for window in windows)),
        **dict.fromkeys(SAMPLED, any(window.sampler for window in windows)),
        **dict.fromkeys(LOOKED_AROUND, any(window.suspended_s is not None for window in windows)),
        **dict.fromkeys(("weights_changed", "patched"), any(trial.judged_sha256 for trial in trials)),
        **dict.fromkeys(("clock_differs", "outside_work"), any(trial.process for trial in trials)),
        "other_load": any(sees_others(window) for window in windows),
        "control_differs": any(row.control for workload in workloads for row in workload.rows),
        "not_settled": any(trial.warmup and trial.warmup.settled is not None for trial in trials),
    }


def _aa(workload: Workload) -> Check:
    """The A/A check always shows its figure: how far plain training lies from itself."""
    kind, twin = flag_codes.KINDS["aa_failed"], workload.twin
    if twin is None or twin.n < paired.FEWEST_BLOCKS:
        detail = "no twin" if twin is None else wording.plain(wording.units(twin.n, twin.unit))
        return Check(kind.code, workload.name, "not checked", kind.severity, kind.sentence, detail)
    detail = wording.plain(f"{wording.measured(twin)} {wording.what(twin.quantity, twin.scope)}")
    return Check(kind.code, workload.name, "clear", kind.severity, kind.sentence, detail)
