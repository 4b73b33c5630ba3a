"""Speed ratios: sides that take turns, the ratio of every round, its median and quartiles beside a goal.

    def test_fitting_against_scipy(bench: Bench) -> None:
        x = sample(bench.size(300_000, smoke=500))
        times = bench.turns({"ours": timed(lambda: fit(x)), "scipy": timed(lambda: gennorm.fit(x.numpy()))})
        bench.faster("fit of 300,000", times["ours"], times["scipy"], than="scipy's fit", goal=20)

`make bench` measures that, prints it in a table and keeps it in pytest-benchmark's JSON. `make test` runs each side
once, at the smoke size, and judges no time: it notices a benchmark that no longer runs. A goal that was missed is told,
and is no error unless asked (`make bench STRICT=1`); nothing is measured again because of what came.
"""

from __future__ import annotations

import math
import os
import statistics
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pytest
import torch

Side = Callable[[], float]  # does its work once and returns the seconds that it took
LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Ratio:
    """What one benchmark says.

    fraction: what was divided, as printed; rounds: the ratio of each round, in the order of time
    goal: None where nothing is wanted; at_least: else at most
    limit: (the best that mathematics or physics allow, where from); seen: what came before, in words
    """

    file: str
    name: str
    fraction: str
    rounds: tuple[float, ...]
    goal: float | None
    at_least: bool
    limit: tuple[float, str] | None = None
    seen: str = ""
    threads: int = 1

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return low, high

    @property
    def reached(self) -> bool | None:
        """None: there is no goal. Judged by the median alone, whatever its spread."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.at_least else self.median <= self.goal

    @property
    def share(self) -> float | None:
        """Of what the limit allows, how much was reached; None where none is known."""
        if self.limit is None:
            return None
        return self.median / self.limit[0] if self.at_least else self.limit[0] / self.median

    def facts(self) -> dict[str, Any]:
        """What the JSON keeps."""
        low, high = self.quartiles
        limit, of = self.limit or (None, None)
        return {
            "name": self.name,
            "fraction": self.fraction,
            "median": self.median,
            "quartiles": [low, high],
            "range": [min(self.rounds), max(self.rounds)],
            "rounds": [*self.rounds],
            "goal": self.goal,
            "goal_is": "at least" if self.at_least else "at most",
            "reached": self.reached,
            "limit": limit,
            "limit_of": of,
            "share": self.share,
            "seen": self.seen,
            "threads": self.threads,
        }


def timed(call: Callable[[], object], repeats: int = 1) -> Side:
    """Seconds of one call, on average over the repeats."""

    def side() -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - started) / repeats

    return side


def order(names: Sequence[str], turn: int) -> list[str]:
    """Who runs when in a turn: each is as often first as any other, and neighbours change places: AB, BA, BA, AB."""
    first = turn % len(names)
    rotated = [*names[first:], *names[:first]]
    return rotated[::-1] if turn // len(names) % 2 else rotated


def take_turns(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, after a round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name in sides:
        sides[name]()
    for turn in range(rounds):
        for name in order([*sides], turn):
            times[name].append(float(sides[name]()))
    return times


class Bench:
    """The fixture `bench` of one test. measuring: else it is the smoke of `make test`."""

    def __init__(self, file: str, measuring: bool) -> None:
        self.measuring = measuring
        self.told: list[Ratio] = []
        self.seconds: list[float] = []  # ours, of the first ratio: what pytest-benchmark compares
        self._file = file
        self._names: list[str] = []

    def size(self, full: Any, smoke: Any) -> Any:
        return full if self.measuring else smoke

    def threads(self, count: int) -> None:
        """How many torch computes with; one unless said, since several wait for whichever loses its core."""
        if self.measuring:
            cores = len(os.sched_getaffinity(0))
            if count > cores:
                pytest.skip(f"{count} threads, cores: {cores}")
            torch.set_num_threads(count)

    def turns(self, sides: Mapping[str, Side], rounds: int = LEAST_ROUNDS) -> dict[str, list[float]]:
        if rounds < LEAST_ROUNDS:
            raise ValueError(f"a median of {rounds} rounds says little; at least {LEAST_ROUNDS}")
        if self.measuring:
            return take_turns(sides, rounds)
        return {name: [float(side())] for name, side in sides.items()}

    def faster(
        self,
        name: str,
        ours: Sequence[float],
        theirs: Sequence[float],
        *,
        than: str,
        goal: float | None = None,
        limit: tuple[float, str] | None = None,
        seen: str = "",
    ) -> None:
        """Tell theirs / ours, round by round: a saving, which should be `goal` at least."""
        self._tell(name, f"{than} / ours", theirs, ours, ours, goal, True, limit, seen)

    def cost(
        self,
        name: str,
        ours: Sequence[float],
        theirs: Sequence[float] | float,
        *,
        of: str,
        goal: float | None = None,
        limit: tuple[float, str] | None = None,
        seen: str = "",
    ) -> None:
        """Tell ours / theirs, round by round: a cost, which should be `goal` at most. theirs: or a fixed time."""
        told = [theirs] * len(ours) if isinstance(theirs, int | float) else theirs
        self._tell(name, f"ours / {of}", ours, told, ours, goal, False, limit, seen)

    def _tell(
        self,
        name: str,
        fraction: str,
        above: Sequence[float],
        below: Sequence[float],
        ours: Sequence[float],
        goal: float | None,
        at_least: bool,
        limit: tuple[float, str] | None,
        seen: str,
    ) -> None:
        pairs = [*zip(above, below, strict=True)]
        if name in self._names:
            raise ValueError(f"'{name}' is told twice")
        self._names.append(name)
        if not self.measuring:
            return
        if len(pairs) < LEAST_ROUNDS:
            raise ValueError(f"'{name}' has {len(pairs)} rounds; at least {LEAST_ROUNDS}")
        rounds = tuple(over / under for over, under in pairs)
        if not all(map(math.isfinite, rounds)):
            raise ValueError(f"'{name}' was not measured: {rounds}")
        self.told.append(
            Ratio(self._file, name, fraction, rounds, goal, at_least, limit, seen, torch.get_num_threads())
        )
        self.seconds = self.seconds or [*ours]

    def close(self, benchmark: Any) -> None:
        """Hand everything to pytest-benchmark, whose own rounds replay the times that were taken."""
        if not self._names:
            pytest.fail("the benchmark told no ratio", pytrace=False)
        replay = iter([at for second in self.seconds or [0.0] for at in (0.0, second)])
        benchmark._timer = replay.__next__
        benchmark.extra_info["ratios"] = [ratio.facts() for ratio in self.told]
        benchmark.pedantic(lambda: None, rounds=max(1, len(self.seconds)))


def missed(found: Sequence[Ratio]) -> list[Ratio]:
    return [ratio for ratio in found if ratio.reached is False]


def told(found: Sequence[Ratio], machine: str, width: int) -> str:
    """The machine, two lines for each ratio, and what was missed."""
    lines = _wrapped(machine, width)
    lines += _wrapped("Medians (and quartiles) of the rounds' ratios; sides took turns.", width)
    for file, ratios in groupby(found, lambda ratio: ratio.file):
        lines += ["", file]
        for ratio in ratios:
            low, high = map(figure, ratio.quartiles)
            verdict = {True: "reached", False: "MISSED", None: ""}[ratio.reached]
            goal = "no goal" if ratio.goal is None else f"goal {_wanted(ratio)}"
            limit = f"limit {_brief(ratio.limit[0])}, {ratio.limit[1]}: {ratio.share:.0%}" if ratio.limit else ""
            lines += _wrapped(f"{ratio.name}: {ratio.fraction}", width, "  ")
            spread = f"({low}–{high})"
            lines += _wrapped(f"{figure(ratio.median):>11} {spread:<21} {goal:<13} {verdict:<8} {limit}", width)
    wanted = [ratio for ratio in found if ratio.goal is not None]
    lines += ["", f"{len(wanted) - len(missed(found))} of {len(wanted)} goals reached"]
    for ratio in missed(found):
        before = f" (before: {ratio.seen})" if ratio.seen else ""
        lines += _wrapped(f"missed: {ratio.name}: {figure(ratio.median)}, wanted {_wanted(ratio)}{before}", width)
    return "\n".join(lines)


def _wanted(ratio: Ratio) -> str:
    assert ratio.goal is not None
    return f"{'≥' if ratio.at_least else '≤'} {_brief(ratio.goal)}"


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=f"{indent}  ")


def _brief(value: float) -> str:
    """What somebody chose: 4 and not 4.00."""
    return figure(value).rstrip("0").rstrip(".") if "." in figure(value) else figure(value)


def figure(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
