"""Command lines forked from a server that has imported everything: what a test of a run pays for is the run.

A run by itself starts two interpreters, of which one imports torch: two seconds of the processor, for trainings of
milliseconds. Here the run and the process that starts its trials are forks of one server, made once in a session.

Everything else is real: the folder, the environment, the streams, exit codes and signals; the run's own process, its
server, the guards and the trials with their pipes, process groups and ends. Not real is the start of an interpreter, so
what is read there (LD_LIBRARY_PATH, PYTHON…, locale, processor threads) needs a fresh one; so does who looks for a
process by its command line or its first environment, which are the server's here.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

READ_AT_START = ("LD_", "PYTHON", "LANG", "LC_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "TORCH_")


# ── the caller's side ─────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """Started when it is first asked; ends with this process, whose end of the socket closes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, arguments: list[str], cwd: Path, environment: dict[str, str], streams: list[int]) -> socket.socket:
        """`energybench ARGUMENTS` under way; what comes back tells its process number, then its exit code."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            ours, theirs = socket.socketpair()
            request = {"arguments": arguments, "cwd": str(cwd.absolute()), "environment": environment}
            with theirs, tempfile.TemporaryFile() as file:  # of any size, in one message
                file.write(json.dumps(request).encode())
                file.flush()
                socket.send_fds(self._asked, [b"!"], [theirs.fileno(), file.fileno(), *streams])
                assert ours.recv(1) == b"!"  # taken: our copies may be closed
        return ours

    def _start(self) -> None:
        self._asked, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])

    def close(self) -> None:
        if self._process is not None:
            self._asked.close()
            self._process.wait()


SERVER = Server()
atexit.register(SERVER.close)


class Forked:
    """What subprocess.Popen(["energybench", ...], stdout=PIPE, stderr=PIPE, text=True) is, of a process that was forked."""

    def __init__(self, arguments: list[str], *, cwd: Path, env: dict[str, str]) -> None:
        self.args, self.returncode = ["energybench", *arguments], None
        (out, out_to), (err, err_to) = os.pipe(), os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            self._told = SERVER.fork(arguments, cwd, env, [nothing, out_to, err_to])
        finally:
            for handle in (nothing, out_to, err_to):
                os.close(handle)
        self.stdout, self.stderr = (open(handle, encoding="utf-8", errors="replace") for handle in (out, err))
        self.pid = self._number()

    returncode: int | None

    def _number(self) -> int:
        with self._told.makefile("rb", buffering=0) as file:
            line = file.readline()
        if not line:
            raise RuntimeError("the server of the tests' command lines has died")
        return int(line)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = self._number()
            self._told.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr), when nobody holds them any more."""
        found: dict[str, str] = {}
        readers = [
            threading.Thread(target=lambda name=name: found.update({name: getattr(self, name).read()}), daemon=True)
            for name in ("stdout", "stderr")
        ]
        for reader in readers:
            reader.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        for reader in readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.stdout.close()
        self.stderr.close()
        return found["stdout"], found["stderr"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def forkable(environment: dict[str, str]) -> bool:
    """Whether nothing in it is read at the start of an interpreter, beyond what the server was started with."""
    names = environment.keys() | os.environ.keys()
    return all(environment.get(name) == os.environ.get(name) for name in names if name.startswith(READ_AT_START))


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────────


def serve(asked: socket.socket) -> None:
    """Until nobody holds the other end."""
    preload()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever stops the tests stops us by closing the socket
    running: dict[int, tuple[int, socket.socket]] = {}  # handle of a process → its number, who waits for it
    while True:
        ready, _, _ = select.select([asked, *running], [], [])
        for handle in ready:
            if handle is asked:
                message, handles, _, _ = socket.recv_fds(asked, 1, 5)
                if not message:
                    return
                pid, answer = begin(handles, [*running, asked.fileno(), *(s.fileno() for _, s in running.values())])
                running[os.pidfd_open(pid)] = (pid, answer)
            else:
                pid, answer = running.pop(handle)
                os.close(handle)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with answer, contextlib.suppress(OSError):  # who asked may have gone
                    answer.sendall(f"{code}\n".encode())


def preload() -> None:
    """What a run and the process that starts its trials import. Nothing is computed, as in energybench.preload."""
    from energybench import guard, launch

    adopt, guard.adopt = guard.adopt, lambda: None  # that is for the server of a run
    importlib.import_module(launch.PRELOAD)
    guard.adopt = adopt
    forget()
    for name in ("runner", "report.pages", "report.terminal", "results"):
        importlib.import_module(f"energybench.{name}")


def forget() -> None:
    """So that a run's server imports it as its own: it notes there who it is."""
    sys.modules.pop("energybench.preload", None)


def begin(handles: list[int], others: list[int]) -> tuple[int, socket.socket]:
    answer_to, request, *streams = handles
    pid = os.fork()
    if not pid:
        for handle in [*others, answer_to]:
            os.close(handle)
        become(request, streams)
    answer = socket.socket(fileno=answer_to)
    answer.sendall(f"!{pid}\n".encode())
    for handle in [request, *streams]:
        os.close(handle)
    return pid, answer


def become(request: int, streams: list[int]) -> NoReturn:
    """The command line, to its end."""
    os.setsid()  # as a shell starts it in the foreground
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(request, "rb") as file:
        file.seek(0)
        asked = json.load(file)
    for number, handle in enumerate(streams):
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None
    sys.path[0] = asked["cwd"]  # as -m does
    sys.argv = ["energybench", *asked["arguments"]]
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False, buffering=1) for number in (1, 2))
    from multiprocessing import util

    util.spawnv_passfds = spawn_by_fork  # type: ignore[attr-defined]
    from energybench.cli import main

    code: Any = 0
    atexit._clear()
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    end_with(code)


def end_with(code: Any) -> NoReturn:
    """As an interpreter ends."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)


FORKSERVER = "from multiprocessing.forkserver import main;"


def spawn_by_fork(path: str, arguments: list[str], passed: list[int]) -> int:
    """In the place of multiprocessing.util.spawnv_passfds: its server of forks is a fork, anything else is started."""
    import multiprocessing.forkserver
    import multiprocessing.resource_tracker
    from multiprocessing import util

    if not str(arguments[-1]).startswith(FORKSERVER):
        return started(path, arguments, passed)
    pid = os.fork()
    if pid:
        return pid
    try:  # what an exec would leave: the streams, what was passed, ignored signals
        keep = sorted({0, 1, 2, *map(int, passed)})
        for low, high in zip(keep, [*keep[1:], 1 << 20], strict=True):
            os.closerange(low + 1, high)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)) and number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        atexit._clear()
        util._finalizer_registry.clear()  # type: ignore[attr-defined]
        multiprocessing.forkserver._forkserver.__init__()  # type: ignore[misc]
        multiprocessing.resource_tracker._resource_tracker.__init__()  # type: ignore[misc]
        sys.path[0] = ""
        forget()
        exec(arguments[-1], {})
    except SystemExit as end:
        end_with(end.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _started() -> Any:
    from multiprocessing import util

    return util.spawnv_passfds  # type: ignore[attr-defined]


started = _started()

if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
