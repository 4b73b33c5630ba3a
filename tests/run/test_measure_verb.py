"""`energybench measure`: one command as if it were called without us, two in pairs with an interval on their ratio."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import EXECUTABLE, energybench, environment
from tiny_runs import processes_with, wait_for

from energybench.cli import paired_commands as versus
from energybench.cli.command_line import app
from energybench.meter.reading import Reading
from energybench.meter.window import Window
from energybench.process.supervise import CommandOutcome
from energybench.records.reader import read
from energybench.records.record import Trial
from energybench.stats.paired import paired
from energybench.trial.command_trial import MeteredCommand

pytestmark = pytest.mark.slow


def measure(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return energybench("measure", "--energy", "off", *arguments, cwd=folder, **extra)


def test_output_and_status_are_the_commands_own_and_one_line_on_stderr_is_ours(tmp_path: Path):
    done = measure(tmp_path, "--", "sh", "-c", "cat; echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    lines = done.stderr.splitlines()
    assert lines[0] == "err"
    assert len(lines) == 2
    assert lines[1].startswith("energybench: ")
    assert lines[1].endswith("; it ended with status 7")
    assert not list(tmp_path.iterdir())  # nothing was written


def test_stdin_reaches_the_command(tmp_path: Path):
    done = subprocess.run(
        [*EXECUTABLE, "measure", "--energy", "off", "cat"],
        cwd=tmp_path,
        env=environment(),
        input="through\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "through\n")


def test_seconds_and_cpu_seconds_are_those_of_the_command_and_what_it_started(tmp_path: Path):
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    script = f"{sys.executable} -c '{burn}'; sleep 0.3"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call = ("measure", "--energy", "off", "--json", "--", "sh", "-c", script)
    record = json.loads(energybench(*call, cwd=tmp_path, fresh=True).stdout)  # a child of this process
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    reading = record["phases"]["train"]
    assert reading["wall_s"] >= 0.3 + 0.3
    assert reading["cpu_s"] >= 0.3
    # What the one that measures uses, to start with, is no part of it.
    whole_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert reading["cpu_s"] < whole_s
    assert record["memory_resident_b"] is None or record["memory_resident_b"] > 1 << 20


def test_json_keeps_stdout_for_the_record_and_a_file_holds_the_same(tmp_path: Path):
    done = measure(tmp_path, "--json", "-o", "record.json", "--", "echo", "to the side")
    assert "to the side" in done.stderr
    trial = Trial.model_validate_json(done.stdout)
    assert read(tmp_path / "record.json", Trial) == trial
    assert trial.settings["command"] == ["echo", "to the side"]
    shown = energybench("show", "record.json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr


def test_a_signal_is_told_and_its_status_is_a_shells(tmp_path: Path):
    done = measure(tmp_path, "--", "sh", "-c", "kill -TERM $$")
    assert done.returncode == 128 + signal.SIGTERM
    assert "it was killed by SIGTERM" in done.stderr


def test_an_interrupt_is_the_commands_own_affair_and_what_was_metered_is_told(tmp_path: Path):
    script = "trap 'exit 5' INT; echo up; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        [*EXECUTABLE, "measure", "--energy", "off", "sh", "-c", script],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "up\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 5
    assert "energybench: " in process.stderr.read()


def test_ended_from_outside_it_takes_the_command_with_it(tmp_path: Path):
    marker = f"energybench-measure-{os.getpid()}-{time.time_ns()}"
    process = subprocess.Popen(
        [*EXECUTABLE, "measure", "--energy", "off", "--", "sh", "-c", "sleep 600 & sleep 600"],
        cwd=tmp_path,
        env=environment(MARKER=marker),
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: len(processes_with(marker)) == 4)
    process.terminate()
    assert process.wait(120) == 128 + signal.SIGTERM
    assert not processes_with(marker)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("nosuch",), "sh -c '...'"),
        (("train.py",), "python train.py"),
        (("trian.py",), "did you mean 'train.py'?"),
        (("--vs", "nosuch", "true"), "sh -c '...'"),
        (("echo 'open",), "close the quotation"),
        (("",), "energybench measure -- python train.py"),
    ],
)
def test_what_cannot_be_run_is_a_message_with_what_to_type(tmp_path: Path, arguments: tuple[str, ...], hint: str):
    (tmp_path / "train.py").write_text("")
    done = measure(tmp_path, *arguments)
    assert done.returncode == 2
    assert "error[E42" in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_no_command_at_all_is_wrong_usage(tmp_path: Path):
    assert measure(tmp_path).returncode == 2


@pytest.fixture
def given_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sleep 0.3` is not run: it took 0.3 s, give or take 1 %."""
    wobble = itertools.cycle([1.0, 0.99, 1.01, 1.005, 0.995])

    def metered(words: list[str], meters: Any, **how: Any) -> MeteredCommand:
        seconds = float(words[1]) * next(wobble)
        reading = Reading(wall_s=seconds, cpu_s=0.001, steal_s=0.0)
        return MeteredCommand(reading, Window(meters, lambda: None), CommandOutcome(0, seconds))

    monkeypatch.setattr(versus, "metered", metered)


def test_what_is_said_of_a_pair_is_the_ratio_of_the_seconds_that_stand_beside_it(tmp_path: Path):
    """A real comparison: whatever this machine measured, the page and the file say the same of it."""
    call = ["--pairs", "3", "--warmup", "0", "-o", "pairs.json", "--vs", "sleep 0.2", "--", "sleep", "0.1"]
    done = measure(tmp_path, *call, COLUMNS="60")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 60
    told = " ".join(done.stdout.split())
    found = json.loads((tmp_path / "pairs.json").read_text())
    row = found["comparison"]
    assert f"Verdict: {row['verdict']}" in told
    assert row["measured"]["quantity"] == "time"
    # The interval is Student's t over the paired log ratios of the trials that stand beside it.
    seconds: dict[str, dict[int, float]] = {"baseline": {}, "method": {}}
    for trial in found["trials"]:
        seconds[trial["role"]][trial["block"]] = trial["phases"]["train"]["wall_s"]
    assert min(seconds["baseline"].values()) >= 0.2
    assert min(seconds["method"].values()) >= 0.1
    expected = paired([seconds["method"][b] for b in range(3)], [seconds["baseline"][b] for b in range(3)])
    low, high = expected.saving_interval()
    assert row["measured"]["saving_rel"] == pytest.approx(-math.expm1(expected.mean))
    assert row["measured"]["low_rel"] == pytest.approx(low)
    assert row["measured"]["high_rel"] == pytest.approx(high)
    assert f"{math.exp(expected.mean):.3f} [" in told


def test_half_as_long_is_faster_and_saves_no_energy_that_was_not_measured(
    given_seconds: None, capfd: pytest.CaptureFixture[str]
):
    app.main(
        ["measure", "--energy", "off", "--pairs", "4", "--warmup", "0", "--vs", "sleep 0.6", "sleep 0.3"],
        standalone_mode=False,
    )
    told = " ".join(capfd.readouterr().out.split())
    assert "Verdict: faster." in told
    assert "saves" not in told.replace("see savings", "")


def test_each_is_first_in_half_of_the_pairs(given_seconds: None, monkeypatch: pytest.MonkeyPatch):
    """The first of two pairs is drawn, the second is its reverse: a first-in-pair effect cancels."""
    one, other = list(versus.SIDES), list(versus.SIDES)[::-1]
    drawn = [one, other, other, one, other]
    left = iter([one, other, other])
    monkeypatch.setattr(versus.random, "sample", lambda sides, count: next(left))
    found = versus.CommandComparison(["sleep", "1"], ["sleep", "2"], len(drawn))
    found.run(versus.CommandMeters(energy=False), warmup=0, show_output=False, say=lambda text: None)
    assert next(left, None) is None
    ran = [[trial.role for trial in found.trials if trial.block == block] for block in range(len(drawn))]
    assert ran == drawn
    assert [trial.position for trial in found.trials] == [0, 1] * len(drawn)


@pytest.mark.parametrize("other", ["sleep 1; sleep 2", "true && true", "echo a|wc", "echo a > 'b c'", "true &"])
def test_a_shells_operator_is_no_argument_of_a_command_that_no_shell_reads(tmp_path: Path, other: str):
    done = measure(tmp_path, "--vs", other, "true")
    assert done.returncode == 2
    assert "error[E422]" in done.stderr
    assert "sh -c" in done.stderr


def test_a_command_that_fails_ends_the_comparison_with_its_own_words(tmp_path: Path):
    done = measure(tmp_path, "--warmup", "0", "--vs", "sh -c 'echo no disk >&2; exit 4'", "true")
    assert done.returncode == 3
    assert "error[E651]" in done.stderr
    assert "it ended with status 4: no disk" in done.stderr


def test_two_pairs_get_no_verdict(tmp_path: Path):
    done = measure(tmp_path, "--pairs", "2", "--warmup", "0", "--vs", "true", "true")
    assert "Verdict: no verdict: 2 pairs, and 3 are the least." in done.stdout


def test_an_interrupted_comparison_shows_what_is_there_without_a_verdict(tmp_path: Path):
    marker = f"energybench-versus-{os.getpid()}-{time.time_ns()}"
    for name in "ab":
        (tmp_path / name).write_text(f"#!/bin/sh\necho . >> ran.{name}\nsleep 0.05\n")
        (tmp_path / name).chmod(0o755)
    process = subprocess.Popen(
        [*EXECUTABLE, "measure", "--energy", "off", "--warmup", "0", "--pairs", "5000", "--vs", "./b", "./a"],
        cwd=tmp_path,
        env=environment(MARKER=marker),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    ran = [tmp_path / f"ran.{name}" for name in "ab"]
    wait_for(lambda: all(file.exists() and file.read_text().count(".") > 3 for file in ran))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "A  ./a" in out
    assert "times the time of B" in out
    assert "Verdict: no verdict" in out
    assert not processes_with(marker)


def test_output_is_shown_only_when_asked_for_and_never_on_stdout(tmp_path: Path):
    call = ["--pairs", "1", "--warmup", "1", "--vs", "echo one", "--", "echo", "two"]
    assert "two" not in measure(tmp_path, *call).stderr
    shown = measure(tmp_path, "--show-output", *call)
    assert shown.stderr.split().count("one") == 2
    assert not any(line in ("one", "two") for line in shown.stdout.splitlines())


def test_a_command_may_be_one_text_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert versus.words_of(["echo 'a b' c"]) == ["echo", "a b", "c"]
    assert versus.words_of(["echo", "a b"]) == ["echo", "a b"]


def test_the_comparison_says_that_energy_is_modelled_and_compares_time(tmp_path: Path):
    call = ["measure", "--pairs", "3", "--warmup", "0", "--json", "--vs", "sleep 0.1", "sleep 0.1"]
    found: dict[str, Any] = json.loads(
        energybench(*call, cwd=tmp_path, ENERGYBENCH_POWERCAP=str(tmp_path / "none")).stdout
    )
    if "modelled" in found["energy_note"]:  # on a machine without a sensor
        assert found["comparison"]["measured"]["quantity"] == "time"
        assert any(e["source"].startswith("model(") for e in found["trials"][0]["phases"]["train"]["energy"])
