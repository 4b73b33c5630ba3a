"""The gate's statistics: against textbooks and scipy, and by simulation with a truth that is known."""

from __future__ import annotations

import itertools
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from energybench.gate import compare_cells, regression
from energybench.gate.regression import (
    FAMILY,
    Comparison,
    Finding,
    chance,
    confirmed,
    exit_code,
    holm,
    judge,
    only,
    welch,
)
from energybench.stats import paired
from energybench.verdict.summary import summarise

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import GPU, MODEL, Run

NOISE = 0.01


# ── against textbooks ─────────────────────────────────────────────────────────────────────────────────────────


def test_holm_rejects_what_the_textbook_example_rejects() -> None:
    """p = 0.01, 0.04, 0.03, 0.005 at 5 %: 0.005 ≤ 0.05/4, 0.01 ≤ 0.05/3, 0.03 > 0.05/2, so it stops there."""
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]


def test_holm_stops_at_the_first_that_stands_though_a_later_one_is_below_its_own_bound() -> None:
    """0.02 ≤ 0.05/3 fails, so 0.024 ≤ 0.05/2 is never asked."""
    assert holm([0.02, 0.024, 0.9], 0.05) == [False, False, False]
    assert holm([], 0.05) == []
    assert holm([0.01], 0.01) == [True]


def test_the_difference_of_two_runs_is_welchs_as_scipy_has_it() -> None:
    from scipy.stats import ttest_ind

    rng = random.Random(1)
    for n, m, wide in ((3, 3, 1.0), (5, 3, 4.0), (12, 5, 0.3)):
        base = [rng.gauss(0.1, 1) for _ in range(n)]
        head = [rng.gauss(0.4, wide) for _ in range(m)]
        change = welch(_mean(base), _mean(head))
        peer = ttest_ind(head, base, equal_var=False, alternative="greater")
        assert change.df == pytest.approx(peer.df)
        assert chance(change, 0.0) == pytest.approx(peer.pvalue)
        low, high = ttest_ind(head, base, equal_var=False).confidence_interval(0.95)
        assert change.interval() == pytest.approx((low, high))


def test_a_look_may_spend_its_share_of_the_chance_and_no_more() -> None:
    base, head = _mean([0.0, 0.1, 0.2]), _mean([0.4, 0.6, 0.5])
    at_a_quarter = welch(_mean([0.0, 0.1, 0.2], alpha_fraction=0.5), _mean([0.4, 0.6, 0.5], alpha_fraction=0.5))
    assert chance(at_a_quarter, 0.0) == pytest.approx(4 * chance(welch(base, head), 0.0))


def test_runs_without_any_scatter_are_judged_by_the_margin_alone() -> None:
    same, more = _mean([-0.4] * 3), _mean([-0.3] * 3)
    assert chance(welch(same, more), 0.05) == 0.0
    assert chance(welch(same, same), 0.0) == 1.0


@pytest.mark.parametrize("tests", [1, 6])
def test_the_loss_that_is_called_detectable_is_seen_about_eight_times_in_ten(tests: int) -> None:
    """Over pairs of runs, each of which names its own, and two fresh runs after them; as the only one of its family.

    With few blocks Welch's df are themselves an estimate, which costs a little far out in the tail.
    """
    rng, sd, n, times, seen = random.Random(7), 0.02, 5, 1500, 0
    for _ in range(times):
        loss = regression.detectable(welch(_drawn(rng, n, sd), _drawn(rng, n, sd)), 0.01, tests=tests)
        assert loss is not None
        fresh = welch(_drawn(rng, n, sd), _drawn(rng, n, sd, math.log1p(loss)))
        seen += chance(fresh, 0.01) <= FAMILY / tests
    assert 0.75 < seen / times < 0.85  # sd of the share is 0.01


@pytest.mark.parametrize(("n", "size"), [(3, 0.1), (5, 0.05), (5, 0.2)])
def test_so_many_blocks_as_are_named_see_the_loss_and_one_fewer_does_not(n: int, size: float) -> None:
    change = welch(paired.Mean(n, 0.0, 0.02, n - 1), paired.Mean(n, 0.0, 0.02, n - 1))
    named = regression.blocks_to_see(change, (n, n), 0.01, 1, size)
    assert named is not None

    def sees(blocks: int) -> float | None:
        known = paired.Mean(blocks, 0.0, 0.02, blocks - 1)
        return regression.detectable(welch(known, known), 0.01, tests=1)

    assert named == n or (sees(named) or 1) <= size * 1.1  # a spread of more blocks is better known
    assert regression.blocks_to_see(change, (n, n), 0.01, 1, 1e-4) is None  # below the margin no number sees it


def test_a_gate_passes_only_where_a_loss_of_the_size_that_it_names_would_have_been_seen() -> None:
    rough = Comparison(
        "savings", "w", "rough", "time", change=welch(_mean([0.0, 0.1, -0.1]), _mean([0.01, 0.09, -0.1]))
    )
    rough = regression.replace(rough, blocks=(3, 3))
    (found,) = judge([rough], NOISE, sees=0.1)
    assert (found.outcome, found.blind) == ("undecided", True)
    assert found.blocks_to_see is None or found.blocks_to_see > 3
    assert exit_code([found]) == 4
    (wide,) = judge([rough], NOISE, sees=found.detectable_rel + 0.01)  # type: ignore[operator]
    assert (wide.outcome, wide.blind) == ("undecided", False)
    assert exit_code([wide]) == 0
    assert exit_code([wide], strict=True) == 4


# ── simulated ─────────────────────────────────────────────────────────────────────────────────────────────────


def _mean(values: list[float], alpha_fraction: float = 1.0) -> paired.Mean:
    costs = paired.paired([math.exp(value) for value in values], [1.0] * len(values), alpha_fraction=alpha_fraction)
    return paired.Mean(costs.n, costs.mean, costs.sd, costs.df, alpha_fraction=alpha_fraction)


def _drawn(rng: random.Random, n: int, sd: float, truth: float = 0.0) -> paired.Mean:
    return _mean([rng.gauss(truth, sd) for _ in range(n)])


def _compare(bases: list[paired.Mean], heads: list[paired.Mean]) -> list[Finding]:
    comparisons = [
        Comparison("savings", "w", str(i), "time", (0.0, 0.0), welch(base, head))
        for i, (base, head) in enumerate(zip(bases, heads, strict=True))
    ]
    return judge(comparisons, NOISE)


def _runs(rng: random.Random, truths: list[float], n: int, sds: list[float]) -> list[paired.Mean]:
    return [_drawn(rng, n, sd, truth) for truth, sd in zip(truths, sds, strict=True)]


@pytest.mark.parametrize(("n", "sds"), [(3, [0.05] * 6), (5, [0.05] * 6), (3, [0.01, 0.02, 0.05, 0.05, 0.1, 0.3])])
def test_without_a_change_one_suspicion_or_more_is_raised_at_most_once_in_a_hundred(n: int, sds: list[float]) -> None:
    """At the worst place: each cell lies exactly a margin above BASE, so nothing is worse by more than the noise."""
    rng, times = random.Random(20261121), 1500
    worst = [-math.log1p(-NOISE)] * len(sds)
    false = sum(
        any(f.outcome == "suspected" for f in _compare(_runs(rng, [0.0] * len(sds), n, sds), _runs(rng, worst, n, sds)))
        for _ in range(times)
    )
    assert false / times <= FAMILY + 3 * math.sqrt(FAMILY * (1 - FAMILY) / times)


def test_a_real_loss_is_found_and_confirmed_and_the_other_cells_are_left_alone() -> None:
    """One of six methods gets 10 % dearer; five blocks, 2 % between them: the gate sees it nearly always."""
    rng, sds, times = random.Random(5), [0.02] * 6, 200
    truths = [0.0, 0.0, math.log(1.10), 0.0, 0.0, 0.0]
    found = both = false = 0
    for _ in range(times):
        base = _runs(rng, [0.0] * 6, 5, sds)
        first = _compare(base, _runs(rng, truths, 5, sds))
        again = _compare(base, _runs(rng, truths, 5, sds))
        found += first[2].outcome == "suspected"
        both += confirmed(first, {f.key: f for f in again})[2].outcome == "regression"
        false += any(f.outcome == "suspected" for f in first if f.method != "2")
    assert found / times > 0.9
    assert both / times > 0.8
    assert false / times <= 0.05


def test_a_rerun_of_both_sides_brings_false_alarms_down_to_about_the_square() -> None:
    """Counted at a level of 10 % for one cell, where a square can be counted: 1 %. With BASE shared it is more."""
    rng, times, level, margin = random.Random(9), 20_000, 0.10, 0.0
    square = shared = 0
    for _ in range(times):
        base, base2, head, head2 = (_drawn_fast(rng, 5) for _ in range(4))
        first = chance(welch(base, head), margin) <= level
        if not first:
            continue
        square += chance(welch(base2, head2), margin) <= level
        shared += chance(welch(base, head2), margin) <= level
    assert square / times == pytest.approx(level**2, rel=0.25)
    assert square < shared < level * times / 2  # a shared BASE that happened to be cheap accuses both


def _drawn_fast(rng: random.Random, n: int) -> paired.Mean:
    values = [rng.gauss(0, 0.05) for _ in range(n)]
    mean = math.fsum(values) / n
    return paired.Mean(n, mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)), n - 1)


# ── from records ──────────────────────────────────────────────────────────────────────────────────────────────


def _run(seed: int, **methods: dict[str, Any]) -> Run:
    run = Run(blocks=5, noise=0.01, seed=seed)
    for label, truth in methods.items():
        run.method(label, **truth)
    return run


def _findings(base: Run, head: Run) -> dict[str, Finding]:
    comparisons = compare_cells.saving_comparisons(summarise(*base.records()), summarise(*head.records()))
    return {(f.method if f.quantity != "accuracy" else f"{f.method} accuracy"): f for f in judge(comparisons, NOISE)}


def test_a_machine_twice_as_fast_cancels_and_a_loss_of_saving_does_not() -> None:
    base = _run(1, good={"time": 0.7}, bad={"time": 0.6})
    head = _run(2, good={"time": 0.7}, bad={"time": 0.72})
    for truth in range(len(head.truths)):  # another machine: every trial takes half as long
        head.truths[truth] = regression.replace(head.truths[truth], time=head.truths[truth].time / 2)
    found = _findings(base, head)
    assert found["good"].outcome in ("held", "undecided")
    assert found["bad"].outcome == "suspected"
    assert found["bad"].change_rel == pytest.approx(0.72 / 0.6 - 1, abs=0.03)
    assert found["bad"].base == pytest.approx(0.4, abs=0.02)


def test_a_gain_is_said_and_is_no_failure() -> None:
    found = _findings(_run(1, it={"time": 0.8}), _run(2, it={"time": 0.6}))
    assert found["it"].outcome == "better"
    assert exit_code(found.values(), strict=True) == 0


def test_energy_is_compared_where_both_sides_measured_the_same_parts_and_time_otherwise() -> None:
    base, head = _run(1, it={"time": 0.9, "energy": 0.5}), _run(2, it={"time": 0.9, "energy": 0.5})
    base.sensors = head.sensors = (GPU,)
    assert _findings(base, head)["it"].quantity == "energy (gpu)"
    head.sensors = (MODEL,)
    timed = _findings(base, head)["it"]
    assert timed.quantity == "time"
    assert (timed.base, timed.head) == (pytest.approx(0.1, abs=0.02), pytest.approx(0.1, abs=0.02))


def test_two_blocks_a_struck_row_and_an_unfinished_run_are_told_and_not_judged() -> None:
    base = _run(1, it={"time": 0.5})
    few = _run(2, it={"time": 0.9})
    few.blocks = 2
    assert "2 blocks" in _findings(base, few)["it"].reason
    struck = _run(3, it={"time": 0.9})
    struck.truths[1] = regression.replace(struck.truths[1], time=1.2)  # the twin is 20 % slower than plain training
    assert _findings(base, struck)["it"].outcome == "cannot tell"
    run, trials, counting_runs = _run(4, it={"time": 0.9}).records()
    open_ = summarise(run.model_copy(update={"finished": False}), [t for t in trials if t.block < 4], counting_runs)
    (finding,) = judge(compare_cells.saving_comparisons(summarise(*base.records()), open_), NOISE)
    assert finding.outcome == "cannot tell"
    assert "HEAD is not finished" in finding.reason
    assert exit_code([finding]) == exit_code([finding], strict=True) == 2  # nothing was compared


def test_methods_that_are_new_or_gone_are_named() -> None:
    found = _findings(_run(1, old={"time": 0.9}), _run(2, new={"time": 0.9}))
    assert found["new"].outcome == "new"
    assert found["old"].outcome == "gone"
    assert "not in HEAD" in found["old"].reason
    assert exit_code(found.values()) == 1


def _with_quality(seed: int, change: float) -> Run:
    run = _run(seed, it={"time": 0.7, "quality": change})
    run.quality_noise = 0.001
    return run


def test_quality_that_left_the_suites_margin_is_a_finding_and_quality_within_it_is_none() -> None:
    assert "it accuracy" not in _findings(_with_quality(1, 0.0), _with_quality(2, -0.003))
    lost = _findings(_with_quality(1, 0.0), _with_quality(2, -0.03))["it accuracy"]
    assert lost.outcome == "suspected"
    assert lost.change_rel == pytest.approx(-0.03, abs=0.003)
    assert "it accuracy" not in _findings(_with_quality(1, -0.03), _with_quality(2, -0.03))  # it was lost before


def test_quality_at_the_margins_very_edge_does_not_cry_wolf() -> None:
    """True change exactly at the margin in both runs: the mean of HEAD falls beyond it every second time."""
    crossed = alarms = 0
    for seed in range(60):
        base, head = _with_quality(2 * seed, -0.005), _with_quality(2 * seed + 1, -0.005)
        base.quality_noise = head.quality_noise = 0.01
        found = _findings(base, head).get("it accuracy")
        crossed += found is not None
        alarms += found is not None and found.outcome == "suspected"
    assert crossed >= 5  # the case is met
    assert alarms <= 1


def test_training_that_diverged_now_and_did_not_before_is_a_finding() -> None:
    base, head = _run(1, it={"time": 0.7}), _run(2, it={"time": 0.7})
    head.change("it", 0, status="diverged", reason="NaN in epoch 1")
    finding = _findings(base, head)["it accuracy"]
    assert finding.outcome == "suspected"
    assert "diverged" in finding.reason


@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_training_that_diverged_is_a_finding_however_many_blocks_it_took(blocks: int) -> None:
    """With two blocks or none left there is nothing to compare, and all the more to tell."""
    base, head = _run(1, it={"time": 0.7}), _run(2, it={"time": 0.7})
    for block in range(blocks):
        head.change("it", block, status="diverged", reason="NaN in epoch 1")
    finding = _findings(base, head)["it accuracy"]
    assert finding.outcome == "suspected"
    assert "diverged" in finding.reason
    again = {finding.key: _findings(base, head)["it accuracy"]}
    assert [each.outcome for each in confirmed([finding], again)] == ["regression"]
    assert "it accuracy" not in _findings(head, head)  # it diverged before


def test_a_side_that_ran_past_its_limit_is_told_and_not_judged_by_the_other_blocks() -> None:
    head = _run(2, it={"time": 0.7}).change("it", 1, status="timeout", reason="past its limit of 9 s")
    finding = _findings(_run(1, it={"time": 0.7}), head)["it"]
    assert finding.outcome == "cannot tell"
    assert "HEAD: the method ran past its limit" in finding.reason


def test_a_rerun_decides_only_what_was_suspected_and_in_a_family_of_its_own() -> None:
    comparisons = [
        Comparison("savings", "w", name, "time", change=welch(_mean([0.0, 0.001, -0.001]), _mean(values)))
        for name, values in {"bad": [0.5, 0.51, 0.49], "fine": [0.0, 0.001, -0.001]}.items()
    ]
    first = judge(comparisons, NOISE)
    assert [f.outcome for f in first] == ["suspected", "held"]
    assert [case.method for case in only(comparisons, first)] == ["bad"]
    again = {f.key: f for f in judge(only(comparisons, first), NOISE)}
    assert [f.outcome for f in confirmed(first, again)] == ["regression", "held"]
    assert [f.outcome for f in confirmed(first, {})] == ["not confirmed", "held"]
    fine = {first[0].key: regression.replace(first[0], outcome="held")}
    assert [f.outcome for f in confirmed(first, fine)] == ["not confirmed", "held"]


def test_exit_codes_are_one_for_a_failure_and_four_for_what_is_open_only_when_strict() -> None:
    def of(*outcomes: Any) -> list[Finding]:
        return [Finding("savings", "w", "m", "time", outcome) for outcome in outcomes]

    assert exit_code(of("held", "better", "new", "same", "met"), strict=True) == 0
    for outcome in ("suspected", "not confirmed", "undecided", "cannot tell"):
        assert (exit_code(of("held", outcome)), exit_code(of("held", outcome), strict=True)) == (0, 4)
    for outcomes in ((), ("new",), ("cannot tell", "new")):
        assert exit_code(of(*outcomes)) == exit_code(of(*outcomes), strict=True) == 2  # nothing was compared
    for failing, other in itertools.product(("regression", "changed", "gone", "not met"), ("held", "undecided")):
        assert exit_code(of(failing, other)) == exit_code(of(failing, other), strict=True) == 1


def test_absolute_costs_are_compared_for_plain_training_too_and_joules_only_where_measured() -> None:
    base, head = _run(1, it={"time": 0.7}), _run(2, it={"time": 0.7})
    for index, truth in enumerate(head.truths):
        head.truths[index] = regression.replace(truth, time=truth.time * 1.2, energy=truth.energy * 1.2)
    looks = [(5, 1.0), (5, 1.0)]
    found = {
        (f.method, f.quantity): f
        for f in judge(compare_cells.absolute_comparisons(base.records(), head.records(), looks), NOISE)
    }
    assert set(found) == {("baseline", "time"), ("it", "time")}
    assert {f.outcome for f in found.values()} == {"suspected"}
    assert found["baseline", "time"].change_rel == pytest.approx(0.2, abs=0.03)
    assert found["baseline", "time"].base == pytest.approx(10.0, rel=0.02)
    base.sensors = head.sensors = (GPU,)
    comparisons = compare_cells.absolute_comparisons(base.records(), head.records(), looks)
    assert {(c.method, c.quantity) for c in comparisons} >= {("it", "energy (gpu)"), ("baseline", "energy (gpu)")}
