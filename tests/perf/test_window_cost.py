"""What it costs to open and close a window of a script's own: against codecarbon's tracker.

Both say the same of this machine, modelled energy without a sensor, and both have done so once before. A tracker of
codecarbon's is made anew for each stretch, as its own decorator does.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from perf.ratios import Bench, timed

import energybench

ROUNDS = 15


def ours() -> None:
    with energybench.measure("window", quiet=True):
        pass


def codecarbons() -> None:
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", output_methods=[], log_level="critical", allow_multiple_runs=True
    )
    tracker.start()
    tracker.stop()


def test_opening_and_closing_a_window(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    times = bench.turns({"ours": timed(ours), "codecarbon": timed(codecarbons)}, ROUNDS)
    bench.cost("opening and closing a window", times["ours"], times["codecarbon"], of="codecarbon's tracker", goal=1)
