"""What keeps an unfinished run from being continued: what changed since, in words that name it.

Trials of different settings, methods or versions are never mixed: a digest says that something differs, this says what.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from energybench.common.differences import Difference, differences
from energybench.records.record import Cell, RunFile
from energybench.runner.plan_request import Planned
from energybench.suite.renamed_keys import with_new_keys
from energybench.train.plugins import ORIGIN

VERSIONS = ("energybench", "torch", "device")  # of the machine's facts, what a digest covers
NAMED = 3  # differences of one kind; more are counted
LONGEST_VALUE = 40  # characters of a setting's value in a message


def changes(run: RunFile, planned: Planned) -> str:
    """What differs between a run on disk and what would be run now: "methods/mine.py of 'mine'; torch 2.11 → 2.12"."""
    changed = [*_versions(run, planned), *_settings(run, planned), *_methods(run, planned), *_data(run, planned)]
    changed += _packages(run, planned)
    return "; ".join(changed or ["a file or a package that a workload names, or energybench's own source"])


def _versions(run: RunFile, planned: Planned) -> Iterator[str]:
    before, now = ({name: machine.get(name) for name in VERSIONS} for machine in (run.machine, planned.machine))
    for difference in differences(before, now):
        yield f"{difference.path[0]} {difference.before} → {difference.after}"


def _settings(run: RunFile, planned: Planned) -> Iterator[str]:
    before, now = with_new_keys(run.resolved), with_new_keys(json.loads(json.dumps(planned.suite.digest_source())))
    changed = [_described(difference, before) for difference in differences(before, now)]
    if run.stamp != planned.suite.stamp:
        changed.insert(0, f"options {' '.join(run.stamp) or 'none'} → {' '.join(planned.suite.stamp) or 'none'}")
    looks = run.looks.at if run.looks else []
    if not changed and (run.blocks, looks) != (planned.spec.blocks, list(planned.spec.looks)):
        changed.append(f"blocks {run.blocks} → {planned.spec.blocks}")
    yield from _first_of(changed)


def _described(difference: Difference, before: Any) -> str:
    """ "workload[w].train.lr 0.1 → 0.2": a table of an array by its name where it has one, else by its number."""
    name, value = "", before
    for part in difference.path:
        value = (value.get(part) if isinstance(part, str) else value[part]) if value else None
        if isinstance(part, str):
            name += f".{part}" if name else part
        else:
            label = value.get("name") if isinstance(value, dict) else None
            name += f"[{label or part + 1}]"
    return f"{name} {_shortened(difference.before)} → {_shortened(difference.after)}"


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _methods(run: RunFile, planned: Planned) -> Iterator[str]:
    changed = list(differences(_checksums(run.cells), _checksums(planned.cells)))
    yield from _first_of(
        f"the file of method '{each.path[0]}'" for each in changed if None not in (each.before, each.after)
    )
    yield from _first_of(f"method '{each.path[0]}' is new" for each in changed if each.before is None)


def _checksums(cells: list[Cell]) -> dict[str, str]:
    """Method → the SHA-256 of its file."""
    return {str(layer.get("name")): str(layer.get("sha256")) for cell in cells for layer in cell.stack}


def _packages(run: RunFile, planned: Planned) -> Iterator[str]:
    """Of installed packages that offer a task, a model or a data set, by their versions."""
    for name, now in planned.result.sources.items():
        before = run.sources.get(name, now)
        if now.endswith(f"({ORIGIN})") and before != now:
            yield f"the {name}: {before} → {now}"


def _data(run: RunFile, planned: Planned) -> Iterator[str]:
    for name, facts in planned.workloads.items():
        before = (run.data.get(name) or {}).get("sha256")
        if before is not None and before != facts.data.sha256:
            yield f"the data of '{name}'"


def _first_of(texts: Iterable[str]) -> Iterator[str]:
    """The first NAMED of them in alphabetical order, and how many more there are."""
    ordered = sorted(texts)
    yield from ordered[:NAMED]
    if len(ordered) > NAMED:
        yield f"{len(ordered) - NAMED} more"
