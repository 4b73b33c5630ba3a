"""Windows that a script measured, as JSON lines: one line per closed window, written at once, read back in order.

    {"name": "train", "path": "train", "parent": null, "steps": 120, "samples": null, "quality": {"accuracy": 0.9},
     "flop": null, "start_s": 5012.25, "stop_s": 5024.5, "reading": {...}, "error": null}

A suite names the file in $ENERGYBENCH_WINDOWS. Any program in any language may append to it; of a line only `name`,
`start_s` and `stop_s` are needed, in seconds of CLOCK_MONOTONIC. What such a line was read of is `read_as`'s.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from energybench.common import quantities
from energybench.common.errors import Problem, UsageError
from energybench.common.limits import RECORD_B, TRACE_B
from energybench.common.open_tables import Machine, Open
from energybench.common.outputs import json_kind
from energybench.common.quantities import Count, Seconds
from energybench.common.safe_read import read_bytes
from energybench.common.units import format_energy, format_seconds
from energybench.meter import combine
from energybench.meter.doubts import DOUBTS
from energybench.meter.modelled import MODEL, loads_of, whole_machine
from energybench.meter.not_seen import not_seen, not_seen_of
from energybench.meter.reading import Reading, RecordModel
from energybench.meter.window import sum_pieces
from energybench.records.reader import read
from energybench.records.record import Flag
from energybench.windows.side_by_side import of_nodes, of_one_node

VARIABLE = "ENERGYBENCH_WINDOWS"
TRAIN = "train"  # the window that a method is billed for
OVERLAP_S = 1e-6  # two windows that share less than this follow one another


class Flop(BaseModel):
    """FLOPs that a script knows of itself; null where it does not."""

    model_config = ConfigDict(frozen=True)

    estimated: quantities.Flop | None = Field(default=None, allow_inf_nan=False)
    counted: quantities.Flop | None = Field(default=None, allow_inf_nan=False)


class WindowLine(BaseModel):
    """One window of a script.

    path:    its name after those of the windows around it: "train/epoch"
    id:      whoever writes a window again, with a quality that came later say, gives it the same id: the last one holds
    reading: null where the writer has no meters
    error:   the type of the exception or the signal that ended it, or why it was never closed
    flags:   every reason to doubt the reading, by the same tests as a run's (meter/doubts.py)
    rank:    of several processes that train together, which one wrote it; None where there is one alone
    node:    a name of that rank's node: clocks and counters of two nodes are others
    """

    model_config = ConfigDict(frozen=True)  # other writers may say more: it is not read

    name: str = Field(min_length=1)
    path: str = ""
    parent: str | None = None
    steps: Count | None = None
    samples: Count | None = None
    quality: dict[str, float | None] = Field(default_factory=dict)  # null: told, and no finite number
    flop: Flop | None = None
    start_s: Seconds  # CLOCK_MONOTONIC, as time.perf_counter() gives it on Linux
    stop_s: Seconds
    reading: Reading | None = None
    error: str | None = None
    id: str | None = None
    flags: list[Flag] = Field(default_factory=list)
    rank: Count | None = None
    node: str | None = None

    @model_validator(mode="after")
    def _stops_after_it_starts(self) -> WindowLine:
        if self.stop_s < self.start_s:
            raise ValueError(f"it stops at {self.stop_s:g} s, before it starts at {self.start_s:g} s")
        return self

    @property
    def wall_s(self) -> float:
        """Seconds inside: without pauses where the reading says so."""
        return self.reading.wall_s if self.reading else self.stop_s - self.start_s


class WindowsFile(RecordModel):
    """The record of one outermost window and of all inside it."""

    schema_: Literal[1, 2, 3, 4] = Field(default=4, alias="schema")
    started_at: str  # ISO 8601, UTC
    argv: list[str] = Field(default_factory=list)
    machine: Machine = Field(default_factory=dict)
    gpus: Open = Field(default_factory=dict)  # UUID → what two measurements must share to be compared
    windows: list[WindowLine] = Field(default_factory=list)


RECORD_KIND = json_kind("a record of a script's windows", lambda found: {"windows", "started_at", "argv"} <= set(found))


def record(path: Path) -> WindowsFile | None:
    """The record that `measure(record=...)` wrote; None for another file. Raises UsageError E601 for a broken one."""
    try:
        content = json.loads(read_bytes(path, RECORD_B))
    except (OSError, ValueError, RecursionError):
        return None
    return read(path, WindowsFile) if isinstance(content, dict) and "windows" in content else None


def append(path: Path, line: WindowLine) -> None:
    """Add one line in one write, so that processes which share the file never mix theirs. Raises OSError."""
    content = line.model_dump_json().encode() + b"\n"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        written = os.write(handle, content)
        if written < len(content):
            raise OSError(f"only {written} of {len(content)} bytes were written")
    finally:
        os.close(handle)


def read_windows(path: Path) -> list[WindowLine]:
    """The windows of a file of JSON lines.

    Args:
        path: what $ENERGYBENCH_WINDOWS named

    Returns:
        In the order of their start; none where there is no file. A last line that was cut short, by a kill say, is left
        out.

    Raises:
        UsageError: E640 for any other line that is no window, and for a file that cannot be read
    """
    try:
        content = read_bytes(path, TRACE_B)
    except FileNotFoundError:
        return []
    except OSError as error:
        hint = f"${VARIABLE} names a file that lines are appended to"
        raise UsageError(Problem("E640", f"cannot read it: {error.strerror}", str(path), hint)) from None
    lines = content.split(b"\n")
    windows: dict[str, WindowLine] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            window = WindowLine.model_validate_json(line)
        except ValidationError as error:
            if number == len(lines):  # no newline after it: it was never finished
                break
            raise UsageError(_not_a_window(error, path, number)) from None
        windows[window.id or f"line {number}"] = window
    return sorted(windows.values(), key=lambda window: window.start_s)


def _not_a_window(error: ValidationError, path: Path, number: int) -> Problem:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the line"
    hint = 'a line is {"name": "train", "start_s": 1.5, "stop_s": 9.0}; docs/python.md has the rest'
    return Problem("E640", f"not a window: {place}: {first['msg']}", f"{path}:{number}", hint)


def read_as(window: WindowLine, metered: Callable[[int, int], Reading]) -> WindowLine:
    """The window with a reading; of one that was written without, what the meters of the whole command saw meanwhile.

    metered: from the times of a stretch, in nanoseconds of CLOCK_MONOTONIC, to its reading
    """
    if window.reading is not None:
        return window
    return window.model_copy(update={"reading": metered(round(window.start_s * 1e9), round(window.stop_s * 1e9))})


def of_training(windows: Iterable[WindowLine]) -> list[WindowLine]:
    """Those that a trial is billed for: the top-level windows named "train", else all top-level windows."""
    top = [window for window in windows if window.parent is None]
    return [window for window in top if window.name == TRAIN] or top


def training(windows: Iterable[WindowLine]) -> Reading | None:
    """The reading that a trial is billed for: the sum of `of_training`; None where that is not known, see `summed`."""
    return summed(of_training(windows))


def summed(windows: Sequence[WindowLine]) -> Reading | None:
    """Windows one after the other, and those of several ranks side by side, as one reading.

    Args:
        windows: in any order

    Returns:
        Their sum, in joules and seconds, errors too. Of ranks that overlap: the seconds of the longest, and each sensor
        once (side_by_side.py). None for no window, for one without a reading, and for others that overlap: what a
        sensor saw in both would be counted twice.
    """
    nodes: dict[str | None, list[WindowLine]] = {}
    for window in windows:
        nodes.setdefault(window.node, []).append(window)
    readings = [_of_one_clock(each) for each in nodes.values()]
    known = [reading for reading in readings if reading is not None]
    if not known or len(known) < len(readings) or (len(nodes) > 1 and None in nodes):
        return None
    return known[0] if len(known) == 1 else of_nodes(known)


def _of_one_clock(windows: Sequence[WindowLine]) -> Reading | None:
    """Windows of one node, whose times can be compared."""
    stretches: list[list[WindowLine]] = []
    until_s = -math.inf
    for window in sorted(windows, key=lambda window: window.start_s):
        if window.start_s >= until_s - OVERLAP_S:
            stretches.append([])
        stretches[-1].append(window)
        until_s = max(until_s, window.stop_s)
    readings = [_of_one_stretch(stretch) for stretch in stretches]
    return None if None in readings else _in_turn([reading for reading in readings if reading is not None])


def _of_one_stretch(windows: Sequence[WindowLine]) -> Reading | None:
    """Windows that overlap: one alone, or those of several ranks."""
    ranks: dict[int | None, list[WindowLine]] = {}
    for window in windows:
        ranks.setdefault(window.rank, []).append(window)
    pairs = [pair for each in ranks.values() for pair in itertools.pairwise(each)]
    overlap = any(after.start_s < before.stop_s - OVERLAP_S for before, after in pairs)
    if overlap or (len(windows) > 1 and None in ranks) or any(window.reading is None for window in windows):
        return None
    readings = [_in_turn([window.reading for window in each if window.reading]) for each in ranks.values()]
    return readings[0] if len(readings) == 1 else of_one_node(readings)


def _in_turn(readings: Sequence[Reading]) -> Reading:
    pieces = sum(reading.pieces for reading in readings)
    return readings[0] if len(readings) == 1 else sum_pieces(readings).model_copy(update={"pieces": pieces})


def qualities(windows: Iterable[WindowLine]) -> dict[str, float | None]:
    """Metric → what the windows reported of it; of the same metric that of the first rank's last one holds."""
    quality: dict[str, float | None] = {}
    for window in sorted(windows, key=lambda window: (-(window.rank or 0), window.stop_s)):
        quality |= window.quality
    return quality


def sentence(window: WindowLine) -> str:
    """One line: seconds, counts, and energy with its source and error, or why there is none."""
    parts = [format_seconds(window.wall_s)]
    parts += [f"{n:,} {what}{'s' * (n != 1)}" for what, n in (("step", window.steps), ("sample", window.samples)) if n]
    parts += [f"{metric} {math.nan if value is None else value:.4g}" for metric, value in window.quality.items()]
    ended = f" ({window.error})" if window.error else ""
    parts += _energy(window.reading)
    if window.reading and (unseen := _unseen(window.reading)):
        parts.append(f"not seen: {', '.join(unseen)}")
    parts += [f"! {doubtful_words(flag)}" for flag in window.flags]
    return f"{window.name}{ended}: {' · '.join(parts)}"


def doubtful_words(flag: Flag) -> str:
    """ "foreign_process (struck): Another process was on the card (GPU-…: process 4711)": a reason to doubt it."""
    doubt = next((doubt for doubt in DOUBTS if doubt.code == flag.code), None)
    if doubt is None:
        return f"{flag.code} ({flag.detail})" if flag.detail else flag.code
    detail = f" ({flag.detail})" if flag.detail else ""
    return f"{doubt.severity}: {doubt.sentence.rstrip('.')}{detail}"


def _unseen(reading: Reading) -> list[str]:
    """What has no figure; where nothing has, the reasons are told already, but for what was no part of the window."""
    if any(each.energy_j is not None for each in reading.energy):
        return not_seen(reading)
    return not_seen_of(each for each in reading.energy if each.unmetered)


def _devices(reading: Reading | None, scope: str) -> str:
    """Of a scope with several devices, each one's joules: " = GPU-4e817856 300 J + GPU-00000000 100 J"."""
    parts = [each for each in combine.channels(reading) if each.scope == scope and each.device]
    if len(parts) < 2:
        return ""
    return " = " + " + ".join(f"{combine.in_short(e.device)} {format_energy(e.energy_j or 0.0)}" for e in parts)


def _energy(reading: Reading | None) -> list[str]:
    """Measured; else modelled and named so; else the reasons, in short."""
    measured = combine.metered(reading)
    if measured.sensors:
        error = ", error unknown" if measured.error_j is None else f" ±{format_energy(measured.error_j, 2)}"
        scopes = combine.metered_by_scope(reading)
        sources = " + ".join(dict.fromkeys(source for source, _ in sorted(measured.sensors)))
        each = [f"{scope} {format_energy(joules)}{_devices(reading, scope)}" for scope, joules in scopes.items()]
        detailed = len(scopes) > 1 or _devices(reading, next(iter(scopes)))
        parts = f" ({', '.join(each)})" if detailed else ""
        return [f"{format_energy(measured.joules)} {sources}{error}{parts}"]
    energy = reading.energy if reading else []
    modelled = [each for each in energy if each.energy_j is not None and each.source.startswith("model(")]
    if modelled:
        by = modelled[0].source.removeprefix("model(").partition(" ")[0].rstrip(")")
        of_all = all(each.source.startswith(MODEL) for each in modelled)
        scope = f" {whole_machine(loads_of(modelled))}".replace("\N{NO-BREAK SPACE}", " ") if of_all else ""
        return [f"energy modelled ({by}): {format_energy(sum(each.energy_j or 0.0 for each in modelled))}{scope}"]
    reasons = dict.fromkeys(each.reason or "no reason given" for each in energy if not each.unmetered)
    return [f"no energy: {'; '.join(reasons)}"] if reasons else []
