"""What a run says while it works: on a terminal one line per finished trial and one live line; elsewhere plain lines.

The live line is redrawn when a trial starts and every few seconds, never by a thread of its own: while a trial is
measured its parent sleeps.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from energybench.common.errors import typed
from energybench.common.escaping import printable
from energybench.common.units import format_seconds
from energybench.records.record import CountingRun, Trial

if TYPE_CHECKING:
    from energybench.runner.expected_time import ExpectedTime
    from energybench.verdict.figures import Summary


def redraws(console: Console) -> bool:
    """Whether a line can be written over: on a terminal that knows the sequences."""
    return console.is_terminal and not console.is_dumb_terminal


class Progress:
    """`console` is for messages (stderr); tables go to `tables` (stdout)."""

    def __init__(self, console: Console, tables: Console, quiet: bool = False) -> None:
        self.console, self.tables, self.quiet = console, tables, quiet
        self.live = redraws(console) and not quiet
        self._total = self._done = 0
        self._what = ""
        self._begun = time.monotonic()

    def say(self, text: str) -> None:
        if not self.quiet:
            self._clear()
            self.console.print(Text(printable(text), "dim"), soft_wrap=True)  # a path stays whole

    def warn(self, text: str) -> None:
        if not self.quiet:
            self._clear()
            self.console.print(Text(printable(text), "bold yellow"), soft_wrap=True)

    def confirm(self, question: str) -> bool:
        """Ask at a terminal; where nobody can answer, yes."""
        if not self.live or not sys.stdin.isatty():
            return True
        from rich.prompt import Confirm

        try:
            return Confirm.ask(question, console=self.console, default=True)
        except EOFError:
            return False

    def begin(self, folder: Path, total: int, *, resumed: bool, expected: ExpectedTime | None) -> None:
        self._total, self._begun = total, time.monotonic()
        about = "" if resumed or expected is None else f", {expected}"
        verb = "continuing in" if resumed else "writing to"
        self.say(f"{total} runs{about}; {verb} {folder}")

    def expect(self, more: int) -> None:
        """So many runs more than were counted on; less where it is negative."""
        self._total += more

    @property
    def left(self) -> int:
        """So many runs are counted on that have not ended."""
        return self._total - self._done

    def start(self, stage: str, workload: str, method: str) -> None:
        self._what = printable(f"{stage} · {workload} · {method}")
        self.tick(0.0)

    def tick(self, elapsed_s: float) -> None:
        if not self.live:
            return
        so_far = f" {elapsed_s:.0f} s" if elapsed_s >= 1 else ""
        left = ""
        if self._done:
            per = (time.monotonic() - self._begun) / self._done
            left = f" · about {format_seconds(per * (self._total - self._done))} left"
        self._clear()
        line = Text(f"[{self._done + 1}/{self._total}] {self._what}{so_far}{left}", "bold", no_wrap=True)
        line.truncate(max(10, self.console.width - 1), overflow="ellipsis")
        self.console.print(line, end="")

    def finish(self, record: Trial | CountingRun) -> None:
        self._done += 1
        if self.quiet:
            return
        self._clear()
        place = f"b{record.block + 1}" if isinstance(record, Trial) else "counted"
        figures = _figures(record)
        style = "" if record.status == "ok" else "yellow"
        self.console.print(
            Text(
                printable(f"[{self._done}/{self._total}] {place} {record.workload} · {record.method}: {figures}"), style
            ),
            soft_wrap=True,
        )

    def block(self, summary: Summary) -> None:
        if self.quiet:
            return
        from energybench.report.terminal import partial

        self._clear()
        partial(summary, self.console)

    def end(self, summary: Summary, report: Path) -> None:
        from energybench.report.newest import commands
        from energybench.report.terminal import render

        self._clear()
        render(summary, self.tables)
        self.tables.print(Text(printable(f"report: {report}")), soft_wrap=True)
        for command in commands(report.parent):
            self.tables.print(Text(printable(f"more: {command}")), soft_wrap=True)

    def planned(self, folder: Path, command: str, blocks: int, device: str) -> None:
        """Where the plan is, and what to type for its blocks. command: of the first of them"""
        self._clear()
        lines = (
            f"planned: {folder}",
            f"the first of {blocks} block{'s' * (blocks != 1)}, each on a device of this kind ({device}): {command}",
            f"all together: {typed('energybench', 'report', folder)}",
        )
        for line in lines:
            self.tables.print(Text(printable(line)), soft_wrap=True)

    def interrupted(self, folder: Path, how: str) -> None:
        self._clear()
        self.console.print(
            Text(printable(f"{how}; what is finished is in {folder}. The same command continues."), "yellow"),
            soft_wrap=True,
        )

    def _clear(self) -> None:
        if self.live:
            self.console.file.write("\r\x1b[2K")
            self.console.file.flush()


def _figures(record: Trial | CountingRun) -> str:
    if record.status != "ok":
        return f"{record.status}: {record.reason}"
    if isinstance(record, CountingRun):
        return f"{record.counted_flop / 1e9:.2f} GFLOP" if record.counted_flop is not None else f"{record.reason}"
    quality = next(iter(record.quality.items()), None)
    shown = f", {quality[0]} {quality[1]:.3f}" if quality else ""
    return f"{format_seconds(record.train.wall_s)}{shown}" if record.train else "no reading"
