"""What a method does outside its window: what it spends once is billed, and work that nobody bills is struck.

Plain training takes 10 s and 500 J by `synthetic`; what lies outside is added to the records here.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import GPU, JOULES, SECONDS, Run

from energybench.meter.reading import Energy, Reading
from energybench.records.record import ProcessUse, Trial
from energybench.verdict import sentences, wording
from energybench.verdict.figures import Row
from energybench.verdict.summary import summarise

PLAIN_S = 1.0  # that plain training takes to be built


def judged(run: Run, mine: dict[str, float], *, process: tuple[float, float] = (0.0, 0.0), power_w: float = 0.0) -> Row:
    """The row of "half".

    Args:
        mine:    phase → seconds of the method's trials; plain training's are PLAIN_S for `build` and 0.1 s for others
        process: seconds and CPU seconds of the method's process that lie in no phase
        power_w: of the card in these phases; 0: too short for its sensor
    """
    meta, trials, counting_runs = run.records()

    def with_phases(trial: Trial) -> Trial:
        of_plain = {"build": PLAIN_S, "warmup_build": PLAIN_S, "finish": 0.1, "evaluate": 0.1}
        walls = of_plain | (mine if trial.method == "half" else {})
        phases = dict(trial.phases)
        for name, wall_s in walls.items():
            joules = [Energy(source=GPU[0], scope=GPU[1], energy_j=power_w * wall_s)] if power_w else []
            phases[name] = Reading(wall_s=wall_s, cpu_s=wall_s, energy=joules)
        extra_s, extra_cpu_s = process if trial.method == "half" else (0.0, 0.0)
        use = ProcessUse(
            wall_s=sum(p.wall_s for p in phases.values()) + 0.2 + extra_s,
            cpu_s=sum(p.cpu_s or 0.0 for p in phases.values()) + 0.2 + extra_cpu_s,
        )
        return trial.model_copy(update={"phases": phases, "process": use})

    summary = summarise(meta, [with_phases(trial) for trial in trials], counting_runs)
    return next(row for row in summary.workloads[0].rows if row.method == "half")


def half(**changes: Any) -> Run:
    return Run(**changes).method("half", time=0.5, energy=0.5, flop=0.5)


def codes(row: Row) -> list[str]:
    return [flag.code for flag in row.flags]


def test_what_costs_no_more_than_plain_training_s_own_preparations_changes_nothing() -> None:
    row = judged(half(), {})
    assert row.once is None
    assert row.measured is not None
    assert row.measured.saving_rel == pytest.approx(0.5)
    assert row.verdict == "faster"
    assert codes(row) == []


def test_what_is_spent_once_is_billed_and_repaid_by_so_many_runs() -> None:
    """A proxy of 8 s before windows of 5 s: (5 + 9 + 0.1) against (10 + 1 + 0.1); 8 s at 5 s saved a run: 1.6 runs, of
    six epochs each."""
    row = judged(half(), {"build": 9.0, "warmup_build": 9.0})
    assert row.once is not None
    assert row.measured is not None
    assert row.measured.saving_rel == pytest.approx(1 - 14.1 / 11.1)
    assert row.verdict == "slower"
    assert row.once.seconds == pytest.approx(8)
    assert row.once.share_rel == pytest.approx(0.8)
    assert row.once.steady.saving_rel == pytest.approx(0.5)
    assert (row.once.repaid_runs, row.once.repaid_epochs) == (pytest.approx(1.6), pytest.approx(9.6))
    assert "8.0\N{NO-BREAK SPACE}s" in sentences.once(row.once)
    assert "1.6 runs or 9.6 epochs" in sentences.once(row.once)


def test_nobody_is_paid_for_preparing_faster_than_plain_training() -> None:
    row = judged(half(), {"build": 0.1, "warmup_build": 0.1})
    assert row.once is None
    assert row.measured is not None
    assert row.measured.saving_rel == pytest.approx(0.5)


@pytest.mark.parametrize("where", ["build", "warmup_build"])
def test_it_is_billed_once_wherever_it_is_cached(where: str) -> None:
    row = judged(half(), {where: 9.0})
    assert row.once is not None
    assert row.once.seconds == pytest.approx(8)


def test_what_saves_nothing_in_the_steady_state_never_repays() -> None:
    row = judged(Run().method("half", time=1.2), {"build": 9.0})
    assert row.once is not None
    assert row.once.repaid_runs is None
    assert "never repays" in sentences.once(row.once)


@pytest.mark.parametrize(("power_w", "once_w"), [(20.0, 20.0), (0.0, 50.0)])
def test_joules_are_the_sensors_own_or_at_the_power_of_the_window(power_w: float, once_w: float) -> None:
    """Windows of 50 W. 8 s more: 160 J where the sensor saw 20 W, 400 J where it saw nothing."""
    row = judged(half(sensors=(GPU,)), {"build": 9.0}, power_w=power_w)
    assert row.measured is not None
    assert row.measured.quantity == "energy"
    plain_j, mine_j = JOULES + 1.1 * once_w, JOULES / 2 + 9.1 * once_w
    assert row.measured.saving_rel == pytest.approx(1 - mine_j / plain_j)
    assert row.once is not None
    assert row.once.share_rel == pytest.approx(8 * once_w / JOULES)


@given(spent=st.floats(0.5, 100), saved=st.floats(0.1, 0.9))
def test_after_the_runs_that_repay_it_both_have_cost_the_same(spent: float, saved: float) -> None:
    row = judged(Run().method("half", time=1 - saved), {"build": PLAIN_S + spent})
    assert row.once is not None
    assert row.once.repaid_runs is not None
    runs = row.once.repaid_runs
    assert spent + runs * SECONDS * (1 - saved) == pytest.approx(runs * SECONDS)


@pytest.mark.parametrize(
    ("mine", "process", "expected"),
    [
        ({"evaluate": 0.6}, (0.0, 0.0), ["outside_work"]),
        ({"finish": 0.6}, (0.0, 0.0), ["outside_work"]),
        ({"evaluate": 0.15}, (0.0, 0.0), []),  # less than a tenth of a second
        ({}, (0.0, 0.5), ["outside_work"]),  # a thread or a child, beside everything
        ({}, (0.5, 0.0), ["outside_work"]),  # seconds of which the trial's own clock knows nothing
        ({}, (0.05, 0.05), []),
    ],
)
def test_work_that_no_figure_bills_strikes_the_verdict(
    mine: dict[str, float], process: tuple[float, float], expected: list[str]
) -> None:
    row = judged(half(), mine, process=process)
    assert codes(row) == expected
    assert row.verdict == ("no verdict" if expected else "faster")


def test_equal_weights_from_half_of_the_flops_are_struck() -> None:
    run = half()
    for block in range(3):
        for label in ("baseline", "half"):
            run.change(label, block, weights_sha256=f"block {block}")
    row = judged(run, {})
    assert codes(row) == ["same_weights"]
    assert row.verdict == "no verdict"


def test_equal_weights_from_as_many_flops_and_fewer_watts_are_honest() -> None:
    run = Run(sensors=(GPU,)).method("half", energy=0.7)
    for block in range(3):
        for label in ("baseline", "half"):
            run.change(label, block, weights_sha256=f"block {block}")
    row = judged(run, {}, power_w=50.0)
    assert (codes(row), row.verdict) == ([], "saves")


def test_a_sampled_count_says_how_sure_it_is() -> None:
    meta, trials, counting_runs = half().records()
    flop = next(each.counted_flop for each in counting_runs if each.method == "baseline")
    assert flop is not None
    unsure = [
        each.model_copy(update={"counted_error_flop": 0.03 * flop}) if each.method == "half" else each
        for each in counting_runs
    ]
    row = next(each for each in summarise(meta, trials, unsure).workloads[0].rows if each.method == "half")
    assert row.counted_error_rel == pytest.approx(0.03)
    assert wording.plain(wording.counted(row)) == "50.0 % ± 3.0 pp"


def test_what_is_spent_once_is_billed_against_the_matched_control_too() -> None:
    """A proxy of 4 s makes a window of 5 s dearer than the 6 s of training as much without it: 5 + 5.1 to 6 + 1.1."""
    run = half().control("half", time=0.6, quality=-0.1)
    cheap, dear = judged(run, {}), judged(run, {"build": 5.0, "warmup_build": 5.0})
    assert cheap.control is not None
    assert dear.control is not None
    assert cheap.control.better
    assert cheap.control.measured.saving_rel == pytest.approx(1 - 5 / 6)
    assert not dear.control.better
    assert dear.control.measured.saving_rel == pytest.approx(1 - 10.1 / 7.1)
