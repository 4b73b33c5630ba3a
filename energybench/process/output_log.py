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
SPACE = re.compile(rb"\s")


class Log:
    """A file of at most about HEAD_B + TAIL_B, whatever is written to it: its beginning, and its end."""

    def __init__(self, path: Path, folder: HeldFolder | None = None) -> None:
        """folder: that holds the file, whose handle it is then made by. Raises OSError, with it CannotWrite."""
        name = None if folder is None else name_inside(folder, path)
        if folder is not None and name is not None:
            self._file = os.fdopen(folder.create(name), "wb")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
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

    def close(self) -> None:
        if self._dropped_b:
            self._file.write(f"\n[energybench: {self._dropped_b} bytes are left out here]\n".encode())
        self._file.writelines(self._tail)
        self._file.close()


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
