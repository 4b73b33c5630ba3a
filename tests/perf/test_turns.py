"""How much less equal trainings scatter when they take turns than when they run one after the other, for the same work.

Both ways alternate, each launch with processes of its own: the spread of ln(twin / plain training) over launches, with
quick's own methods beside them. The ratio of two spreads has no rounds; each round here leaves one launch out.
"""

from __future__ import annotations

import io
import math
import statistics
from pathlib import Path

from perf.ratios import Bench
from rich.console import Console

from energybench.process.forkserver import Launcher
from energybench.records.record import Trial
from energybench.records.run_folder import Folder
from energybench.runner import schedule
from energybench.runner.plan_request import plan
from energybench.runner.progress import Progress
from energybench.runner.trials import Trials
from energybench.suite.suite import load

SUITE = """schema = 1
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
data = {{ use = "mnist5k", batch = 32, subset = {subset}, test_subset = 100 }}
train = {{ epochs = {epochs}, lr = 0.2, momentum = 0.9, schedule = "cosine" }}
[[method]]
use = "gradsamp"
skip = "every:2"
control = "none"
[[method]]
use = "ssprop"
drop = 0.8
[[method]]
name = "ssprop+dropout"
use = ["ssprop", "dropout"]
ssprop = {{ drop = 0.8 }}
dropout = {{ p = 0.2 }}
"""
LAUNCHES = 20


class Way:
    """One way of running a block, again and again, each time with fresh processes."""

    def __init__(self, place: Path, turns: str, launcher: Launcher, subset: int, epochs: int) -> None:
        place.mkdir()
        (place / "suite.toml").write_text(SUITE.format(turns=turns, subset=subset, epochs=epochs))
        suite = load(place / "suite.toml")
        quiet = Progress(Console(file=io.StringIO()), Console(file=io.StringIO()), quiet=True)
        self.planned = plan(suite, launcher, place)
        self.folder = Folder(place / "run")
        self.folder.path.mkdir()
        self.trials = Trials(self.planned, self.folder, launcher, place, quiet, order_seed=1)
        self.logs: list[float] = []

    def launch(self, number: int) -> None:
        """One block; the seed is always block 0's, so that every launch does the same work."""
        slots = schedule.missing(self.planned.cells, 1, number, [], number)
        for each in schedule.by_workload(slots):
            self.trials.run(each, 1)
        made: list[Trial] = [trial for trial in self.folder.trials() if trial.invocation == number]
        seconds = {trial.role: trial.train.wall_s for trial in made if trial.train}
        self.logs.append(math.log(seconds["twin"] / seconds["baseline"]))


def leaving_one_out(logs: list[float]) -> list[float]:
    return [statistics.stdev(logs[:number] + logs[number + 1 :]) for number in range(len(logs))]


def test_turns_scatter_less(bench: Bench, tmp_path: Path) -> None:
    launcher = Launcher()
    launcher.warm()
    subset, epochs = bench.size((2500, 3), (400, 2))
    ways = [Way(tmp_path / name, f'"{name}"', launcher, subset, epochs) for name in ("auto", "off")]
    for number in range(bench.size(LAUNCHES, 3)):
        for way in ways if number % 2 else reversed(ways):
            way.launch(number)
    in_turns, alone = (leaving_one_out(way.logs) for way in ways)
    bench.cost(
        f"spread of ln(twin / plain) over {len(ways[0].logs)} launches",
        in_turns,
        alone,
        of="one after the other",
        goal=0.6,
    )
