"""Verdicts, flags and controls on synthetic runs whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from synthetic import SAMPLES, Run, Truth

from energybench.records.record import Budget, Cell, Flag, Passes
from energybench.report.markdown import markdown
from energybench.verdict import wording
from energybench.verdict.figures import Quality, Row, Summary, Workload
from energybench.verdict.interim import whole_blocks
from energybench.verdict.pairing import TrialMean
from energybench.verdict.sentences import notes
from energybench.verdict.summary import summarise
from energybench.verdict.wording import plain


def of(run: Run) -> Summary:
    return summarise(*run.records())


def only(run: Run) -> Workload:
    (workload,) = of(run).workloads
    return workload


def row(run: Run, label: str = "half") -> Row:
    return next(row for row in only(run).rows if row.method == label)


def half(**changes: Any) -> Run:
    return Run(**changes).method("half", time=0.8, energy=0.7, flop=0.5)


def codes(found: Any) -> list[str]:
    return [flag.code for flag in found]


# Verdicts and flags


def test_a_biased_harness_gets_no_verdict_however_good_the_method_looks() -> None:
    run = Run(blocks=5)
    run.truths = [Truth("baseline", "baseline"), Truth("twin", "twin", time=0.97), Truth("half", time=0.5, flop=0.5)]
    workload = only(run)
    assert codes(workload.flags) == ["aa_failed"]
    assert workload.rows[0].verdict == "no verdict"
    assert workload.rows[0].verdict_forbidden
    assert "differs from itself" in workload.rows[0].reason


def test_a_twin_that_repeats_the_baseline_passes() -> None:
    summary = of(half())
    assert summary.workloads[0].twin is not None
    assert summary.workloads[0].twin.saving_rel == 0.0
    assert [c.result for c in summary.checks if c.code == "aa_failed"] == ["clear"]


def test_a_trial_that_did_other_work_than_was_counted_is_struck() -> None:
    run = half()
    passes = run.passes(run.truth("half")).model_copy(update={"updates": 59})
    found = row(run.change("half", 0, passes=passes))
    assert codes(found.flags) == ["witness_differs"]
    assert found.verdict == "no verdict"
    assert found.measured is not None


def test_a_baseline_that_did_other_work_strikes_the_whole_workload() -> None:
    other = Passes(forwards=1, keys={"plain": {"steps": 1, "samples": 1}})
    workload = only(half().change("baseline", 0, passes=other))
    assert codes(workload.flags) == ["witness_differs"]
    assert workload.rows[0].verdict == "no verdict"


def test_an_estimate_off_by_more_than_the_gap_is_struck() -> None:
    found = row(Run().method("half", time=0.8, flop=0.5, estimate=0.45))
    assert codes(found.flags) == ["estimate_gap"]
    assert found.verdict == "no verdict"


def test_an_estimate_is_held_against_the_count_of_the_same_seed() -> None:
    """Blocks 1 and 2 leave out more than block 0, of whose seed the counting run is: by their formulas 10 points on the
    mean, and none in the training that was counted."""
    run = Run().method("half", time=0.8, flop=0.5, estimate=0.5)
    more = run.estimate(Truth("half", flop=0.35))
    for block in (1, 2):
        run.change("half", block, estimate=more)
    found = row(run)
    assert found.estimated_rel == pytest.approx(0.6)
    assert codes(found.flags) == []
    less = run.estimate(Truth("half", flop=0.45))
    assert codes(row(run.change("half", 0, estimate=less)).flags) == ["estimate_gap"]


def test_before_schema_3_it_was_marked_and_such_a_report_says_what_it_said() -> None:
    run, trials, counting_runs = Run().method("half", time=0.8, flop=0.5, estimate=0.45).records()
    old = [trial.model_copy(update={"schema_": 2}) for trial in trials]
    summary = summarise(run, old, counting_runs)
    found = next(each for each in summary.workloads[0].rows if each.method == "half")
    assert [(flag.code, flag.severity) for flag in found.flags] == [("estimate_gap", "marked")]
    assert found.verdict == "faster"
    assert not {"patched", "outside_work", "clock_differs"} & {check.code for check in summary.checks}


def test_losing_quality_is_not_saving() -> None:
    found = row(Run().method("half", time=0.5, flop=0.5, quality=-0.02))
    assert found.verdict == "quality lost"
    assert found.quality is not None
    assert found.quality.change == pytest.approx(-0.02)
    assert "faster" not in of(Run().method("half", time=0.5, quality=-0.02)).headline.replace("proven faster", "")


def test_margins_are_told_as_the_suite_wrote_them() -> None:
    accept = {"quality": {"metric": "accuracy", "loses_at_most": 0.0025}, "noise": 0.0025}
    found = of(Run(accept=accept).method("half", time=0.5, flop=0.5).method("same", flop=0.5))
    assert "no more than 0.25 pp of accuracy lost" in wording.plain(found.headline)
    assert "within the saving margin, ±0.25 %" in wording.plain(found.workloads[0].rows[1].reason)
    assert "| −0.25 pp |" in markdown(found)


def test_a_loss_just_beyond_the_margin_is_not_told_as_the_margin() -> None:
    assert wording.plain(row(Run().method("half", time=0.5, quality=-0.0052)).reason) == (
        "accuracy −0.52 pp [−0.52, −0.52], −0.50 pp is accepted"
    )
    near = Quality("accuracy", 0.9, 0.899, -0.001, -0.00512, -0.005, True, 0.002, 3, best=0.00312)
    assert wording.plain(wording.quality_interval(near)) == "accuracy −0.10 pp [−0.51, 0.31], −0.50 pp is accepted"
    for change, limit in ((-0.00501, -0.005), (-0.002502, -0.0025), (-0.100002, -0.1)):
        for fraction in (True, False):
            assert len(set(wording.beside(change, limit, fraction))) == 2


def test_a_method_that_diverges_in_a_block_has_lost_its_quality() -> None:
    run = Run(blocks=5).method("half", time=0.5, flop=0.5).change("half", 4, status="diverged", reason="loss is nan")
    found = row(run)
    assert found.n == 4
    assert found.verdict == "quality lost"
    assert "diverged in 1" in found.reason.replace("\u00a0", " ")


def past_its_limit(label: str, blocks: int, **truth: float) -> Row:
    run = Run(blocks=5, noise=0.002, seed=1).method("it", **truth)
    for block in range(blocks):
        run.change(label, block, status="timeout", reason="it ran past its limit of 9 s")
    return row(run, "it")


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_side_that_ran_past_its_limit_never_turns_into_a_saving_of_the_other_blocks(blocks: int) -> None:
    """It took longer there than anyone knows: whoever drops those blocks keeps the lucky ones."""
    found = past_its_limit("it", blocks, time=0.5)
    assert (found.n, found.verdict) == (5 - blocks, "inconclusive")
    assert f"the method ran past its limit in {blocks}" in wording.plain(found.reason)
    assert found.blocks_needed is None
    assert past_its_limit("it", blocks, time=1.0).verdict == "inconclusive"  # not "no difference" either
    assert past_its_limit("it", blocks, time=1.5).verdict == "slower"  # and those blocks were slower still


def test_plain_training_that_ran_past_its_limit_makes_no_method_slow() -> None:
    assert past_its_limit("baseline", 2, time=1.5).verdict == "inconclusive"
    assert past_its_limit("baseline", 2, time=1.0).verdict == "inconclusive"
    assert past_its_limit("baseline", 2, time=0.5).verdict == "faster"


def test_a_suite_without_a_quality_margin_proves_no_saving() -> None:
    assert row(half(accept={"noise": 0.01})).verdict == "quality unproven"


def test_a_block_without_its_quality_figure_leaves_the_quality_unproven() -> None:
    assert row(half(blocks=4).change("half", 0, quality={})).verdict == "quality unproven"


def test_lower_is_better_for_a_loss() -> None:
    accept = {"quality": {"metric": "loss", "loses_at_most": 0.1}, "noise": 0.01}
    run = half(accept=accept)
    for block in range(3):
        run.change("baseline", block, quality={"loss": 1.0}).change("half", block, quality={"loss": 1.2})
    found = row(run)
    assert found.verdict == "quality lost"
    assert found.quality is not None
    assert (found.quality.change, found.quality.limit) == (pytest.approx(0.2), pytest.approx(0.1))
    assert not found.quality.fraction


LOWER = ["ppl", "test/wer", "val_nll", "bpc", "cross_entropy", "eval_loss", "RMSE", "fid50k"]
HIGHER = ["fidelity", "confidence", "lossless_rate", "answer_rate", "bleu", "certainty"]


@pytest.mark.parametrize(
    ("metric", "plain", "ours"), [(name, 4.0, 8.0) for name in LOWER] + [(name, 0.8, 0.4) for name in HIGHER]
)
def test_before_metrics_were_declared_what_was_better_when_lower_is_lost_when_it_doubles_and_all_else_when_it_halves(
    metric: str, plain: float, ours: float
) -> None:
    accept = {"quality": {"metric": metric, "loses_at_most": 0.1}, "noise": 0.01}
    run = half(accept=accept, schema=3)
    for block in range(3):
        run.change("baseline", block, quality={metric: plain}).change("half", block, quality={metric: ours})
    assert row(run).verdict == "quality lost"


def test_an_inconclusive_row_says_how_many_blocks_would_decide() -> None:
    found = row(Run(noise=0.05, seed=3).method("half", time=0.93, flop=0.5))
    assert found.verdict == "inconclusive"
    assert found.blocks_needed is not None
    assert found.blocks_needed > 3
    assert str(found.blocks_needed) in found.reason


# The matched control


def test_a_method_is_held_against_plain_training_for_the_epochs_it_kept() -> None:
    run = Run().method("skip", time=0.8, flop=0.8, epochs=4.8).control("skip", time=0.8, epochs=5)
    found = row(run, "skip")
    assert found.control is not None
    assert found.control.measured.saving_rel == pytest.approx(0.0)
    assert not found.control.better  # it only trained less
    assert "control_differs" not in codes(found.flags)
    assert "not proven better" in of(run).headline
    assert [r.method for r in only(run).rows] == ["skip"]


def test_a_method_that_beats_its_control_in_quality_at_no_cost_is_better_than_training_less() -> None:
    run = Run().method("skip", time=0.8, epochs=5).control("skip", time=0.8, epochs=5, quality=-0.03)
    found = row(run, "skip")
    assert found.control is not None
    assert found.control.better
    assert "not proven better" not in of(run).headline


def beating_its_control() -> Run:
    return Run(blocks=4).method("skip", time=0.6, epochs=5).control("skip", time=0.8, epochs=5)


@pytest.mark.parametrize(
    ("label", "change"),
    [
        ("skip", {"flags": [Flag(code="foreign_process", detail="GPU-1: process 7")]}),
        ("skip@control", {"flags": [Flag(code="foreign_process", detail="GPU-1: process 7")]}),
        ("skip", {"status": "diverged", "reason": "nan"}),
        ("skip", {"status": "timeout", "reason": "9 s"}),
    ],
)
def test_nothing_is_better_than_training_less_by_figures_that_give_no_verdict(
    label: str, change: dict[str, Any]
) -> None:
    fine = row(beating_its_control(), "skip").control
    assert fine is not None
    assert fine.better
    found = row(beating_its_control().change(label, 1, **change), "skip").control
    assert found is not None
    assert not found.better


def paid(steps: int, planned: int = 60) -> dict[str, Any]:
    return {"budget": Budget(steps=steps, planned_steps=planned, paid_rel=steps / planned)}


def with_budgets(run: Run, label: str, *steps: int) -> Run:
    """Block by block; a control trained as many."""
    for block, each in enumerate(steps):
        run.change(label, block, **paid(each)).change(f"{label}@control", block, **paid(each), steps=each)
    return run


def test_what_a_method_paid_for_is_said_in_steps() -> None:
    run = with_budgets(Run().method("skip", time=0.8).control("skip", time=0.8), "skip", 30, 30, 30)
    found = row(run, "skip")
    assert found.control is not None
    assert (found.control.steps, found.control.planned_steps) == (TrialMean(30, 0, 3), 60)
    said = plain(" ".join(notes(found, "accuracy")))
    assert "Against plain training for the 30 of 60 steps that it paid for: 0.0 %" in said
    assert "not proven better than training less" in said
    assert "not proven better than plain training for the steps that it paid for" in of(run).headline
    assert "control_differs" not in codes(found.flags)


def test_budgets_may_differ_from_block_to_block() -> None:
    run = with_budgets(Run().method("skip").control("skip"), "skip", 30, 31, 33)
    assert "the 31.3 of 60 steps that it paid for on average" in plain(" ".join(notes(row(run, "skip"), "accuracy")))


@pytest.mark.parametrize(("trained", "marked"), [(30, False), (31, True)])
def test_a_control_that_did_not_train_its_budget_is_marked(trained: int, marked: bool) -> None:
    run = with_budgets(Run().method("skip").control("skip"), "skip", 30, 30, 30).change(
        "skip@control", 1, steps=trained
    )
    found = [flag.detail for flag in row(run, "skip").flags if flag.code == "control_differs"]
    assert found == ["30 steps paid for, 31 trained"] * marked


def test_where_a_block_paid_for_everything_plain_training_is_its_control() -> None:
    """A block is not left out for what it is: of three, one trained as much as plain training, in 6 of 10 s."""
    run = with_budgets(Run().method("skip", time=0.6).control("skip", time=0.8), "skip", 30, 60, 30)
    records = run.records()
    trials = [t for t in records[1] if (t.role, t.block) != ("control", 1)]
    cells = [c.model_copy(update={"control": "possible"}) if c.role == "control" else c for c in records[0].cells]
    summary = summarise(records[0].model_copy(update={"cells": cells}), trials, records[2])
    found = next(r for r in summary.workloads[0].rows if r.method == "skip")
    assert found.control is not None
    assert found.control.measured.n == 3
    ratios = [0.6 / 0.8, 0.6, 0.6 / 0.8]
    assert found.control.measured.saving_rel == pytest.approx(1 - math.prod(ratios) ** (1 / 3))
    assert summary.not_run == ()


@pytest.mark.parametrize(("asked", "said"), [("asked", True), ("possible", False)])
def test_a_control_that_was_asked_for_and_has_nothing_to_match_is_explained(asked: str, said: bool) -> None:
    run = Run().method("skip", time=0.8)
    for block in range(3):
        run.change("skip", block, **paid(60))
    file, trials, counting_runs = run.records()
    control = Cell(workload=run.workload, method="skip matched", role="control", of="skip", control=asked)
    file = file.model_copy(update={"cells": [*file.cells, control]})
    summary = summarise(file, trials, counting_runs)
    found = next(r for r in summary.workloads[0].rows if r.method == "skip")
    assert found.control is None
    note = "No matched control was run: its own tally paid for all 60 steps of plain training."
    assert (note in notes(found, "accuracy")) == said
    assert summary.not_run == ()
    assert whole_blocks(file, trials) == 3


def test_a_block_without_a_control_that_is_due_is_not_whole_and_is_named() -> None:
    run = with_budgets(Run().method("skip").control("skip"), "skip", 30, 30, 30)
    file, trials, counting_runs = run.records()
    cells = [c.model_copy(update={"control": "possible"}) if c.role == "control" else c for c in file.cells]
    file = file.model_copy(update={"cells": cells, "finished": False})
    trials = [t for t in trials if (t.role, t.block) != ("control", 2)]
    assert whole_blocks(file, trials) == 2
    file = file.model_copy(update={"finished": True})
    missing = [(each.method, each.reason) for each in summarise(file, trials, counting_runs).not_run]
    assert missing == [("skip@control", "no trial of block 2")]


def test_who_skips_nothing_in_a_block_ends_there_with_plain_weights_and_is_not_struck() -> None:
    """Its count is lower on average, and equal in that block."""
    run = Run().method("skip", flop=0.5)
    for block in range(3):
        run.change("baseline", block, weights_sha256="p")
        run.change("skip", block, weights_sha256="p" if block == 0 else f"s{block}")
    honest = run.passes(run.truth("skip"))
    whole = honest.model_copy(
        update={"keys": {"sparse": {"steps": 2 * honest.keys["sparse"]["steps"], "samples": 2 * SAMPLES * 6}}}
    )
    assert "same_weights" in codes(row(run, "skip").flags)
    run.change("skip", 0, passes=whole)
    assert "same_weights" not in codes(row(run, "skip").flags)


def test_a_control_of_another_budget_is_marked() -> None:
    found = row(Run().method("skip", epochs=4).control("skip", epochs=5), "skip")
    assert "control_differs" in codes(found.flags)
