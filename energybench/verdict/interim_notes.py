"""What a report says of its interim analyses, the looks: which one its verdicts are of, what is undecided, what was
added later."""

from __future__ import annotations

from collections.abc import Sequence

from energybench.records.record import RunFile, Trial
from energybench.stats import paired
from energybench.verdict import wording
from energybench.verdict.figures import Row, Summary, Workload
from energybench.verdict.interim import Look


def note(look: Look) -> str:
    """One sentence for the first screen; empty for a run that is looked at once, at its end."""
    if not look.open:
        return ""
    if look.of == 1:
        return ""
    after = f"after {look.blocks} of at most {wording.blocks(look.most)}"
    claim, interval = (
        paired.adjusted_confidence(level, look.alpha_fraction) for level in (paired.CLAIM, paired.INTERVAL)
    )
    levels = f"bounds of verdicts at {_level(claim)}, intervals at {_level(interval)}"
    more = f" The next look is after {wording.blocks(look.next)}." if look.next else ""
    return (
        f"Verdicts are those of look {look.number} of {look.of}, {after}. Looks share their chances of error; this "
        f"one has {wording.percent(look.alpha_fraction, 0)} of them: {levels}.{more}"
    )


def _level(confidence: float) -> str:
    return f"{100 * confidence:.4g}{wording.NB}%"


def waiting(look: Look, n: int) -> str:
    """Why there is no verdict yet; n blocks are there."""
    first = f"the first look is after {look.next}" if look.of > 1 else "verdicts come when all are there"
    return f"{n} of {wording.blocks(look.most)}; {first}"


def headline(look: Look, workloads: Sequence[Workload]) -> str:
    """Before the first look nothing is promised; else the report's own headline stands."""
    most = max((row.n for workload in workloads for row in workload.rows), default=0)
    return "" if look.open or not most else f"No verdict yet: {waiting(look, most)}."


def undecided(summary: Summary) -> list[Row]:
    """The comparisons whose cost or quality more blocks may decide.

    What a flag forbids, or what cannot be judged, holds nobody up.
    """
    return [row for workload in summary.workloads for row in workload.rows if _undecided(row)]


def _undecided(row: Row) -> bool:
    if row.verdict_forbidden and row.quality_forbidden:
        return False
    if not row.verdict_forbidden and 0 < row.units < paired.FEWEST_BLOCKS and not row.diverged:
        return True
    of_cost = row.cost_verdict == "inconclusive" and not (row.timed_out or row.baseline_timed_out)
    return of_cost or _quality_undecided(row)


def _quality_undecided(row: Row) -> bool:
    quality = row.quality
    if row.quality_verdict != "open" or row.timed_out or quality is None or quality.doubt:
        return False
    return quality.limit is not None and quality.bound is not None


def added_blocks(run: RunFile, trials: Sequence[Trial]) -> int:
    """Blocks that were added to a finished run."""
    return len({t.block for t in trials if t.block >= run.verdict_blocks}) if run.finished else 0


def about(summary: Summary) -> str:
    count = summary.added[0].blocks
    return (
        f"{wording.blocks(count)} {'was' if count == 1 else 'were'} added after the verdicts: whoever may add blocks "
        "until something shows will find it, so these figures enter no verdict and nothing above."
    )
