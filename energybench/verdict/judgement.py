"""What a row is worth: verdicts on cost and on quality, both in one word, and how many blocks would decide."""

from __future__ import annotations

import dataclasses

from energybench.stats import paired, power
from energybench.verdict import quality, sentences, wording
from energybench.verdict.accept import Accept
from energybench.verdict.figures import QualityWord, Row
from energybench.verdict.interim import Look


def of_how_it_ended(row: Row, look: Look) -> Row:
    """Before anything is compared: training that diverged has lost its quality, however few blocks are left."""
    of_quality = quality.word(row, None, None, look.open)
    return dataclasses.replace(row, quality_verdict=of_quality, verdict=_of_lost(row, of_quality))


def with_verdicts(
    row: Row,
    change: paired.Paired,
    quantity: paired.Quantity,
    difference: paired.Mean | None,
    accept: Accept,
    look: Look,
) -> Row:
    """On cost, on quality, and on both in one word.

    Args:
        row: with its flags and how its trials ended
        change: of cost
        quantity: what the costs are of
        difference: of quality, as `quality.compare` gives it
    """
    of_cost: paired.Verdict = "no verdict"
    if look.open and not row.verdict_forbidden:
        of_cost = _censored(paired.cost_verdict(change, accept.margin, quantity), row)
    of_quality = quality.word(row, difference, accept.loses_at_most, look.open)
    verdict = paired.in_one_word(of_cost, _known(of_quality))
    row = dataclasses.replace(row, cost_verdict=of_cost, quality_verdict=of_quality)
    return dataclasses.replace(row, verdict=verdict if verdict != "no verdict" else _of_lost(row, of_quality))


def _known(word: QualityWord) -> paired.QualityVerdict:
    """Where there is no quality that could be lost, it is held; where no verdict may be, it is open."""
    if word == "not judged":
        return "held"
    return "open" if word == "no verdict" else word


def _of_lost(row: Row, of_quality: QualityWord) -> paired.Verdict:
    return "quality lost" if of_quality == "lost" and row.diverged and not row.verdict_forbidden else "no verdict"


def _censored(verdict: paired.Verdict, row: Row) -> paired.Verdict:
    """A side that ran past its limit costs more than anyone knows: nothing is concluded that this could turn round."""
    of_method = row.timed_out and verdict in (*wording.BETTER, *wording.SAME)
    of_baseline = row.baseline_timed_out and verdict in (*wording.WORSE, *wording.SAME)
    return "inconclusive" if of_method or of_baseline else verdict


def detectable_rel(change: paired.Paired, pooled: paired.Spread | None, accept: Accept) -> float | None:
    """The smallest saving that a fresh run of as many blocks finds four times in five; None with too few of them."""
    if change.n < paired.FEWEST_BLOCKS:
        return None
    return power.detectable(
        change.sd,
        change.n,
        accept.margin,
        df=change.df,
        alpha_fraction=change.alpha_fraction,
        pooled_df=None if pooled is None else pooled.df,
    )


def blocks_needed(row: Row, change: paired.Paired, difference: paired.Mean | None, accept: Accept) -> int | None:
    """How many would decide the verdict; None where it stands, or no number would."""
    if row.verdict == "quality unproven":
        return quality_blocks_needed(row, difference, accept)
    undecided = row.verdict == "inconclusive" or (row.verdict == "no verdict" and not row.verdict_forbidden)
    if sentences.past_limit(row) or not undecided:
        return None  # no number of blocks tells what those cost
    fraction = change.alpha_fraction
    needed = power.blocks_needed(change.mean, change.sd, accept.margin, alpha_fraction=fraction, df=change.df)
    return None if needed is None else max(needed, change.n + 1)


def quality_blocks_needed(row: Row, difference: paired.Mean | None, accept: Accept) -> int | None:
    """How many would decide whether quality is held or lost; None where it is decided, or no number would."""
    if row.quality_verdict != "open" or row.timed_out or difference is None or accept.loses_at_most is None:
        return None
    needed = power.quality_blocks_needed(difference, accept.loses_at_most)
    return None if needed is None else max(needed, difference.n + 1)
