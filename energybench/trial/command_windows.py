"""What a command measured itself, into its trial's record: its training takes the whole command's place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from energybench.common.errors import EnergybenchError
from energybench.meter.reading import Reading
from energybench.meter.window import Window, refuse_short
from energybench.trial.phases import Phases
from energybench.trial.record_draft import TrialDraft
from energybench.windows.file import WindowLine, of_training, read_as, read_windows, summed
from energybench.windows.line_clock import Ran, misnamed, mistaken


class WindowsRefused(Exception):
    """Its windows cannot be billed: why, and what to type."""


def take_windows(path: Path, command: Window, phases: Phases, record: TrialDraft) -> list[WindowLine]:
    """The windows of a file into the record.

    A window without a reading is given what the meters of the whole command saw between its times.

    Args:
        path: what $ENERGYBENCH_WINDOWS named; it is removed
        command: the window in which the command ran
        phases: of the trial: `train` is what it is billed for

    Raises:
        WindowsRefused: for a file that holds something else, for times of another clock or outside of the command,
            where none is the training's, and for one that an error ended
    """
    ran = Ran(command.start_ns / 1e9, (command.stop_ns or command.start_ns) / 1e9)
    try:
        wrong = mistaken(path, ran)
        lines = [] if wrong else read_windows(path)
    except EnergybenchError as error:
        problem = error.problems[0]
        raise WindowsRefused(f"its windows cannot be read: {problem.message}; {problem.hint}") from None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    if wrong := wrong or misnamed(lines):
        raise WindowsRefused(wrong)
    timed = [window for window in lines if window.reading is None]
    lines = [read_as(window, partial(_of_stretch, command, ran)) for window in lines]
    inside = of_training(lines)
    if failed := next((window for window in inside if window.error), None):
        raise WindowsRefused(f"its window '{failed.name}' ended with an error: {failed.error}")
    reading = summed(inside)
    if reading:
        phases.readings["train"] = refuse_short(reading)
        record.environment["metered"] = f"the script's own window '{inside[0].name}'"
    elif timed and inside:
        told = 'a "rank": 0, 1, ... on the lines of processes that train together, and none on windows in turn'
        raise WindowsRefused(f"its windows called '{inside[0].name}' overlap, so no sum of them is true: write {told}")
    ranks = {window.rank for window in inside if window.rank is not None}
    if len(ranks) > 1:
        record.environment["ranks"] = len(ranks)
    others = [window for window in lines if window.parent is None and window not in inside]
    for name in dict.fromkeys(window.name for window in others if window.name not in phases.readings):
        if reading := summed([window for window in others if window.name == name]):
            phases.readings[name] = reading
    # Ranks take each step together; what they do and see in it is each one's own.
    lowest = min((window.rank or 0 for window in inside), default=0)
    record.steps = _sum([window.steps for window in inside if (window.rank or 0) == lowest])
    record.samples = _sum([window.samples for window in inside])
    record.flop = _flop(inside)
    return lines


def _of_stretch(command: Window, ran: Ran, start_ns: int, stop_ns: int) -> Reading:
    """Inside the command: what lies a moment outside is the rounding of a clock."""
    return command.of_stretch(max(start_ns, round(ran.began_s * 1e9)), min(stop_ns, round(ran.ended_s * 1e9)))


def _sum(counts: Sequence[int | None]) -> int | None:
    """None where a window does not say."""
    return sum(count for count in counts if count) if counts and None not in counts else None


def _flop(windows: Sequence[WindowLine]) -> dict[str, float]:
    """By the command's own word: estimated, counted; without what a window does not say."""
    reported = {
        "estimated": [window.flop.estimated if window.flop else None for window in windows],
        "counted": [window.flop.counted if window.flop else None for window in windows],
    }
    sums = {kind: [flop for flop in flops if flop is not None] for kind, flops in reported.items()}
    return {kind: math.fsum(known) for kind, known in sums.items() if known and len(known) == len(windows)}
