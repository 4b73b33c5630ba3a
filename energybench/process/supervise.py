"""One command of the user's, run to its end: asleep while it runs, and nothing of it is left afterwards.

The command leads a session of its own. Whatever it starts stays findable, daemons too: this process adopts the orphans
of its descendants while a command runs. At its limit the command is asked to end (SIGTERM), then made to (SIGKILL).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from energybench.common.processes import adopt_orphans, die_with, ignoring_interrupts
from energybench.process.prepared import Adopted
from energybench.process.relay import SignalRelay

GRACE_S = 5.0  # between SIGTERM and SIGKILL
LINGER_S = 1.0  # in which what the command started may end after it without being missed
CHUNK_B = 1 << 16

Started = subprocess.Popen[bytes] | Adopted
Output = Callable[[str, bytes], None]  # "stdout" or "stderr", and what was written to it


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """How a command ended.

    returncode:     its exit status, or −N where signal N ended it
    seconds:        from its start to its end
    timed_out:      it ran past its limit and was ended
    obeyed_sigterm: it ended within GRACE_S after SIGTERM; None where none was sent
    left_behind:    how many of its processes were still there LINGER_S after its end, and were ended
    memory_b:       the largest resident set, in bytes, of one of its processes that were waited for; None where that
                    was less than this process's at the fork, which is all that the kernel then tells
    """

    returncode: int
    seconds: float
    timed_out: bool = False
    obeyed_sigterm: bool | None = None
    left_behind: int = 0
    memory_b: int | None = None


def run(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    limit_s: float | None = None,
    output: Output | None = None,
    discard: bool = False,
    stdout: int | None = None,
    stdin: Path | None = None,
    own_session: bool = True,
    death_signal: signal.Signals = signal.SIGKILL,
    relay: SignalRelay | None = None,
    start: Callable[[], Started] | None = None,
    on_end: Callable[[], None] = lambda: None,
    tick: Callable[[float], None] | None = None,
    tick_s: float = 5.0,
) -> CommandOutcome:
    """Run a command without a shell and sleep until it is over.

    Args:
        argv:         the command and its arguments.
        cwd:          the folder that it starts in; None: this process's.
        env:          its environment; None: this process's.
        limit_s:      after which it is ended; None: never.
        output:       is given what it writes, in chunks; None: it writes where this process does, unless `discard`.
        discard:      what it writes goes nowhere.
        stdout:       a file descriptor in place of this process's standard output; it is not given to `output`.
        stdin:        a file that it reads; None: nothing, or what this process does where it leads no session.
        own_session:  whether it leads a session of its own and has no standard input.
        death_signal: the signal that the kernel sends it if this process is killed.
        relay:        passes signals on to it while it runs.
        start:        starts it in place of `subprocess`, with both of its outputs in pipes; it is then a child of ours.
        on_end:       called at once when the command itself is over, before what it left behind is looked for.
        tick:         called with the elapsed seconds every `tick_s`.

    Returns:
        How it ended. Nothing that it started is left.

    Raises:
        OSError: where it cannot be started.
    """
    own_memory_b = psutil.Process().memory_info().rss
    before = {child.pid for child in psutil.Process().children()}
    sink = subprocess.PIPE if output else subprocess.DEVNULL if discard else None
    with _adopting_orphans():
        started = time.monotonic()
        with stdin.open("rb") if stdin else contextlib.nullcontext() as read:
            process = (
                start()
                if start
                else subprocess.Popen(
                    list(argv),
                    cwd=cwd,
                    env=env,
                    stdin=read or (subprocess.DEVNULL if own_session else None),
                    stdout=sink if stdout is None else stdout,
                    stderr=sink,
                    start_new_session=own_session,
                    preexec_fn=partial(die_with, os.getpid(), death_signal),
                )
            )
        command = _RunningCommand(process, output, before, relay.helpers if relay else ())
        try:
            if relay:
                relay.started(process.pid)
            timed_out = not command.wait(started, limit_s, tick, tick_s)
            obeyed_sigterm = command.terminate() if timed_out else None
            seconds = time.monotonic() - started
            on_end()
            left_behind = 0 if timed_out else command.count_survivors()
            command.end_survivors()
        except BaseException:
            with ignoring_interrupts():
                command.terminate()
                command.end_survivors()
            raise
        finally:
            if relay:
                relay.ended()
            command.close()
    memory_b = command.memory_b if command.memory_b > own_memory_b else None
    return CommandOutcome(process.returncode or 0, seconds, timed_out, obeyed_sigterm, left_behind, memory_b)


class _RunningCommand:
    """One running command: its output, its end, its descendants."""

    def __init__(
        self, process: Started, output: Output | None, before: Collection[int], helpers: Collection[int]
    ) -> None:
        self._process, self._output, self._before, self._helpers = process, output, before, helpers
        self.memory_b = 0
        try:
            self._pidfd = os.pidfd_open(process.pid)  # Linux 5.3
        except OSError:
            process.kill()
            process.wait()
            raise
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pidfd, selectors.EVENT_READ, "end")
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
            if stream is not None:
                self._selector.register(stream, selectors.EVENT_READ, name)

    def wait(self, started: float, limit_s: float | None, tick: Callable[[float], None] | None, tick_s: float) -> bool:
        """Asleep until the command is over (True) or its limit has passed."""
        ticked = started
        while True:
            now = time.monotonic()
            if limit_s is not None and now - started >= limit_s:
                return False
            if tick and now - ticked >= tick_s:
                ticked = now
                tick(now - started)
            pauses = [tick_s - (now - ticked)] if tick else []
            pauses += [] if limit_s is None else [limit_s - (now - started)]
            if self._listen(min(pauses) if pauses else None):
                return True

    def _listen(self, timeout_s: float | None) -> bool:
        """Pass on what was written, once it or the end came; whether the command is over."""
        over = False
        for key, _ in self._selector.select(timeout_s):
            if key.data == "end":
                over = True
            elif chunk := os.read(key.fd, CHUNK_B):
                assert self._output is not None
                self._output(key.data, chunk)
            else:
                self._selector.unregister(key.fileobj)
        if over:
            self._reap()
        return over

    def _reap(self) -> None:
        """Take the command's status, so that its CPU time and its children's count as this process's children's."""
        if self._process.returncode is None:
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self.memory_b = usage.ru_maxrss * 1024
            self._selector.unregister(self._pidfd)

    def terminate(self) -> bool:
        """Ask the command and all it started to end, then make it; whether asking was enough."""
        if self._process.returncode is not None:
            return True
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while (left := deadline - time.monotonic()) > 0:
            if self._listen(left):
                return True
        self._signal(signal.SIGKILL)
        while not self._listen(None):
            pass
        return False

    def count_survivors(self) -> int:
        """How many of its processes have outlived it by more than LINGER_S; none is awaited where there is none."""
        deadline = time.monotonic() + LINGER_S
        while (survivors := self._descendants()) and time.monotonic() < deadline:
            psutil.wait_procs(survivors, timeout=0.05)
        return len(survivors)

    def end_survivors(self) -> None:
        """End whatever is left, by SIGTERM first, and pass on the last that was written."""
        for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
            deadline = time.monotonic() + patience_s
            while (survivors := self._descendants()) and time.monotonic() < deadline:
                self._signal(number, survivors)  # again: one that was signalled may have forked before it ended
                psutil.wait_procs(survivors, timeout=0.2)
        while any(key.data != "end" for key in self._selector.get_map().values()):
            if not self._selector.select(0.2):
                break  # a process that the command did not start holds the pipe
            self._listen(0)

    def close(self) -> None:
        os.close(self._pidfd)
        self._selector.close()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _signal(self, number: int, processes: Sequence[psutil.Process] | None = None) -> None:
        """Send a signal to these; None: to all of the command's."""
        for process in self._descendants() if processes is None else processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def _descendants(self) -> list[psutil.Process]:
        """The command, if it is not reaped, and everything it started, orphans too."""
        descendants: list[psutil.Process] = []
        for child in psutil.Process().children():
            if child.pid not in self._before and child.pid not in self._helpers:
                with contextlib.suppress(psutil.Error):
                    descendants += [child, *child.children(recursive=True)]
        return descendants


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    adopt_orphans()
    try:
        yield
    finally:
        adopt_orphans(False)
