"""What `flops` and `show` print: every figure whole on its line at any width, every row with its name."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from energybench.cli.flops_page import print_flops
from energybench.cli.show import print_run
from energybench.records.record import write_json

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import Run

WIDTHS = [40, 60, 80, 100, 200]
LAYERS = {"conv 0": 0.425e9, "conv layer4.1.conv2": 51.2e9, "linear 10": 22.1e6}


def facts(counted: bool) -> dict[str, Any]:
    def cell(method: str, role: str, kept: float) -> dict[str, Any]:
        modules = [
            {
                "name": name,
                "plain_flop": flop,
                "estimated_flop": kept * flop,
                "plain_b": flop / 9,
                "estimated_b": flop / 10,
            }
            for name, flop in LAYERS.items()
        ]
        plain = sum(LAYERS.values())
        return {
            "workload": "w",
            "method": method,
            "role": role,
            "skipped": None,
            "status": "ok",
            "reason": None,
            "baseline_flop": plain,
            "estimated_flop": kept * plain,
            "counted_flop": 1.01 * kept * plain,
            "counted_error_flop": 0.0,
            "outside_steps_flop": 0.0,
            "uncounted_calls": {},
            "unpriced_matrix": [],
            "estimated_by_phase": {"forward": 0.3 * plain, "weight_gradient": 0.4 * kept * plain},
            "estimated_by_op": {"conv": 0.9 * kept * plain, "linear": 0.1 * kept * plain, "attention": 1e9},
            "modules": modules,
        }

    workload = {"epochs": 8, "samples": 1442, "batch": 64, "data": "digits, shipped with a dependency"}
    cells = [
        cell("baseline", "baseline", 1.0),
        cell("gradsamp[skip=random:0.2,epsilon=0.001]", "method", 0.783),
        cell("ssprop+dropout", "method", 0.7345),
    ]
    return {
        "suite": "s",
        "path": "s.toml",
        "stamp": [],
        "counted": counted,
        "notes": [],
        "workloads": {"w": workload},
        "cells": cells,
    }


def printed(counted: bool, width: int) -> str:
    out = io.StringIO()
    print_flops(facts(counted), Console(file=out, width=width, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("counted", [True, False])
def test_no_width_crops_a_figure_of_flops_or_loses_a_name(counted: bool, width: int) -> None:
    text = printed(counted, width)
    assert max(map(len, text.splitlines())) <= max(width, 72)  # the line about the data is not broken
    rows = re.compile(r"^(?:baseline|ssprop\+dropout|conv 0|linear 10) +(.*)", re.M)
    figures = re.compile(r"[\d.]+(?: (?:%|[GM]FLOP))?|–")
    whole = set(figures.findall(" ".join(rows.findall(printed(counted, 300)))))
    for line in rows.findall(text):
        assert whole >= set(figures.findall(line))
        assert not figures.sub("", line).strip()  # no unit without its figure
    for saved in ("21.7 %", "26.5 %"):
        assert text.count(saved) >= (2 if counted else 1)
    letters = re.sub(r"\s", "", text)
    for name in ("baseline", "conv0", "linear10", "ssprop+dropout", "random:0.2,epsilon=0.001]"):
        assert name in letters
    for word in ("baseline", "saved", "forward", "FLOP/B"):
        assert word in text


@pytest.mark.parametrize("width", WIDTHS)
def test_no_width_breaks_a_figure_of_a_runs_trials(width: int, tmp_path: Path) -> None:
    run = Run(workload="a-long-name-of-a-workload").method("half", time=0.51234, quality=-0.01234)
    run.change("half", 1, status="failed", reason="RuntimeError: a long reason, " + "and longer " * 9)
    meta, trials, _ = run.records()
    write_json(tmp_path / "run.json", meta)
    for trial in trials:
        write_json(tmp_path / "records" / f"{trial.trial}.json", trial)
    out = io.StringIO()
    print_run(tmp_path, Console(file=out, width=width, color_system=None))
    text = out.getvalue()
    assert text.count("0.8877") == 2
    assert text.count("5.12 s") == 2
    assert "longer and longer" in " ".join(text.split())
