"""Folders → runs: what belongs to one run is gathered by record, each folder at the cost of what it holds.

A folder belongs to a run of its digest and identity whose records it copies, or that has none of its blocks. Where it
holds another record of the same name, or trained a block again, it is a run of its own, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import realpath
from pathlib import Path
from typing import Any

from energybench.records.record import CountingRun, Looks, RunFile, Trial
from energybench.records.shards import SHARDS, plan_of
from energybench.verdict import devices, interim
from energybench.verdict.devices import marks

Records = tuple[RunFile, list[Trial], list[CountingRun]]
Found = tuple[Path, Records]  # a run's folder, and what lies in it
Key = tuple[str, ...]


@dataclass
class MergedRun:
    """One run, gathered folder by folder.

    folders: each with its run.json, and the trials that it was the first to hold
    trials:  by name
    """

    apart: str
    folders: list[tuple[Path, RunFile, list[Trial]]] = field(default_factory=list)
    trials: dict[str, Trial] = field(default_factory=dict)
    blocks: dict[int, set[str]] = field(default_factory=dict)
    counting_runs: dict[tuple[str, str], CountingRun] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)  # of their devices
    held: list[frozenset[int]] = field(default_factory=list)  # blocks of each folder, copies too
    nameless: bool = False  # holds trials on a host that no record names

    def refuses(self, trials: Sequence[Trial]) -> str:
        """Why a folder with these trials is no part of it; empty where it is."""
        if again := self.repeated(trials):
            return again
        if self.nameless and any(trial.trial not in self.trials and _nameless(trial) for trial in trials):
            return "its records name no host, so nothing tells whether it is the same machine"
        return ""

    def repeated(self, trials: Sequence[Trial]) -> str:
        """What both hold and is not a copy."""
        blocks: dict[int, list[Trial]] = {}
        for trial in trials:
            blocks.setdefault(trial.block, []).append(trial)
        again = []
        for block in sorted(blocks.keys() & self.blocks.keys()):
            shared = [trial for trial in blocks[block] if trial.trial in self.trials]
            for trial in shared:
                known = self.trials[trial.trial]
                if known != trial and trial.run_identity and known.started_at == trial.started_at:
                    return f"its record {trial.trial} is another than that in {self.homes[trial.trial]}"
            if not shared or any(self.trials[trial.trial] != trial for trial in shared):
                again.append(str(block))
        if not again:
            return ""
        return f"it trained block{'s' * (len(again) != 1)} {', '.join(again)} again; finished runs are not pooled"

    def add(self, folder: Path, records: Records) -> None:
        run, trials, counting_runs = records
        new = [trial for trial in trials if trial.trial not in self.trials]
        for trial in new:
            self.trials.setdefault(trial.trial, trial)
            self.blocks.setdefault(trial.block, set()).add(trial.trial)
            self.homes.setdefault(trial.trial, str(folder))
            self.marks.update(marks(trial))
            self.nameless = self.nameless or _nameless(trial)
        for each in counting_runs:
            self.counting_runs.setdefault((each.workload, each.method), each)
        self.held.append(frozenset(trial.block for trial in trials))
        self.folders.append((folder, run, new))

    def of_first(self) -> list[Trial]:
        """The trials of its first folder."""
        return self.folders[0][2]

    # ── what explains it ──────────────────────────────────────────────────────────────────────────────────────────

    def run_of(self, trials: Sequence[Trial]) -> RunFile:
        """The run.json beside the first of them."""
        return self._run_files[self.homes[trials[0].trial]] if trials else self.folders[0][1]

    @cached_property
    def _run_files(self) -> dict[str, RunFile]:
        return {str(folder): run for folder, run, _ in self.folders}

    @cached_property
    def run_file(self) -> RunFile:
        """What explains all the records. Of one folder, its own."""
        if len(self.folders) == 1:
            return self.folders[0][1]
        runs = [run for _, run, _ in self.folders]
        homes = {folder.parent.parent for folder, _, _ in self.folders if folder.parent.name == SHARDS}
        counts = [len(own) for _, _, own in self.folders]
        root = next((n for n, (folder, _, _) in enumerate(self.folders) if folder in homes), None)
        base = runs[max(range(len(runs)), key=lambda n: (n == root, runs[n].finished, counts[n], -n))]
        update: dict[str, Any] = {"machine": _machine(runs, base)}
        if base.looks:
            taken = sorted({look for run in runs if run.looks for look in run.looks.taken})
            update["looks"] = Looks(at=base.looks.at, taken=taken)
        if base.closed is None:
            update["closed"] = next((run.closed for run in runs if run.closed is not None), None)
        base = base.model_copy(update=update)
        due = frozenset(range(base.verdict_blocks))  # a shard is finished when its own block is
        vouched = any(run.finished and held >= due for run, held in zip(runs, self.held, strict=True))
        finished = vouched or interim.whole_blocks(base, self.trials.values()) >= base.verdict_blocks
        return base.model_copy(update={"finished": finished})


def merged_runs(found: Iterable[Found]) -> list[MergedRun]:
    """What is one run together, in the order of the folders."""
    runs: list[MergedRun] = []
    first_of: dict[str, MergedRun] = {}  # digest → the first run of it
    by_key: dict[Key, _RunsOfOneKey] = {}
    copied: dict[tuple[str, str, str, str], Key] = {}  # digest, identity, trial, its start → the key of who holds it
    for folder, records in found:
        for piece in _pieces(records):
            run, trials, _ = piece
            copies = [(run.digest, t.run_identity, t.trial, t.started_at) for t in trials if t.run_identity]
            key = next((copied[each] for each in copies if each in copied), _key(folder, run, trials))
            copied.update(dict.fromkeys(copies, key))
            known = by_key.setdefault(key, _RunsOfOneKey())
            place, reason = known.place_of(trials)
            if reason or place == len(known.runs):
                place = len(known.runs)
                reason = reason or (known.runs[0].refuses(trials) if known.runs else "")
                known.runs.append(MergedRun(_apart(first_of.get(run.digest), runs, run, trials, reason)))
                runs.append(known.runs[place])
                first_of.setdefault(run.digest, runs[-1])
            known.add(place, folder, piece)
    return runs


@dataclass
class _RunsOfOneKey:
    """Runs of one digest and one identity: one, unless folders hold what cannot be of one run.

    A folder asks one of them alone, whose record it copies or that is the first without its blocks: however many
    folders there are, each costs what it holds.
    """

    runs: list[MergedRun] = field(default_factory=list)
    of_record: dict[tuple[str, str], int] = field(default_factory=dict)  # (trial, its start) → the run that holds it
    holding: dict[int, int] = field(default_factory=dict)  # block → how many of the runs, from the first, hold it

    def place_of(self, trials: Sequence[Trial]) -> tuple[int, str]:
        """The run that a folder with these trials belongs to, or their number where it is none; and why not."""
        place = max((self.holding.get(block, 0) for block in {trial.block for trial in trials}), default=0)
        copied = (self.of_record.get((trial.trial, trial.started_at)) for trial in trials)
        place = next((known for known in copied if known is not None), place)
        return place, self.runs[place].refuses(trials) if place < len(self.runs) else ""

    def add(self, place: int, folder: Path, records: Records) -> None:
        self.runs[place].add(folder, records)
        for trial in records[1]:
            self.of_record.setdefault((trial.trial, trial.started_at), place)
            if self.holding.get(trial.block, 0) == place:
                self.holding[trial.block] = place + 1


def _key(folder: Path, run: RunFile, trials: Sequence[Trial]) -> Key:
    """What runs must share to be one: digest and identity. Shards that were made without a plan drew one each: they are
    one run by the folder that they lie in. A run of before identities is that of its device."""
    if run.run_identity is None:
        return (run.digest, "", *_place(run, trials))
    if run.shard and folder.parent.name == SHARDS and plan_of(folder) is None:
        return (run.digest, f"shards in {realpath(folder.parent)}")
    return (run.digest, run.run_identity)


def _pieces(records: Records) -> Iterator[Records]:
    """A folder's records; of a run without an identity each device's by themselves, as they were reported."""
    run, trials, counting_runs = records
    names = sorted({trial.device for trial in trials})
    if run.run_identity is not None or len(names) < 2:
        yield records
        return
    for name in names:
        yield run, [trial for trial in trials if trial.device == name], counting_runs


def _apart(
    first: MergedRun | None, runs: Sequence[MergedRun], run: RunFile, trials: Sequence[Trial], reason: str
) -> str:
    """Why a run is not part of those before it; empty for the first.

    Args:
        first:  of its digest, where there is one
        runs:   those before it
        reason: why it is no part of those of its identity
    """
    if not runs:
        return ""
    if first is None or first is not runs[0]:
        return f"other settings, methods or versions (digest {run.digest})"
    if reason:
        return reason
    elsewhere = trials and first.marks and not first.marks & {mark for trial in trials for mark in marks(trial)}
    if run.run_identity is None and (elsewhere or _place(run, trials) != _place(first.folders[0][1], first.of_first())):
        return "another device"
    if elsewhere:
        return "another run of these settings, on another device; finished runs are not pooled"
    return first.repeated(trials) or "it is another run of these settings; finished runs are not pooled"


def _place(run: RunFile, trials: Sequence[Trial]) -> tuple[str, ...]:
    """What tells devices apart in records that carry no identity: the card, or all that is known of the processor."""
    device = trials[0].device if trials else ""
    if device not in devices.PROCESSOR:
        return (device,)
    return (device, *(str(run.machine.get(name)) for name in ("cpu", "cores", "threads", "platform")))


def _nameless(trial: Trial) -> bool:
    return trial.device in devices.PROCESSOR and marks(trial) == ("cpu",)


def _machine(runs: Sequence[RunFile], base: RunFile) -> dict[str, Any]:
    """What all folders say of the machine; every card of any, and whoever used one when its run began."""
    shared = {k: v for k, v in base.machine.items() if all(run.machine.get(k) == v for run in runs)}
    shared |= {name: base.machine[name] for name in ("carbon",) if name in base.machine}
    cards = {
        str(card.get("uuid")): card
        for run in runs
        for card in (run.machine["gpus"] if isinstance(run.machine.get("gpus"), list) else ())
        if isinstance(card, dict)
    }
    told = dict.fromkeys(str(each) for run in runs for each in (run.machine.get("busy") or {}).get("told") or ())
    return shared | ({"gpus": list(cards.values())} if cards else {}) | ({"busy": {"told": list(told)}} if told else {})
