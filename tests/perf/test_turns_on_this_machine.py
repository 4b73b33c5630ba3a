"""Trials in turns on this machine: how much less they scatter than trials one after the other, and that no cell gains.

Every launch has fresh processes and does block 0's work. Of each figure one launch after the other is left out: the
rounds that are told. Quick's own cells stand side by side in the first; in the second twins, one that trains every
tenth step twice, one that skips half of its epochs, and one that clears everybody's caches. The third starts several
servers: what the twins of one have in common, beyond what its launches scatter, would be a bias of a whole run.

    make bench TESTS=tests/perf/test_turns_on_this_machine.py
    python -m pytest tests/perf/test_turns_on_this_machine.py -m perf -p no:xdist --benchmark-enable --launches 8

The first takes a quarter of an hour on two quiet cores.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from perf.ratios import Bench
from rich.console import Console

from energybench.process.forkserver import Launcher
from energybench.records.run_folder import Folder
from energybench.runner import schedule
from energybench.runner.plan_request import plan
from energybench.runner.progress import Progress
from energybench.runner.trials import Trials
from energybench.stats import paired
from energybench.suite.suite import load

HEAD = """schema = 1
suite = "turns"
[trials]
seed = 2026
warmup = "4 steps"
threads = 1
turns = {turns}
[measure]
energy = "off"
[accept]
margin = "2 %"
[[workload]]
name = "w"
model = {{ use = "cnn", channels = [16, 32] }}
data = {{ use = "mnist5k", batch = 32, subset = 2500, test_subset = 100 }}
train = {{ epochs = {epochs}, lr = 0.05, momentum = 0.9, schedule = "cosine" }}
"""
QUICK = """[[method]]
use = "gradsamp"
skip = "every:2"
control = "none"
[[method]]
use = "ssprop"
drop = 0.8
control = "none"
[[method]]
name = "ssprop+dropout"
use = ["ssprop", "dropout"]
control = "none"
ssprop = { drop = 0.8 }
dropout = { p = 0.2 }
"""
KNOWN = "".join(
    f'[[method]]\nuse = "{name}"\ncontrol = "none"\n' for name in ("nothing", "again.py", "halved.py", "hog.py")
)
EXPECTED = {"twin": 1.0, "nothing": 1.0, "again": 1.1, "halved": 0.5}
FILES = {
    "again.py": """from energybench import Method

class Again(Method):
    def step(self, run, batch, inner):
        inner(batch)
        if run.tally.steps % 10 == 0:
            inner(batch)
""",
    "halved.py": """from energybench import Method

class Halved(Method):
    def epoch(self, run, data, inner):
        if run.epoch_number % 2:
            inner(data)
""",
    "hog.py": """import torch
from energybench import Method

class Hog(Method):
    def setup(self, run):
        self.much = torch.zeros(16 << 20)  # 64 MiB

    def step(self, run, batch, inner):
        inner(batch)
        self.much += 1
""",
}
FURTHEST = 1.015  # that an end of an A/A's interval may lie from 1
SERVERS, OF_EACH = 5, 4  # servers, and launches of each
IN_COMMON = 1.75  # the square root of F's 95 % point with 4 and 15 degrees of freedom, 3.06


class Way:
    """One way of running a block, again and again, each time with fresh processes."""

    def __init__(self, place: Path, turns: str, launcher: Launcher, cells: str, epochs: int = 3) -> None:
        place.mkdir()
        for name, text in FILES.items():
            (place / name).write_text(text)
        (place / "suite.toml").write_text(HEAD.format(turns=turns, epochs=epochs) + cells)
        suite = load(place / "suite.toml")
        quiet = Progress(Console(file=io.StringIO()), Console(file=io.StringIO()), quiet=True)
        self.planned = plan(suite, launcher, place)
        self.folder = Folder(place / "run")
        self.folder.path.mkdir()
        self.trials = Trials(self.planned, self.folder, launcher, place, quiet)
        self.logs: dict[str, list[float]] = {}  # of each cell, ln(its seconds / plain training's) of each launch

    def launch(self, number: int) -> None:
        """One block; the seed is always block 0's, so that every launch does the same work."""
        with self.folder.lock():
            for each in schedule.by_workload(schedule.missing(self.planned.cells, 1, number, [], number)):
                list(self.trials.run(each, 1))
        made = [trial for trial in self.folder.trials() if trial.invocation == number]
        assert {trial.status for trial in made} == {"ok"}, [trial.reason for trial in made]
        seconds = {trial.method: trial.train.wall_s for trial in made if trial.train}
        plain_s = seconds.pop("baseline")
        for label, cell_s in seconds.items():
            self.logs.setdefault(label, []).append(math.log(cell_s / plain_s))


def spread(logs: Sequence[Sequence[float]]) -> float:
    """Standard deviation over launches, pooled over cells."""
    return math.sqrt(statistics.fmean(statistics.variance(each) for each in logs))


def leaving_one_out(logs: Sequence[float]) -> list[list[float]]:
    return [[*logs[:number], *logs[number + 1 :]] for number in range(len(logs))]


def spreads(way: Way, labels: Sequence[str]) -> list[float]:
    kept = [leaving_one_out(way.logs[label]) for label in labels]
    return [spread(each) for each in zip(*kept, strict=True)]


def in_common(servers: Sequence[Sequence[float]]) -> float:
    """Spread of the servers' means beside what the spread of their launches makes of it: 1 where they share nothing."""
    means = [statistics.fmean(each) for each in servers]
    return statistics.stdev(means) / (spread(servers) * math.sqrt(statistics.fmean(1 / len(each) for each in servers)))


def furthest(logs: Sequence[float], expected: float) -> float:
    """How far from what is expected the 95 % interval reaches, as a ratio above 1."""
    low, high = paired.paired([math.exp(log) for log in logs], [expected] * len(logs)).saving_interval()
    return max(1 - low, 1 / (1 - high))


@pytest.fixture
def launches(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("launches", default=20))


def prepared(bench: Bench) -> Launcher:
    if not bench.measuring:
        pytest.skip("many trainings, which tests/run/test_turns_run.py has in small")
    launcher = Launcher()
    launcher.warm()
    return launcher


def test_turns_scatter_less(bench: Bench, launches: int, tmp_path: Path) -> None:
    launcher = prepared(bench)
    ways = [Way(tmp_path / name, f'"{name}"', launcher, QUICK) for name in ("auto", "off")]
    for number in range(launches):
        for way in ways if number % 2 else reversed(ways):
            way.launch(number)
    after, cells = "one after the other", [*ways[0].logs]
    twins, every = ([spreads(way, labels) for way in ways] for labels in (["twin"], cells))
    bench.cost(f"spread of ln(twin / plain), {launches} launches", *twins, of=after, goal=0.6)
    bench.cost(f"the same, pooled over {len(cells)} cells", *every, of=after)


def test_turns_take_no_side(bench: Bench, launches: int, tmp_path: Path) -> None:
    way = Way(tmp_path / "auto", '"auto"', prepared(bench), KNOWN, epochs=4)
    for number in range(launches):
        way.launch(number)
    for label, expected in EXPECTED.items():
        ends = [furthest(each, expected) for each in leaving_one_out(way.logs[label])]
        bench.cost(
            f"{label}: what is furthest from {expected:g} in the 95 % interval", ends, 1.0, of="it", goal=FURTHEST
        )


def test_the_launches_of_one_server_share_no_side(bench: Bench, tmp_path: Path) -> None:
    twins: list[list[float]] = []
    for server in range(SERVERS):
        way = Way(tmp_path / str(server), '"auto"', prepared(bench), QUICK)
        for number in range(OF_EACH):
            way.launch(OF_EACH * server + number)
        twins.append(way.logs["twin"])
    kept = [
        [leaving_one_out(each)[number] if each is left else each for each in twins]
        for left in twins
        for number in range(OF_EACH)
    ]
    bench.cost(
        f"twins of {SERVERS} servers: spread of their means",
        [in_common(each) for each in kept],
        1.0,
        of="by their launches' own spread",
        goal=IN_COMMON,
    )
