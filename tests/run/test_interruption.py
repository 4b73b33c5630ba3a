"""Stopped at any moment, by any signal, a run leaves whole files and the same command continues it."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from command_line import PATIENCE_S, energybench, start
from faults import fault
from tiny_runs import contents, only_run, processes_in, wait_for, write_suite

from energybench.records.reader import read_folder
from energybench.records.record import Cell
from energybench.runner import plan_request
from energybench.runner.progress import Progress
from energybench.runner.schedule import ORDER_SEED, order
from energybench.suite.suite import load

pytestmark = pytest.mark.slow

BLOCKS = 3
HOLDER = '''"""holder: waits in the block whose seed stands in the file `hold`, for as long as it is there"""
import time
from pathlib import Path
from energybench import Method

HERE = Path(__file__).parent


class Holder(Method):
    def epoch(self, run, data, inner):
        while (HERE / "hold").exists() and (HERE / "hold").read_text() == str(run.seed):
            (HERE / "held").touch()
            time.sleep(0.02)
        inner(data)
'''
METHODS = '\n[[method]]\nuse = "holder.py"\n\n[[method]]\nuse = "dropout"\n'
CELLS = [
    Cell(workload="w", method=m, role=r)
    for m, r in (("baseline", "baseline"), ("twin", "twin"), ("holder", "method"), ("dropout", "method"))  # type: ignore[arg-type]
]


def names_of(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "records").glob("*.json"))


def assert_whole(folder: Path) -> None:
    """Every file can be read, and there is no lock, no half of a file and no empty log."""
    read_folder(folder)
    kinds = {p.suffix for p in folder.rglob("*") if p.is_file()}
    assert kinds <= {".json", ".md", ".svg"}, list(folder.rglob("*"))


def assert_complete(folder: Path) -> None:
    """Each cell of each block stands beside a baseline of its own invocation, and nothing is done twice for nothing."""
    trials = contents(folder)[1].values()
    assert {t.status for t in trials} == {"ok"}
    baselines = {(t.block, t.invocation) for t in trials if t.method == "baseline"}
    paired = Counter((t.block, t.method) for t in trials if (t.block, t.invocation) in baselines)
    assert set(paired) == {(b, c.method) for b in range(BLOCKS) for c in CELLS}
    assert all(count == 1 for (_, method), count in paired.items() if method != "baseline")


@fault("ctrl-c")
@fault("sigterm")
@fault("two runs")
@fault("changed settings")
@pytest.mark.parametrize(
    ("number", "whole_group", "before"),
    [(signal.SIGINT, True, "baseline"), (signal.SIGTERM, False, "twin")],
    ids=["Ctrl-C after the block's baseline", "SIGTERM before the block's baseline"],
)
def test_an_interrupted_run_continues_where_it_stood(
    tmp_path: Path, number: int, whole_group: bool, before: str
) -> None:
    """The second block stops at its third trial: `before` and another one are done."""
    seed = next(
        s
        for s in range(1000)
        if [c.method for c in order(CELLS, 1, s)].index("holder") == 2
        and ([c.method for c in order(CELLS, 1, s)].index("baseline") < 2) == (before == "baseline")
    )
    (tmp_path / "holder.py").write_text(HOLDER)
    (tmp_path / "hold").write_text(str(seed + 1))
    suite = write_suite(tmp_path, METHODS, blocks=BLOCKS, seed=seed)
    running = start("run", suite, cwd=tmp_path, **{ORDER_SEED: str(seed)})
    try:
        wait_for((tmp_path / "held").exists)
        folder = only_run(tmp_path)
        assert len(names_of(folder)) == 4 + 2

        second = energybench("run", suite, cwd=tmp_path)  # nobody else may write there meanwhile
        assert second.returncode == 2
        assert "error[E604]" in second.stderr
        assert "hint:" in second.stderr
        assert running.poll() is None

        (os.killpg if whole_group else os.kill)(running.pid, number)
        _, errors = running.communicate(timeout=PATIENCE_S)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "The same command continues" in errors
    assert "Traceback" not in errors
    assert_whole(folder)
    assert len(names_of(folder)) == 4 + 2
    run, interrupted, _ = contents(folder)
    assert (run.finished, [i.outcome for i in run.invocations]) == (False, ["interrupted"])
    report = energybench("report", folder, cwd=tmp_path)  # what there is can be read
    assert report.returncode == 0, report.stderr

    if number == signal.SIGINT:
        _assert_refusals(folder, suite, tmp_path)

    (tmp_path / "hold").unlink()
    again = energybench("run", suite, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert only_run(tmp_path) == folder
    assert_whole(folder)
    run, trials, _ = contents(folder)
    assert run.finished
    assert [i.outcome for i in run.invocations] == ["interrupted", "finished"]
    assert_complete(folder)
    assert all(trials[name] == record for name, record in interrupted.items())  # nothing was touched

    second_time = Counter((t.block, t.method) for t in trials.values() if t.invocation == 1)
    had = [c.method for c in order(CELLS, 1, seed)][:2]
    repeated = {"baseline"} if before == "baseline" else set(had)  # what had no baseline has no partner
    left = {c.method for c in CELLS} - set(had) | repeated
    expected = {(1, m) for m in left} | {(2, c.method) for c in CELLS}
    assert set(second_time) == expected
    assert max(second_time.values()) == 1

    finished = energybench("run", suite, "--out", folder, cwd=tmp_path)
    assert finished.returncode == 2
    assert "error[E602]" in finished.stderr
    assert str(folder) in finished.stderr


def _assert_refusals(folder: Path, suite: Path, home: Path) -> None:
    """An unfinished run is not mixed with other settings, and a broken record is told by its path."""

    def refused(out: Path, *overrides: str) -> tuple[list[str], str]:
        words = [word for override in overrides for word in ("--set", override)]
        done = energybench("run", suite, "--out", out, *words, cwd=home)
        assert done.returncode == 2
        return re.findall(r"error\[(E\d+)\]", done.stderr), " ".join(done.stderr.split())

    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for override in (
        "trials.seed=999",
        "workload.train.lr=0.2",
        "trials.blocks=4",
        "accept.noise=5 %",
        "method[dropout].p=0.5",
    ):
        codes, said = refused(folder, override)
        assert codes == ["E603"], override
        assert str(folder) in said
    holder = (home / "holder.py").read_text()
    (home / "holder.py").write_text(holder + "\n# changed\n")
    codes, said = refused(folder)
    assert codes == ["E603"]
    assert "Changed: the file of method 'holder'" in said
    (home / "holder.py").write_text(holder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before

    broken = home / "broken"
    shutil.copytree(folder, broken)
    record = sorted((broken / "records").iterdir())[0]
    record.write_bytes(record.read_bytes()[:100])
    codes, said = refused(broken)
    assert codes == ["E601"]
    assert str(record) in said
    done = energybench("report", broken, cwd=home)
    assert (done.returncode, "error[E601]" in done.stderr, str(record) in done.stderr) == (2, True, True)
    shutil.rmtree(broken)


def test_renaming_or_skipping_a_method_is_another_run(tmp_path: Path, quiet: Callable[[], Progress]) -> None:
    method = '\n[[method]]\nname = "a"\nuse = "dropout"\nclaims = { training = "1 %" }\n'
    plan = _planner(tmp_path, quiet)
    first = plan(method)
    assert plan(method) == first
    skip = '\n[[skip]]\nmethod = "a"\nworkload = "w"\nbecause = "it is skipped"\n'
    others = [method.replace('"a"', '"b"'), method + skip, method.replace("1 %", "2 %")]
    assert first not in {plan(other) for other in others}


def _planner(folder: Path, quiet: Callable[[], Progress]) -> Callable[[str], str]:
    from energybench.process.forkserver import Launcher

    def digest(methods: str) -> str:
        return plan_request.plan(load(write_suite(folder, methods)), Launcher(), folder).digest

    return digest


@fault("until finished")
def test_a_run_killed_again_and_again_ends_complete(tmp_path: Path) -> None:
    """kill -9 at random moments, from before its first file to its last block."""
    moments = random.Random(20261121)
    suite = write_suite(tmp_path, METHODS, blocks=BLOCKS, seed=3)
    (tmp_path / "holder.py").write_text(HOLDER.replace("inner(data)", "time.sleep(0.1); inner(data)"))
    reports = tmp_path / "reports" / "tiny"
    for wanted in (None, 0, 5):  # records to wait for; None: at any time of the plan
        running = start("run", suite, cwd=tmp_path)
        if wanted is None:
            time.sleep(moments.uniform(0.2, 1.5))
        else:
            wait_for(partial(_has_records, reports, wanted, running))
            time.sleep(moments.uniform(0, 0.6))
        assert running.poll() is not None or processes_in(tmp_path)  # so that something can be left
        running.kill()
        running.communicate()
        wait_for(lambda: not processes_in(tmp_path))  # nothing goes on without its parent
        for folder in reports.glob("*"):
            if (folder / "run.json").exists():
                read_folder(folder)
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    assert_whole(folder)
    assert_complete(folder)
    outcomes = [i.outcome for i in contents(folder)[0].invocations]
    assert outcomes[-1] == "finished"
    assert set(outcomes[:-1]) <= {None}


def _has_records(reports: Path, count: int, running: subprocess.Popen[str]) -> bool:
    enough = reports.exists() and len(list(reports.glob("*/records/*.json"))) >= count
    return enough or running.poll() is not None


@fault("interrupted check")
def test_an_interrupt_while_the_suite_is_checked_leaves_nothing(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    running = start("run", suite, cwd=tmp_path, TMPDIR=str(scratch))
    wait_for(lambda: list(scratch.glob("energybench-*/plan.in.json")))
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "reports").exists()
    assert list(scratch.glob("energybench-*")) == []


HALF_SAID = """import os
import multiprocessing.forkserver as server
from energybench.process.forkserver import Launcher
Launcher().warm()
for said in (b"", b"\\x80\\x04\\x95"):  # nothing; a pickle that breaks off
    told, line = server.connect_to_new_process([])
    os.write(line, said)
    os.close(line)
    server.read_signed(told)
    assert server.read_signed(told) == 1
"""


@fault("interrupted check")
def test_a_caller_that_is_interrupted_while_it_says_what_to_start_leaves_no_traceback(tmp_path: Path) -> None:
    script = tmp_path / "half_said.py"
    script.write_text(HALF_SAID)
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ended.returncode, ended.stderr) == (0, "")
