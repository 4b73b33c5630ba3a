"""Each trial in a process of its own, forked from a server that has imported everything and computed nothing.

The parent imports no torch and blocks while a trial runs. The child leads a session of its own, below a guard: at its
end or its limit everything that it started ends with it, and if the parent dies, the server ends, and all with it.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energybench.common.errors import EXIT_CANNOT_WRITE, CannotWrite
from energybench.common.processes import ignoring_interrupts, is_dead, shorten_socket_folder
from energybench.process.reaper import PATIENCE_S, end_descendants, stand_guard, wait_for_end

PRELOAD = "energybench.cli.preload"
# A scheduler signals all processes of a job, in any order: when one of them has died, ours may be on its way.
TO_ALL_S = 1.0
SERVER_LOST = 255  # what multiprocessing says of a child whose server has died


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended. `reason` is None when it ended by itself with status 0."""

    seconds: float
    timed_out: bool = False
    reason: str | None = None
    killed: bool = False  # by a signal that we did not send
    unwritten: bool = False  # what it had to say could not be written: the disk is full, or read-only


class Launcher:
    """Starts children one at a time. `start_seconds` is how long the server took to import."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOAD])

    def warm(self) -> None:
        """Start the server now, so that imports overlap with what the caller does next."""
        shorten_socket_folder()
        with ignoring_interrupts():
            multiprocessing.forkserver.ensure_running()

    def call(
        self,
        target: str,
        in_path: Path,
        out_path: Path,
        *,
        log: Path | None = None,
        limit_s: float | None = None,
        tick: Callable[[float], None] | None = None,
        tick_s: float = 5.0,
    ) -> Outcome:
        """Run `module:function`(IN, OUT) in a child and wait, asleep, until it ends or its limit has passed.

        log:  where its output goes; None: to ours
        tick: called with the elapsed seconds every `tick_s`
        """
        started = time.monotonic()
        paths = [str(path.absolute()) if path else None for path in (in_path, out_path, log)]
        child = self._start((target, os.getcwd(), dict(os.environ), *paths))
        try:
            timed_out = not self._wait(child, started, limit_s, tick, tick_s)
        except BaseException:
            self._kill(child)
            raise
        if timed_out:
            self._kill(child)
            return Outcome(time.monotonic() - started, True, f"it ran past its limit of {limit_s:g} s")
        code = child.exitcode
        if not code:
            return Outcome(time.monotonic() - started)
        reason = f"it ended with status {code}"
        if code == SERVER_LOST and self._server_is_dead():
            wait_for_end(child.pid)  # what has no server any more may still be writing
            reason = "the process that starts trials was killed"
            time.sleep(TO_ALL_S)
        if code < 0:
            self._sweep()  # it may have been the guard
            if -code != signal.SIGKILL:
                time.sleep(TO_ALL_S)
            name = signal.Signals(-code).name
            reason = f"it was killed by {name}" + (", most often for lack of memory" if -code == signal.SIGKILL else "")
        return Outcome(time.monotonic() - started, False, reason, code < 0, code == EXIT_CANNOT_WRITE)

    def _start(self, arguments: tuple[Any, ...]) -> multiprocessing.process.BaseProcess:
        for last in (False, True):
            self.warm()  # again, if it has died
            child = self._context.Process(target=_child, args=arguments)
            try:
                with _main_hidden():
                    child.start()
                break
            except (OSError, EOFError):
                if last:
                    raise
                wait_for_end(_server())  # it was killed as we asked; what it had forked ends by itself
        return child

    def _wait(
        self,
        child: multiprocessing.process.BaseProcess,
        started: float,
        limit_s: float | None,
        tick: Callable[[float], None] | None,
        tick_s: float,
    ) -> bool:
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
        """Ask the guard, which ends everything; force it if it does not answer."""
        for number, patience_s in ((signal.SIGTERM, 2 * PATIENCE_S), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child.pid or 0, number)
            child.join(patience_s)
            if child.exitcode is not None:
                break
        self._sweep()

    def _sweep(self) -> None:
        """Whatever came to the server because its guard was killed by force."""
        if pid := _server():
            end_descendants(pid)

    @staticmethod
    def _server_is_dead() -> bool:
        """Or dying: its memory, and so its command line, goes before the pipe that tells us."""
        pid = _server()
        if pid is None or is_dead(pid):
            return True
        with contextlib.suppress(OSError):
            return not Path(f"/proc/{pid}/cmdline").read_bytes()
        return False


def _server() -> int | None:
    return getattr(getattr(multiprocessing.forkserver, "_forkserver", None), "_forkserver_pid", None)


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


def _child(target: str, folder: str, environment: dict[str, str], in_path: str, out_path: str, log: str | None) -> None:
    _let_the_server_end()
    os.environ.clear()  # the server knows it only as it was at its start
    os.environ.update(environment)
    stand_guard(getattr(sys.modules.get(PRELOAD), "SERVER", os.getppid()))
    if not os.path.exists(in_path):  # the caller was interrupted and has tidied up
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir(folder)  # the caller's, which the server knows only as it was at its start
    if log:
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            _end_unwritten(CannotWrite.of(error, log))
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(in_path, out_path)
    except CannotWrite as error:
        _end_unwritten(error)
    sys.stdout.flush()
    sys.stderr.flush()


def _let_the_server_end() -> None:
    """It ends when nobody holds the write end of a pipe any more: multiprocessing hands each child a copy, and a trial
    of hours would keep the server, and so itself, alive when the run is killed."""
    server = getattr(multiprocessing.forkserver, "_forkserver", None)
    handle = getattr(server, "_forkserver_alive_fd", None)
    if isinstance(handle, int):
        os.close(handle)
        server._forkserver_alive_fd = None  # type: ignore[union-attr]


def _end_unwritten(error: CannotWrite) -> None:
    """Say it in the log, if that has room, and by the status in any case."""
    with contextlib.suppress(OSError):
        os.write(2, f"{error}\n".encode())
    os._exit(EXIT_CANNOT_WRITE)
