"""What the suite's [[require]] tables ask for, held against the report: met, not met or undecided.

A saving is "at least x" when its one-sided 99 % bound reaches x, the bound that a verdict is drawn from, and quality is
kept; it is less when the other 99 % bound stays below x. Between the two nothing is known yet, and more blocks decide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from energybench.common.errors import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_REGRESSION
from energybench.stats import paired
from energybench.suite.variants import matches
from energybench.verdict import pairing, wording
from energybench.verdict.figures import Measured, Required, Row, Summary, Workload
from energybench.verdict.interim import Look

Outcome = Literal["met", "not met", "undecided"]
UNDECIDED = frozenset({"inconclusive", "no verdict", "quality unproven"})  # verdicts that more blocks may change
STYLES = {"met": "green", "not met": "bold red", "undecided": "yellow"}
ROUNDING = 1e-12


def held(requires: Sequence[Mapping[str, Any]], workloads: Sequence[Workload], look: Look) -> tuple[Required, ...]:
    """Each requirement on each comparison that its patterns fit, in the order of the suite. `requires`: as resolved."""
    found = []
    for asked in requires:
        for workload in workloads:
            for row in workload.rows:
                entry = re.sub(r"\[.*\]$", "", row.method)
                here = matches(asked["workload"], [workload.name]) and matches(asked["method"], [row.method, entry])
                found += _one(asked, workload.name, row, look) if here else []
    return tuple(found)


def _one(asked: Mapping[str, Any], workload: str, row: Row, look: Look) -> list[Required]:
    found = []
    if asked.get("saves_at_least") is not None:
        found.append(_saving(workload, row, look, asked["saves_at_least"], asked.get("of")))
    for key in ("verdict", "never"):
        if chosen := asked.get(key):
            asks = f"{'one of' if key == 'verdict' else 'never'}: {', '.join(chosen)}"
            outcome, because = _word(row, look, key, chosen)
            found.append(Required(workload, row.method, asks, outcome, because, None, *_figures(row.measured, look)))
    return found


def _figures(figure: Measured | None, look: Look) -> tuple[float | None, float | None, float | None]:
    """The saving with its one-sided bounds, at the confidence of a verdict."""
    if figure is None:
        return None, None, None
    if figure.sd_log is None or figure.n < paired.FEWEST_BLOCKS or not figure.saving_rel < 1:
        return figure.saving_rel, None, None
    change = paired.Mean(
        figure.n, math.log1p(-figure.saving_rel), figure.sd_log, figure.df, alpha_fraction=look.alpha_fraction
    )
    return (
        figure.saving_rel,
        paired.saving_of(change.upper(paired.CLAIM)),
        paired.saving_of(change.lower(paired.CLAIM)),
    )


def _saving(workload: str, row: Row, look: Look, least: float, of: str | None) -> Required:
    figure = row.time if of == "time" else row.measured
    if of == "energy" and figure is not None and figure.quantity != "energy":
        figure = None
    quantity = of or (figure.quantity if figure else "time")
    asks = f"saves at least {wording.as_written(least)} of the {quantity}"
    saving, low, high = _figures(figure, look)
    outcome, because = _enough(row, look, least, low, high)
    if figure is None and row.measured is not None:
        outcome, because = "undecided", "energy was not measured"
    return Required(workload, row.method, asks, outcome, because, least, saving, low, high)


def _enough(row: Row, look: Look, least: float, low: float | None, high: float | None) -> tuple[Outcome, str]:
    if row.struck or not look.open:
        return "undecided", row.because
    quality, told = _quality(row)
    if low is None or high is None:  # what diverged is lost, however few blocks are left
        return ("not met", f"quality lost: {told}") if row.diverged else ("undecided", row.because)
    if high < least - ROUNDING and not row.plain_timed_out:
        return "not met", f"at most {wording.share_beside(high, least)} is saved, at 99 %"
    if quality == "lost":
        return "not met", f"quality lost: {told}"
    if past_limit := wording.past_limit(row):
        return "undecided", past_limit
    if low < least - ROUNDING:
        bounds = f"between {wording.share_beside(low, least)} and {wording.share_beside(high, least)}"
        return "undecided", f"{bounds}, each bound at 99 %"
    if quality == "unproven":
        return "undecided", f"quality unproven: {told}"
    return "met", f"at least {wording.percent(low)} is saved, at 99 %"


def _quality(row: Row) -> tuple[Literal["kept", "lost", "unproven"], str]:
    """By the rule of the verdicts, whatever the verdict is."""
    found = row.quality
    if row.diverged:
        return "lost", f"training diverged in {wording.blocks(row.diverged)}"
    if row.unjudged:
        return "kept", ""
    if found is None or found.limit is None or found.bound is None or found.n < row.n:
        return "unproven", "no quality figure in every block, or no margin in the suite"
    sign = 1 if pairing.higher_is_better(found.metric) else -1
    if sign * (found.change - found.limit) < -ROUNDING:
        change, limit = wording.beside(found.change, found.limit, found.fraction)
        return "lost", f"{found.metric} changed by {change}, {limit} is accepted"
    if sign * (found.bound - found.limit) < -ROUNDING:
        bound, limit = wording.beside(found.bound, found.limit, found.fraction)
        return "unproven", f"a change of {bound} {found.metric} cannot be excluded, {limit} is accepted"
    return "kept", ""


def _word(row: Row, look: Look, key: str, chosen: Sequence[str]) -> tuple[Outcome, str]:
    because = f"the verdict is {row.verdict}"
    if row.diverged and row.verdict == "no verdict" and look.open and not row.struck:
        if key == "never" and "quality lost" in chosen:
            return "not met", f"quality lost: {_quality(row)[1]}"
        if key == "verdict" and wording.BETTER.issuperset(chosen):  # which no block can bring back
            return "not met", f"{because}: {row.because}"
    if (row.verdict in chosen) == (key == "verdict"):
        if key == "never" and row.verdict == "no verdict":
            return "undecided", f"{because}: {row.because}"
        return "met", because
    if key == "verdict" and row.verdict in UNDECIDED:
        return "undecided", f"{because}: {row.because}"
    return "not met", because


def exit_code(found: Iterable[Required], strict: bool = False) -> int:
    """1 where a requirement is not met; 4 where one is undecided and `strict`; else 0."""
    outcomes = {each.outcome for each in found}
    if "not met" in outcomes:
        return EXIT_REGRESSION
    return EXIT_INCONCLUSIVE if strict and "undecided" in outcomes else EXIT_FINE


def lines(summary: Summary) -> list[tuple[str, str]]:
    """For a terminal: a sentence each, and its style."""
    return [
        (
            f"{each.outcome}: {each.workload}: {each.method} {_asks(each)}: {wording.plain(each.because)}",
            STYLES[each.outcome],
        )
        for each in summary.required
    ]


def _asks(found: Required) -> str:
    if found.least_rel is not None:
        return f"must save {found.asks.removeprefix('saves ')}"
    return f"must {found.asks.replace('never:', 'never be:').replace('one of:', 'be one of:')}"
