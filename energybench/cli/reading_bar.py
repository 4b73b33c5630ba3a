"""A bar on stderr while records are read, where that takes a while and somebody sits at a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PATIENCE_S = 1.0  # in which no bar is worth its flicker
EVERY_S = 0.1  # it is drawn anew, by no thread of its own
FEWEST = 500  # records of a folder that has one


class ReadingBar:
    """Told how many of how many records of a folder were read. console: a terminal"""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = self._drawn_s = time.monotonic()
        self._bar: Progress | None = None

    def __call__(self, read: int, of: int) -> None:
        now_s = time.monotonic()
        if read >= of:  # what is said next stands where it stood
            self.close()
        elif of < FEWEST or now_s - self._began_s < PATIENCE_S or now_s - self._drawn_s < EVERY_S:
            return
        else:
            self._drawn_s = now_s
            self._bar = self._bar or _started(self._console)
            self._bar.update(self._bar.task_ids[0], completed=read, total=of, refresh=True)

    def close(self) -> None:
        """Nothing of it is left on the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


def _started(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, auto_refresh=False)
    bar.add_task("reading records")
    bar.start()
    return bar


@contextmanager
def reading_bar(as_json: bool = False) -> Iterator[None]:
    """Inside, what reads a run's records shows how far it is; not in a pipe, and not where JSON was asked for."""
    from energybench.cli.common import console

    terminal = console(to_stderr=True)
    if as_json or not terminal.is_terminal or terminal.is_dumb_terminal:
        yield
        return
    from energybench.records.reader import WATCHER

    bar = ReadingBar(terminal)
    token = WATCHER.set(bar)
    try:
        yield
    finally:
        WATCHER.reset(token)
        bar.close()


def shows_reading(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb that reads runs, with the bar."""

    @wraps(verb)
    def with_bar(*arguments: Any, **options: Any) -> Any:
        with reading_bar(bool(options.get("as_json"))):
            return verb(*arguments, **options)

    return with_bar
