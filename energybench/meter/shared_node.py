"""Whether this node is ours alone: RAPL counts whole processors, and two jobs on one node would each bill both.

A job of Slurm's owns its node where it has all of its CPUs. A control group with fewer processors than the machine, or
another run of energybench that meters this node, says that others work here too. Whoever knows better says so: `sbatch
--exclusive` gives a job every CPU, and ENERGYBENCH_EXCLUSIVE=1 stands for where that cannot be seen.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from energybench.common.processors import OWN_CGROUP, cpuset
from energybench.meter.perf_events import sysfs
from energybench.meter.ranks import reads_node

EXCLUSIVE = "ENERGYBENCH_EXCLUSIVE"  # 1: nobody else works on this node, whatever its engine says
METERED_BY = "ENERGYBENCH_METERED_BY"  # told to trials: who meters this node already
HOLDER = "ENERGYBENCH_METERS_NODE"  # this process stands below the run that has this process id
REMEDY = f"sbatch --exclusive; or {EXCLUSIVE}=1 where nobody else works on this node"
POWER = "bus/event_source/devices/power"  # below /sys
_CPUS = re.compile(r"(\d+)(?:\(x(\d+)\))?")  # "72(x2),36": of each node, in order


def shared_reason(environ: Mapping[str, str] | None = None, cores: int | None = None, own: Path = OWN_CGROUP) -> str:
    """Why what sees the whole node is not read; "" where it is.

    Args:
        environ: None: this process's
        cores:   that this node has
        own:     the file that names this process's control groups
    """
    known, there = os.environ if environ is None else environ, cores or os.cpu_count() or 1
    if known.get(EXCLUSIVE, "").lower() in ("1", "yes", "true"):
        return ""
    if other := known.get(METERED_BY):
        return f"{other} meters this node already, and both would bill both: {REMEDY}"
    if known.get("SLURM_JOB_ID"):
        ours = slurm_cpus(known)
        if known.get("SLURM_OVERCOMMIT", "0") not in ("", "0"):
            return f"this Slurm job may share its CPUs (--overcommit), and RAPL counts for all jobs: {REMEDY}"
        if ours is None or ours < there:
            has = "does not say how many CPUs it has" if ours is None else f"has {ours} of this node's {there} CPUs"
            return f"this Slurm job {has}, and RAPL counts for all jobs on it: {REMEDY}"
    held = cpuset(sysfs() / "fs" / "cgroup", own)
    if held is not None and held < there:
        return f"this control group has {held} of this node's {there} CPUs, and RAPL counts for all of them: {REMEDY}"
    return ""


def slurm_cpus(environ: Mapping[str, str]) -> int | None:
    """How many CPUs of this node the job has; None where Slurm does not say."""
    counts: list[int] = []
    for word in environ.get("SLURM_JOB_CPUS_PER_NODE", "").split(","):
        if (found := _CPUS.fullmatch(word.strip())) is None:
            break
        counts += [int(found[1])] * min(int(found[2] or 1), 100_000)
    node = environ.get("SLURM_NODEID", "0")
    if counts and node.isdecimal() and int(node) < len(counts):
        return counts[int(node)]
    alone = environ.get("SLURM_CPUS_ON_NODE", "")
    return int(alone) if alone.isdecimal() else None


@contextmanager
def node_claimed(wanted: bool = True) -> Iterator[None]:
    """This process and its children meter the node meanwhile: whoever comes beside it does not read what sees all of
    it. A process that stands below the one that has claimed it does as if it were alone.

    What is locked are the counters themselves, as the kernel lists them: no file is made, every user and every
    container that sees them is told, and the claim is gone with its process.
    """
    below = os.environ.keys() & {HOLDER, METERED_BY} or not reads_node()  # of several ranks the first one claims it
    counters = _counters() if wanted and not below else None
    if counters is None:
        yield
        return
    name = HOLDER
    with suppress(OSError):  # without locks nobody is told
        try:
            fcntl.flock(counters, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            name = METERED_BY
    os.environ[name] = str(os.getpid()) if name == HOLDER else "another run of energybench"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.close(counters)


def _counters() -> int | None:
    """A handle of the folder in which the kernel lists RAPL's counters; None where there are none."""
    from energybench.meter.rapl import POWERCAP, VARIABLE

    for folder in (os.environ.get(VARIABLE) or sysfs() / POWERCAP, sysfs() / POWER):
        with suppress(OSError):
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return None
