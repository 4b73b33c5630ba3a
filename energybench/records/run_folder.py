"""The folder of a run: which one a command continues or makes, its lock, and what is in it."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from energybench.common.errors import AtWork, CannotWrite, EnergybenchError, Problem, UsageError, typed
from energybench.common.folder_lock import FolderBusy, FolderLock
from energybench.common.held_folder import HeldFolder
from energybench.common.outputs import LOCK, LOCK_OWNER, PARTS, RUN_FILE
from energybench.common.safe_read import name_too_long
from energybench.common.sealed_files import PART_SUFFIX
from energybench.records.reader import RECORDS, paths, read, read_counting_runs, read_trials
from energybench.records.record import CountingRun, RunFile, Trial, json_of, sealed_json
from energybench.records.shards import is_in_parts

SUPERSEDED = "superseded"  # records that count no more: of a block that started anew on another device
STAMP = re.compile(r"\d{4}-\d\d-\d\d-\d{6}(-\d+)?")  # what a run's folder is called, if nobody named it


class Folder:
    """reports/<suite>/<run>/, or the one given with --out.

    While it is locked it is held by its handle, and everything is read and written from there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: HeldFolder | None = None
        self._saved: RunFile | None = None  # what this run wrote last
        self._admitted = False  # while it is locked: nothing is removed from a folder that may be another run's

    @property
    def held(self) -> HeldFolder:
        """Only while it is locked."""
        assert self._held is not None
        return self._held

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def run_file(self) -> RunFile | None:
        with self._opened() as folder:
            return self._run_file_in(folder) if folder else None

    def trials(self) -> list[Trial]:
        with self._opened() as folder:
            return read_trials(folder, self._run_file_in(folder)) if folder else []

    def read_counting_runs(self) -> list[CountingRun]:
        with self._opened() as folder:
            return read_counting_runs(folder, self._run_file_in(folder)) if folder else []

    def _run_file_in(self, folder: HeldFolder) -> RunFile | None:
        """Raises CannotWrite E625 where this run wrote one, and another run's stands there by now."""
        run = read(self.path / RUN_FILE, RunFile, folder) if folder.has(RUN_FILE) else None
        if run is not None and self._saved is not None:
            self._refuse_other(run, self._saved)
        return run

    def _refuse_other(self, there: RunFile, run: RunFile) -> None:
        if there.run_identity != run.run_identity:
            message = "the run.json of another run was put here while this one worked; it is left as it is"
            hint = "put the run.json of this run back, or start anew with --new or another --out"
            raise CannotWrite(Problem("E625", message, str(self.path / RUN_FILE), hint))

    @contextmanager
    def _opened(self) -> Iterator[HeldFolder | None]:
        """The folder that is held, else for this once; None where there is none."""
        if self._held is not None:
            yield self._held
            return
        try:
            folder = HeldFolder(self.path)
        except OSError:
            yield None
            return
        with folder:
            yield folder

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raises CannotWrite E626 where the path no longer leads to the folder that is held."""
        if lost := self.held.lost():
            raise CannotWrite(lost)

    def save(self, run: RunFile) -> None:
        """Raises CannotWrite E620, E626; E625 where another run's run.json stands there by now."""
        self.check()
        if (there := self.run_file()) is not None:
            self._refuse_other(there, run)
        self.held.write_bytes(RUN_FILE, json_of(run).encode())
        self._saved = run

    def write_record(self, name: str, record: Trial | CountingRun) -> bytes:
        """A finished trial is kept in the folder that is held, even where that was moved meanwhile; then that is told.

        Returns its seal. Raises CannotWrite E620, E612, E626.
        """
        text, seal = sealed_json(record)
        lost = self.held.lost()
        if lost is None and not os.access(self.path, os.W_OK):  # mounted read-only since; the handle may know better
            raise CannotWrite.of(OSError(errno.EROFS, os.strerror(errno.EROFS)), self.path / name)
        if lost is None or not self.held.is_deleted():
            self.held.write_bytes(name, text.encode())
        if lost is not None:
            raise CannotWrite(lost)
        return seal

    def set_apart(self, trial: str) -> None:
        """Its record out of the way of whoever reads the run, kept as it is. Raises CannotWrite E620, E626."""
        self.check()
        name = f"{trial}.json"
        try:
            self.held.move(f"{RECORDS}/{name}", f"{SUPERSEDED}/{name}")
        except OSError as error:
            raise CannotWrite.of(error, self.path / SUPERSEDED / name) from None

    def refuse_links(self, writing: bool = False) -> None:
        """Raises UsageError E612 where a part of the folder is a link."""
        for part in PARTS:
            self.held.refuse_link(part, writing)

    @contextmanager
    def lock(self, busy: type[UsageError] = UsageError) -> Iterator[FolderLock]:
        """Held for as long as a run writes here, by its handle: also under another name, if it is moved.

        Args:
            busy: what is raised with E604; AtWork for whoever may come again

        Raises:
            UsageError: E604 while another one does, E605, E612 where a part of the folder is a link.
        """
        if name_too_long(self.path):
            hint = "name another folder with --out"
            raise UsageError(Problem("E605", "no folder can have this name", str(self.path), hint))
        lock: FolderLock | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._held = HeldFolder(self.path)
            self.refuse_links()
            lock = FolderLock(self.held)
        except FolderBusy as other:
            self._let_go(lock)
            whose = f": {other.holder.shown}" if other.holder else ""
            message = f"another energybench is running in this folder{whose}"
            hint = "wait for it, or start another beside it: --new, or --out with another folder"
            if issubclass(busy, AtWork):
                hint = "leave it to that one, or come again with the same command"
            hint += f"; {other.hint}" if other.hint else ""
            raise busy(Problem("E604", message, str(self.path), hint)) from None
        except OSError as error:
            self._let_go(lock)
            hint = "name another folder with --out"
            raise UsageError(Problem("E605", f"cannot write there: {error.strerror}", str(self.path), hint)) from None
        except UsageError:
            self._let_go(lock)
            raise
        try:
            self.check()
            yield lock
        finally:
            if self._admitted:
                self._tidy()  # what a trial was writing when it was stopped
            self._let_go(lock)

    def _let_go(self, lock: FolderLock | None) -> None:
        if lock is not None:
            lock.free()
        if self._held is not None:
            self._held.close()
        self._held, self._saved, self._admitted = None, None, False

    def _tidy(self) -> None:
        """Removes what a killed run left in the folder and its own parts: partly written files and empty logs."""
        folder = self.held
        for part in ("", *PARTS):
            with suppress(OSError, UsageError):
                for name in folder.names(part, PART_SUFFIX):
                    if name.rpartition("/")[2].startswith("."):
                        folder.remove(name)
        with suppress(OSError, UsageError):
            for name in folder.names("logs", ".log"):
                remove_if_empty(folder, name)
            folder.remove_empty_folder("logs")

    def admit(self, digest: str, differs: Callable[[RunFile], str], *, finished: bool = False) -> None:
        """Raises unless a run of this digest may write here; where it holds the folder, what a killed one left half
        written is removed.

        Args:
            digest: Of the run that is to write.
            differs: Says in words how the run on disk differs.
            finished: Blocks are added, which only a finished run takes.

        Raises:
            UsageError: E602 it is finished; E603 it is another run's; E624 there are records without a run.json; E632
                there are files of somebody else's where a run would put its own.
        """
        with self._opened() as folder:
            run = self._run_file_in(folder) if folder else None
            if folder is not None and run is None:
                self._refuse_unexplained(folder)
        if run is not None:
            self._refuse_another(run, digest, differs, finished)
        if self._held is not None:
            self._admitted = True
            self._tidy()

    def _refuse_another(self, run: RunFile, digest: str, differs: Callable[[RunFile], str], finished: bool) -> None:
        if run.digest != digest:
            message = "this folder holds a run of other settings, methods or versions; they are never mixed"
            changed = differs(run)
            hint = "name another folder with --out"
            if run.finished and re.search(r"\bblocks(_max)? ", changed):
                hint = f"{_more_blocks(run)}; the new run in another folder, with --out"
            raise UsageError(Problem("E603", f"{message}. Changed: {changed}", str(self.path), hint))
        if run.finished and not finished:
            hint = f"read it with: energybench report {typed(self.path)} — or name another folder with --out"
            hint += f". {_more_blocks(run)}"
            raise UsageError(Problem("E602", "this run is finished", str(self.path), hint))

    def _refuse_unexplained(self, folder: HeldFolder) -> None:
        if paths(folder, RECORDS):
            message = "there are records here, but no run.json that says of what"
            hint = "put run.json back, or name another folder with --out"
            raise UsageError(Problem("E624", message, str(self.path), hint))
        for part in PARTS:
            facts = folder.facts(part)
            if facts is not None and not (stat.S_ISDIR(facts.st_mode) and not folder.names(part)):
                message = "a run would write here, and this is of no run; it is left as it is"
                hint = "name another folder with --out"
                raise UsageError(Problem("E632", message, str(self.path / part), hint))


def _more_blocks(run: RunFile) -> str:
    """What becomes of a finished run whose blocks were too few, in words that name the way."""
    blocks = f"{run.verdict_blocks} block{'s' * (run.verdict_blocks != 1)}"
    return (
        f"The verdicts of this run are those of its {blocks}, declared before the first: more that count are a new "
        f"run, energybench run {run.suite} --new --until-decided; --add-blocks N shows more of this one, in no verdict"
    )


def remove_if_empty(folder: HeldFolder, name: str) -> None:
    """A file without a byte, such as the log of a trial that said nothing. Raises OSError."""
    facts = folder.facts(name)
    if facts is not None and stat.S_ISREG(facts.st_mode) and not facts.st_size:
        folder.remove(name)


def _runs(home: Path, say: Callable[[str], None]) -> Iterator[tuple[Path, RunFile]]:
    """The runs of a suite, newest first. One that cannot be read is said and left as it is."""
    for path in sorted((file.parent for file in home.glob(f"*/{RUN_FILE}")), key=_in_order, reverse=True):
        try:
            if run := Folder(path).run_file():
                yield path, run
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
    sharded: bool = False,
) -> Folder:
    """The folder of a run: `out`, that of the newest unfinished run of the same digest, or a new one.

    Args:
        fresh: Make a new one even where an unfinished one could be continued.
        add: Blocks are added to a finished run, so one must exist.
        say: Called with a note for each run that cannot be read.
        differs: Says in words how a run on disk differs from this one.
        sharded: Also one whose blocks lie in shards, or one that is finished, as for whoever plans only.

    Raises:
        UsageError: E602, E603, E624 when `out` cannot be continued; E607 when there is no run to add to.
    """
    if add:
        return _finished(suite, digest, out, say)
    if out is not None:
        folder = Folder(out)
        folder.admit(digest, differs, finished=sharded)
        return folder
    home = Path("reports") / suite
    _remove_empty_runs(home)
    if not fresh:
        for path, run in _runs(home, say):
            if run.digest == digest and not run.finished and (sharded or not is_in_parts(path)):
                return Folder(path)
    return Folder(_new(home))


def _remove_empty_runs(home: Path) -> None:
    """Removes folders of runs that were killed before run.json was written: a free lock and no finished file."""
    for path in [file.parent for file in home.glob(f"*/{LOCK}")]:
        with suppress(OSError, UsageError), HeldFolder(path) as folder:
            left = folder.names()
            ours = (LOCK, LOCK_OWNER)
            if path.is_symlink() or any(name not in ours and not name.endswith(PART_SUFFIX) for name in left):
                continue
            try:
                lock = FolderLock(folder)
            except FolderBusy:
                continue
            try:
                for name in left:
                    with suppress(FileNotFoundError):
                        folder.remove(name)
                with suppress(FileNotFoundError):
                    folder.remove(LOCK_OWNER)  # its own
                os.rmdir(path)  # an empty one alone
            finally:
                lock.free()


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
    return newest if newest and not newest[1].finished and not is_in_parts(newest[0]) else None
