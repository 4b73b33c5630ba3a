"""What a report says of commands: what ran, what cannot be known of it, and what was not asked."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic import Run

from energybench.records.record import RunFile, Trial
from energybench.report.html import page
from energybench.report.markdown import markdown
from energybench.report.terminal import render
from energybench.verdict.figures import Summary
from energybench.verdict.summary import summarise


def records(
    *, quality: str = "json", flop: dict[str, float] | None = None, **truth: Any
) -> tuple[RunFile, list[Trial]]:
    """Three blocks of one command against another, which takes half as long."""
    halved = {"time": 0.5, "energy": 0.5, "flop": 0.5, **truth}
    run, trials, _ = Run(blocks=3, noise=0.001).method("trick", **halved).records()
    command = {
        "baseline": ["python", "train.py"],
        "twin": ["python", "train.py"],
        "trick": ["python", "train.py", "--seed", "{seed}", "--note=a b"],
    }
    cells = [cell.model_copy(update={"stack": [], "command": command[cell.method]}) for cell in run.cells]
    settings = {"name": cells[0].workload, "quality": {"from": quality}}
    run = run.model_copy(update={"cells": cells, "resolved": {**run.resolved, "workload": [settings]}})
    kept: dict[str, Any] = {"estimate": None, "passes": None, "data_wait_s": None, "settings": {"command": ["python"]}}
    if quality == "none":
        kept["quality"] = {}

    def reported(trial: Trial) -> dict[str, float]:
        return {kind: count * (0.5 if trial.method == "trick" else 1) for kind, count in (flop or {}).items()}

    return run, [trial.model_copy(update={**kept, "flop": reported(trial)}) for trial in trials]


def screen(summary: Summary, width: int = 120) -> str:
    out = io.StringIO()
    render(summary, Console(file=out, width=width), verbose=True)
    return out.getvalue()


def test_estimated_and_counted_are_not_available_and_the_reason_stands_below():
    run, trials = records()
    summary = summarise(run, trials, [])
    row = summary.workloads[0].rows[0]
    assert (row.estimated_rel, row.counted_rel, row.realised_rel) == (None, None, None)
    assert row.verdict == "faster"
    for text in (screen(summary), markdown(summary)):
        flat = " ".join(text.split())
        assert "not available" in flat
        assert "outside energybench's loop and reports no FLOPs" in flat


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_width_crops_a_figure_or_leaves_a_word_behind(width: int):
    run, trials = records()
    lines = screen(summarise(run, trials, []), width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("50" in line for line in lines)


def test_flops_that_both_commands_report_stand_in_their_columns():
    run, trials = records(flop={"estimated": 8e9, "counted": 6e9})
    row = summarise(run, trials, []).workloads[0].rows[0]
    assert row.estimated_rel == pytest.approx(0.5)
    assert row.counted_rel == pytest.approx(0.5)
    assert row.realised_rel == pytest.approx(1.0, abs=0.01)  # half the FLOPs, half the time
    assert row.unavailable == ""


def test_flops_that_one_side_reports_are_worth_nothing():
    run, trials = records(flop={"estimated": 8e9})
    silent = [t.model_copy(update={"flop": {}}) if t.role == "baseline" else t for t in trials]
    row = summarise(run, silent, []).workloads[0].rows[0]
    assert row.estimated_rel is None
    assert row.unavailable


def test_without_a_quality_to_lose_there_is_a_verdict_and_the_report_says_that_it_was_not_judged():
    run, trials = records(quality="none")
    summary = summarise(run, trials, [])
    assert summary.workloads[0].rows[0].verdict == "faster"
    assert "Quality is not judged" in markdown(summary)
    assert "Quality is not judged" in " ".join(screen(summary).split())


def test_a_quality_that_is_asked_for_and_not_there_leaves_a_saving_unproven():
    run, trials = records()
    blind = [trial.model_copy(update={"quality": {}}) for trial in trials]
    assert summarise(run, blind, []).workloads[0].rows[0].verdict == "quality unproven"


def test_commands_stand_in_every_page_as_one_would_type_them():
    run, trials = records()
    summary = summarise(run, trials, [])
    typed = "python train.py --seed {seed} '--note=a b'"
    assert summary.workloads[0].rows[0].command == typed
    assert typed in " ".join(screen(summary, 200).split())
    assert "python train.py --seed {seed} '--note=a b'" in markdown(summary)
    assert "no matched control" in markdown(summary)
    assert "than the plain command on" in summary.headline


def test_the_html_page_holds_them_against_the_plain_command_too(tmp_path: Path):
    run, trials = records()
    text = page(summarise(run, trials, []), trials, tmp_path)
    assert "Savings relative to the plain command in the same block" in text


def test_a_training_of_our_own_loop_is_told_as_before():
    run, trials, counting_runs = Run(blocks=3, noise=0.001).method("trick", time=0.5).records()
    summary = summarise(run, trials, counting_runs)
    workload = summary.workloads[0]
    assert (workload.baseline_name, workload.command, workload.rows[0].unavailable) == ("plain training", "", "")
    assert "not available" not in markdown(summary).partition("## Can these")[0]
    assert dataclasses.asdict(workload.rows[0])["command"] == ""
