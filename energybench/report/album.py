"""The pictures of a report as typed values: what was drawn, and what was not and why. Imports no drawing library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FOLDER = "figures"  # beside report.md


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawing. `alt` says what it shows to whoever cannot see it; both texts are as written, not escaped."""

    kind: str  # "ladder", "where", "trade-off", "quality-curves", "blocks", "curves", "power", "diagnostics", "grid"
    workload: str
    file: str  # "ladder-cnn-digits.svg": letters, digits and -._+= only
    caption: str
    alt: str
    svg: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture that would have shown nothing."""

    kind: str
    workload: str
    reason: str


@dataclass(frozen=True, slots=True)
class Album:
    pictures: tuple[Picture, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def of(self, workload: str, *kinds: str) -> Iterator[Picture]:
        """In the order of the kinds asked for."""
        for kind in kinds:
            yield from (p for p in self.pictures if p.workload == workload and p.kind == kind)
