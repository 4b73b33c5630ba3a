"""One process at a time in a folder: by flock, and where the file system has none, by a file that is created once.

    .lock         locked by flock for as long as a process works here; the kernel frees it when that ends, however
    .lock-owner   where flock answers that there is none (Lustre without -o flock, some NFS and FUSE): made only where
                  no such file is there, and removed at the end

Each says who holds it. Nobody frees `.lock-owner` for a process that was killed: it is taken over where that one has
surely ended, which is known on its own host alone. Elsewhere the message says whose it is and what to type. One folder
may have flock on one node of a cluster and none on another, so each way looks at the other's file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import suppress
from typing import IO

from energybench.common.errors import UsageError, typed
from energybench.common.held_folder import NO_LINK, HeldFolder
from energybench.common.hosts import ProcessIdentity, this_process
from energybench.common.outputs import LOCK, LOCK_OWNER

NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
LARGEST_B = 4096  # of such a file


def flock(file: int | IO[bytes], flags: int) -> bool:
    """Whether the file system has flock at all. Raises BlockingIOError while another process holds it, and OSError."""
    try:
        fcntl.flock(file, flags)
    except OSError as error:
        if error.errno in NO_FLOCK:
            return False
        raise
    return True


class FolderBusy(Exception):
    """Another process works in the folder, or may. `holder`: which, where it said so; `hint`: what to type if not."""

    def __init__(self, holder: ProcessIdentity | None = None, hint: str = "") -> None:
        super().__init__(holder)
        self.holder, self.hint = holder, hint


class FolderLock:
    """Held from when it is made until `free`.

    taken_over: the process that had ended and left its lock; None where there was none
    """

    def __init__(self, folder: HeldFolder) -> None:
        """Raises FolderBusy; OSError where nothing can be written there."""
        self._folder = folder
        self.taken_over: ProcessIdentity | None = None
        self._ours = this_process()
        self._owns = False  # the file that was created
        self._handle = folder.lock_file(LOCK)
        try:
            if flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
                self._by_flock()
            else:
                self._by_creation()
        except BlockingIOError:
            holder = _read(folder, LOCK)
            os.close(self._handle)
            raise FolderBusy(holder) from None
        except BaseException:
            os.close(self._handle)
            raise

    def free(self) -> None:
        """A disk that has become read-only keeps the files; by flock the lock is free all the same."""
        with suppress(OSError, UsageError):
            if self._owns and _read(self._folder, LOCK_OWNER) == self._ours:
                self._folder.remove(LOCK_OWNER)
        with suppress(OSError, UsageError):
            if self._folder.is_at(self._handle, LOCK):
                self._folder.remove(LOCK)
        os.close(self._handle)

    def _by_flock(self) -> None:
        """The lock file, and the folder itself, where it can be locked: that lock stays when the file is deleted."""
        if not self._folder.is_at(self._handle, LOCK):
            raise BlockingIOError  # we hold the file of a process that has just ended and unlinked it
        try:
            fcntl.flock(self._folder.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # NFS locks files that are open for writing, and no folder
        self._refuse_owner(LOCK_OWNER)  # of a node whose mount has no flock
        self._say()

    def _by_creation(self) -> None:
        if (before := _read(self._folder, LOCK)) is not None and not before.is_over():
            raise self._busy(LOCK, before)  # by flock, on a node that has it
        while not self._created():
            self._refuse_owner(LOCK_OWNER)
        self._owns = True
        if _read(self._folder, LOCK_OWNER) != self._ours:  # two took the same one over
            raise self._busy(LOCK_OWNER, _read(self._folder, LOCK_OWNER))

    def _created(self) -> bool:
        """With its content at once, by a hard link, where there are such; else created, and then written."""
        folder = self._folder.handle
        temporary = f"{LOCK_OWNER}.{secrets.token_hex(4)}.part"
        try:
            self._write(temporary)
            try:
                os.link(temporary, LOCK_OWNER, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                if self._folder.is_deleted():
                    raise
                return False  # whoever holds the folder tidies up in it
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                self._write(LOCK_OWNER)
        except FileExistsError:
            return False
        finally:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
        return True

    def _write(self, name: str) -> None:
        """A new file. Raises FileExistsError where there is one."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK
        handle = os.open(name, flags, 0o666, dir_fd=self._folder.handle)
        with os.fdopen(handle, "wb") as file:
            file.write(self._ours.to_json())
            file.flush()
            os.fsync(file.fileno())

    def _refuse_owner(self, name: str) -> None:
        """Take the lock of a process that has ended out of the way. Raises FolderBusy for any other."""
        if not self._folder.has(name):
            return
        holder = _read(self._folder, name)
        if holder is None or not holder.is_over():
            if not self._folder.has(name):  # it has ended between
                return
            raise self._busy(name, holder)
        aside = f"{name}.{secrets.token_hex(4)}.part"
        folder = self._folder.handle
        with suppress(FileNotFoundError):  # another process has done so
            os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)
            if (moved := _read(self._folder, aside)) != holder:  # it is the lock of one that has just taken it over
                with suppress(OSError):
                    os.link(aside, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                os.unlink(aside, dir_fd=folder)
                raise self._busy(name, moved)
            os.unlink(aside, dir_fd=folder)
            self.taken_over = holder

    def _busy(self, name: str, holder: ProcessIdentity | None) -> FolderBusy:
        where = self._folder.path / name
        return FolderBusy(holder, f"if that one has ended, take its lock away: {typed('rm', where)}")

    def _say(self) -> None:
        """Who holds it, for messages; not into a file of somebody else's, nor into one with a second name."""
        with suppress(OSError):
            facts = os.fstat(self._handle)
            if facts.st_nlink > 1 or (facts.st_size and _read(self._folder, LOCK) is None):
                return
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, self._ours.to_json(), 0)


def _read(folder: HeldFolder, name: str) -> ProcessIdentity | None:
    """Who holds a lock, as it says itself; None where it says nothing."""
    try:
        return ProcessIdentity.of_json(folder.read_bytes(name, LARGEST_B))
    except (OSError, UsageError):  # a link too: it says nothing
        return None
