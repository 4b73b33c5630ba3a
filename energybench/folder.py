"""The folder of a run: found again, locked, read. A run that was interrupted is continued by the same command."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from energybench.errors import EnergybenchError, Problem, UsageError
from energybench.files import held, held_in
from energybench.record import RunFile, Trial, Witness, read, write_json

PARTS = ("records", "traces", "witness", "state", "logs", "figures")  # what a run and its report write into


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for decoded data and messages between processes; what killed runs left there is removed."""
    for alive in Path(tempfile.gettempdir()).glob("energybench-*/alive"):
        if _is_ours(alive.parent, stat.S_ISDIR) and _is_ours(alive, stat.S_ISREG):
            with suppress(OSError), alive.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock of a dead process is free
                shutil.rmtree(alive.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="energybench-"))
    try:
        with (folder / "alive").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_ours(path: Path, kind: Callable[[int], bool]) -> bool:
    """Made by this user and no link: anyone may write beside it, and would have us remove what a link leads to."""
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
    def witnesses(self) -> Path:
        return self.path / "witness"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    def run_file(self) -> RunFile | None:
        file = self.path / "run.json"
        return read(held(self.path, file), RunFile) if file.exists() else None

    def trials(self) -> list[Trial]:
        return [read(path, Trial) for path in held_in(self.path, "records", "*.json")]

    def witnessed(self) -> list[Witness]:
        return [read(path, Witness) for path in held_in(self.path, "witness", "*.json")]

    def save(self, run: RunFile) -> None:
        write_json(self.path / "run.json", run)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held for as long as a run writes here.

        Raises UsageError E604 while another one does, E612 where a part of the folder is a link out of it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for part in PARTS:
                if (self.path / part).is_symlink():
                    held(self.path, self.path / part)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise UsageError(
                Problem(
                    "E605",
                    f"cannot write there: {error.strerror}",
                    str(self.path),
                    "name another folder with --out",
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
                    "wait for it, or name another folder with --out",
                )
            ) from None
        try:
            self._tidy()
            yield
        finally:
            (self.path / ".lock").unlink(missing_ok=True)
            os.close(handle)

    def _tidy(self) -> None:
        """Remove what a killed run left: files half written, logs of nothing."""
        for part in (*self.path.glob(".run.json.*.part"), *self.path.glob("*/.*.json.*.part")):
            part.unlink()
        logs = self.path / "logs"
        for log in logs.glob("*.log"):
            if not log.stat().st_size:
                log.unlink()
        with suppress(OSError):
            logs.rmdir()


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _finished(suite: str, digest: str, out: Path | None) -> Folder:
    """The finished run of this digest that blocks are added to: `out`, else the newest."""
    home = Path("reports") / suite
    files = sorted(home.glob("*/run.json"), reverse=True) if out is None else [out / "run.json"]
    for file in files:
        try:
            run = read(file, RunFile)
        except EnergybenchError:
            continue
        if run.digest == digest and run.finished:
            return Folder(file.parent)
    message = "there is no finished run of these settings, methods and versions to add blocks to"
    hint = "finish one first: the same command without --add-blocks"
    raise UsageError(Problem("E607", message, str(out or home), hint))


def choose(suite: str, digest: str, out: Path | None, fresh: bool, add: bool = False) -> Folder:
    """Where this run goes: `out`, the newest unfinished run of the same digest, or a new folder.

    add: blocks are added to a finished run, so one must be there
    Raises UsageError E602, E603 when `out` holds a finished or a different run, E607 when there is none to add to.
    """
    if add:
        return _finished(suite, digest, out)
    if out is not None:
        folder = Folder(out)
        run = folder.run_file()
        if run is not None and run.digest != digest:
            raise UsageError(
                Problem(
                    "E603",
                    "this folder holds a run of other settings, methods or versions; they are never mixed",
                    str(out),
                    "name another folder with --out",
                )
            )
        if run is not None and run.finished:
            raise UsageError(
                Problem(
                    "E602",
                    "this run is finished",
                    str(out),
                    f"read it with: energybench report {out} — or name another folder with --out",
                )
            )
        return folder
    home = Path("reports") / suite
    if not fresh:
        for file in sorted(home.glob("*/run.json"), reverse=True):
            try:
                run = read(file, RunFile)
            except EnergybenchError:
                continue  # not ours to mend: a new folder leaves it as it is
            if run.digest == digest and not run.finished:
                return Folder(file.parent)
    stamp = datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
    path, number = home / stamp, 2
    while path.exists():
        path, number = home / f"{stamp}-{number}", number + 1
    return Folder(path)
