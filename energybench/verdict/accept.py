"""What a suite accepts: the saving margin, the quality margin, and the gap between estimate and count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from energybench.common.renamed import renamed
from energybench.records.record import RunFile

MARGIN, ESTIMATE_GAP = 0.01, 0.02  # where a suite's file names none


@renamed(noise="margin")
@dataclass(frozen=True, slots=True)
class Accept:
    """The suite's margins, as fractions; on a workload, with the quality table that holds there."""

    metric: str | None = None
    loses_at_most: float | None = None  # the quality margin
    margin: float = MARGIN  # the saving margin: what is smaller is no saving
    estimate_gap: float = ESTIMATE_GAP
    also: tuple[str, ...] = ()  # metrics that are kept and decide nothing

    @classmethod
    def of(cls, run: RunFile, workload: str | None = None) -> Accept:
        settings: dict[str, Any] = run.resolved.get("accept") or {}
        workloads: Sequence[dict[str, Any]] = run.resolved.get("workload") or ()
        table = next((each for each in workloads if each.get("name") == workload), {})
        quality = (table.get("accept") or {}).get("quality") or settings.get("quality") or {}
        also = [*(quality.get("also") or ()), *_read_beside(table.get("quality"))]
        return cls(
            metric=quality.get("metric"),
            loses_at_most=quality.get("loses_at_most"),
            margin=settings.get("margin", settings.get("noise", MARGIN)),  # runs of before wrote the old key
            estimate_gap=settings.get("estimate_gap", ESTIMATE_GAP),
            also=tuple(dict.fromkeys(also)),
        )


def _read_beside(source: Any) -> Iterator[str]:
    """The further metrics that a command's own table of quality names."""
    for each in (source.get("also") or ()) if isinstance(source, dict) else ():
        if isinstance(each, dict) and isinstance(each.get("metric"), str):
            yield each["metric"]
