"""Windows of other programs: which clocks, units and names are billed, and what the others are told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.windows.file import WindowLine
from energybench.windows.line_clock import Ran, misnamed, mistaken

NOW_S = time.clock_gettime(time.CLOCK_MONOTONIC)
RAN = Ran(NOW_S, NOW_S + 0.9)
DAY_S = time.time() - NOW_S
START_S, STOP_S = NOW_S + 0.2, NOW_S + 0.6


def told(folder: Path, *windows: dict[str, Any], ran: Ran = RAN) -> str | None:
    path = folder / "windows.jsonl"
    path.write_text("".join(f"{json.dumps(window)}\n" for window in windows))
    return mistaken(path, ran)


def train(start_s: float, stop_s: float, **more: Any) -> dict[str, Any]:
    return {"name": "train", "start_s": start_s, "stop_s": stop_s, **more}


@given(st.floats(0, 1), st.floats(0, 1))
def test_every_stretch_inside_the_command_is_taken(
    tmp_path_factory: pytest.TempPathFactory, a: float, b: float
) -> None:
    first, last = sorted((a, b))
    if last - first < 1e-6:
        return
    folder = tmp_path_factory.getbasetemp()
    assert told(folder, train(NOW_S + 0.9 * first, NOW_S + 0.9 * last)) is None


@pytest.mark.parametrize(
    ("start", "stop", "words"),
    [
        (START_S * 1e3, STOP_S * 1e3, "look like milliseconds"),
        (START_S * 1e3, START_S * 1e3 + 1.5, "look like milliseconds"),  # a window of 1.5 ms is told too
        (START_S * 1e6, STOP_S * 1e6, "look like microseconds"),
        (START_S * 1e9, STOP_S * 1e9, "look like nanoseconds"),
        (START_S + DAY_S, STOP_S + DAY_S, "seconds of the clock of the day"),
        ((START_S + DAY_S) * 1e3, (STOP_S + DAY_S) * 1e3, "milliseconds of the clock of the day"),
        ((START_S + DAY_S) * 1e9, (STOP_S + DAY_S) * 1e9, "nanoseconds of the clock of the day"),
        (0.2, 0.6, "seconds of a clock that begins with the program"),
        (200, 600, "milliseconds of a clock that begins with the program"),
        (STOP_S, START_S, "before it starts"),
        (START_S, 0.4, "stop_s looks like its duration"),
        (START_S, START_S, "lasts no time at all"),
        (START_S - 100, STOP_S - 100, "does not lie inside the command"),
        (START_S, STOP_S + 10, "does not lie inside the command"),
    ],
    ids=[f"case{number}" for number in range(14)],  # times are of this process alone
)
def test_times_that_are_no_seconds_of_the_monotonic_clock_are_told_for_what_they_are(
    tmp_path: Path, start: float, stop: float, words: str
) -> None:
    reason = told(tmp_path, train(start, stop))
    assert reason is not None
    assert reason.startswith("its window 'train' ")
    assert words in reason
    if "look like" in words or "clock" in words:
        assert "clock_gettime(CLOCK_MONOTONIC" in reason


def test_a_line_with_a_reading_of_its_own_is_billed_by_that(tmp_path: Path) -> None:
    assert told(tmp_path, train(1.0, 3.0, reading={"wall_s": 2.0})) is None


def test_what_is_no_window_at_all_is_left_to_whoever_reads_them(tmp_path: Path) -> None:
    assert mistaken(tmp_path / "none", RAN) is None
    path = tmp_path / "windows.jsonl"
    path.write_text(
        'not json\n[1]\n{"name": "train"}\n{"start_s": "a", "stop_s": true}\n{"start_s": NaN, "stop_s": 1}\n'
    )
    assert mistaken(path, RAN) is None


def test_the_training_must_be_called_train() -> None:
    def line(name: str, **more: Any) -> WindowLine:
        return WindowLine(name=name, start_s=0.0, stop_s=1.0, **more)

    assert misnamed([]) is None
    assert misnamed([line("train"), line("evaluate")]) is None
    reason = misnamed([line("Train"), line("evaluate")])
    assert reason is not None
    assert "'Train', 'evaluate'" in reason
    assert '"name": "train"' in reason
