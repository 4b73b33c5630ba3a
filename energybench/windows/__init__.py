"""A script's own windows of metering, and the file in which a suite reads them.

It may import records, meter and common, and no torch.
Start with `measure.py`, which is `energybench.measure`; `window.py` is one window of it, `file.py` holds the
lines of $ENERGYBENCH_WINDOWS.
"""

from energybench.windows.file import WindowLine, WindowsFile, append, read_windows, training

__all__ = ["WindowLine", "WindowsFile", "append", "read_windows", "training"]
