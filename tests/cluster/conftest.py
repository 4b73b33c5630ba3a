"""One Slurm for all tests that need one; what cannot be started here is said once, and skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import slurm_cluster
from slurm_cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := slurm_cluster.why_not():
        pytest.skip(f"no Slurm can be started here: {reason}")
    with slurm_cluster.slurm() as started:
        yield started
