"""On a real Ray cluster of two nodes on this machine, where Ray is installed: a node that is lost, Ctrl-C, kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from losses import END_S, ROOT, Run
from slurm_cluster import wait_for

pytestmark = pytest.mark.cluster


class RayRun(Run):
    """The same suite; `cluster` is Ray's, and its processes are found by the folder that they work in."""

    def start(self, *options: str) -> subprocess.Popen[str]:
        suite = (self.place / "nap.toml").read_text()
        if "on.ray" not in suite:
            suite = suite.replace("[accept]", "on.ray = { cpus = 1, retries = 3, at_once = 4 }\n[accept]")
            (self.place / "nap.toml").write_text(suite)
        self.cluster.at = self.place  # type: ignore[attr-defined]
        return subprocess.Popen(
            [sys.executable, "-m", "energybench", "run", "nap.toml", "--on", "ray", *options],
            cwd=self.place,
            env={**self.cluster.environment, "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            stdout=self.output(),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def commands(self) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--block" in words and any(word.startswith(str(self.place).encode()) for word in words):
                found.append(int(process.name))
        return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of two processors, and `add` and `remove`."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'energybench[ray]'")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "500",
    }
    os.environ.update(environment)  # of the nodes, which this process starts
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield SimpleNamespace(
            environment={**environment, "RAY_ADDRESS": cluster.address},
            add=lambda: cluster.add_node(num_cpus=2),
            remove=lambda node: cluster.remove_node(node, allow_graceful=False),
            run=lambda *_, **__: "",
        )
    finally:
        cluster.shutdown()


def test_a_node_that_is_lost_with_its_blocks_loses_and_doubles_none(nodes: Any, tmp_path: Path) -> None:
    second = nodes.add()
    run = RayRun(nodes, tmp_path)
    (run.marks / "hold").touch()
    running = run.start()
    try:
        wait_for(lambda: len(run.commands()) >= 4 or running.poll() is not None, "four blocks at once", END_S)
        assert running.poll() is None, run.end(running)
        nodes.remove(second)
        wait_for(lambda: len(run.commands()) <= 2, "the end of what ran on it")
    finally:
        (run.marks / "hold").unlink()
    assert run.end(running) == 0, run.told()
    run.check()


def test_ctrl_c_ends_every_block_whole_and_the_same_command_goes_on(nodes: Any, tmp_path: Path) -> None:
    run = RayRun(nodes, tmp_path)
    with run.held() as running:
        for pid in run.commands()[:1]:
            os.kill(pid, signal.SIGKILL)  # and one is lost meanwhile
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        assert run.end(running) == 130, run.told()
        assert not run.commands()
        assert "The same command continues" in run.log[-1]
    assert run.end(run.start()) == 0, run.told()
    run.check()
