"""Matched controls: which trials a method is held against to tell it from only training less, and at which budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from energybench.records.record import Budget, Trial
from energybench.verdict import pairing, sentences
from energybench.verdict.cell_records import CellRecords
from energybench.verdict.pairing import Pair, Partners, ReasonUnusable

EPOCH_TOLERANCE = 0.5  # epochs between a method and its control, which trained whole epochs in records of before


def pairs(
    found: Sequence[Trial], records: CellRecords, baselines: Partners, reason_unusable: ReasonUnusable
) -> list[Pair]:
    """A method's trials, each with the control of its block; with plain training where its tally paid for all of it.
    Empty where no block has a control.

    found: its controls' trials
    """
    controlled = {pairing.place(t)[:3] for t in found if reason_unusable(t) is None}
    if not controlled:
        return []
    whole = {pairing.place(t) for t in records.trials if t.budget is not None and not t.trained_less}
    plain = [baselines[place] for place in whole if place in baselines and place[:3] not in controlled]
    compared = pairing.pairs_with_controls(records.trials, [*plain, *found], baselines, reason_unusable)
    return compared if any(pair.baseline.role == "control" for pair in compared) else []


def budgets(compared: Sequence[Pair]) -> list[Budget]:
    """What the method paid for, block by block; empty where a record does not say it."""
    known = [pair.method.budget for pair in compared]
    return [each for each in known if each is not None] if None not in known else []


def differs(compared: Sequence[Pair]) -> str | None:
    """Where a control did not train its budget: by how much, where they lie furthest apart."""
    apart = list(_apart(pair for pair in compared if pair.baseline.role == "control"))
    return max(apart)[1] if apart else None


def _apart(compared: Iterable[Pair]) -> Iterator[tuple[float, str]]:
    for pair in compared:
        budget, trained = pair.method.budget, pair.baseline.steps
        if budget is not None and trained is not None:
            if budget.steps != trained:
                yield abs(budget.steps - trained), f"{budget.steps} steps paid for, {trained} trained"
            continue
        kept, of_control = pair.method.passes, pair.baseline.passes
        if kept and of_control and abs(kept.epochs_trained - of_control.epochs_trained) > EPOCH_TOLERANCE:
            described = f"{kept.epochs_trained:g} epochs kept, {of_control.epochs_trained:g} trained"
            yield abs(kept.epochs_trained - of_control.epochs_trained), described


def why_none(records: CellRecords, asked: bool) -> str:
    """Why a method whose control the suite asks for has none; empty where it has one, or where nobody asked."""
    known = [t.budget for t in records.paired_trials if t.budget is not None]
    if not asked or not known or any(t.trained_less for t in records.paired_trials):
        return ""
    return sentences.no_control(known[0].planned_steps)
