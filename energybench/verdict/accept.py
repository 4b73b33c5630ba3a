"""What a suite accepts: the saving margin, the quality margin, and the gap between estimate and count."""

from __future__ import annotations

from collections.abc import Sequence
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
        own = next((each.get("accept") or {} for each in workloads if each.get("name") == workload), {})
        quality = own.get("quality") or settings.get("quality") or {}
        return cls(
            metric=quality.get("metric"),
            loses_at_most=quality.get("loses_at_most"),
            margin=settings.get("margin", settings.get("noise", MARGIN)),  # runs of before wrote the old key
            estimate_gap=settings.get("estimate_gap", ESTIMATE_GAP),
            also=tuple(quality.get("also") or ()),
        )
