"""The one sentence that matters first: the strongest saving that was proven, or what could not be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from energybench.stats import paired
from energybench.verdict import sentences, wording

if TYPE_CHECKING:
    from energybench.records.record import RunFile
    from energybench.verdict.figures import Row, Workload


def _proven(row: Row, workload: Workload) -> str:
    figure, quality = row.measured, row.quality
    assert figure is not None
    saving, baseline = wording.measured(figure), workload.baseline_name
    at_most = ""
    if quality is not None and quality.limit is not None:
        lost = wording.accepted(abs(quality.limit), quality.fraction, quality.unit).lstrip("+")
        at_most = f", with no more than {lost} of {quality.metric} lost"
    if figure.quantity == "energy":
        outcome = f"{row.method} saves {saving} of {wording.whose(figure.scope)} that {baseline} took"
    else:
        outcome = f"{row.method} takes {saving} less time than {baseline}"
    caveat = ""
    if row.control is not None and not row.control.better:
        kept = "the epochs that it kept" if row.control.steps is None else "the steps that it paid for"
        caveat = f" It is not proven better than plain training for {kept}."
    return f"{outcome} on {workload.name}{at_most}.{caveat}"


def _only_cheaper(row: Row, workload: Workload) -> str:
    """It costs less for sure, which is a saving only where quality is held."""
    figure = row.measured
    assert figure is not None
    saving, baseline = wording.measured(figure), workload.baseline_name
    if figure.quantity == "energy":
        outcome = f"takes {saving} less of {wording.whose(figure.scope)} than {baseline}"
    else:
        outcome = f"takes {saving} less time than {baseline}"
    of_quality = "" if row.quality_verdict == "lost" else ", and its quality is open"  # a loss has its own sentence
    return f"No saving at held quality was proven: {row.method} {outcome} on {workload.name}{of_quality}."


def _worse(row: Row, workload: Workload) -> str:
    figure = row.measured
    assert figure is not None
    low, high = (None if end is None else -end for end in (figure.high_rel, figure.low_rel))
    more = wording.measured(replace(figure, saving_rel=-figure.saving_rel, low_rel=low, high_rel=high))
    energy = figure.quantity == "energy"
    costs = f"costs {more} more of {wording.whose(figure.scope)}" if energy else f"takes {more} more time"
    return f"{row.method} {costs} than {workload.baseline_name} on {workload.name}."


def headline(workloads: Sequence[Workload]) -> str:
    """The one sentence that matters first. It never promises more than a verdict does."""
    compared = [(row, workload) for workload in workloads for row in workload.rows if row.measured is not None]
    if not compared:
        return "No method and its baseline both finished in one block: there is nothing to compare."
    proven = [(row, workload) for row, workload in compared if row.verdict in wording.BETTER]
    losses = _losses([(row, workload) for workload in workloads for row in workload.rows])
    if proven:
        count = f" {len(proven)} of {len(compared)} comparisons found a saving." if len(proven) > 1 else ""
        return f"{_proven(*max(proven, key=_strength))}{count}{losses}"
    judged = [(row, workload) for row, workload in compared if row.verdict != "no verdict"]
    if not judged:
        return f"{_no_verdict([row for row, _ in compared], workloads)}{losses}"
    worse = [_worse(row, workload) for row, workload in judged if row.verdict in wording.WORSE]
    cheaper = [(row, workload) for row, workload in judged if row.cost_verdict in wording.BETTER]
    if cheaper:
        return " ".join([_only_cheaper(*max(cheaper, key=_strength)), *worse[:1]]) + losses
    return " ".join([f"{_nothing_proven([row for row, _ in judged])}.", *worse[:1]]) + losses


def _strength(item: tuple[Row, Workload]) -> tuple[bool, float]:
    """Energy before time, then by what is saved at least."""
    figure = item[0].measured
    assert figure is not None
    return figure.quantity == "energy", figure.low_rel or -math.inf


def _no_verdict(rows: Sequence[Row], workloads: Sequence[Workload]) -> str:
    most = max(rows, key=lambda row: row.units)
    if most.units < paired.FEWEST_BLOCKS:
        return f"No verdict: {sentences.too_few(most.units, most.unit)}."
    if any(flag.code == "devices_mixed" for workload in workloads for flag in workload.flags):
        return "No verdict: its blocks ran on different devices, which are not pooled."
    if any(flag.code == "aa_failed" for workload in workloads for flag in workload.flags):
        return "No verdict: this machine was too unsteady to compare; run it quiet."
    return "No verdict: a check of the measurement failed, see the flags."


def _losses(rows: Sequence[tuple[Row, Workload]]) -> str:
    """The gravest loss of quality, and how many more there are; empty where none is proven."""
    lost = [(row, workload) for row, workload in rows if row.quality_verdict == "lost"]
    if not lost:
        return ""
    row, workload = max(lost, key=_gravity)
    quality = row.quality
    if row.diverged or quality is None:
        told = f" {row.method} loses quality on {workload.name}: training diverged."
    else:
        told = f" {row.method} loses quality on {workload.name}: {wording.quality_interval(quality)}."
    more = f" {len(lost)} of {len(rows)} comparisons lost quality." if len(lost) > 1 else ""
    return f"{told}{more}"


def _gravity(item: tuple[Row, Workload]) -> tuple[bool, float]:
    """What diverged first, then what lost the most quality margins."""
    quality = item[0].quality
    if item[0].diverged or quality is None or quality.allowed is None:
        return True, 0.0
    return False, (quality.allowed - quality.gain) / max(abs(quality.allowed), 1e-12)


NOTHING_PROVEN = {
    frozenset({"time"}): "No method was proven faster",
    frozenset({"energy"}): "No method was proven to save energy",
}


def _nothing_proven(rows: Sequence[Row]) -> str:
    """And how small a saving could not have been seen."""
    quantities = frozenset(row.measured.quantity for row in rows if row.measured)
    sentence = NOTHING_PROVEN.get(quantities, "No method was proven to save energy or time")
    limits = [(row.detectable_rel, row.n, wording.repeated(row)) for row in rows if row.detectable_rel is not None]
    if not limits:
        return sentence
    limit_rel, _, repeated = min(limits)
    if wording.is_all(limit_rel):
        return f"{sentence}: {repeated} cannot see any saving"
    decimals = 0 if limit_rel >= 0.1 else 1
    return f"{sentence}: {repeated} cannot see savings under {wording.percent(limit_rel, decimals)}"


def busy_note(run: RunFile) -> str:
    """Who else used the machine when the run began, as a sentence behind the headline; empty where nobody did."""
    told = (run.machine.get("busy") or {}).get("told") or ()
    return f" The machine was busy when it began: {'; '.join(map(str, told))}." if told else ""
