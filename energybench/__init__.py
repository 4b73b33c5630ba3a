"""Train the same model twice, once with the trick. See what the meter says."""

from typing import TYPE_CHECKING, Any

from energybench.method import Batch, Forward, Method, Task
from energybench.work import Line, Work

if TYPE_CHECKING:
    from energybench.errors import EnergybenchError
    from energybench.measuring import measure
    from energybench.results import Results, load, run

__version__ = "0.1.0"
__all__ = ["Batch", "EnergybenchError", "Forward", "Line", "Method", "Results", "Task", "Work", "__version__", "load",
           "measure", "run"]  # fmt: skip

_LATER = {"measure": "measuring", "run": "results", "load": "results", "Results": "results",
          "EnergybenchError": "errors"}  # name → its module, imported when it is asked for  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name == "callbacks":
        return importlib.import_module("energybench.callbacks")
    if name not in _LATER:
        raise AttributeError(f"module 'energybench' has no attribute '{name}'")
    return getattr(importlib.import_module(f"energybench.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
