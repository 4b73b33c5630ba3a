"""What it costs to open and close a window of a script's own: against codecarbon's tracker, in turns.

Both say the same of this machine, modelled energy without a sensor, and both have done so once before. A tracker of
codecarbon's is made anew for each stretch, as its own decorator does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import energybench

pytestmark = pytest.mark.perf

ROUNDS = 15


def ours() -> None:
    with energybench.measure("window", quiet=True):
        pass


def codecarbons() -> None:
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(country_iso_code="FRA", output_methods=[], log_level="critical",
                                      allow_multiple_runs=True)  # fmt: skip
    tracker.start()
    tracker.stop()


def seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def test_a_window_opens_and_closes_faster_than_codecarbons_tracker(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    ours(), codecarbons()
    rounds = [(seconds(ours), seconds(codecarbons)) for _ in range(ROUNDS)]
    ratio = statistics.median(mine / theirs for mine, theirs in rounds)
    benchmark.extra_info |= {"ratio": ratio, "ours_ms": 1e3 * statistics.median(mine for mine, _ in rounds)}
    benchmark.pedantic(ours, rounds=5)
    print(benchmark.extra_info)
    assert ratio < 1
