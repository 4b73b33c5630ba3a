"""What keeps an unfinished run from being continued: what changed since, in words that name it.

Trials of different settings, methods or versions are never mixed: a digest says that something differs, this says what.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from energybench.records.record import Cell, RunFile
from energybench.runner.plan_request import Planned
from energybench.suite.renamed_keys import with_new_keys

VERSIONS = ("energybench", "torch", "device")  # of the machine's facts, what a digest covers
NAMED = 3  # differences of one kind; more are counted


def changes(run: RunFile, planned: Planned) -> str:
    """What differs between a run on disk and what would be run now: "methods/mine.py of 'mine'; torch 2.11 → 2.12"."""
    found = [*_versions(run, planned), *_settings(run, planned), *_methods(run, planned), *_data(run, planned)]
    return "; ".join(found or ["a file that a workload names, or energybench's own source"])


def _versions(run: RunFile, planned: Planned) -> Iterator[str]:
    for name in VERSIONS:
        before, now = run.machine.get(name), planned.machine.get(name)
        if before != now:
            yield f"{name} {before} → {now}"


def _settings(run: RunFile, planned: Planned) -> Iterator[str]:
    now = json.loads(json.dumps(planned.suite.digest_source()))
    differ = list(_differing("", with_new_keys(run.resolved), with_new_keys(now)))
    if run.stamp != planned.suite.stamp:
        differ.insert(0, f"options {' '.join(run.stamp) or 'none'} → {' '.join(planned.suite.stamp) or 'none'}")
    looks = run.looks.at if run.looks else []
    if not differ and (run.blocks, looks) != (planned.blocks, planned.looks):
        differ.append(f"blocks {run.blocks} → {planned.blocks}")
    yield from _few(differ)


def _differing(name: str, before: Any, now: Any) -> Iterator[str]:
    """ "trials.blocks 3 → 4", one for each leaf of two trees that is not the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _differing(f"{name}.{key}" if name else key, before.get(key), now.get(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            label = one.get("name") if isinstance(one, dict) else None
            yield from _differing(f"{name}[{label or index + 1}]", one, other)
    elif before != now:
        yield f"{name} {_short(before)} → {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _methods(run: RunFile, planned: Planned) -> Iterator[str]:
    before, now = _files(run.cells), _files(planned.cells)
    yield from _few(f"the file of method '{name}'" for name in before.keys() & now.keys() if before[name] != now[name])
    yield from _few(f"method '{name}' is new" for name in now.keys() - before.keys())


def _files(cells: list[Cell]) -> dict[str, str]:
    return {str(layer.get("name")): str(layer.get("sha256")) for cell in cells for layer in cell.stack}


def _data(run: RunFile, planned: Planned) -> Iterator[str]:
    for name, known in planned.workloads.items():
        before = (run.data.get(name) or {}).get("sha256")
        if before is not None and before != known["data"]["sha256"]:
            yield f"the data of '{name}'"


def _few(texts: Any) -> Iterator[str]:
    known = sorted(texts)
    yield from known[:NAMED]
    if len(known) > NAMED:
        yield f"{len(known) - NAMED} more"
