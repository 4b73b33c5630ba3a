"""A real Slurm of one controller and two nodes on loopback, for as long as a test needs it: as root, without systemd.

Everything lies in a temporary folder, listens on free ports and is ended with the block. The nodes offer cards that are
character devices (/dev/null's numbers), since a card that is a file leaves CUDA_VISIBLE_DEVICES empty.

    with slurm() as cluster:
        cluster.run("sbatch", ...)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from energybench.common.processes import die_with

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2")
CPUS = 4  # of each node; `config_overrides` lets it say so
PATIENCE_S = 60.0
CONFIG = """
ClusterName=energybench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire={requeued_after_s}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=200000,bf_interval=1,batch_sched_delay=0,requeue_delay=0
SlurmdTimeout={node_lost_after_s}
SlurmctldTimeout=5
MinJobAge={forgotten_after_s}
KillWait=2
MessageTimeout=5
ReturnToService=2
MaxArraySize={longest_array}
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=60
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=1000 Gres=gpu:2"
GRES = "NodeName={name} Name=gpu File={place}/card[0-1]"


def why_not() -> str:
    """Why no cluster can be started here; empty where one can."""
    if os.getuid():
        return "Slurm's daemons are started as root"
    gone = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    return f"not installed: {', '.join(gone)}" if gone else ""


def search_path() -> str:
    """Daemons stand where an ordinary user's path does not lead."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(condition: Callable[[], object], what: str = "", patience_s: float = PATIENCE_S) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, f"waited {patience_s:.0f} s for {what or condition}"
        time.sleep(0.1)


@dataclass
class Cluster:
    """`place`: its folder. `running`: its daemons by name, "slurmctld", "n1", "n2", "munged"."""

    place: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        dropped = ("SLURM_", "SBATCH_", "SQUEUE_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        return {**kept, "SLURM_CONF": str(self.place / "slurm.conf"), "PATH": search_path()}

    def run(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def start(self, name: str) -> None:
        """A daemon that is not running."""
        conf = str(self.place / "slurm.conf")
        words = {
            "munged": [
                *("munged", "--foreground", "--force", f"--key-file={self.place}/munge.key", "--num-threads=2"),
                *(f"--{kind}-file={self.place}/munge.{kind}" for kind in ("pid", "log", "seed")),
                f"--socket={self.place}/munge.socket",
            ],
            "slurmctld": ["slurmctld", "-D", "-f", conf],
        }.get(name, ["slurmd", "-D", "-N", name, "-f", conf])
        tests = os.getpid()
        with (self.place / f"{name}.out").open("ab") as log:
            self.running[name] = subprocess.Popen(
                words,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with(tests, signal.SIGKILL),  # tests that are killed leave no daemon
            )

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """A daemon alone; what it started goes on."""
        daemon = self.running.pop(name)
        daemon.send_signal(number)
        daemon.wait(timeout=PATIENCE_S)

    def lose(self, name: str) -> None:
        """A node with everything that runs on it, as by a power cut."""
        self.kill(name)
        for pid in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, name: str = "") -> list[int]:
        """Of the cluster's jobs, on one node or on all: by what Slurm puts into their environment."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes().split(b"\0")
                ours = f"SLURM_CONF={self.place}/slurm.conf".encode() in environment
                step = b"SLURM_JOB_ID" in {each.partition(b"=")[0] for each in environment}
                here = not name or f"SLURMD_NODENAME={name}".encode() in environment
                if ours and step and here:
                    found.append(int(process.name))
                elif "slurmstepd: [" in (words := (process / "cmdline").read_text(errors="replace")) and ours:
                    found.append(int(process.name)) if not name or name in words else None
        return found

    def up(self) -> bool:
        """Whether the controller answers and every node is idle."""
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%t"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode == 0 and done.stdout.split() == ["idle"] * len(NODES)

    def administer(self, over: threading.Event) -> None:
        """What an administrator does of nodes that run and that Slurm has drained, or thinks to be down: a controller
        that was killed forgets what it had not saved in the last seconds, gives a number of a job again, and drains the
        node that knows it from before."""
        while not over.wait(1.0):
            nodes = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t", check=False)
            for line in nodes.splitlines():
                name, _, state = line.partition(" ")
                if name in self.running and state.startswith(("drain", "drng", "down")):
                    self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)

    def stop(self) -> None:
        for name in ("n1", "n2", "slurmctld", "munged"):
            if name in self.running:
                self.kill(name, signal.SIGKILL)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def slurm(
    *, node_lost_after_s: int = 5, requeued_after_s: int = 5, forgotten_after_s: int = 300, longest_array: int = 1001
) -> Iterator[Cluster]:
    """Up and idle. node_lost_after_s: that a node says nothing; requeued_after_s: a job of it may start again."""
    place = Path(tempfile.mkdtemp(prefix="eb-slurm-", dir="/tmp"))  # a socket's path is short
    cluster, over = Cluster(place), threading.Event()
    try:
        host = socket.gethostname().split(".")[0]
        controller_port, *ports = free_ports(1 + len(NODES))
        (place / "state").mkdir()
        (place / "munge.key").write_bytes(os.urandom(128))
        (place / "munge.key").chmod(0o400)
        for number in range(2):
            os.mknod(place / f"card{number}", 0o600 | 0o020000, os.makedev(1, 3))
        nodes = zip(NODES, ports, strict=True)
        config = CONFIG.format(
            host=host,
            place=place,
            controller_port=controller_port,
            node_lost_after_s=node_lost_after_s,
            requeued_after_s=requeued_after_s,
            forgotten_after_s=forgotten_after_s,
            longest_array=longest_array,
            nodes="\n".join(NODE.format(name=name, host=host, port=port, cpus=CPUS) for name, port in nodes),
        )
        (place / "slurm.conf").write_text(config)
        (place / "gres.conf").write_text("\n".join(GRES.format(name=name, place=place) for name in NODES))
        cluster.start("munged")
        wait_for((place / "munge.socket").exists, "munged")
        for name in ("slurmctld", *NODES):
            cluster.start(name)
        wait_for(cluster.up, f"Slurm; its logs are in {place}")
        administrator = threading.Thread(target=cluster.administer, args=(over,), daemon=True)
        administrator.start()
        yield cluster
    finally:
        over.set()
        cluster.stop()
        if "ENERGYBENCH_KEEP_SLURM" not in os.environ:
            shutil.rmtree(place, ignore_errors=True)
