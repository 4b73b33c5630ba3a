"""What was read from source files, remembered in the user's cache: parsing fifty of them again takes 0.1 s a command.

A fact holds while its file has the size and the time of change that it had, and the code that read it too. A cache that
cannot be read or written is none; it may be removed at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from energybench.common import user_cache
from energybench.common.safe_read import read_bytes

MOST_B = 1 << 22
SETTLED_S = 2.0  # a file that was changed later than that before it was read may change again within the same tick


class Remembered:
    """Facts by key, kept in one file; `save` writes those that were asked for.

    Args:
        name:    of the file in the user's cache
        readers: the files whose code reads the facts
    """

    def __init__(self, name: str, readers: tuple[str, ...]) -> None:
        self._path = user_cache.place(f"{name}.json")
        self._code = [_stamp(reader) for reader in readers]
        self._before, self._now = self._read(), dict[str, Any]()
        self._new = False

    def get(self, key: str, file: str | Path, read: Callable[[], Any]) -> Any:
        """What `read` gives, JSON-able, of a file; it is called where the file, or who reads it, has changed."""
        stamp = _stamp(file)
        known = self._before.get(key)
        if isinstance(known, list) and len(known) == 2 and stamp and known[0] == stamp:
            self._now[key] = known
            return known[1]
        value = read()
        if stamp and stamp[1] < time.time_ns() - SETTLED_S * 1e9:
            self._now[key], self._new = [stamp, value], True
        return value

    def save(self) -> None:
        """Keep what was asked for since this was made; nothing where nothing was read anew."""
        if not self._new:
            return
        text = json.dumps({"code": self._code, "facts": {**self._before, **self._now}})
        with contextlib.suppress(OSError):  # a home that cannot be written to
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.replace(part, self._path)

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads(read_bytes(self._path, MOST_B))
        except (OSError, ValueError, RecursionError):
            return {}
        facts = kept.get("facts") if isinstance(kept, dict) and kept.get("code") == self._code else None
        return facts if isinstance(facts, dict) else {}


def _stamp(file: str | Path) -> list[int]:
    """Size and time of change of a file; nothing where there is none."""
    try:
        facts = os.stat(file)
    except (OSError, ValueError):
        return []
    return [facts.st_size, facts.st_mtime_ns]
