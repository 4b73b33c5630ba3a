"""What a report says between looks, at one, and of blocks that were added afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from synthetic import GPU, Run

from energybench.records.record import Looks
from energybench.report.markdown import markdown
from energybench.stats import paired
from energybench.verdict import interim_notes, wording
from energybench.verdict.figures import Row, Summary
from energybench.verdict.summary import summarise

AT = [5, 10, 20]


def of(
    there: int, *, at: list[int] | None = None, method: Any = None, noise: float = 0.02, **run_fields: Any
) -> Summary:
    """A run with looks, of which so many blocks are there."""
    run = Run(blocks=there, sensors=(GPU,), noise=noise).method("half", **(method or {"time": 0.7, "energy": 0.7}))
    meta, trials, counting_runs = run.records()
    fields: dict[str, Any] = {"blocks": 20, "looks": Looks(at=at or AT), "finished": False} | run_fields
    return summarise(meta.model_copy(update=fields), trials, counting_runs)


def row(summary: Summary) -> Row:
    return summary.workloads[0].rows[0]


def test_before_the_first_look_figures_are_shown_and_no_verdict() -> None:
    summary = of(4)
    found = row(summary)
    assert found.measured is not None
    assert found.verdict == "no verdict"
    assert "first look is after 5" in wording.plain(found.reason)
    assert summary.headline.startswith("No verdict yet: 4 of 20 blocks")
    assert "saves" not in markdown(summary).split("## ")[0]


def test_a_run_without_looks_has_no_verdict_before_its_last_block() -> None:
    meta, trials, counting_runs = Run(blocks=4, sensors=(GPU,)).method("half", energy=0.5).records()
    early = summarise(meta.model_copy(update={"blocks": 5, "finished": False}), trials, counting_runs)
    assert row(early).verdict == "no verdict"
    assert "4 of 5 blocks" in wording.plain(row(early).reason)


@pytest.mark.parametrize("there", [6, 9])
def test_between_looks_the_blocks_since_the_last_one_change_nothing(there: int) -> None:
    at_look, later = of(5), of(there)
    assert later.workloads == at_look.workloads
    assert later.look_note == at_look.look_note


def test_every_bound_at_a_look_is_taken_at_what_that_look_may_spend() -> None:
    found, plain = row(of(10)).measured, row(of(10, at=[10], blocks=10, looks=None, finished=True)).measured
    assert found is not None
    assert plain is not None
    assert found.saving_rel == plain.saving_rel
    assert found.low_rel is not None
    assert plain.low_rel is not None
    assert found.low_rel < plain.low_rel  # look 2 holds a quarter of the 5 %
    assert found.sd_log is not None
    reach = paired.student(paired.adjusted_confidence(0.975, 0.25), found.df) * found.sd_log / found.n**0.5
    assert found.low_rel == pytest.approx(paired.saving_of(reach + _log(found.saving_rel)))


def _log(saving: float) -> float:
    import math

    return math.log1p(-saving)


def test_the_note_says_which_look_it_was_and_what_it_holds() -> None:
    note = of(10).look_note
    assert "look 2 of 3, after 10 of at most 20 blocks" in note
    assert "25 % of them: bounds of verdicts at 99.75 %, intervals at 98.75 %" in note
    assert "next look is after 20 blocks" in note
    assert note in markdown(of(10))


def test_a_run_that_is_looked_at_once_says_nothing_of_looks() -> None:
    assert of(5, at=[5], blocks=5, finished=True).look_note == ""


def test_a_clear_saving_is_decided_at_the_first_look_and_nothing_is_left_to_decide() -> None:
    summary = of(5)
    assert row(summary).verdict == "saves"
    assert interim_notes.undecided(summary) == []


def test_what_more_blocks_may_decide_is_left() -> None:
    summary = of(5, noise=0.1, method={"time": 0.95, "energy": 0.95})
    assert row(summary).verdict == "inconclusive"
    assert [each.method for each in interim_notes.undecided(summary)] == ["half"]


def test_what_no_block_can_decide_holds_nobody_up() -> None:
    run = Run(blocks=5, sensors=(GPU,)).method("half", energy=0.7)
    for block in range(5):
        run.change("half", block, quality={})  # nothing to judge quality by
    meta, trials, counting_runs = run.records()
    summary = summarise(meta, trials, counting_runs)
    assert row(summary).verdict == "quality unproven"
    assert interim_notes.undecided(summary) == []


def test_blocks_added_to_a_finished_run_enter_no_figure_of_it_and_are_shown_as_exploratory() -> None:
    closed = {"closed": 5, "finished": True, "looks": Looks(at=AT, taken=[5]), "added": 3}
    before, after = of(5, **closed), of(8, **closed)
    assert after.workloads == before.workloads
    assert (after.headline, after.overall, after.not_run) == (before.headline, before.overall, before.not_run)
    assert before.added == ()
    (added,) = after.added
    assert (added.blocks, added.measured.n) == (3, 8)
    page = markdown(after)
    exploratory = page.split("## Exploratory")[1].split("\n## ")[0]
    assert "3 blocks were added" in exploratory
    assert not {"saves", "inconclusive"} & set(exploratory.split())  # no verdict


def test_a_run_closed_early_does_not_miss_the_blocks_that_it_did_not_need() -> None:
    assert of(5, closed=5, finished=True).not_run == ()
    assert of(5).not_run == ()


def test_the_way_to_a_target_waits_for_the_look_too() -> None:
    from energybench.records.record import Target

    run = Run(blocks=4, sensors=(GPU,)).method("half", energy=0.5)
    for label in ("baseline", "half"):
        for block in range(4):
            run.change(label, block, target=Target(metric="accuracy", at_least=0.9, epoch=2, wall_s=2.0, steps=9))
    meta, trials, counting_runs = run.records()
    early = summarise(
        meta.model_copy(update={"blocks": 20, "looks": Looks(at=AT), "finished": False}), trials, counting_runs
    )
    way = row(early).to_target
    assert way is not None
    assert way.verdict == "no verdict"
    assert "first look" in way.reason
