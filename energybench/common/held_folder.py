"""A folder held by its handle: everything below it is reached from there, part by part, and no link is followed.

Whoever renames, replaces or links something while it is held leads no read, write or deletion out of it. A path given
as text is looked up again at each call; a handle stays with the folder itself, wherever that is moved.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from energybench.common.errors import CannotWrite, Problem, UsageError, typed
from energybench.common.safe_read import read_regular
from energybench.common.sealed_files import replace_at, signals_delayed

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
CHUNK_B = 1 << 20


@dataclass(frozen=True, slots=True)
class FolderIdentity:
    """Which folder another process must find at a path: the one that this process holds."""

    path: str  # absolute
    device: int
    inode: int


class HeldFolder:
    """A folder that is open. Names below it are relative, with "/" between their parts.

    Every method raises UsageError E612 for a name that leads out of it or through a link.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError where `path` is no folder that can be opened. A link to one is followed: the user named it."""
        self.path = path
        try:
            self.handle = os.open(path, FOLDER)
        except ValueError:
            raise OSError(errno.EINVAL, "no folder can have this name") from None

    @classmethod
    def reopen(cls, identity: FolderIdentity) -> Self:
        """The folder that another process holds. Raises CannotWrite E626 where it is no longer there."""
        path = Path(identity.path)
        try:
            folder = cls(path)
        except OSError:
            raise CannotWrite(_lost(path, None)) from None
        facts = os.fstat(folder.handle)
        if (facts.st_dev, facts.st_ino) != (identity.device, identity.inode):
            folder.close()
            raise CannotWrite(_lost(path, None))
        return folder

    @property
    def identity(self) -> FolderIdentity:
        facts = os.fstat(self.handle)
        return FolderIdentity(str(self.path.absolute()), facts.st_dev, facts.st_ino)

    def close(self) -> None:
        os.close(self.handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── where it is ───────────────────────────────────────────────────────────────────────────────────────────────

    def lost(self) -> Problem | None:
        """E626 where its path no longer leads to it: it was renamed, deleted, or another folder stands there."""
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.handle)):
                return None
        return _lost(self.path, self.now_at())

    def is_deleted(self) -> bool:
        """Whether nothing can be written into it any more."""
        return os.fstat(self.handle).st_nlink == 0

    def now_at(self) -> Path | None:
        """Where it was moved to; None where it was deleted or the kernel does not say."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self.handle}"))
            return path if os.path.samestat(os.stat(path), os.fstat(self.handle)) else None
        except OSError:
            return None

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, or a link, a folder, a pipe."""
        return self.facts(name) is not None

    def facts(self, name: str) -> os.stat_result | None:
        """Of the name itself, never of what a link leads to; None where there is none."""
        try:
            with self._parent(name) as (parent, last):
                return os.stat(last, dir_fd=parent, follow_symlinks=False)
        except OSError:
            return None

    def read_bytes(self, name: str, most_b: int, head_b: int | None = None) -> bytes:
        """As `safe_read.read_bytes`, of a regular file below it. Raises OSError, `strerror` says what is wrong."""
        with self._parent(name) as (parent, last):
            self.refuse_link(name)
            handle = os.open(last, os.O_RDONLY | os.O_NONBLOCK | NO_LINK, dir_fd=parent)
        return read_regular(handle, most_b, head_b)

    def names(self, part: str = "", suffix: str = "") -> list[str]:
        """Names in a folder below it, from it, sorted; none where there is no such folder. Raises OSError."""
        try:
            with self._folder(part) as handle:
                names = sorted(name for name in os.listdir(handle) if name.endswith(suffix))
        except FileNotFoundError:
            return []
        return [f"{part}/{name}" if part else name for name in names]

    def refuse_link(self, name: str, writing: bool = False) -> None:
        """Raises UsageError E612 where `name` is a link."""
        facts = self.facts(name)
        if facts is not None and stat.S_ISLNK(facts.st_mode):
            self._refuse(name, "a link, and no link below a run's folder is followed", writing)

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def write_bytes(self, name: str, content: bytes) -> None:
        """Whole or not at all, as a new file that takes the name: what else has its inode or is linked to stays.

        Raises:
            CannotWrite: E620 the disk is full or read-only; E612; E626 the folder is gone.
        """
        with signals_delayed(), self._told(name), self._parent(name, make=True) as (parent, last):
            replace_at(parent, last, (content,))

    def adopt(self, name: str, source: Path) -> None:
        """A copy of a file of any size that lies elsewhere, which is then removed. Raises as `write_bytes`."""
        with signals_delayed(), self._told(name), source.open("rb") as file:
            with self._parent(name, make=True) as (parent, last):
                replace_at(parent, last, iter(lambda: file.read(CHUNK_B), b""))
            source.unlink()

    def create(self, name: str) -> int:
        """A handle to write to and read from of a new file; an older one loses the name and stays as it is.

        Raises as `write_bytes`.
        """
        with self._told(name), self._parent(name, make=True) as (parent, last):
            with suppress(FileNotFoundError):
                os.unlink(last, dir_fd=parent)
            return os.open(last, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666, dir_fd=parent)

    def append(self, name: str) -> int:
        """A handle that appends to a file, which is made where there is none.

        Raises as `write_bytes`, and CannotWrite E612 for a file that has another name too (a hard link): what is
        appended would stand there as well.
        """
        with self._told(name), self._parent(name, make=True) as (parent, last):
            self.refuse_link(name, writing=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | NO_LINK
            handle = os.open(last, flags, 0o666, dir_fd=parent)
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            os.close(handle)
            self._refuse(name, "a file with a second name elsewhere (a hard link), or no regular file", writing=True)
        return handle

    def lock_file(self, name: str) -> int:
        """A handle to lock, of a file that is made where there is none. Raises OSError."""
        return os.open(name, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666, dir_fd=self.handle)

    def is_at(self, handle: int, name: str) -> bool:
        """Whether an open file is the one that has this name now."""
        facts = self.facts(name)
        return facts is not None and os.path.samestat(os.fstat(handle), facts)

    def remove(self, name: str) -> None:
        """Takes a name away, and no more than the name: of a link, never what it leads to. Raises OSError."""
        with self._parent(name) as (parent, last):
            os.unlink(last, dir_fd=parent)

    def move(self, name: str, to: str) -> None:
        """Another name below it for a file, on disk at once; what has that name already stays. Raises OSError."""
        with self._parent(name) as (parent, last), self._parent(to, make=True) as (other, new):
            self.refuse_link(name)
            if self.has(to):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), to)
            os.rename(last, new, src_dir_fd=parent, dst_dir_fd=other)

    def remove_empty_folder(self, part: str) -> None:
        """Raises OSError, for one that holds anything too."""
        with self._parent(part) as (parent, last):
            os.rmdir(last, dir_fd=parent)

    # ── the way there ─────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _parent(self, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """(handle of the folder that `name` stands in, its last part)."""
        *folders, last = self._parts(name)
        with self._folder("/".join(folders), make) as handle:
            yield handle, last

    @contextmanager
    def _folder(self, part: str, make: bool = False) -> Iterator[int]:
        handle, opened = self.handle, -1
        try:
            for each in self._parts(part) if part else ():
                try:
                    handle = self._enter(handle, each, make)
                except OSError as error:
                    if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(each, handle):
                        self._refuse(part, "a link, and no link below a run's folder is followed", make)
                    raise
                finally:
                    if opened >= 0:
                        os.close(opened)
                    opened = -1
                opened = handle
            yield handle
        finally:
            if opened >= 0:
                os.close(opened)

    @staticmethod
    def _enter(handle: int, name: str, make: bool) -> int:
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=handle)
        return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=handle)

    def _parts(self, name: str) -> list[str]:
        parts = name.split("/")
        try:
            sound = b"\0" not in os.fsencode(name)
        except UnicodeEncodeError:  # what the file system's encoding lacks
            sound = False
        if not sound or any(part in ("", ".", "..") for part in parts):
            self._refuse(name, "a name that leads out of the run's folder", writing=False)
        return parts

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """What the system refuses, as a Problem: that the folder is gone, where it is."""
        try:
            yield
        except OSError as error:
            if self.is_deleted() and (lost := self.lost()):
                raise CannotWrite(lost) from None
            raise CannotWrite.of(error, self.path / name) from None

    def _refuse(self, name: str, what: str, writing: bool) -> NoReturn:
        place = self.path / name if "\0" not in name else self.path
        message = f"{what}; it is neither read nor written"
        problem = Problem("E612", message, str(place), "put the file or folder itself there, or take it away")
        raise (CannotWrite if writing else UsageError)(problem)


def _is_link(name: str, parent: int) -> bool:
    with suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    return False


def _lost(path: Path, now: Path | None) -> Problem:
    """The folder of a run is no longer at its path."""
    instead = "; another one stands in its place" if os.path.lexists(path) else ""
    if now is None:
        message = f"the run's folder was deleted or moved while the run worked in it{instead}"
        hint = f"put it back as {path}, and the same command continues; without it the same command starts anew"
        return Problem("E626", message, str(path), hint)
    message = f"the run's folder was moved while the run worked in it: it is {now} now{instead}"
    back = f"move that one away, and back: {typed('mv', now, path)}" if instead else f"back: {typed('mv', now, path)}"
    hint = f"what is finished is in it, and the same command continues it there: --out {typed(now)}; or {back}"
    return Problem("E626", message, str(path), hint)


def name_inside(folder: HeldFolder, path: Path) -> str | None:
    """The name from the folder of a path that stands below it as text; None for any other."""
    try:
        return path.absolute().relative_to(folder.path.absolute()).as_posix()
    except ValueError:
        return None
