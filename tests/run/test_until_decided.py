"""Real runs that end when they know enough: the looks are declared, taken once, and survive an interruption.

They go by a virtual clock (fakes/in_children.py): a forward pass takes what is written here, and no machine decides
what is known after three blocks.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import energybench, start
from fakes import in_children
from tiny_runs import contents, only_run, wait_for, write_suite

from energybench.runner import runner
from energybench.runner.progress import Progress
from energybench.suite.suite import load
from energybench.verdict import interim_notes as looked

pytestmark = pytest.mark.slow

SLOW = '''"""drowsy: sleeps in every epoch, so that nothing about it is in doubt"""
import time
from energybench import Method


class Drowsy(Method):
    def epoch(self, run, data, inner):
        time.sleep(0.7)
        inner(data)
'''
TIMED = '''
import random, time
from energybench.workloads.tasks.classification import Classification


class Timed(Classification):
    """A forward pass takes 10 ms; in every trial up to a fifth more or less, by its seed and methods."""

    def forward(self, run, batch):
        of = random.Random(f"{run.seed} {[method.name for method in run.methods]}")
        time.sleep(0.01 * of.uniform(0.8, 1.2))
        return super().forward(run, batch)
'''
WORKLOAD = """[[workload]]
name = "w"
task = "timed.py:Timed"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 2, lr = 0.1 }
"""
VIRTUAL = in_children.environment(clock="virtual")
DROWSY = '\n[[method]]\nuse = "drowsy.py"\ntuned = { trials = 4 }\n'


def looks(folder: Path) -> tuple[list[int], list[int], int | None, bool]:
    run = contents(folder)[0]
    assert run.looks is not None
    return run.looks.at, run.looks.taken, run.closed, run.finished


def suite(folder: Path, methods: str = DROWSY, **trials: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "drowsy.py").write_text(SLOW)
    (folder / "timed.py").write_text(TIMED)
    usual = {"blocks": 3, "blocks_max": 12, "seed": 3, "twin": False, "workload": WORKLOAD}
    return write_suite(folder, methods, **usual | trials)


def test_a_clear_case_ends_at_the_first_look_and_blocks_added_later_are_exploratory(tmp_path: Path) -> None:
    file = suite(tmp_path)
    done = energybench("run", file, "--until-decided", "--json", cwd=tmp_path, **VIRTUAL)
    assert done.returncode == 0, done.stderr
    assert "looks after 3, 6, 12 blocks" in done.stderr
    assert "look after 3 blocks: every comparison is decided" in done.stderr
    folder = only_run(tmp_path)
    assert looks(folder) == ([3, 6, 12], [3], 3, True)
    facts = json.loads(done.stdout)
    assert facts["workloads"][0]["rows"][0]["verdict"] == "slower"
    look = {"number": 1, "of": 3, "blocks": 3, "next": None, "most": 12, "alpha_fraction": 0.25}
    assert facts["look"] == look | {"share": 0.25}  # under its name of before, too
    assert "look 1 of 3" in facts["look_note"]
    assert facts["not_run"] == []
    run, trials, _ = contents(folder)
    assert {t.block for t in trials.values()} == {0, 1, 2}
    assert [cell.tuned_trials for cell in run.cells if cell.role == "method"] == [4]

    add = ("run", file, "--until-decided", "--add-blocks", "1")
    more = energybench(*add, "--json", cwd=tmp_path, **VIRTUAL)
    assert more.returncode == 0, more.stderr
    assert only_run(tmp_path) == folder
    after = json.loads(more.stdout)
    assert after["workloads"] == facts["workloads"]
    assert [(each["blocks"], each["measured"]["n"]) for each in after["added"]] == [(1, 4)]
    assert looks(folder) == ([3, 6, 12], [3], 3, True)
    again = energybench(*add, cwd=tmp_path, **VIRTUAL)  # nothing is left to add
    assert again.returncode == 0, again.stderr
    assert len(contents(folder)[1]) == 4 * 2


def test_the_end_of_the_time_ends_it_after_a_block_and_the_same_command_continues(tmp_path: Path) -> None:
    file = suite(tmp_path, blocks=4, blocks_max=8)
    command = ("run", file, "--until-decided", "--max-time")
    short = energybench(*command, "0.001 ms", cwd=tmp_path, **VIRTUAL)
    assert short.returncode == 0, short.stderr
    assert "time is up after 1 of 8 blocks; the same command continues" in short.stderr
    folder = only_run(tmp_path)
    assert looks(folder) == ([4, 8], [], None, False)  # one block is no look
    assert (folder / "report.md").exists()
    assert "No verdict yet: 1 of 8 blocks" in (folder / "report.md").read_text()
    for _ in range(2):
        again = energybench(*command, "0.001 ms", cwd=tmp_path, **VIRTUAL)
        assert again.returncode == 0, again.stderr
    at, taken, closed, finished = looks(only_run(tmp_path))
    assert (at, taken) == ([4, 8], [3])  # the third block's end is a look, and has its share
    assert (closed, finished) == (3, True)  # and it decided
    assert contents(folder)[0].invocations[0].outcome == "time is up after 1 of 8 blocks"


def test_a_look_survives_an_interruption_and_is_never_taken_twice(tmp_path: Path) -> None:
    """Ctrl-C after the first look and a block more of a hopeless comparison: the same command goes on to the next."""
    methods = '\n[[method]]\nuse = "dropout"\n'
    holder = Path(__file__).with_name("test_interruption.py").read_text().split("HOLDER = '''")[1].split("'''")[0]
    (tmp_path / "holder.py").write_text(holder)
    file = suite(tmp_path, methods + '\n[[method]]\nuse = "holder.py"\n', blocks_max=6, limit="10 min")
    (tmp_path / "hold").write_text(str(3 + 4))  # seed + block: waits in the fifth
    command = ("run", file, "--until-decided", "--set", "accept.noise=0.1 %")
    running = start(*command, cwd=tmp_path, **VIRTUAL)
    try:
        wait_for((tmp_path / "held").exists, 600)
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == 130, errors
    folder = only_run(tmp_path)
    before = looks(folder)
    assert before[:2] == ([3, 6], [3])
    (tmp_path / "hold").unlink()
    done = energybench(*command, cwd=tmp_path, **VIRTUAL)
    assert done.returncode == 0, done.stderr
    assert only_run(tmp_path) == folder
    assert looks(folder)[:2] == ([3, 6], [3, 6])
    assert "look after 3 blocks" not in done.stderr
    assert contents(folder)[0].finished


def test_what_was_begun_with_looks_is_not_continued_without_them(tmp_path: Path) -> None:
    file = suite(tmp_path, blocks_max=6)
    energybench("run", file, "--until-decided", "--max-time", "1 ms", cwd=tmp_path)
    folder = only_run(tmp_path)
    done = energybench("run", file, "--out", folder, cwd=tmp_path)
    assert (done.returncode, "error[E603]" in done.stderr) == (2, True)


def test_there_must_be_a_finished_run_to_add_blocks_to(tmp_path: Path) -> None:
    done = energybench("run", suite(tmp_path), "--add-blocks", "2", cwd=tmp_path)
    assert (done.returncode, "error[E607]" in done.stderr) == (2, True)
    assert "hint:" in done.stderr


COMMANDS = """schema = 1
suite = "commands"
[trials]
blocks = 3
blocks_max = 6
twin = false
warmup = "0 s"
[measure]
energy = "off"
[[workload]]
name = "w"
command = "true"
quality = "none"
[[method]]
name = "other"
command = "true"
"""


def test_a_look_that_was_interrupted_before_it_decided_was_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: Callable[[], Progress]
) -> None:
    """Ctrl-C while the comparisons are computed: the run ends at the same look as one that nobody interrupted.

    What they come to is given: every one is decided.
    """
    (tmp_path / "commands.toml").write_text(COMMANDS)
    folder = tmp_path / "run"

    def go_on() -> int:
        given = load(tmp_path / "commands.toml")
        return runner.run(given, out=folder, progress=quiet(), until_decided=True)[0]

    def interrupt(summary: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(looked, "undecided", interrupt)
    assert go_on() == 130
    assert looks(folder) == ([3, 6], [], None, False)
    monkeypatch.setattr(looked, "undecided", lambda summary: [])
    assert go_on() == 0
    assert looks(folder) == ([3, 6], [3], 3, True)
    assert {t.block for t in contents(folder)[1].values()} == {0, 1, 2}


def test_fewer_added_blocks_than_an_interrupted_call_had_asked_for_are_added(tmp_path: Path) -> None:
    """Two were to be added and one was: whoever asks for one has it, a control's epochs being told block by block."""
    file = write_suite(tmp_path, '\n[[method]]\nuse = "gradsamp"\nskip = "every:2"\n', twin=False)
    for options in ((), ("--add-blocks", "2")):
        done = energybench("run", file, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    for record in (folder / "records").glob("b2-*.json"):
        record.unlink()
    again = energybench("run", file, "--add-blocks", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {t.block for t in contents(folder)[1].values()} == {0, 1}
    assert energybench("run", file, "--add-blocks", "2", cwd=tmp_path).returncode == 0
    assert {t.block for t in contents(folder)[1].values()} == {0, 1, 2}
