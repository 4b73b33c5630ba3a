"""The quality of a command: read from what it printed, from a file that it wrote, or from its own windows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energybench.common.limits import RECORD_B
from energybench.common.metrics import Metric
from energybench.common.safe_read import read_bytes
from energybench.suite.placeholders import Value, fill_words
from energybench.suite.quality_source import QualitySourceTable
from energybench.trial.printed_numbers import printed
from energybench.trial.printed_objects import objects
from energybench.windows.file import WindowLine, qualities

STREAMS = ("stdout", "stderr")


class NoQuality(Exception):
    """There is no figure, and why."""


@dataclass
class _Chosen:
    """Of several figures the one that is asked for: the last, the first, or the best.

    wrong:   why it is none; of the best, the first that was no number, since it may have been the best
    percent: a percent sign stood behind one of them
    """

    which: str
    higher: bool
    figure: float | None = None
    wrong: str = ""
    seen: int = 0
    percent: bool = False

    def add(self, figure: float | None, wrong: str = "", percent: bool = False) -> None:
        self.seen, self.percent = self.seen + 1, self.percent or percent
        first = self.which == "last" or self.seen == 1
        if first or (self.which == "best" and self.figure is not None and self._beats(figure, self.figure)):
            self.figure, self.wrong = figure, wrong

    def _beats(self, figure: float | None, best: float) -> bool:
        if figure is None or math.isnan(best):
            return True
        return figure > best if self.higher else figure < best


class QualityReader:
    """Hears every line of a command, keeps the figure that is asked for, and gives it when the command is over.

    Args:
        source: a suite's `quality`, or one of its `also`
        metric: the name under which the figure is kept, and the key where none is named
        base:   the folder that the command runs in
        values: what {seed} and the like stand for in `path`
        higher: whether more of it is better
    """

    def __init__(
        self, source: QualitySourceTable, metric: str, base: Path, values: Mapping[str, Value], *, higher: bool = True
    ) -> None:
        self.metric = metric
        self._source, self._where, self._key = source, source.where, source.key or self.metric
        self._pattern = re.compile(source.pattern) if source.pattern else None
        self._path = base / fill_words([source.path], values)[0] if source.path else None
        self._before = _state(self._path)
        self._streams = {name: _Chosen(source.which, higher) for name in STREAMS}
        self._named = self._key.rpartition(".")[2]

    @property
    def which(self) -> str:
        """Of several figures: last, best or first."""
        return self._source.which

    def hear(self, stream: str, line: str) -> None:
        chosen = self._streams[stream]
        if self._pattern is not None:
            for match in self._pattern.finditer(line):
                found = printed(match)
                chosen.add(found.figure, found.wrong, found.percent)
        elif self._where == "json" and self._named in line:  # cheaper than to parse every line
            for value in objects(line):
                self._take(value, chosen)

    def _take(self, value: Any, chosen: _Chosen) -> None:
        for name in [self._key] if isinstance(value, dict) and self._key in value else self._key.split("."):
            if not isinstance(value, dict) or name not in value:
                return  # a line about something else
            value = value[name]
        if isinstance(value, int | float) and not isinstance(value, bool):
            chosen.add(_float(value))
        else:
            chosen.add(None, f"its {self._key} is {json.dumps(value, default=str)[:80]}, which is no number")

    def result(self, windows: Sequence[WindowLine]) -> dict[str, float]:
        """{metric: figure}; empty where the suite says that there is none. Raises NoQuality."""
        if self._where == "none":
            return {}
        chosen = self._chosen(windows)
        if chosen.figure is None:
            raise NoQuality(f"no {self.metric}: {chosen.wrong or self._lacks()}")
        return {self.metric: chosen.figure}

    @property
    def percent(self) -> bool:
        """Whether what was read stood before a percent sign."""
        return any(chosen.percent for chosen in self._streams.values())

    def _chosen(self, windows: Sequence[WindowLine]) -> _Chosen:
        chosen = _Chosen(self._source.which, self._streams["stdout"].higher)
        if self._where == "window":
            for name, value in qualities(windows).items():
                if name == self._key:
                    chosen.add(math.nan if value is None else value)
            return chosen
        if self._path is not None:
            self._read(self._path, chosen)
            return chosen
        stream = self._source.stream or ("stdout" if self._where == "json" else None)
        if stream is not None:
            return self._streams[stream]
        spoke = [name for name in STREAMS if self._streams[name].seen]
        if len(spoke) > 1:
            raise NoQuality(
                f"no {self.metric}: its pattern matches on stdout and on stderr, whose order is a matter of chance; "
                'add stream = "stdout" or stream = "stderr" to quality'
            )
        return self._streams[spoke[0] if spoke else "stdout"]

    def _read(self, path: Path, chosen: _Chosen) -> None:
        now = _state(path)
        if now is None:
            raise NoQuality(f"no {self.metric}: it wrote no {path.name}")
        if now == self._before:
            raise NoQuality(f"no {self.metric}: {path.name} is older than the trial, which did not write it")
        try:
            for value in _values_in(read_bytes(path, RECORD_B).decode("utf-8")):
                self._take(value, chosen)
        except (OSError, ValueError, IndexError, RecursionError) as error:
            raise NoQuality(f"no {self.metric}: {path.name} is not JSON: {error}") from None

    def _lacks(self) -> str:
        stream = self._source.stream
        other = next((name for name in STREAMS if name != (stream or "stdout")), "")
        elsewhere = f'; there is one on {other}: stream = "{other}"' if self._streams[other].seen else ""
        if self._pattern is not None:
            on = f" on {stream}" if stream else ""
            return f"it printed nothing{on} that matches {self._pattern.pattern}{elsewhere}"
        if self._path is not None:
            return f"{self._path.name} has no key '{self._key}'"
        if self._where == "window":
            return f"none of its windows says '{self._key}'"
        return f"it printed no JSON line with the key '{self._key}'{elsewhere}"


@dataclass
class QualityReaders:
    """Of the deciding metric first, then of those that are kept beside it."""

    readers: list[QualityReader]
    missing: dict[str, str] = field(default_factory=dict)  # of the others: metric → why there is no figure

    @classmethod
    def of(
        cls,
        sources: Mapping[str, QualitySourceTable],
        base: Path,
        values: Mapping[str, Value],
        declared: Mapping[str, Metric],
    ) -> QualityReaders:
        """sources: metric → where it is read, the deciding one first; declared: what is known of them"""
        lower = {name for name, metric in declared.items() if metric.better == "lower"}
        return cls(
            [QualityReader(each, name, base, values, higher=name not in lower) for name, each in sources.items()]
        )

    @property
    def deciding(self) -> QualityReader:
        return self.readers[0]

    def hear(self, stream: str, line: str) -> None:
        for reader in self.readers:
            reader.hear(stream, line)

    def result(self, windows: Sequence[WindowLine]) -> dict[str, float]:
        """{metric: figure}, the deciding one first; empty where the suite says that there is none. Raises NoQuality for
        the deciding one; of the others that have no figure the reason goes into `missing`."""
        found = self.deciding.result(windows)
        for reader in self.readers[1:]:
            try:
                found |= reader.result(windows)
            except NoQuality as missing:
                self.missing[reader.metric] = str(missing)
        return found


def _values_in(text: str) -> Iterator[Any]:
    """The value of a JSON file; of a file of JSON lines each one's. Raises ValueError, IndexError."""
    try:
        yield json.loads(text)
        return
    except ValueError:
        lines = text.strip().splitlines()
    if not lines:
        raise ValueError("it is empty")
    *earlier, last = lines
    for line in earlier:
        try:
            yield json.loads(line)
        except ValueError:
            continue  # another line of a log
    yield json.loads(last)


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
