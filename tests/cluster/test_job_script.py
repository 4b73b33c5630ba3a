"""What a job does, by its real script in real bash; squeue, scontrol and the command of a block are stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from energybench.cluster import block_commands, job_script
from energybench.cluster.block_commands import Asked
from energybench.cluster.job_script import lead_s, notes
from energybench.suite.suite import load

SUITE = """
schema = 1
suite = "nap"
trials = { blocks = 5 }
[[workload]]
name = "w"
command = "true"
quality = "none"
[[method]]
name = "m"
command = "true"
"""
# Says its words, one in a line, between marks; then does what the file `do` says.
COMMAND = """
import os, runpy, sys
with open("said", "a", encoding="utf-8", errors="surrogateescape") as said:
    said.write("".join(f"{word}\\0" for word in sys.argv[1:]) + "\\n\\0")
exec(open("do", encoding="utf-8").read())
"""
ENDS_WHEN_TOLD = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
open("began", "w").close()
time.sleep(60)
"""


class Job:
    """A job of one task; what Slurm would be asked is in `asked`, and `state` is what squeue answers."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, *, state: str = "RUNNING 1:00:00") -> None:
        self.place, self.folder = place, place / "run"
        (self.folder / "jobs").mkdir(parents=True)
        (place / "bin").mkdir()
        (place / "command.py").write_text(COMMAND)
        self.do("")
        (place / "state").write_text(f"{state}\n")
        for name, text in {"squeue": f"cat {place}/state", "scontrol": f'echo "$@" >>{place}/asked'}.items():
            (place / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (place / "bin" / name).chmod(0o755)
        monkeypatch.chdir(place)
        monkeypatch.setattr(block_commands, "ENERGYBENCH", (sys.executable, "-S", str(place / "command.py")))

    def do(self, program: str) -> None:
        (self.place / "do").write_text(program)

    def start(self, script: str, **environment: str) -> subprocess.Popen[str]:
        (self.place / "script.sh").write_bytes(os.fsencode(script))
        variables = {
            "PATH": f"{self.place}/bin:{os.environ['PATH']}",
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "1",
            "SLURM_JOB_ID": "9",
            **environment,
        }
        words = ["bash", str(self.place / "script.sh")]
        return subprocess.Popen(
            words, cwd="/", env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, script: str, **environment: str) -> tuple[int, str]:
        job = self.start(script, **environment)
        said, _ = job.communicate(timeout=60)
        return job.returncode, said

    def blocks(self, *tasks: list[int], time_s: float | None = None, suite: Path | None = None) -> str:
        return job_script.blocks_script(self.asked(suite), self.folder, tasks or ([0], [1, 2]), time_s)

    def asked(self, suite: Path | None = None) -> Asked:
        path = suite or self.place / "nap.toml"
        path.write_text(SUITE)
        return Asked(load(path), ("--set", "trials.seed=3"))

    @property
    def said(self) -> list[list[str]]:
        text = (self.place / "said").read_bytes().decode("utf-8", "surrogateescape")
        return [line.split("\0")[:-1] for line in text.split("\n\0")[:-1]]

    @property
    def requeued(self) -> list[str]:
        file = self.place / "asked"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def test_a_task_runs_the_blocks_of_its_index_one_after_the_other_counted_from_one(job: Job) -> None:
    assert job.run(job.blocks()) == (0, "")
    start = ["run", str(job.place / "nap.toml"), "--set", "trials.seed=3"]
    assert job.said == [[*start, "--block", str(k), "--out", f"{job.folder}/shards/b{k}"] for k in (2, 3)]
    assert not job.requeued


NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=30)


@example("it's")
@example('"$HOME" `id` \\')
@example("$(touch gone)%j%%\\n")
@example("a\nb\tc ; exit 5 #")
@example("{place} {folder}")
@given(NAMES.filter(lambda name: name.strip(".") and len(name.encode()) < 100))
@settings(max_examples=6, deadline=None)
def test_no_name_of_a_file_is_read_as_anything_else(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = tmp_path_factory.mktemp("quoted") / name
        place.mkdir()
        job = Job(place, monkeypatch)
        monkeypatch.setenv("PATH", os.environ["PATH"])
        code, said = job.run(job.blocks(suite=place / f"{name}.toml"), PATH=os.environ["PATH"])
        assert code == 0, said
        assert job.said[0][1] == str(place / f"{name}.toml")
        assert job.said[0][-1] == f"{job.folder}/shards/b2"
        assert sorted(each.name for each in place.iterdir()) == sorted(
            ["bin", "command.py", "do", "said", "script.sh", "state", "run", f"{name}.toml"]
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_job_that_is_told_of_its_end_hands_that_on_and_is_queued_again(job: Job, number: signal.Signals) -> None:
    job.do(ENDS_WHEN_TOLD)
    running = job.start(job.blocks())
    _until(job.place / "began")
    running.send_signal(number)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert job.requeued == ["requeue 7_1"]
    assert len(job.said) == 1  # the second block is left to the next start
    assert "b2 ended by 130 and is queued again" in said


@pytest.mark.parametrize("state", ["CANCELLED 0:00", "COMPLETING 0:10", "PENDING 1:00:00", "PREEMPTED 0:10", ""])
def test_a_job_that_its_user_or_slurm_ended_is_never_queued_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    job = Job(tmp_path, monkeypatch, state=state)
    job.do(ENDS_WHEN_TOLD)
    running = job.start(job.blocks())
    _until(tmp_path / "began")
    running.terminate()
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert not job.requeued
    assert notes(job.folder, 1) == notes(job.folder, 2) == ["interrupted"]


def test_a_command_that_was_killed_is_queued_again_but_not_for_ever(job: Job) -> None:
    job.do("import signal; os.kill(os.getpid(), signal.SIGKILL)")
    code, _ = job.run(job.blocks(), SLURM_RESTART_COUNT="2")
    assert (code, job.requeued) == (0, ["requeue 7_1"])
    code, said = job.run(job.blocks(), SLURM_RESTART_COUNT="3")
    assert (code, job.requeued) == (1, ["requeue 7_1"])
    assert "nothing was gained; it is not queued again" in said
    assert notes(job.folder, 1) == ["lost"]


def test_a_block_that_gains_trials_is_queued_again_however_often_it_was(job: Job) -> None:
    job.do(
        "place = sys.argv[-1] + '/records'; os.makedirs(place, exist_ok=True)\n"
        "open(place + '/%d.json' % len(os.listdir(place)), 'w').close(); sys.exit(130)"
    )
    for restart in (0, 50, 51):
        assert job.run(job.blocks(), SLURM_RESTART_COUNT=str(restart))[0] == 0
    assert len(job.requeued) == 3


@pytest.mark.parametrize("left", ["0:10", "1:19", "01:20"])
def test_a_block_of_which_nothing_ends_within_the_time_of_a_job_is_told_and_not_run_for_ever(
    job: Job, left: str
) -> None:
    """A job of a minute is told fifteen seconds before its end, or up to a minute earlier."""
    job.do("sys.exit(130)")
    (job.place / "state").write_text(f"RUNNING {left}\n")
    code, said = job.run(job.blocks([0], [1], time_s=60.0))
    assert code == 1
    assert "it needs more: [on] slurm.time" in said
    assert not job.requeued
    assert notes(job.folder, 1) == ["time"]


def test_a_baseline_that_each_start_repeats_is_no_gain(job: Job) -> None:
    job.do(
        "place = sys.argv[-1] + '/records'; os.makedirs(place, exist_ok=True)\n"
        "open(place + '/b1-i%d-w.baseline.json' % len(os.listdir(place)), 'w').close(); sys.exit(130)"
    )
    (job.place / "state").write_text("RUNNING 0:30\n")
    codes = [job.run(job.blocks([0], [1], time_s=60.0))[0] for _ in range(2)]
    assert codes == [0, 1]
    assert notes(job.folder, 1) == ["time"]


@pytest.mark.parametrize("left", ["1:21", "10:00", "1:00:00", "1-00:00:10", "08:09:08", "UNLIMITED", "INVALID", ""])
def test_a_block_that_ended_for_another_reason_is_queued_again_whatever_it_gained(job: Job, left: str) -> None:
    job.do("sys.exit(130)")
    (job.place / "state").write_text(f"RUNNING {left}\n")
    code, said = job.run(job.blocks([0], [1], time_s=60.0))
    assert (code, job.requeued) == (0, ["requeue 7_1"]), said


def test_what_a_command_refuses_is_noted_and_the_other_blocks_run(job: Job) -> None:
    job.do("sys.exit(2 if sys.argv[-1].endswith('b2') else 0)")
    code, _ = job.run(job.blocks())
    assert code == 2
    assert notes(job.folder, 1) == ["refused:2"]
    assert notes(job.folder, 2) == []
    assert len(job.said) == 2


def test_failed_trials_are_no_failure_of_their_job(job: Job) -> None:
    job.do("sys.exit(3)")
    assert job.run(job.blocks())[0] == 0
    assert notes(job.folder, 1) == []


def test_a_block_at_work_elsewhere_is_asked_for_again_and_then_left(job: Job) -> None:
    job.do("sys.exit(75)")
    script = job.blocks([0], [1]).replace("pause 10\n", "pause 0.01\n")
    code, said = job.run(script)
    assert code == 0
    assert "b2 is at work elsewhere" in said
    assert len(job.said) == 13  # two minutes, ten seconds apart
    assert notes(job.folder, 1) == ["elsewhere"]
    plan = job_script.plan_script(job.asked(), job.folder, None).replace("pause 10\n", "pause 0.01\n")
    assert job.run(plan)[0] == 75  # for what waits for the plan must not begin


def test_the_plan_and_the_report_are_one_command_each_whose_code_the_job_ends_with(job: Job) -> None:
    asked = Asked(job.asked().suite, ("--quick", "--keep-going"))
    job.do("sys.exit(2)")
    assert job.run(job_script.plan_script(asked, job.folder, None))[0] == 2
    assert job.run(job_script.report_script(job.folder))[0] == 2
    plan, report = job.said
    assert plan[2:] == ["--quick", "--plan-only", "--out", str(job.folder)]  # --keep-going is about trials
    assert report == ["report", str(job.folder), "--write"]


@given(st.floats(60, 1e7))
def test_a_job_is_told_of_its_end_well_before_it_and_well_after_its_start(time_s: float) -> None:
    assert 10 <= lead_s(time_s) <= min(120, time_s / 4 + 1)
    assert lead_s(None) == 120


def _until(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
