"""Several folders of one suite: what is one run is merged, everything else stands side by side and is never averaged.

Records are merged by copying: a folder that was copied and continued elsewhere holds some of the same trials and some
of its own. Two runs that each trained their own block 0 are not one run of twice the blocks: their seeds are the same,
and whoever pools finished runs until something shows has taken looks that nobody declared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from energybench.common.errors import Problem, UsageError, typed
from energybench.records.reader import read_folder
from energybench.records.record import CountingRun, Looks, RunFile, Trial
from energybench.report import grid
from energybench.verdict import summary, wording
from energybench.verdict.figures import Row, Summary

Records = tuple[RunFile, list[Trial], list[CountingRun]]


@dataclass(frozen=True, slots=True)
class Part:
    """Records that are reported as one run: one suite, one digest, one device."""

    folders: tuple[str, ...]
    device: str  # as one says it
    key: tuple[str, ...]  # what must be equal to be one run
    records: Records
    apart: str  # why it is not merged with the parts before it; empty for the first

    @property
    def told(self) -> str:
        return f"{', '.join(self.folders)}: {self.device}"


def read(folders: Iterable[Path]) -> list[Part]:
    """The parts, in the order of the folders. Raises UsageError E608 for folders of different suites."""
    parts: list[Part] = []
    suites: dict[str, Path] = {}
    for folder in folders:
        run, trials, counting_runs = read_folder(folder)
        suites.setdefault(run.suite, folder)
        if len(suites) > 1:
            (first, one), (second, other) = list(suites.items())[:2]
            message = f"'{first}' in {one} and '{second}' in {other} are different suites: there is nothing to compare"
            raise UsageError(Problem("E608", message, hint=f"energybench report {typed(other)}"))
        devices = sorted({trial.device for trial in trials}) or [""]
        for device in devices:
            own = [trial for trial in trials if trial.device == device or not device]
            key = (run.digest, device, *(_machine(run) if device in ("cpu", "") else ()))
            _join(parts, Part((str(folder),), _told(run, own, device), key, (run, own, counting_runs), ""))
    return parts


def _machine(run: RunFile) -> tuple[str, ...]:
    """What tells one processor from another: records name no host."""
    return tuple(str(run.machine.get(name)) for name in ("cpu", "cores", "threads", "platform"))


def _told(run: RunFile, trials: Sequence[Trial], device: str) -> str:
    if device in ("cpu", ""):
        return f"{run.machine.get('cpu', 'a processor')}, {run.machine.get('cores', '?')} cores"
    cards = [(trial.environment.get("gpus") or {}).get(device) or {} for trial in trials]
    name = next((card["name"] for card in cards if card.get("name")), run.machine.get("gpu", "a GPU"))
    return f"{name} ({device})"


def _join(parts: list[Part], new: Part) -> None:
    """Merge `new` into the part whose run it belongs to, or append it with the reason why there is none."""
    reason = ""
    for index, part in enumerate(parts):
        if part.key != new.key:
            reason = reason or _differs(part, new)
            continue
        again = _repeated(part.records[1], new.records[1])
        if not again:
            parts[index] = _merged(part, new)
            return
        blocks = f"block{'s' * (len(again) != 1)} {', '.join(str(block) for block in again)}"
        reason = f"it trained {blocks} again; finished runs are not pooled"
    parts.append(Part(new.folders, new.device, new.key, new.records, reason))


def _differs(part: Part, new: Part) -> str:
    if part.key[0] != new.key[0]:
        return f"other settings, methods or versions (digest {new.key[0]})"
    return "another device"


def _repeated(there: Sequence[Trial], new: Sequence[Trial]) -> list[int]:
    """Blocks that both hold and that are not copies of each other."""
    known = {block: {t.trial: t for t in there if t.block == block} for block in {t.block for t in there}}
    own = {block: {t.trial: t for t in new if t.block == block} for block in {t.block for t in new}}
    shared = sorted(set(known) & set(own))
    return [
        b
        for b in shared
        if any(known[b][name] != own[b][name] for name in set(known[b]) & set(own[b]))
        or not set(known[b]) & set(own[b])
    ]


def _merged(part: Part, new: Part) -> Part:
    (run, trials, counting_runs), (other, others, more) = part.records, new.records
    names = {t.trial for t in trials}
    cells = {(w.workload, w.method) for w in counting_runs}
    base = other if (other.finished, len(others)) > (run.finished, len(trials)) else run
    if run.looks and other.looks:
        taken = sorted({*run.looks.taken, *other.looks.taken})
        base = base.model_copy(update={"looks": Looks(at=run.looks.at, taken=taken)})
    records = (
        base,
        trials + [t for t in others if t.trial not in names],
        counting_runs + [w for w in more if (w.workload, w.method) not in cells],
    )
    folders = tuple(dict.fromkeys((*part.folders, *new.folders)))
    return Part(folders, part.device, part.key, records, part.apart)


def to_json(parts: Sequence[Part]) -> dict[str, Any]:
    """Each part's own report, and why it stands apart."""
    return {
        "schema": 1,
        "runs": [
            {
                "folders": list(part.folders),
                "device": part.device,
                "apart": part.apart or None,
                "report": summary.to_json(summary.summarise(*part.records)),
            }
            for part in parts
        ],
    }


def side_by_side(parts: Sequence[Part], console: Console) -> None:
    """Who the parts are, then one table per workload with a column for each."""
    found = [summary.summarise(*part.records) for part in parts]
    grid.say(console, f"{found[0].suite} · {len(parts)} runs side by side, never averaged", "bold")
    for number, (part, each) in enumerate(zip(parts, found, strict=True), 1):
        stamps = [*each.stamp, *([] if each.finished else ["unfinished"])]
        apart = f" Apart: {part.apart}." if part.apart else ""
        grid.say(console, f"{number}: {' · '.join([part.told, *stamps])}.{apart}")
        for line in (each.headline, each.energy_note, each.look_note):
            if line:
                grid.say(console, line, "dim", "   ")
    head = ["Method", *map(str, range(1, len(parts) + 1))]
    for name in dict.fromkeys(w.name for each in found for w in each.workloads):
        rows = _rows(found, name)
        if rows:
            console.print()
            grid.say(console, name, "bold underline")
            grid.grid(console, head, rows)
    console.print()
    grid.say(console, "Each run's whole report: energybench report FOLDER", "dim")


def _rows(found: Sequence[Summary], name: str) -> list[list[str]]:
    """One workload: each method's figure and verdict in each part."""
    by_part = [{row.method: row for w in each.workloads if w.name == name for row in w.rows} for each in found]
    labels = dict.fromkeys(label for rows in by_part for label in rows)
    return [[label, *(_cell(rows.get(label)) for rows in by_part)] for label in labels]


def _cell(row: Row | None) -> str:
    if row is None or row.measured is None:
        return wording.NOTHING
    what = wording.what(row.measured.quantity, row.measured.scope)
    struck = "struck, " if row.struck else ""
    return f"{wording.measured(row.measured)} {what}, {struck}{row.verdict}"
