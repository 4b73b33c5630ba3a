"""`energybench compare --history`: savings run after run, where a level moved, and whether the gate itself is noise.

Per method and workload, over the runs of one suite in time:

    step     the level moved and stayed: the means of the runs before and after differ by more than the suite's margin
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
from energybench.gate import comparable, compare_cells, level_shifts, regression
from energybench.gate.compare_runs import Side, read_side
from energybench.gate.level_shifts import Step
from energybench.gate.regression import FAMILY, Cell, Comparison, Finding, Key
from energybench.report import pages
from energybench.stats import paired
from energybench.verdict import wording
from energybench.verdict.figures import Measured, Row

NoisePattern = Literal["rotating", "returning", "one-sided"]


@dataclass(frozen=True, slots=True)
class RunSaving:
    """One run's saving of one method, with its 95 % interval."""

    saving_rel: float
    low_rel: float | None
    high_rel: float | None


@renamed(noise_rel="margin_rel")
@dataclass(frozen=True, slots=True)
class NeighbourFlag:
    """Neighbouring runs that the gate tells apart; `run` is the later one."""

    run: int
    workload: str
    method: str
    change_rel: float
    lasting: bool | None  # explained by a step; None: of the newest run, nobody knows yet
    margin_rel: float  # the suite's margin with which it would not have been raised


@renamed(of="quantity")
@dataclass(frozen=True, slots=True)
class Trend:
    """One method's savings, run after run."""

    workload: str
    method: str
    quantity: str  # "time", "energy (gpu)"
    points: tuple[RunSaving | None, ...]  # one for each run
    steps: tuple[Step, ...]
    scatter: float | None  # between runs over what blocks explain; about 1 is as it should be
    scatter_p: float | None  # whichever single run is left out
    wide: bool  # scatter beyond chance, all methods together


@dataclass(frozen=True, slots=True)
class RunInHistory:
    """A run that is part of the history, and the device that it ran on."""

    path: str
    started_at: str
    device: dict[str, str]


@renamed(noise="margin", kinds="patterns")
@dataclass(frozen=True, slots=True)
class History:
    """The runs of one suite in time."""

    suite: str
    margin: float  # the newest run's, relative
    runs: tuple[RunInHistory, ...]
    left_out: tuple[tuple[str, str], ...]  # (folder, reason)
    trends: tuple[Trend, ...]
    flags: tuple[NeighbourFlag, ...]
    comparisons: int  # of neighbours, the newest run's left out
    chance: float | None  # of so many flags that do not last, were the gate right
    noise_found: bool  # the gate itself is noise
    patterns: tuple[NoisePattern, ...]  # how that shows


def read(roots: Iterable[Path]) -> list[History]:
    """The history of every suite that has runs at or below some folders.

    Args:
        roots: runs' folders, or folders of such.

    Returns:
        One history per suite, in alphabetical order.

    Raises:
        UsageError: E601 where there is no run's folder at or below the roots.
    """
    roots = list(roots)
    folders = dict.fromkeys(folder for root in roots for folder in pages.runs(root))
    if not folders:
        where = ", ".join(map(str, roots))
        hint = "energybench compare --history reports/<suite>"
        raise UsageError(Problem("E601", "there is no run's folder below it", where, hint))
    by_suite: dict[str, list[Side]] = {}
    for folder in folders:
        run = read_side(folder)
        by_suite.setdefault(run.summary.suite, []).append(run)
    return [of_sides(suite, sides) for suite, sides in sorted(by_suite.items())]


def of_sides(suite: str, sides: Sequence[Side]) -> History:
    """The history of one suite's runs, in any order; at least one."""
    ordered = sorted(sides, key=lambda each: (_began(each), str(each.path)))
    newest = ordered[-1]
    runs: list[Side] = []
    left_out: list[tuple[str, str]] = []
    for each in ordered:
        if reason := _reason_to_leave_out(each, newest, runs):
            left_out.append((str(each.path), reason))
        else:
            runs.append(each)
    margin = newest.summary.accept.margin
    samples = _samples(runs)
    trends = _trends(samples, margin)
    flags = _flags(runs, trends, margin)
    transient = [flag for flag in flags if flag.lasting is False]
    neighbours = max(len(runs) - 2, 0)
    accusing = len(_accusations(transient))
    chance = _binomial(accusing, neighbours) if neighbours else None
    too_many = chance is not None and chance < FAMILY and accusing > 0
    noise_found = too_many or any(trend.wide for trend in trends)
    return History(
        suite=suite,
        margin=margin,
        runs=tuple(RunInHistory(str(each.path), _began(each), each.key) for each in runs),
        left_out=tuple(left_out),
        trends=trends,
        flags=flags,
        comparisons=neighbours,
        chance=chance,
        noise_found=noise_found,
        patterns=tuple(_patterns(transient, samples)) if noise_found else (),
    )


def _reason_to_leave_out(run: Side, newest: Side, earlier: Sequence[Side]) -> str:
    """Empty for a run that is comparable with the newest."""
    if not run.summary.look.open:
        return "it is not finished"
    if differing := comparable.settings_differ(run.records[0], newest.records[0]):
        return f"other settings than the newest run's: {comparable.abridged(differing[:2])}"
    if any(comparable.copies(run.records[1], other.records[1]) for other in earlier):
        return "a copy of another run"
    return ""


def _began(each: Side) -> str:
    calls = each.records[0].invocations
    return calls[0].started_at if calls else ""


# ── one method's runs ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Samples:
    """Each run's mean log cost relative to plain training; None where a run has none."""

    quantity: str
    figures: tuple[Measured | None, ...]
    means: tuple[paired.Mean | None, ...]


def _samples(runs: Sequence[Side]) -> dict[Cell, Samples]:
    """Every cell's samples, cells in the order of the newest run."""
    rows = [{(w.name, row.method): row for w in run.summary.workloads for row in w.rows} for run in runs]
    alpha_fractions = [run.summary.look.alpha_fraction for run in runs]
    cells = dict.fromkeys(cell for of_run in reversed(rows) for cell in of_run)
    every = {cell: _samples_of([of_run.get(cell) for of_run in rows], alpha_fractions) for cell in cells}
    return {cell: samples for cell, samples in every.items() if samples is not None}


def _samples_of(rows: Sequence[Row | None], alpha_fractions: Sequence[float]) -> Samples | None:
    """One cell's samples, a row per run; None where no run has a figure. Energy only where all have the same."""
    judged = [row if row is not None and _is_whole(row) else None for row in rows]
    quantities = {(row.measured.quantity, row.measured.scope) for row in judged if row and row.measured}
    figures = tuple(_figure(row, one_quantity=len(quantities) == 1) for row in judged)
    first = next((figure for figure in figures if figure), None)
    if first is None:
        return None
    means = tuple(
        compare_cells.sample(figure, alpha_fraction) if figure else None
        for figure, alpha_fraction in zip(figures, alpha_fractions, strict=True)
    )
    return Samples(wording.what(first.quantity, first.scope), figures, means)


def _is_whole(row: Row) -> bool:
    return not (row.verdict_forbidden or row.timed_out or row.baseline_timed_out)


def _figure(row: Row | None, one_quantity: bool) -> Measured | None:
    if row is None:
        return None
    return row.measured if one_quantity else row.time


def _trends(samples: dict[Cell, Samples], margin: float) -> tuple[Trend, ...]:
    log_margin = -math.log1p(-margin)
    steps = {cell: tuple(level_shifts.steps(each.means, log_margin, len(samples))) for cell, each in samples.items()}
    scatters = {
        cell: level_shifts.scatter(each.means, [step.run for step in steps[cell]]) for cell, each in samples.items()
    }
    tested = {cell: scatter for cell, scatter in scatters.items() if scatter is not None}
    wide = dict(zip(tested, regression.holm([p for _, p in tested.values()]), strict=True))
    trends = []
    for cell, each in samples.items():
        points = tuple(RunSaving(f.saving_rel, f.low_rel, f.high_rel) if f else None for f in each.figures)
        ratio, p = scatters[cell] or (None, None)
        trends.append(Trend(*cell, each.quantity, points, steps[cell], ratio, p, wide.get(cell, False)))
    return tuple(trends)


# ── neighbours ────────────────────────────────────────────────────────────────────────────────────────────────


def _flags(runs: Sequence[Side], trends: Sequence[Trend], margin: float) -> tuple[NeighbourFlag, ...]:
    by_cell = {(trend.workload, trend.method): trend for trend in trends}
    flags: list[NeighbourFlag] = []
    for run in range(1, len(runs)):
        comparisons = compare_cells.saving_comparisons(runs[run - 1].summary, runs[run].summary)
        tested = [each for each in comparisons if each.change is not None]
        costs = {each.key: each for each in tested if not each.quality}
        for finding in regression.judge(comparisons, margin):
            change = _flagged_change(finding, costs)
            if change is None:
                continue
            trend = by_cell.get((finding.workload, finding.method))
            lasting: bool | None = trend is not None and _explained(run, change.mean, trend.steps)
            if not lasting and run == len(runs) - 1:
                lasting = None
            change_rel, margin_rel = math.expm1(change.mean), _unflagged_margin(change, len(tested))
            flags.append(NeighbourFlag(run, finding.workload, finding.method, change_rel, lasting, margin_rel))
    return tuple(flags)


def _flagged_change(finding: Finding, costs: dict[Key, Comparison]) -> paired.Mean | None:
    """The change of a cost that the gate tells apart, for worse or for better; None for any other finding."""
    comparison = costs.get(finding.key)
    if finding.outcome not in ("suspected", "better") or comparison is None:
        return None
    return comparison.change


def _explained(run: int, log_change: float, steps: Sequence[Step]) -> bool:
    """Whether a step of the same direction lies at this run or beside it."""
    return any(abs(step.run - run) <= 1 and step.change_rel * log_change > 0 for step in steps)


def _accusations(flags: Sequence[NeighbourFlag]) -> dict[int, set[Cell]]:
    """Run → methods that it accuses anew. A flag that takes back its method's last one is none: one event, not two."""
    last_change: dict[Cell, float] = {}
    accused: dict[int, set[Cell]] = {}
    for flag in flags:
        cell = flag.workload, flag.method
        taken_back = last_change.get(cell, 0.0) * flag.change_rel < 0
        last_change[cell] = 0.0 if taken_back else flag.change_rel
        if not taken_back:
            accused.setdefault(flag.run, set()).add(cell)
    return accused


def _unflagged_margin(change: paired.Mean, tests: int) -> float:
    """The margin under which Holm lets the whole comparison stand: its smallest p is above the level / tests."""
    reach = paired.student(1 - FAMILY * change.alpha_fraction / tests, change.df) * change.sd
    return paired.saving_of(-max(0.0, abs(change.mean) - reach))


def _binomial(count: int, of: int) -> float:
    """The chance of `count` or more of so many comparisons, each with 1 % for worse and 1 % for better."""
    from scipy.special import bdtrc

    return 1.0 if count == 0 else float(bdtrc(count - 1, of, 2 * FAMILY))


def _patterns(flags: Sequence[NeighbourFlag], samples: dict[Cell, Samples]) -> Iterator[NoisePattern]:
    """How the noise shows, from the flags that did not last."""
    accused = list(_accusations(flags).values())
    disjoint = [not earlier & later for earlier, later in pairwise(accused)]
    if disjoint and sum(disjoint) * 2 > len(disjoint):
        yield "rotating"
    by_cell: dict[Cell, list[NeighbourFlag]] = {}
    for flag in flags:
        by_cell.setdefault((flag.workload, flag.method), []).append(flag)
    neighbours = (pair for of_cell in by_cell.values() for pair in pairwise(of_cell))
    if any(earlier.change_rel * later.change_rel < 0 for earlier, later in neighbours):
        yield "returning"
    one_way = len({flag.change_rel > 0 for flag in flags}) == 1
    if len(accused) > 1 and one_way and not any(_moved(of_cell, samples[cell]) for cell, of_cell in by_cell.items()):
        yield "one-sided"


def _moved(flags: Sequence[NeighbourFlag], samples: Samples) -> bool:
    """Whether the level went at least half as far as the flags of this method say."""
    means = [mean.mean for mean in samples.means if mean is not None]
    flagged = math.fsum(math.log1p(flag.change_rel) for flag in flags)
    return (means[-1] - means[0]) / flagged >= 0.5


def to_json(histories: Sequence[History]) -> dict[str, Any]:
    """Plain data: ratios and SI units."""
    from energybench.verdict.summary import plain_data

    return {"schema": 1, "histories": [plain_data(as_data(each)) for each in histories]}
