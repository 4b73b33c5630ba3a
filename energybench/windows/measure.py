"""`energybench.measure`: named windows of metering in a script of one's own.

    with energybench.measure("train") as window:
        for batch in loader:
            ...
            window.steps += 1
    window.quality("accuracy", 0.93)

Alone it prints one line when the outermost window closes, and keeps a record where `record=` names a file. Under a
suite ($ENERGYBENCH_WINDOWS) it prints nothing: each closed window is a line for the trial.

A window inside another one is part of it; `exclude_from_parent=True` pauses the windows around it instead: an
evaluation is no part of training. How windows nest and who does the metering: `window.py`.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from energybench.common.errors import Problem, UsageError
from energybench.common.outputs import refuse_foreign
from energybench.common.renamed import RenamedNameWarning
from energybench.common.sealed_files import refuse_unwritable
from energybench.meter.pool import EnergyWanted, MeterRequest
from energybench.meter.ranks import path_of_rank
from energybench.windows.file import RECORD_KIND
from energybench.windows.window import MeasuredWindow, WindowOptions, current, last_words

P = ParamSpec("P")
R = TypeVar("R")


class WindowFactory:
    """What `measure` returns: `with` it, as often as one likes and inside itself, or decorate with it."""

    def __init__(self, options: WindowOptions) -> None:
        self._options = options

    def start(self) -> MeasuredWindow:
        """Open a window: for callbacks, where no `with` fits. Closed by `stop`, or by the end of a window around it."""
        if self._options.record is not None:
            path, hint = path_of_rank(self._options.record), "name another file with record=..."
            refuse_unwritable(path, hint)
            refuse_foreign(path, RECORD_KIND, hint)
        with last_words.wait():
            window = MeasuredWindow(self._options, current())
            window._start()
        return window

    def stop(self, error: str | None = None) -> None:
        """Close the window that `start` opened last in this context.

        Args:
            error: why, where it did not end as planned
        """
        window = current()
        while window is not None and window._options is not self._options:
            window = window._outer
        if window is not None:
            with last_words.wait():
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
        unfit: dict[str, Callable[[object], bool]] = {
            "an async function": inspect.iscoroutinefunction,
            "a generator function": inspect.isgeneratorfunction,
            "an async generator function": inspect.isasyncgenfunction,
            "a class": inspect.isclass,
        }
        for what, is_one in unfit.items():
            if is_one(function):
                hint = f"inside it: with energybench.measure('{self._options.name}'): ..."
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
    exclude_from_parent: bool = ...,
    quiet: bool = ...,
    record: str | os.PathLike[str] | None = ...,
    energy: EnergyWanted = ...,
    gpus: str | Sequence[str] = ...,
    meters: Sequence[str] = ...,
    apart: bool | None = ...,
) -> WindowFactory: ...


def measure(
    name: str | Callable[P, R] = "train",
    *,
    exclude_from_parent: bool = False,
    quiet: bool = False,
    record: str | os.PathLike[str] | None = None,
    energy: EnergyWanted = "if available",
    gpus: str | Sequence[str] = "used",
    meters: Sequence[str] = (),
    apart: bool | None = None,
) -> Any:
    """A window around a part of a script: `with energybench.measure("train") as window:`, or `@energybench.measure`.

    The outermost window's `energy`, `gpus` and `meters` hold for those inside it.

    Args:
        name: of the window, a text without "/"; or the function to decorate, whose name it takes
        exclude_from_parent: pause the windows around it; it is no part of them
        quiet: print no line
        record: write the window and those inside it to this file when it closes; each of several ranks to one of its
            own beside it: train.json → train.rank3.json
        energy: "require" raises CannotMeasure where no sensor can be read; "off" takes the time alone
        gpus: "used" by this process, "all", or UUIDs
        meters: those of other packages, by name
        apart: the old name of `exclude_from_parent`, for one version

    Returns:
        A `WindowFactory`, whose `with` gives the open `MeasuredWindow`; or the decorated function.

    Raises:
        UsageError: E641 for a wrong value; once it opens, E503 for an unknown meter, E605 for a record that cannot be
            written, E632 where it names a file of somebody else's
        CannotMeasure: E501 once it opens, where energy is required and no sensor can be read
    """
    if callable(name):
        return measure(name.__name__)(name)
    if apart is not None:
        warnings.warn("measure(apart=...) is called exclude_from_parent=... now", RenamedNameWarning, stacklevel=2)
        exclude_from_parent = apart
    if not isinstance(name, str) or not name or "/" in name:
        raise UsageError(
            Problem("E641", f"a window's name is a text without '/', not {name!r}", hint='measure("train")')
        )
    if energy not in ("if available", "require", "off"):
        raise UsageError(Problem("E641", f"energy={energy!r}", hint='one of: "if available", "require", "off"'))
    if isinstance(gpus, str) and gpus not in ("used", "all"):
        raise UsageError(Problem("E641", f"gpus={gpus!r}", hint='one of: "used", "all", or a list of UUIDs'))
    request = MeterRequest(energy, gpus if isinstance(gpus, str) else tuple(gpus), tuple(meters))
    path = None if record is None else Path(record).absolute()
    return WindowFactory(WindowOptions(name, request, exclude_from_parent, quiet, path))
