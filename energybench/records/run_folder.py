"""The folder of a run: which one a command continues or makes, its lock, and what is in it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from energybench.common.errors import CannotWrite, EnergybenchError, Problem, UsageError, typed
from energybench.common.safe_read import list_folder, name_too_long, path_inside, paths_inside
from energybench.common.sealed_files import PART_SUFFIX
from energybench.records.reader import read, refuse_strangers
from energybench.records.record import CountingRun, RunFile, Trial, write_json

PARTS = ("records", "traces", "witness", "state", "logs", "figures")  # what a run and its report write into
STAMP = re.compile(r"\d{4}-\d\d-\d\d-\d{6}(-\d+)?")  # what a run's folder is called, if nobody named it


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for decoded data and messages between processes; what killed runs left there is removed."""
    folder, file = _locked_scratch()
    try:
        with file:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _locked_scratch() -> tuple[Path, IO[str]]:
    """A new folder, and the file in it whose lock says that its process lives."""
    try:
        for alive in Path(tempfile.gettempdir()).glob("energybench-*/alive"):
            if _is_ours(alive.parent, stat.S_ISDIR) and _is_ours(alive, stat.S_ISREG):
                with suppress(OSError), alive.open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock of a dead process is free
                    shutil.rmtree(alive.parent, ignore_errors=True)
        while True:
            folder = Path(tempfile.mkdtemp(prefix="energybench-"))
            file = (folder / "alive").open("w")
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return folder, file
            file.close()  # another start took it for that of a dead process, before it was locked
    except OSError as error:  # no such folder at all, or no room in any
        raise CannotWrite.of(error, Path(os.environ.get("TMPDIR", "/tmp")) / "energybench") from None


def _is_ours(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether this user made it and it is no link, since anyone may place a link in a temporary folder."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    return facts.st_uid == os.getuid() and kind(facts.st_mode)


class Folder:
    """reports/<suite>/<run>/, or the one given with --out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def records(self) -> Path:
        return self.path / "records"

    @property
    def traces(self) -> Path:
        return self.path / "traces"

    @property
    def counting_runs(self) -> Path:
        return self.path / "witness"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    def run_file(self) -> RunFile | None:
        file = self.path / "run.json"
        return read(path_inside(self.path, file), RunFile) if os.path.exists(file) else None

    def trials(self) -> list[Trial]:
        trials = [read(path, Trial) for path in paths_inside(self.path, "records", "*.json")]
        if run := self.run_file():
            refuse_strangers(self.path, run, trials)
        return trials

    def read_counting_runs(self) -> list[CountingRun]:
        return [read(path, CountingRun) for path in paths_inside(self.path, "witness", "*.json")]

    def save(self, run: RunFile) -> None:
        write_json(self.path / "run.json", run)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held for as long as a run writes here.

        Raises UsageError E604 while another one does, E612 where a part of the folder is a link out of it.
        """
        if name_too_long(self.path):
            hint = "name another folder with --out"
            raise UsageError(Problem("E605", "no folder can have this name", str(self.path), hint))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for part in PARTS:
                if (self.path / part).is_symlink():
                    path_inside(self.path, self.path / part)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise UsageError(
                Problem(
                    "E605", f"cannot write there: {error.strerror}", str(self.path), "name another folder with --out"
                )
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(handle, self.path / ".lock"):
                raise BlockingIOError  # we hold the file of a run that has just ended and unlinked it
        except BlockingIOError:
            os.close(handle)
            raise UsageError(
                Problem(
                    "E604",
                    "another energybench is running in this folder",
                    str(self.path),
                    "wait for it, or start another beside it: --new, or --out with another folder",
                )
            ) from None
        try:
            self._tidy()
            yield
        finally:
            self._tidy()  # what a trial was writing when it was stopped
            with suppress(OSError):  # a disk that has become read-only: the lock is free all the same
                (self.path / ".lock").unlink(missing_ok=True)
            os.close(handle)

    def _tidy(self) -> None:
        """Removes what a killed run left: partly written files and empty logs."""
        logs = self.path / "logs"
        with suppress(OSError):
            for part in (*self.path.glob(f".*{PART_SUFFIX}"), *self.path.glob(f"*/.*{PART_SUFFIX}")):
                part.unlink(missing_ok=True)
            for log in logs.glob("*.log"):
                if not log.stat().st_size:
                    log.unlink()
            logs.rmdir()

    def admit(self, digest: str, differs: Callable[[RunFile], str], *, finished: bool = False) -> None:
        """Raises unless a run of this digest may write here.

        Args:
            digest: Of the run that is to write.
            differs: Says in words how the run on disk differs.
            finished: Blocks are added, which only a finished run takes.

        Raises:
            UsageError: E602 it is finished; E603 it is another run's; E624 there are records without a run.json.
        """
        run = self.run_file()
        if run is None:
            if list_folder(self.records, ".json"):
                message = "there are records here, but no run.json that says of what"
                hint = "put run.json back, or name another folder with --out"
                raise UsageError(Problem("E624", message, str(self.path), hint))
        elif run.digest != digest:
            message = "this folder holds a run of other settings, methods or versions; they are never mixed"
            hint = "name another folder with --out"
            raise UsageError(Problem("E603", f"{message}. Changed: {differs(run)}", str(self.path), hint))
        elif run.finished and not finished:
            hint = f"read it with: energybench report {typed(self.path)} — or name another folder with --out"
            raise UsageError(Problem("E602", "this run is finished", str(self.path), hint))


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _runs(home: Path, say: Callable[[str], None]) -> Iterator[tuple[Path, RunFile]]:
    """The runs of a suite, newest first. One that cannot be read is said and left as it is."""
    for file in sorted(home.glob("*/run.json"), key=lambda file: _in_order(file.parent), reverse=True):
        try:
            yield file.parent, read(file, RunFile)
        except EnergybenchError as error:
            say(f"note: left as it is: {error.problems[0].where}: {error.problems[0].message}")


def _in_order(folder: Path) -> list[tuple[int, int, str]]:
    """Numbers by their size: the tenth run of a second comes after the ninth."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in folder.name.split("-")]


def _finished(suite: str, digest: str, out: Path | None, say: Callable[[str], None]) -> Folder:
    """The finished run of this digest that blocks are added to: `out`, else the newest."""
    home = Path("reports") / suite
    runs = _runs(home, say) if out is None else [(out, run) for run in [Folder(out).run_file()] if run]
    for path, run in runs:
        if run.digest == digest and run.finished:
            return Folder(path)
    message = "there is no finished run of these settings, methods and versions to add blocks to"
    hint = "finish one first: the same command without --add-blocks"
    raise UsageError(Problem("E607", message, str(out or home), hint))


def choose(
    suite: str,
    digest: str,
    out: Path | None,
    fresh: bool,
    add: bool = False,
    say: Callable[[str], None] = lambda _: None,
    differs: Callable[[RunFile], str] = lambda _: "their digests",
) -> Folder:
    """The folder of a run: `out`, that of the newest unfinished run of the same digest, or a new one.

    Args:
        fresh: Make a new one even where an unfinished one could be continued.
        add: Blocks are added to a finished run, so one must exist.
        say: Called with a note for each run that cannot be read.
        differs: Says in words how a run on disk differs from this one.

    Raises:
        UsageError: E602, E603, E624 when `out` cannot be continued; E607 when there is no run to add to.
    """
    if add:
        return _finished(suite, digest, out, say)
    if out is not None:
        folder = Folder(out)
        folder.admit(digest, differs)
        return folder
    home = Path("reports") / suite
    _remove_empty_runs(home)
    if not fresh:
        for path, run in _runs(home, say):
            if run.digest == digest and not run.finished:
                return Folder(path)
    return Folder(_new(home))


def _remove_empty_runs(home: Path) -> None:
    """Removes folders of runs that were killed before run.json was written: a free lock and no finished file."""
    for lock in home.glob("*/.lock"):
        left = list(lock.parent.iterdir())
        if all(file == lock or file.name.endswith(PART_SUFFIX) for file in left):
            with suppress(OSError), lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


def _new(home: Path) -> Path:
    """A folder's name that sorts after all others even if the clock went back, since the newest run is continued."""
    name = datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
    there = [Path(each) for each in os.listdir(home) if STAMP.fullmatch(each)] if home.is_dir() else []
    newest = max(there, key=_in_order, default=None)
    if newest is None or _in_order(Path(name)) > _in_order(newest):
        return home / name
    *_, stamp, number = re.split(r"^(.{17})-?", newest.name)
    return home / f"{stamp}-{int(number or 1) + 1}"


def abandoned(suite: str, stamp: list[str]) -> tuple[Path, RunFile] | None:
    """The newest run of the same command if it is unfinished, and so cannot be continued because something changed."""
    same = ((path, run) for path, run in _runs(Path("reports") / suite, lambda _: None) if run.stamp == stamp)
    newest = next(same, None)
    return newest if newest and not newest[1].finished else None
