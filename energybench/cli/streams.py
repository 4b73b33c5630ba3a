"""Standard output and error of a command line: what cannot be written never ends the work, and never goes unsaid.

    whoever read it has gone (`| head`)      the rest is dropped, the work goes on, the exit code is its own, and a note
    it was closed from the start (`>&-`)     the same; a verb whose work is its output does not end with 0
    its disk is full                         the same, and 0 becomes 2 for every verb

Signs that an encoding lacks become plain ones, and text that a build server reads as a command becomes inert.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import Any

from energybench.cli.terminal_encoding import write_what_can_be_written
from energybench.common.build_logs import InertWriter

PLAIN_ASCII = "plain-ascii"  # ASCII by another name: what says that it is ASCII is given UTF-8 by click
WORK_BESIDES = ("run", "measure", "cell")  # whose result is not, or not only, what they print


class _Handle(io.RawIOBase):
    """A file descriptor to which everything can be written; `failure` is why something was not."""

    def __init__(self, number: int, failure: OSError | None = None) -> None:
        self._number, self.failure, self.lost = number, failure, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, content: Any, /) -> int:
        while self.failure is None:
            try:
                return os.write(self._number, content)
            except BlockingIOError:  # a pipe that its reader shares, and has made so
                select.select([], [self._number], [])
            except OSError as error:
                self.failure = error
        self.lost = True
        return memoryview(content).nbytes


class _Stream(io.TextIOWrapper):
    """Text to a handle."""

    def __init__(self, handle: _Handle, encoding: str, errors: str, *, by_line: bool) -> None:
        super().__init__(io.BufferedWriter(handle), encoding=encoding, errors=errors, line_buffering=by_line)
        self._inert = InertWriter()

    def write(self, text: str) -> int:
        super().write(self._inert.inert(text))
        return len(text)


class Streams:
    """Takes the place of sys.stdout and sys.stderr where these are the process's own."""

    def __init__(self) -> None:
        closed = _open_closed()
        _register_plain_ascii()
        self._handles: dict[str, _Handle] = {}
        for number, name in ((1, "stdout"), (2, "stderr")):
            before = getattr(sys, name)
            if before is not getattr(sys, f"__{name}__") or not _is_standard(before, number):
                continue  # a notebook's, a test's
            failure = OSError(errno.EBADF, os.strerror(errno.EBADF)) if number in closed else None
            handle = self._handles[name] = _Handle(number, failure)
            encoding, errors = (before.encoding, before.errors) if before else ("utf-8", "strict")
            by_line = number == 2 or (before is not None and before.line_buffering)
            encoding = PLAIN_ASCII if codecs.lookup(encoding).name == "ascii" else encoding
            setattr(sys, name, _Stream(handle, encoding, errors, by_line=by_line))
        write_what_can_be_written()

    def end(self, code: int, verb: str) -> int:
        """Flush, say what could not be written, and return the exit code."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        handle = self._handles.get("stdout")
        if handle is None or not handle.lost or handle.failure is None:
            return code
        number, reason = handle.failure.errno, handle.failure.strerror
        if number == errno.EPIPE:
            _say("note: whoever read the output has gone; the rest of it was not printed")
            return code
        from energybench.common.errors import CannotWrite, Problem

        if number == errno.EBADF and verb in WORK_BESIDES:
            _say("note: standard output is closed; nothing was printed there")
            return code
        hint = "make room where it goes; the files of a run are written before its table is printed"
        hint = "leave standard output open, or name a file" if number == errno.EBADF else hint
        _say(str(Problem("E620", f"cannot write the output: {reason}", hint=hint)))
        return code or CannotWrite.exit_code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _open_closed() -> set[int]:
    """Of the first three file descriptors those that are closed: the next file that is opened would take their place,
    and be printed into. They lead nowhere from now on."""
    closed = set()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            closed.add(number)
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    return closed


def _is_standard(stream: object, number: int) -> bool:
    if stream is None:
        return True
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):
        return False


def _register_plain_ascii() -> None:
    ascii_ = codecs.lookup("ascii")
    info = codecs.CodecInfo(
        encode=ascii_.encode,
        decode=ascii_.decode,
        incrementalencoder=ascii_.incrementalencoder,
        incrementaldecoder=ascii_.incrementaldecoder,
        streamwriter=ascii_.streamwriter,
        streamreader=ascii_.streamreader,
        name=PLAIN_ASCII,
    )
    codecs.register(lambda name: info if name.replace("_", "-") == PLAIN_ASCII else None)
