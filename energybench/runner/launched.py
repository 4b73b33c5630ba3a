"""A run that a launcher of ranks has started: each of them would run the whole suite. Imports no torch.

Of torchrun on one node the first process runs it, with as many devices for each trial as torchrun was asked for, and
the others end at once: energybench starts the ranks of each trial itself, so that their ends are its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from energybench.common.errors import Problem, UsageError
from energybench.meter.ranks import local_rank

OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ALSO = ("GROUP_", "ROLE_", "TORCHELASTIC_")  # beginnings of what else it tells its processes


def torchrun_of_one_node(environ: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """(number of this process, how many there are) where torchrun started several, all of them on this node.

    environ: the process's; None: this one's
    """
    known = os.environ if environ is None else environ
    rank = local_rank(known)
    if rank is None or rank.alone or rank.number is None or rank.world is None:
        return None
    here = known.get("LOCAL_WORLD_SIZE") == known.get("WORLD_SIZE") == str(rank.world)
    return (rank.number, rank.world) if here and known.get("LOCAL_RANK") == known.get("RANK") else None


def refuse_other_devices(asked: int, world: int, where: str) -> None:
    """Raises UsageError E672 where a suite asks at `where` for several devices, and torchrun started another number."""
    if asked not in (1, world):
        message = f"torchrun started {world} processes, and the suite trains each trial on {asked} devices"
        hint = f"torchrun --nproc-per-node={asked}, or energybench run without it"
        raise UsageError(Problem("E672", message, where, hint))


def leave_torchrun(environ: MutableMapping[str, str] | None = None) -> None:
    """From now on this process, and what it starts, is no rank of torchrun's. environ: None: this process's"""
    known = os.environ if environ is None else environ
    for name in [name for name in known if name in OF_TORCHRUN or name.startswith(ALSO)]:
        del known[name]


def refuse_ranks(environ: Mapping[str, str] | None = None) -> None:
    """Raises UsageError E672 in one of several ranks of srun, mpirun, torchrun on several nodes and the like.

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
