"""`energybench compare`: two runs, or a run and golden counts, read, checked for being alike and held level by level.

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
from energybench.gate import comparable, golden_counts, regression
from energybench.gate.regression import Case, Finding, Records
from energybench.records.reader import read_folder
from energybench.verdict.figures import Required, Summary
from energybench.verdict.summary import summarise

LEVELS = ("counts", "savings", "absolute")
RUNS_ONLY = ("savings", "absolute")


@dataclass(frozen=True, slots=True)
class Side:
    """A run, read and summarised."""

    path: Path
    records: Records
    summary: Summary

    @property
    def key(self) -> dict[str, str]:
        return comparable.device_key(self.records[0], self.records[1])


@renamed(noise="margin")
@dataclass(frozen=True, slots=True)
class Gate:
    """What a comparison found, for whoever prints it."""

    suite: str
    base: str | None
    head: str
    rerun: str | None
    levels: tuple[str, ...]
    margin: float | None  # the suite's, where runs were compared
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def side(path: Path) -> Side:
    """A run's folder. Raises UsageError E601."""
    records = read_folder(_there(path))
    return Side(path, records, summarise(*records))


def hold(
    base: Path | None,
    head: Path,
    *,
    levels: Sequence[str] = (),
    rerun: Path | None = None,
    rerun_base: Path | None = None,
) -> Gate:
    """Everything that was asked for; without `levels`, whatever the two paths allow.

    base: a run's folder or golden counts; None: only HEAD's own requirements are held
    Raises UsageError E601, E608, E630–E634 for paths that cannot be compared, CannotMeasure E501 for another device.
    """
    if base is None and (levels or rerun or rerun_base):
        hint = f"energybench compare BASE {typed(head)}; HEAD alone is held against its own requirements"
        raise UsageError(Problem("E633", "levels and reruns need a BASE to compare with", str(head), hint))
    paths = [path for path in (base, head) if path is not None]
    runs = all(os.path.isdir(_there(path)) for path in paths)
    chosen: tuple[str, ...] = ()
    if base is not None:
        chosen = tuple(levels) or (("counts", "savings") if runs else ("counts",))
    files = [path for path in paths if not os.path.isdir(path)]
    if files and (wanted := [level for level in chosen if level in RUNS_ONLY]):
        message = f"level {wanted[0]} compares two runs' folders, and this is a file"
        raise UsageError(Problem("E633", message, str(files[0]), "a file holds counts: --level counts"))
    if rerun is not None and not set(chosen) & set(RUNS_ONLY):
        hint = "energybench compare BASE HEAD --level savings --rerun HEAD2"
        raise UsageError(Problem("E633", "counts are exact: a rerun says nothing more of them", str(rerun), hint))
    if rerun_base is not None and rerun is None:
        hint = "energybench compare BASE HEAD --rerun HEAD2 --rerun-base BASE2"
        raise UsageError(Problem("E633", "a rerun of BASE belongs to one of HEAD", str(rerun_base), hint))
    after = side(head) if os.path.isdir(head) else None
    before = side(base) if base is not None and os.path.isdir(base) else None
    found: list[Finding] = []
    notes: list[str] = []
    if base is not None and "counts" in chosen:
        found += _counts(base, head, before, after, notes, asked=bool(levels))
    if before and after and set(chosen) & set(RUNS_ONLY):
        found += _runs(before, after, chosen, rerun, rerun_base, notes)
    required = after.summary.required if after else ()
    if base is None and not required:
        hint = "name what it is compared with, energybench compare BASE HEAD; or add a [[require]] to the suite"
        raise UsageError(Problem("E631", "the suite of this run requires nothing", str(head), hint))
    found += map(_of_requirement, required)
    suite = after.summary.suite if after else golden_counts.read(head).suite
    margin = after.summary.accept.margin if before and after else None
    shown = [None if path is None else str(path) for path in (base, rerun)]
    return Gate(suite, shown[0], str(head), shown[1], chosen, margin, tuple(found), tuple(notes))


def accept(base: Path, head: Path) -> Gate:
    """Write HEAD's counts to the golden file BASE. Returns how they differ from what it held before."""
    if os.path.isdir(base):
        hint = f"energybench compare golden.json {typed(head)} --accept"
        raise UsageError(Problem("E633", "--accept writes a golden file, and this is a folder", str(base), hint))
    counts = golden_counts.read(_there(head))
    found: list[Finding] = []
    if os.path.exists(base):
        found = golden_counts.compare(golden_counts.read(base), counts)
    golden_counts.write(base, counts)
    return Gate(counts.suite, str(base), str(head), None, ("counts",), None, tuple(found), (f"{base} written",))


def _there(path: Path) -> Path:
    """The path, if it is a file or a run's folder."""
    if os.path.isdir(path) and not os.path.exists(path / "run.json"):
        inside = [folder for folder in list_folder(path) if os.path.exists(folder / "run.json")]
        hint = f"it holds runs; name one: {typed(inside[-1])}" if inside else "a run's folder holds a run.json"
        raise UsageError(Problem("E601", "this folder is no run", str(path), hint))
    if os.path.exists(path):
        return path
    near = set(map(str, list_folder(path.parent)))
    hint = nearest(str(path), near)
    if not hint.startswith("did you mean"):
        hint = "a run's folder, such as reports/<suite>/<run>"
        if path.suffix == ".json":
            hint = f"golden counts are written by: energybench compare {typed(path)} RUN --accept"
    raise UsageError(Problem("E601", _missing(path), str(path), hint))


def _missing(path: Path) -> str:
    what = unreadable_reason(path)
    return "there is no such file or folder" if what == "does not exist" else f"it {what}"


def _counts(
    base: Path, head: Path, before: Side | None, after: Side | None, notes: list[str], asked: bool
) -> list[Finding]:
    one = golden_counts.of_run(*before.records) if before else golden_counts.read(base)
    other = golden_counts.of_run(*after.records) if after else golden_counts.read(head)
    try:
        found = golden_counts.compare(one, other)
    except UsageError as error:
        if asked or not (before and after):
            raise
        notes.append(f"counts are left out: {error.problems[0].message}")
        return []
    if one.torch != other.torch and one.torch and other.torch and any(f.outcome == "changed" for f in found):
        notes.append(f"BASE was counted under torch {one.torch}, HEAD under {other.torch}")
    return found


def _runs(
    before: Side, after: Side, levels: Sequence[str], rerun: Path | None, rerun_base: Path | None, notes: list[str]
) -> list[Finding]:
    _same_settings(before, after)
    if comparable.copies(before.records[1], after.records[1]):
        notes.append("BASE and HEAD hold records of the same trials: whatever they share cannot differ")
    again = side(rerun) if rerun else None
    origin = side(rerun_base) if rerun_base else before
    if again is not None:
        _independent(after, again, "HEAD")
        _same_settings(after, again)
        if origin is not before:
            _independent(before, origin, "BASE")
            _same_settings(before, origin)
    if "quick" in after.records[0].stamp:
        notes.append("a smoke test (--quick): it shows that everything works, not what a method saves")
    others = comparable.devices_differ(before.key, after.key)
    if others and "savings" in levels:
        notes.append(f"not alike: {comparable.told(others)}; savings are each held against their own plain training")
    found: list[Finding] = []
    ways: dict[str, Callable[[Side, Side], list[Case]]] = {"savings": _saving_cases, "absolute": _absolute_cases}
    for level in (level for level in RUNS_ONLY if level in levels):
        margin = after.summary.accept.margin
        first = regression.judge(ways[level](before, after), margin)
        if again is not None:
            asked = regression.only(ways[level](origin, again), first)
            first = regression.confirmed(first, {f.key: f for f in regression.judge(asked, margin)})
        found += first
    return found


def _saving_cases(before: Side, after: Side) -> list[Case]:
    return regression.saving_cases(before.summary, after.summary)


def _absolute_cases(before: Side, after: Side) -> list[Case]:
    if others := comparable.devices_differ(before.key, after.key):
        message = f"seconds and joules are compared on one device only; {comparable.told(others)}"
        hint = "--level savings holds each run against its own plain training, on any machine"
        raise CannotMeasure(Problem("E501", message, str(after.path), hint))
    looks = [
        (each.summary.look.blocks if each.summary.look.open else 0, each.summary.look.alpha_fraction)
        for each in (before, after)
    ]
    struck = [_struck(each.summary) for each in (before, after)]
    return regression.absolute_cases(before.records, after.records, looks, struck)


def _struck(summary: Summary) -> dict[tuple[str, str], str]:
    """Cells whose figures a flag strikes, plain training's by its workload's flags, and why."""
    found = {(w.name, row.method): row.because for w in summary.workloads for row in w.rows if row.struck}
    for workload in summary.workloads:
        if why := next((flag.sentence for flag in workload.flags if flag.severity == "struck"), ""):
            found[workload.name, "baseline"] = why
    return found


def _same_settings(one: Side, other: Side) -> None:
    if one.summary.suite != other.summary.suite:
        message = f"'{one.summary.suite}' in {one.path} and '{other.summary.suite}' are different suites"
        raise UsageError(Problem("E608", message, str(other.path), "compare two runs of one suite"))
    if differs := comparable.settings_differ(one.records[0], other.records[0]):
        message = f"settings that move a saving differ: {comparable.told(differs)}"
        hint = f"run the suite again with the settings of {one.path}, or take a new BASE"
        raise UsageError(Problem("E630", message, str(other.path), hint))


def _independent(first: Side, again: Side, name: str) -> None:
    if comparable.copies(first.records[1], again.records[1]):
        message = f"it holds trials of {name} itself, which confirm nothing"
        raise UsageError(Problem("E634", message, str(again.path), "run the suite once more, with --new --out HEAD2"))


def _of_requirement(found: Required) -> Finding:
    return Finding(
        "require",
        found.workload,
        found.method,
        found.asks,
        found.outcome,
        found.least_rel,
        found.saving_rel,
        None,
        found.low_rel,
        found.high_rel,
        because=found.because,
    )


def exit_code(found: Gate, strict: bool) -> int:
    return regression.exit_code(found.findings, strict)


def to_json(found: Gate, strict: bool) -> dict[str, object]:
    """Plain data: ratios and SI units."""
    from energybench.verdict.summary import plain_data

    return {"schema": 1, "exit_code": exit_code(found, strict), **plain_data(as_data(found))}
