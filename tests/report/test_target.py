"""The way to a target: synthetic blocks whose costs are known, and blocks that never arrive."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import GPU, MODEL, Run

from energybench.meter.reading import Energy
from energybench.records.record import Flag, Target
from energybench.report.markdown import markdown
from energybench.stats import paired
from energybench.verdict import sentences, wording
from energybench.verdict.figures import Row, ToTarget
from energybench.verdict.summary import summarise, to_json

NEVER = None
positive = st.floats(1e-3, 1e6)


def reached(seconds: float | None, joules: float | None = None, steps: int | None = None) -> Target:
    energy = [] if joules is None else [Energy(source=GPU[0], scope=GPU[1], energy_j=joules)]
    epoch = None if seconds is None else 3
    return Target(metric="accuracy", at_least=0.9, epoch=epoch, steps=steps, wall_s=seconds, energy=energy)


def run_of(*blocks: tuple[Target, Target], **changes: Any) -> Run:
    """One method, "quick", and plain training, with these ways to the target in each block."""
    run = Run(blocks=len(blocks), **changes).method("quick")
    for block, (method, baseline) in enumerate(blocks):
        run.change("quick", block, target=method)
        run.change("baseline", block, target=baseline)
    return run


def row(run: Run) -> Row:
    (workload,) = summarise(*run.records()).workloads
    return workload.rows[0]


def way(*blocks: tuple[Target, Target], **changes: Any) -> ToTarget:
    found = row(run_of(*blocks, **changes)).to_target
    assert found is not None
    return found


def test_a_fifth_of_the_steps_seconds_and_joules_saved_in_every_block_is_a_fifth() -> None:
    blocks = [(reached(0.8 * s, 8 * s, round(80 * s)), reached(s, 10 * s, round(100 * s))) for s in (5.0, 10.0, 20.0)]
    found = way(*blocks)
    assert (found.method.reached, found.baseline.reached, found.n) == (3, 3, 3)
    assert found.cost is not None
    assert found.steps is not None
    assert (found.cost.quantity, found.cost.scope) == ("energy", "gpu")
    assert found.cost.saving_rel == pytest.approx(0.2, abs=1e-12)
    assert (found.cost.low_rel, found.cost.high_rel) == pytest.approx((0.2, 0.2), abs=1e-12)
    assert found.steps.saving_rel == pytest.approx(0.2, abs=1e-12)
    assert found.verdict == "saves"


def test_it_may_save_on_the_way_and_nothing_over_the_whole_run() -> None:
    found = row(run_of(*[(reached(5.0), reached(10.0))] * 3))
    assert found.to_target is not None
    assert found.verdict != "faster"  # the synthetic run of full length takes as long as plain training
    assert found.to_target.verdict == "faster"


@given(st.lists(st.tuples(positive, positive), min_size=3, max_size=8))
def test_the_verdict_is_that_of_the_paired_log_ratios(both: list[tuple[float, float]]) -> None:
    found = way(*[(reached(a), reached(b)) for a, b in both])
    change = paired.paired([a for a, _ in both], [b for _, b in both])
    assert found.verdict == paired.verdict_at_equal_quality(change, 0.01, "time")
    assert found.cost is not None
    assert found.cost.saving_rel == pytest.approx(-math.expm1(change.mean))


@given(st.lists(st.tuples(positive, positive), min_size=3, max_size=8))
def test_swapping_method_and_plain_training_swaps_faster_and_slower(both: list[tuple[float, float]]) -> None:
    swapped = {"faster": "slower", "slower": "faster"}
    found = way(*[(reached(a), reached(b)) for a, b in both]).verdict
    back = way(*[(reached(b), reached(a)) for a, b in both]).verdict
    assert back == swapped.get(found, found)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_block_that_a_side_never_reached_leaves_no_saving_and_no_verdict_for_either(missing: int) -> None:
    """The other two blocks would prove a method ten times as fast: just the lucky ones."""
    for ours_missed in (True, False):
        blocks = [(reached(1.0), reached(10.0)) for _ in range(3)]
        method, baseline = blocks[missing]
        blocks[missing] = (reached(NEVER), baseline) if ours_missed else (method, reached(NEVER))
        found = way(*blocks)
        assert found.verdict == "inconclusive"
        assert found.cost is found.steps is None
        assert ("the method" if ours_missed else "plain training") + " missed it in 1 of 3" in wording.plain(
            found.reason
        )


@pytest.mark.parametrize("status", ["diverged", "timeout"])
@pytest.mark.parametrize("side", ["quick", "baseline"])
def test_a_block_that_diverged_or_ran_past_its_limit_never_reached_it_either(status: str, side: str) -> None:
    """Such a block has no pair, and is no less lost for that."""
    run = run_of(*[(reached(1.0), reached(10.0))] * 5)
    for block in (0, 3):
        run.change(side, block, status=status, reason="nan", target=None)
    found = row(run).to_target
    assert found is not None
    assert found.verdict == "inconclusive"
    assert found.cost is found.steps is None
    assert "2 of 5" in wording.plain(found.reason)
    assert "not known" in found.reason


def test_what_never_arrives_is_reported_as_such() -> None:
    found = way(*[(reached(NEVER), reached(10.0))] * 3)
    assert found.verdict == "not reached"
    assert found.method.seconds is found.method.steps is found.method.energy_j is None
    said = wording.plain(sentences.to_target(found))
    assert "in none of 3 blocks, plain training after 10.0 s in 3 of 3 blocks" in said
    both = way(*[(reached(NEVER), reached(NEVER))] * 3)
    assert both.verdict == "not reached"
    assert "neither side reached it" in both.reason


def test_figures_are_means_over_the_blocks_that_reached_it_and_only_measured_joules() -> None:
    blocks = [(4.0, 8.0), (6.0, 10.0), (None, 12.0)]
    found = way(*[(reached(a, a and 10 * a, a and int(10 * a)), reached(b)) for a, b in blocks])
    assert (found.method.reached, found.baseline.reached) == (2, 3)
    assert found.method.seconds is not None
    assert found.baseline.seconds is not None
    assert found.method.energy_j is not None
    assert found.method.steps is not None
    assert (found.method.seconds.mean, found.baseline.seconds.mean) == (5.0, 10.0)
    assert (found.method.energy_j.mean, found.method.steps.mean) == (50.0, 50.0)
    assert found.baseline.energy_j is None  # nothing was measured on that side
    assert found.baseline.steps is None  # an older record


def test_joules_of_different_sensors_are_not_compared() -> None:
    blocks = [(reached(8.0, 80.0), reached(10.0)) for _ in range(3)]
    found = way(*blocks)
    assert found.cost is not None
    assert found.cost.quantity == "time"
    modelled = Target(
        metric="accuracy",
        at_least=0.9,
        epoch=3,
        wall_s=8.0,
        energy=[Energy(source=MODEL[0], scope=MODEL[1], energy_j=1.0)],
    )
    found = way(*[(modelled, modelled)] * 3)
    assert found.cost is not None
    assert found.cost.quantity == "time"
    assert found.method.energy_j is None


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_blocks_have_no_verdict(n: int) -> None:
    found = way(*[(reached(1.0), reached(10.0))] * n)
    assert found.verdict == "no verdict"
    assert "3 are the least" in found.reason


def test_a_flag_that_forbids_a_verdict_forbids_this_one() -> None:
    run = run_of(*[(reached(1.0), reached(10.0))] * 3)
    for block in range(3):
        run.change("quick", block, flags=[Flag(code="mig")])
    found = row(run)
    assert found.verdict_forbidden
    assert found.to_target is not None
    assert found.to_target.verdict == "no verdict"


def test_without_a_target_nothing_is_said_of_one() -> None:
    run = Run().method("quick")
    assert row(run).to_target is None
    assert "### To" not in markdown(summarise(*run.records()))


def test_the_page_and_the_json_tell_it() -> None:
    run = run_of(*[(reached(0.8, steps=80), reached(1.0, steps=100))] * 3)
    summary = summarise(*run.records())
    page = markdown(summary)
    assert "### To accuracy 0.90" in page
    assert "after 80 steps, 800 ms in 3 of 3 blocks" in page
    assert "| time | **faster** |" in page
    told = to_json(summary)["workloads"][0]["rows"][0]["to_target"]
    assert told["steps"]["saving_rel"] == pytest.approx(0.2)
    assert told["verdict"] == "faster"


@pytest.mark.parametrize(("at_least", "told"), [(0.9, "0.90"), (0.975, "0.975"), (12.0, "12.00")])
def test_a_target_is_told_to_its_last_digit(at_least: float, told: str) -> None:
    found = way(*[(reached(1.0), reached(1.0))] * 3)
    assert sentences.goal(dataclasses.replace(found, at_least=at_least)) == f"accuracy {told}"
