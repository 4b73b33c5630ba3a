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
from energybench.verdict import pairing, wording
from energybench.verdict.figures import Overall, Quality, Row, Summary, Workload

if TYPE_CHECKING:
    from energybench.verdict.workload import WorkloadComparison

DRAWS = 4000
FEWEST_WORKLOADS = 6
Blocks = Sequence[float]  # one workload's log ratios, block by block


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
        here = drawn == index
        blocks = np.asarray(group)[(random.random((int(here.sum()), len(group))) * len(group)).astype(int)]
        values[here] = blocks.mean(axis=1)
    reach = paired.student((1 + paired.INTERVAL) / 2, count - 1) * math.sqrt(count / (count - 1))
    tail = float(ndtr(-reach))
    low, high = np.quantile(values.mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def over_all(benches: Sequence[WorkloadComparison], workloads: Sequence[Workload]) -> tuple[Overall, ...]:
    """Every method that was compared on two workloads or more, in the order of the suite."""
    labels = dict.fromkeys(label for bench in benches for label in bench.methods)
    found = [_method(label, benches, workloads) for label in labels]
    return tuple(each for each in found if each is not None)


def _method(label: str, benches: Sequence[WorkloadComparison], workloads: Sequence[Workload]) -> Overall | None:
    rows = {w.name: row for w in workloads for row in w.rows if row.method == label}
    used = [b for b in benches if b.name in rows and _counts(rows[b.name])]
    if len(used) < 2:
        return None
    kinds = {(row.measured.quantity, row.measured.scope) for name, row in rows.items() if _counts(row) and row.measured}
    quantity, scope = next(iter(kinds)) if len(kinds) == 1 else ("time", "")  # joules of different sensors never meet
    groups = [pairing.change(bench.against[label], quantity).d for bench in used]
    means = [math.fsum(group) / len(group) for group in groups]
    bounds = interval(groups, stable_seed("over all workloads", label))
    qualities = [rows[b.name].quality for b in used]
    judged = [q for q in qualities if q is not None and q.limit is not None]
    return Overall(
        method=label,
        quantity=quantity,
        scope=scope,
        workloads=tuple(bench.name for bench in used),
        left_out=tuple(name for name, row in rows.items() if not _counts(row)),
        saving_rel=paired.saving_of(math.fsum(means) / len(means)),
        least_rel=paired.saving_of(max(means)),
        most_rel=paired.saving_of(min(means)),
        low_rel=None if bounds is None else paired.saving_of(bounds[1]),
        high_rel=None if bounds is None else paired.saving_of(bounds[0]),
        kept_quality=sum(map(_within, judged)) if len(judged) == len(used) else None,
    )


def _counts(row: Row) -> bool:
    whole = not (row.diverged or row.timed_out or row.plain_timed_out)
    return row.measured is not None and not row.struck and whole


def _within(quality: Quality) -> bool:
    """Whether the mean change is no worse than the suite accepts."""
    assert quality.limit is not None
    better = quality.change - quality.limit
    return (better if pairing.higher_is_better(quality.metric) else -better) >= -1e-12


ABOUT = (
    "The geometric mean of each method's ratios, every workload weighing the same. No verdict is drawn from it: those "
    "are per workload."
)


def _interval(found: Overall) -> str:
    if found.low_rel is None or found.high_rel is None:
        return f"needs {FEWEST_WORKLOADS} workloads"
    return wording.interval(found.low_rel, found.high_rel, 1)


def cells(found: Overall) -> list[str]:
    kept = wording.NOTHING
    if found.kept_quality is not None:
        kept = f"{found.kept_quality} of {len(found.workloads)}"
    return [
        wording.percent(found.saving_rel),
        wording.what(found.quantity, found.scope),
        f"{wording.percent(found.least_rel)} to {wording.percent(found.most_rel)}",
        _interval(found),
        kept,
    ]


def left_out(summary: Summary) -> list[str]:
    why = "where the comparison is struck, diverged, past its limit or missing"
    return [f"{each.method}: without {', '.join(each.left_out)}, {why}." for each in summary.overall if each.left_out]


def lines(summary: Summary) -> list[str]:
    """The same for a terminal, a sentence each."""
    found = []
    for each in summary.overall:
        saving, what, span, bounds, kept = cells(each)
        inside = f" [95 % for workloads like these: {bounds}]" if each.low_rel is not None else ""
        quality = "" if each.kept_quality is None else f"; quality within the margin on {kept}"
        found.append(
            f"{each.method} over {len(each.workloads)} workloads: {saving} {what} saved, {span}{inside}{quality}."
        )
    return found + left_out(summary)
