"""`--help` and `list` answer at once: against an interpreter that does nothing, in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.perf

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S, REPEATS = 0.150, 11
# 150 ms is 13.6 starts of a bare interpreter where one takes 11 ms (two quiet cores of an AMD EPYC). A machine that
# others use slows both alike, so a slower one is held to the ratio.
LIMIT_IN_BARE_STARTS = 13.6
COMMANDS = {
    "nothing": ["-c", "pass"],
    "help": ["-m", "energybench", "--help"],
    "list": ["-m", "energybench", "list"],
}


def interleaved() -> dict[str, float]:
    """Median seconds of each command, in turns, after a round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(REPEATS + 1):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            if turn:
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in found.items()}


def test_help_and_list_answer_within_150_ms(energy_benchmark: Any) -> None:
    for attempt in range(1, 6):  # a machine that others use is noisy: look again
        middle = interleaved()
        energy_benchmark.extra_info["attempts"] = attempt
        limit_s = max(LIMIT_S, LIMIT_IN_BARE_STARTS * middle["nothing"])
        if max(middle.values()) < limit_s:
            break
    energy_benchmark.extra_info |= {f"{name}_ms": 1e3 * seconds for name, seconds in middle.items()}
    energy_benchmark.extra_info |= {
        f"{name}_ratio": middle[name] / middle["nothing"] for name in ("help", "list")
    }
    energy_benchmark.extra_info |= {"repeats": REPEATS}
    energy_benchmark.pedantic(subprocess.run, args=([sys.executable, "-m", "energybench", "--help"],),
                       kwargs={"cwd": ROOT, "stdout": subprocess.DEVNULL}, rounds=3)  # fmt: skip
    print(energy_benchmark.extra_info)
    assert middle["help"] < limit_s
    assert middle["list"] < limit_s
