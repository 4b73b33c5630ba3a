"""What a command writes, within bounds of memory and disk: a log of its first and last part, and line after line."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from energybench.common.held_folder import HeldFolder, name_inside

HEAD_B = TAIL_B = 1 << 19  # of a log
LONGEST_LINE_B = 1 << 16  # of a longer line the end is read
LONGEST_WORD_B = 1 << 10
LEFT_OUT = "[energybench: {} bytes are left out here]"
SPACE = re.compile(rb"\s")


class Log:
    """A file of at most about HEAD_B + TAIL_B, whatever is written to it: its beginning, and its end."""

    def __init__(self, path: Path, folder: HeldFolder | None = None) -> None:
        """folder: that holds the file, whose handle it is then made by. Raises OSError, with it CannotWrite."""
        name = None if folder is None else name_inside(folder, path)
        if folder is not None and name is not None:
            self._file = os.fdopen(folder.create(name), "w+b")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w+b")
        self._head_b = self._tail_b = self._dropped_b = 0
        self._tail: deque[bytes] = deque()

    def write(self, chunk: bytes) -> None:
        head, rest = chunk[: HEAD_B - self._head_b], chunk[HEAD_B - self._head_b :]
        if head:
            self._head_b += self._file.write(head)
            self._file.flush()
        if rest:
            self._tail.append(rest)
            self._tail_b += len(rest)
        while self._tail_b - (len(self._tail[0]) if self._tail else 0) > TAIL_B:
            gone = len(self._tail.popleft())
            self._tail_b, self._dropped_b = self._tail_b - gone, self._dropped_b + gone

    def copied(self, path: Path, folder: HeldFolder | None = None) -> Log:
        """Another log with what this one holds so far."""
        log = Log(path, folder)
        log._head_b = log._file.write(os.pread(self._file.fileno(), self._head_b, 0))
        log._tail, log._tail_b, log._dropped_b = deque(self._tail), self._tail_b, self._dropped_b
        return log

    def close(self) -> None:
        if self._dropped_b:
            self._file.write(f"\n{LEFT_OUT.format(self._dropped_b)}\n".encode())
        self._file.writelines(self._tail)
        self._file.close()


class StreamLogs:
    """What a command writes, in one log as it came; and where it writes to both streams, in one of each as well.

    only: the stream that it wrote to, where that was one
    folder: that holds them; closed with them
    """

    def __init__(self, path: Path, folder: HeldFolder | None = None) -> None:
        """Raises OSError, with a folder CannotWrite."""
        self._path, self._folder, self._all = path, folder, Log(path, folder)
        self._each: dict[str, Log] = {}
        self.only: str | None = None

    def write(self, stream: str, chunk: bytes) -> None:
        """stream: "stdout" or "stderr" """
        if not self._each and self.only is None:
            self.only = stream
        elif not self._each and stream != self.only:
            self._each = {str(self.only): self._all.copied(of_stream(self._path, str(self.only)), self._folder)}
            self._each[stream], self.only = Log(of_stream(self._path, stream), self._folder), None
        if self._each:
            self._each[stream].write(chunk)
        self._all.write(chunk)

    def close(self) -> None:
        for log in (self._all, *self._each.values()):
            log.close()
        if self._folder is not None:
            self._folder.close()


def of_stream(log: Path, stream: str) -> Path:
    """Beside the log of both: that of one stream alone."""
    return log.with_name(f"{log.name.removesuffix('.log')}.{stream}.log")


class Lines:
    """Chunks in, whole lines out; of a line drawn over again (a progress bar's) its last state that shows anything."""

    def __init__(self) -> None:
        self._open = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            yield _decoded(self._open + part)
            self._open = b""
        self._open = _newest_states(self._open + rest)

    def rest(self) -> Iterator[str]:
        """The last line, where it ends without a newline."""
        if self._open:
            yield _decoded(self._open)
            self._open = b""


def _newest_states(line: bytes) -> bytes:
    """An unfinished line less what was drawn over: its newest state, and where that shows nothing yet the last that
    did."""
    before, bar, newest = line.rpartition(b"\r")
    if newest.strip() or not bar:
        return _tail_of(newest)
    return _tail_of(_last_visible(before)) + bar + _tail_of(newest)


def _last_visible(line: bytes) -> bytes:
    """The last state of a line that shows anything."""
    shows = len(line.rstrip())
    stop = line.find(b"\r", shows)
    return line[line.rfind(b"\r", 0, shows) + 1 : len(line) if stop < 0 else stop] if shows else b""


def _tail_of(state: bytes) -> bytes:
    """Of too long a state its end, from the beginning of a word: a figure that is cut in two would be another one."""
    if len(state) <= LONGEST_LINE_B:
        return state
    end = state[-LONGEST_LINE_B:]
    space = SPACE.search(end, 0, LONGEST_WORD_B)
    return end[space.end() :] if space else end


def _decoded(line: bytes) -> str:
    return _tail_of(_last_visible(line)).decode("utf-8", errors="replace")
