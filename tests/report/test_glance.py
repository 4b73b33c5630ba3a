"""What is said after a block is what a report of the same blocks would print, and costs what the block cost."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import GPU, MODEL, Run

from energybench.meter.reading import Reading
from energybench.records.record import Flag, RunFile, Trial
from energybench.report.terminal import partial
from energybench.verdict import glance as glances
from energybench.verdict.figures import Row, Summary
from energybench.verdict.glance import Glance, Glimpse, Moments
from energybench.verdict.summary import summarise


def so_far(run: RunFile, trials: list[Trial]) -> dict[tuple[str, str], Glimpse]:
    """Block by block, as a run adds them."""
    glance = Glance(run)
    for block in sorted({trial.block for trial in trials}):
        glance.block(block, [trial for trial in trials if trial.block == block])
    return {(workload.name, row.method): row for workload in glance.so_far() for row in workload.rows}


def reported(run: RunFile, trials: list[Trial]) -> dict[tuple[str, str], Row]:
    """Of all blocks, before any look."""
    blocks = max(trial.block for trial in trials) + 2
    blind = run.model_copy(update={"looks": None, "finished": False, "closed": None, "blocks": blocks})
    summary: Summary = summarise(blind, trials, [])
    return {(w.name, row.method): row for w in summary.workloads for row in w.rows if row.measured is not None}


def close(one: float | None, other: float | None) -> bool:
    return one is other is None or (one is not None and other is not None and math.isclose(one, other, abs_tol=1e-9))


def hold(run: RunFile, trials: list[Trial]) -> None:
    mine, theirs = so_far(run, trials), reported(run, trials)
    assert [*mine] == [*theirs]
    for key, row in theirs.items():
        glimpse = mine[key]
        assert glimpse.n == row.n
        assert row.measured is not None
        assert (glimpse.measured.quantity, glimpse.measured.scope) == (row.measured.quantity, row.measured.scope)
        for name in ("saving_rel", "low_rel", "high_rel", "df"):
            assert close(getattr(glimpse.measured, name), getattr(row.measured, name)), (key, name)
        assert (glimpse.quality is None) == (row.quality is None)
        if glimpse.quality is not None and row.quality is not None:
            assert close(glimpse.quality.change, row.quality.change)
            assert glimpse.quality.fraction == row.quality.fraction


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.integers(1, 7),
    noise=st.sampled_from([0.0, 0.02, 0.3]),
    sensors=st.sampled_from([(GPU,), (MODEL,), (GPU, MODEL)]),
    seed=st.integers(0, 999),
    lost=st.lists(st.tuples(st.sampled_from(["half", "other", "baseline", "twin"]), st.integers(0, 6)), max_size=4),
    blind=st.booleans(),
)
def test_the_figures_are_those_of_a_report(
    blocks: int, noise: float, sensors: Any, seed: int, lost: list[tuple[str, int]], blind: bool
) -> None:
    made = Run(blocks=blocks, noise=noise, quality_noise=0.01, sensors=sensors, seed=seed)
    made.method("half", time=0.6, energy=0.5).method("other", time=1.3, energy=1.2)
    for label, block in lost:
        made.change(label, block, status="failed", reason="killed")
    run, trials, _ = made.records()
    if blind:  # one trial of a method that no sensor saw: its comparison is one of time
        trials = [_without_sensors(t) if (t.method, t.block) == ("half", 0) and t.train else t for t in trials]
    hold(run, trials)


def _without_sensors(trial: Trial) -> Trial:
    assert trial.train
    return trial.model_copy(update={"phases": {"train": trial.train.model_copy(update={"energy": []})}})


def test_what_a_method_spends_once_is_billed_as_a_report_bills_it() -> None:
    """Where preparing takes a fifth of plain training's window, far beyond the margin, in every block."""
    run, trials, _ = Run(blocks=5, noise=0.01).method("half", time=0.5).records()

    def phases(trial: Trial) -> dict[str, Reading]:
        ready = 2.0 + 0.01 * trial.block if trial.method == "half" else 0.01
        return {**trial.phases, "build": Reading(wall_s=ready), "finish": Reading(wall_s=0.01)}

    trials = [trial.model_copy(update={"phases": phases(trial)}) for trial in trials]
    hold(run, trials)
    (row,) = so_far(run, trials).values()
    assert row.measured.saving_rel == pytest.approx(0.3, abs=0.03)  # 0.5 − 0.2


def test_metrics_of_every_scale_and_names_that_were_guessed() -> None:
    for schema, metric in (
        (4, {"better": "lower", "unit": "dB"}),
        (4, {"better": "higher", "scale": "percent"}),
        (2, None),
    ):
        declared = {"cnn-digits": {"accuracy": metric}} if metric else {}
        made = Run(blocks=4, quality_noise=0.01, schema=schema, metrics=declared).method("half", time=0.5)
        run, trials, _ = made.records()
        hold(RunFile.model_validate(run.model_dump(by_alias=True)), trials)


def test_a_block_that_is_run_again_takes_the_place_of_what_it_was() -> None:
    made = Run(blocks=3, noise=0.02).method("half", time=0.5)
    run, trials, _ = made.records()
    again = [made.trial(truth, 1, invocation=1, slow=1.1) for truth in made.truths]
    glance = Glance(run)
    for block in range(3):
        glance.block(block, [trial for trial in trials if trial.block == block])
    glance.block(1, [trial for trial in [*trials, *again] if trial.block == 1])
    (workload,) = glance.so_far()
    (row,) = workload.rows
    expected = reported(run, [*trials, *again])[workload.name, row.method]
    assert row.n == 3
    assert expected.measured is not None
    assert close(row.measured.saving_rel, expected.measured.saving_rel)
    assert close(row.measured.high_rel, expected.measured.high_rel)


def test_a_flag_that_strikes_a_trial_strikes_the_figure() -> None:
    made = Run(blocks=3).method("half", time=0.5).method("other", time=0.7)
    made.change("half", 1, flags=[Flag(code="mps", detail="")])
    rows = so_far(*made.records()[:2])
    assert {method: row.verdict_forbidden for (_, method), row in rows.items()} == {"half": True, "other": False}


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_moments_are_those_of_all_values(values: list[float]) -> None:
    moments = Moments()
    for value in values:
        moments.add(value)
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert math.isclose(moments.mean, mean, abs_tol=1e-9)
    assert math.isclose(moments.spread.sd, math.sqrt(variance), rel_tol=1e-9, abs_tol=1e-9)


def test_a_block_looks_at_its_own_trials_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks were before it."""
    looked: Counter[int] = Counter()
    examined = glances.Examination

    class Counted(examined):  # type: ignore[misc,valid-type]
        def __init__(self, trials: list[Trial]) -> None:
            looked.update(trial.block for trial in trials)
            super().__init__(trials)

    monkeypatch.setattr(glances, "Examination", Counted)
    run, trials, _ = Run(blocks=30).method("half", time=0.5).records()
    so_far(run, trials)
    assert looked == Counter(trial.block for trial in trials)


def test_a_terminal_shows_each_method_with_its_blocks(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    run, trials, _ = Run(blocks=4, noise=0.01).method("half", time=0.5).records()
    glance = Glance(run)
    for block in range(4):
        glance.block(block, [trial for trial in trials if trial.block == block])
    out = io.StringIO()
    partial(glance.so_far(), 10, Console(file=out, width=80))
    assert "half" in out.getvalue()
    assert "4 of 10" in out.getvalue()
    assert "twin" not in out.getvalue()
