"""What a part finds, on disk as soon as it is known: facts, rows of tables and checks in one JSON file for each part.

A part that is cut short has left all that it had found; nobody who reads a file meets half of one.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Literal

Status = Literal["running", "done", "cut short", "failed", "not run"]
FAKE = "fake: a driver and a card that were made up, on this machine's processor; no number here is a measurement"


class Results:
    """One part's file. Every call writes it anew.

    Args:
        path:    of the JSON file
        name:    of the part
        title:   a sentence for the page
        limit_s: after which the part is ended from outside
        fake:    whether the card is a fake, which is then said in the file
    """

    def __init__(self, path: Path, name: str, title: str, limit_s: float, *, fake: bool) -> None:
        self._path, self._began_s = path, time.monotonic()
        self._content: dict[str, Any] = {
            "schema": 1,
            "part": name,
            "title": title,
            "fake": FAKE if fake else False,
            "status": "running",
            "reason": None,
            "limit_s": limit_s,
            "seconds": 0.0,
            "machine": {},
            "facts": {},
            "checks": [],
            "tables": {},
        }
        self.limit_s = limit_s

    @property
    def left_s(self) -> float:
        """Seconds until this part is ended from outside."""
        return self.limit_s - (time.monotonic() - self._began_s)

    def machine(self, **facts: Any) -> None:
        """What the numbers hold for: the card, its driver, the versions."""
        self._content["machine"] |= facts
        self._write()

    def fact(self, name: str, value: Any) -> None:
        """One number or word; its unit is the end of its name (_s, _w, _j)."""
        self._content["facts"][name] = value
        self._write()

    def row(self, table: str, **cells: Any) -> None:
        self._content["tables"].setdefault(table, []).append(cells)
        self._write()

    def check(self, name: str, passed: bool | None, detail: str = "") -> None:
        """passed: None where it could not be looked at, and `detail` says why."""
        self._content["checks"].append({"name": name, "passed": passed, "detail": detail})
        self._write()

    def end(self, status: Status, reason: str | None = None) -> None:
        self._content |= {"status": status, "reason": reason}
        self._write()

    def _write(self) -> None:
        self._content["seconds"] = time.monotonic() - self._began_s
        write(self._path, self._content)


def write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    half.write_text(json.dumps(finite(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(half, path)


def finite(value: Any) -> Any:
    """The same without what JSON has no word for: null in its place."""
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Every part's content, in the order of the parts; a file of anything else is left out."""
    found = []
    for path in sorted(folder.glob("[0-9]-*.json")):
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return found
