"""A run of small commands on a cluster, what can be lost of it while it works, and what must be there in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from slurm_cluster import NODES, Cluster, wait_for

from energybench.cluster.jobs_file import read_jobs
from energybench.records.reader import read_folder
from energybench.records.shards import shards_of
from energybench.verdict import run_parts

ROOT = Path(__file__).resolve().parents[2]
BLOCKS, METHODS = 4, {"baseline", "twin", "short"}
END_S = 240.0
# A trial says that it has begun, and waits for as long as there is a file `hold`.
SCRIPT = """
import json, os, sys, time
from pathlib import Path

home = Path(__file__).parent.parent / "marks"
if (home / "hold").exists():
    (home / f"held-{os.environ.get('SLURMD_NODENAME', '')}").touch()
while (home / "hold").exists():
    time.sleep(0.02)
time.sleep(float(sys.argv[1]))
print(json.dumps({"accuracy": 0.9}))
"""
SUITE = """
schema = 1
suite = "nap"
trials = {{ blocks = {blocks}, warmup = "0 s" }}
measure = {{ energy = "off" }}
on.slurm = {{ partition = "main", gres = "gpu:1", cpus = 1, time = "20 min", at_once = 4 }}
[accept]
quality = {{ metric = "accuracy", loses_at_most = "0.5 pp" }}
[[workload]]
name = "nap"
command = "{python} -S nap.py {nap_s}"
quality = {{ from = "json", key = "accuracy" }}
[[method]]
name = "short"
command = "{python} -S nap.py 0.05"
"""


@dataclass
class Run:
    """In a folder of its own: the suite in `place`, and beside it, in `marks`, what trials wait for."""

    cluster: Cluster
    home: Path
    blocks: int = BLOCKS
    nap_s: float = 0.1
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.place, self.marks = self.home / "it's 100 % here", self.home / "marks"
        self.place.mkdir(parents=True, exist_ok=True)
        self.marks.mkdir()
        (self.place / "nap.py").write_text(SCRIPT)
        suite = SUITE.format(blocks=self.blocks, python=sys.executable, nap_s=self.nap_s)
        (self.place / "nap.toml").write_text(suite)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """The command on the login node, under way."""
        environment = {**self.cluster.environment, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        return subprocess.Popen(
            [sys.executable, "-m", "energybench", "run", "nap.toml", "--on", "slurm", *options],
            cwd=self.place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.output(),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def output(self) -> IO[str]:
        """A new file for what a command says."""
        return (self.marks / f"said-{len(list(self.marks.glob('said-*')))}").open("w")

    def said(self) -> str:
        """By the command that was started last."""
        return (self.marks / f"said-{len(list(self.marks.glob('said-*'))) - 1}").read_text()

    def end(self, running: subprocess.Popen[str]) -> int:
        """Its exit code; what it said is in `log`. It is the one that was started last."""
        try:
            running.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
            running.wait(timeout=30)
            self.log.append(self.said())
            raise AssertionError(f"it did not end in {END_S:.0f} s:\n{self.told()}") from None
        self.log.append(self.said())
        return running.returncode

    def told(self) -> str:
        """All that the command and its jobs have said, and the queue."""
        logs = [f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in self.place.rglob("jobs/*.log")]
        return "\n".join([*self.log, self.cluster.run("squeue", "--states=all", "--array", check=False), *logs])

    @property
    def folder(self) -> Path:
        (file,) = self.place.glob("reports/nap/*/jobs.json")
        return file.parent

    @contextlib.contextmanager
    def held(self, tasks: int = 1) -> Iterator[subprocess.Popen[str]]:
        """Under way, with so many nodes inside a trial that does not end before this block does."""
        (self.marks / "hold").touch()
        running = self.start()
        try:
            wait_for(lambda: len(list(self.marks.glob("held-*"))) >= tasks or running.poll() is not None, "a trial")
            assert running.poll() is None, self.said()
            yield running
        finally:
            (self.marks / "hold").unlink(missing_ok=True)

    def node(self) -> str:
        """One that is inside a trial."""
        return min(file.name for file in self.marks.glob("held-*")).partition("-")[2]

    def tasks(self) -> list[str]:
        """Of its blocks, those that run."""
        jobs = read_jobs(self.folder)
        assert jobs is not None
        names = ",".join(job.name for job in jobs.arrays)
        words = ("squeue", "--noheader", "--array", "--states=RUNNING", f"--name={names}", "--format=%F_%K")
        return self.cluster.run(*words, check=False).split() if names else []

    def commands(self) -> list[int]:
        """Process ids of what its jobs run: the plan, blocks."""
        found = []
        for pid in self.cluster.processes():
            with contextlib.suppress(OSError):
                words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
                if {b"--block", b"--plan-only"} & {*words} and str(self.place).encode() in b" ".join(words):
                    found.append(pid)
        return found

    def check(self) -> None:
        """Nothing is lost, nothing stands twice, there is one run with one report."""
        folder, told = self.folder, self.told()
        shards = shards_of(folder)
        assert [shard.name for shard in shards] == [f"b{block + 1}" for block in range(self.blocks)], told
        for block, shard in enumerate(shards):
            run, trials, _ = read_folder(shard)
            assert run.complete, told
            assert {trial.block for trial in trials} == {block}
            baselines = {trial.invocation for trial in trials if trial.method == "baseline"}
            counts = Counter(trial.method for trial in trials if trial.invocation in baselines and trial.status == "ok")
            assert set(counts) == METHODS, told
            assert all(count == 1 for method, count in counts.items() if method != "baseline"), (counts, told)
            left = [file for file in shard.rglob("*") if file.suffix == ".part" or file.name == ".lock"]
            assert not left, told
        (part,) = run_parts.read([folder])
        summary = part.summary()
        blocks = tuple(range(self.blocks))
        assert {row.blocks for workload in summary.workloads for row in workload.rows} == {blocks}, told
        assert list(self.place.rglob("report.md")) == [folder / "report.md"], told
        assert not self.commands()


# ── what can be lost ──────────────────────────────────────────────────────────────────────────────────────────────


def lose_node(run: Run, name: str | None = None) -> None:
    """With all that runs on it, as by a power cut; it comes back when the controller has seen it."""
    lost = name or run.node()
    run.cluster.lose(lost)
    (run.marks / "hold").unlink(missing_ok=True)
    state = ("sinfo", "--noheader", f"--nodes={lost}", "--partition=main", "--format=%t")
    with contextlib.suppress(AssertionError):
        wait_for(lambda: run.cluster.run(*state, check=False).startswith(("down", "drain")), "the loss", 25.0)
    run.cluster.start(lost)


def lose_controller(run: Run, away_s: float = 3.0) -> None:
    """While jobs end."""
    run.cluster.kill("slurmctld")
    (run.marks / "hold").unlink(missing_ok=True)
    time.sleep(away_s)
    run.cluster.start("slurmctld")


def lose_job(run: Run, chance: random.Random | None = None) -> None:
    """`kill -9` of the command of a block, or of the plan."""
    if pids := run.commands():
        os.kill((chance or random.Random(0)).choice(pids), signal.SIGKILL)


def preempt(run: Run) -> None:
    """Another's job of a higher priority wants both nodes for a moment."""
    words = ("sbatch", "--partition=urgent", "--exclusive", f"--nodes={len(NODES)}", "--output=/dev/null")
    run.cluster.run(*words, "--wrap=sleep 0.5", check=False)


def cancel(run: Run, chance: random.Random | None = None) -> bool:
    """A user ends one task. Whether there was one."""
    tasks = run.tasks()
    if tasks:
        run.cluster.run("scancel", (chance or random.Random(0)).choice(tasks), check=False)
    return bool(tasks)
