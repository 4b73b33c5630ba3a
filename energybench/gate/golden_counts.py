"""Level 0 of the gate: counts that the same suite gives on any machine, held against golden values.

A count is what a formula, a counter or the loop's own tally says of one cell with the suite's first seed: FLOPs
estimated and counted, passes, samples, epochs, kinds of steps, parameters. Nothing here was timed. What a file cannot
know (`energybench flops` keeps no tally of controls) is left out of a comparison, never taken for 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from energybench.common.errors import Problem, UsageError
from energybench.common.limits import RECORD_B
from energybench.common.quantities import Seed, Text
from energybench.common.safe_read import read_bytes
from energybench.common.sealed_files import write_out
from energybench.gate.regression import Finding
from energybench.meter.reading import RecordModel
from energybench.records.reader import read_folder
from energybench.records.record import CountingRun, Passes, RunFile, Trial

SCHEMA = 1
SAME_REL = 1e-9  # floats that were summed in another order
PARAMETERS = "parameters"
MOST = 1e36  # a larger count is none, and a negative one either
Facts = dict[str, float | None]
Source = Literal["run", "flops"]


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of every cell, by (workload, method).

    knows: the names that its source can hold; a name outside of it is unknown here, not gone
    """

    suite: str
    stamp: tuple[str, ...]
    seed: int | None
    cells: dict[tuple[str, str], Facts]
    source: Source
    torch: str | None = None


class Told(RecordModel):
    """What is no count of it: a name that is none would be compared, sorted and printed all the same."""

    suite: Text
    stamp: tuple[Text, ...]
    seed: Seed | None
    source: Source
    torch: Text | None
    cells: tuple[tuple[Text, Text], ...]


def of_run(run: RunFile, trials: Sequence[Trial], counting_runs: Sequence[CountingRun]) -> Counts:
    """Of a run's records: the witness's, which ran with the first seed; a control's from its first block."""
    counted = {(w.workload, w.method): w for w in counting_runs}
    seed = (run.resolved.get("trials") or {}).get("seed")
    first = {
        (t.workload, t.method): t
        for t in sorted(trials, key=lambda t: (-t.block, t.invocation))
        if t.status == "ok" and (t.block == 0 or t.seed == seed)
    }
    cells: dict[tuple[str, str], Facts] = {}
    for cell in run.cells:
        key = cell.workload, cell.method
        if cell.skipped is None and cell.role != "twin":
            data = run.data.get(cell.workload) or {}
            cells[key] = _facts(counted.get(key), first.get(key), data.get(PARAMETERS))
    if seed is None:
        seed = next((w.seed for w in counting_runs), None)
    return Counts(run.suite, tuple(run.stamp), seed, cells, "run", run.machine.get("torch"))


def _facts(counting_run: CountingRun | None, trial: Trial | None, parameters: float | None) -> Facts:
    ok = counting_run if counting_run and counting_run.status == "ok" else None
    estimate = (ok.estimate if ok else None) or (trial.estimate if trial else None)
    passes = (ok.passes if ok else None) or (trial.passes if trial else None)
    facts: Facts = {PARAMETERS: parameters}
    facts["plain_flop"] = estimate.plain_flop if estimate else None
    facts["estimated_flop"] = estimate.estimated_flop if estimate else None
    if counting_run is not None:
        facts["counted_flop"] = ok.counted_flop if ok else None
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
    cells: dict[tuple[str, str], Facts] = {}
    for cell in facts["cells"]:
        if cell["skipped"]:
            continue
        known: Facts = {PARAMETERS: facts["workloads"][cell["workload"]].get(PARAMETERS)}
        known["plain_flop"] = cell["baseline_flop"]
        known["estimated_flop"] = cell["estimated_flop"]
        if cell["role"] != "control":
            known["counted_flop"] = cell["counted_flop"]
        passes = cell.get("passes")
        cells[cell["workload"], cell["method"]] = known | _tally(Passes.model_validate(passes) if passes else None)
    return Counts(facts["suite"], tuple(facts["stamp"]), facts.get("seed"), cells, "flops", facts.get("torch"))


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read(path: Path) -> Counts:
    """A run's folder, a golden file, or the JSON of `energybench flops`. Raises UsageError E632 for anything else."""
    if os.path.isdir(path):
        return of_run(*read_folder(path))
    wrong = Problem(
        "E632",
        "neither golden counts, nor the JSON of energybench flops, nor a run's folder",
        str(path),
        "energybench compare GOLDEN.json RUN --level counts --accept writes one",
    )
    try:
        found = json.loads(read_bytes(path, RECORD_B))
    except OSError as error:
        raise UsageError(Problem("E601", f"cannot read it: {error.strerror}", str(path), wrong.hint)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(Problem("E632", f"not JSON: {error}", str(path), wrong.hint)) from None
    try:
        if "golden" in found:
            return _numbers(_golden(found, path), path)
        if "counted" in found and "cells" in found:
            if not found["counted"]:
                hint = "energybench flops SUITE --json without --no-count"
                raise UsageError(Problem("E632", "its cells were not counted (--no-count)", str(path), hint))
            return _numbers(of_flops(found), path)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        pass
    raise UsageError(wrong)


def _numbers(counts: Counts, path: Path) -> Counts:
    """The same, if every count is a number: an infinite one would be the same as any. Raises UsageError E632."""
    told = {name: getattr(counts, name) for name in Told.model_fields}
    try:
        Told.model_validate(told | {"cells": tuple(counts.cells)}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"{'.'.join(map(str, first['loc'][:2]))}: {first['msg']}"
        raise UsageError(Problem("E632", message, str(path), "write it again with --accept")) from None
    for (workload, method), facts in counts.cells.items():
        for name, value in facts.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= MOST):
                message = f"{name} of {workload}, {method} is {json.dumps(value)[:80]}, which is no count"
                raise UsageError(Problem("E632", message, str(path), "write it again with --accept"))
    return counts


def _golden(found: dict[str, Any], path: Path) -> Counts:
    if found["golden"] != SCHEMA:
        message = f"golden counts of schema {found['golden']}, and this version reads {SCHEMA}"
        raise UsageError(Problem("E632", message, str(path), "write it again with --accept"))
    cells = {(cell["workload"], cell["method"]): dict(cell["counts"]) for cell in found["cells"]}
    return Counts(found["suite"], tuple(found["stamp"]), found["seed"], cells, found["source"], found.get("torch"))


def write(path: Path, counts: Counts) -> None:
    """The golden file: the same counts give the same bytes."""
    cells = [
        {"workload": workload, "method": method, "counts": facts}
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
    write_out(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


# ── comparing ─────────────────────────────────────────────────────────────────────────────────────────────────


def compare(base: Counts, head: Counts) -> list[Finding]:
    """Every count that differs, and one finding for each cell that does not. Raises UsageError E630."""
    differs = [
        f"{name}: {a!r}, then {b!r}"
        for name, a, b in (
            ("suite", base.suite, head.suite),
            ("stamp", list(base.stamp), list(head.stamp)),
            ("seed", base.seed, head.seed),
        )
        if a != b and not (name == "seed" and None in (a, b))
    ]
    if differs:
        message = f"these counts are not of the same runs: {'; '.join(differs)}"
        raise UsageError(Problem("E630", message, hint="count HEAD with the same suite, overlay and --set"))
    found: list[Finding] = []
    for key in dict.fromkeys([*head.cells, *base.cells]):
        if key not in base.cells or key not in head.cells:
            gone = key not in head.cells
            why = "it is not in HEAD" if gone else "it is not in BASE"
            found.append(Finding("counts", *key, "cell", "gone" if gone else "new", because=why))
            continue
        here = list(_cell(key, base, head))
        found += here or [Finding("counts", *key, "all counts", "same")]
    return found


def _cell(key: tuple[str, str], base: Counts, head: Counts) -> Iterator[Finding]:
    before, after = base.cells[key], head.cells[key]
    whole = base.source == head.source
    for name in dict.fromkeys([*before, *after]):
        if (name not in before or name not in after) and not whole and not _tallied(before, after, name):
            continue  # the other source cannot know it
        a, b = before.get(name), after.get(name)
        if not _same(a, b):
            change = b / a - 1 if a and b is not None else None
            why = "" if a is not None and b is not None else f"there is none in {'BASE' if a is None else 'HEAD'}"
            yield Finding("counts", *key, name, "changed", a, b, change, because=why)


def _tallied(before: Facts, after: Facts, name: str) -> bool:
    """A kind of steps that only one side took, where both kept a tally."""
    return " of kind " in name and "updates" in before and "updates" in after


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= SAME_REL * max(abs(a), abs(b))
