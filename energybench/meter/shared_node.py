"""Whether this node is ours alone: RAPL counts whole processors, and two jobs on one node would each bill both.

A job of Slurm's owns its node where it has all of its CPUs. A control group with fewer processors than the machine, or
another run of energybench that meters this node, says that others work here too. Whoever knows better says so: `sbatch
--exclusive` gives a job every CPU, and ENERGYBENCH_EXCLUSIVE=1 stands for where that cannot be seen.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from energybench.common.processors import OWN_CGROUP, cpuset
from energybench.meter.perf_events import sysfs

EXCLUSIVE = "ENERGYBENCH_EXCLUSIVE"  # 1: nobody else works on this node, whatever its engine says
METERED_BY = "ENERGYBENCH_METERED_BY"  # this run, and its trials, stand beside the run that has this process id
HOLDER = "ENERGYBENCH_METERS_NODE"  # this process stands below the run that has this process id
REMEDY = f"sbatch --exclusive; or {EXCLUSIVE}=1 where nobody else works on this node"
CLAIM = "\0energybench meters this node"  # an abstract socket: no file, and gone with its process
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
        who = f" (process {other})" if other.isdecimal() else ""
        return f"another run of energybench meters this node{who}, and both would bill both: {REMEDY}"
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
    it. A process that stands below the one that has claimed it does as if it were alone."""
    if not wanted or os.environ.get(HOLDER) or os.environ.get(METERED_BY):
        yield
        return
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    name, value = HOLDER, str(os.getpid())
    try:
        try:
            claim.bind(CLAIM)
            claim.listen(1)
        except OSError as error:
            name, value = (METERED_BY, _claimed_by()) if error.errno == errno.EADDRINUSE else ("", "")
        if name:
            os.environ[name] = value
        yield
    finally:
        if name:
            os.environ.pop(name, None)
        claim.close()


def _claimed_by() -> str:
    """The process id of the run that has claimed this node; "unknown" where the kernel does not say."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(CLAIM)
            facts = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid = int(struct.unpack("3i", facts)[0])
        except OSError:
            return "unknown"
    return str(pid) if pid > 0 else "unknown"
