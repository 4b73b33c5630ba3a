"""Level 0 of the gate: counts that the same suite gives on any machine, held against golden values.

A count is what a formula, a counter or the loop's own tally says of one cell with the suite's first seed: FLOPs
estimated and counted, passes, samples, epochs, kinds of steps, parameters. Nothing here was timed. What a file cannot
know (`energybench flops` keeps no tally of controls) is left out of a comparison, never taken for 0.

FLOPs that the counter saw are not all a matter of shapes: a count of some of the steps has an error, and what a method
computes outside of steps, such as a fit that iterates until it is good enough, depends on numbers that differ between
machines. Such a count is open by that much, `tolerance_flop`, and every other is exact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from energybench.common.differences import differences
from energybench.common.errors import Problem, UsageError
from energybench.common.limits import RECORD_B
from energybench.common.outputs import json_kind, write_output
from energybench.common.quantities import Seed, Text
from energybench.common.safe_read import read_bytes
from energybench.gate.regression import Finding
from energybench.meter.reading import RecordModel
from energybench.records.record import CountingRun, Passes, RunFile, Trial
from energybench.verdict.run_parts import whole_run

SCHEMA = 1
SAME_REL = 1e-9  # floats that were summed in another order
OPEN_REL = 1e-3  # most of a count that what runs outside of steps may leave open: as ledger and counter may differ
COUNTED = "counted_flop"
PARAMETERS = "parameters"
LARGEST_COUNT = 1e36  # a larger one is no count, nor is a negative one
KIND = json_kind("a file of golden counts", lambda found: "golden" in found)
Cell = tuple[str, str]  # (workload, method)
Facts = dict[str, float | None]
Source = Literal["run", "flops"]


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of every cell.

    stamp:  the options that changed the suite, such as "quick"
    source: what wrote them: a name that the other source cannot have is unknown in it, not gone
    torch:  its version, under which they were counted
    tolerance_flop: how far the counted FLOPs of a cell may move with the machine; 0 for cells that are not there
    """

    suite: str
    stamp: tuple[str, ...]
    seed: int | None
    cells: dict[Cell, Facts]
    source: Source
    torch: str | None = None
    tolerance_flop: dict[Cell, float] = field(default_factory=dict)


class Header(RecordModel):
    """What is no count in golden counts, strictly typed: a name that is no text would be compared and printed too."""

    suite: Text
    stamp: tuple[Text, ...]
    seed: Seed | None
    source: Source
    torch: Text | None
    cells: tuple[tuple[Text, Text], ...]


def of_run(run: RunFile, trials: Sequence[Trial], counting_runs: Sequence[CountingRun]) -> Counts:
    """Of a run's records: those of the counting run, with the first seed; a control's from its first block."""
    by_cell = {(each.workload, each.method): each for each in counting_runs}
    seed = (run.resolved.get("trials") or {}).get("seed")
    first = {
        (t.workload, t.method): t
        for t in sorted(trials, key=lambda t: (-t.block, t.invocation))
        if t.status == "ok" and (t.block == 0 or t.seed == seed)
    }
    cells: dict[Cell, Facts] = {}
    for cell in run.cells:
        key: Cell = cell.workload, cell.method
        trained = cell.control is None or key in first  # a control whose method trained less
        if cell.skipped is None and cell.role != "twin" and trained:
            data = run.data.get(cell.workload) or {}
            cells[key] = _facts(by_cell.get(key), first.get(key), data.get(PARAMETERS))
    if seed is None:
        seed = next((each.seed for each in counting_runs), None)
    tolerances = {
        (each.workload, each.method): tolerance_flop(
            each.counted_flop, each.counted_error_flop, each.outside_steps_flop
        )
        for each in counting_runs
        if (each.workload, each.method) in cells
    }
    return Counts(run.suite, tuple(run.stamp), seed, cells, "run", run.machine.get("torch"), _open(tolerances))


def tolerance_flop(counted: float | None, error: float, outside_steps: float) -> float:
    """How far a count may move: its own error, and what ran outside of steps, but little of the whole."""
    return error + min(outside_steps, OPEN_REL * (counted or 0.0))


def _open(tolerances: dict[Cell, float]) -> dict[Cell, float]:
    return {cell: tolerance for cell, tolerance in tolerances.items() if tolerance}


def _facts(counting_run: CountingRun | None, trial: Trial | None, parameters: float | None) -> Facts:
    finished = counting_run if counting_run and counting_run.status == "ok" else None
    sources = [source for source in (finished, trial) if source is not None]
    estimate = next((source.estimate for source in sources if source.estimate), None)
    passes = next((source.passes for source in sources if source.passes), None)
    facts: Facts = {PARAMETERS: parameters}
    facts["plain_flop"] = estimate.plain_flop if estimate else None
    facts["estimated_flop"] = estimate.estimated_flop if estimate else None
    if counting_run is not None:
        facts[COUNTED] = finished.counted_flop if finished else None
    return facts | _tally(passes)


def _tally(passes: Passes | None) -> Facts:
    if passes is None:
        return {}
    names = ("forwards", "backwards", "updates", "samples_forward", "epochs_trained")
    facts: Facts = {name: getattr(passes, name) for name in names}
    for key, tally in passes.keys.items():
        facts |= {f"{name} of kind '{key}'": count for name, count in tally.items()}
    return facts


def of_flops(facts: dict[str, Any]) -> Counts:
    """Of the JSON of `energybench flops SUITE --json`."""
    cells: dict[Cell, Facts] = {}
    tolerances: dict[Cell, float] = {}
    for cell in facts["cells"]:
        if cell["skipped"]:
            continue
        counts: Facts = {PARAMETERS: facts["workloads"][cell["workload"]].get(PARAMETERS)}
        counts["plain_flop"] = cell["baseline_flop"]
        counts["estimated_flop"] = cell["estimated_flop"]
        if cell["role"] != "control":
            counts[COUNTED] = cell["counted_flop"]
            open_flop = cell.get("counted_error_flop") or 0.0, cell.get("outside_steps_flop") or 0.0
            tolerances[cell["workload"], cell["method"]] = tolerance_flop(cell["counted_flop"], *open_flop)
        passes = cell.get("passes")
        cells[cell["workload"], cell["method"]] = counts | _tally(Passes.model_validate(passes) if passes else None)
    stamp, seed, torch = tuple(facts["stamp"]), facts.get("seed"), facts.get("torch")
    return Counts(facts["suite"], stamp, seed, cells, "flops", torch, _open(tolerances))


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read(path: Path) -> Counts:
    """A run's folder, a golden file, or the JSON of `energybench flops`. Raises UsageError E632 for anything else."""
    if os.path.isdir(path):
        return of_run(*whole_run(path).records)
    wrong = Problem(
        "E632",
        "neither golden counts, nor the JSON of energybench flops, nor a run's folder",
        str(path),
        "energybench compare GOLDEN.json RUN --level counts --accept writes one",
    )
    try:
        content = json.loads(read_bytes(path, RECORD_B))
    except OSError as error:
        raise UsageError(Problem("E601", f"cannot read it: {error.strerror}", str(path), wrong.hint)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(Problem("E632", f"not JSON: {error}", str(path), wrong.hint)) from None
    try:
        if "golden" in content:
            return _checked(_golden(content, path), path)
        if "counted" in content and "cells" in content:
            if not content["counted"]:
                hint = "energybench flops SUITE --json without --no-count"
                raise UsageError(Problem("E632", "its cells were not counted (--no-count)", str(path), hint))
            return _checked(of_flops(content), path)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        pass
    raise UsageError(wrong)


def _checked(counts: Counts, path: Path) -> Counts:
    """The same, if every count is a number: an infinite one would be the same as any. Raises UsageError E632."""
    header = {name: getattr(counts, name) for name in Header.model_fields}
    try:
        Header.model_validate(header | {"cells": tuple(counts.cells)}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"{'.'.join(map(str, first['loc'][:2]))}: {first['msg']}"
        raise UsageError(Problem("E632", message, str(path), "write it again with --accept")) from None
    for (workload, method), facts in counts.cells.items():
        for name, value in facts.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= LARGEST_COUNT):
                message = f"{name} of {workload}, {method} is {json.dumps(value)[:80]}, which is no count"
                raise UsageError(Problem("E632", message, str(path), "write it again with --accept"))
    for (workload, method), value in counts.tolerance_flop.items():
        if not 0 <= value <= LARGEST_COUNT:
            message = f"tolerance_flop of {workload}, {method} is {json.dumps(value)[:80]}, which is no count"
            raise UsageError(Problem("E632", message, str(path), "write it again with --accept"))
    return counts


def _golden(content: dict[str, Any], path: Path) -> Counts:
    if content["golden"] != SCHEMA:
        message = f"golden counts of schema {content['golden']}, and this version reads {SCHEMA}"
        raise UsageError(Problem("E632", message, str(path), "write it again with --accept"))
    cells = {(cell["workload"], cell["method"]): dict(cell["counts"]) for cell in content["cells"]}
    tolerances = {
        (cell["workload"], cell["method"]): float(cell["tolerance_flop"])
        for cell in content["cells"]
        if "tolerance_flop" in cell
    }
    stamp, torch = tuple(content["stamp"]), content.get("torch")
    return Counts(content["suite"], stamp, content["seed"], cells, content["source"], torch, tolerances)


def write(path: Path, counts: Counts) -> None:
    """The golden file: the same counts give the same bytes."""
    cells = [
        {"workload": workload, "method": method, "counts": facts}
        | ({"tolerance_flop": tolerance} if (tolerance := counts.tolerance_flop.get((workload, method))) else {})
        for (workload, method), facts in sorted(counts.cells.items())
    ]
    content = {
        "golden": SCHEMA,
        "suite": counts.suite,
        "stamp": list(counts.stamp),
        "seed": counts.seed,
        "source": counts.source,
        "torch": counts.torch,
        "cells": cells,
    }
    write_output(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(), KIND)


# ── comparing ─────────────────────────────────────────────────────────────────────────────────────────────────


def compare(base: Counts, head: Counts) -> list[Finding]:
    """Hold the counts of two runs against each other.

    Args:
        base, head: counts of the same suite, with the same overlay, --set and seed.

    Returns:
        A finding for every count that differs, and one for each cell in which none does.

    Raises:
        UsageError: E630, where the counts are not of the same suite, stamp and seed.
    """
    unlike = [
        f"{each.path[0]}: {each.before!r}, then {each.after!r}"
        for each in differences(_identity(base), _identity(head), into_lists=False)
        if not (each.path == ("seed",) and None in (each.before, each.after))
    ]
    if unlike:
        message = f"these counts are not of the same runs: {'; '.join(unlike)}"
        raise UsageError(Problem("E630", message, hint="count HEAD with the same suite, overlay and --set"))
    findings: list[Finding] = []
    for cell in dict.fromkeys([*head.cells, *base.cells]):
        if cell not in head.cells:
            findings.append(Finding("counts", *cell, "cell", "gone", reason="it is not in HEAD"))
        elif cell not in base.cells:
            findings.append(Finding("counts", *cell, "cell", "new", reason="it is not in BASE"))
        else:
            findings += list(_changed_counts(cell, base, head)) or [_unchanged(cell, base, head)]
    return findings


def _identity(counts: Counts) -> dict[str, Any]:
    return {"suite": counts.suite, "stamp": list(counts.stamp), "seed": counts.seed}


def _unchanged(cell: Cell, base: Counts, head: Counts) -> Finding:
    """The same; but what is null on both sides has not been held, and that is said."""
    before, after = base.cells[cell], head.cells[cell]
    null = [name for name in before if name in after and before[name] is None and after[name] is None]
    reason = f"null on both sides: {', '.join(null)}" if null else ""
    held = any(before.get(name) is not None and after.get(name) is not None for name in before)
    return Finding("counts", *cell, "all counts", "same" if held else "cannot tell", reason=reason)


def _changed_counts(cell: Cell, base: Counts, head: Counts) -> Iterator[Finding]:
    before, after = base.cells[cell], head.cells[cell]
    for difference in differences(before, after, same=_same_count):
        name = str(difference.path[0])
        in_both = name in before and name in after
        if not in_both and base.source != head.source and not _kind_of_one_side(before, after, name):
            continue  # the other source cannot know it
        old, new = difference.before, difference.after
        allowed = max(counts.tolerance_flop.get(cell, 0.0) for counts in (base, head))
        if name == COUNTED and old is not None and new is not None and abs(new - old) <= allowed:
            continue  # a matter of numbers, not of what runs
        change_rel = new / old - 1 if old and new is not None else None
        reason = "" if old is not None and new is not None else f"there is none in {'BASE' if old is None else 'HEAD'}"
        yield Finding("counts", *cell, name, "changed", old, new, change_rel, reason=reason)


def _kind_of_one_side(before: Facts, after: Facts, name: str) -> bool:
    """A kind of steps that only one side took, where both kept a tally."""
    return " of kind " in name and "updates" in before and "updates" in after


def _same_count(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= SAME_REL * max(abs(a), abs(b))
