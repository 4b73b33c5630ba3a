"""An interpreter that has imported a module once and forks for each call of its main: a start in milliseconds.

    run ── server            imports, then sleeps on a pipe; ends with the run, at the end of its input
     └──── call, call, …     each forked twice by the server: its parent is then the run, which adopts orphans

So whoever supervises a call is its parent, as of any process that it had started itself: it waits for it, is told its
status, and ends it. The server computes nothing and has one thread, so that a fork of it is whole. Linux only; where
the server cannot be had, the caller starts an interpreter for the call.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import IO

from energybench.common import module_path
from energybench.common.processes import PRCTL, die_with

ADOPTED_S = 10.0  # within which a call has become its caller's child
LONGEST_B = 1 << 22  # of a request: the environment is in it


class NotPrepared(OSError):
    """There is no server, or it does not answer: nothing was started."""


class Adopted:
    """A process that the server forked, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int, stdout: IO[bytes] | None, stderr: IO[bytes] | None) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class PreparedInterpreter:
    """The server of one module. It is started with the first call, or by `warm`, and again if it has died.

    module: its dotted name; its main(IN, OUT) is what is called
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._server: subprocess.Popen[bytes] | None = None
        self._line: Connection[bytes, bytes] | None = None

    def warm(self) -> None:
        """Start it now, so that its imports overlap with what the caller does next."""
        if self._server is not None and self._server.poll() is None:
            return
        self.close()
        ours, theirs = Pipe()
        with theirs:
            words = [self.module, str(theirs.fileno()), str(os.getpid())]
            code = f"from {__name__} import main\nmain(*{words!r})"
            self._server = subprocess.Popen(
                [sys.executable, *module_path.in_new_interpreter(code, with_package=True)],
                env=module_path.without_those(dict(os.environ)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._line = ours

    def start(self, in_path: Path, out_path: Path, death_signal: int) -> Adopted:
        """A call of main(IN, OUT), in this process's folder and environment; the caller adopts orphans meanwhile.

        Raises:
            NotPrepared: where there is no server, or it does not answer
        """
        if PRCTL is None:
            raise NotPrepared("orphans are adopted on Linux alone")
        try:
            self.warm()
        except OSError as error:
            raise NotPrepared(str(error)) from None
        assert self._line is not None
        assert self._server is not None
        request = {
            "paths": [str(in_path.absolute()), str(out_path.absolute())],
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "caller": os.getpid(),
            "death_signal": int(death_signal),
        }
        read_ends, write_ends = zip(os.pipe(), os.pipe(), strict=True)
        try:
            self._line.send_bytes(json.dumps(request).encode())
            for end in write_ends:
                send_handle(self._line, end, self._server.pid)
            pid = int(self._line.recv_bytes(64))
        except (OSError, EOFError, ValueError) as error:
            for end in read_ends:
                os.close(end)
            self.close()
            raise NotPrepared(str(error)) from None
        finally:
            for end in write_ends:
                os.close(end)
        return Adopted(pid, os.fdopen(read_ends[0], "rb", 0), os.fdopen(read_ends[1], "rb", 0))

    def close(self) -> None:
        """It ends at the end of its input."""
        if self._line is not None:
            self._line.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._server = self._line = None


def main(module: str, handle: str, caller: str) -> None:
    """The server: import, then fork for every request until the caller is gone."""
    die_with(int(caller), signal.SIGKILL)
    called = importlib.import_module(module)
    with Connection(int(handle)) as asked:
        while True:
            try:
                content = asked.recv_bytes(LONGEST_B)
                handles = [recv_handle(asked), recv_handle(asked)]
            except EOFError:
                return
            middle = os.fork()
            if not middle:
                _fork_again(called, json.loads(content), handles, asked)
            for each in handles:
                os.close(each)
            os.waitpid(middle, 0)


def _fork_again(
    called: object, request: Mapping[str, object], handles: list[int], asked: Connection[bytes, bytes]
) -> None:
    """In the process between: its child is an orphan at once, and the caller's."""
    status = 1
    try:
        call = os.fork()
        if call:
            asked.send_bytes(str(call).encode())
            status = 0
        else:
            asked.close()
            status = _call(called, request, handles)
    finally:
        os._exit(status)


def _call(called: object, request: Mapping[str, object], handles: list[int]) -> int:
    """As `python -m` would run it; its exit status."""
    caller, number = int(str(request["caller"])), int(str(request["death_signal"]))
    until = time.monotonic() + ADOPTED_S
    while os.getppid() != caller:
        if time.monotonic() > until:
            return 1
        time.sleep(0.0005)
    die_with(caller, number)
    os.setsid()
    for handle, target in zip(handles, (1, 2), strict=True):
        os.dup2(handle, target)
        os.close(handle)
    os.environ.clear()
    environment = request["environment"]
    assert isinstance(environment, dict)
    os.environ.update(environment)
    os.chdir(str(request["folder"]))
    paths = request["paths"]
    assert isinstance(paths, list)
    try:
        called.main(*paths)  # type: ignore[attr-defined]
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status
