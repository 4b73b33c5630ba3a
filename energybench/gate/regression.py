"""Whether HEAD is worse than BASE, without crying wolf. Numbers in, findings out: nothing is printed, no torch.

Each run is summarised by itself. A method's cost is a log ratio d to plain training in its own block, so machine and
driver cancel; what is compared is δ = mean d of HEAD − mean d of BASE, by Welch's t: the two runs share no block.

    regression    δ lies beyond the suite's noise at 1 % for the whole family of comparisons (Holm), in HEAD and
                  again in a rerun
    suspected     in HEAD, and there is no rerun yet
    not confirmed in HEAD, not in the rerun
    better        the same test, turned round
    held          the whole 95 % interval of δ lies below the noise
    undecided     anything else; `detectable_rel` says which loss would have been seen
    cannot tell   there is nothing to test, and `because` says why

Runs that were looked at more than once: each look may spend its share of the 1 %, on either side, so whichever looks
two runs ended at, their comparison errs no more often (Bonferroni over both runs' looks).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from energybench.common.errors import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_REGRESSION
from energybench.meter import combine
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.stats import paired
from energybench.verdict import pairing, wording
from energybench.verdict.figures import Measured, Row, Summary

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
Key = tuple[str, str, str, str]
Struck = Mapping[tuple[str, str], str]  # (workload, method) → why its figures get no verdict

FAMILY = 0.01  # chance of one false suspicion or more among all comparisons of two runs
FAILS = frozenset({"regression", "changed", "gone", "not met"})
OPEN = frozenset({"suspected", "not confirmed", "undecided", "cannot tell"})
PLAIN = "plain training"


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison. `base` and `head`: savings, seconds, joules, a metric or a count, as `of` and `level` say.

    change_rel, low_rel, high_rel: HEAD's cost over BASE's, less 1, with its 95 % interval; positive is worse. For a
    metric of quality, HEAD − BASE in the metric's own unit, where negative is worse.
    """

    level: str  # counts, savings, absolute, require
    workload: str
    method: str
    of: str  # "time", "energy (gpu)", "accuracy", "counted_flop"
    outcome: Outcome
    base: float | None = None
    head: float | None = None
    change_rel: float | None = None
    low_rel: float | None = None
    high_rel: float | None = None
    p: float | None = None  # of "worse by more than the noise", by itself
    detectable_rel: float | None = None  # the smallest loss that this comparison sees 8 times in 10
    because: str = ""

    @property
    def key(self) -> Key:
        return self.level, self.workload, self.method, self.of


@dataclass(frozen=True, slots=True)
class Case:
    """Two samples of log costs to compare; or, where `because` says why not, none."""

    level: str
    workload: str
    method: str
    of: str
    shown: tuple[float | None, float | None] = (None, None)
    change: paired.Mean | None = None  # HEAD − BASE
    because: str = ""
    missing: Literal["", "new", "gone"] = ""
    quality: bool = False  # a metric's drop, already beyond the suite's margin where `lost`
    lost: bool = True

    @property
    def key(self) -> Key:
        return self.level, self.workload, self.method, self.of

    def finding(self, outcome: Outcome, **facts: Any) -> Finding:
        return Finding(*self.key, outcome, *self.shown, **facts)


# ── statistics ────────────────────────────────────────────────────────────────────────────────────────────────


def welch(base: paired.Mean, head: paired.Mean) -> paired.Mean:
    """HEAD − BASE of two independent samples, as one mean with its standard error (n = 1) and Welch's df."""
    a, b = base.sd**2 / base.n, head.sd**2 / head.n
    if a + b == 0:
        df = base.df + head.df
    else:
        df = (a + b) ** 2 / (a**2 / base.df + b**2 / head.df)
    alpha_fraction = base.alpha_fraction * head.alpha_fraction
    return paired.Mean(1, head.mean - base.mean, math.sqrt(a + b), df, alpha_fraction=alpha_fraction)


def chance(change: paired.Mean, log_margin: float) -> float:
    """One-sided p of "the mean lies above `margin`", with what its looks may not spend counted in; at most 1."""
    from scipy.special import stdtr

    distance = change.mean - log_margin
    if change.sd == 0:
        return 0.0 if distance > 0 else 1.0
    return min(1.0, float(stdtr(change.df, -distance / change.sd)) / change.alpha_fraction)


def holm(chances: Sequence[float], level: float = FAMILY) -> list[bool]:
    """Which hypotheses fall when all together may err with chance `level` (Holm, Scand. J. Statist. 6 (1979) 65)."""
    fallen = [False] * len(chances)
    for rank, index in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        if chances[index] > level / (len(chances) - rank):
            break
        fallen[index] = True
    return fallen


def detectable(change: paired.Mean, log_margin: float, tests: int, power: float = paired.POWER) -> float | None:
    """The relative loss that one of `tests` comparisons sees with this power, if it is the only one."""
    from scipy.special import nctdtrinc

    if not (change.df > 0 and math.isfinite(change.sd)):
        return None
    level = FAMILY * change.alpha_fraction / max(tests, 1)
    reach = float(nctdtrinc(change.df, 1 - power, paired.student(1 - level, change.df)))
    return math.expm1(log_margin + reach * change.sd) if math.isfinite(reach) else None


# ── what is compared ──────────────────────────────────────────────────────────────────────────────────────────


def sample(figure: Measured, alpha_fraction: float) -> paired.Mean | None:
    if figure.sd_log is None or figure.n < paired.FEWEST_BLOCKS or not figure.saving_rel < 1:
        return None
    return paired.Mean(
        figure.n, math.log1p(-figure.saving_rel), figure.sd_log, figure.df, alpha_fraction=alpha_fraction
    )


def _both(base: Row, head: Row) -> tuple[Measured | None, Measured | None]:
    """The figures of one quantity: energy where the same parts were measured on both sides, else time."""
    a, b = base.measured, head.measured
    if a and b and (a.quantity, a.scope) != (b.quantity, b.scope):
        return base.time, head.time
    return a, b


def _why_not(row: Row, figure: Measured | None, name: str, open_: bool) -> str:
    """Why a side has nothing to compare; empty where it has."""
    if row.verdict_forbidden:
        return f"{name}: {row.reason}"
    if figure is None:
        return f"{name} has no pair of trials"
    if not open_:
        return f"{name} is not finished: {row.reason}"
    if told := wording.past_limit(row):
        return f"{name}: {told}"
    if figure.n < paired.FEWEST_BLOCKS:
        return f"{name} has {figure.n} block{'s' * (figure.n != 1)}, and {paired.FEWEST_BLOCKS} are the least"
    return ""


def saving_cases(base: Summary, head: Summary) -> list[Case]:
    """Every method's saving of both runs, and its quality against plain training."""
    rows = [{(w.name, row.method): row for w in each.workloads for row in w.rows} for each in (base, head)]
    found: list[Case] = []
    for key in dict.fromkeys([*rows[1], *rows[0]]):
        a, b = rows[0].get(key), rows[1].get(key)
        if a is None or b is None:
            found.append(Case("savings", *key, "saving", missing="new" if a is None else "gone"))
        else:
            found += _row_cases(key, a, b, base, head)
    return found


def _row_cases(key: tuple[str, str], a: Row, b: Row, base: Summary, head: Summary) -> list[Case]:
    before, after = _both(a, b)
    sides = ((a, before, "BASE", base.look), (b, after, "HEAD", head.look))
    why = next((text for row, figure, name, look in sides if (text := _why_not(row, figure, name, look.open))), "")
    figure = after or before
    of = wording.what(figure.quantity, figure.scope) if figure else "saving"
    shown = (before.saving_rel if before else None, after.saving_rel if after else None)
    samples = [sample(figure, look.alpha_fraction) if figure else None for _, figure, _, look in sides]
    if why or samples[0] is None or samples[1] is None:
        open_ = base.look.open and head.look.open and not (a.verdict_forbidden or b.verdict_forbidden)
        diverged = _divergence(key, a, b) if open_ else []
        return [Case("savings", *key, of, shown, because=why or "a figure has no spread"), *diverged]
    found = [Case("savings", *key, of, shown, welch(samples[0], samples[1]))]
    return found + _quality_cases(key, a, b, base.look.alpha_fraction, head.look.alpha_fraction)


def _quality_cases(key: tuple[str, str], a: Row, b: Row, *shares: float) -> list[Case]:
    """Whether quality against plain training dropped, from within the suite's margin to beyond it."""
    if diverged := _divergence(key, a, b):
        return diverged
    before, after = a.quality, b.quality
    if before is None or after is None or before.metric != after.metric:
        return []
    shown = (before.change, after.change)
    if before.sd is None or after.sd is None or after.limit is None:
        return []
    sign = -1 if pairing.higher_is_better(after.metric) else 1  # a drop is positive, as a cost is
    samples = [
        paired.Mean(q.n, sign * q.change, q.sd or 0.0, q.n - 1, alpha_fraction=alpha_fraction)
        for q, alpha_fraction in zip((before, after), shares, strict=True)
    ]
    rounding = 1e-12
    beyond = [sign * (q.change - after.limit) > rounding for q in (before, after)]
    lost = beyond[1] and not beyond[0]
    drop = welch(samples[0], samples[1])
    return [Case("savings", *key, after.metric, shown, drop, quality=True, lost=lost)]


def _divergence(key: tuple[str, str], a: Row, b: Row) -> list[Case]:
    """Training that diverged in HEAD and in no block of BASE, however many of HEAD's are left to compare."""
    if a.diverged or not a.n or not b.diverged:
        return []
    metric = next((quality.metric for quality in (a.quality, b.quality) if quality), "quality")
    shown = (a.quality.change if a.quality else None, b.quality.change if b.quality else None)
    certain = paired.Mean(1, math.inf, 0.0, math.inf)
    return [Case("savings", *key, metric, shown, certain, because="it diverged", quality=True)]


def absolute_cases(
    base: Records, head: Records, looks: Sequence[tuple[int, float]], struck: Sequence[Struck] = ({}, {})
) -> list[Case]:
    """Seconds and joules of every cell, plain training's too, of BASE and of HEAD.

    looks:  (blocks, share) of either
    struck: cells of either whose figures a flag strikes, and why
    """
    sides = [_costs(records, blocks) for records, (blocks, _) in zip((base, head), looks, strict=True)]
    found = []
    for key in dict.fromkeys([*sides[1], *sides[0]]):
        if any(key not in side for side in sides):
            found.append(Case("absolute", *key, missing="new" if key not in sides[0] else "gone"))
            continue
        shown = [paired.geometric_mean(side[key]) for side in sides]
        named = list(zip(("BASE", "HEAD"), sides, struck, strict=True))
        whys = [f"{name}: {why[key[:2]]}" for name, _, why in named if key[:2] in why]
        few = [(name, len(side[key])) for name, side, _ in named if len(side[key]) < paired.FEWEST_BLOCKS]
        whys += [f"{name} has {n} block{'s' * (n != 1)}, and {paired.FEWEST_BLOCKS} are the least" for name, n in few]
        if whys:
            found.append(Case("absolute", *key, (shown[0], shown[1]), because=whys[0]))
            continue
        a, b = (
            paired.paired(side[key], [1.0] * len(side[key]), alpha_fraction=alpha_fraction)
            for side, (_, alpha_fraction) in zip(sides, looks, strict=True)
        )
        found.append(Case("absolute", *key, (shown[0], shown[1]), welch(a, b)))
    return found


def _costs(records: Records, blocks: int) -> dict[tuple[str, str, str], list[float]]:
    """(workload, method, "time" or "energy (gpu)") → a figure per block; energy where all had the same sensors."""
    counted = [t for t in records[1] if t.role in ("baseline", "method") and t.block < blocks]
    found: dict[tuple[str, str, str], list[float]] = {}
    for workload, method in dict.fromkeys((t.workload, t.method) for t in pairing.order(counted)):
        used = pairing.newest(t for t in counted if (t.workload, t.method) == (workload, method))
        if not used:
            continue
        found[workload, method, "time"] = [pairing.seconds(t) for t in used]
        joules = [combine.metered(t.train) for t in used]
        scopes = {" + ".join(sorted({scope for _, scope in each.sensors})) for each in joules}
        if len(scopes) == len({each.channels for each in joules}) == 1 and all(each.joules > 0 for each in joules):
            found[workload, method, f"energy ({scopes.pop()})"] = [each.joules for each in joules]
    return found


# ── judging ───────────────────────────────────────────────────────────────────────────────────────────────────


def judge(cases: Sequence[Case], margin: float) -> list[Finding]:
    """One finding per comparison; quality only where something is to be said of it. noise: relative, the suite's."""
    log_margin = -math.log1p(-margin)
    tests = [(case.key, case.change, case) for case in cases if case.change is not None]
    worse = [_worse(case, change, log_margin) for _, change, case in tests]
    better = [
        1.0 if case.quality else chance(replace(change, mean=-change.mean), log_margin) for _, change, case in tests
    ]
    falls = {
        key: each for (key, _, _), each in zip(tests, zip(worse, holm(worse), holm(better), strict=True), strict=True)
    }
    found = []
    for case in cases:
        if case.change is None:
            found.append(_untested(case))
            continue
        p, is_worse, is_better = falls[case.key]
        if not case.quality:
            found.append(_cost_finding(case, case.change, log_margin, len(tests), p, is_worse, is_better))
        elif case.lost:
            found.append(_quality_finding(case, p, is_worse))
    return found


def _worse(case: Case, change: paired.Mean, log_margin: float) -> float:
    """The chance of what was seen if nothing got worse; quality still within the suite's margin is no finding."""
    if case.quality:
        return chance(change, 0.0) if case.lost else 1.0
    return chance(change, log_margin)


def _untested(case: Case) -> Finding:
    why = case.because or {"new": "it is not in BASE", "gone": "it is not in HEAD"}.get(case.missing, "")
    return case.finding("new" if case.missing == "new" else "cannot tell", because=why)


def _cost_finding(
    case: Case, change: paired.Mean, log_margin: float, tests: int, p: float, is_worse: bool, is_better: bool
) -> Finding:
    low, high = change.interval()
    outcome: Outcome = "held" if high < log_margin else "undecided"
    if is_worse or is_better:
        outcome = "suspected" if is_worse else "better"
    return case.finding(
        outcome,
        change_rel=_relative(change.mean),
        low_rel=_relative(low),
        high_rel=_relative(high),
        p=p,
        detectable_rel=detectable(change, log_margin, tests),
    )


def _quality_finding(case: Case, p: float, is_worse: bool) -> Finding:
    before, after = case.shown
    change = None if before is None or after is None else after - before
    if is_worse:
        return case.finding("suspected", change_rel=change, p=p, because=case.because)
    why = "beyond the suite's margin now, by no more than chance may move it"
    return case.finding("undecided", change_rel=change, p=p, because=why)


def _relative(log_ratio: float) -> float | None:
    return math.expm1(log_ratio) if abs(log_ratio) < 700 else None


def confirmed(found: Sequence[Finding], again: Mapping[Key, Finding]) -> list[Finding]:
    """What was suspected, after a rerun: `again` holds the rerun's findings on just those comparisons."""
    result = []
    for finding in found:
        if finding.outcome == "suspected":
            second = again.get(finding.key)
            sure = second is not None and second.outcome == "suspected"
            why = "found again in the rerun" if sure else "not found again in the rerun"
            if second is not None and second.because and not sure:
                why += f": {second.because}"
            because = "; ".join(filter(None, (finding.because, why)))
            finding = replace(finding, outcome="regression" if sure else "not confirmed", because=because)
        result.append(finding)
    return result


def only(cases: Iterable[Case], found: Iterable[Finding]) -> list[Case]:
    """The comparisons that a rerun is about: those suspected, a family of their own."""
    asked = {finding.key for finding in found if finding.outcome == "suspected"}
    return [case for case in cases if case.key in asked]


def exit_code(found: Iterable[Finding], strict: bool = False) -> int:
    """1 where something fails; 4 where something is open and `strict`; else 0."""
    outcomes = {finding.outcome for finding in found}
    if outcomes & FAILS:
        return EXIT_REGRESSION
    return EXIT_INCONCLUSIVE if strict and outcomes & OPEN else EXIT_FINE
