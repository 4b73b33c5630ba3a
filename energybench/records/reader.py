"""Records read back from disk, strictly: what is cut short, edited, of another schema or of another run is refused.

Imports no torch: records are read on machines that could never have made them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from energybench.common.errors import Problem, UsageError, typed
from energybench.common.safe_read import path_inside, paths_inside
from energybench.common.sealed_files import read_sealed
from energybench.meter.reading import RecordModel
from energybench.records.record import SCHEMAS, CountingRun, RunFile, Trial

AnyModel = TypeVar("AnyModel", bound=RecordModel)


def read(path: Path, kind: type[AnyModel]) -> AnyModel:
    """One record, validated strictly.

    Raises:
        UsageError: E601 missing, cut short or no such record; E621 edited since; E622 of another schema.
    """
    away = typed("mv", path, f"{path}.broken")
    hint = f"{away} — then a report leaves it out; an unfinished run, if run again, repeats it"
    if kind is RunFile:
        hint = "restore it from a copy; a new run goes beside it: --new, or another --out"
    content = read_sealed(path, SCHEMAS, kind.__name__, hint)
    try:
        return kind.model_validate(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        message = f"not a whole {kind.__name__} record: {place}: {first['msg']}"
        raise UsageError(Problem("E601", message, str(path), hint)) from None


def read_folder(folder: Path) -> tuple[RunFile, list[Trial], list[CountingRun]]:
    """A run and all its records, sorted by file name.

    Raises:
        UsageError: E601, E621, E622 for a file that cannot be used; E612 for a link out of the folder; E625 for a
            trial of another run.
    """
    run = read(path_inside(folder, folder / "run.json"), RunFile)
    trials = [read(path, Trial) for path in paths_inside(folder, "records", "*.json")]
    refuse_strangers(folder, run, trials)
    return run, trials, [read(path, CountingRun) for path in paths_inside(folder, "witness", "*.json")]


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
