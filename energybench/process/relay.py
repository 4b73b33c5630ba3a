"""Signals for a command that stands in our process group: each reaches it, and once.

What a signal does is the command's to decide, as if it were called without us: a training may write a checkpoint on
SIGUSR1. One that was sent to the whole group has reached it already (Ctrl-C at a terminal, `kill -- -GROUP`, a
scheduler's to every process of a job); one that was sent to this process alone is passed on. Which of both it was
cannot be read from the signal. So a witness stands in the same group: a process that sleeps with all signals blocked.
What it was sent as well was not for us alone.

SIGTSTP is not passed on: at a terminal the whole group stops by itself, and we with it. Nor are signals that tell a
process of itself (SIGCHLD, SIGSEGV). What is ignored stays ignored, for the command too, as under nohup.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from energybench.common.programs import find_program

PASSED_ON = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
    *(signal.SIGXCPU, signal.SIGCONT, signal.SIGWINCH, signal.SIGPWR, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)),
)
OF_THE_MOMENT = (signal.SIGCONT, signal.SIGWINCH)  # of no use to a command that starts later
SETTLE_S = 0.2  # in which a signal to all processes of a job, one after the other, has reached each
PAUSE_S = 0.01


class SignalRelay:
    """While it is entered no signal of PASSED_ON ends this process: the command's end does, and then what we write.

    In the main thread alone; elsewhere it does nothing.

    helpers: process ids of the witnesses, which are no part of the command
    """

    def __init__(self) -> None:
        self.helpers: set[int] = set()
        self._before: dict[int, Any] = {}
        self._command: int | None = None  # a pidfd: never another process of the same number
        self._lock = threading.Lock()
        self._running = self._over = False
        self._after = 0  # signals since the command's end

    def __enter__(self) -> SignalRelay:
        if threading.current_thread() is threading.main_thread():
            # Python's own handler in C writes each signal's number there at once, whatever the main thread does.
            self._came, self._wakeup = os.pipe()
            os.set_blocking(self._wakeup, False)
            ready = threading.Event()
            self._thread = threading.Thread(target=self._decide_all, args=(ready,), name="signals", daemon=True)
            self._thread.start()
            ready.wait()
            self._wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
            for number in PASSED_ON:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._wakeup)
            self._thread.join()
            os.close(self._came)

    def started(self, pid: int) -> None:
        """The command runs. What came before is its own too: it goes on to it now."""
        with self._lock, contextlib.suppress(OSError):
            self._command = os.pidfd_open(pid)
        self._running = True

    def ended(self) -> None:
        """There is nobody to pass a signal on to. A first one is let pass; a second ends us, should writing hang."""
        with self._lock:
            if self._command is not None:
                os.close(self._command)
                self._command = None
        self._over = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._after += self._over and number not in OF_THE_MOMENT
        if self._after > 1:
            raise SystemExit(128 + number)

    # ── in a thread of its own, so that the main one keeps the time of the command's end ──────────────────────

    def _decide_all(self, ready: threading.Event) -> None:
        """Until the other end is closed: what the witness was sent too was the group's; the rest goes on."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # which a witness inherits
        witness = _Witness(self.helpers)
        ready.set()
        undecided: list[_Came] = []
        while (came := self._heard(PAUSE_S if undecided or witness.mask() else None)) is not None:
            undecided = self._decide([*undecided, *came], witness)
            if not undecided and witness.mask():  # what is pending stays so: another one sees the next of its kind
                following = _Witness(self.helpers)
                undecided = self._decide(self._heard(0.0) or [], witness)  # what came meanwhile
                witness.end()
                witness = following
        witness.end()

    def _heard(self, timeout_s: float | None) -> list[_Came] | None:
        """Signals that came, once there are any or the time is up; None at the end."""
        if not select.select([self._came], [], [], timeout_s)[0]:
            return []
        numbers, now_s = os.read(self._came, 1024), time.monotonic()
        return [_Came(number, now_s, self._running) for number in numbers] if numbers else None

    def _decide(self, undecided: list[_Came], witness: _Witness) -> list[_Came]:
        """Pass on what was for us alone; what may yet turn out to be the group's is returned."""
        seen, now_s, left = witness.mask(), time.monotonic(), list[_Came]()
        for came in undecided:
            to_all = seen >> (came.number - 1) & 1
            if came.running and to_all:
                continue
            waits = not (self._running or self._over)  # for a command that is yet to start
            if waits or not (to_all or now_s - came.at_s >= SETTLE_S):
                left.append(came)
            elif came.running or came.number not in OF_THE_MOMENT:
                self._send(came.number)
        return left

    def _send(self, number: int) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if self._command is not None:
                signal.pidfd_send_signal(self._command, number)


@dataclass(frozen=True, slots=True)
class _Came:
    """A signal that came: `at_s` on the monotonic clock; `running`: the command ran by then."""

    number: int
    at_s: float
    running: bool


class _Witness:
    """A process of our group that sleeps, all signals blocked. It ends with us, at the end of its input."""

    def __init__(self, helpers: set[int]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        program = find_program("cat")
        words = [program] if program else [sys.executable, "-ISc", "import sys; sys.stdin.read()"]
        with contextlib.suppress(OSError):  # without one, every signal is passed on
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={}
            )
            helpers.add(self._process.pid)

    def mask(self) -> int:
        """The signals that it was sent, a bit each; 0 where it is not there."""
        with contextlib.suppress(OSError, ValueError):
            if self._process is not None:
                status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii", errors="replace")
                return int(status.partition("ShdPnd:")[2].split(maxsplit=1)[0], 16)
        return 0

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):
                self._process.communicate()
