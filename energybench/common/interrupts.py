"""Signals that end work from outside: what is in progress is broken off once, and what is finished stays whole.

Schedulers announce the end of a job by SIGUSR1 or SIGUSR2 (`sbatch --signal`, Grid Engine's `-notify`), SIGXCPU or
SIGTERM; a terminal that closes sends SIGHUP. Some send to the process and then to its group (`timeout`). Imports no
torch.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)  # a program may handle them; whoever it calls ends too
ANNOUNCING = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)  # by default they end a process as the others do
# A scheduler signals all processes of a job, in any order: when one has died, the signal to this one may be on its way.
SPREAD_S = 1.0
DEFAULT, IGNORED = int(signal.SIG_DFL), int(signal.SIG_IGN)
LARGEST_STRUCT_B = 512  # more than a `struct sigaction` is anywhere
_SIGACTION = getattr(ctypes.CDLL(None), "sigaction", None)


class Interrupted(KeyboardInterrupt):
    """Work was broken off by a signal. `number`: which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return "interrupted" if self.number == signal.SIGINT else f"interrupted by {signal.Signals(self.number).name}"


def disposition(number: int) -> int:
    """What the process does on a signal: DEFAULT, IGNORED, or the address of a handler.

    `signal.getsignal` knows of Python's handlers alone: `faulthandler.register`, say, sets its own in C.
    """
    if _SIGACTION is not None:
        action = (ctypes.c_void_p * (LARGEST_STRUCT_B // ctypes.sizeof(ctypes.c_void_p)))()
        if _SIGACTION(int(number), None, ctypes.byref(action)) == 0:
            return action[0] or DEFAULT  # the handler is the first member
    known: Any = signal.getsignal(number)
    return int(known) if known in (signal.SIG_DFL, signal.SIG_IGN) else -1


def is_signal(status: int) -> bool:
    """Whether a status (−N, or 128 + N as a shell tells it) says that a signal which ends work from outside came."""
    return status in {told for number in (signal.SIGINT, *ENDING, *ANNOUNCING) for told in (-number, 128 + number)}


class Interrupts:
    """The handler of `signals_interrupt`. A burst of signals raises once."""

    def __init__(self) -> None:
        self._last_s = -SPREAD_S  # on the monotonic clock
        self._finishing = False

    def finish(self) -> None:
        """From now on the next burst is let pass, since what is left is quick and whole; a second one raises."""
        self._finishing = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        before_s, self._last_s = self._last_s, time.monotonic()
        if self._last_s - before_s < SPREAD_S:
            return
        if self._finishing:
            self._finishing = False
            return
        raise Interrupted(number)


@contextmanager
def signals_interrupt() -> Iterator[Interrupts]:
    """Inside the block Ctrl-C and the signals above raise Interrupted.

    One that is ignored (nohup) stays ignored, and one of ANNOUNCING that the program handles is left to it.
    """
    around = signal.getsignal(signal.SIGTERM)
    if isinstance(around, Interrupts):  # a block around this one: one burst of signals raises once in both
        yield around
        return
    interrupt = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt  # only the main thread may say what a signal does
        return
    taken = [number for number in ENDING if disposition(number) != IGNORED]
    taken += [number for number in ANNOUNCING if disposition(number) == DEFAULT]
    taken += [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []
    before = {number: signal.signal(number, interrupt) for number in taken}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
