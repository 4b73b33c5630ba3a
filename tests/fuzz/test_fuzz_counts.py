"""Windows that a script wrote and golden counts, edited or made up: refused with a code, or what they say."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fuzzing import Step, as_json, changed, hunt, mutations, steps_of, told
from hypothesis import strategies as st
from test_fuzz_records import ROOT, nothing_impossible

from energybench.common.errors import EnergybenchError
from energybench.gate import golden_counts
from energybench.windows import file

LINES: list[Any] = [
    {
        "name": "train",
        "path": "train",
        "parent": None,
        "steps": 120,
        "samples": 960,
        "start_s": 5012.25,
        "id": "a",
        "stop_s": 5024.5,
        "quality": {"accuracy": 0.9},
        "flop": {"estimated": 1e9, "counted": None},
        "error": None,
        "reading": {
            "wall_s": 12.25,
            "cpu_s": 11.0,
            "pieces": 1,
            "sampler": {"period_s": 0.05, "samples": 240},
            "energy": [
                {
                    "source": "rapl",
                    "scope": "cpu",
                    "energy_j": 90.0,
                    "error_j": 0.5,
                    "detail": {"tick_s": 0.001, "range_j": 65e3, "wraps": 0},
                }
            ],
        },
    },
    {"name": "evaluate", "start_s": 5024.5, "stop_s": 5025.0},
]


def lines_of_windows(tmp_path: Path, steps: list[Step]) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text("".join(f"{as_json(line)}\n" for line in changed(LINES, steps)), "utf-8", "replace")
    try:
        found = file.read_windows(path)
    except EnergybenchError as error:
        told(error, "6")
        return
    assert [window.start_s for window in found] == sorted(window.start_s for window in found)
    for window in found:
        nothing_impossible(window.model_dump(exclude={"quality"}))
        assert 0 <= window.wall_s <= 1e11
        assert file.sentence(window)
    training = file.training(found)
    if training is not None:
        of_it = file.of_training(found)
        assert math.isclose(training.wall_s, math.fsum(window.wall_s for window in of_it), abs_tol=1e-9)


@pytest.mark.soak
def test_windows_are_refused_or_read_as_they_are_written(tmp_path: Path) -> None:
    hunt("windows", mutations, lines_of_windows, lambda drawn: (steps_of(LINES, drawn),), tmp_path=tmp_path)


@cache
def counts() -> list[Any]:
    """The counts of a committed run as a golden file, and as `energybench flops --json` writes them."""
    found = golden_counts.read(ROOT / "reports" / "quick" / "2026-11-21-170504")
    cells = [{"workload": w, "method": m, "counts": facts} for (w, m), facts in found.cells.items()]
    written = {
        "golden": 1,
        "suite": found.suite,
        "stamp": list(found.stamp),
        "seed": found.seed,
        "source": "run",
        "torch": found.torch,
        "cells": cells,
    }
    flops = {
        "suite": found.suite,
        "stamp": list(found.stamp),
        "seed": found.seed,
        "torch": found.torch,
        "counted": True,
        "workloads": {w: {"parameters": 5178} for w, _ in found.cells},
        "cells": [
            {
                "workload": w,
                "method": m,
                "role": "method",
                "skipped": None,
                "baseline_flop": facts["plain_flop"],
                "estimated_flop": facts["estimated_flop"],
                "counted_flop": facts.get("counted_flop"),
                "passes": {"forwards": 3, "keys": {}},
            }
            for (w, m), facts in found.cells.items()
        ],
    }
    return [json.loads(json.dumps(written)), json.loads(json.dumps(flops))]


def a_file_of_counts(tmp_path: Path, which: int, steps: list[Step]) -> None:
    """which: 0 a golden file, 1 the JSON of `energybench flops`"""
    path = tmp_path / "golden.json"
    path.write_text(as_json(changed(counts()[which], steps)), "utf-8", "replace")
    try:
        found = golden_counts.read(path)
        findings = golden_counts.compare(found, golden_counts.read(ROOT / "reports" / "quick" / "2026-11-21-170504"))
    except EnergybenchError as error:
        told(error, "6")
        return
    for facts in found.cells.values():
        for count in facts.values():
            assert count is None or (0 <= count <= 1e36 and not isinstance(count, bool))
    for finding in findings:
        assert isinstance(finding.workload, str)
        assert isinstance(finding.method, str)


@pytest.mark.soak
def test_golden_counts_are_refused_or_compared_as_they_are_written(tmp_path: Path) -> None:
    def plain(drawn: Any) -> tuple[int, list[Step]]:
        which, changes = drawn
        return which, steps_of(counts()[which], changes)

    hunt("golden counts", st.tuples(st.integers(0, 1), mutations), a_file_of_counts, plain, tmp_path=tmp_path)
