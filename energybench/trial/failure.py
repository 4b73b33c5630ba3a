"""What the record says of a training that an error ended."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from energybench.records.record import Status
from energybench.train.run import Diverged


def failure_of(error: Exception) -> tuple[Status, str]:
    """(status, reason) of a training that an error ended."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, Diverged):
        return "diverged", text
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        place = f" ({Path(frame.filename).name}:{frame.lineno})"
    return ("out_of_memory" if memory else "failed"), f"{type(error).__name__}: {text}{place}"
