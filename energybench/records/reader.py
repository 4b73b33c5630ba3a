"""Records read back from disk, strictly: what is cut short, edited, of another schema or of another run is refused.

Each is read and validated whole; of a run's trials that is kept which its report needs (`kept.py`), so that a run of
fifty thousand fits into memory. Imports no torch: records are read on machines that could never have made them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from energybench.common.errors import Problem, UsageError, typed
from energybench.common.held_folder import HeldFolder
from energybench.common.limits import RECORD_B
from energybench.common.outputs import RUN_FILE
from energybench.common.sealed_files import read_with_seal
from energybench.meter.reading import RecordModel
from energybench.records.kept import Shared, Source, keep
from energybench.records.record import SCHEMAS, CountingRun, RunFile, Trial
from energybench.records.run_identity import digests_of, stranger_reason

AnyModel = TypeVar("AnyModel", bound=RecordModel)
AnyRecord = TypeVar("AnyRecord", bound=Trial | CountingRun)
RECORDS, COUNTING_RUNS = "records", "witness"  # names in a run's folder
EVERY = 100  # records, after which whoever watches is told
# Told how many of how many records of a folder were read: a bar on a terminal.
WATCHER: ContextVar[Callable[[int, int], None] | None] = ContextVar("WATCHER", default=None)


def read(path: Path, kind: type[AnyModel], folder: HeldFolder | None = None) -> AnyModel:
    """One record, validated strictly.

    Args:
        path: Of the file; with `folder` it stands below that, and is read by its handle.

    Raises:
        UsageError: E601 missing, cut short or no such record; E612 a link below `folder`; E621 edited since; E622 of
            another schema.
    """
    load = None
    if folder is not None:
        name = path.relative_to(folder.path).as_posix()
        load = partial(folder.read_bytes, name, RECORD_B)
    return _read(path, kind, load)[0]


def _read(path: Path, kind: type[AnyModel], load: Callable[[], bytes] | None) -> tuple[AnyModel, bytes]:
    """A record and its seal; load: gives the bytes, by default those at `path`. Raises as `read`."""
    content, seal = read_with_seal(path, SCHEMAS, kind.__name__, partial(_hint, path, kind), load)
    try:
        return kind.model_validate(content, strict=True), seal
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        message = f"not a whole {kind.__name__} record: {place}: {first['msg']}"
        raise UsageError(Problem("E601", message, str(path), _hint(path, kind))) from None


def _hint(path: Path, kind: type[RecordModel]) -> str:
    """What to do with a record that is damaged or was edited."""
    if kind is RunFile:
        return "restore it from a copy; a new run goes beside it: --new, or another --out"
    away = typed("mv", path, f"{path}.broken")
    return f"{away} — then a report leaves it out; an unfinished run, if run again, repeats it"


def read_folder(folder: Path) -> tuple[RunFile, list[Trial], list[CountingRun]]:
    """A run and all its records, sorted by file name; trials as they are kept.

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
    """One trial or counting run by its own path, whole. Where it stands in a run's folder, it must be that run's.

    Raises UsageError as `read_folder` does.
    """
    home = path.absolute().parent.parent
    if path.absolute().parent.name not in (RECORDS, COUNTING_RUNS) or not (home / RUN_FILE).exists():
        return read(path, kind)
    with HeldFolder(home) as held:
        record = read(path.absolute(), kind, held)
        refuse_strangers(read(home / RUN_FILE, RunFile, held), [(path, record)])
    return record


def read_trials(folder: HeldFolder, run: RunFile | None, only: Iterable[str] | None = None) -> list[Trial]:
    """Sorted by file name, as they are kept. Raises UsageError as `read_folder` does.

    Args:
        run: whose they must be; without it they may be anybody's
        only: names of files, from the folder; by default all that lie in its records
    """
    there = paths(folder, RECORDS) if only is None else [folder.path / name for name in sorted(only)]
    shared, place = Shared(), folder.path.absolute()
    return [
        keep(trial, Source(whole_trial, place, trial.trial if path.stem == trial.trial else path.stem, seal), shared)
        for path, trial, seal in _each(folder, there, Trial, run)
    ]


def whole_trial(folder: Path, stem: str) -> tuple[Trial, bytes]:
    """A trial of a run's folder by its file's stem, and its seal. Raises UsageError as `read` does."""
    path = folder / RECORDS / f"{stem}.json"
    try:
        held = HeldFolder(folder)
    except OSError:
        return _read(path, Trial, None)  # which says what is wrong
    with held:
        return _read(path, Trial, partial(held.read_bytes, f"{RECORDS}/{stem}.json", RECORD_B))


def read_counting_runs(folder: HeldFolder, run: RunFile | None) -> list[CountingRun]:
    """Likewise, whole."""
    return [each for _, each, _ in _each(folder, paths(folder, COUNTING_RUNS), CountingRun, run)]


def _each(
    folder: HeldFolder, there: list[Path], kind: type[AnyRecord], run: RunFile | None
) -> Iterator[tuple[Path, AnyRecord, bytes]]:
    """Records of one part of a run's folder, one after the other, each with its path and seal."""
    watcher, digests = WATCHER.get(), digests_of(run) if run else {}
    if not there:
        return
    with _no_collections(), folder.reading(there[0].parent.name) as load:
        for number, path in enumerate(there):
            record, seal = _read(path, kind, partial(load, path.name, RECORD_B))
            if run is not None:
                _refuse_stranger(run, digests, path, record)
            yield path, record, seal
            if watcher is not None and number % EVERY == 0:
                watcher(number, len(there))
    if watcher is not None:
        watcher(len(there), len(there))


@contextmanager
def _no_collections() -> Iterator[None]:
    """What is read makes millions of objects and no cycles: looking for cycles among them takes a third of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


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
        _refuse_stranger(run, digests, path, record)


def _refuse_stranger(
    run: RunFile, digests: dict[tuple[str, str], str], path: Path, record: Trial | CountingRun
) -> None:
    if reason := stranger_reason(run, digests, record):
        away = typed("mv", path, f"{path}.stranger")
        hint = f"{away} — then a report leaves it out; an unfinished run, if run again, makes its own"
        raise UsageError(Problem("E625", f"a record of another run: {reason}", str(path), hint))
