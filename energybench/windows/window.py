"""One named window of metering in a script of one's own: opened, counted in, closed and written.

Windows nest: what an inner one used is part of the outer one. The outermost does the metering with all care, from edge
to edge of the card's counter; an inner one waits for nothing, so that it never holds the outer one up, and on a card
has the power integral alone. One that is excluded from its parent pauses the windows around it instead.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import os
import sys
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from energybench.common import machine
from energybench.common.build_logs import inert
from energybench.common.errors import Problem, UsageError
from energybench.common.escaping import printable
from energybench.common.outputs import write_output
from energybench.meter import Meter, devices, pool
from energybench.meter.clock import REAL_TIME
from energybench.meter.doubts import doubts
from energybench.meter.pool import MeterRequest, MeterSet
from energybench.meter.ranks import local_rank, node, path_of_rank
from energybench.meter.reading import Energy, Reading
from energybench.meter.sensors import nested_meters
from energybench.meter.window import Window, refuse_short
from energybench.records.record import Flag, json_of
from energybench.windows.ending import LastWords
from energybench.windows.file import RECORD_KIND, VARIABLE, Flop, WindowLine, WindowsFile, append, sentence

_innermost: ContextVar[MeasuredWindow | None] = ContextVar("innermost window", default=None)
_open: list[MeasuredWindow] = []  # of this process, in the order of opening
_numbers = itertools.count(1)
_pausing = threading.Lock()


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """What `measure` was asked for: its arguments, checked."""

    name: str
    request: MeterRequest
    exclude_from_parent: bool = False
    quiet: bool = False
    record: Path | None = None


class MeasuredWindow:
    """One open or closed window. Count `steps` and `samples` inside; quality may be reported after it has closed.

    name, path: its own name, and that after the names of the windows that it is a part of: "train/epoch"
    reading:    what the meters said, once it is closed; before, None
    """

    def __init__(self, options: WindowOptions, outer: MeasuredWindow | None) -> None:
        self.name, self._options, self._outer, self._pid = options.name, options, outer, os.getpid()
        rank = local_rank(os.environ)
        self._rank = None if rank is None or rank.alone else rank.number if rank.number is not None else rank.local
        self._node = None if self._rank is None else node()
        self._id = ".".join([*([self._node] if self._node else []), str(self._pid), str(next(_numbers))])
        self._steps: int | None = None
        self._samples: int | None = None
        self._quality: dict[str, float | None] = {}
        self._flop: Flop | None = None
        self._error: str | None = None
        self._synchronised_ns = 0  # when the devices were last waited for
        self._closed = self._printed = self._broken_off = False
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._inner: dict[str, MeasuredWindow] = {}  # everything inside the outermost one, for its record
        self.reading: Reading | None = None  # once closed

        is_part = outer is not None and not options.exclude_from_parent
        self._parent = outer if is_part else None
        self.path: str = f"{outer.path}/{self.name}" if outer and is_part else self.name
        self._paused: list[MeasuredWindow] = _lineage(outer) if outer and not is_part else []
        self._pauses = 0  # open windows that pause this one: one, or several in tasks and threads
        with _pausing:
            # Whoever paused them first has their sensors.
            self._borrows = outer is None or any(window._pauses for window in self._paused)
            request = outer._meter_set.request if outer else options.request
            self._meter_set: MeterSet = pool.borrow(request) if outer is None or self._borrows else outer._meter_set
            for window in self._paused:
                window._pauses += 1
        meters: Sequence[Meter] = nested_meters(self._meter_set.meters) if is_part else self._meter_set.meters
        self._window = Window(meters, self._synchronise, inside=is_part)

    # ── what a script reports ─────────────────────────────────────────────────────────────────────────────────

    @property
    def steps(self) -> int:
        """Updates of the optimizer so far."""
        return self._steps or 0

    @steps.setter
    def steps(self, count: int) -> None:
        self._steps = self._checked("steps", count)

    @property
    def samples(self) -> int:
        """Samples so far."""
        return self._samples or 0

    @samples.setter
    def samples(self, count: int) -> None:
        self._samples = self._checked("samples", count)

    def quality(self, metric: str, value: float) -> None:
        """Report what the training has reached; also once the window is closed.

        Args:
            metric: the name that a suite may ask for
            value: of the same metric the last one holds. One that is infinite or nan is kept as null: a training that
                has diverged ends as it will, and its suite calls it so. For what is no number at all a line on stderr
                says so: no report ends a training.
        """
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            with contextlib.suppress(
                OSError, ValueError, RuntimeError
            ):  # a closed stderr, or one that is being written
                print(f"energybench: {metric} of '{self.name}' is no number: {error}", file=sys.stderr)
            number = math.nan
        self._quality[str(metric)] = number if math.isfinite(number) else None
        if self._closed:
            with last_words.wait():
                self._deliver()

    def flop(self, *, estimated: float | None = None, counted: float | None = None) -> None:
        """Report FLOPs of this window as the script knows them.

        Args:
            estimated: by a formula, in FLOPs; one multiply-add is 2
            counted: by a counter

        Raises:
            UsageError: E641 for what is no finite, non-negative number
        """
        for count in (estimated, counted):
            if count is not None and not 0 <= count < float("inf"):
                raise UsageError(Problem("E641", f"a count of FLOPs cannot be {count}"))
        self._flop = Flop(estimated=estimated, counted=counted)
        if self._closed:
            with last_words.wait():
                self._deliver()

    @property
    def seconds(self) -> float:
        """Seconds inside, without pauses: so far, or in all."""
        return self.reading.wall_s if self.reading else self._window.elapsed_s()

    @property
    def line(self) -> WindowLine:
        """The window as it is written down."""
        start_s = self._window.start_ns / 1e9
        return WindowLine(
            name=self.name,
            path=self.path,
            parent=self._parent.path if self._parent else None,
            steps=self._steps,
            samples=self._samples,
            quality=self._quality,
            flop=self._flop,
            start_s=start_s,
            stop_s=max(start_s, self._synchronised_ns / 1e9),
            reading=self.reading,
            error=self._error,
            id=self._id,
            flags=self._flags(),
            rank=self._rank,
            node=self._node,
        )

    def __str__(self) -> str:
        return sentence(self.line) if self._closed else f"{self.name}: open for {self.seconds:.1f} s"

    def __repr__(self) -> str:
        return f"<window {self}>"

    def _flags(self) -> list[Flag]:
        """By the same tests as a run's. A stretch inside another window is doubted with that one: it waits for no edge,
        and is as short as it likes."""
        if self.reading is None:
            return []
        raised = [Flag(code=doubt.code, detail=detail) for doubt, detail in doubts(self.reading, self._steps)]
        return [flag for flag in raised if self._parent is None or flag.code not in ("window_short", "aliasing")]

    def _checked(self, what: str, count: int) -> int:
        if self._closed:
            hint = f"with energybench.measure('{self.name}') as window: ... window.{what} += 1"
            raise UsageError(Problem("E641", f"'{self.name}' is closed: count {what} inside it", hint=hint))
        if count < 0:
            raise UsageError(Problem("E641", f"{what} of '{self.name}' cannot be {count}"))
        return int(count)

    # ── opening and closing ───────────────────────────────────────────────────────────────────────────────────

    def _synchronise(self) -> None:
        try:
            if not self._broken_off:  # a card that hangs would hold up the end of the process
                devices.synchronise()
        finally:
            self._synchronised_ns = REAL_TIME.now_ns()

    def _start(self) -> None:
        try:
            for window in self._paused:
                window._window.stop()  # which does nothing where it is paused already
            self._window.start()
        except BaseException:  # a Ctrl-C while an edge is awaited
            self._resume()
            raise
        last_words.listen()
        _open.append(self)
        _innermost.set(self)

    def _resume(self) -> None:
        for window in reversed(self._paused):
            with _pausing:
                window._pauses -= 1
                goes_on = not window._pauses
            if goes_on:
                window._window.start()

    def _stop(self, error: str | None) -> None:
        """Close, whatever happens to the sensors. Raises what CUDA raises for an error in a kernel, once closed."""
        for window in [each for each in _open[::-1] if self in each._enclosing()[1:]]:
            window._stop("never closed")
        self._error, failure = error, None
        try:
            self._window.stop()
        except Exception as raised:
            failure, self._error = raised, error or type(raised).__name__
        self.reading = self._read(failure)
        self._closed = True
        _open.remove(self)
        _innermost.set(self._outer)
        if self._borrows and failure is None:
            pool.give_back(self._meter_set)
        self._deliver()  # while those around it are paused
        self._resume()
        if not _open:
            last_words.leave()  # once all is written
        if failure is not None and error is None:
            raise failure

    def _read(self, failure: Exception | None) -> Reading:
        if failure is None:
            return self._meter_set.of_used_cards(refuse_short(self._window.reading()))
        reason = f"the window did not close: {type(failure).__name__}"
        lost = Energy(source="unavailable", scope="machine", reason=reason)
        return Reading(wall_s=max(0.0, (self._synchronised_ns - self._window.start_ns) / 1e9), energy=[lost])

    def _deliver(self) -> None:
        """Write it for the suite; else print the outermost one. A training never fails for want of a disk."""
        outermost = self._enclosing()[-1]
        if outermost is not self and outermost._options.record:
            outermost._inner[self._id] = self
        try:
            if path := os.environ.get(VARIABLE):
                append(Path(path), self.line)
            if outermost._closed and outermost._options.record:
                content = json_of(outermost._file()).encode()
                write_output(path_of_rank(outermost._options.record), content, RECORD_KIND)
        except (OSError, ValueError, UsageError) as error:
            print(inert(printable(f"energybench: '{self.name}' could not be written: {error}")), file=sys.stderr)
        if outermost is self and not self._options.quiet and not path and not self._printed:
            self._print()
            self._printed = True

    def _print(self) -> None:
        text = inert(printable(sentence(self.line)))
        try:
            print(text, file=sys.stderr, flush=True)
        except RuntimeError:  # a signal came while the script itself was printing there
            os.write(2, f"{text}\n".encode())

    def _enclosing(self) -> list[MeasuredWindow]:
        """This window and all that were open when it was opened, innermost first; those too that it pauses."""
        windows, window = [self], self._outer
        while window is not None:
            windows.append(window)
            window = window._outer
        return windows

    def _file(self) -> WindowsFile:
        windows = [self.line, *(window.line for window in self._inner.values())]
        return WindowsFile(
            started_at=self._started_at,
            argv=[*(Path(word).name for word in sys.argv[:1]), *sys.argv[1:]],
            machine=machine.facts(),
            gpus=self._meter_set.facts,
            windows=sorted(windows, key=lambda line: line.start_s),
        )


def current() -> MeasuredWindow | None:
    """The innermost window that is open here, for code inside a decorated function, say."""
    window = _innermost.get()
    while window is not None and (window._closed or window._pid != os.getpid()):
        window = window._outer
    return window


def _lineage(window: MeasuredWindow | None) -> list[MeasuredWindow]:
    """A window and those that it is a part of, innermost first."""
    windows = []
    while window is not None:
        windows.append(window)
        window = window._parent
    return windows


def _close_all(error: str = "never closed", *, broken_off: bool = False) -> None:
    for window in reversed([window for window in _open if window._pid == os.getpid()]):
        if not window._closed:
            window._broken_off = broken_off
            window._stop(error)


last_words = LastWords(partial(_close_all, broken_off=True))


def _forget() -> None:
    """In a forked child: the windows are the parent's."""
    global _pausing
    _pausing = threading.Lock()
    _open.clear()
    _innermost.set(None)
    last_words.leave()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget)
