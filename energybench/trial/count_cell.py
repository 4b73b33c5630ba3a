"""One cell counted for `energybench flops`: the counting run, and each line as the methods' formulas leave it.

Nothing is metered and nothing recorded. IN.json in, OUT.json out, in a process of its own.
"""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from energybench.trial.counting_run import run_counted
from energybench.trial.estimate import works
from energybench.trial.spec import CountingSpec
from energybench.workloads import datasets


def main(in_path: str, out_path: str) -> None:
    spec = CountingSpec.read(in_path)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    try:
        result = {"status": "ok", "reason": None} | count(spec)
    except Exception as error:
        traceback.print_exc()
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    Path(out_path).write_text(json.dumps(result), encoding="utf-8")


def count(spec: CountingSpec) -> dict[str, Any]:
    """What the counter, the tally and the ledger say: the keys of the result, in FLOPs, calls and seconds."""
    started = time.perf_counter()
    train = datasets.open_part(spec.data, spec.workload.data, torch.device(spec.device), "train")
    run, counted = run_counted(spec, train)
    _, work = works(spec.ledger, run)
    return {
        "counted_flop": counted.counted_flop,
        "counted_error_flop": counted.counted_error_flop,
        "outside_steps_flop": counted.outside_steps_flop,
        "counted_by_op": counted.by_op,
        "uncounted_calls": counted.uncounted_calls,
        "passes": asdict(run.tally.passes()),
        "reason": counted.reason,
        "epochs": work.epochs,
        "samples": work.samples,
        "batch": work.batch,
        "accumulate": work.accumulate,
        "sizes": work.sizes,
        "lines": [asdict(line) for line in work.lines],
        "wall_s": time.perf_counter() - started,
    }
