"""Several folders of one suite: what is one run is merged, everything else stands side by side and is never averaged.

One run has one digest and one identity. Its records lie in one folder, in the folder's shards, or in copies that were
continued elsewhere: merged by record, a trial that several of them hold counts once. Two runs that each trained their
own block 0 are not one run of twice the blocks: their seeds are the same, and whoever pools finished runs until
something shows has taken looks that nobody declared.

A run's devices of one kind are pooled from three on (`devices.py`, `stats/replication.py`); else each device stands by
itself. Nothing here grows faster than the records do: each is compared with at most one other of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import Any

from energybench.common.errors import Problem, UsageError, typed
from energybench.records.reader import read_folder
from energybench.records.record import RunFile, Trial
from energybench.records.whole_run import folders_of
from energybench.stats.replication import FEWEST_DEVICES
from energybench.verdict import devices, wording
from energybench.verdict.devices import Facts, Pooling, marks, plural
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Summary
from energybench.verdict.merging import Found, MergedRun, Records, merged_runs
from energybench.verdict.summary import summarise


@dataclass(frozen=True, slots=True)
class Part:
    """Records that are reported as one run: one suite, one digest, one device or several that are pooled.

    folders: the run folders that they lie in
    device:  as one says it
    apart:   why it is not merged with the parts before it; empty for the first
    pooling: its devices
    homes:   trial → the folder that its record lies in
    """

    folders: tuple[str, ...]
    device: str
    records: Records
    apart: str
    pooling: Pooling
    homes: Mapping[str, str]

    @property
    def described(self) -> str:
        shown = self.folders if len(self.folders) <= SHOWN else (*self.folders[: SHOWN - 1], self.folders[-1])
        between = f" … ({len(self.folders)} folders)" if len(shown) < len(self.folders) else ""
        return f"{', '.join(shown)}{between}: {self.device}"

    def summary(self, examination: Examination | None = None) -> Summary:
        """Everything there is to say about it. examination: of its trials, where they are examined already."""
        return summarise(*self.records, examination, self.pooling)


SHOWN = 3  # folders that a part names


def read(folders: Iterable[Path], read_one: Callable[[Path], Records] = read_folder) -> list[Part]:
    """The parts, in the order of the folders, each with its shards; a folder that is named twice is read once.

    Raises UsageError E608 for folders of different suites, and as `read_folder` does.
    """
    found: list[Found] = []
    suites: dict[str, Path] = {}
    named: dict[str, Path] = {}
    for each in (each for folder in folders for each in folders_of(folder)):
        named.setdefault(_place(each), each)
    for folder in named.values():
        found.append((folder, read_one(folder)))
        suites.setdefault(found[-1][1][0].suite, folder)
        if len(suites) > 1:
            (first, one), (second, other) = list(suites.items())[:2]
            message = f"'{first}' in {one} and '{second}' in {other} are different suites: there is nothing to compare"
            raise UsageError(Problem("E608", message, hint=f"energybench report {typed(other)}"))
    return joined(found)


def _place(folder: Path) -> str:
    """Where it lies, links followed; of what no folder can be called, its name: whoever reads it says so."""
    try:
        return realpath(folder)
    except (OSError, ValueError):
        return str(folder)


def joined(found: Iterable[Found]) -> list[Part]:
    """The parts of one suite's folders, with what was read from each, in the order of the folders."""
    return [part for run in merged_runs(found) for part in _parts(run)]


def whole_run(folder: Path) -> Part:
    """A folder with its shards as one run, pooled or not: for whoever wants counts, or a page that says what it lacks.

    Raises UsageError E609 where it holds records of several runs, and as `read_folder` does.
    """
    found = [(each, read_folder(each)) for each in folders_of(folder)]
    runs = merged_runs(found)
    if len(runs) > 1 and len(found) > 1:
        message = f"it holds {len(runs)} runs that stand apart: {runs[1].apart}"
        hint = f"name one of them: {typed(runs[1].folders[0][0])} — energybench report shows them side by side"
        raise UsageError(Problem("E609", message, str(folder), hint))
    if len(runs) > 1:  # of before identities, on two devices
        mixed = MergedRun("")
        mixed.add(*found[0])
        return _whole(mixed)
    parts = _parts(runs[0])
    return parts[0] if len(parts) == 1 else _whole(runs[0])


# ── a run's devices ───────────────────────────────────────────────────────────────────────────────────────────────


def _parts(run: MergedRun) -> list[Part]:
    """One for all devices of a kind that are pooled, one for each other device; in the order of the folders."""
    trials = list(run.trials.values())
    device_of = devices.devices_of(trials)
    if len(set(device_of.values())) < 2:
        return [_part(run, trials, run.apart, Pooling(device_of, devices.unit_of(trials)))]
    kinds = devices.kinds(((of_folder, own) for _, of_folder, own in run.folders), device_of)
    usable = devices.comparable(trials, device_of)
    unit, groups = devices.unit_of(trials), _groups(run, kinds)
    alike = {device: sum(bool(usable.get(each)) for each in group) for group in groups for device in group}
    split = [each for group in groups for each in ([group] if _pools(group, alike) else [[d] for d in group])]
    by_device: dict[str, list[Trial]] = {}
    for trial in trials:
        by_device.setdefault(device_of[marks(trial)[0]], []).append(trial)
    names = {device: _device_name(run.run_of(of_it), of_it) for device, of_it in by_device.items()}
    parts = []
    for number, group in enumerate(split):
        members = set(group)
        of_group = [trial for device in group for trial in by_device[device]]
        apart = run.apart if number == 0 else _why_apart(kinds, split[0], group)
        pooling = Pooling(
            {mark: device for mark, device in device_of.items() if device in members},
            unit,
            note=_pooled(group, usable, unit) if len(group) > 1 else _alone(unit, alike[group[0]], kinds[group[0]]),
            whole=trials if len(split) > 1 else None,
            names=names,
        )
        parts.append(_part(run, of_group, apart, pooling))
    return parts


def _whole(run: MergedRun) -> Part:
    """All of it, although its devices are not pooled: its comparisons get no verdict."""
    trials = list(run.trials.values())
    device_of = devices.devices_of(trials)
    names = ", ".join(sorted(set(device_of.values())))
    return _part(run, trials, run.apart, Pooling(device_of, devices.unit_of(trials), mixed=names))


def _groups(run: MergedRun, kinds: Mapping[str, Facts]) -> list[list[str]]:
    """Devices of one kind together; one of which too little is known, or of a run without identity, by itself."""
    known = run.folders[0][1].run_identity is not None
    groups: dict[Any, list[str]] = {}
    for device, kind in kinds.items():
        groups.setdefault(kind if known and not devices.unknown(kind) else device, []).append(device)
    return list(groups.values())


def _part(run: MergedRun, trials: list[Trial], apart: str, pooling: Pooling) -> Part:
    homes = {trial.trial: run.homes[trial.trial] for trial in trials}
    of_trials = set(homes.values())
    folders = [str(folder) for folder, _, _ in run.folders]
    if pooling.whole is not None:
        folders = [folder for folder in folders if folder in of_trials]
    beside = run.run_of(trials)
    name = _device_name(beside, trials)
    if pooling.several:
        count = len(set(pooling.device_of.values()))
        name = f"{wording.units(count, pooling.unit)}: {_kind_name(beside, trials)}"
    records = (run.run_file, trials, list(run.counting_runs.values()))
    return Part(tuple(dict.fromkeys(folders)), name, records, apart, pooling, homes)


# ── devices in words ──────────────────────────────────────────────────────────────────────────────────────────────


def _pools(group: Sequence[str], alike: Mapping[str, int]) -> bool:
    return alike[group[0]] >= FEWEST_DEVICES


def _why_apart(kinds: Mapping[str, Facts], first: Sequence[str], group: Sequence[str]) -> str:
    """Why devices of one run stand apart from its first part."""
    reason = devices.differs(kinds[first[0]], kinds[group[0]])
    if reason:
        return f"another device: {reason}" if not reason.startswith("another") else reason
    return f"another device: {FEWEST_DEVICES} of one kind are the least to pool"


def _pooled(group: Sequence[str], usable: Mapping[str, int], unit: str) -> str:
    counts = sorted(usable[device] for device in group if usable.get(device))
    each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    return (
        f"{wording.blocks(sum(counts))} on {wording.units(len(counts), unit)} of one kind, {each} on each: log ratios "
        f"are averaged within each {unit}, and verdicts and intervals count {plural(unit)}. Joules and seconds "
        f"are each {unit}'s own."
    )


def _alone(unit: str, alike: int, kind: Facts) -> str:
    if reason := devices.unknown(kind):
        return f"Verdicts are of this {unit} alone: {reason}, so it is pooled with no other."
    return (
        f"Verdicts are of this {unit} alone: the run's blocks are on {wording.units(alike, unit)} of its kind, and "
        f"{FEWEST_DEVICES} are the least to pool. A new run over {FEWEST_DEVICES} or more {plural(unit)} of "
        "one kind gets one verdict for all."
    )


def _kind_name(run: RunFile, trials: Sequence[Trial]) -> str:
    if trials[0].device in devices.PROCESSOR:
        machine = run.machine | (trials[0].environment.get("machine") or {})
        return f"{machine.get('cpu') or 'a processor'}, {machine.get('cores') or '?'} cores"
    cards = [(trial.environment.get("gpus") or {}).get(uuid) or {} for trial in trials for uuid in marks(trial)]
    return str(next((card["name"] for card in cards if card.get("name")), run.machine.get("gpu", "a GPU")))


def _device_name(run: RunFile, trials: Sequence[Trial]) -> str:
    if not trials or trials[0].device in devices.PROCESSOR:
        machine = run.machine | ((trials[0].environment.get("machine") or {}) if trials else {})
        host = f" (host {machine['host']})" if machine.get("host") else ""
        return f"{machine.get('cpu') or 'a processor'}, {machine.get('cores') or '?'} cores{host}"
    return f"{_kind_name(run, trials)} ({trials[0].device})"
