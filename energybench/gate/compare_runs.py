"""`energybench compare`: two runs, or a run and golden counts, checked for being alike and compared level by level.

Level 0, counts: what any runner gives, exactly. Level 2, savings: each run against its own plain training, so machines
may differ. Level 3, absolute: seconds and joules on one and the same device, refused otherwise. A suite's [[require]]
is held whenever HEAD has one. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from energybench.common.errors import CannotMeasure, Problem, UsageError, nearest, typed
from energybench.common.renamed import as_data, renamed
from energybench.common.safe_read import list_folder, unreadable_reason
from energybench.gate import comparable, compare_cells, golden_counts, regression
from energybench.gate.regression import Comparison, Finding, Records
from energybench.records.shards import shards_of
from energybench.verdict import wording
from energybench.verdict.devices import Pooling
from energybench.verdict.figures import Required, Summary
from energybench.verdict.run_parts import whole_run


@dataclass(frozen=True, slots=True)
class Side:
    """A run, read with its shards and summarised."""

    path: Path
    records: Records
    summary: Summary
    pooling: Pooling | None = None

    @property
    def key(self) -> dict[str, str]:
        return comparable.device_key(self.records[0], self.records[1])


@renamed(noise="margin")
@dataclass(frozen=True, slots=True)
class GateResult:
    """What a comparison gave, for whoever prints it.

    base, head, rerun: the paths that were compared, as given
    levels:            of LEVELS, those that were compared
    margin:            of the suite's [accept], relative, where two runs were compared
    notes:             what a reader must know of the comparison as a whole
    """

    suite: str
    base: str | None
    head: str
    rerun: str | None
    levels: tuple[str, ...]
    margin: float | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    sees: float = regression.SEES  # the loss that the gate is there to see, relative


def read_side(path: Path) -> Side:
    """A run's folder, with its shards. Raises UsageError E601, E609."""
    part = whole_run(_existing(path))
    return Side(path, part.records, part.summary(), part.pooling)


def compare(
    base: Path | None,
    head: Path,
    *,
    levels: Sequence[str] = (),
    rerun: Path | None = None,
    rerun_base: Path | None = None,
    sees: float = regression.SEES,
    allow_gone: bool = False,
) -> GateResult:
    """Compare HEAD with BASE, and with what its own suite requires.

    Args:
        base:       a run's folder or golden counts; None: HEAD is held against its own requirements alone.
        head:       a run's folder, golden counts, or the JSON of `energybench flops`.
        levels:     of LEVELS; by default counts, and savings where both paths are runs.
        rerun:      a second run of HEAD: only what it confirms is a regression.
        rerun_base: a second run of BASE, so that the confirmation shares no run with the suspicion.
        sees:       the loss that the gate is there to see, relative: where one could hide, nothing has passed.
        allow_gone: cells that BASE has and HEAD has not are meant to be gone, and only noted.

    Returns:
        A finding per comparison, with the notes that belong to them.

    Raises:
        UsageError:    E601, E608, E630 to E634 for paths that cannot be compared.
        CannotMeasure: E501 for seconds and joules of two devices.
    """
    if base is None and (levels or rerun or rerun_base):
        hint = f"energybench compare BASE {typed(head)}; HEAD alone is held against its own requirements"
        raise UsageError(Problem("E633", "levels and reruns need a BASE to compare with", str(head), hint))
    chosen = _chosen_levels(base, head, levels)
    _check_reruns(chosen, rerun, rerun_base)
    after = read_side(head) if os.path.isdir(head) else None
    before = read_side(base) if base is not None and os.path.isdir(base) else None
    findings: list[Finding] = []
    notes: list[str] = []
    if base is not None and "counts" in chosen:
        findings += _compare_counts(base, head, before, after, notes, asked=bool(levels))
    if before and after and set(chosen) & set(RUNS_ONLY):
        findings += _compare_runs(before, after, chosen, rerun, rerun_base, notes, sees)
    findings = _gone(findings, notes, allow_gone)
    required = after.summary.required if after else ()
    if base is None and not required:
        hint = "name what it is compared with, energybench compare BASE HEAD; or add a [[require]] to the suite"
        raise UsageError(Problem("E631", "the suite of this run requires nothing", str(head), hint))
    findings += map(_of_requirement, required)
    return GateResult(
        suite=after.summary.suite if after else golden_counts.read(head).suite,
        base=None if base is None else str(base),
        head=str(head),
        rerun=None if rerun is None else str(rerun),
        levels=chosen,
        margin=after.summary.accept.margin if before and after else None,
        findings=tuple(findings),
        notes=tuple(notes),
        sees=sees,
    )


def _gone(findings: Sequence[Finding], notes: list[str], allow_gone: bool) -> list[Finding]:
    """Without the cells that may be gone; else with a word on what was renamed, if anything was."""
    gone = list(dict.fromkeys(f"{each.workload}: {each.method}" for each in findings if each.outcome == "gone"))
    new = list(dict.fromkeys(f"{each.workload}: {each.method}" for each in findings if each.outcome == "new"))
    if gone and allow_gone:
        notes.append(f"gone, as --allow-gone has it: {comparable.abridged(gone)}")
        return [each for each in findings if each.outcome != "gone"]
    if gone:
        renamed = f" if {comparable.abridged(new)} took its place, give it its old name;" if new else ""
        notes.append(f"gone since BASE: {comparable.abridged(gone)};{renamed} --allow-gone where that is meant")
    return list(findings)


def _chosen_levels(base: Path | None, head: Path, levels: Sequence[str]) -> tuple[str, ...]:
    """The levels that were asked for, else all that the two paths allow. Raises UsageError E601, E633."""
    paths = [path for path in (base, head) if path is not None]
    both_runs = all(os.path.isdir(_existing(path)) for path in paths)
    if base is None:
        return ()
    chosen = tuple(levels) or (("counts", "savings") if both_runs else ("counts",))
    files = [path for path in paths if not os.path.isdir(path)]
    of_runs = [level for level in chosen if level in RUNS_ONLY]
    if files and of_runs:
        message = f"level {of_runs[0]} compares two runs' folders, and this is a file"
        raise UsageError(Problem("E633", message, str(files[0]), "a file holds counts: --level counts"))
    return chosen


def _check_reruns(levels: Sequence[str], rerun: Path | None, rerun_base: Path | None) -> None:
    """Raises UsageError E633 for reruns that could confirm nothing."""
    if rerun is not None and not set(levels) & set(RUNS_ONLY):
        hint = "energybench compare BASE HEAD --level savings --rerun HEAD2"
        raise UsageError(Problem("E633", "counts are exact: a rerun says nothing more of them", str(rerun), hint))
    if rerun_base is not None and rerun is None:
        hint = "energybench compare BASE HEAD --rerun HEAD2 --rerun-base BASE2"
        raise UsageError(Problem("E633", "a rerun of BASE belongs to one of HEAD", str(rerun_base), hint))


def accept(base: Path, head: Path) -> GateResult:
    """Write HEAD's counts to the golden file BASE.

    Returns:
        How they differ from what the file held before; no finding where there was none.

    Raises:
        UsageError: E633 where BASE is a folder; E601, E630, E632 for counts that cannot be read or compared.
    """
    if os.path.isdir(base):
        hint = f"energybench compare golden.json {typed(head)} --accept"
        raise UsageError(Problem("E633", "--accept writes a golden file, and this is a folder", str(base), hint))
    counts = golden_counts.read(_existing(head))
    findings: list[Finding] = []
    if os.path.exists(base):
        findings = golden_counts.compare(golden_counts.read(base), counts)
    golden_counts.write(base, counts)
    written = (f"{base} written",)
    return GateResult(counts.suite, str(base), str(head), None, ("counts",), None, tuple(findings), written)


def _existing(path: Path) -> Path:
    """The path, if it is a file or a run's folder. Raises UsageError E601."""
    if os.path.isdir(path) and not os.path.exists(path / "run.json") and not shards_of(path):
        inside = [folder for folder in list_folder(path) if os.path.exists(folder / "run.json")]
        hint = f"it holds runs; name one: {typed(inside[-1])}" if inside else "a run's folder holds a run.json"
        raise UsageError(Problem("E601", "this folder is no run", str(path), hint))
    if os.path.exists(path):
        return path
    siblings = set(map(str, list_folder(path.parent)))
    hint = nearest(str(path), siblings)
    if not hint.startswith("did you mean"):
        hint = "a run's folder, such as reports/<suite>/<run>"
        if path.suffix == ".json":
            hint = f"golden counts are written by: energybench compare {typed(path)} RUN --accept"
    raise UsageError(Problem("E601", _reason_missing(path), str(path), hint))


def _reason_missing(path: Path) -> str:
    reason = unreadable_reason(path)
    return "there is no such file or folder" if reason == "does not exist" else f"it {reason}"


def _compare_counts(
    base: Path, head: Path, before: Side | None, after: Side | None, notes: list[str], asked: bool
) -> list[Finding]:
    base_counts = golden_counts.of_run(*before.records) if before else golden_counts.read(base)
    head_counts = golden_counts.of_run(*after.records) if after else golden_counts.read(head)
    try:
        findings = golden_counts.compare(base_counts, head_counts)
    except UsageError as error:
        if asked or not (before and after):
            raise
        notes.append(f"counts are left out: {error.problems[0].message}")
        return []
    versions = base_counts.torch, head_counts.torch
    if not asked and before and after and all(each.outcome in regression.NOT_COMPARED for each in findings):
        notes.append("counts are left out: neither run has any")
        return []
    if all(versions) and versions[0] != versions[1] and any(each.outcome == "changed" for each in findings):
        notes.append(f"BASE was counted under torch {versions[0]}, HEAD under {versions[1]}")
    return findings


def _compare_runs(
    before: Side,
    after: Side,
    levels: Sequence[str],
    rerun: Path | None,
    rerun_base: Path | None,
    notes: list[str],
    sees: float,
) -> list[Finding]:
    _check_settings(before, after)
    if comparable.copies(before.records[1], after.records[1]):
        notes.append("BASE and HEAD hold records of the same trials: whatever they share cannot differ")
    second_after = read_side(rerun) if rerun else None
    second_before = read_side(rerun_base) if rerun_base else before
    if second_after is not None:
        _check_rerun(after, second_after, "HEAD")
        if second_before is not before:
            _check_rerun(before, second_before, "BASE")
    if "quick" in after.records[0].stamp:
        notes.append("a smoke test (--quick): it shows that everything works, not what a method saves")
    unlike = comparable.devices_differ(before.key, after.key)
    if unlike and "savings" in levels:
        notes.append(
            f"not alike: {comparable.abridged(unlike)}; savings are each held against their own plain training"
        )
    findings: list[Finding] = []
    margin = after.summary.accept.margin
    for level, compared in COMPARISONS.items():
        if level in levels:
            of_level = regression.judge(compared(before, after), margin, sees)
            if second_after is not None:
                suspected = regression.only(compared(second_before, second_after), of_level)
                second = {each.key: each for each in regression.judge(suspected, margin)}
                of_level = regression.confirmed(of_level, second)
            findings += of_level
    return findings


def _saving_comparisons(before: Side, after: Side) -> list[Comparison]:
    return compare_cells.saving_comparisons(before.summary, after.summary)


def _absolute_comparisons(before: Side, after: Side) -> list[Comparison]:
    for side in (before, after):
        if side.pooling is not None and side.pooling.several and not side.pooling.mixed:  # what is mixed is struck
            count = len(set(side.pooling.device_of.values()))
            ran_on = wording.plain(wording.units(count, side.pooling.unit))
            message = f"seconds and joules are compared on one device only, and this ran on {ran_on}"
            hint = "--level savings pools devices of one kind, each trial against plain training on its own"
            raise CannotMeasure(Problem("E501", message, str(side.path), hint))
    if unlike := comparable.devices_differ(before.key, after.key):
        message = f"seconds and joules are compared on one device only; {comparable.abridged(unlike)}"
        hint = "--level savings holds each run against its own plain training, on any machine"
        raise CannotMeasure(Problem("E501", message, str(after.path), hint))
    looks = [
        (each.summary.look.blocks if each.summary.look.open else 0, each.summary.look.alpha_fraction)
        for each in (before, after)
    ]
    struck = [_struck(each.summary) for each in (before, after)]
    return compare_cells.absolute_comparisons(before.records, after.records, looks, struck)


COMPARISONS: dict[str, Callable[[Side, Side], list[Comparison]]] = {
    "savings": _saving_comparisons,
    "absolute": _absolute_comparisons,
}
RUNS_ONLY = tuple(COMPARISONS)
LEVELS = ("counts", *RUNS_ONLY)


def _struck(summary: Summary) -> dict[tuple[str, str], str]:
    """Cells whose figures a flag strikes, plain training's by its workload's flags → the reason."""
    reasons = {(w.name, row.method): row.reason for w in summary.workloads for row in w.rows if row.verdict_forbidden}
    for workload in summary.workloads:
        if reason := next((flag.sentence for flag in workload.flags if flag.severity == "struck"), ""):
            reasons[workload.name, "baseline"] = reason
    return reasons


def _check_settings(before: Side, after: Side) -> None:
    """Raises UsageError E608 for runs of two suites, E630 for settings that move a saving and differ."""
    if before.summary.suite != after.summary.suite:
        message = f"'{before.summary.suite}' in {before.path} and '{after.summary.suite}' are different suites"
        raise UsageError(Problem("E608", message, str(after.path), "compare two runs of one suite"))
    if differing := comparable.settings_differ(before.records[0], after.records[0]):
        message = f"settings that move a saving differ: {comparable.abridged(differing)}"
        hint = f"run the suite again with the settings of {before.path}, or take a new BASE"
        raise UsageError(Problem("E630", message, str(after.path), hint))


def _check_rerun(first: Side, second: Side, name: str) -> None:
    """Raises UsageError E634 where the rerun holds trials of the first run, E608 and E630 for one of other settings."""
    if comparable.copies(first.records[1], second.records[1]):
        message = f"it holds trials of {name} itself, which confirm nothing"
        raise UsageError(Problem("E634", message, str(second.path), "run the suite once more, with --new --out HEAD2"))
    _check_settings(first, second)


def _of_requirement(required: Required) -> Finding:
    return Finding(
        level="require",
        workload=required.workload,
        method=required.method,
        quantity=required.asks,
        outcome=required.outcome,
        base=required.least_rel,
        head=required.saving_rel,
        low_rel=required.low_rel,
        high_rel=required.high_rel,
        reason=required.reason,
    )


def exit_code(result: GateResult, strict: bool) -> int:
    """1 where something fails; 2 where nothing was compared; 4 where a loss could hide, or is open and `strict`."""
    return regression.exit_code(result.findings, strict)


def to_json(result: GateResult, strict: bool) -> dict[str, object]:
    """Plain data: ratios and SI units."""
    from energybench.verdict.summary import plain_data

    return {"schema": 1, "exit_code": exit_code(result, strict), **plain_data(as_data(result))}
