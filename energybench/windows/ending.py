"""A signal that ends a script inside an open window: the windows are closed and written first.

By default SIGTERM ends a process on the spot: nothing is closed, `atexit` is not asked, and what was metered is lost.
So while a window is open that the main thread opened, the signals of FATAL which nobody handles are handled here: the
windows are closed, marked with the signal's name, and the signal is raised again with its default action, by which the
script then ends. A signal that the script handles, or ignores, is left alone.

It is late by what the main thread is doing in C, since Python handles signals between two steps of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from energybench.common.interrupts import DEFAULT, disposition

FATAL = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGALRM, signal.SIGQUIT)


class LastWords:
    """The handler. `close` is called with the signal's name and closes what is open.

    It is equal to SIG_DFL, for those who ask before they set a handler of their own whether there is one already, as
    Lightning does: it takes the place of none.
    """

    def __init__(self, close: Callable[[str], None]) -> None:
        self._close = close
        self._set: dict[int, int] = {}  # signal → the address that handles it since
        self._busy, self._came = 0, 0

    def __eq__(self, other: object) -> bool:
        return self is other or other is signal.SIG_DFL

    def __hash__(self) -> int:
        return hash(signal.SIG_DFL)

    def listen(self) -> None:
        """Handle those signals of FATAL that have their default action. In other threads than the main one: nothing."""
        if self._set or threading.current_thread() is not threading.main_thread() or os.getpid() == 1:
            return  # the first process of a container survives what it does not handle
        for number in FATAL:
            if disposition(number) == DEFAULT:
                with contextlib.suppress(ValueError):  # not the main interpreter
                    signal.signal(number, self)
                    self._set[number] = disposition(number)

    def leave(self) -> None:
        """Back to the default, but for a signal that somebody else has set a handler for meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return  # with nothing open it does what the default does
        for number, address in self._set.items():
            known: Any = signal.getsignal(number)
            if known is self and disposition(number) == address:
                signal.signal(number, signal.SIG_DFL)
        self._set.clear()

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Inside the block a signal waits for its end: what holds a lock of ours cannot be interrupted to take it."""
        main = threading.current_thread() is threading.main_thread()
        self._busy += main
        try:
            yield
        finally:
            self._busy -= main
            if main and self._came and not self._busy:
                self._end_by(self._came)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        known: Any = signal.getsignal(number)
        if known is not self:
            return  # who set another handler and calls this one too could not have called the default
        if self._busy:
            self._came = self._came or number
        else:
            self._end_by(number)

    def _end_by(self, number: int) -> None:
        self._busy, self._came = 1, 0  # a second signal finds this one at work
        with contextlib.suppress(Exception):  # it ends in any case, and nothing shall keep it
            self._close(signal.Signals(number).name)
        self._busy = 0
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
