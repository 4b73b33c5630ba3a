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
from energybench.common.name_patterns import matches
from energybench.stats import paired
from energybench.verdict import sentences, wording
from energybench.verdict.figures import Measured, Required, Row, Workload
from energybench.verdict.interim import Look

Outcome = Literal["met", "not met", "undecided"]
UNDECIDED = frozenset({"inconclusive", "no verdict", "quality unproven"})  # verdicts that more blocks may change


def held(
    requires: Sequence[Mapping[str, Any]],
    workloads: Sequence[Workload],
    look: Look,
    plain_names: Mapping[str, str] | None = None,
) -> tuple[Required, ...]:
    """Each requirement on each comparison that its patterns fit, in the order of the suite.

    Args:
        requires:    as resolved
        plain_names: of workloads: name → that without its sweep
    """
    without_sweep = plain_names or {}
    return tuple(
        required
        for asked in requires
        for workload in workloads
        if matches(asked["workload"], [workload.name, without_sweep.get(workload.name, workload.name)])
        for row in workload.rows
        if matches(asked["method"], [row.method, re.sub(r"\[.*\]$", "", row.method)])
        for required in _of_row(asked, workload.name, row, look)
    )


def _of_row(asked: Mapping[str, Any], workload: str, row: Row, look: Look) -> list[Required]:
    required = []
    if asked.get("saves_at_least") is not None:
        required.append(_saving(workload, row, look, asked["saves_at_least"], asked.get("of")))
    for key in ("verdict", "never"):
        if chosen := asked.get(key):
            asks = f"{'one of' if key == 'verdict' else 'never'}: {', '.join(chosen)}"
            outcome, reason = _verdict_outcome(row, look, key, chosen)
            figures = _figures(row.measured, look)
            required.append(Required(workload, row.method, asks, outcome, reason, None, *figures))
    return required


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
    outcome, reason = _saving_outcome(row, look, least, low, high)
    if figure is None and row.measured is not None:
        outcome, reason = "undecided", "energy was not measured"
    return Required(workload, row.method, asks, outcome, reason, least, saving, low, high)


def _saving_outcome(row: Row, look: Look, least: float, low: float | None, high: float | None) -> tuple[Outcome, str]:
    if row.verdict_forbidden or not look.open:
        return "undecided", row.reason
    quality, quality_reason = _quality(row)
    if low is None or high is None:  # what diverged is lost, however few blocks are left
        return ("not met", f"quality lost: {quality_reason}") if row.diverged else ("undecided", row.reason)
    if high < least - paired.ROUNDING and not row.baseline_timed_out:
        return "not met", f"at most {wording.share_beside(high, least)} is saved, at 99 %"
    if quality == "lost":
        return "not met", f"quality lost: {quality_reason}"
    if past_limit := sentences.past_limit(row):
        return "undecided", past_limit
    if low < least - paired.ROUNDING:
        bounds = f"between {wording.share_beside(low, least)} and {wording.share_beside(high, least)}"
        return "undecided", f"{bounds}, each bound at 99 %"
    if quality == "unproven":
        return "undecided", f"quality unproven: {quality_reason}"
    return "met", f"at least {wording.percent(low)} is saved, at 99 %"


def _quality(row: Row) -> tuple[Literal["kept", "lost", "unproven"], str]:
    """With the reason: the row's own verdict on quality, whatever the cost is."""
    word = row.quality_verdict
    if word in ("held", "not judged"):
        return "kept", ""
    return ("lost" if word == "lost" else "unproven"), row.quality_reason or row.reason


def _verdict_outcome(row: Row, look: Look, key: str, chosen: Sequence[str]) -> tuple[Outcome, str]:
    verdict = f"the verdict is {row.verdict}"
    if key == "never" and "quality lost" in chosen and row.quality_verdict == "lost":  # whatever the cost
        return "not met", f"quality lost: {row.quality_reason}"
    if (row.verdict in chosen) == (key == "verdict"):
        if key == "never" and row.verdict == "no verdict":
            return "undecided", f"{verdict}: {row.reason}"
        return "met", verdict
    if key == "verdict" and row.verdict in UNDECIDED:
        return "undecided", f"{verdict}: {row.reason}"
    return "not met", verdict


def exit_code(required: Iterable[Required], strict: bool = False) -> int:
    """1 where a requirement is not met; 4 where one is undecided and `strict`; else 0."""
    outcomes = {each.outcome for each in required}
    if "not met" in outcomes:
        return EXIT_REGRESSION
    return EXIT_INCONCLUSIVE if strict and "undecided" in outcomes else EXIT_FINE
