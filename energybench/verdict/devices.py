"""Which device each trial ran on, which devices are of one kind, and what a verdict counts: blocks, or devices.

A device is a GPU, or a host where the processor trains; several cards of one trial are one device together, and so are
sets of cards that share one. Devices of one kind have the same GPU, driver, power limit and torch, or the same
processor, cores, threads, memory and torch. What a record does not say is equal to nothing: such a device stands by
itself, however alike it may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from energybench.records.record import RunFile, Trial
from energybench.stats.replication import FEWEST_DEVICES
from energybench.verdict.card_knobs import cards_before

Unit = Literal["block", "GPU", "host", "set of GPUs"]  # what a verdict counts
PROCESSOR = ("cpu", "")  # devices that no UUID tells apart
NEEDED = frozenset({"GPU", "driver", "power limit", "processor", "cores", "host"})  # without which nothing is pooled
SLICE = "MIG"  # a slice of a card is no device of its own: others share its power and its memory
Facts = tuple[tuple[str, str | None], ...]  # (what, its value; None where the record does not say)


def plural(unit: str) -> str:
    """ "GPUs", "sets of GPUs"."""
    return f"sets{unit.removeprefix('set')}" if unit.startswith("set ") else f"{unit}s"


def marks(trial: Trial) -> tuple[str, ...]:
    """What tells its device from others, most telling first; trials that share one ran on the same device."""
    if trial.device not in PROCESSOR:
        return tuple(sorted(trial.device.split("+"))) if "+" in trial.device else (trial.device,)
    machine = trial.environment.get("machine") or {}
    host = trial.placement.host if trial.placement else machine.get("host")  # of a trial that no run made
    boot = machine.get("boot")
    return tuple(f"{what} {mark}" for what, mark in (("host", host), ("its boot", boot)) if mark) or ("cpu",)


def where(trial: Trial) -> str:
    """The device that a trial ran on, as far as trials of one invocation are told apart: the card, or the host."""
    if trial.device not in PROCESSOR:
        return trial.device
    machine = trial.environment.get("machine")
    return str(machine.get("host") or machine.get("boot") or "cpu") if machine else "cpu"


def facts(run: RunFile, trial: Trial) -> Facts:
    """What must be equal on devices of one kind. `run`: of the folder that the trial lies in."""
    environment = trial.environment
    machine = run.machine | {k: v for k, v in (environment.get("machine") or {}).items() if v is not None}
    torch = environment.get("torch") or run.machine.get("torch")
    if trial.device in PROCESSOR:
        known: dict[str, Any] = {
            "host": None if marks(trial) == ("cpu",) else "recorded",
            "processor": machine.get("cpu"),
            "cores": machine.get("cores"),
            "threads": environment.get("threads") or run.machine.get("threads"),
            "memory speed": machine.get("memory_mt_s"),
        }
    else:
        listed = run.machine.get("gpus")
        of_run = {c.get("uuid"): c for c in listed if isinstance(c, dict)} if isinstance(listed, list) else {}
        of_trial = cards_before(trial)  # of the baseline: what a method sets for its trials is no other device
        cards = [of_trial.get(uuid) or of_run.get(uuid) or {} for uuid in marks(trial)]
        known = {
            "GPU": _of_all(cards, "name"),
            "driver": _of_all(cards, "driver"),
            "power limit": _of_all(cards, "power_limit_w", " W"),
        }
        if any(card.get("mig") for card in cards) or any(uuid.startswith("MIG-") for uuid in marks(trial)):
            known[SLICE] = "yes"
    known["torch"] = torch
    return tuple((name, None if value is None else str(value)) for name, value in known.items())


def _of_all(cards: Sequence[Mapping[str, Any]], name: str, unit: str = "") -> str | None:
    values = [card.get(name) for card in cards]
    if None in values:
        return None
    return " + ".join(sorted(f"{value:g}{unit}" if isinstance(value, float) else f"{value}{unit}" for value in values))


@dataclass(frozen=True)
class Pooling:
    """The devices of a run's trials, and whether they may be pooled.

    device_of: a trial's first mark → its device
    unit:      what its devices are, in words: "GPU", "host", "set of GPUs"
    mixed:     why several devices are not pooled; empty where they are, or where there is one
    note:      what a reader must know of the devices; empty where one ran everything
    whole:     the whole run's trials, where these are of one of its devices: looks are taken when the run's blocks are
               there, whichever device ran them
    names:     device → as one says it
    """

    device_of: Mapping[str, str]
    unit: Unit
    mixed: str = ""
    note: str = ""
    whole: Sequence[Trial] | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def device(self, trial: Trial) -> str:
        return self.device_of[marks(trial)[0]]

    def by_device(self, trials: Iterable[Trial]) -> dict[str, list[Trial]]:
        found: dict[str, list[Trial]] = {}
        for trial in trials:
            found.setdefault(self.device(trial), []).append(trial)
        return found

    @cached_property
    def several(self) -> bool:
        """Whether verdicts count devices."""
        return len(set(self.device_of.values())) > 1

    @property
    def counts(self) -> Unit:
        """What a verdict of these trials counts."""
        return self.unit if self.several else "block"

    def name(self, device: str) -> str:
        """As one says it."""
        return self.names.get(device, device)


def devices_of(trials: Iterable[Trial]) -> dict[str, str]:
    """First mark → device. Trials whose marks overlap, directly or by way of others, share one: named by its first."""
    parent: dict[str, str] = {}

    def root(mark: str) -> str:
        while parent.setdefault(mark, mark) != mark:
            parent[mark] = parent[parent[mark]]
            mark = parent[mark]
        return mark

    firsts: dict[str, None] = {}
    for each in dict.fromkeys(map(marks, trials)):
        firsts[each[0]] = None
        for other in each[1:]:
            one, another = sorted((root(each[0]), root(other)))
            parent[another] = one
    return {mark: root(mark) for mark in firsts}


def unit_of(trials: Iterable[Trial]) -> Unit:
    """What the devices of these trials are."""
    devices = {trial.device for trial in trials}
    if any("+" in device for device in devices):
        return "set of GPUs"
    return "host" if devices <= set(PROCESSOR) else "GPU"


def kinds(records: Iterable[tuple[RunFile, Iterable[Trial]]], device_of: Mapping[str, str]) -> dict[str, Facts]:
    """Device → what its kind is, by all of its trials; a fact that changed between them is None, as if not recorded.

    records: each folder's run.json with the trials in it
    """
    found: dict[str, dict[str, set[str | None]]] = {}
    for run, trials in records:
        for trial in trials:
            of_device = found.setdefault(device_of[marks(trial)[0]], {})
            for name, value in facts(run, trial):
                of_device.setdefault(name, set()).add(value)
    return {
        device: tuple((name, next(iter(values)) if len(values) == 1 else None) for name, values in of_device.items())
        for device, of_device in found.items()
    }


def unknown(kind: Facts) -> str:
    """Why nothing is known to be of this kind; empty where all that is needed is known."""
    if (SLICE, "yes") in kind:
        return "it is a slice of a card (MIG), and what shares the card is not known"
    missing = [name for name, value in kind if value is None and name in NEEDED]
    return f"its {_and(missing)} {'are' if len(missing) > 1 else 'is'} not recorded, or changed" if missing else ""


def differs(kind: Facts, other: Facts) -> str:
    """ "another driver: 550.54, then 535.1"; empty where they are of one kind."""
    if reason := unknown(other) or unknown(kind):
        return reason
    before, after = dict(kind), dict(other)
    changed = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    if not changed:
        return ""
    said = (
        f"{name}: {before.get(name) or 'not recorded'}, then {after.get(name) or 'not recorded'}" for name in changed
    )
    return f"another {'; '.join(said)}"


def comparable(trials: Iterable[Trial], device_of: Mapping[str, str]) -> dict[str, int]:
    """Device → its blocks in which plain training and a method both ended well."""
    roles: dict[tuple[str, int, str], set[str]] = {}
    for trial in trials:
        if trial.status == "ok" and trial.role in ("baseline", "method"):
            roles.setdefault((device_of[marks(trial)[0]], trial.block, trial.workload), set()).add(trial.role)
    blocks: dict[str, set[int]] = {}
    for (device, block, _), both in roles.items():
        if len(both) == 2:
            blocks.setdefault(device, set()).add(block)
    return {device: len(of_it) for device, of_it in blocks.items()}


def pooling(run: RunFile, trials: Sequence[Trial]) -> Pooling:
    """Of trials that are judged together: one folder's, as they lie there."""
    device_of = devices_of(trials)
    names = sorted(set(device_of.values()))
    if len(names) < 2:
        return Pooling(device_of, unit_of(trials))
    return Pooling(device_of, unit_of(trials), mixed=_mixed(run, trials, device_of, names))


def _mixed(run: RunFile, trials: Sequence[Trial], device_of: Mapping[str, str], names: Sequence[str]) -> str:
    """Why the devices of one folder are not pooled; empty where they are."""
    of_device = kinds([(run, trials)], device_of)
    if len(names) < FEWEST_DEVICES or run.run_identity is None:
        return ", ".join(names)
    reasons = filter(None, (differs(of_device[names[0]], of_device[name]) for name in names[1:]))
    return next(iter(reasons), "")


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
