"""A record is written whatever happens to the training, and says what did."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from energybench.common.errors import CannotWrite
from energybench.records.record import Status, write_json
from energybench.train.run import Diverged
from energybench.trial.record_draft import CountingRunDraft, TrialDraft


class RankLost(Exception):
    """Another rank of the same trial ended before its end. status: of the trial."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def fill_and_write(record: TrialDraft | CountingRunDraft, fill: Callable[[], None], out_path: str) -> None:
    """Fill a record, and write what is there of it: with the failure where `fill` raises.

    Raises CannotWrite where nothing can be kept: a full disk is no fault of the method's.
    """
    try:
        fill()
    except CannotWrite:
        raise
    except Exception as error:
        traceback.print_exc()
        record.status, record.reason = failure_of(error)
    write_json(Path(out_path), record.finished())


def failure_of(error: Exception) -> tuple[Status, str]:
    """(status, reason) of a training that an error ended."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, Diverged):
        return "diverged", text
    if isinstance(error, RankLost):
        return error.status, text
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        place = f" ({Path(frame.filename).name}:{frame.lineno})"
    return ("out_of_memory" if memory else "failed"), f"{type(error).__name__}: {text}{place}"
