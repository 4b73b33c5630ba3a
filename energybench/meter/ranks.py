"""Several processes that train together on one node: which of them this one is, by what its launcher told it.

What sees the whole node (RAPL, a meter of the machine, "all" cards) is read by the first rank of the node alone, so
that no joule is billed once per rank. A card is metered by the rank that uses it, by UUID. Launchers may lie inside one
another (`srun torchrun ...`): the first rank of a node is the first one of each of them.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

READ_BY_THE_FIRST = "the first rank of this node reads it, once for all ranks"
MAYBE_SHARED = "a card that several ranks may see: the first rank of this node reads those that it sees"
# (rank on the node, rank of all, how many in all) of each launcher, the innermost first.
LAUNCHERS = (
    ("LOCAL_RANK", "RANK", "WORLD_SIZE"),  # torchrun, accelerate, deepspeed, Lightning, Ray
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("MPI_LOCALRANKID", "PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
    ("PMI_LOCAL_RANK", "PMI_RANK", "PMI_SIZE"),
    ("PALS_LOCAL_RANKID", "PALS_RANKID", "PALS_SIZE"),  # Cray
    ("JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),  # jsrun
    ("FLUX_TASK_LOCAL_ID", "FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ("HOROVOD_LOCAL_RANK", "HOROVOD_RANK", "HOROVOD_SIZE"),
    ("SLURM_LOCALID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
OF_ONE_LAUNCH = (
    *("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE"),
    *("PALS_APID", "FLUX_JOB_ID", "LSB_JOBID"),
)


@dataclass(frozen=True, slots=True)
class Rank:
    """One of several processes that work together.

    local:  its number on this node, from 0
    number: its number among all; None where the launcher does not say
    world:  how many there are on all nodes; None where the launcher does not say
    first:  whether it is the first one of this node, of every launcher that stands around it
    around: the number that a launcher around that one gave, where each of its processes launches ranks of its own
    """

    local: int
    number: int | None
    world: int | None
    first: bool
    around: int | None = None

    @property
    def alone(self) -> bool:
        """Whether there is no other one."""
        return self.world == 1 or (self.world is None and not self.local and not self.number)

    @property
    def label(self) -> str:
        """Its number, of which there is one among all nodes."""
        number = str(self.number) if self.number is not None else f"{self.local}-{platform.node()}"
        return number if self.around is None else f"{self.around}.{number}"


def local_rank(environ: Mapping[str, str]) -> Rank | None:
    """Which rank a process with this environment is.

    Args:
        environ: its environment variables

    Returns:
        The rank that the innermost launcher gave it; None where there is none, or where it was told no number.
    """
    ranks: list[tuple[int, int | None, int | None]] = []
    for names in LAUNCHERS:
        local, number, world = (_count(environ, name) for name in names)
        if local is not None:
            ranks.append((local, number, world or (_slurm_tasks(environ) if names[0] == "SLURM_LOCALID" else None)))
    if not ranks:
        return None
    first = not any(local for local, _, _ in ranks)
    # A launcher of one process in each of several: what tells them apart is the one around it.
    several = [rank for rank in ranks if rank[2] != 1]
    inner, *outer = several or ranks[:1]
    is_of_this_node = inner[2] is not None and _count(environ, "LOCAL_WORLD_SIZE") == inner[2]
    return Rank(*inner, first, outer[0][1] if outer and is_of_this_node else None)


def reads_node(environ: Mapping[str, str] | None = None) -> bool:
    """Whether a process with this environment (None: this one's) reads what sees the whole node."""
    rank = local_rank(os.environ if environ is None else environ)
    return rank is None or rank.first


def path_of_rank(path: Path, environ: Mapping[str, str] | None = None) -> Path:
    """Where a rank writes what every rank would write to `path`: beside it, as out.rank3.json; else `path` itself.

    Each of several ranks, the first one too: none overwrites another's, and none passes for the whole. What is no plain
    file (a pipe, /dev/stdout) stays as it is.
    """
    rank = local_rank(os.environ if environ is None else environ)
    if rank is None or rank.alone or (path.exists() and not path.is_file()):
        return path
    return path.with_name(f"{path.stem}.rank{rank.label}{path.suffix}")


def node() -> str:
    """A name of this node that tells it from others and says nothing of it."""
    return hashlib.sha256(f"{platform.node()} {_boot()}".encode()).hexdigest()[:12]


def siblings_among(pids: Iterable[int], environ: Mapping[str, str] | None = None) -> set[int]:
    """Those of these processes that are other ranks of the same launch, or started by one: nobody's foreign processes.

    Args:
        pids: as the operating system numbers them here
        environ: this process's environment; None: as it is
    """
    own = os.environ if environ is None else environ
    if local_rank(own) is None:
        return set()
    return {pid for pid in pids if pid != os.getpid() and _same_launch(own, pid)}


def _same_launch(own: Mapping[str, str], pid: int) -> bool:
    """Told by the launch's own names; where there are none, by a parent in common."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    words = (word.decode(errors="replace").partition("=") for word in content.split(b"\0"))
    other = {name: value for name, _, value in words}
    if local_rank(other) is None:
        return False
    names = [name for name in OF_ONE_LAUNCH if name in own or name in other]
    if names:
        return all(own.get(name) == other.get(name) for name in names)
    return int(stat.rpartition(b")")[2].split()[1]) == os.getppid()


def _count(environ: Mapping[str, str], name: str) -> int | None:
    """A number from 0; None for anything else: some launchers say -1 where they launch nothing."""
    value = environ.get(name, "").strip()
    return int(value) if value.isascii() and value.isdecimal() else None


def _slurm_tasks(environ: Mapping[str, str]) -> int | None:
    """Of a job step that does not say how many tasks it has. A batch script is told the job's, and is one alone."""
    in_step = "SLURM_STEP_ID" in environ or _count(environ, "SLURM_PROCID")
    return _count(environ, "SLURM_NTASKS") if in_step else 1


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
