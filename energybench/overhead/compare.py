"""What the harness itself costs, in two trees of it, in turns on one machine: is head slower than base?

    step     seconds per step of the loop around a training that does nothing
    help     `energybench --help`, list    `energybench list`: a process from start to end
    parse    reading the longest suite of the base tree
    report   summary, terminal and Markdown of its largest committed run
    method   seconds per step with a method of the tree (asked for by name)

Each value is taken in a fresh process; each round takes one of either side, in a random order. Ratios are paired log
ratios with Student's t, as everywhere (`stats/paired.py`). "slower" is said where the one-sided 99 % bound lies beyond
the margin, and it is a regression only if a second series of rounds says so too.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.programs import find_program
from energybench.common.renamed import as_data, renamed
from energybench.stats import paired

ROUNDS, MARGIN = 7, 0.10
STARTS = 3  # of a command, of which the fastest counts
LIMIT_S = 300
PROBE = Path(__file__).with_name("probe.py")
DESCRIPTIONS = {
    "step": "a step of the loop",
    "help": "energybench --help",
    "list": "energybench list",
    "parse": "reading a suite",
    "report": "reporting a run",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of rounds of one measure: the seconds of either side, round by round, and HEAD's ratio to BASE."""

    base_s: tuple[float, ...]
    head_s: tuple[float, ...]
    ratio: float
    ratio_low: float  # 95 %
    ratio_high: float
    verdict: paired.Verdict


@renamed(told="description")
@dataclass(frozen=True, slots=True)
class OverheadMeasure:
    """One cost.

    name:        as it is asked for, such as "step" or "method ssprop"
    description: in words, "a step of the loop"
    verdict:     slower (twice), not confirmed, faster, no difference, inconclusive, not measured
    again:       the second series, of what looked slower
    reason:      why it was not measured
    """

    name: str
    description: str
    verdict: str
    series: Series | None = None
    again: Series | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Overhead:
    """A comparison of two trees."""

    base: str
    head: str
    rounds: int
    margin_rel: float
    measures: tuple[OverheadMeasure, ...]

    @property
    def regressions(self) -> list[OverheadMeasure]:
        return [measure for measure in self.measures if measure.verdict == "slower"]

    @property
    def undecided(self) -> list[OverheadMeasure]:
        open_ = ("inconclusive", "not confirmed", "not measured", "no verdict")
        return [measure for measure in self.measures if measure.verdict in open_]

    def to_json(self) -> dict[str, Any]:
        """Plain data: seconds and ratios."""
        verdict = "regression" if self.regressions else "inconclusive" if self.undecided else "no regression"
        return {"schema": 1, "level": "overhead", "verdict": verdict, **as_data(self)}


class Failed(Exception):
    """A tree could not be measured; the text gives the reason."""


def compare_overhead(
    base: Path,
    head: Path,
    *,
    rounds: int = ROUNDS,
    margin_rel: float = MARGIN,
    only: Sequence[str] = (),
    methods: Sequence[str] = (),
    names: tuple[str, str] = ("", ""),
    seed: int = 0,
    say: Say = lambda text: None,
) -> Overhead:
    """Compare what the harness costs in two trees.

    Args:
        base, head: folders that hold `energybench/`, or `methods/` for the installed energybench.
        rounds:     values that are taken of either side.
        margin_rel: how much slower HEAD may be, relative: 0.1 for 10 %.
        only:       measures by name; by default all, or none where there are `methods`.
        methods:    names of methods whose steps are timed too.
        names:      what to call the trees; by default their paths.
        seed:       of the order in which measures and sides take turns.
        say:        is called with a line for each round.

    Returns:
        Every measure's seconds, ratio and verdict.

    Raises:
        UsageError: E662 for a measure that does not exist.
    """
    if unknown := [name for name in only if name not in DESCRIPTIONS]:
        raise UsageError(Problem("E662", f"there is no measure '{unknown[0]}'", hint=nearest(unknown[0], DESCRIPTIONS)))
    timers = _timers(base, only or ([] if methods else tuple(DESCRIPTIONS)), methods)
    measures = _compared(base, head, timers, rounds, margin_rel, random.Random(seed), say)
    slower = {name: timers[name] for name, measure in measures.items() if measure.verdict == "slower"}
    if slower:
        say(f"again, because it looks slower: {', '.join(slower)}")
        again = _compared(base, head, slower, rounds, margin_rel, random.Random(seed + 1), say)
        for name, second in again.items():
            verdict = "slower" if second.verdict == "slower" else "not confirmed"
            measures[name] = replace(measures[name], verdict=verdict, again=second.series)
    base_name, head_name = names[0] or str(base), names[1] or str(head)
    return Overhead(base_name, head_name, rounds, margin_rel, tuple(measures.values()))


Timer = Callable[[Path], float]  # tree → seconds


def _timers(base: Path, only: Sequence[str], methods: Sequence[str]) -> dict[str, Timer]:
    """Measures by name; both sides read the base tree's files."""
    suites = sorted((base / "suites").glob("*.toml"), key=lambda path: (-path.stat().st_size, path.name))
    runs = sorted(
        (file.parent for file in (base / "reports").glob("*/*/run.json")),
        key=lambda run: (-len(list((run / "records").glob("*.json"))), str(run)),
    )
    timers: dict[str, Timer] = {
        "step": lambda tree: _probe(tree, "step"),
        "help": lambda tree: _start(tree, "--help"),
        "list": lambda tree: _start(tree, "list"),
        "parse": lambda tree: _probe(tree, "parse", str(_first(suites, "suites/*.toml"))),
        "report": lambda tree: _probe(tree, "report", str(_first(runs, "reports/*/*/run.json"))),
    }
    chosen = {name: timers[name] for name in only}

    def of_method(name: str) -> Timer:
        return lambda tree: _probe(tree, "method", name)

    return chosen | {f"method {name}": of_method(name) for name in methods}


def _first(paths: Sequence[Path], pattern: str) -> Path:
    if not paths:
        raise Failed(f"the base tree has no {pattern}")
    return paths[0].resolve()


def _compared(
    base: Path, head: Path, timers: dict[str, Timer], rounds: int, margin_rel: float, order: random.Random, say: Say
) -> dict[str, OverheadMeasure]:
    """One series. The first round, in which caches fill, is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in timers}
    failed: dict[str, str] = {}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}" if number else "a round that is not counted")
        for name in order.sample(list(timers), len(timers)):
            if name in failed:
                continue
            try:
                if order.random() < 0.5:
                    base_s, head_s = timers[name](base), timers[name](head)
                else:
                    head_s, base_s = timers[name](head), timers[name](base)
            except Failed as error:
                failed[name] = str(error)
                continue
            if number:
                seconds[name].append((base_s, head_s))
    return {name: _measure(name, seconds[name], failed.get(name), margin_rel) for name in timers}


def _measure(
    name: str, seconds: Sequence[tuple[float, float]], failure: str | None, margin_rel: float
) -> OverheadMeasure:
    description = DESCRIPTIONS.get(name, f"a step with {name.removeprefix('method ')}")
    if failure is not None:
        return OverheadMeasure(name, description, "not measured", reason=failure)
    base_s, head_s = tuple(base for base, _ in seconds), tuple(head for _, head in seconds)
    change = paired.paired(head_s, base_s)
    low, high = (math.exp(bound) if bound < 700 else math.inf for bound in change.interval())
    verdict = paired.verdict_at_equal_quality(change, margin_rel, "time")
    series = Series(base_s, head_s, math.exp(change.mean), low, high, verdict)
    return OverheadMeasure(name, description, verdict, series)


def _environment(tree: Path) -> dict[str, str]:
    """Of a child in this tree. It may keep what it compiles: else a ref, which is unpacked as source, is compiled at
    every start, while a folder in which somebody has worked is not: 10 ms that no version costs."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(tree.resolve()), *([before] if before else [])])
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {"PYTHONPATH": path}


def _call(tree: Path, arguments: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tree,
            env=_environment(tree),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"it took longer than {LIMIT_S} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise Failed(f"exit {done.returncode}: {last}")
    return done.stdout


def _start(tree: Path, verb: str) -> float:
    seconds = []
    for _ in range(STARTS):
        started = time.perf_counter()
        _call(tree, ["-m", "energybench", verb])
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _probe(tree: Path, *arguments: str) -> float:
    answer = json.loads(_call(tree, ["-P", str(PROBE), *arguments]).splitlines()[-1])
    expected = tree / "energybench" / "__init__.py"
    if expected.exists() and Path(answer["package"]).resolve() != expected.resolve():
        raise Failed(f"{answer['package']} was measured, not {expected}")
    return float(answer["seconds"])


# ── trees ─────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def trees(*named: str) -> Iterator[list[Path]]:
    """The folders of trees or git refs; a ref is unpacked into a temporary folder that is removed afterwards.

    Args:
        named: folders, or branches, tags or commits of the repository that holds the current folder.

    Returns:
        A context with a folder for each.

    Raises:
        UsageError: E660 for what is neither, E661 for a tree without energybench and without methods.
    """
    from energybench.records.scratch_folder import scratch

    with scratch() as place:
        yield [_tree(name, place / str(number)) for number, name in enumerate(named)]


def _tree(name: str, place: Path) -> Path:
    if os.path.isdir(name):
        tree = Path(name).resolve()
    else:
        _unpack(name, place)
        tree = place
    if not (tree / "energybench" / "__init__.py").exists() and not any(tree.glob("methods/*.py")):
        hint = "name the folder that holds energybench/ or methods/"
        raise UsageError(Problem("E661", "it holds no energybench/ and no methods/*.py", name, hint))
    return tree


def _unpack(ref: str, place: Path) -> None:
    import io
    import tarfile

    try:
        commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").decode().strip()
        top = _git("rev-parse", "--show-toplevel").decode().strip()
        content = _git("-C", top, "archive", "--format=tar", commit)
    except (OSError, subprocess.CalledProcessError):
        hint = "name a folder, or a branch, tag or commit of the repository that you are in"
        raise UsageError(Problem("E660", "there is no such folder, and git knows no such commit", ref, hint)) from None
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(place, filter="data")


def _git(*arguments: str) -> bytes:
    program = find_program("git")
    if program is None:
        raise FileNotFoundError
    return subprocess.run([program, *arguments], capture_output=True, check=True).stdout


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────


def print_overhead(overhead: Overhead, console: Any) -> None:
    """For a terminal: a table, then reasons and second series, then the verdict."""
    from energybench.common.units import format_seconds
    from energybench.report.grid import grid, say

    rows = []
    for measure in overhead.measures:
        if measure.series is None:
            rows.append([measure.description, "–", "–", "–", measure.verdict])
            continue
        medians = [format_seconds(statistics.median(side)) for side in (measure.series.base_s, measure.series.head_s)]
        rows.append([measure.description, *medians, _ratio(measure.series), measure.verdict])
    say(console, f"harness overhead: {overhead.base} against {overhead.head}, {overhead.rounds} rounds", "bold")
    grid(console, ["what", "base", "head", "head / base [95 %]", "verdict"], rows)
    for measure in overhead.measures:
        if measure.reason:
            say(console, f"{measure.description}: {measure.reason}", "dim")
        if measure.again is not None:
            again = f"{_ratio(measure.again)}: {measure.again.verdict}"
            say(console, f"{measure.description}: looked at again, {again}", "dim")
    margin = f"{100 * overhead.margin_rel:g} %"
    if overhead.regressions:
        say(console, f"Regression: {_listed(overhead.regressions)}, beyond {margin} in two series.")
    elif overhead.undecided:
        say(
            console,
            f"No regression is proven; not decided: {_listed(overhead.undecided)}. "
            "What would decide: more --rounds, or a quieter machine.",
        )
    else:
        say(console, f"No regression beyond {margin}.")


def _ratio(series: Series) -> str:
    return f"{series.ratio:.2f} [{series.ratio_low:.2f}, {series.ratio_high:.2f}]"


def _listed(measures: Sequence[OverheadMeasure]) -> str:
    return ", ".join(measure.description for measure in measures)
