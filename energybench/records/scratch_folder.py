"""Temporary folders of runs, each with a lock that says whether its process lives."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from energybench.common.errors import CannotWrite
from energybench.common.folder_lock import LARGEST_B, flock
from energybench.common.hosts import ProcessIdentity, this_process


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for decoded data and messages between processes; what killed runs left there is removed."""
    folder, file = _locked_scratch()
    try:
        with file:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _locked_scratch() -> tuple[Path, IO[bytes]]:
    """A new folder, and the file in it whose lock says that its process lives."""
    try:
        for alive in Path(tempfile.gettempdir()).glob("energybench-*/alive"):
            if _is_ours(alive.parent, stat.S_ISDIR) and _is_ours(alive, stat.S_ISREG):
                with suppress(OSError), alive.open("rb") as left:
                    free = flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock of a dead process is free
                    maker = ProcessIdentity.of_json(left.read(LARGEST_B))
                    if maker.is_over() if maker is not None else free:
                        shutil.rmtree(alive.parent, ignore_errors=True)
        while True:
            folder = Path(tempfile.mkdtemp(prefix="energybench-"))
            file = (folder / "alive").open("wb")
            has_locks = flock(file, fcntl.LOCK_EX)
            if not has_locks:  # a file system without: who made it is told in it
                file.write(this_process().to_json())
                file.flush()
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
