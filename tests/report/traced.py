"""Synthetic runs with power traces and training curves beside their records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from synthetic import GPU, Run

from energybench.common.sealed_files import write_bytes
from energybench.meter.trace import Sample, pack
from energybench.records.record import Claim, Trial

EVIL = "a|b`c<script>alert(1)</script>\n# $x^2$ \"q\" 'r' ]]> --> &amp; \u202eRTL\u202c 漢字 \x1b[31m\x00 _"
WATTS = 200.0


def traced(run: Run, folder: Path, watts: float = WATTS, period_s: float = 0.1) -> tuple[Any, list[Trial], Any]:
    """The run's records with a constant power beside each trial, and curves of three epochs."""
    meta, trials, counting_runs = run.records()
    result = []
    for number, trial in enumerate(trials):
        assert trial.train is not None
        seconds = trial.train.wall_s
        samples = [Sample(round(1e9 * i * period_s), "GPU-0", watts) for i in range(math.ceil(seconds / period_s) + 1)]
        path = f"traces/{number:04}.csv.gz"
        write_bytes(folder / path, pack(samples, 0))
        curve = [{"epoch": float(e), "loss": 1 / e, "wall_s": seconds * e / 3} for e in (1, 2, 3)]
        result.append(trial.model_copy(update={"trace": path, "curve": curve}))
    return meta, result, counting_runs


def example(**options: Any) -> Run:
    run = Run(noise=0.02, quality_noise=0.002, sensors=(GPU,), **options)
    run.method("half", time=0.7, energy=0.6, flop=0.5, claim=Claim(saving_rel=0.5, source="Table 4"))
    run.method("other", time=1.3, energy=1.4, flop=0.9, quality=-0.01).control("half", time=0.72, energy=0.7)
    return run
