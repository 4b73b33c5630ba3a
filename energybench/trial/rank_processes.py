"""The processes of one trial on several devices: forked, brought together, watched, ended.

    guard ── trial: rank 0, which meters the node, judges and writes the record
              ├─ rank 1
              └─ rank 2 …

The trial's own process is the first rank and forks the others before anything computes. To its meters they are its own
processes, on every card, and what they use is billed once; to the guard they are its descendants and end with it. Each
rank that fails says why by a pipe. A rank that waits for one which is gone is told by gloo; one that waits in a kernel
of NCCL is not, so the first rank's record is then written by the thread that saw the other die.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from energybench.common.processes import die_with
from energybench.process import heap_layout
from energybench.records.record import write_json
from energybench.train.ranks import Ranks
from energybench.train.run import Diverged
from energybench.trial.build import rank_device
from energybench.trial.failure import RankLost, failure_of
from energybench.trial.record_draft import CountingRunDraft, TrialDraft
from energybench.trial.spec import CountingSpec, TrialSpec

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# Waiting is ended by the trial's own limit, which ends all of its processes; no other clock decides.
LONGEST_WAIT = timedelta(days=365)
GRACE_S = 5.0  # in which the first rank learns by itself that another is gone
NOTICE_S = 2.0  # in which it is known who ended, once a message to it has failed
END_S = 30.0  # in which ranks that are done end by themselves

Join = Callable[[], Ranks]


def together(
    spec: TrialSpec | CountingSpec,
    record: TrialDraft | CountingRunDraft,
    out_path: str,
    first: Callable[[Join], None],
    follow: Callable[[Ranks], None],
) -> None:
    """Fork the other ranks and call `first` here, which calls what it is given when it wants to meet them.

    Args:
        record: written to `out_path` where this process cannot go on because another rank is gone
        follow: called in each other rank; both return when they have done the same in the same order

    Raises:
        RankLost: another rank ended before its end
        Exception: what `first` raises
    """
    processes = _Processes(spec, follow, lambda lost: _give_up(record, out_path, lost))
    done = False
    try:
        first(processes.join)
        done = True
    except Exception as error:
        told = processes.cause_of(error)
        if told is error:
            raise
        raise told from error
    finally:
        processes.end(done=done)


def _give_up(record: TrialDraft | CountingRunDraft, out_path: str, lost: RankLost) -> None:
    record.status, record.reason = failure_of(lost)
    write_json(Path(out_path), record.finished())
    os._exit(0)


class _Processes:
    """The other ranks, as the first one sees them."""

    def __init__(
        self, spec: TrialSpec | CountingSpec, follow: Callable[[Ranks], None], give_up: Callable[[RankLost], None]
    ) -> None:
        self._spec, self._give_up = spec, give_up
        self._lost: RankLost | None = None
        self._noticed, self._ended = threading.Event(), threading.Event()
        self._alive: dict[int, int] = {}  # number → process
        self._lock = threading.Lock()
        self._place = _meeting_place()
        parent, heard = os.getpid(), dict[int, int]()
        sys.stdout.flush()
        sys.stderr.flush()
        for number in range(1, spec.world):
            reads, writes = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(reads)
                _be_rank(parent, number, spec, self._place, follow, writes)
            os.close(writes)
            self._alive[number], heard[number] = pid, reads
        self._threads = [
            threading.Thread(target=self._watch, args=(number, pid, heard[number]), name=f"rank {number}", daemon=True)
            for number, pid in self._alive.items()
        ]
        for thread in self._threads:
            thread.start()
        _use_threads(spec)

    def join(self) -> Ranks:
        """Meet the others."""
        return _meet(0, self._spec, self._place)

    def cause_of(self, error: Exception) -> Exception:
        """The error itself, or that of the rank whose end it follows from."""
        if not _is_of_a_message(error):
            return error
        self._noticed.wait(NOTICE_S)
        return self._lost or error

    def end(self, *, done: bool) -> None:
        """Nothing of them is left afterwards. done: they have nothing to do any more, and end by themselves."""
        self._ended.set()
        if done:
            for thread in self._threads:
                thread.join(END_S)
        with self._lock:
            for pid in self._alive.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join()
        if done:
            dist.destroy_process_group()
        os.close(self._place)

    def _watch(self, number: int, pid: int, heard: int) -> None:
        """In a thread for each rank: wait for its end, and tell of one that came too early."""
        _, status = os.waitpid(pid, 0)
        with self._lock:
            del self._alive[number]
        code, said = os.waitstatus_to_exitcode(status), _said(heard)
        if code == 0 or self._ended.is_set():
            return
        with self._lock:
            first = self._lost is None
            lost = self._lost = self._lost or _lost(number, code, said)
        self._noticed.set()
        if first and not self._ended.wait(GRACE_S):
            self._give_up(lost)


def _be_rank(
    parent: int, number: int, spec: TrialSpec | CountingSpec, place: int, follow: Callable[[Ranks], None], writes: int
) -> None:
    """In a forked process, which ends here."""
    code = 1
    try:
        die_with(parent, signal.SIGKILL)
        heap_layout.draw()
        _use_threads(spec)
        follow(_meet(number, spec, place))
        dist.destroy_process_group()
        code = 0
    except Diverged:
        code = 0  # the first rank tells
    except BaseException as error:
        traceback.print_exc()
        status, reason = failure_of(error) if isinstance(error, Exception) else ("failed", type(error).__name__)
        with contextlib.suppress(OSError):
            os.write(writes, json.dumps([status, reason[:2000]]).encode())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _use_threads(spec: TrialSpec | CountingSpec) -> None:
    """Ranks on a CPU share the threads that one process would have."""
    if spec.threads:
        torch.set_num_threads(max(1, spec.threads // (1 if spec.device.startswith("cuda") else spec.world)))


def _meeting_place() -> int:
    """A file without a name, by which ranks learn of each other: nobody else can open it, none is left behind, and it
    can be locked wherever TMPDIR lies."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("energybench ranks")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _meet(number: int, spec: TrialSpec | CountingSpec, place: int) -> Ranks:
    """Returns when every rank is there. No card is touched before: the first rank opens its meters first."""
    world = str(spec.world)
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world)
    os.environ.update(GLOO_SOCKET_IFNAME=LOOPBACK, NCCL_SOCKET_IFNAME=LOOPBACK)  # no other machine hears them
    store = dist.FileStore(f"/dev/fd/{place}", spec.world)
    device = rank_device(torch.device(spec.device), number)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=spec.world, timeout=LONGEST_WAIT)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)  # its context, before the first window: to its meters this process is none other
    _warn_no_more()
    ranks = Ranks(number, spec.world, device)
    ranks.barrier()
    return ranks


def _warn_no_more() -> None:
    """torch says once in a process that looking for unused parameters found none, and that gradients lie otherwise in
    memory than it sends them: in every rank of every trial. The first comes from C++ and is used up here; that the
    looking is on in every cell is meant (`train/ranks.py`)."""
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with torch.random.fork_rng(devices=[]):
            wrapped = DistributedDataParallel(nn.Linear(1, 1), find_unused_parameters=True)
            wrapped(torch.ones(1, 1)).sum().backward()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _said(heard: int) -> str:
    """What a rank wrote before it ended; workers that it started may still hold the other end."""
    os.set_blocking(heard, False)
    try:
        return os.read(heard, 1 << 16).decode(errors="replace")
    except BlockingIOError:
        return ""
    finally:
        os.close(heard)


def _lost(number: int, code: int, said: str) -> RankLost:
    if code < 0:
        reason = f"rank {number} was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            return RankLost("out_of_memory", f"{reason}, most often for lack of memory")
        return RankLost("failed", reason)
    try:
        status, reason = json.loads(said)
    except ValueError:
        return RankLost("failed", f"rank {number} ended with status {code}")
    return RankLost(status, f"rank {number}: {reason}")


def _is_of_a_message(error: Exception) -> bool:
    """Whether a message to another rank failed, rather than what this one computes."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "closed by peer"))
