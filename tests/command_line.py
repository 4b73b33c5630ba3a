"""`energybench ...` as a process of its own: forked from a server that has imported all (preloaded.py), or fresh."""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import preloaded
from fakes import in_children

EXECUTABLE = [sys.executable, "-m", "energybench"]
PATIENCE_S = 600.0  # for what hangs; how fast a machine is decides nothing
# What a fork may have other than the server: nothing of it is read at the start of an interpreter. Anything else may
# be, or it marks the processes of a run, by the environment that the kernel shows of them: a fork's is the server's.
READ_LATER = (
    "ENERGYBENCH_",
    "PYTEST_",
    "PATH",
    "TMPDIR",
    "TERM",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "GITHUB_",
    "CI",
    "HF_HUB_OFFLINE",
    "HOME",
    "https_proxy",
    "no_proxy",
)
CHANGES_THE_OUTPUT = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "ENERGYBENCH_DATA")


def environment(**extra: str) -> dict[str, str]:
    """Ours, without what would change the output."""
    return {key: value for key, value in os.environ.items() if key not in CHANGES_THE_OUTPUT} | extra


def energybench(
    *arguments: str | Path, cwd: Path, timeout: float = PATIENCE_S, fresh: bool = False, **extra: str
) -> subprocess.CompletedProcess[str]:
    """`energybench ...` to its end. fresh: by an interpreter of its own, whatever its environment."""
    running = start(*arguments, cwd=cwd, fresh=fresh, **extra)
    try:
        out, err = running.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        running.kill()
        raise
    assert running.returncode is not None
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def start(*arguments: str | Path, cwd: Path, fresh: bool = False, **extra: str) -> subprocess.Popen[str] | Forked:
    """`energybench ...` under way, leading a group of its own, as a shell starts it in the foreground.

    Ctrl-C reaches it also where the tests themselves run in the background, whose children inherit it as ignored.
    """
    words, env = list(map(str, arguments)), environment(**extra)
    if not fresh and SERVER.knows(env):
        return Forked(words, cwd=cwd, env=env)
    return subprocess.Popen(
        [*EXECUTABLE, *words],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


class Server:
    """Started when it is first asked; ends with this process, whose end of the socket closes.

    light: without torch, for scripts that import none
    """

    def __init__(self, *, light: bool = False) -> None:
        self._kind = ["light"] if light else []
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_with = dict(os.environ)

    def knows(self, env: dict[str, str]) -> bool:
        """Whether a fork of it can stand for a fresh interpreter with this environment."""
        with self._lock:
            self._ensure()
        ours, theirs = self._started_with, in_children.known_to_forks(env)
        differ = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
        return all(name in CHANGES_THE_OUTPUT or name.startswith(READ_LATER) for name in differ)

    def fork(
        self, program: str, arguments: list[str], cwd: Path, environment: dict[str, str], streams: list[int]
    ) -> socket.socket:
        """`PROGRAM ARGUMENTS` under way; what comes back tells its process number, then its exit code."""
        with self._lock:
            self._ensure()
            return preloaded.ask(self._asked, program, arguments, str(cwd.absolute()), environment, streams)

    def command(self, path: Path) -> None:
        """Write an `energybench` for a shell: a fork in the shell's folder, with its environment and streams."""
        with self._lock:
            self._ensure()
        asks = f'exec "{sys.executable}" -S -E "{preloaded.__file__}" ask {self._name} "$@"'
        path.write_text(f"#!/bin/sh\n{asks}\n", encoding="utf-8")
        path.chmod(0o755)

    def _ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._started_with = dict(os.environ)
        self._asked, theirs = socket.socketpair()
        self._name = f"energybench-tests-{os.getpid()}-{time.time_ns()}"
        with theirs:
            command = [sys.executable, preloaded.__file__, str(theirs.fileno()), self._name, *self._kind]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def close(self) -> None:
        if self._process is not None:
            self._asked.close()
            self._process.wait()


SERVER, LIGHT_SERVER = Server(), Server(light=True)
for _server in (SERVER, LIGHT_SERVER):
    atexit.register(_server.close)


class Forked:
    """As subprocess.Popen(["energybench", ...], stdout=PIPE, stderr=PIPE, text=True), of a process that was forked."""

    def __init__(self, arguments: list[str], *, cwd: Path, env: dict[str, str], program: str = "") -> None:
        """program: the path of a script in the place of `energybench`: it imports no torch, and finds its neighbours"""
        self.args = [program or "energybench", *arguments]
        self.returncode: int | None = None
        (out, out_to), (err, err_to) = os.pipe(), os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            server = LIGHT_SERVER if program else SERVER
            self._told = server.fork(program, arguments, cwd, env, [nothing, out_to, err_to])
        finally:
            for handle in (nothing, out_to, err_to):
                os.close(handle)
        self.stdout, self.stderr = (os.fdopen(handle, errors="replace") for handle in (out, err))
        self.pid = self._number()

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
