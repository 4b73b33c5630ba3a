"""Each trial in a process of its own, forked from a server that has imported everything and computed nothing.

The parent imports no torch and blocks while a trial runs. Of several that take turns all but one are stopped.
The child leads a session of its own, below a guard: at its end or its limit everything that it started ends with it,
and if the parent dies, the server ends, and all with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from energybench.common import module_path
from energybench.common.errors import EXIT_CANNOT_WRITE, Problem, RunError
from energybench.common.held_folder import FolderIdentity
from energybench.common.interrupts import SPREAD_S
from energybench.common.processes import descendants, ignoring_interrupts, is_dead, shorten_socket_folder
from energybench.process import in_child
from energybench.process.in_child import PRELOAD
from energybench.process.isolated import isolated_interpreters
from energybench.process.reaper import PATIENCE_S, continue_descendants, end_descendants, stop_descendants, wait_for_end

LONGEST_MESSAGE_B = 1 << 20
SERVER_LOST = 255  # what multiprocessing says of a child whose server has died


@dataclass(frozen=True, slots=True)
class ChildOutcome:
    """How a child ended.

    seconds:   from its start to its end
    timed_out: it ran past its limit and was ended
    reason:    why it did not end by itself with status 0; None where it did
    killed:    by a signal that the launcher did not send
    unwritten: its results could not be written: the disk is full, or read-only
    wall_s:    of the process itself, by the clock of its guard; None where the guard was killed
    cpu_s:     that it and all it started used, as the kernel told the guard
    rested_s:  of wall_s, stopped
    """

    seconds: float
    timed_out: bool = False
    reason: str | None = None
    killed: bool = False
    unwritten: bool = False
    wall_s: float | None = None
    cpu_s: float | None = None
    rested_s: float = 0.0


class Launcher:
    """Starts children, each forked from the server: one at a time, or several that take turns."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOAD])
        self._alive: list[Child] = []

    def warm(self) -> None:
        """Start the server now, so that imports overlap with what the caller does next."""
        shorten_socket_folder()
        try:
            with ignoring_interrupts(), isolated_interpreters():
                multiprocessing.forkserver.ensure_running()
        except OSError as error:
            if error.errno is None and "AF_UNIX" in str(error):  # and no shorter folder can be written
                message = "the process that starts trials needs a socket, whose path is too long in TMPDIR"
                raise RunError(Problem("E670", message, hint="export TMPDIR= a folder with a short path")) from None
            raise

    def call(
        self,
        target: str,
        in_path: Path,
        out_path: Path,
        *,
        log: Path | None = None,
        folder: FolderIdentity | None = None,
        limit_s: float | None = None,
        tick: Callable[[float], None] | None = None,
        tick_s: float = 5.0,
    ) -> ChildOutcome:
        """Run a function in a child and wait, asleep, until it ends or its limit has passed.

        Args:
            target:            "module:function", called as function(IN, OUT).
            in_path, out_path: the files that it reads and writes.
            log:               where its output is appended; None: it writes where this process does.
            folder:            that the log stands in and that this process holds: no link below it is followed.
            limit_s:           after which it is ended; None: never.
            tick:              called with the elapsed seconds every `tick_s`.

        Returns:
            How it ended. Nothing that it started is left.
        """
        child = self.start(target, in_path, out_path, log=log, folder=folder)
        try:
            timed_out = not child.wait(limit_s, tick, tick_s)
        except BaseException:
            child.end()
            raise
        return child.past(limit_s) if timed_out else child.outcome()

    def start(
        self,
        target: str,
        in_path: Path,
        out_path: Path,
        *,
        log: Path | None = None,
        folder: FolderIdentity | None = None,
        conversing: bool = False,
    ) -> Child:
        """The same without waiting: whoever asks sees to it that the child ends.

        Args:
            conversing: whether it has a line to this process: `line()` there, `tell` and `hear` here.
        """
        started = time.monotonic()
        paths = [str(path.absolute()) if path else None for path in (in_path, out_path, log)]
        usage = in_path.absolute().with_name(f"{in_path.name}.usage")
        usage.unlink(missing_ok=True)
        given = (target, os.getcwd(), dict(os.environ), module_path.path_of_children())
        ours, its = self._context.Pipe() if conversing else (None, None)
        try:
            process = self._start((*given, *paths, str(usage), folder, its))
        except BaseException:
            if ours is not None:
                ours.close()
            raise
        finally:
            if its is not None:
                its.close()
        child = Child(self, process, started, usage, ours)
        self._alive.append(child)
        return child

    def _start(self, arguments: tuple[Any, ...]) -> multiprocessing.process.BaseProcess:
        for last in (False, True):
            self.warm()  # again, if it has died
            child = self._context.Process(target=in_child.run, args=arguments)
            try:
                with _without_main_module(), isolated_interpreters():
                    child.start()
                break
            except (OSError, EOFError) as error:
                if last:
                    message = f"the process that starts trials has ended: {error or type(error).__name__}"
                    raise RunError(Problem("E670", message, hint="what it said stands above")) from error
                wait_for_end(_server_pid())  # it was killed as we asked; what it had forked ends by itself
        return child

    def _end_orphans(self) -> None:
        """End what the server became the parent of because its guard was killed by SIGKILL."""
        if pid := _server_pid():
            end_descendants(pid, spared={child.guard for child in self._alive})

    @staticmethod
    def _server_is_dead() -> bool:
        """Or dying: its memory, and so its command line, goes before the pipe that tells us."""
        pid = _server_pid()
        if pid is None or is_dead(pid):
            return True
        with contextlib.suppress(OSError):
            return not Path(f"/proc/{pid}/cmdline").read_bytes()
        return False


class Child:
    """A child under way, below its guard. `rested_s`: of its time, in which it was stopped."""

    def __init__(
        self,
        launcher: Launcher,
        process: multiprocessing.process.BaseProcess,
        started: float,
        usage: Path,
        line: Connection[bytes, bytes] | None,
    ) -> None:
        self._launcher, self._process, self._started, self._usage, self._line = launcher, process, started, usage, line
        self.guard = process.pid or 0
        self.rested_s = 0.0
        self._stopped_at: float | None = None

    @property
    def own_s(self) -> float:
        """Seconds since its start in which it was not stopped."""
        now = time.monotonic()
        resting_s = 0.0 if self._stopped_at is None else now - self._stopped_at
        return now - self._started - self.rested_s - resting_s

    def wait(
        self,
        limit_s: float | None = None,
        tick: Callable[[float], None] | None = None,
        tick_s: float = 5.0,
        *,
        hearing: bool = False,
    ) -> bool:
        """Asleep until it has ended or, if `hearing`, says something. False: `limit_s` of its own seconds passed."""
        heard = [self._line] if hearing and self._line is not None else []
        while True:
            remaining = float("inf") if limit_s is None else limit_s - self.own_s
            if remaining <= 0:
                return False
            pause = min(remaining, tick_s if tick else remaining)
            ready = wait([self._process.sentinel, *heard], None if pause == float("inf") else pause)
            if ready:
                return True
            if tick:
                tick(self.own_s)

    def hear(self) -> bytes | None:
        """What it said; None where it has ended, or is about to."""
        if self._line is not None:
            with contextlib.suppress(EOFError, OSError):
                if self._line.poll():
                    return self._line.recv_bytes(LONGEST_MESSAGE_B)
        return None

    def tell(self, message: bytes) -> None:
        """Say something to it; to one that has ended, nothing."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.send_bytes(message)

    def stop(self) -> None:
        """Nothing of it runs until `go_on`: SIGSTOP to it and to all that it has started."""
        if self._stopped_at is None:
            stop_descendants(self.guard)
            self._stopped_at = time.monotonic()

    def go_on(self) -> None:
        if self._stopped_at is not None:
            self.rested_s += time.monotonic() - self._stopped_at
            self._stopped_at = None
            continue_descendants(self.guard)

    def pids(self) -> set[int]:
        """Of it and of everything that it has started; its guard's is not among them."""
        return descendants(self.guard)

    def end(self) -> None:
        """SIGTERM to the guard, which ends everything, stopped or not; SIGKILL if it does not answer."""
        for number, patience_s in ((signal.SIGTERM, 2 * PATIENCE_S), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.guard, number)
            self._process.join(patience_s)
            if self._process.exitcode is not None:
                break
        self._leave()
        self._launcher._end_orphans()

    def past(self, limit_s: float | None) -> ChildOutcome:
        """End it at its limit."""
        self.end()
        seconds = time.monotonic() - self._started
        return ChildOutcome(seconds, True, f"it ran past its limit of {limit_s:g} s", rested_s=self.rested_s)

    def outcome(self) -> ChildOutcome:
        """How it ended, once it has."""
        self._process.join()
        self._leave()
        seconds, code = time.monotonic() - self._started, self._process.exitcode
        if not code:
            wall_s, cpu_s = _read_usage(self._usage)
            return ChildOutcome(seconds, wall_s=wall_s, cpu_s=cpu_s, rested_s=self.rested_s)
        reason = f"it ended with status {code}"
        if code == SERVER_LOST and self._launcher._server_is_dead():
            wait_for_end(self.guard)  # it has no server any more, and may still be writing
            reason = "the process that starts trials was killed"
            time.sleep(SPREAD_S)
        if code < 0:
            self._launcher._end_orphans()  # it may have been the guard
            if -code != signal.SIGKILL:
                time.sleep(SPREAD_S)
            name = signal.Signals(-code).name
            reason = f"it was killed by {name}" + (", most often for lack of memory" if -code == signal.SIGKILL else "")
        unwritten = code == EXIT_CANNOT_WRITE
        return ChildOutcome(seconds, False, reason, code < 0, unwritten, rested_s=self.rested_s)

    def _leave(self) -> None:
        """It has ended: it is none of those that are spared any more, and nobody listens to it."""
        if self in self._launcher._alive:
            self._launcher._alive.remove(self)
        if self._line is not None:
            self._line.close()
            self._line = None


def _read_usage(path: Path) -> tuple[float | None, float | None]:
    """What the guard wrote; (None, None) where it could not."""
    try:
        wall_s, cpu_s = map(float, path.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None, None
    return wall_s, cpu_s


def _server_pid() -> int | None:
    return getattr(getattr(multiprocessing.forkserver, "_forkserver", None), "_forkserver_pid", None)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """multiprocessing imports the caller's main module again in every child: a script that calls energybench without
    `if __name__ == "__main__"` would run again in each. A trial needs nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
