"""What two runs must have in common to be compared, and how they differ where they do not. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from energybench.records.record import RunFile, Trial
from energybench.suite.renamed_keys import with_new_keys

MOST_TOLD = 6  # differences in one message
ABSENT: tuple[Any, ...] = (None, False, 0, [], {}, "")  # what a setting that an older version did not know amounts to
CARD = ("name", "driver", "power_limit_w", "ecc", "mig")


def settings_differ(base: RunFile, head: RunFile) -> list[str]:
    """Settings that move a saving, as "workload w: train.epochs: 8, then 6". What only one side has is no difference.

    Blocks, seeds, looks, sensors and requirements may differ; workloads, methods, margins and threads may not.
    """
    one, other = with_new_keys(base.resolved), with_new_keys(head.resolved)
    found: list[str] = []
    for table, name in (("workload", _workload_name), ("method", _method_name)):
        named = [{name(entry): entry for entry in each.get(table) or ()} for each in (one, other)]
        for key in named[0]:
            if key in named[1]:
                found += _differences(named[0][key], named[1][key], f"{table} {key}: ")
    found += _differences(one.get("accept") or {}, other.get("accept") or {}, "accept.")
    threads = [(each.get("trials") or {}).get("threads") for each in (one, other)]
    return [*found, *_differences({"threads": threads[0]}, {"threads": threads[1]}, "trials.")]


def _workload_name(entry: dict[str, Any]) -> str:
    return str(entry.get("name"))


def _method_name(entry: dict[str, Any]) -> str:
    from energybench.suite.variants import method_label

    return str(method_label(entry))


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    """Leaf by leaf. Claims, tuning and the method's or workload's own name move nothing."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            if key not in ("claims", "tuned", "extends"):
                below = path if path.endswith((": ", ".")) else f"{path}."
                yield from _differences(one.get(key), other.get(key), f"{below}{key}")
    elif one != other and not (one in ABSENT and other in ABSENT):
        yield f"{path}: {one!r}, then {other!r}"


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
        card = (trial.environment.get("gpus") or {}).get(trial.device) or {}
        for name in CARD:
            add(f"card's {name}", card.get(name))
    return {name: ", ".join(sorted(values)) for name, values in facts.items()}


def devices_differ(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """As "torch: 2.12.0, then 2.13.0"."""
    return [
        f"{name}: {one.get(name, 'not recorded')}, then {other.get(name, 'not recorded')}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def told(differences: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(differences) - MOST_TOLD
    return "; ".join(differences[:MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")


def copies(one: Sequence[Trial], other: Sequence[Trial]) -> bool:
    """Whether both hold a record of one and the same trial."""
    known = {(t.trial, t.started_at): t for t in one}
    return any(known.get((t.trial, t.started_at)) == t for t in other)
