"""Records read back from disk, strictly: what is cut short, edited, of another schema or of another run is refused.

Imports no torch: records are read on machines that could never have made them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from energybench.common.errors import Problem, UsageError, typed
from energybench.common.held_folder import HeldFolder
from energybench.common.limits import RECORD_B
from energybench.common.outputs import RUN_FILE
from energybench.common.sealed_files import read_sealed
from energybench.meter.reading import RecordModel
from energybench.records.record import SCHEMAS, CountingRun, RunFile, Trial
from energybench.records.run_identity import digests_of, stranger_reason

AnyModel = TypeVar("AnyModel", bound=RecordModel)
AnyRecord = TypeVar("AnyRecord", bound=Trial | CountingRun)
RECORDS, COUNTING_RUNS = "records", "witness"  # names in a run's folder


def read(path: Path, kind: type[AnyModel], folder: HeldFolder | None = None) -> AnyModel:
    """One record, validated strictly.

    Args:
        path: Of the file; with `folder` it stands below that, and is read by its handle.

    Raises:
        UsageError: E601 missing, cut short or no such record; E612 a link below `folder`; E621 edited since; E622 of
            another schema.
    """
    away = typed("mv", path, f"{path}.broken")
    hint = f"{away} — then a report leaves it out; an unfinished run, if run again, repeats it"
    if kind is RunFile:
        hint = "restore it from a copy; a new run goes beside it: --new, or another --out"
    load = None
    if folder is not None:
        name = path.relative_to(folder.path).as_posix()
        load = partial(folder.read_bytes, name, RECORD_B)
    content = read_sealed(path, SCHEMAS, kind.__name__, hint, load)
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
        UsageError: E601, E621, E622 for a file that cannot be used; E612 for a link below the folder; E625 for a
            record of another run.
    """
    try:
        held = HeldFolder(folder)
    except OSError:
        return read(folder / RUN_FILE, RunFile), [], []  # which says what is wrong
    with held:
        run = read(folder / RUN_FILE, RunFile, held)
        return run, read_trials(held, run), read_counting_runs(held, run)


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord:
    """One trial or counting run by its own path. Where it stands in a run's folder, it must be that run's.

    Raises UsageError as `read_folder` does.
    """
    home = path.absolute().parent.parent
    if path.absolute().parent.name not in (RECORDS, COUNTING_RUNS) or not (home / RUN_FILE).exists():
        return read(path, kind)
    with HeldFolder(home) as held:
        record = read(path.absolute(), kind, held)
        refuse_strangers(read(home / RUN_FILE, RunFile, held), [(path, record)])
    return record


def read_trials(folder: HeldFolder, run: RunFile | None) -> list[Trial]:
    """Sorted by file name. Raises UsageError as `read_folder` does; without `run` they may be anybody's."""
    trials = [(path, read(path, Trial, folder)) for path in paths(folder, RECORDS)]
    refuse_strangers(run, trials)
    return [trial for _, trial in trials]


def read_counting_runs(folder: HeldFolder, run: RunFile | None) -> list[CountingRun]:
    """Likewise."""
    counting_runs = [(path, read(path, CountingRun, folder)) for path in paths(folder, COUNTING_RUNS)]
    refuse_strangers(run, counting_runs)
    return [counting_run for _, counting_run in counting_runs]


def paths(folder: HeldFolder, part: str) -> list[Path]:
    """The JSON files of a part of a run's folder; none where there is no such part.

    Raises UsageError E612 where it is a link; E601 where it cannot be listed.
    """
    try:
        return [folder.path / name for name in folder.names(part, ".json")]
    except OSError as error:
        hint = "a run's folder holds a folder of this name"
        place = str(folder.path / part)
        raise UsageError(Problem("E601", f"cannot look into it: {error.strerror}", place, hint)) from None


def refuse_strangers(run: RunFile | None, records: Iterable[tuple[Path, Trial | CountingRun]]) -> None:
    """Raises UsageError E625 for a record that `run` did not make: those of two runs are never mixed."""
    if run is None:
        return
    digests = digests_of(run)
    for path, record in records:
        if reason := stranger_reason(run, digests, record):
            away = typed("mv", path, f"{path}.stranger")
            hint = f"{away} — then a report leaves it out; an unfinished run, if run again, makes its own"
            raise UsageError(Problem("E625", f"a record of another run: {reason}", str(path), hint))
