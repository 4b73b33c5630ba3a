"""Records that were copied into the folder of a run of other settings: whole and sealed, and no part of it.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from energybench.errors import Problem, UsageError

if TYPE_CHECKING:
    from energybench.record import RunFile, Trial


def refuse_strangers(folder: Path, run: RunFile, trials: Iterable[Trial]) -> None:
    """Raises UsageError E625 for a trial whose cell is another one in this run: trials of different settings, methods
    or versions are never mixed."""
    digests = {(cell.workload, cell.method): cell.digest for cell in run.cells if cell.digest}
    for trial in trials:
        if digests.get((trial.workload, trial.method), trial.digest) != trial.digest:
            path = folder / "records" / f"{trial.trial}.json"
            message = "a record of another run: its settings, methods or versions are not this one's"
            hint = "move it out of this folder; an unfinished run, if run again, makes its own"
            raise UsageError(Problem("E625", message, str(path), hint))
