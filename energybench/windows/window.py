"""`energybench.measure`: named windows of metering in a script of one's own.

    with energybench.measure("train") as window:
        for batch in loader:
            ...
            window.steps += 1
    window.quality("accuracy", 0.93)

Alone it prints one line when the outermost window closes, and keeps a record if told where. Under a suite
($ENERGYBENCH_WINDOWS) it prints nothing: each closed window is a line for the trial.

Windows nest: what an inner one used is part of the outer one. The outermost does the metering with all care, from edge
to edge of the card's counter; an inner one waits for nothing, so that it never holds the outer one up, and on a card
has the power integral alone. `apart=True` pauses the windows around it instead: an evaluation is no part of training.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from energybench.common import machine
from energybench.common.errors import CannotWrite, Problem, UsageError
from energybench.common.sealed_files import refuse_unwritable, write_out
from energybench.meter import Meter, devices, pool
from energybench.meter.clock import REAL_TIME
from energybench.meter.pool import EnergyWanted, Kit, Wanted
from energybench.meter.reading import Energy, Reading
from energybench.meter.sensors import inside
from energybench.meter.window import Window, refuse_short
from energybench.records.record import json_of
from energybench.windows.file import VARIABLE, Flop, WindowLine, WindowsFile, append, sentence

P = ParamSpec("P")
R = TypeVar("R")

_innermost: ContextVar[MeasuredWindow | None] = ContextVar("innermost window", default=None)
_open: list[MeasuredWindow] = []  # of this process, in the order of opening
_numbers = itertools.count(1)
_pausing = threading.Lock()


class MeasuredWindow:
    """One open or closed window. Count `steps` and `samples` inside; quality may be told after it has closed."""

    def __init__(self, recipe: Measure, outer: MeasuredWindow | None) -> None:
        self.name, self._recipe, self._outer, self._pid = recipe.name, recipe, outer, os.getpid()
        self._id = f"{self._pid}.{next(_numbers)}"
        self._steps: int | None = None
        self._samples: int | None = None
        self._quality: dict[str, float] = {}
        self._flop: Flop | None = None
        self._error: str | None = None
        self._seen_ns = 0  # when the devices were last waited for
        self._closed = self._said = False
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._inner: dict[str, MeasuredWindow] = {}  # everything inside the outermost one, for its record
        self.reading: Reading | None = None  # once closed

        within = outer is not None and not recipe.apart
        self._parent = outer if within else None
        self.path: str = f"{outer.path}/{self.name}" if outer and within else self.name
        self._paused: list[MeasuredWindow] = _chain(outer) if outer and not within else []
        self._pauses = 0  # windows apart from this one that are open: one, or several in tasks and threads
        with _pausing:
            # Whoever paused them first has their sensors.
            self._borrows = outer is None or any(window._pauses for window in self._paused)
            wanted = outer._kit.wanted if outer else recipe.wanted
            self._kit: Kit = pool.borrow(wanted) if outer is None or self._borrows else outer._kit
            for window in self._paused:
                window._pauses += 1
        meters: Sequence[Meter] = inside(self._kit.meters) if within else self._kit.meters
        self._window = Window(meters, self._synchronise)

    # ── what a script says ────────────────────────────────────────────────────────────────────────────────────

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self._steps or 0

    @steps.setter
    def steps(self, count: int) -> None:
        self._steps = self._counted("steps", count)

    @property
    def samples(self) -> int:
        """Samples so far."""
        return self._samples or 0

    @samples.setter
    def samples(self, count: int) -> None:
        self._samples = self._counted("samples", count)

    def quality(self, metric: str, value: float) -> None:
        """What the training has reached, by a name that the suite may ask for. Raises UsageError E641 for no number."""
        number = float(value)
        if number - number != 0:  # infinite or no number
            raise UsageError(Problem("E641", f"{metric} is {number}, and quality is a finite number"))
        self._quality[str(metric)] = number
        if self._closed:
            self._deliver()

    def flop(self, *, estimated: float | None = None, counted: float | None = None) -> None:
        """FLOPs of this window as the script knows them; one multiply-add is 2. Raises UsageError E641."""
        for told in (estimated, counted):
            if told is not None and not 0 <= told < float("inf"):
                raise UsageError(Problem("E641", f"a count of FLOPs cannot be {told}"))
        self._flop = Flop(estimated=estimated, counted=counted)
        if self._closed:
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
            stop_s=max(start_s, self._seen_ns / 1e9),
            reading=self.reading,
            error=self._error,
            id=self._id,
        )

    def __str__(self) -> str:
        return sentence(self.line) if self._closed else f"{self.name}: open for {self.seconds:.1f} s"

    def __repr__(self) -> str:
        return f"<window {self}>"

    def _counted(self, what: str, count: int) -> int:
        if self._closed:
            hint = f"with energybench.measure('{self.name}') as window: ... window.{what} += 1"
            raise UsageError(Problem("E641", f"'{self.name}' is closed: count {what} inside it", hint=hint))
        if count < 0:
            raise UsageError(Problem("E641", f"{what} of '{self.name}' cannot be {count}"))
        return int(count)

    # ── opening and closing ───────────────────────────────────────────────────────────────────────────────────

    def _synchronise(self) -> None:
        try:
            devices.synchronise()
        finally:
            self._seen_ns = REAL_TIME.now_ns()

    def _start(self) -> None:
        try:
            for window in self._paused:
                window._window.stop()  # which does nothing where it is paused already
            self._window.start()
        except BaseException:  # a Ctrl-C while an edge is awaited
            self._resume()
            raise
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
        for window in [each for each in _open[::-1] if self in each._around()[1:]]:
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
            pool.give_back(self._kit)
        self._deliver()  # while those around it are paused
        self._resume()
        if failure is not None and error is None:
            raise failure

    def _read(self, failure: Exception | None) -> Reading:
        if failure is None:
            return self._kit.of_used(refuse_short(self._window.reading()))
        reason = f"the window did not close: {type(failure).__name__}"
        lost = Energy(source="unavailable", scope="machine", reason=reason)
        return Reading(wall_s=max(0.0, (self._seen_ns - self._window.start_ns) / 1e9), energy=[lost])

    def _deliver(self) -> None:
        """To the suite; else, for an outermost window, to whoever looks. A training never fails for want of a disk."""
        outermost = self._around()[-1]
        if outermost is not self and outermost._recipe.record:
            outermost._inner[self._id] = self
        try:
            if path := os.environ.get(VARIABLE):
                append(Path(path), self.line)
            if outermost._closed and outermost._recipe.record:
                write_out(outermost._recipe.record, json_of(outermost._file()).encode())
        except (OSError, ValueError, CannotWrite) as error:
            print(f"energybench: '{self.name}' could not be written: {error}", file=sys.stderr)
        if outermost is self and not self._recipe.quiet and not path and not self._said:
            print(sentence(self.line), file=sys.stderr, flush=True)
            self._said = True

    def _around(self) -> list[MeasuredWindow]:
        """This window and all that were open when it was opened, innermost first; those too that it pauses."""
        found, window = [self], self._outer
        while window is not None:
            found.append(window)
            window = window._outer
        return found

    def _file(self) -> WindowsFile:
        windows = [self.line, *(window.line for window in self._inner.values())]
        return WindowsFile(
            schema=1,
            started_at=self._started_at,
            argv=[*(Path(word).name for word in sys.argv[:1]), *sys.argv[1:]],
            machine=machine.facts(),
            gpus=self._kit.facts,
            windows=sorted(windows, key=lambda line: line.start_s),
        )


class Measure:
    """What `measure` returns: `with` it, as often as one likes and inside itself, or decorate with it."""

    def __init__(self, name: str, wanted: Wanted, apart: bool, quiet: bool, record: Path | None) -> None:
        self.name, self.wanted, self.apart, self.quiet, self.record = name, wanted, apart, quiet, record

    def start(self) -> MeasuredWindow:
        """Open a window: for callbacks, where no `with` fits. Closed by `stop`, or by the end of a window around it."""
        if self.record is not None:
            refuse_unwritable(self.record, "name another file with record=...")
        window = MeasuredWindow(self, current())
        window._start()
        return window

    def stop(self, error: str | None = None) -> None:
        """Close the window that `start` opened last in this context. error: why, if not as planned."""
        window = current()
        while window is not None and window._recipe is not self:
            window = window._outer
        if window is not None:
            window._stop(error)

    def __enter__(self) -> MeasuredWindow:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = isinstance(error, SystemExit) and not error.code
        self.stop(None if kind is None or ended else kind.__name__)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Raises UsageError E641 for a function that returns before its work is done."""
        told: dict[str, Callable[[object], bool]] = {
            "an async function": inspect.iscoroutinefunction,
            "a generator function": inspect.isgeneratorfunction,
            "an async generator function": inspect.isasyncgenfunction,
            "a class": inspect.isclass,
        }
        for what, is_one in told.items():
            if is_one(function):
                hint = f"inside it: with energybench.measure('{self.name}'): ..."
                raise UsageError(
                    Problem("E641", f"measure() cannot decorate {what}: a call of it does no work", hint=hint)
                )

        @functools.wraps(function)
        def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return measured


@overload
def measure(name: Callable[P, R]) -> Callable[P, R]: ...


@overload
def measure(
    name: str = ...,
    *,
    apart: bool = ...,
    quiet: bool = ...,
    record: str | os.PathLike[str] | None = ...,
    energy: EnergyWanted = ...,
    gpus: str | Sequence[str] = ...,
    meters: Sequence[str] = ...,
) -> Measure: ...


def measure(
    name: str | Callable[P, R] = "train",
    *,
    apart: bool = False,
    quiet: bool = False,
    record: str | os.PathLike[str] | None = None,
    energy: EnergyWanted = "if available",
    gpus: str | Sequence[str] = "used",
    meters: Sequence[str] = (),
) -> Any:
    """A window around a part of a script: `with energybench.measure("train") as window:`, or `@energybench.measure`.

    apart:  pause the windows around it; it is no part of them
    quiet:  print no line
    record: write the window and those inside it to this file when it closes
    energy: "require" raises CannotMeasure where no sensor can be read; "off" takes the time alone
    gpus:   "used" by this process, "all", or UUIDs
    meters: those of other packages, by name

    The outermost window's `energy`, `gpus` and `meters` hold for those inside it. Raises UsageError for a mistake.
    """
    if callable(name):
        return measure(name.__name__)(name)
    if not isinstance(name, str) or not name or "/" in name:
        raise UsageError(
            Problem("E641", f"a window's name is a text without '/', not {name!r}", hint='measure("train")')
        )
    if energy not in ("if available", "require", "off"):
        raise UsageError(Problem("E641", f"energy={energy!r}", hint='one of: "if available", "require", "off"'))
    if isinstance(gpus, str) and gpus not in ("used", "all"):
        raise UsageError(Problem("E641", f"gpus={gpus!r}", hint='one of: "used", "all", or a list of UUIDs'))
    wanted = Wanted(energy, gpus if isinstance(gpus, str) else tuple(gpus), tuple(meters))
    return Measure(name, wanted, apart, quiet, None if record is None else Path(record).absolute())


def current() -> MeasuredWindow | None:
    """The innermost window that is open here, for code inside a decorated function, say."""
    window = _innermost.get()
    while window is not None and (window._closed or window._pid != os.getpid()):
        window = window._outer
    return window


def _chain(window: MeasuredWindow | None) -> list[MeasuredWindow]:
    """A window and those that it is a part of, innermost first."""
    found = []
    while window is not None:
        found.append(window)
        window = window._parent
    return found


def _at_exit() -> None:
    for window in reversed([window for window in _open if window._pid == os.getpid()]):
        if not window._closed:
            window._stop("never closed")


def _forget() -> None:
    """In a forked child: the windows are the parent's."""
    global _pausing
    _pausing = threading.Lock()
    _open.clear()
    _innermost.set(None)


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_forget)
