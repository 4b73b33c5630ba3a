"""No descendant survives: whatever a trial started ends with it, daemons and orphans too.

A process that leaves its group and session, or whose own parent has died, escapes a kill of the group. So each trial
runs below a guard, a process that sleeps. The kernel gives it every orphan among its descendants (a "subreaper"), and
it ends when they all have. The guard stands between two others, so that any of them may be killed by force:

    run ── server ── guard ── trial ── whatever it starts
           dies with the run, and takes the rest with it
                     dies with the server, and takes the rest with it
                              dies with the guard; then the server takes what it left

Linux only; elsewhere a trial's direct descendants alone are ended. Imports no torch.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import signal
import time
import warnings
from collections.abc import Collection

from energybench.common.processes import adopt_orphans, descendants, die_with, is_dead, restore_child_signals

PATIENCE_S = 5.0  # for processes that the kernel cannot end yet, in a read from a dead disk for instance
PAUSE_S = 0.002
GUARD_SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM})


def adopt_orphans_until_exit() -> None:
    """Called in the server, once: it becomes the parent of trials' orphans, and ends them at its exit."""
    adopt_orphans()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # it learns by signals that a trial has ended
    warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")  # an orphan's
    atexit.register(end_descendants, os.getpid())  # children leave by _exit, which asks no atexit


def fork_below_guard(parent: int, usage: str | None = None) -> None:
    """Fork: the new process, the trial's, returns; the calling one becomes its guard and never returns.

    The guard ends as the trial did, with its status or by its signal, when nothing of it is left. On SIGTERM it ends
    everything at once.

    Args:
        parent: the process id of the server; when it dies, the kernel sends the guard SIGTERM.
        usage:  a file into which the guard writes, when nothing of the trial is left, how many wall seconds it took and
                how many CPU seconds it and its descendants used: "WALL CPU", by the guard's own clock and the kernel.
    """
    os.setsid()  # a signal to the run's group is not meant for the guard: the run itself decides
    restore_child_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, GUARD_SIGNALS)
    adopt_orphans()
    die_with(parent, signal.SIGTERM)
    guard = os.getpid()
    started = time.monotonic()
    trial = os.fork()
    if not trial:
        die_with(guard, signal.SIGKILL)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GUARD_SIGNALS)
        return
    status: int | None = None
    while status is None:
        if signal.sigwait(GUARD_SIGNALS) == signal.SIGTERM:
            status = signal.SIGTERM
            break
        status = _reap().get(trial)
    wall_s = time.monotonic() - started
    end_descendants(guard)
    _reap()
    if usage:
        _tell(usage, wall_s)
    _end_as(status)


def _tell(path: str, wall_s: float) -> None:
    """Of every descendant that has been waited for: all of them, since the guard is the parent of their orphans."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as file:
        file.write(f"{wall_s!r} {used.ru_utime + used.ru_stime!r}")


def end_descendants(ancestor: int, spared: Collection[int] = ()) -> None:
    """SIGKILL to all of them, until there are none. Stopped first: what forks while it is killed gets away.

    Args:
        spared: children of the ancestor that stay, with what they started
    """
    deadline = time.monotonic() + PATIENCE_S
    while (alive := _descendants(ancestor, spared)) and time.monotonic() < deadline:
        _signal_all(signal.SIGKILL, alive | _stop(ancestor, spared, deadline))
        time.sleep(PAUSE_S)
        if ancestor == os.getpid():
            _reap()


def stop_descendants(ancestor: int) -> None:
    """SIGSTOP to all of them, until none runs that was not sent it. What ends them by SIGKILL ends them stopped too."""
    _stop(ancestor, (), time.monotonic() + PATIENCE_S)


def continue_descendants(ancestor: int) -> None:
    """SIGCONT to all of them."""
    _signal_all(signal.SIGCONT, _descendants(ancestor))


def _stop(ancestor: int, spared: Collection[int], deadline: float) -> set[int]:
    """Stop whatever there is, and what that forked before it was stopped; whom a signal was sent."""
    stopped: set[int] = set()
    while (alive := _descendants(ancestor, spared)) - stopped and time.monotonic() < deadline:
        _signal_all(signal.SIGSTOP, alive - stopped)
        stopped |= alive
    return stopped


def _descendants(ancestor: int, spared: Collection[int] = ()) -> set[int]:
    """Those that are not yet dead."""
    kept = {*spared}.union(*map(descendants, spared))
    return {pid for pid in descendants(ancestor) - kept if not is_dead(pid)}


def wait_for_end(pid: int | None) -> None:
    """Until that process has ended, or PATIENCE_S have passed."""
    deadline = time.monotonic() + PATIENCE_S
    while pid and not is_dead(pid) and time.monotonic() < deadline:
        time.sleep(PAUSE_S)


def _signal_all(number: int, pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _reap() -> dict[int, int]:
    """Children that have ended by now: process id → wait status."""
    statuses: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            statuses[ended[0]] = ended[1]
    return statuses


def _end_as(status: int) -> None:
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core dump, the trial's, is enough
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))
