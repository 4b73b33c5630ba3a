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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest
from energybench.stats import paired

ROUNDS, MARGIN = 7, 0.10
STARTS = 3  # of a command, of which the fastest counts
LIMIT_S = 300
PROBE = Path(__file__).with_name("probe.py")
TOLD = {
    "step": "a step of the loop",
    "help": "energybench --help",
    "list": "energybench list",
    "parse": "reading a suite",
    "report": "reporting a run",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of rounds of one measure: the seconds of either side, round by round, and what they say."""

    base_s: tuple[float, ...]
    head_s: tuple[float, ...]
    ratio: float
    ratio_low: float  # 95 %
    ratio_high: float
    verdict: paired.Verdict


@dataclass(frozen=True, slots=True)
class Measure:
    """One cost. verdict: slower (twice), not confirmed, faster, no difference, inconclusive, not measured"""

    name: str
    told: str
    verdict: str
    series: Series | None = None
    again: Series | None = None  # the second series, of what looked slower
    reason: str | None = None  # why it was not measured


@dataclass(frozen=True, slots=True)
class Overhead:
    """A comparison of two trees."""

    base: str
    head: str
    rounds: int
    margin_rel: float
    measures: tuple[Measure, ...]

    @property
    def regressions(self) -> list[Measure]:
        return [measure for measure in self.measures if measure.verdict == "slower"]

    @property
    def undecided(self) -> list[Measure]:
        return [
            m for m in self.measures if m.verdict in ("inconclusive", "not confirmed", "not measured", "no verdict")
        ]

    def to_json(self) -> dict[str, Any]:
        verdict = "regression" if self.regressions else "inconclusive" if self.undecided else "no regression"
        return {"schema": 1, "level": "overhead", "verdict": verdict, **asdict(self)}


class Failed(Exception):
    """A tree could not be measured; the text says why."""


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
    """Compare two trees: folders that hold `energybench/`, or `methods/` for the installed energybench.

    only: measures by name, default all; methods: names of methods whose steps are timed too
    names: what to call the trees; say: told what is being done
    Raises UsageError E662 for a measure that does not exist.
    """
    if unknown := [name for name in only if name not in TOLD]:
        raise UsageError(Problem("E662", f"there is no measure '{unknown[0]}'", hint=nearest(unknown[0], TOLD)))
    costs = _costs(base, only or ([] if methods else tuple(TOLD)), methods)
    found = _compared(base, head, costs, rounds, margin_rel, random.Random(seed), say)
    slower = {name: costs[name] for name, measure in found.items() if measure.verdict == "slower"}
    if slower:
        say(f"again, because it looks slower: {', '.join(slower)}")
        again = _compared(base, head, slower, rounds, margin_rel, random.Random(seed + 1), say)
        for name, second in again.items():
            verdict = "slower" if second.verdict == "slower" else "not confirmed"
            found[name] = replace(found[name], verdict=verdict, again=second.series)
    told = names[0] or str(base), names[1] or str(head)
    return Overhead(*told, rounds, margin_rel, tuple(found.values()))


Cost = Callable[[Path], float]


def _costs(base: Path, only: Sequence[str], methods: Sequence[str]) -> dict[str, Cost]:
    """Name → what it takes in a tree, in seconds; both sides read the base tree's files."""
    suites = sorted((base / "suites").glob("*.toml"), key=lambda path: (-path.stat().st_size, path.name))
    runs = sorted(
        (file.parent for file in (base / "reports").glob("*/*/run.json")),
        key=lambda run: (-len(list((run / "records").glob("*.json"))), str(run)),
    )
    known: dict[str, Cost] = {
        "step": lambda tree: _probe(tree, "step"),
        "help": lambda tree: _start(tree, "--help"),
        "list": lambda tree: _start(tree, "list"),
        "parse": lambda tree: _probe(tree, "parse", str(_first(suites, "suites/*.toml"))),
        "report": lambda tree: _probe(tree, "report", str(_first(runs, "reports/*/*/run.json"))),
    }
    chosen = {name: known[name] for name in only}

    def of(name: str) -> Cost:
        return lambda tree: _probe(tree, "method", name)

    return chosen | {f"method {name}": of(name) for name in methods}


def _first(found: Sequence[Path], pattern: str) -> Path:
    if not found:
        raise Failed(f"the base tree has no {pattern}")
    return found[0].resolve()


def _compared(
    base: Path, head: Path, costs: dict[str, Cost], rounds: int, margin_rel: float, order: random.Random, say: Say
) -> dict[str, Measure]:
    """One series. The first round, in which caches fill, is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in costs}
    failed: dict[str, str] = {}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}" if number else "a round that is not counted")
        for name in order.sample(list(costs), len(costs)):
            if name in failed:
                continue
            try:
                if order.random() < 0.5:
                    base_s, head_s = costs[name](base), costs[name](head)
                else:
                    head_s, base_s = costs[name](head), costs[name](base)
            except Failed as error:
                failed[name] = str(error)
                continue
            if number:
                seconds[name].append((base_s, head_s))
    return {name: _measure(name, seconds[name], failed.get(name), margin_rel) for name in costs}


def _measure(name: str, taken: Sequence[tuple[float, float]], failed: str | None, margin_rel: float) -> Measure:
    told = TOLD.get(name, f"a step with {name.removeprefix('method ')}")
    if failed is not None:
        return Measure(name, told, "not measured", reason=failed)
    base_s, head_s = tuple(a for a, _ in taken), tuple(b for _, b in taken)
    change = paired.paired(head_s, base_s)
    low, high = (math.exp(bound) if bound < 700 else math.inf for bound in change.interval())
    verdict = paired.verdict_at_equal_quality(change, margin_rel, "time")
    return Measure(name, told, verdict, Series(base_s, head_s, math.exp(change.mean), low, high, verdict))


def _environment(tree: Path) -> dict[str, str]:
    """Of a child in this tree. It may keep what it compiles: else a ref, which is unpacked as source, is compiled at
    every start, while a folder in which somebody has worked is not: 10 ms that no version costs."""
    before = os.environ.get("PYTHONPATH")
    ours = {"PYTHONPATH": os.pathsep.join([str(tree.resolve()), *([before] if before else [])])}
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | ours


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
    taken = []
    for _ in range(STARTS):
        started = time.perf_counter()
        _call(tree, ["-m", "energybench", verb])
        taken.append(time.perf_counter() - started)
    return min(taken)


def _probe(tree: Path, *arguments: str) -> float:
    told = json.loads(_call(tree, ["-P", str(PROBE), *arguments]).splitlines()[-1])
    ours = tree / "energybench" / "__init__.py"
    if ours.exists() and Path(told["package"]).resolve() != ours.resolve():
        raise Failed(f"{told['package']} was measured, not {ours}")
    return float(told["seconds"])


# ── trees ─────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def trees(*named: str) -> Iterator[list[Path]]:
    """The folders of trees or git refs; a ref is unpacked into a temporary folder that is removed afterwards.

    Raises UsageError E660 for what is neither, E661 for a tree without energybench and without methods.
    """
    from energybench.records.run_folder import scratch

    with scratch() as place:
        yield [_tree(name, place / str(number)) for number, name in enumerate(named)]


def _tree(name: str, place: Path) -> Path:
    path = Path(name)
    if os.path.isdir(path):
        found = path.resolve()
    else:
        _unpack(name, place)
        found = place
    if not (found / "energybench" / "__init__.py").exists() and not any(found.glob("methods/*.py")):
        hint = "name the folder that holds energybench/ or methods/"
        raise UsageError(Problem("E661", "it holds no energybench/ and no methods/*.py", name, hint))
    return found


def _unpack(ref: str, place: Path) -> None:
    import io
    import tarfile

    try:
        known = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").decode().strip()
        top = _git("rev-parse", "--show-toplevel").decode().strip()
        content = _git("-C", top, "archive", "--format=tar", known)
    except (OSError, subprocess.CalledProcessError):
        hint = "name a folder, or a branch, tag or commit of the repository that you are in"
        raise UsageError(Problem("E660", "there is no such folder, and git knows no such commit", ref, hint)) from None
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(place, filter="data")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────


def print_overhead(found: Overhead, console: Any) -> None:
    from energybench.common.units import format_seconds
    from energybench.report.grid import grid, say

    rows = []
    for measure in found.measures:
        if measure.series is None:
            rows.append([measure.told, "–", "–", "–", measure.verdict])
            continue
        middle = [format_seconds(statistics.median(side)) for side in (measure.series.base_s, measure.series.head_s)]
        series = measure.series
        ratio = f"{series.ratio:.2f} [{series.ratio_low:.2f}, {series.ratio_high:.2f}]"
        rows.append([measure.told, *middle, ratio, measure.verdict])
    say(console, f"harness overhead: {found.base} against {found.head}, {found.rounds} rounds", "bold")
    grid(console, ["what", "base", "head", "head / base [95 %]", "verdict"], rows)
    for measure in found.measures:
        if measure.reason:
            say(console, f"{measure.told}: {measure.reason}", "dim")
        if measure.again is not None:
            again = measure.again
            span = f"{again.ratio:.2f} [{again.ratio_low:.2f}, {again.ratio_high:.2f}]"
            say(console, f"{measure.told}: looked at again, {span}: {again.verdict}", "dim")
    margin = f"{100 * found.margin_rel:g} %"
    if found.regressions:
        say(console, f"Regression: {', '.join(m.told for m in found.regressions)}, beyond {margin} in two series.")
    elif found.undecided:
        say(
            console,
            f"No regression is proven; not decided: {', '.join(m.told for m in found.undecided)}. "
            "What would decide: more --rounds, or a quieter machine.",
        )
    else:
        say(console, f"No regression beyond {margin}.")
