"""What is said while others work: one line, written over on a terminal; elsewhere a new one when something changed,
and no more than one a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from energybench.common.escaping import printable
from energybench.runner.progress import redraws

APART_S = 60.0


@dataclass
class LiveLine:
    """On `console`, which is stderr. `clock`: monotonic seconds."""

    console: Console
    clock: Callable[[], float] = time.monotonic
    _shown: str = field(default="", init=False)
    _at_s: float = field(default=float("-inf"), init=False)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self.console.print(Text(printable(text), "dim"), soft_wrap=True)

    def warn(self, text: str) -> None:
        self.clear()
        self.console.print(Text(printable(text), "yellow"), soft_wrap=True)

    def show(self, text: str, last: bool = False) -> None:
        """last: however short the time since the line before."""
        if redraws(self.console):
            self.clear()
            line = Text(printable(text), "bold", no_wrap=True)
            line.truncate(max(10, self.console.width - 1), overflow="ellipsis")
            self.console.print(line, end="")
            return
        if text == self._shown or (not last and self.clock() - self._at_s < APART_S):
            return
        self._shown, self._at_s = text, self.clock()
        self.console.print(Text(printable(text)), soft_wrap=True)

    def clear(self) -> None:
        if redraws(self.console):
            self.console.file.write("\r\x1b[2K")
            self.console.file.flush()
