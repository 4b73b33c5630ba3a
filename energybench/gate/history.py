"""`energybench compare --history`: savings run after run, where a level moved, and whether the gate itself is noise.

Per method and workload, over the runs of one suite in time:

    step     the level moved and stayed: the means of the runs before and after differ by more than the suite's noise
             (Student's t on run means, so that scatter between runs counts; at least two runs on either side;
             Bonferroni over places and methods, 1 %); looked for again inside both parts
    flag     two neighbouring runs that `energybench compare` would tell apart, for worse or for better, and that no
             step explains. The newest run's flags are left open: nobody knows yet whether they last
    scatter  how far the runs lie apart over how far their blocks let expect (an F test of run means inside the parts)

The gate itself is noise when its flags come more often than the 1 % for worse and 1 % for better that it may err with
(binomial, 1 %; a flag that only takes back the one before is not counted again), or when some method's runs scatter
more widely than their blocks explain, whichever single run is left out (F, Holm over methods, 1 %): then intervals from
blocks are too narrow to compare runs, and what it flags is chance. It shows in that

    rotating   each comparison that accuses anew accuses other methods than the one before
    returning  a flag is taken back by the opposite one
    one-sided  all flags point one way, and yet the level has not moved by half of what they add up to
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from energybench.common.errors import Problem, UsageError
from energybench.common.renamed import as_data, renamed
from energybench.gate import comparable, regression
from energybench.gate.compare_runs import Side, side
from energybench.gate.regression import FAMILY, Case
from energybench.report import pages
from energybench.stats import paired
from energybench.verdict import wording
from energybench.verdict.figures import Measured, Row

FEWEST_RUNS = 3  # of a trend; a step needs two on either side
LEAST_PART = 2
Kind = Literal["rotating", "returning", "one-sided"]
Cell = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Point:
    """One run's saving of one method, with its 95 % interval."""

    saving_rel: float
    low_rel: float | None
    high_rel: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """The level moved: `run` is the first one at the new level. change_rel: of the cost; positive is worse."""

    run: int
    change_rel: float
    p: float  # over all places, by itself


@renamed(noise_rel="margin_rel")
@dataclass(frozen=True, slots=True)
class Flag:
    """Neighbouring runs that the gate tells apart; `run` is the later one."""

    run: int
    workload: str
    method: str
    change_rel: float
    lasting: bool | None  # explained by a step; None: of the newest run, nobody knows yet
    margin_rel: float  # the suite's margin with which it would not have been raised


@dataclass(frozen=True, slots=True)
class Trend:
    workload: str
    method: str
    of: str
    points: tuple[Point | None, ...]  # one for each run
    steps: tuple[Step, ...]
    scatter: float | None  # between runs over what blocks explain; about 1 is as it should be
    scatter_p: float | None  # whichever single run is left out
    wide: bool  # scatter beyond chance, all methods together


@dataclass(frozen=True, slots=True)
class RunAt:
    path: str
    started_at: str
    device: dict[str, str]


@renamed(noise="margin")
@dataclass(frozen=True, slots=True)
class History:
    suite: str
    margin: float
    runs: tuple[RunAt, ...]
    left_out: tuple[tuple[str, str], ...]  # (folder, why)
    trends: tuple[Trend, ...]
    flags: tuple[Flag, ...]
    comparisons: int  # of neighbours, the newest run's left out
    chance: float | None  # of so many flags that do not last, were the gate right
    noise_found: bool
    kinds: tuple[Kind, ...]


def read(roots: Iterable[Path]) -> list[History]:
    """The history of every suite that has runs at or below the roots. Raises UsageError E601 where there is none."""
    roots = list(roots)
    found = dict.fromkeys(folder for root in roots for folder in pages.runs(root))
    if not found:
        where = ", ".join(map(str, roots))
        hint = "energybench compare --history reports/<suite>"
        raise UsageError(Problem("E601", "there is no run's folder below it", where, hint))
    by_suite: dict[str, list[Side]] = {}
    for folder in found:
        here = side(folder)
        by_suite.setdefault(here.summary.suite, []).append(here)
    return [of_sides(suite, sides) for suite, sides in sorted(by_suite.items())]


def of_sides(suite: str, sides: Sequence[Side]) -> History:
    """One suite's runs, in any order."""
    ordered = sorted(sides, key=lambda each: (_began(each), str(each.path)))
    newest = ordered[-1]
    kept: list[Side] = []
    left_out: list[tuple[str, str]] = []
    for each in ordered:
        differs = comparable.settings_differ(each.records[0], newest.records[0])
        if not each.summary.look.open:
            left_out.append((str(each.path), "it is not finished"))
        elif differs:
            left_out.append((str(each.path), f"other settings than the newest run's: {comparable.told(differs[:2])}"))
        elif any(comparable.copies(each.records[1], other.records[1]) for other in kept):
            left_out.append((str(each.path), "a copy of another run"))
        else:
            kept.append(each)
    margin = newest.summary.accept.margin
    samples = _samples(kept)
    trends = _trends(samples, kept, margin)
    flags = _flags(kept, trends, margin)
    comparisons = max(len(kept) - 2, 0)
    bad = len(_accusations([flag for flag in flags if flag.lasting is False]))
    likely = _binomial(bad, comparisons) if comparisons else None
    noisy = (likely is not None and likely < FAMILY and bad > 0) or any(trend.wide for trend in trends)
    runs = tuple(RunAt(str(each.path), _began(each), each.key) for each in kept)
    kinds = tuple(_kinds([flag for flag in flags if flag.lasting is False], samples)) if noisy else ()
    return History(suite, margin, runs, tuple(left_out), trends, flags, comparisons, likely, noisy, kinds)


def _began(each: Side) -> str:
    calls = each.records[0].invocations
    return calls[0].started_at if calls else ""


# ── one method's runs ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Samples:
    """Each run's mean log cost relative to plain training; None where a run has none."""

    of: str
    figures: tuple[Measured | None, ...]
    means: tuple[paired.Mean | None, ...]


def _samples(sides: Sequence[Side]) -> dict[Cell, Samples]:
    rows = [{(w.name, row.method): row for w in each.summary.workloads for row in w.rows} for each in sides]
    found = {}
    for cell in dict.fromkeys(key for each in reversed(rows) for key in each):
        here = [row if (row := each.get(cell)) is not None and _whole(row) else None for each in rows]
        kinds = {(row.measured.quantity, row.measured.scope) for row in here if row and row.measured}
        figures = tuple(_figure(row, len(kinds) == 1) for row in here)
        first = next((figure for figure in figures if figure), None)
        if first is not None:
            means = tuple(
                regression.sample(f, each.summary.look.alpha_fraction) if f else None
                for f, each in zip(figures, sides, strict=True)
            )
            found[cell] = Samples(wording.what(first.quantity, first.scope), figures, means)
    return found


def _whole(row: Row) -> bool:
    return not (row.verdict_forbidden or row.timed_out or row.baseline_timed_out)


def _figure(row: Row | None, one: bool) -> Measured | None:
    return None if row is None else row.measured if one else row.time


def _trends(samples: dict[Cell, Samples], sides: Sequence[Side], margin: float) -> tuple[Trend, ...]:
    log_margin = -math.log1p(-margin)
    steps = {cell: list(_steps(here, log_margin, len(samples))) for cell, here in samples.items()}
    scatters = {cell: _scatter(here, [step.run for step in steps[cell]]) for cell, here in samples.items()}
    tested = [cell for cell in samples if scatters[cell] is not None]
    wide = dict(zip(tested, regression.holm([each[1] for each in scatters.values() if each]), strict=True))
    found = []
    for cell, here in samples.items():
        points = tuple(Point(f.saving_rel, f.low_rel, f.high_rel) if f else None for f in here.figures)
        ratio, p = scatters[cell] or (None, None)
        found.append(Trend(*cell, here.of, points, tuple(steps[cell]), ratio, p, wide.get(cell, False)))
    return tuple(found)


def _steps(here: Samples, log_margin: float, methods: int) -> Iterator[Step]:
    """Steps in the order of the runs: the clearest one, then those inside either part."""
    known = [(run, mean.mean) for run, mean in enumerate(here.means) if mean is not None]
    yield from _split(known, log_margin, FAMILY / max(methods, 1))


def _split(known: Sequence[tuple[int, float]], log_margin: float, level: float) -> Iterator[Step]:
    places = range(LEAST_PART, len(known) - LEAST_PART + 1)
    values = [value for _, value in known]
    best = min((_at(values, place, log_margin) for place in places), default=None, key=lambda each: each[0])
    if best is None or best[0] * len(places) > level:
        return
    p, place, change = best
    yield from _split(known[:place], log_margin, level)
    yield Step(known[place][0], math.expm1(change), min(1.0, p * len(places)))
    yield from _split(known[place:], log_margin, level)


def _at(values: Sequence[float], place: int, log_margin: float) -> tuple[float, int, float]:
    """(two-sided p, place, change): run means before and after a place, with one standard deviation for both."""
    parts = values[:place], values[place:]
    means = [math.fsum(part) / len(part) for part in parts]
    squares = math.fsum((v - m) ** 2 for part, m in zip(parts, means, strict=True) for v in part)
    df = len(values) - 2
    error = math.sqrt(squares / df * math.fsum(1 / len(part) for part in parts))
    change = paired.Mean(1, abs(means[1] - means[0]), error, df)
    return min(1.0, 2 * regression.chance(change, log_margin)), place, means[1] - means[0]


def _scatter(here: Samples, steps: Sequence[int]) -> tuple[float, float] | None:
    """(scatter of run means inside the parts over what blocks explain, p without the run that matters most).

    One run that lies apart may be a loss that was mended at once: only what stays without it speaks against the gate.
    None with too few runs.
    """
    known = [
        (sum(step <= run for step in steps), mean)
        for run, mean in enumerate(here.means)
        if mean is not None and mean.sd > 0
    ]
    whole = _spread_test(known)
    without = [_spread_test(known[:left] + known[left + 1 :]) for left in range(len(known))]
    if whole is None or not all(without):
        return None
    return whole[0], max(each[1] for each in without if each)


def _spread_test(known: Sequence[tuple[int, paired.Mean]]) -> tuple[float, float] | None:
    """(ratio of standard deviations, p of F) of run means inside their parts; None with too few."""
    from scipy.special import fdtrc

    parts: dict[int, list[paired.Mean]] = {}
    for part, mean in known:
        parts.setdefault(part, []).append(mean)
    df = len(known) - len(parts)
    if len(known) < FEWEST_RUNS or df < 1:
        return None
    between = 0.0
    for means in parts.values():
        centre = math.fsum(mean.mean for mean in means) / len(means)
        between += math.fsum((mean.mean - centre) ** 2 for mean in means)
    within = math.fsum(mean.sd**2 / mean.n for _, mean in known) / len(known)
    ratio = between / df / within
    return math.sqrt(ratio), float(fdtrc(df, math.fsum(mean.df for _, mean in known), ratio))


# ── neighbours ────────────────────────────────────────────────────────────────────────────────────────────────


def _flags(sides: Sequence[Side], trends: Sequence[Trend], margin: float) -> tuple[Flag, ...]:
    by_cell = {(trend.workload, trend.method): trend for trend in trends}
    found = []
    for run in range(1, len(sides)):
        cases = regression.saving_cases(sides[run - 1].summary, sides[run].summary)
        tests = [case for case in cases if case.change is not None]
        judged = regression.judge(cases, margin)
        costs = {case.key: case for case in tests if not case.quality}
        for finding in judged:
            case = costs.get(finding.key)
            if finding.outcome not in ("suspected", "better") or case is None or case.change is None:
                continue
            trend = by_cell.get((finding.workload, finding.method))
            moved = case.change.mean
            steps = trend.steps if trend else ()
            lasting: bool | None = any(abs(s.run - run) <= 1 and s.change_rel * moved > 0 for s in steps)
            if not lasting and run == len(sides) - 1:
                lasting = None
            needed = _noise(case, len(tests))
            found.append(Flag(run, finding.workload, finding.method, math.expm1(moved), lasting, needed))
    return tuple(found)


def _accusations(flags: Sequence[Flag]) -> dict[int, set[Cell]]:
    """Run → methods that it accuses anew. A flag that takes back its method's last one is none: one event, not two."""
    before: dict[Cell, float] = {}
    found: dict[int, set[Cell]] = {}
    for flag in flags:
        cell = flag.workload, flag.method
        taken_back = before.get(cell, 0.0) * flag.change_rel < 0
        before[cell] = 0.0 if taken_back else flag.change_rel
        if not taken_back:
            found.setdefault(flag.run, set()).add(cell)
    return found


def _noise(case: Case, tests: int) -> float:
    """The noise under which Holm lets the whole comparison stand: its smallest p is above the level / tests."""
    assert case.change is not None
    change = case.change
    reach = paired.student(1 - FAMILY * change.alpha_fraction / tests, change.df) * change.sd
    return paired.saving_of(-max(0.0, abs(change.mean) - reach))


def _binomial(count: int, of: int) -> float:
    """The chance of `count` or more of so many comparisons, each with 1 % for worse and 1 % for better."""
    from scipy.special import bdtrc

    return 1.0 if count == 0 else float(bdtrc(count - 1, of, 2 * FAMILY))


def _kinds(flags: Sequence[Flag], samples: dict[Cell, Samples]) -> Iterator[Kind]:
    """How the noise shows, from the flags that did not last."""
    sets = list(_accusations(flags).values())
    apart = [not one & other for one, other in pairwise(sets)]
    if apart and sum(apart) * 2 > len(apart):
        yield "rotating"
    by_cell: dict[Cell, list[Flag]] = {}
    for flag in flags:
        by_cell.setdefault((flag.workload, flag.method), []).append(flag)
    if any(a.change_rel * b.change_rel < 0 for own in by_cell.values() for a, b in pairwise(own)):
        yield "returning"
    one_way = len({flag.change_rel > 0 for flag in flags}) == 1
    if len(sets) > 1 and one_way and not any(_moved(own, samples[cell]) for cell, own in by_cell.items()):
        yield "one-sided"


def _moved(flags: Sequence[Flag], here: Samples) -> bool:
    """Whether the level went at least half as far as the flags of this method say."""
    known = [mean.mean for mean in here.means if mean is not None]
    told = math.fsum(math.log1p(flag.change_rel) for flag in flags)
    return (known[-1] - known[0]) / told >= 0.5


def to_json(found: Sequence[History]) -> dict[str, Any]:
    from energybench.verdict.summary import plain_data

    return {"schema": 1, "histories": [plain_data(as_data(each)) for each in found]}
