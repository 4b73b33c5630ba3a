"""A run that a launcher of ranks has started: each of them would run the whole suite. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

from energybench.common.errors import Problem, UsageError
from energybench.meter.ranks import local_rank


def refuse_ranks(environ: Mapping[str, str] | None = None) -> None:
    """Raises UsageError E672 in one of several ranks of torchrun, srun, mpirun and the like.

    environ: the process's; None: this one's
    """
    rank = local_rank(os.environ if environ is None else environ)
    if rank is None or rank.alone:
        return
    of = f" of {rank.world}" if rank.world else ""
    message = f"this is rank {rank.label}{of} that a launcher started, and each of them would run the whole suite"
    devices = rank.world or 2
    hint = f"energybench run without the launcher; [trials] devices = {devices} in the suite, or "
    hint += f"--set trials.devices={devices}, lets energybench start the ranks that train one trial together"
    raise UsageError(Problem("E672", message, hint=hint))
