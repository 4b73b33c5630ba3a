"""Methods that misbehave: each becomes a record with its reason, and the others go on."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
from command_line import energybench
from faults import fault
from tiny_runs import Done, contents, only_run, processes_with, wait_for, write_suite

from energybench.records.record import Trial

pytestmark = pytest.mark.slow

# Each misbehaves in its trial and in its counting run, and not in the warm-up, which enters `step` but never `epoch`.
# Those that wait do so in the trial alone: a counting run has three times its limit.
BASE = """
import os, resource, signal, subprocess, sys, time
from dataclasses import dataclass
import torch
from energybench import Method


"""
WAITS = ("sleeps", "stubborn")
METHODS = {
    "raises": """
        raise ValueError("this method is broken")""",
    "diverges": """
        with torch.no_grad():
            for p in run.model.parameters():
                p.fill_(float("nan"))
        inner(data)""",
    "hungry": """
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        [bytearray(1 << 20) for _ in range(1 << 10)]""",
    "greedy": """
        torch.empty(1 << 50, dtype=torch.uint8)""",
    "sleeps": """
        time.sleep(600)""",
    "exits": """
        os._exit(7)""",
    "shoots_itself": """
        os.kill(os.getpid(), signal.SIGKILL)""",
    "stubborn": """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", child], env={**os.environ, "GRANDCHILD_OF": GRANDCHILD})
        while True:
            time.sleep(1)""",
    "leaves_a_child": """
        child = "import time; time.sleep(600)"
        for _ in range(8):
            subprocess.Popen([sys.executable, "-c", child], env={**os.environ, "GRANDCHILD_OF": GRANDCHILD},
                             start_new_session=True)
        inner(data)""",
    "quits": """
        sys.exit("enough")""",
    "talks_nonsense": """
        inner(data)""",
    "fine": """
        inner(data)""",
}
DEAD = (
    BASE
    + '''
class Dead(Method):
    """dead: its epochs train nothing, so its `update` can never be entered"""

    replaces = frozenset({"epoch"})

    def epoch(self, run, data, inner):
        run.tally.mark(self)

    def update(self, run, part, inner):
        inner(part)
'''
)
EXPECTED = {
    "raises": ("failed", "ValueError: this method is broken"),
    "diverges": ("diverged", "nan"),
    "hungry": ("out_of_memory", "MemoryError"),
    "greedy": ("out_of_memory", "allocate"),
    "sleeps": ("timeout", "8 s"),
    "exits": ("failed", "status 7"),
    "shoots_itself": ("out_of_memory", "SIGKILL"),
    "stubborn": ("timeout", "8 s"),
    "quits": ("failed", "status 1"),
    "dead": ("invalid", "dead.update"),
}
FINE = ["baseline", "twin", "fine", "leaves_a_child", "talks_nonsense"]


def source(name: str, marker: str) -> str:
    body = METHODS[name].replace("GRANDCHILD}", f'"{marker}"}}')
    extra = ""
    if name == "talks_nonsense":
        facts = "{'loss': float('nan'), 'far': float('inf'), 'near': 1.5}"
        extra = f"\n    def diagnostics(self):\n        return {facts}\n"
    return f'''{BASE}
WAITS = {name in WAITS}


@dataclass
class Bad(Method):
    """{name}: misbehaves"""

    def epoch(self, run, data, inner):
        if WAITS and type(run).__name__ in ("CountedRun", "TimedRun"):
            return inner(data){body}
{extra}'''


@pytest.fixture(scope="module")
def marker() -> str:
    return f"energybench-test-{os.getpid()}-{time.time_ns()}"


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory, marker: str) -> Done:
    home = tmp_path_factory.mktemp("failing")
    for name in METHODS:
        (home / f"{name}.py").write_text(source(name, marker))
    (home / "dead.py").write_text(DEAD)
    names = [*METHODS, "dead"]
    tables = "".join(f'\n[[method]]\nname = "{n}"\nuse = "{n}.py:{"Dead" if n == "dead" else "Bad"}"\n' for n in names)
    suite = write_suite(home, tables, limit="8 s")
    process = energybench("run", suite, cwd=home)
    return Done(process, home, suite, only_run(home))


def by_method(done: Done) -> dict[str, Trial]:
    return {t.method: t for t in contents(done.folder)[1].values()}


def test_every_failure_is_a_record_and_the_exit_code_is_3(failing: Done) -> None:
    assert failing.process.returncode == 3, failing.process.stderr
    assert set(by_method(failing)) == set(EXPECTED) | set(FINE)


@fault("raises")
@fault("out of memory")
@fault("ignores sigterm")
@pytest.mark.parametrize("method", EXPECTED)
def test_a_failed_trial_says_how_and_why(failing: Done, method: str) -> None:
    status, reason = EXPECTED[method]
    trial = by_method(failing)[method]
    assert (trial.status, reason in (trial.reason or "")) == (status, True), trial.reason


@pytest.mark.parametrize("method", FINE)
def test_the_others_go_on(failing: Done, method: str) -> None:
    trial = by_method(failing)[method]
    assert (trial.status, trial.reason) == ("ok", None)
    assert trial.quality["accuracy"] >= 0


def test_an_error_is_told_with_the_line_of_the_users_own_file(failing: Done) -> None:
    lines = (failing.home / "raises.py").read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "this method is broken" in line)
    assert f"raises.py:{number}" in (by_method(failing)["raises"].reason or "")


def test_a_timeout_ends_at_its_limit_and_not_when_the_method_would_have(failing: Done) -> None:
    in_order = sorted(by_method(failing).values(), key=lambda t: t.position)
    starts = [datetime.fromisoformat(t.started_at) for t in in_order]
    starts.append(datetime.fromisoformat(contents(failing.folder)[0].invocations[0].ended_at or ""))
    for trial, started, after in zip(in_order, starts, starts[1:], strict=False):
        if trial.method in ("sleeps", "stubborn"):  # they wanted ten minutes; times are in whole seconds
            assert 3 <= (after - started).total_seconds() < 600


@fault("strays")
def test_a_trials_descendants_end_with_it(failing: Done, marker: str) -> None:
    assert failing.process.returncode == 3
    wait_for(lambda: not processes_with(marker))


def test_a_dead_layer_is_flagged_by_its_code(failing: Done) -> None:
    trial = by_method(failing)["dead"]
    assert [(f.code, f.detail) for f in trial.flags if f.code == "dead_layer"] == [("dead_layer", "dead.update")]


def test_a_diagnostic_that_is_no_number_is_null(failing: Done) -> None:
    diagnostics = by_method(failing)["talks_nonsense"].diagnostics
    assert list(diagnostics.values()) == [{"loss": None, "far": None, "near": 1.5}]


def test_a_loss_that_is_no_number_is_null_in_the_curve(failing: Done) -> None:
    curve = by_method(failing)["diverges"].curve
    assert [point["loss"] for point in curve] == [None]


def test_the_report_names_every_failure_with_its_reason(failing: Done) -> None:
    report = (failing.folder / "report.md").read_text()
    for method in EXPECTED:
        assert method in report
    for text in ("this method is broken", "status 7", "8 s", "dead.update"):
        assert text in report
        assert text in " ".join(failing.process.stdout.split()) + failing.process.stderr


def test_only_trials_that_said_something_leave_a_log(failing: Done) -> None:
    logs = {p.name for p in (failing.folder / "logs").iterdir()}
    assert all((failing.folder / "logs" / name).stat().st_size for name in logs)
    assert any("raises" in name for name in logs)
    assert not any(".baseline" in name or ".fine" in name for name in logs)
    text = next(p for p in (failing.folder / "logs").iterdir() if "raises" in p.name).read_text()
    assert "Traceback" in text


def test_a_file_that_ends_the_process_while_it_is_loaded_is_a_message_and_not_a_trace(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import os\nos._exit(7)\n")
    suite = write_suite(tmp_path, '\n[[method]]\nuse = "bad.py"\n')
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode == 2
    assert "error[E606]" in done.stderr
    assert "status 7" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "reports").exists()


def test_a_loss_that_fails_in_the_baseline_too_still_ends_in_a_report(tmp_path: Path) -> None:
    workload = """[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 2, lr = 1e30 }
"""
    done = energybench("run", write_suite(tmp_path, workload=workload), cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    folder = only_run(tmp_path)
    assert {t.status for t in contents(folder)[1].values()} == {"diverged"}
    assert "diverged" in (folder / "report.md").read_text()


def test_subprocess_of_the_test_itself_is_not_mistaken_for_a_descendant(marker: str) -> None:
    child = subprocess.Popen(["sleep", "30"], env={**os.environ, "GRANDCHILD_OF": marker})
    try:
        assert processes_with(marker) == [child.pid]  # so the assertion above can fail
    finally:
        child.kill()
        child.wait()
