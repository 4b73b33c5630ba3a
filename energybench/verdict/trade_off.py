"""Quality against cost, block by block: which trials are compared, by what, and which means nothing beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from energybench.records.record import Trial
from energybench.stats import paired
from energybench.verdict import pairing
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Measured, Row, Workload


@dataclass(frozen=True, slots=True)
class CellTradeOff:
    """One method or control against plain training."""

    label: str
    blocks: tuple[tuple[float, float], ...]  # of each: the saving as a fraction, the change of quality
    measured: Measured | None  # the row's saving; None for a control
    row: Row | None  # None for a control


def quantity_of(workload: Workload) -> tuple[paired.Quantity, str] | None:
    """What all methods of a workload can be compared by, with its scope; None where their joules are of other parts.

    Energy where every comparison is of energy, else time.
    """
    compared = [row.measured for row in workload.rows if row.measured is not None]
    if not compared or any(figure.quantity != "energy" for figure in compared):
        return "time", ""
    scopes = {figure.scope for figure in compared}
    return ("energy", next(iter(scopes))) if len(scopes) == 1 else None


def trade_offs(
    workload: Workload, cells: Mapping[str, Sequence[Trial]], quantity: paired.Quantity, examination: Examination
) -> list[CellTradeOff]:
    """Every method and control that has a block with both figures; `cells`: label → trials, in order."""
    baselines = [trial for trials in cells.values() for trial in trials if trial.role == "baseline"]
    partners = pairing.partners_of(baselines, examination.reason_unusable)
    rows = {row.method: row for row in workload.rows}
    judged = {block for row in workload.rows for block in row.blocks}  # not those that were added later
    result = []
    for label, trials in cells.items():
        if trials[0].role not in ("method", "control"):
            continue
        pairs = pairing.pairs(trials, partners, examination.reason_unusable)
        blocks = _blocks([pair for pair in pairs if pair.method.block in judged], quantity, workload)
        if blocks:
            row = rows.get(label)
            measured = None if row is None else row.measured if quantity == "energy" else row.time
            result.append(CellTradeOff(label, blocks, measured, row))
    return result


def _blocks(
    pairs: Sequence[pairing.Pair], quantity: paired.Quantity, workload: Workload
) -> tuple[tuple[float, float], ...]:
    """(saving, change of quality) of each pair that has both; none where joules were not measured alike."""
    if quantity == "energy" and not pairing.sensors_of(pairs):
        return ()
    metric, per = workload.metric or "", 100 if workload.percent else 1
    blocks = []
    for pair in pairs:
        of_method, of_baseline = (side.quality.get(metric, math.nan) for side in (pair.method, pair.baseline))
        if math.isfinite(of_method) and math.isfinite(of_baseline):
            blocks.append((pairing.change([pair], quantity).saving, (of_method - of_baseline) / per))
    return tuple(blocks)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that none is better than: no other saves at least as much with at least that quality
    and more of one. By saving, least first."""

    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(a >= x and b >= y and (a > x or b > y) for a, b in points)

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: points[i])
