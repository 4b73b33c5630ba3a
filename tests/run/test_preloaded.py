"""A command line that is forked is the one that a fresh interpreter runs: words, exit codes, folder, environment."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from command_line import PATIENCE_S, SERVER, Forked, energybench, environment, start
from fakes import in_children
from fakes.nvml import FakeDriver, FakeGpu
from fakes.powercap import Powercap
from tiny_runs import contents, only_run, wait_for, write_suite

pytestmark = pytest.mark.slow

BROKEN = '\n[[method]]\nuse = "dropuot"\n'


@pytest.mark.parametrize(
    "words",
    [["list", "--json"], ["check", "tiny.toml"], ["show", "nothing"], ["ru"], ["--version"], ["run", "--help"]],
    ids=lambda words: " ".join(words),
)
def test_both_say_the_same_and_end_alike(tmp_path: Path, words: list[str]) -> None:
    write_suite(tmp_path, BROKEN)
    forked, fresh = (energybench(*words, cwd=tmp_path, fresh=fresh) for fresh in (False, True))
    assert forked.returncode == fresh.returncode
    for ours, theirs in ((forked.stdout, fresh.stdout), (forked.stderr, fresh.stderr)):
        assert ours.split() == theirs.replace("python -m energybench", "energybench").split()


def test_both_train_to_the_same_weights_in_the_folder_they_were_started_in(tmp_path: Path) -> None:
    ends = []
    for fresh in (False, True):
        home = tmp_path / str(fresh)
        suite = write_suite(home, '\n[[method]]\nuse = "dropout"\n')
        done = energybench("run", suite, cwd=home, fresh=fresh, TMPDIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        run, trials, counting_runs = contents(only_run(home))
        assert run.finished
        ends.append(
            {
                name: (trial.quality, [point["loss"] for point in trial.curve], trial.steps)
                for name, trial in trials.items()
            }
            | {name: counting_run.counted_flop for name, counting_run in counting_runs.items()}
        )
    assert ends[0] == ends[1]
    assert list(tmp_path.glob("energybench-*")) == []  # nothing is left behind


def test_what_is_read_at_the_start_of_an_interpreter_gets_a_fresh_one(tmp_path: Path) -> None:
    assert SERVER.knows(environment())
    assert SERVER.knows(environment(COLUMNS="40", TMPDIR=str(tmp_path), ENERGYBENCH_SYSFS="/nowhere"))
    for name in ("PYTHONHASHSEED", "PYTHONPATH", "LD_PRELOAD", "LANG", "OMP_NUM_THREADS", "MARKER"):
        assert not SERVER.knows(environment(**{name: "1"})), name


def test_fakes_that_a_fork_can_be_given_need_no_fresh_interpreter(tmp_path: Path, fake_nvml_library: Path) -> None:
    """That they are the same in both, test_metered.py shows by the joules that they are billed."""
    cards = FakeDriver(fake_nvml_library, [FakeGpu()]).environment(tmp_path, clock="virtual")
    for fakes in ({"clock": "virtual"}, {"powercap": Powercap(tmp_path / "sys")}, {"clock": "virtual", **cards}):
        given = in_children.environment(**fakes)
        assert SERVER.knows(environment(**given)), fakes
        paths = f"{given['PYTHONPATH']}{os.pathsep}{tmp_path}"
        assert not SERVER.knows(environment(**given | {"PYTHONPATH": paths}))
    assert not SERVER.knows(environment(**in_children.environment(FAKE_BROKEN="sklearn")))  # it is imported there
    assert not SERVER.knows(environment(**cards | {"LD_LIBRARY_PATH": f"{tmp_path}:{cards['LD_LIBRARY_PATH']}"}))


def test_a_signal_ends_what_was_forked_and_everything_below_it(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(
        '"""waits: for ever"""\nimport time\nfrom pathlib import Path\nfrom energybench import Method\n\n\n'
        "class Waits(Method):\n"
        "    replaces = frozenset({'epoch'})\n"
        "    def epoch(self, run, data, inner):\n"
        '        (Path(__file__).parent / "held").touch()\n'
        "        time.sleep(3600)\n",
        encoding="utf-8",
    )
    running = start("run", write_suite(tmp_path, '\n[[method]]\nuse = "waits.py"\n'), cwd=tmp_path)
    assert isinstance(running, Forked)
    wait_for((tmp_path / "held").exists)
    below = psutil.Process(running.pid).children(recursive=True)
    assert len(below) >= 3  # its server, a guard, a trial
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert "The same command continues" in errors
    wait_for(lambda: not [process for process in below if process.is_running()])
