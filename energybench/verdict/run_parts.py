"""Several folders of one suite: what is one run is merged, everything else stands side by side and is never averaged.

Records are merged by copying: a folder that was copied and continued elsewhere holds some of the same trials and some
of its own. Two runs that each trained their own block 0 are not one run of twice the blocks: their seeds are the same,
and whoever pools finished runs until something shows has taken looks that nobody declared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from energybench.common.errors import Problem, UsageError, typed
from energybench.records.reader import read_folder
from energybench.records.record import CountingRun, Looks, RunFile, Trial

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
    def described(self) -> str:
        return f"{', '.join(self.folders)}: {self.device}"


def read(folders: Iterable[Path]) -> list[Part]:
    """The parts, in the order of the folders. Raises UsageError E608 for folders of different suites."""
    found: list[tuple[Path, Records]] = []
    suites: dict[str, Path] = {}
    for folder in folders:
        found.append((folder, read_folder(folder)))
        suites.setdefault(found[-1][1][0].suite, folder)
        if len(suites) > 1:
            (first, one), (second, other) = list(suites.items())[:2]
            message = f"'{first}' in {one} and '{second}' in {other} are different suites: there is nothing to compare"
            raise UsageError(Problem("E608", message, hint=f"energybench report {typed(other)}"))
    return joined(found)


def joined(found: Iterable[tuple[Path, Records]]) -> list[Part]:
    """The parts of one suite's folders, with what was read from each, in the order of the folders."""
    parts: list[Part] = []
    for folder, (run, trials, counting_runs) in found:
        devices = sorted({trial.device for trial in trials}) or [""]
        for device in devices:
            on_device = [trial for trial in trials if trial.device == device or not device]
            key = (run.digest, device, *(_machine(run) if device in ("cpu", "") else ()))
            _join(
                parts,
                Part((str(folder),), _device_name(run, on_device, device), key, (run, on_device, counting_runs), ""),
            )
    return parts


def _machine(run: RunFile) -> tuple[str, ...]:
    """What tells one processor from another: records name no host."""
    return tuple(str(run.machine.get(name)) for name in ("cpu", "cores", "threads", "platform"))


def _device_name(run: RunFile, trials: Sequence[Trial], device: str) -> str:
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
        if not again and part.records[0].run_identity == new.records[0].run_identity:
            parts[index] = _merged(part, new)
            return
        blocks = f"block{'s' * (len(again) != 1)} {', '.join(str(block) for block in again)}"
        what = f"it trained {blocks} again" if again else "it is another run of these settings"
        reason = f"{what}; finished runs are not pooled"
    parts.append(Part(new.folders, new.device, new.key, new.records, reason))


def _differs(part: Part, new: Part) -> str:
    if part.key[0] != new.key[0]:
        return f"other settings, methods or versions (digest {new.key[0]})"
    return "another device"


def _repeated(known: Sequence[Trial], new: Sequence[Trial]) -> list[int]:
    """Blocks that both hold and that are not copies of each other."""
    known_blocks, new_blocks = _by_block(known), _by_block(new)
    return [
        block
        for block in sorted(set(known_blocks) & set(new_blocks))
        if not _copies(known_blocks[block], new_blocks[block])
    ]


def _by_block(trials: Sequence[Trial]) -> dict[int, dict[str, Trial]]:
    blocks: dict[int, dict[str, Trial]] = {}
    for trial in trials:
        blocks.setdefault(trial.block, {})[trial.trial] = trial
    return blocks


def _copies(known: Mapping[str, Trial], new: Mapping[str, Trial]) -> bool:
    """Whether one block's trials in two folders are of one run: some in both, and those the same."""
    shared = set(known) & set(new)
    return bool(shared) and all(known[name] == new[name] for name in shared)


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
