"""On a real Slurm of two nodes: what is lost on the way is run again, and nothing stands twice in the one report."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import losses
import pytest
from losses import Run
from slurm_cluster import Cluster, wait_for

pytestmark = pytest.mark.cluster

Loss = Callable[[Run], object]
LOSSES = int(os.environ.get("ENERGYBENCH_FUZZ_LOSSES") or 5)
SEED = int(os.environ.get("ENERGYBENCH_FUZZ_SEED") or 20261130)


def job_and_controller(run: Run) -> None:
    losses.lose_job(run)
    losses.lose_controller(run)


@pytest.mark.parametrize("loss", [losses.lose_node, job_and_controller, losses.preempt])
def test_what_is_lost_while_a_trial_runs_is_run_again(cluster: Cluster, tmp_path: Path, loss: Loss) -> None:
    run = Run(cluster, tmp_path)
    with run.held() as running:
        loss(run)
    assert run.end(running) == 0, run.told()
    run.check()
    assert loss is not losses.preempt or "DUE TO PREEMPTION" in run.told()


def test_who_ends_the_wait_ends_no_job_and_what_is_cancelled_comes_again_when_it_is_asked_for(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = Run(cluster, tmp_path)
    with run.held() as running:
        running.send_signal(signal.SIGINT)
        assert run.end(running) == 130
        assert "the jobs go on" in run.log[-1]
        assert run.end(run.start("--submit-only")) == 0
        assert "submitted as" not in run.log[-1]  # all of it is queued or runs
        assert "running on" in run.log[-1]
        waiting = run.start()
        wait_for(lambda: " · " in run.said(), "the wait")
        assert losses.cancel(run)
    assert run.end(waiting) == 130, run.told()
    assert "its job was cancelled" in run.log[-1]
    assert run.end(run.start()) == 0, run.told()
    assert f"1 of {run.blocks} blocks submitted" in run.log[-1]
    run.check()


def test_a_suite_that_cannot_be_planned_is_told_by_its_log(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path)
    suite = (run.place / "nap.toml").read_text()
    (run.place / "nap.toml").write_text(suite.replace(f"{sys.executable} -S nap.py 0.05", "no-such-program"))
    assert run.end(run.start()) == 2, run.told()
    assert "error[E686]" in run.log[-1]
    assert "no-such-program" in run.log[-1]
    assert not run.tasks()


def test_a_partition_that_is_not_there_is_told_with_its_line(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path)
    suite = (run.place / "nap.toml").read_text()
    (run.place / "nap.toml").write_text(suite.replace('"main"', '"mian"'))
    assert run.end(run.start()) == 2, run.told()
    assert "error[E681]: nap.toml:6:" in run.log[-1]
    assert "did you mean 'main'?" in run.log[-1]


@pytest.mark.soak
def test_losses_at_any_moment_lose_and_double_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Fifty in `make soak`; what is lost and when is drawn from the seed."""
    chance, done, number = random.Random(SEED), list[str](), 0
    kinds: list[str] = []
    while len(done) < LOSSES:
        number += 1
        run = Run(cluster, tmp_path / f"run{number}", blocks=6, nap_s=0.6)
        running, cancelled = run.start(), False
        began = time.monotonic()
        for _ in range(chance.randint(1, 3)):
            time.sleep(chance.uniform(2.0, 10.0))
            if running.poll() is not None or len(done) >= LOSSES:
                break
            kinds = kinds or chance.sample(KINDS, len(KINDS))
            kind = kinds.pop()
            if kind == "node":
                losses.lose_node(run, chance.choice(["n1", "n2"]))
            elif kind == "controller":
                losses.lose_controller(run, chance.uniform(0.5, 5.0))
            elif kind == "preemption":
                losses.preempt(run)
            elif kind == "job":
                losses.lose_job(run, chance)
            elif not losses.cancel(run, chance):
                continue
            cancelled = cancelled or kind == "cancel"
            done.append(kind)
        code = run.end(running)
        for _ in range(3 if cancelled else 0):
            if code == 0:
                break
            code = run.end(run.start())
        assert code == 0, (code, SEED, done, run.told())
        run.check()
        print(f"run {number}: {time.monotonic() - began:.0f} s, losses so far {len(done)}: {done[-3:]}", flush=True)


KINDS = ["node", "controller", "job", "preemption", "cancel"]
