"""What a command writes, kept within bounds: a log of its first and last part, and its lines one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

HEAD_B = TAIL_B = 1 << 19  # of a log
LONGEST_LINE_B = 1 << 16  # what stands behind it on the same line is not read


class Log:
    """A file of at most about HEAD_B + TAIL_B, whatever is written to it: its beginning, and its end."""

    def __init__(self, path: Path) -> None:
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
    """Chunks in, whole lines out; of a line drawn over again (a progress bar's) its last state."""

    def __init__(self) -> None:
        self._open = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        first, *others = chunk.split(b"\n")
        for part in (first, *others[:-1]) if others else ():
            yield _text(self._open + part[:LONGEST_LINE_B])
            self._open = b""
        rest = others[-1] if others else first
        states = (self._open + rest).split(b"\r")
        self._open = b"\r".join(states[-2:])[:LONGEST_LINE_B]  # what was drawn over is gone

    def rest(self) -> Iterator[str]:
        """The last line, where it ends without a newline."""
        if self._open:
            yield _text(self._open)
            self._open = b""


def _text(line: bytes) -> str:
    states = [state for state in line.decode("utf-8", errors="replace").split("\r") if state.strip()]
    return states[-1] if states else ""
