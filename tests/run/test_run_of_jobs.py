"""A run whose blocks are jobs of a cluster, as the same command without --on sees it."""

from __future__ import annotations

from pathlib import Path

import light
import pytest
from light_runs import run, runs


@pytest.mark.slow
def test_a_run_here_leaves_one_whose_blocks_are_jobs_alone(tmp_path: Path) -> None:
    (tmp_path / "light.toml").write_text(light.SUITE)
    assert run(tmp_path).returncode == 0
    (first,) = runs(tmp_path)
    (first / "jobs.json").write_text("{}")
    (first / "records").rename(tmp_path / "away")
    refused = run(tmp_path, "--out", first)
    assert refused.returncode == 2
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(runs(tmp_path)) == 2
    assert not (first / "records").exists()
