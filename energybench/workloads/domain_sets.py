"""Sets of several domains: which of them is trained on and which judges, and those that are known by their names.

Imports no torch; the folders are read in datasets/domains.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest
from energybench.suite.tables import DataTable
from energybench.workloads.description import DataDescription

SIDE = 224  # of an image, where the suite gives no `size`: as the papers have it


@dataclass(frozen=True, slots=True)
class KnownDomains:
    """A published set. domains: name → images."""

    classes: int
    domains: Mapping[str, int]


KNOWN: dict[str, KnownDomains] = {
    "pacs": KnownDomains(7, {"art_painting": 2_048, "cartoon": 2_344, "photo": 1_670, "sketch": 3_929}),
    "office31": KnownDomains(31, {"amazon": 2_817, "dslr": 498, "webcam": 795}),
}


@dataclass(frozen=True, slots=True)
class Roles:
    """train: domains with labels;  test: the one that judges;  adapted: whether its images are seen in training"""

    train: tuple[str, ...]
    test: str
    adapted: bool

    @property
    def extra(self) -> dict[str, int | float | str]:
        """What a task must know: how many domains a sample may be of, and which."""
        return {} if self.adapted else {"domains": len(self.train), "domain_names": ", ".join(self.train)}


def roles(use: str, domains: Iterable[str], source: Any = None, target: Any = None, left_out: Any = None) -> Roles:
    """Of an adaptation from `source` to `target`, or of learning from all domains but the one `left_out`.

    Raises UsageError E402 for anything else, and for a domain that is not there.
    """
    there = tuple(domains)
    hint = f'options = {{ source = "{there[0]}", target = "{there[-1]}" }}, or {{ left_out = "{there[-1]}" }}'
    given = {key: value for key, value in (("source", source), ("target", target), ("left_out", left_out)) if value}
    if set(given) not in ({"source", "target"}, {"left_out"}):
        what = f"options have {' and '.join(given)}" if given else "options name none"
        message = f"'{use}' has the domains {', '.join(there)}, and {what}"
        raise UsageError(Problem("E402", message, hint=hint))
    for key, value in given.items():
        if value not in there:
            message = f"'{use}' has no domain {value!r}, which options.{key} names: {', '.join(there)}"
            raise UsageError(Problem("E402", message, hint=nearest(str(value), there) or hint))
    if left_out is None:
        if source == target:
            raise UsageError(Problem("E402", f"'{use}': source and target are one domain, '{source}'", hint=hint))
        return Roles((source,), target, True)
    rest = tuple(name for name in there if name != left_out)
    if len(rest) < 2:
        message = f"'{use}' has {len(there)} domains, and what is left of them is no two to learn from"
        raise UsageError(Problem("E402", message, hint=hint))
    return Roles(rest, left_out, False)


def describe(use: str, settings: DataTable) -> DataDescription:
    """What `datasets.prepare` would say of a set that is known by its name, but for the content.

    Raises UsageError E402 as `roles` does.
    """
    known, options, side = KNOWN[use], settings.options, settings.resize
    chosen = roles(use, known.domains, *(options.get(key) for key in ("source", "target", "left_out")))
    images, judged = sum(known.domains[name] for name in chosen.train), known.domains[chosen.test]
    size = options.get("size", SIDE)
    height, width = size if isinstance(size, list) else (size, size)
    stored = (3, int(height), int(width))
    return DataDescription(
        source=f"{use}, known by its name: the files are not on this machine",
        kind="stand-in",
        stored=stored,
        shape=(3, side, side) if side else stored,
        classes=known.classes,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        extra=chosen.extra,
        train=min(images, settings.subset or images),
        test=min(judged, settings.test_subset or judged),
        parts={"target": judged} if chosen.adapted else {},
        sha256="unknown",
    )
