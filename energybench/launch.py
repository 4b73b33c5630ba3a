"""Each trial in a process of its own, forked from a server that has imported everything and computed nothing.

The parent imports no torch and blocks while a trial runs. The child leads a session of its own, so that at its limit it
is killed with everything it started; if the parent dies, the server ends, and the kernel ends the child with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PRELOAD = "energybench.preload"
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended. `reason` is None when it ended by itself with status 0."""

    seconds: float
    timed_out: bool = False
    reason: str | None = None
    killed: bool = False  # by a signal that we did not send


class Launcher:
    """Starts children one at a time. `start_seconds` is how long the server took to import."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOAD])

    def warm(self) -> None:
        """Start the server now, so that imports overlap with what the caller does next."""
        with _deaf_to_interrupts():
            multiprocessing.forkserver.ensure_running()

    def call(self, target: str, in_path: Path, out_path: Path, *, log: Path | None = None, limit_s: float | None = None,
             tick: Callable[[float], None] | None = None, tick_s: float = 5.0) -> Outcome:  # fmt: skip
        """Run `module:function`(IN, OUT) in a child and wait, asleep, until it ends or its limit has passed.

        log:  where its output goes; None: to ours
        tick: called with the elapsed seconds every `tick_s`
        """
        started = time.monotonic()
        self.warm()  # again, if it has died
        paths = [str(path.absolute()) if path else None for path in (in_path, out_path, log)]
        child = self._context.Process(target=_child, args=(target, os.getcwd(), dict(os.environ), *paths))
        with _main_hidden():
            child.start()
        try:
            timed_out = not self._wait(child, started, limit_s, tick, tick_s)
        except BaseException:
            self._kill(child)
            raise
        if timed_out:
            self._kill(child)
            return Outcome(time.monotonic() - started, True, f"it ran past its limit of {limit_s:g} s")
        self._sweep(child.pid)
        code = child.exitcode
        if not code:
            return Outcome(time.monotonic() - started)
        reason = f"it ended with status {code}"
        if code < 0:
            name = signal.Signals(-code).name
            reason = f"it was killed by {name}" + (
                ", most often for lack of memory" if -code == signal.SIGKILL else ""
            )
        return Outcome(time.monotonic() - started, False, reason, killed=code < 0)

    def _wait(self, child: multiprocessing.process.BaseProcess, started: float, limit_s: float | None,
              tick: Callable[[float], None] | None, tick_s: float) -> bool:  # fmt: skip
        while True:
            elapsed = time.monotonic() - started
            left = float("inf") if limit_s is None else limit_s - elapsed
            if left <= 0:
                return False
            pause = min(left, tick_s if tick else left)
            child.join(None if pause == float("inf") else pause)
            if child.exitcode is not None:
                return True
            if tick:
                tick(time.monotonic() - started)

    def _kill(self, child: multiprocessing.process.BaseProcess) -> None:
        self._sweep(child.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child.pid or 0, signal.SIGKILL)
        child.join()

    @staticmethod
    def _sweep(group: int | None) -> None:
        """Whatever the child left running in its session's process group."""
        if group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A Ctrl-C is ours: whoever is started here ignores it from its first instruction, and ends with us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """multiprocessing imports the caller's main module again in every child: a script that calls us without
    `if __name__ == "__main__"` would run again in each. A child of ours needs nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _child(
    target: str, folder: str, environment: dict[str, str], in_path: str, out_path: str, log: str | None
) -> None:
    os.setsid()
    os.environ.clear()  # the server knows it only as it was at its start
    os.environ.update(environment)
    with contextlib.suppress(OSError, AttributeError):  # Linux: die with the server, and so with the parent
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    preload = sys.modules.get(PRELOAD)
    orphaned = preload is not None and os.getppid() != preload.SERVER  # the server died before we asked
    if orphaned or not os.path.exists(in_path):  # or the caller was interrupted and has tidied up
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir(folder)  # the caller's, which the server knows only as it was at its start
    if log:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(in_path, out_path)
    sys.stdout.flush()
    sys.stderr.flush()
