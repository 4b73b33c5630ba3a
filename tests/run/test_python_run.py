"""`energybench.run()` from scripts as people write them: without a guard, in a thread, from standard input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import energybench, environment
from tiny_runs import wait_for, write_suite

from energybench import load
from energybench.process.forkserver import Launcher

DROPOUT = '\n[[method]]\nuse = "dropout"\np = 0.1\n'


def python(folder: Path, text: str, *, piped: bool = False, **extra: str) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(text)
    return subprocess.run(
        [sys.executable, *([] if piped else [str(path)])],
        input=text if piped else None,
        cwd=folder,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once_and_its_results_are_the_reports(tmp_path: Path) -> None:
    write_suite(tmp_path, DROPOUT, blocks=2, twin=False)
    done = python(
        tmp_path,
        (
            "import os, json\n"
            "print('once')\n"
            "open('ran', 'a').write('x')\n"
            "import energybench\n"
            "results = energybench.run('tiny.toml', overrides=['workload.train.epochs=1'])\n"
            "print(results.folders[0])\n"
            "print(results.verdict('w', 'dropout'))\n"
            "print(repr(results))\n"
        ),
    )
    assert done.returncode == 0, done.stderr
    once, folder, verdict, sentence = done.stdout.splitlines()
    assert once == "once"
    assert (tmp_path / "ran").read_text() == "x"
    reported = json.loads(energybench("report", tmp_path / folder, "--json", cwd=tmp_path).stdout)
    assert verdict == reported["workloads"][0]["rows"][0]["verdict"]
    assert reported["headline"] in sentence
    assert "[4/4]" in done.stderr or "runs" in done.stderr  # it says what it does, on stderr
    assert reported["invocations"] == [["energybench", "run", "tiny.toml", "--set", "workload.train.epochs=1"]]
    assert load(tmp_path / folder).frame()["epochs"].tolist() == [1, 1, 1, 1]


@pytest.mark.slow
def test_it_works_in_a_thread_and_from_standard_input_and_says_nothing_if_asked(tmp_path: Path) -> None:
    write_suite(tmp_path, DROPOUT, twin=False)
    done = python(
        tmp_path,
        (
            "import threading, energybench\n"
            "from energybench.suite.suite import load\n"
            "found = []\n"
            "def work():\n"
            "    found.append(energybench.run(load('tiny.toml'), out='out', quiet=True))\n"
            "\n"
            "thread = threading.Thread(target=work)\n"
            "thread.start(); thread.join()\n"
            "print(len(found[0].trials))\n"
        ),
        piped=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


@pytest.mark.slow
def test_mistakes_are_exceptions_all_at_once_and_never_an_exit(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, '\n[[method]]\nuse = "dropot"\n')
    suite.write_text(suite.read_text().replace("epochs = 2", "epoch = 2"))
    done = python(
        tmp_path,
        (
            "import energybench\n"
            "for call in (lambda: energybench.run('tiny.toml', quiet=True), lambda: energybench.run('nowhere')):\n"
            "    try: call()\n"
            "    except energybench.EnergybenchError as error: print(len(error.problems), error.problems[0].code)\n"
        ),
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert int(first.split()[0]) == 2
    assert second.split()[1].startswith("E10")


@pytest.mark.slow
def test_ctrl_c_is_a_keyboard_interrupt_and_the_same_call_continues(tmp_path: Path) -> None:
    holder = Path(__file__).with_name("test_interruption.py").read_text().split("HOLDER = '''")[1].split("'''")[0]
    (tmp_path / "holder.py").write_text(holder)
    (tmp_path / "hold").write_text(str(7 + 1))  # seed + block: waits in the second
    write_suite(tmp_path, '\n[[method]]\nuse = "holder.py"\n', blocks=2, twin=False, limit="60 min")
    script = tmp_path / "script.py"
    script.write_text(
        "import energybench\n"
        "try: run = energybench.run('tiny.toml', out='out', quiet=True)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        # What was taken up again has plain training of its own beside what had ended.
        "else: print(len({(trial.block, trial.method) for trial in run.trials}))\n"
    )
    running = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for((tmp_path / "held").exists, 600)
    os.kill(running.pid, signal.SIGINT)
    out, errors = running.communicate(timeout=600)
    assert out == "interrupted\n", errors
    assert list((tmp_path / "out" / "records").glob("b0*.json"))
    (tmp_path / "hold").unlink()
    again = python(tmp_path, script.read_text())
    assert again.returncode == 0, again.stderr
    assert int(again.stdout) == 4


@pytest.mark.slow
def test_a_child_has_the_environment_of_its_callers_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher()
    launcher.warm()  # the server is started with the environment of before
    monkeypatch.setenv("ENERGYBENCH_A_WORD", "later")
    (tmp_path / "in").touch()
    outcome = launcher.call("targets:word", tmp_path / "in", tmp_path / "out")
    assert outcome.reason is None
    assert (tmp_path / "out").read_text() == "later"
