"""The quality of a command: read from what it printed, from a file that it wrote, or from its own windows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from energybench.common.limits import RECORD_B
from energybench.common.safe_read import read_bytes
from energybench.suite.command_tables import QualitySourceTable, Value, fill_words
from energybench.windows.file import WindowLine, qualities


class NoQuality(Exception):
    """There is no figure, and why."""


def further(source: QualitySourceTable) -> QualitySourceTable:
    """The same place, where a metric lies under its own name."""
    return source.model_copy(update={"key": None})


class QualityReader:
    """Hears every line of a command, keeps the last figure, and gives it when the command is over.

    source: a suite's `quality`
    metric: the name under which the figure is kept, and the key where none is named
    values: what {seed} and the like stand for in `path`
    """

    def __init__(self, source: QualitySourceTable, metric: str, base: Path, values: Mapping[str, Value]) -> None:
        self._where, self._key = source.where, source.key or metric
        self.metric = metric
        self._pattern = re.compile(source.pattern) if source.pattern else None
        self._path = base / fill_words([source.path], values)[0] if source.path else None
        self._before = _state(self._path)
        self._figure: float | None = None
        self._wrong = ""  # a match that was no number

    def hear(self, stream: str, line: str) -> None:
        if self._pattern is not None:
            self._match(line)
        elif self._where == "json" and stream == "stdout" and line.lstrip().startswith("{"):
            try:
                self._take(json.loads(line))
            except (ValueError, RecursionError):
                return  # a line of the script's own that only looks like JSON

    def _match(self, line: str) -> None:
        assert self._pattern is not None
        for match in self._pattern.finditer(line):
            try:
                self._figure = float(match[1])
            except (TypeError, ValueError):
                self._figure = None  # the last one holds, and it is none
                self._wrong = f"; the pattern matched '{match[1]}', which is no number"

    def _take(self, value: Any) -> None:
        for name in [self._key] if isinstance(value, dict) and self._key in value else self._key.split("."):
            if not isinstance(value, dict) or name not in value:
                return  # a line about something else
            value = value[name]
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._figure = _float(value)
        else:
            self._figure = None
            self._wrong = f"; its {self._key} is {json.dumps(value)[:80]}, which is no number"

    def result(self, windows: Sequence[WindowLine]) -> dict[str, float]:
        """{metric: figure}; empty where the suite says that there is none. Raises NoQuality."""
        if self._where == "none":
            return {}
        if self._where == "window":
            self._take(dict(qualities(windows)))
        if self._path is not None:
            self._read(self._path)
        if self._figure is None:
            raise NoQuality(f"no {self.metric}: {self._lacks()}{self._wrong}")
        return {self.metric: self._figure}

    def _read(self, path: Path) -> None:
        now = _state(path)
        if now is None:
            raise NoQuality(f"no {self.metric}: it wrote no {path.name}")
        if now == self._before:
            raise NoQuality(f"no {self.metric}: {path.name} is older than the trial, which did not write it")
        try:
            text = read_bytes(path, RECORD_B).decode("utf-8")
            try:
                self._take(json.loads(text))
            except ValueError:
                self._take(json.loads(text.strip().splitlines()[-1]))  # JSON lines: the last
        except (OSError, ValueError, IndexError, RecursionError) as error:
            raise NoQuality(f"no {self.metric}: {path.name} is not JSON: {error}") from None

    def _lacks(self) -> str:
        if self._pattern is not None:
            return f"it printed nothing that matches {self._pattern.pattern}"
        if self._path is not None:
            return f"{self._path.name} has no key '{self._key}'"
        if self._where == "window":
            return f"none of its windows says '{self._key}'"
        return f"it printed no JSON line with the key '{self._key}'"


def _float(value: float) -> float:
    """An integer may have more digits than any float."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value > 0 or -1)


def _state(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is written again."""
    try:
        stat = path.stat() if path else None
    except (OSError, ValueError):
        return None
    return (stat.st_mtime_ns, stat.st_ino, stat.st_size) if stat else None
