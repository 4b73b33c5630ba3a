"""What two runs must have in common to be compared, and how they differ where they do not. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from energybench.common.differences import differences
from energybench.records.record import RunFile, Trial
from energybench.suite.renamed_keys import with_new_keys
from energybench.verdict.card_knobs import cards_before

MOST_DESCRIBED = 6  # differences in one message
ABSENT: tuple[Any, ...] = (None, False, 0, [], {}, "")  # what a setting that an older version did not know amounts to
CARD = ("name", "driver", "power_limit_w", "ecc", "mig")
NO_EFFECT = ("claims", "tuned", "extends")  # keys of a workload or method that move nothing


def settings_differ(base: RunFile, head: RunFile) -> list[str]:
    """Settings that move a saving, as "workload w: train.epochs: 8, then 6". What only one side has is no difference.

    Blocks, seeds, looks, sensors and requirements may differ; workloads, methods, margins and threads may not.
    A setting under its old name in one run and its new name in the other does not differ by that.
    """
    base_settings, head_settings = with_new_keys(base.resolved), with_new_keys(head.resolved)
    described: list[str] = []
    for table, name in (("workload", _workload_name), ("method", _method_name)):
        before, after = (
            {name(entry): entry for entry in each.get(table) or ()} for each in (base_settings, head_settings)
        )
        for key in before:
            if key in after:
                described += _described(before[key], after[key], f"{table} {key}: ")
    described += _described(base_settings.get("accept") or {}, head_settings.get("accept") or {}, "accept.")
    before, after = ({"threads": _threads(each)} for each in (base_settings, head_settings))
    return [*described, *_described(before, after, "trials.")]


def _threads(settings: dict[str, Any]) -> Any:
    """None where the suite leaves them to the machine, as all did before they could be chosen."""
    threads = (settings.get("trials") or {}).get("threads")
    return None if threads == "auto" else threads


def _workload_name(entry: dict[str, Any]) -> str:
    return str(entry.get("name"))


def _method_name(entry: dict[str, Any]) -> str:
    from energybench.suite.variants import method_label

    return str(method_label(entry))


def _described(before: Any, after: Any, prefix: str) -> Iterator[str]:
    for each in differences(before, after, same=_same_setting, ignored_keys=NO_EFFECT, into_lists=False):
        yield f"{prefix}{'.'.join(map(str, each.path))}: {each.before!r}, then {each.after!r}"


def _same_setting(before: Any, after: Any) -> bool:
    return before == after or (before in ABSENT and after in ABSENT)


def device_key(run: RunFile, trials: Sequence[Trial]) -> dict[str, str]:
    """What must be equal for seconds and joules to be compared as they are."""
    facts: dict[str, set[str]] = {}

    def add(name: str, value: Any) -> None:
        if value is not None:
            facts.setdefault(name, set()).add(str(value))

    for name in ("cpu", "cores", "platform", "python", "torch"):
        add(name, run.machine.get(name))
    for trial in trials:
        add("device", trial.device)
        for name in ("threads", "torch"):
            add(name, trial.environment.get(name))
        card = cards_before(trial).get(trial.device.partition("+")[0]) or {}
        for name in CARD:
            add(f"card's {name}", card.get(name))
    return {name: ", ".join(sorted(values)) for name, values in facts.items()}


def devices_differ(base: dict[str, str], head: dict[str, str]) -> list[str]:
    """As "torch: 2.12.0, then 2.13.0"."""
    return [
        f"{each.path[0]}: {_recorded(each.before)}, then {_recorded(each.after)}" for each in differences(base, head)
    ]


def _recorded(value: str | None) -> str:
    return "not recorded" if value is None else value


def abridged(texts: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(texts) - MOST_DESCRIBED
    return "; ".join(texts[:MOST_DESCRIBED]) + (f"; and {more} more" if more > 0 else "")


def copies(base_trials: Sequence[Trial], head_trials: Sequence[Trial]) -> bool:
    """Whether both hold a record of one and the same trial."""
    known = {(t.trial, t.started_at): t for t in base_trials}
    return any(known.get((t.trial, t.started_at)) == t for t in head_trials)
