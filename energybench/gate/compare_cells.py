"""What of two runs is compared with what: savings and quality of every method, or seconds and joules of every cell.

Each comparison is two samples of log costs, one of either run, for `regression.judge` to test; or the reason why there
is nothing to test. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from energybench.gate.regression import Cell, Comparison, Missing, Records, Struck, welch
from energybench.meter import combine
from energybench.stats import paired
from energybench.verdict import pairing, sentences, wording
from energybench.verdict.devices import Unit
from energybench.verdict.figures import Measured, Row, Summary


def sample(figure: Measured, alpha_fraction: float) -> paired.Mean | None:
    """The mean log cost relative to plain training; None without a spread, with too few blocks or a cost of 0."""
    if figure.sd_log is None or figure.n < paired.FEWEST_BLOCKS or not figure.saving_rel < 1:
        return None
    return paired.Mean(
        figure.n, math.log1p(-figure.saving_rel), figure.sd_log, figure.df, alpha_fraction=alpha_fraction
    )


def _figures_of_one_quantity(base: Row, head: Row) -> tuple[Measured | None, Measured | None]:
    """Energy where the same parts were measured on both sides, else time."""
    before, after = base.measured, head.measured
    if before and after and (before.quantity, before.scope) != (after.quantity, after.scope):
        return base.time, head.time
    return before, after


def _too_few(name: str, count: int, unit: Unit = "block") -> str:
    """ "BASE has 2 blocks, and 3 are the least"; empty where they are enough."""
    return "" if count >= paired.FEWEST_BLOCKS else f"{name} has {wording.plain(sentences.too_few(count, unit))}"


def _reason_against(row: Row, figure: Measured | None, name: str, open_: bool) -> str:
    """Why a side has nothing to compare; empty where it has."""
    if row.verdict_forbidden:
        return f"{name}: {row.reason}"
    if figure is None:
        return f"{name} has no pair of trials"
    if not open_:
        return f"{name} is not finished: {row.reason}"
    if past_limit := sentences.past_limit(row):
        return f"{name}: {past_limit}"
    return _too_few(name, figure.n, figure.unit)


def saving_comparisons(base: Summary, head: Summary) -> list[Comparison]:
    """Every method's saving of both runs, and its quality against plain training."""
    base_rows, head_rows = (
        {(workload.name, row.method): row for workload in each.workloads for row in workload.rows}
        for each in (base, head)
    )
    comparisons: list[Comparison] = []
    for cell in dict.fromkeys([*head_rows, *base_rows]):
        base_row, head_row = base_rows.get(cell), head_rows.get(cell)
        if base_row is None or head_row is None:
            missing: Missing = "new" if base_row is None else "gone"
            comparisons.append(Comparison("savings", *cell, "saving", missing=missing))
        else:
            comparisons += _row_comparisons(cell, base_row, head_row, base, head)
    return comparisons


def _row_comparisons(cell: Cell, base_row: Row, head_row: Row, base: Summary, head: Summary) -> list[Comparison]:
    before, after = _figures_of_one_quantity(base_row, head_row)
    sides = ((base_row, before, "BASE", base.look), (head_row, after, "HEAD", head.look))
    reasons = (_reason_against(row, figure, name, look.open) for row, figure, name, look in sides)
    reason = next(filter(None, reasons), "")
    figure = after or before
    quantity = wording.what(figure.quantity, figure.scope) if figure else "saving"
    shown = (before.saving_rel if before else None, after.saving_rel if after else None)
    samples = [sample(figure, look.alpha_fraction) if figure else None for _, figure, _, look in sides]
    if reason or samples[0] is None or samples[1] is None:
        forbidden = base_row.verdict_forbidden or head_row.verdict_forbidden
        comparable = base.look.open and head.look.open and not forbidden
        diverged = _divergence(cell, base_row, head_row) if comparable else []
        return [Comparison("savings", *cell, quantity, shown, reason=reason or "a figure has no spread"), *diverged]
    blocks = (samples[0].n, samples[1].n)
    units = before.unit if before else "block", after.unit if after else "block"
    change = welch(samples[0], samples[1])
    cost = Comparison("savings", *cell, quantity, shown, change, blocks=blocks, units=units)
    return [cost, *_quality_comparisons(cell, base_row, head_row, base.look.alpha_fraction, head.look.alpha_fraction)]


def _quality_comparisons(cell: Cell, base_row: Row, head_row: Row, *alpha_fractions: float) -> list[Comparison]:
    """Whether quality against plain training dropped, from within the suite's margin to beyond it."""
    if diverged := _divergence(cell, base_row, head_row):
        return diverged
    before, after = base_row.quality, head_row.quality
    if before is None or after is None or before.metric != after.metric:
        return []
    shown = (before.change, after.change)
    if before.sd is None or after.sd is None or after.limit is None:
        return []
    sign = -1 if after.better == "higher" else 1  # a drop is positive, as a cost is
    samples = [
        paired.Mean(q.n, sign * q.change, q.sd or 0.0, q.n - 1, alpha_fraction=alpha_fraction)
        for q, alpha_fraction in zip((before, after), alpha_fractions, strict=True)
    ]
    rounding = 1e-12
    beyond = [sign * (q.change - after.limit) > rounding for q in (before, after)]
    lost = beyond[1] and not beyond[0]
    drop = welch(samples[0], samples[1])
    return [Comparison("savings", *cell, after.metric, shown, drop, quality=True, lost=lost)]


def _divergence(cell: Cell, base_row: Row, head_row: Row) -> list[Comparison]:
    """Training that diverged in HEAD and in no block of BASE, however many of HEAD's are left to compare."""
    if base_row.diverged or not base_row.n or not head_row.diverged:
        return []
    metric = next((quality.metric for quality in (base_row.quality, head_row.quality) if quality), "quality")
    shown = (
        base_row.quality.change if base_row.quality else None,
        head_row.quality.change if head_row.quality else None,
    )
    certain = paired.Mean(1, math.inf, 0.0, math.inf)
    return [Comparison("savings", *cell, metric, shown, certain, reason="it diverged", quality=True)]


def absolute_comparisons(
    base: Records, head: Records, looks: Sequence[tuple[int, float]], struck: Sequence[Struck] = ({}, {})
) -> list[Comparison]:
    """Seconds and joules of every cell, plain training's too, of BASE and of HEAD.

    Args:
        base, head: records of two runs on the same device.
        looks:      (blocks, fraction of α) of either.
        struck:     cells of either whose figures a flag strikes → the reason.

    Returns:
        A comparison per cell and quantity that either run has.
    """
    sides = [_costs(records, blocks) for records, (blocks, _) in zip((base, head), looks, strict=True)]
    comparisons = []
    for key in dict.fromkeys([*sides[1], *sides[0]]):
        if any(key not in side for side in sides):
            missing: Missing = "new" if key not in sides[0] else "gone"
            comparisons.append(Comparison("absolute", *key, missing=missing))
            continue
        shown = [paired.geometric_mean(side[key]) for side in sides]
        named = list(zip(("BASE", "HEAD"), sides, struck, strict=True))
        reasons = [f"{name}: {of_cell[key[:2]]}" for name, _, of_cell in named if key[:2] in of_cell]
        reasons += filter(None, (_too_few(name, len(side[key])) for name, side, _ in named))
        if reasons:
            comparisons.append(Comparison("absolute", *key, (shown[0], shown[1]), reason=reasons[0]))
            continue
        before, after = (
            paired.paired(side[key], [1.0] * len(side[key]), alpha_fraction=alpha_fraction)
            for side, (_, alpha_fraction) in zip(sides, looks, strict=True)
        )
        blocks_of_both = (before.n, after.n)
        comparisons.append(
            Comparison("absolute", *key, (shown[0], shown[1]), welch(before, after), blocks=blocks_of_both)
        )
    return comparisons


def _costs(records: Records, blocks: int) -> dict[tuple[str, str, str], list[float]]:
    """(workload, method, "time" or "energy (gpu)") → a figure per block; energy where all had the same sensors."""
    trials = [t for t in records[1] if t.role in ("baseline", "method") and t.block < blocks]
    costs: dict[tuple[str, str, str], list[float]] = {}
    for workload, method in dict.fromkeys((t.workload, t.method) for t in pairing.order(trials)):
        used = pairing.newest(t for t in trials if (t.workload, t.method) == (workload, method))
        if not used:
            continue
        costs[workload, method, "time"] = [pairing.seconds(t) for t in used]
        energies = [combine.metered(t.train) for t in used]
        scopes = {" + ".join(sorted({scope for _, scope in each.sensors})) for each in energies}
        one_kind = len(scopes) == len({each.channels for each in energies}) == 1
        if one_kind and all(each.joules > 0 for each in energies):
            costs[workload, method, f"energy ({scopes.pop()})"] = [each.joules for each in energies]
    return costs
