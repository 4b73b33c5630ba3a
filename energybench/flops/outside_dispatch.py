"""Work that does not pass torch's dispatcher but that Python starts: it is watched while counting, and listed.

    triton.NAME             a Triton kernel that is launched, by itself or behind torch's wrapper
    cuda.CUDAGraph.replay   a recorded graph that runs again: what is in it was seen, if at all, when it was recorded

A kernel for which `register_flop_formula` knows a formula is priced by it, as torch does for kernels that it wraps.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils import flop_counter

_WATCHED = (  # module, class, method
    ("triton.runtime.jit", "JITFunction", "run"),
    ("triton.runtime.interpreter", "InterpretedFunction", "run"),
    ("torch.cuda.graphs", "CUDAGraph", "replay"),
)


@functools.cache
def _import_triton() -> None:
    """Once: where it is installed, a kernel may be the first to import it."""
    try:
        importlib.import_module("triton.runtime.jit")
    except Exception:  # absent, or not for this machine: then nothing is launched
        return


class Watch:
    """Puts a listener before each watched method from `start` to `stop`."""

    def __init__(self, flops: dict[str, int], uncounted: dict[str, int]) -> None:
        self._flops, self._uncounted = flops, uncounted
        self._away = 0
        self._undo: list[Callable[[], None]] = []

    def start(self) -> None:
        _import_triton()
        for module, owner, method in _WATCHED:
            kind = getattr(sys.modules.get(module), owner, None)
            if isinstance(kind, type) and callable(getattr(kind, method, None)):
                self._undo.append(self._listen(kind, method))

    def stop(self) -> None:
        while self._undo:
            self._undo.pop()()

    @contextmanager
    def away(self) -> Iterator[None]:
        """What runs inside is known by another name."""
        self._away += 1
        try:
            yield
        finally:
            self._away -= 1

    def _listen(self, kind: type, method: str) -> Callable[[], None]:
        own = kind.__dict__.get(method)  # None: inherited
        launch = getattr(kind, method)

        @functools.wraps(launch)
        def heard(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._away and not kwargs.get("warmup"):  # a warm-up only compiles
                self._hear(kernel, args, kwargs)
            return launch(kernel, *args, **kwargs)

        setattr(kind, method, heard)
        return lambda: delattr(kind, method) if own is None else setattr(kind, method, own)

    def _hear(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = _name(kernel)
        flop = _flop(kernel, args, kwargs)
        into, what = (self._uncounted, 1) if flop is None else (self._flops, flop)
        into[name] = into.get(name, 0) + what


def _name(kernel: Any) -> str:
    if type(kernel).__name__ == "CUDAGraph":
        return "cuda.CUDAGraph.replay"
    function = getattr(kernel, "fn", kernel)
    return f"triton.{getattr(function, '__name__', None) or type(kernel).__name__}"


def _flop(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """By a formula that was registered for this kernel, called as torch calls it behind its wrapper."""
    try:
        formula = flop_counter.flop_registry.get(kernel)
    except TypeError:  # not hashable
        return None
    if formula is None:
        return None
    given = dict(zip(getattr(kernel, "arg_names", ()), args, strict=False))
    given |= {name: value for name, value in kwargs.items() if name not in ("grid", "warmup")}
    try:
        return int(formula(grid=[kwargs.get("grid")], kwargs=given, out_val=None))
    except Exception:  # a formula that does not fit: the launch is listed
        return None
