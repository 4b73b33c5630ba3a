"""A method in one sentence, over all workloads: what was decided of cost and of quality, and what would decide it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from energybench.stats import paired, power
from energybench.verdict import sentences, wording
from energybench.verdict.devices import plural

if TYPE_CHECKING:
    from energybench.verdict.figures import Row, Summary

ORDER = ("saves", "faster", "no saving", "no difference", "costs more", "slower")
Place = tuple[str, "Row"]  # the workload's name, and the method's row there


def by_method(summary: Summary) -> dict[str, list[Place]]:
    """Every method with its rows, in the order of the suite."""
    places: dict[str, list[Place]] = {}
    for workload in summary.workloads:
        for row in workload.rows:
            places.setdefault(row.method, []).append((workload.name, row))
    return places


def method(places: Sequence[Place]) -> str:
    """ "time undecided (about 12 blocks would decide); quality held." """
    parts = [*_cost(places), *_quality(places)]
    text = "; ".join(parts)
    return f"{text[:1]}{text[1:].rstrip('.')}."


def _on(places: Sequence[Place], among: int) -> str:
    """Where, unless that is everywhere."""
    if len(places) == among:
        return {1: "", 2: " on both workloads"}.get(among, f" on all {among} workloads")
    return f" on {', '.join(name for name, _ in places)}"


def _groups(places: Sequence[Place], words: Iterable[str], of: str) -> list[tuple[str, list[Place]]]:
    found = [(word, [place for place in places if getattr(place[1], of) == word]) for word in words]
    return [(word, group) for word, group in found if group]


def _cost(places: Sequence[Place]) -> list[str]:
    parts = []
    for word, group in _groups(places, ORDER, "cost_verdict"):
        caveat = ""
        if word in wording.BETTER and any(row.control is not None and not row.control.better for _, row in group):
            caveat = ", not proven better than training less"
        parts.append(f"{word}{_on(group, len(places))}{caveat}")
    for quantity in ("energy", "time"):
        group = [place for place in places if _undecided(place[1], quantity)]
        if group:
            parts.append(f"{quantity} undecided{_on(group, len(places))} ({_would_decide([r for _, r in group])})")
    none = [place for place in places if place[1].cost_verdict == "no verdict"]
    by_reason: dict[str, list[Place]] = {}
    for place in none:
        by_reason.setdefault(_no_verdict(place[1]), []).append(place)
    for reason, group in by_reason.items():
        because = f" ({reason.rstrip('.')})" if reason else ""
        parts.append(f"no verdict{_on(group, len(places))}{because}")
    return parts


def _undecided(row: Row, quantity: paired.Quantity) -> bool:
    return row.cost_verdict == "inconclusive" and row.measured is not None and row.measured.quantity == quantity


def _no_verdict(row: Row) -> str:
    """Why; a row whose quality is lost says that first, and of the cost only that nothing is known."""
    struck = [flag.sentence for flag in row.flags if flag.severity == "struck"]
    if row.verdict == "no verdict":
        return row.reason
    return struck[0] if struck else ""


def _would_decide(rows: Sequence[Row]) -> str:
    """Of the most that any of them needs."""
    if past := next(filter(None, map(sentences.past_limit, rows)), ""):
        return past
    return _most([row.blocks_needed for row in rows], rows[0])


def _most(needed: Sequence[int | None], row: Row) -> str:
    """row: any of those that need them, for what they are of"""
    known = [count for count in needed if count is not None]
    if len(known) == len(needed):
        return sentences.would_decide(max(known), unit=row.unit, each=row.blocks_on_each)
    where = ": not on this machine" if row.unit == "block" else ""
    return f"over {power.MOST_BLOCKS} {plural(row.unit)}{where}"


def _quality(places: Sequence[Place]) -> list[str]:
    parts = []
    for word, group in _groups(places, ("lost", "open", "held"), "quality_verdict"):
        parts.append(f"quality {word}{_on(group, len(places))}{_why(word, group, len(places))}")
    if all(row.unjudged for _, row in places):
        parts.append("quality not judged")
    return parts


def _why(word: str, group: Sequence[Place], among: int) -> str:
    """The worst loss, with what is accepted where there is but one; what would decide what is open."""
    rows = [row for _, row in group]
    if word == "held":
        return ""
    if word == "lost":
        worst = max(rows, key=lambda row: (row.diverged > 0, _lost_margins(row)))
        if among == 1 or worst.diverged or worst.quality is None:
            return f" ({worst.quality_reason})"
        return f" ({wording.quality_interval(worst.quality, accepted=False)})"
    doubtful = [row for row in rows if row.quality_blocks_needed is None and not _decidable(row)]
    if doubtful:
        return f" ({doubtful[0].quality_reason})"
    return f" ({_most([row.quality_blocks_needed for row in rows], rows[0])})"


def _lost_margins(row: Row) -> float:
    quality = row.quality
    if quality is None or quality.allowed is None:
        return 0.0
    return (quality.allowed - quality.gain) / max(abs(quality.allowed), 1e-12)


def _decidable(row: Row) -> bool:
    """Whether more blocks could decide on quality at all."""
    quality = row.quality
    if quality is None or quality.limit is None or quality.doubt:
        return False
    return row.units >= paired.FEWEST_BLOCKS and not row.timed_out


def checks(summary: Summary) -> str:
    """ "27 other checks clear, 3 not checked"."""
    raised = {check.code for check in summary.checks if check.result == "raised"}
    clear = {check.code for check in summary.checks if check.result == "clear"} - raised
    unchecked = {check.code for check in summary.checks if check.result == "not checked"} - raised - clear
    told = [f"{len(clear)} {'other ' if raised else ''}checks clear"]
    if unchecked:
        told.append(f"{len(unchecked)} not checked")
    return ", ".join(told)
