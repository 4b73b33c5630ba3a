"""Whether HEAD is worse than BASE, without crying wolf. Numbers in, findings out: nothing is printed, no torch.

Each run is summarised by itself. A method's cost is a log ratio d to plain training in its own block, so machine and
driver cancel; what is compared is δ = mean d of HEAD − mean d of BASE, by Welch's t: the two runs share no block.

    regression    δ lies beyond the suite's margin at 1 % for the whole family of comparisons (Holm), in HEAD and
                  again in a rerun
    suspected     in HEAD, and there is no rerun yet
    not confirmed in HEAD, not in the rerun
    better        the same test, turned round
    held          the whole 95 % interval of δ lies below the margin
    undecided     anything else; `detectable_rel` says which loss would have been seen
    cannot tell   there is nothing to test, and `reason` says why
    gone          BASE has it and HEAD has not: whoever renames what got worse would pass

A gate names the loss that it is there to see. Where one of that size could hide, nothing has passed: `blind` findings
end in exit code 4, with the number of blocks that would see it; and where nothing was compared at all, in 2.

Runs with several interim analyses: each may spend its fraction of the 1 %, on either side, so whichever analyses two
runs ended at, their comparison errs no more often (Bonferroni over both runs' analyses).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from energybench.common.errors import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_REGRESSION, EXIT_USAGE
from energybench.common.renamed import renamed
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.stats import paired
from energybench.stats.power import MOST_BLOCKS, POWER, reach
from energybench.verdict.devices import Unit

Outcome = Literal[
    "regression",
    "suspected",
    "not confirmed",
    "better",
    "held",
    "undecided",
    "cannot tell",
    "changed",
    "same",
    "new",
    "gone",
    "met",
    "not met",
]
Records = tuple[RunFile, list[Trial], list[CountingRun]]
Missing = Literal["", "new", "gone"]
Cell = tuple[str, str]  # (workload, method)
Key = tuple[str, str, str, str]  # (level, workload, method, quantity)
Struck = Mapping[Cell, str]  # (workload, method) → the reason why its figures get no verdict

FAMILY = 0.01  # chance of one false suspicion or more among all comparisons of two runs
SEES = 0.10  # the loss that a gate is there to see, where nobody names another
FAILS = frozenset({"regression", "changed", "gone", "not met"})
OPEN = frozenset({"suspected", "not confirmed", "undecided", "cannot tell"})
NOT_COMPARED = frozenset({"cannot tell", "new"})


@renamed(of="quantity", because="reason")
@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one comparison.

    base, head: of `quantity`: savings as ratios, seconds, joules, a metric or a count, as `level` says
    change_rel, low_rel, high_rel: HEAD's cost over BASE's, less 1, with its 95 % interval; positive is worse. For a
    metric of quality, HEAD − BASE in the metric's own unit, where negative is worse.
    """

    level: str  # counts, savings, absolute, require
    workload: str
    method: str
    quantity: str  # "time", "energy (gpu)", "accuracy", "counted_flop"
    outcome: Outcome
    base: float | None = None
    head: float | None = None
    change_rel: float | None = None
    low_rel: float | None = None
    high_rel: float | None = None
    p: float | None = None  # of "worse by more than the margin", by itself
    detectable_rel: float | None = None  # the smallest loss that this comparison sees 8 times in 10
    reason: str = ""
    blind: bool = False  # a loss of the size that the gate names could hide in it
    blocks_to_see: int | None = None  # on either side, with which it could not; None beyond 200, or where nothing tells
    unit: Unit = "block"  # what blocks_to_see are: devices, where those are counted on either side

    @property
    def key(self) -> Key:
        return self.level, self.workload, self.method, self.quantity


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two samples of log costs to compare; or none, for the reason that `reason` gives.

    shown:   the figures of BASE and HEAD, for the page
    change:  mean log cost of HEAD less that of BASE; None where there is nothing to test
    blocks:  of BASE and of HEAD; devices, where those are counted
    units:   what each of the two is
    quality: the cost is a metric's drop; `lost` where it went from within the suite's margin to beyond it
    """

    level: str
    workload: str
    method: str
    quantity: str
    shown: tuple[float | None, float | None] = (None, None)
    change: paired.Mean | None = None
    reason: str = ""
    missing: Missing = ""
    quality: bool = False
    lost: bool = True
    blocks: tuple[int, int] = (0, 0)
    units: tuple[Unit, Unit] = ("block", "block")

    @property
    def key(self) -> Key:
        return self.level, self.workload, self.method, self.quantity

    def finding(self, outcome: Outcome, **facts: Any) -> Finding:
        return Finding(*self.key, outcome, *self.shown, **facts)


# ── statistics ────────────────────────────────────────────────────────────────────────────────────────────────


def welch(base: paired.Mean, head: paired.Mean) -> paired.Mean:
    """HEAD − BASE of two independent samples, as one mean with its standard error (n = 1) and Welch's df.

    Source: Welch, Biometrika 34 (1947) 28; df by Satterthwaite, Biometrics Bulletin 2 (1946) 110.
    """
    base_variance, head_variance = base.sd**2 / base.n, head.sd**2 / head.n  # of the means
    variance = base_variance + head_variance
    df = base.df + head.df
    if variance:
        df = variance**2 / (base_variance**2 / base.df + head_variance**2 / head.df)
    alpha_fraction = base.alpha_fraction * head.alpha_fraction
    return paired.Mean(1, head.mean - base.mean, math.sqrt(variance), df, alpha_fraction=alpha_fraction)


def chance(change: paired.Mean, log_margin: float) -> float:
    """One-sided p of "the mean lies above the margin", divided by the fraction of α that its analysis may spend.

    Args:
        change:     a mean of log ratios with its standard error, as `welch` gives it.
        log_margin: the margin as a log ratio, −ln(1 − margin).

    Returns:
        A probability, at most 1.
    """
    from scipy.special import stdtr

    distance = change.mean - log_margin
    if change.sd == 0:
        return 0.0 if distance > 0 else 1.0
    return min(1.0, float(stdtr(change.df, -distance / change.sd)) / change.alpha_fraction)


def holm(chances: Sequence[float], level: float = FAMILY) -> list[bool]:
    """Which null hypotheses are rejected when all together may err with probability `level`.

    Source: Holm, Scand. J. Statist. 6 (1979) 65.

    Args:
        chances: a p-value for each hypothesis.
        level:   the family-wise error rate.

    Returns:
        For each hypothesis, in the order of `chances`, whether it is rejected.
    """
    rejected = [False] * len(chances)
    for rank, index in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        if chances[index] > level / (len(chances) - rank):
            break
        rejected[index] = True
    return rejected


def detectable(
    change: paired.Mean, log_margin: float, tests: int, power: float = POWER, blocks: tuple[int, int] = (0, 0)
) -> float | None:
    """The relative loss that one of `tests` comparisons detects with this power, if it is the only one.

    Averaged over the two runs whose scatter is at hand and the two that look for it, of which nobody knows whether
    their workload's shared spread will lend them its degrees of freedom: they are taken to have their own `blocks`.
    """
    if not (change.df > 0 and math.isfinite(change.sd)):
        return None
    seen = _beyond(change, _own_df(change.df, blocks), 1.0, tests, power)
    return math.expm1(log_margin + seen) if math.isfinite(seen) else None


def _own_df(df: float, blocks: tuple[int, int]) -> float:
    own = sum(blocks) - 2
    return min(df, own) if own > 0 else df


def _beyond(change: paired.Mean, fresh_df: float, shrunk: float, tests: int, power: float = POWER) -> float:
    """How far beyond the margin a loss is seen by runs whose standard error is shrunk so, in logs."""
    level = 1 - FAMILY * change.alpha_fraction / max(tests, 1)
    return reach(round(change.df, 1), round(fresh_df, 1), level, power) * change.sd * shrunk if change.sd else 0.0


def blocks_to_see(
    change: paired.Mean, blocks: tuple[int, int], log_margin: float, tests: int, size: float
) -> int | None:
    """How many blocks on either side detect a loss of this relative size; None beyond MOST_BLOCKS."""
    n = min(blocks)
    if n < 2 or not (change.df > 0 and math.isfinite(change.sd)):
        return None

    def sees(count: int) -> bool:
        fresh_df, shrunk = _own_df(change.df * (count - 1) / (n - 1), (count, count)), math.sqrt(n / count)
        return log_margin + _beyond(change, fresh_df, shrunk, tests) <= math.log1p(size)

    if not sees(MOST_BLOCKS):
        return None
    low, high = n, MOST_BLOCKS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if sees(middle) else (middle + 1, high)
    return low


# ── judging ───────────────────────────────────────────────────────────────────────────────────────────────────


def judge(comparisons: Sequence[Comparison], margin: float, sees: float = SEES) -> list[Finding]:
    """Test all comparisons of two runs as one family.

    Args:
        comparisons: everything that is tested together: the more, the more each has to show.
        margin:      the suite's, relative: 0.01 for 1 %.
        sees:        the loss that the gate is there to see, relative.

    Returns:
        A finding per comparison, in their order; of quality only where something is to be said of it.
    """
    log_margin = -math.log1p(-margin)
    tested = [(comparison, comparison.change) for comparison in comparisons if comparison.change is not None]
    worse = [_chance_not_worse(comparison, change, log_margin) for comparison, change in tested]
    better = [_chance_not_better(comparison, change, log_margin) for comparison, change in tested]
    results = dict(
        zip((each.key for each, _ in tested), zip(worse, holm(worse), holm(better), strict=True), strict=True)
    )
    findings = []
    for comparison in comparisons:
        if comparison.change is None:
            findings.append(_untested(comparison))
            continue
        p, is_worse, is_better = results[comparison.key]
        if not comparison.quality:
            tests = len(tested)
            found = _cost_finding(comparison, comparison.change, log_margin, tests, p, is_worse, is_better)
            findings.append(_blind(found, comparison, log_margin, tests, sees))
        elif comparison.lost:
            findings.append(_quality_finding(comparison, p, is_worse))
    return findings


def _chance_not_worse(comparison: Comparison, change: paired.Mean, log_margin: float) -> float:
    """p of "nothing got worse"; a drop in quality within the suite's margin is none."""
    if comparison.quality:
        return chance(change, 0.0) if comparison.lost else 1.0
    return chance(change, log_margin)


def _chance_not_better(comparison: Comparison, change: paired.Mean, log_margin: float) -> float:
    return 1.0 if comparison.quality else chance(replace(change, mean=-change.mean), log_margin)


MISSING = {"": "", "new": "it is not in BASE", "gone": "it is not in HEAD"}


def _untested(comparison: Comparison) -> Finding:
    reason = comparison.reason or MISSING[comparison.missing]
    return comparison.finding(
        comparison.missing or "cannot tell", reason=reason, blind=not comparison.missing and not comparison.quality
    )


def _blind(finding: Finding, comparison: Comparison, log_margin: float, tests: int, sees: float) -> Finding:
    """With how many blocks it would take, where a loss of the size that is named could hide."""
    seen = finding.detectable_rel is not None and finding.detectable_rel <= sees
    if finding.outcome != "undecided" or seen or comparison.change is None:
        return finding
    alike = len(set(comparison.units)) == 1  # blocks of one run and devices of another are no one number
    needed = blocks_to_see(comparison.change, comparison.blocks, log_margin, tests, sees) if alike else None
    unit: Unit = next((each for each in comparison.units if each != "block"), "block")
    return replace(finding, blind=True, blocks_to_see=needed, unit=unit)


def _cost_finding(
    comparison: Comparison,
    change: paired.Mean,
    log_margin: float,
    tests: int,
    p: float,
    is_worse: bool,
    is_better: bool,
) -> Finding:
    low, high = change.interval()
    outcome: Outcome = "held" if high < log_margin else "undecided"
    if is_worse or is_better:
        outcome = "suspected" if is_worse else "better"
    return comparison.finding(
        outcome,
        change_rel=_relative(change.mean),
        low_rel=_relative(low),
        high_rel=_relative(high),
        p=p,
        detectable_rel=detectable(change, log_margin, tests, blocks=comparison.blocks),
    )


def _quality_finding(comparison: Comparison, p: float, is_worse: bool) -> Finding:
    before, after = comparison.shown
    change = None if before is None or after is None else after - before
    if is_worse:
        return comparison.finding("suspected", change_rel=change, p=p, reason=comparison.reason)
    reason = "beyond the suite's margin now, by no more than chance may move it"
    return comparison.finding("undecided", change_rel=change, p=p, reason=reason)


def _relative(log_ratio: float) -> float | None:
    return math.expm1(log_ratio) if abs(log_ratio) < 700 else None


def confirmed(findings: Sequence[Finding], of_rerun: Mapping[Key, Finding]) -> list[Finding]:
    """What was suspected, after a rerun.

    Args:
        findings: of the first run.
        of_rerun: the rerun's findings on just those comparisons that were suspected.

    Returns:
        The same findings, in which no outcome is "suspected" any more: it is "regression" or "not confirmed".
    """
    result = []
    for finding in findings:
        if finding.outcome == "suspected":
            second = of_rerun.get(finding.key)
            again = second is not None and second.outcome == "suspected"
            rerun = "found again in the rerun" if again else "not found again in the rerun"
            if second is not None and second.reason and not again:
                rerun += f": {second.reason}"
            reason = "; ".join(filter(None, (finding.reason, rerun)))
            finding = replace(finding, outcome="regression" if again else "not confirmed", reason=reason)
        result.append(finding)
    return result


def only(comparisons: Iterable[Comparison], findings: Iterable[Finding]) -> list[Comparison]:
    """The comparisons that a rerun is about: those suspected, a family of their own."""
    suspected = {finding.key for finding in findings if finding.outcome == "suspected"}
    return [comparison for comparison in comparisons if comparison.key in suspected]


def exit_code(findings: Iterable[Finding], strict: bool = False) -> int:
    """1 where something fails; 2 where nothing was compared; 4 where a loss of the size that the gate names could hide,
    or something is open and `strict`; else 0."""
    findings = list(findings)
    outcomes = {finding.outcome for finding in findings}
    if outcomes & FAILS:
        return EXIT_REGRESSION
    if outcomes <= NOT_COMPARED:
        return EXIT_USAGE
    is_open = any(finding.blind for finding in findings) or (strict and outcomes & OPEN)
    return EXIT_INCONCLUSIVE if is_open else EXIT_FINE
