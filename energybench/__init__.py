"""Train the same model twice, once with the trick. See what the meter says."""

# ruff: noqa: E402  (a command line of ours looks for no module where anybody may have put a file)
from energybench.common.command_start import begin as _begin

_begin()

from typing import TYPE_CHECKING, Any

from energybench.common.version import __version__
from energybench.flops.work import Line, Work
from energybench.moved import install as _find_moved_modules
from energybench.train.batch import Batch, Forward
from energybench.train.method import Method, Task

if TYPE_CHECKING:
    from energybench.common.errors import EnergybenchError
    from energybench.common.metrics import Metric
    from energybench.results import Results, load, run
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun
    from energybench.train.passes import Passes
    from energybench.windows.measure import measure

__all__ = [
    "Batch",
    "Data",
    "EnergybenchError",
    "Forward",
    "Line",
    "Method",
    "Metric",
    "Passes",
    "Results",
    "Task",
    "TrainingRun",
    "Work",
    "__version__",
    "load",
    "measure",
    "run",
]

# Name → its module, imported when it is asked for.
_LATER = {
    "measure": "windows.measure",
    "run": "results",
    "load": "results",
    "Results": "results",
    "EnergybenchError": "common.errors",
    "Metric": "common.metrics",
    "Data": "train.data",
    "TrainingRun": "train.interface",
    "Passes": "train.passes",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("callbacks", "errors"):
        return importlib.import_module(f"energybench.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'energybench' has no attribute '{name}'")
    return getattr(importlib.import_module(f"energybench.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


_find_moved_modules()
