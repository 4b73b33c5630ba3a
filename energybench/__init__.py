"""Train the same model twice, once with the trick. See what the meter says."""

from energybench.method import Batch, Forward, Method, Task
from energybench.work import Line, Work

__version__ = "0.1.0"
__all__ = ["Batch", "Forward", "Line", "Method", "Task", "Work", "__version__"]
