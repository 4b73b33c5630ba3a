"""The one sentence that matters first: the strongest saving that was proven, or what could not be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from energybench.stats import paired
from energybench.verdict import wording

if TYPE_CHECKING:
    from energybench.verdict.figures import Row, Workload


def _found(row: Row, workload: Workload) -> str:
    figure, quality = row.measured, row.quality
    assert figure is not None
    least = ""
    if quality is not None and quality.limit is not None:
        lost = wording.accepted(abs(quality.limit), quality.fraction).lstrip("+")
        least = f", with no more than {lost} of {quality.metric} lost"
    if figure.quantity == "energy":
        verb = f"{row.method} saves {wording.measured(figure)} of the energy ({figure.scope}) of {workload.plain}"
    else:
        verb = f"{row.method} takes {wording.measured(figure)} less time than {workload.plain}"
    caveat = ""
    if row.control is not None and not row.control.better:
        caveat = " It is not proven better than plain training for the epochs that it kept."
    return f"{verb} on {workload.name}{least}.{caveat}"


def _worse(row: Row, workload: Workload) -> str:
    figure = row.measured
    assert figure is not None
    low, high = (None if end is None else -end for end in (figure.high_rel, figure.low_rel))
    more = wording.measured(replace(figure, saving_rel=-figure.saving_rel, low_rel=low, high_rel=high))
    costs = f"costs {more} more" if figure.quantity == "energy" else f"takes {more} more"
    return (
        f"{row.method} {costs} {wording.what(figure.quantity, figure.scope)} than {workload.plain} on {workload.name}."
    )


def headline(workloads: Sequence[Workload]) -> str:
    """The one sentence that matters first. It never promises more than a verdict does."""
    rows = [(row, workload) for workload in workloads for row in workload.rows if row.measured is not None]
    if not rows:
        return "No method and its baseline both finished in one block: there is nothing to compare."

    def strength(item: tuple[Row, Workload]) -> tuple[bool, float]:
        figure = item[0].measured
        assert figure is not None
        return figure.quantity == "energy", figure.low_rel or -math.inf

    found = [item for item in rows if item[0].verdict in wording.BETTER]
    if found:
        best = max(found, key=strength)
        others = len(found) - 1
        more = f" {len(found)} of {len(rows)} comparisons found a saving." if others else ""
        return _found(*best) + more
    judged = [row for row, _ in rows if row.verdict != "no verdict"]
    if not judged:
        most = max(row.n for row, _ in rows)
        if most < paired.FEWEST_BLOCKS:
            return f"No verdict: {wording.blocks(most)}, and {paired.FEWEST_BLOCKS} are the least."
        return "No verdict: a check of the measurement failed, see the flags."
    kinds = {row.measured.quantity for row in judged if row.measured}
    first = {
        frozenset({"time"}): "No method was proven faster",
        frozenset({"energy"}): "No method was proven to save energy",
    }.get(frozenset(kinds), "No method was proven to save energy or time")
    limits = [(row.detectable_rel, row.n) for row in judged if row.detectable_rel is not None]
    if limits:
        limit, n = min(limits)
        first += f": {wording.blocks(n)} cannot see savings under {wording.percent(limit, 0 if limit >= 0.1 else 1)}"
    tails = [_worse(*item) for item in rows if item[0].verdict in wording.WORSE][:1]
    tails += [
        f"{row.method} loses {row.quality.metric if row.quality else 'quality'} on {workload.name}."
        for row, workload in rows
        if row.verdict == "quality lost"
    ][:1]
    return " ".join([f"{first}.", *tails])
