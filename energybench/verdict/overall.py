"""One method over all workloads of a suite: the geometric mean of its ratios, and no verdict.

Every workload weighs the same, however long it trains and however often it was repeated. The interval answers for
workloads like these: workloads are drawn with replacement, then blocks within each, and the percentiles are widened for
the few workloads there are (Hesterberg, The American Statistician 69 (2015) 371: the level of Student's t with W − 1
degrees of freedom, times √(W / (W − 1))). With fewer than six workloads no such interval holds 95 %: all W lie on one
side of the truth with a chance of 2^(1 − W), so the range over the workloads is shown instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from energybench.common.hashing import stable_seed
from energybench.stats import paired
from energybench.verdict import pairing
from energybench.verdict.figures import Overall, Quality, Row, Workload

if TYPE_CHECKING:
    from energybench.verdict.workload import WorkloadComparison

DRAWS = 4000
FEWEST_WORKLOADS = 6
Blocks = Sequence[float]  # one workload's log ratios, block by block; device by device, where those are counted


def interval(groups: Sequence[Blocks], seed: int, draws: int = DRAWS) -> tuple[float, float] | None:
    """95 % for the mean over workloads of the mean log ratio; None with fewer than FEWEST_WORKLOADS."""
    import numpy as np
    from scipy.special import ndtr

    count = len(groups)
    if count < FEWEST_WORKLOADS:
        return None
    random = np.random.default_rng(seed)
    drawn = (random.random((draws, count)) * count).astype(int)
    values = np.empty((draws, count))
    for index, group in enumerate(groups):
        of_group = drawn == index
        blocks = np.asarray(group)[(random.random((int(of_group.sum()), len(group))) * len(group)).astype(int)]
        values[of_group] = blocks.mean(axis=1)
    reach = paired.student((1 + paired.INTERVAL) / 2, count - 1) * math.sqrt(count / (count - 1))
    tail = float(ndtr(-reach))
    low, high = np.quantile(values.mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def over_all(comparisons: Sequence[WorkloadComparison], workloads: Sequence[Workload]) -> tuple[Overall, ...]:
    """Every method that was compared on two workloads or more, in the order of the suite."""
    labels = dict.fromkeys(label for comparison in comparisons for label in comparison.methods)
    overall = [_method(label, comparisons, workloads) for label in labels]
    return tuple(each for each in overall if each is not None)


def _method(label: str, comparisons: Sequence[WorkloadComparison], workloads: Sequence[Workload]) -> Overall | None:
    rows = {workload.name: row for workload in workloads for row in workload.rows if row.method == label}
    whole = {name: row for name, row in rows.items() if _is_whole(row)}
    used = [comparison for comparison in comparisons if comparison.name in whole]
    if len(used) < 2:
        return None
    quantity, scope = _one_quantity(list(whole.values()))
    groups = [pairing.change(comp.compared[label], quantity, pooling=comp.pooling).d for comp in used]
    means = [math.fsum(group) / len(group) for group in groups]
    bounds = interval(groups, stable_seed("over all workloads", label))
    low, high = (None, None) if bounds is None else (paired.saving_of(bounds[1]), paired.saving_of(bounds[0]))
    return Overall(
        method=label,
        quantity=quantity,
        scope=scope,
        workloads=tuple(comparison.name for comparison in used),
        left_out=tuple(name for name in rows if name not in whole),
        saving_rel=paired.saving_of(math.fsum(means) / len(means)),
        least_rel=paired.saving_of(max(means)),
        most_rel=paired.saving_of(min(means)),
        low_rel=low,
        high_rel=high,
        quality_within_margin=_quality_within_margin([whole[comparison.name].quality for comparison in used]),
    )


def _is_whole(row: Row) -> bool:
    lost = row.diverged or row.timed_out or row.baseline_timed_out
    return row.measured is not None and not row.verdict_forbidden and not lost


def _one_quantity(rows: Sequence[Row]) -> tuple[paired.Quantity, str]:
    """What all rows were compared by, with its scope; time where they differ: other sensors, other joules."""
    kinds = {(row.measured.quantity, row.measured.scope) for row in rows if row.measured}
    return next(iter(kinds)) if len(kinds) == 1 else ("time", "")


def _quality_within_margin(qualities: Sequence[Quality | None]) -> int | None:
    """How many mean changes are no worse than the suite accepts; None where one cannot be judged."""
    judged = [quality for quality in qualities if quality is not None and quality.limit is not None]
    return sum(map(_within, judged)) if len(judged) == len(qualities) else None


def _within(quality: Quality) -> bool:
    """Whether the mean change is no worse than the suite accepts."""
    assert quality.allowed is not None
    return quality.gain >= quality.allowed - paired.ROUNDING
