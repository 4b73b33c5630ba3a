"""None survives: whatever a trial started ends with it, however it tried to get away.

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

from energybench.common.processes import adopt_orphans, descendants, die_with, is_dead, restore_child_signals

PATIENCE_S = 5.0  # for processes that the kernel cannot end yet, in a read from a dead disk for instance
PAUSE_S = 0.002
HEARD = frozenset({signal.SIGCHLD, signal.SIGTERM})


def adopt() -> None:
    """Called in the server, once: orphans come to it, and end with it."""
    adopt_orphans()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # it learns by signals that a trial has ended
    warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")  # an orphan's
    atexit.register(end_descendants, os.getpid())  # children leave by _exit, which asks no atexit


def stand_guard(parent: int) -> None:
    """Returns in a new process, the trial's. The calling one becomes its guard and never returns.

    parent: whoever dies first takes the guard with it
    The guard ends as the trial did, with its status or by its signal, when nothing of it is left. On SIGTERM it ends
    everything at once.
    """
    os.setsid()  # a signal to the run's group is not meant for the guard: the run itself decides
    restore_child_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    adopt_orphans()
    die_with(parent, signal.SIGTERM)
    guard = os.getpid()
    trial = os.fork()
    if not trial:
        die_with(guard, signal.SIGKILL)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        return
    status: int | None = None
    while status is None:
        if signal.sigwait(HEARD) == signal.SIGTERM:
            status = signal.SIGTERM
            break
        status = _reap().get(trial)
    end_descendants(guard)
    _end_as(status)


def end_descendants(ancestor: int) -> None:
    """SIGKILL to all of them, until there are none. Stopped first: what forks while it is killed gets away."""
    deadline = time.monotonic() + PATIENCE_S
    while (left := _descendants(ancestor)) and time.monotonic() < deadline:
        stopped: set[int] = set()
        while left - stopped and time.monotonic() < deadline:
            _send(signal.SIGSTOP, left - stopped)
            stopped |= left
            left = _descendants(ancestor)
        _send(signal.SIGKILL, left | stopped)
        time.sleep(PAUSE_S)
        if ancestor == os.getpid():
            _reap()


def _descendants(ancestor: int) -> set[int]:
    """Those that are not yet dead."""
    return {pid for pid in descendants(ancestor) if not is_dead(pid)}


def wait_for_end(pid: int | None) -> None:
    """Until that process has ended, or PATIENCE_S have passed."""
    deadline = time.monotonic() + PATIENCE_S
    while pid and not is_dead(pid) and time.monotonic() < deadline:
        time.sleep(PAUSE_S)


def _send(number: int, pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _reap() -> dict[int, int]:
    """Those that have ended by now: process id → wait status."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (each := os.waitpid(-1, os.WNOHANG))[0]:
            ended[each[0]] = each[1]
    return ended


def _end_as(status: int) -> None:
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # whatever there was to see stands in the trial's own
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))
