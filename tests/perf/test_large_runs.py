"""Reports of runs of ten and fifty thousand trials, a page of a hundred workloads, and what a record takes in memory.

Whole commands, with their start: CPU seconds against a fixed piece of pure Python. Wanted are 5 s for 10,000 trials, 25
for 50,000 and 20 for the page, on a quiet core of an AMD EPYC, on which the piece takes 37 ms; and 10 kB a record.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from perf.ratios import Bench, Side
from perf.test_report_speed import cpu, unit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
UNIT_S = 0.037
RECORD_B = 10_000
SMOKE = (2, 3)
# (workloads, blocks) of the usual run, which has 18 trials in a block, and the seconds that are wanted
REPORTS = {
    "10,000 trials, many workloads": ((56, 10), 5.0),
    "10,000 trials, many blocks": ((4, 140), 5.0),
    "50,000 trials": ((280, 10), 25.0),
}


@dataclass(frozen=True)
class Used:
    """Of a command: CPU seconds, and bytes of memory at most."""

    cpu_s: float
    most_b: int


# A small process between: the most memory of a process counts what its parent had when it was started.
BETWEEN = """import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "energybench", *sys.argv[1:]], os.environ)
_, status, used = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, file=sys.stderr)
"""


def command(*words: str | Path) -> Used:
    """Raises CalledProcessError where it ends with an error."""
    called = [sys.executable, "-S", "-c", BETWEEN, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(called, env=environment, capture_output=True, text=True, check=True)
    code, cpu_s, most_b = done.stderr.splitlines()[-1].split()
    if int(code):
        raise subprocess.CalledProcessError(int(code), called, done.stdout, done.stderr)
    return Used(float(cpu_s), int(most_b))


def reporting(*words: str | Path) -> Side:
    return lambda: command("report", *words).cpu_s


@pytest.fixture
def folder() -> Iterator[Path]:
    """Gone when its test ends: a run of fifty thousand takes half a gigabyte."""
    with TemporaryDirectory() as place:
        yield Path(place)


@pytest.mark.parametrize("name", REPORTS)
def test_reporting_a_large_run(name: str, bench: Bench, folder: Path) -> None:
    from large_runs import USUAL, made

    shape, wanted_s = REPORTS[name]
    made(folder / "run", *bench.size(shape, smoke=SMOKE), USUAL)
    times = bench.turns({"ours": reporting(folder / "run"), "unit": cpu(unit)})
    bench.cost(f"report of {name}", times["ours"], times["unit"], of="sorting 300,000 strings", goal=wanted_s / UNIT_S)


def test_a_page_of_a_hundred_workloads(bench: Bench, folder: Path) -> None:
    from large_runs import USUAL, made

    made(folder / "run", *bench.size((100, 5), smoke=SMOKE), USUAL)
    times = bench.turns({"ours": reporting(folder / "run", "--html"), "unit": cpu(unit)})
    bench.cost("page of 100 workloads", times["ours"], times["unit"], of="sorting 300,000 strings", goal=20 / UNIT_S)


@pytest.mark.parametrize("model", ["usual", "on a card"])
def test_what_a_record_takes_in_memory(model: str, bench: Bench, folder: Path) -> None:
    """The most that a report of many takes more than one of a few, divided by how many more they are."""
    from large_runs import ON_A_CARD, USUAL, made

    frozen = USUAL if model == "usual" else ON_A_CARD
    few = made(folder / "few", *SMOKE, frozen)
    many = made(folder / "many", *bench.size((28, 10), smoke=(3, 3)), frozen)

    def each_b() -> float:
        return (command("report", folder / "many").most_b - command("report", folder / "few").most_b) / (many - few)

    times = bench.turns({"ours": each_b})
    bench.cost(f"memory for a record, {model}", times["ours"], float(RECORD_B), of="10 kB", goal=1)
