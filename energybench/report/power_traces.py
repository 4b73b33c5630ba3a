"""Power traces beside records, read for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from energybench.common.errors import UsageError
from energybench.common.held_folder import HeldFolder
from energybench.common.limits import RECORD_B
from energybench.meter import trace
from energybench.records.record import Trial

NO_TRACE = "no power trace was kept"
Powers = dict[str, tuple[list[float], list[float]]]  # device → seconds from the window's start, watts


def power(trial: Trial, folder: Path) -> Powers | str:
    """A trial's power traces by device; a sentence where there is none."""
    if trial.trace is None:
        return NO_TRACE
    try:
        with HeldFolder(folder) as held:
            content = held.read_bytes(trial.trace, RECORD_B)
    except UsageError:
        return "the record names a trace outside the run's folder, or a link"
    except OSError:  # a name may be longer than any file's
        return "the power trace is not beside the records"
    try:
        samples = trace.unpack(content, trial.trace)
    except ValueError:
        return "the power trace cannot be read"
    powers: Powers = {}
    for sample in samples:
        if sample.power_w is not None:
            times, watts = powers.setdefault(sample.device, ([], []))
            times.append(sample.time_ns / 1e9)
            watts.append(sample.power_w)
    return powers or "the power trace holds no power"


def thin(times: Sequence[float], values: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """At most `most` points whose extremes are those of all: the least and the greatest of every bin, in order."""
    if len(times) <= most:
        return list(times), list(values)
    bins = max(1, most // 2)
    chosen: list[int] = []
    for number in range(bins):
        in_bin = range(number * len(times) // bins, (number + 1) * len(times) // bins)
        ends = {min(in_bin, key=values.__getitem__), max(in_bin, key=values.__getitem__)}
        chosen += sorted(ends)
    return [times[i] for i in chosen], [values[i] for i in chosen]
