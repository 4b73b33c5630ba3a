"""Synthetic runs whose truth is known: does the summary find it, and does it keep quiet where it must?"""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from typing import Any

import pytest
from synthetic import FLOP, GPU, JOULES, MODEL, SECONDS, Run, merge

from energybench.meter.combine import metered
from energybench.meter.reading import Energy, Reading
from energybench.records.record import Claim, Flag, ProfilingRun, Target
from energybench.verdict import sentences, wording
from energybench.verdict.figures import Row, Summary, Workload
from energybench.verdict.summary import summarise, to_json


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


# The four numbers


def test_a_true_saving_of_a_fifth_without_noise_is_exactly_a_fifth() -> None:
    found = row(half())
    assert found.measured is not None
    assert found.measured.saving_rel == pytest.approx(0.2, abs=1e-12)
    assert (found.measured.low_rel, found.measured.high_rel) == pytest.approx((0.2, 0.2), abs=1e-12)
    assert found.verdict == "faster"
    assert found.estimated_rel == pytest.approx(0.5)
    assert found.counted_rel == pytest.approx(0.5)
    assert found.realised_rel == pytest.approx(0.4)  # measured 0.2 of the estimated 0.5
    assert found.flags == ()


def test_a_baseline_of_another_speed_in_each_block_changes_no_saving() -> None:
    run, trials, counting_runs = half(blocks=4).records()
    drifted = [
        t.model_copy(update={"phases": {"train": Reading(wall_s=t.train.wall_s * (1 + t.block))}})
        for t in trials
        if t.train
    ]
    (workload,) = summarise(run, drifted, counting_runs).workloads
    assert workload.rows[0].measured is not None
    assert workload.rows[0].measured.saving_rel == pytest.approx(0.2, abs=1e-12)
    assert workload.rows[0].measured.low_rel == pytest.approx(0.2, abs=1e-12)


def test_a_claim_on_the_backward_pass_is_worth_its_share_of_the_training() -> None:
    claim = Claim(saving_rel=0.4, of="backward", source="Table 4")
    found = row(Run().method("half", flop=0.5, claim=claim))
    assert found.claim_rel == 0.4
    assert found.claimed_rel == pytest.approx(0.4 * 2 / 3)  # backward is two thirds of the synthetic ledger


def test_a_claim_on_the_training_stands_as_it_is() -> None:
    assert row(Run().method("half", claim=Claim(saving_rel=0.4))).claimed_rel == 0.4


def test_a_backward_claim_without_a_ledger_is_not_converted() -> None:
    run = Run(blocks=1).method("half", claim=Claim(saving_rel=0.4, of="backward")).change("half", 0, estimate=None)
    meta, trials, _ = run.records()
    found = summarise(meta, trials, []).workloads[0].rows[0]
    assert (found.claimed_rel, found.claim_rel) == (None, 0.4)


def test_what_is_kept_is_blank_where_almost_nothing_was_promised() -> None:
    assert row(Run().method("half", time=0.8, flop=0.98)).realised_rel is None
    assert row(Run().method("half", time=0.8, flop=0.96)).realised_rel == pytest.approx(0.2 / 0.04)


def test_counted_flops_follow_what_each_trial_really_did() -> None:
    run = half()
    passes = run.passes(run.truth("half"))
    fewer = {"sparse": {"steps": 30, "samples": passes.keys["sparse"]["samples"] // 2}}
    run.change("half", 1, passes=passes.model_copy(update={"keys": fewer}))  # another seed: it may draw fewer
    found = row(run)
    assert found.counted_rel == pytest.approx(1 - 0.5 * (1 + 0.5 + 1) / 3)
    assert "witness_differs" not in codes(found.flags)


def test_flops_outside_any_step_are_counted_too() -> None:
    meta, trials, counting_runs = half().records()
    outside = [
        w.model_copy(update={"outside_steps_flop": 0.1 * FLOP}) if w.method == "half" else w for w in counting_runs
    ]
    found = summarise(meta, trials, outside).workloads[0].rows[0]
    assert found.counted_rel == pytest.approx(0.4)


def test_without_a_witness_nothing_is_counted_and_nothing_is_promised() -> None:
    meta, trials, _ = half().records()
    summary = summarise(meta, trials, [])
    found = summary.workloads[0].rows[0]
    assert found.counted_rel is None
    assert found.explanation == ""
    results = {check.code: check.result for check in summary.checks}
    assert results["witness_differs"] == results["ledger_differs"] == "not checked"
    for code in ("implausible", "suspended", "second_tracker", "other_load"):  # no sensor, and records that do not tell
        assert results[code] == "not checked"


def test_where_the_saving_went_multiplies_to_the_saving() -> None:
    found = row(half(sensors=(GPU,)))
    # half the FLOPs, 0.8 of the time, 0.7 of the joules: 1.6 times the time per FLOP, 0.875 of the watts
    assert found.explanation.replace("\u00a0", " ") == (
        "half does 50.0 % fewer FLOPs, each takes 60.0 % more time, the card draws 12.5 % less power: "
        "30.0 % less energy (gpu)."
    )


# Energy


def test_the_quantity_is_energy_where_every_trial_measured_the_same_sensors() -> None:
    found = row(half(sensors=(GPU, ("rapl", "cpu"))))
    assert found.measured is not None
    assert (found.measured.quantity, found.measured.scope) == ("energy", "cpu + gpu")
    assert found.measured.saving_rel == pytest.approx(0.3)
    assert found.verdict == "saves"
    assert found.time is not None
    assert found.time.saving_rel == pytest.approx(0.2)


def test_one_trial_without_the_sensor_makes_the_comparison_one_of_time() -> None:
    blind = {"train": Reading(wall_s=SECONDS * 0.8, cpu_s=SECONDS, energy=[])}
    found = row(half(sensors=(GPU,)).change("half", 1, phases=blind))
    assert found.measured is not None
    assert found.measured.quantity == "time"
    assert found.verdict == "faster"


def test_another_scope_is_another_quantity() -> None:
    wider = [Energy(source=s, scope=c, energy_j=100) for s, c in (GPU, ("rapl", "cpu"))]
    moved = {"train": Reading(wall_s=SECONDS, cpu_s=SECONDS, energy=wider)}
    found = row(half(sensors=(GPU,)).change("baseline", 0, phases=moved))
    assert found.measured is not None
    assert found.measured.quantity == "time"


@pytest.mark.parametrize("blind", ["half", "baseline"])
def test_a_side_that_saw_fewer_cards_is_not_held_against_one_that_saw_all(blind: str) -> None:
    """Of two cards, or two packages' memories, one gave no figure on one side: half the joules, and nothing saved."""

    def seen(label: str, block: int) -> list[Energy]:
        found = [Energy(source="rapl", scope="dram", device=f"package-{n}/dram", energy_j=50.0) for n in (0, 1)]
        return found[:1] if (label, block) == (blind, 1) else found

    run = Run(sensors=()).method("half", time=1.0)
    for label in ("half", "baseline"):
        for block in range(3):
            window = Reading(wall_s=10.0, energy=seen(label, block))
            run.change(label, block, phases={"train": window})
    found = summarise(*run.records()).workloads[0].rows[0]
    assert found.measured is not None
    assert found.measured.quantity == "time"


def test_two_channels_of_one_device_are_not_added() -> None:
    run = Run(sensors=(GPU, ("gpu_power_integral", "gpu"))).method("half", energy=0.7)
    meta, trials, counting_runs = run.records()
    workload = summarise(meta, trials, counting_runs).workloads[0]
    assert [figure.energy_j.mean for figure in workload.baseline.energies if figure.energy_j] == [JOULES, JOULES]
    found = metered(trials[0].train)
    assert (found.sensors, found.joules) == (frozenset({GPU}), JOULES)


def test_the_devices_of_one_sensor_are_added() -> None:
    cards = [Energy(source="gpu_counter", scope="gpu", device=f"GPU-{i}", energy_j=100.0) for i in range(2)]
    assert metered(Reading(wall_s=1, energy=cards)).joules == 200.0


@pytest.mark.parametrize("energy", [0.1, 0.5, 2.0])
def test_modelled_energy_is_never_a_saving_whatever_it_says(energy: float) -> None:
    summary = of(Run(sensors=(MODEL,)).method("half", time=1.0, energy=energy))
    found = summary.workloads[0].rows[0]
    assert found.verdict == "no difference"
    assert found.measured is not None
    assert found.measured.quantity == "time"
    assert "modelled" in summary.energy_note
    assert "saves" not in summary.headline


def test_a_run_with_sensors_says_which_part_of_the_machine_was_measured_by_what() -> None:
    assert of(half(sensors=(GPU,))).energy_note == "Energy is measured: gpu by the card's energy counter."


# Pairs


def test_a_block_whose_baseline_is_missing_in_that_invocation_is_not_paired() -> None:
    meta, trials, counting_runs = half().records()
    cut = [t for t in trials if not (t.block == 1 and t.role == "baseline")]
    found = summarise(meta, cut, counting_runs).workloads[0].rows[0]
    assert found.blocks == (0, 2)
    assert found.verdict == "no verdict"
    assert "too_few_blocks" in codes(found.flags)


def test_a_method_is_never_paired_with_a_baseline_of_another_invocation_or_device() -> None:
    run = half(blocks=1)
    meta, _, _ = run.records()
    plain, ours = run.trial(run.truth("baseline"), 0, 0), run.trial(run.truth("half"), 0, 1)
    assert summarise(meta, [plain, ours], []).workloads[0].rows[0].measured is None
    elsewhere = run.trial(run.truth("half"), 0, 0).model_copy(update={"device": "GPU-2"})
    assert summarise(meta, [plain, elsewhere], []).workloads[0].rows[0].measured is None


def test_the_newest_invocation_that_holds_both_is_used_and_a_block_counts_once() -> None:
    run = half(blocks=1)
    meta, _, _ = run.records()
    plain, ours = run.truth("baseline"), run.truth("half")
    trials = [
        run.trial(plain, 0, 0),
        run.trial(ours, 0, 0),
        run.trial(plain, 0, 1, slow=3),
        run.trial(ours, 0, 1, slow=3),
        run.trial(plain, 0, 2),
    ]
    found = summarise(meta, trials, []).workloads[0].rows[0]
    assert found.records == ("b0-i1-cnn-digits.half",)
    assert found.n == 1
    assert found.measured is not None
    assert found.measured.saving_rel == pytest.approx(0.2)
    assert found.measured.low_rel is None  # one block has no interval


def test_the_order_of_the_records_does_not_matter() -> None:
    meta, trials, counting_runs = half(noise=0.05).method("other", time=1.1).records()
    expected = to_json(summarise(meta, trials, counting_runs))
    random.Random(0).shuffle(trials)
    assert to_json(summarise(meta, trials, counting_runs[::-1])) == expected


@pytest.mark.parametrize("label", ["twin", "half@control"])
def test_no_check_is_clear_that_a_twin_or_a_control_raised(label: str) -> None:
    run = Run().method("half", time=0.8, epochs=5).control("half", time=0.9, epochs=5)
    run.change(label, 1, flags=[Flag(code="foreign_process", detail="GPU-1: process 7")])
    (found,) = [check for check in summarise(*run.records()).checks if check.code == "foreign_process"]
    assert (found.result, found.where) == ("raised", f"cnn-digits: {label}")
    assert found.detail == "GPU-1: process 7"


def test_a_failed_trial_is_set_aside_and_named_with_its_reason() -> None:
    summary = of(half(blocks=4).change("half", 2, status="out_of_memory", reason="11 GiB asked, 8 there"))
    assert summary.workloads[0].rows[0].blocks == (0, 1, 3)
    (failure,) = summary.failures
    assert (failure.block, failure.status, failure.reason) == (2, "out_of_memory", "11 GiB asked, 8 there")
    assert not failure.repeated


def test_an_invalid_flag_sets_a_trial_aside_even_if_it_calls_itself_fine() -> None:
    summary = of(half(blocks=4).change("half", 0, flags=[Flag(code="dead_layer", detail="ssprop.gradients")]))
    assert summary.workloads[0].rows[0].blocks == (1, 2, 3)
    assert summary.failures[0].status == "invalid"
    assert "ssprop.gradients" in summary.failures[0].reason
    assert any(check.code == "dead_layer" and check.result == "raised" for check in summary.checks)


def test_an_extreme_value_is_never_set_aside() -> None:
    slow = {"train": Reading(wall_s=900.0, cpu_s=900.0)}
    found = row(half(blocks=3).change("half", 1, phases=slow))
    assert found.n == 3
    assert found.verdict == "inconclusive"


def test_a_failure_that_a_later_invocation_mended_says_so() -> None:
    run = half(blocks=1).change("half", 0, status="failed", reason="cable")
    failed = run.trial(run.truth("half"), 0, 0)
    run.changes.clear()
    trials = [failed, run.trial(run.truth("baseline"), 0, 1), run.trial(run.truth("half"), 0, 1)]
    assert [f.repeated for f in summarise(run.run(), trials, []).failures] == [True]


# The page as a whole


def test_the_headline_names_the_proven_saving_its_interval_and_its_price() -> None:
    text = of(half(noise=0.004)).headline
    assert text.startswith("half takes 20")
    assert "less time than plain training on cnn-digits" in text
    assert "no more than 0.5 pp of accuracy lost" in text


def test_the_headline_admits_what_the_blocks_cannot_see() -> None:
    summary = of(Run(noise=0.05, seed=3).method("half", time=0.93))
    found = summary.workloads[0].rows[0]
    assert found.detectable_rel is not None
    assert f"cannot see savings under {100 * found.detectable_rel:.0f} %" in summary.headline
    assert summary.headline.startswith("No method was proven faster: 3 blocks")


def test_the_headline_says_a_cost_as_a_cost_with_its_interval_the_right_way_round() -> None:
    summary = of(Run(noise=0.004).method("half", time=1.25))
    figure = summary.workloads[0].rows[0].measured
    assert figure is not None
    assert figure.low_rel is not None
    assert figure.high_rel is not None
    low, high = re.search(r"half takes 2\d(?:\.\d)? % \[([\d.]+), ([\d.]+)\] more time than", summary.headline).groups()
    assert float(low) == pytest.approx(-100 * figure.high_rel, abs=0.5)
    assert float(high) == pytest.approx(-100 * figure.low_rel, abs=0.5)


def test_one_block_has_no_verdict_and_the_headline_says_so() -> None:
    summary = of(half(blocks=1, stamp=["quick"]))
    assert summary.headline == "No verdict: 1 block, and 3 are the least."
    assert "quick" in codes(summary.flags)


def test_an_empty_run_says_that_there_is_nothing() -> None:
    meta, _, _ = half().records()
    summary = summarise(meta, [], [])
    assert "nothing to compare" in summary.headline
    assert {missing.method for missing in summary.not_run} == {"baseline", "twin", "half"}
    to_json(summary)


def test_cells_that_were_not_run_keep_their_reason() -> None:
    (missing,) = of(half().skip("ssprop", "this model has no convolution")).not_run
    assert (missing.method, missing.reason) == ("ssprop", "this model has no convolution")


def test_a_counted_run_that_failed_leaves_a_blank_and_its_reason() -> None:
    meta, trials, counting_runs = half().records()
    failed = {"status": "timeout", "reason": "30 min", "counted_flop": None, "keys": {}, "passes": None}
    broken = [w.model_copy(update=failed) if w.method == "half" else w for w in counting_runs]
    summary = summarise(meta, trials, broken)
    assert summary.workloads[0].rows[0].counted_rel is None
    assert summary.workloads[0].rows[0].verdict == "faster"
    assert [(n.method, n.reason) for n in summary.not_run] == [("half", "not counted: 30 min")]


def test_the_baselines_own_figures_are_there() -> None:
    plain = only(half()).baseline
    assert plain.seconds is not None
    assert plain.seconds.mean == pytest.approx(SECONDS)
    assert plain.quality["accuracy"].mean == pytest.approx(0.9)
    assert plain.memory_resident_b == 300_000_000
    assert plain.memory_device_b is None
    assert [(e.measured, e.source) for e in plain.energies] == [(False, MODEL[0])]


def test_a_sensor_without_a_figure_keeps_its_reason_and_is_no_zero() -> None:
    denied = [Energy(source="unavailable", scope="cpu", reason="permission denied")]
    phases = {"train": Reading(wall_s=SECONDS, cpu_s=SECONDS, energy=denied)}
    run = half()
    for block in range(3):
        run.change("baseline", block, phases=phases)
    (energy,) = only(run).baseline.energies
    assert (energy.energy_j, energy.reason, energy.measured) == (None, "permission denied", False)


def test_workloads_do_not_mix() -> None:
    meta, trials, counting_runs = merge(half(), Run(workload="vit").method("half", time=1.25, flop=0.5))
    first, second = summarise(meta, trials, counting_runs).workloads
    assert (first.rows[0].verdict, second.rows[0].verdict) == ("faster", "slower")


def test_the_json_is_plain_data_without_nan() -> None:
    text = json.dumps(to_json(of(half(blocks=1))), allow_nan=False)
    assert json.loads(text)["workloads"][0]["rows"][0]["measured"]["saving_rel"] == pytest.approx(0.2)
    assert "\u00a0" not in text


def test_simulated_runs_without_an_effect_are_almost_never_called_faster() -> None:
    found = 0
    for seed in range(150):
        rows = only(Run(blocks=3, noise=0.03, seed=seed).method("a").method("b").method("c")).rows
        found += sum(r.verdict in ("faster", "quality unproven") for r in rows)
    assert found / 450 <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 450)


def test_neither_torch_nor_scipy_stats_is_imported() -> None:
    code = (
        "import sys, energybench.report.markdown, energybench.report.terminal, energybench.verdict.summary;"
        "print(sorted({'torch', 'scipy.stats', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Where the time went


@pytest.mark.parametrize("overhead", ["method_overhead", "own"])  # as it is written now, and as it was before
def test_phases_are_shares_of_plain_trainings_shadow_and_only_what_changes_is_told(overhead: str) -> None:
    meta, trials, counting_runs = half().records()
    profiling_run = ProfilingRun(
        plain_s={"forward": 3.0, "backward": 6.0, "update": 1.0},
        method_s={"forward": 3.05, "backward": 3.0, "update": 1.0, overhead: 0.5},
    )
    told = [w.model_copy(update={"profiling_run": profiling_run}) if w.method == "half" else w for w in counting_runs]
    (workload,) = summarise(meta, trials, told).workloads
    phases = {phase.name: (phase.baseline_rel, phase.method_rel) for phase in workload.rows[0].phases}
    assert phases["backward"] == pytest.approx((0.6, 0.3))
    assert phases[overhead] == pytest.approx((0.0, 0.05))
    assert math.fsum(plain for plain, _ in phases.values()) == pytest.approx(1)
    said = wording.plain(sentences.phases(workload.rows[0].phases))
    assert "backward 60.0 % → 30.0 %, its own work 0.0 % → 5.0 %." in said
    assert "forward" not in said


def test_a_shadow_that_failed_leaves_no_phases() -> None:
    meta, trials, counting_runs = half().records()
    told = [w.model_copy(update={"profiling_run": ProfilingRun(reason="out of memory")}) for w in counting_runs]
    (workload,) = summarise(meta, trials, told).workloads
    assert workload.rows[0].phases == ()
    assert "not known: out of memory." in " ".join(sentences.notes(workload.rows[0], "accuracy"))


# Names of before


def old_names(value: Any) -> list[str]:
    """Keys of JSON that say again what another key of the same object says."""
    if isinstance(value, list):
        return [name for item in value for name in old_names(item)]
    if not isinstance(value, dict):
        return []
    here = [old for old, new in RENAMED.items() if old in value and new in value]
    assert all(value[old] == value[RENAMED[old]] for old in here)
    return here + [name for item in value.values() for name in old_names(item)]


RENAMED = {
    "struck": "verdict_forbidden",
    "because": "reason",
    "plain_timed_out": "baseline_timed_out",
    "moved": "bytes_note",
    "untimed": "untimed_reason",
    "kept_rel": "realised_rel",
    "ours": "method",
    "plain": "baseline_name",
    "kept_quality": "quality_within_margin",
    "noise": "margin",
    "share": "alpha_fraction",
}


def test_every_old_key_of_the_json_stands_beside_the_new_one_with_its_value() -> None:
    target = Target(metric="accuracy", at_least=0.9, epoch=3, wall_s=5.0)
    runs = [Run(workload=name).method("half", time=0.8) for name in ("one", "other")]
    for run in runs:
        for label in ("baseline", "half"):
            for block in range(3):
                run.change(label, block, target=target)
    assert set(old_names(to_json(summarise(*merge(*runs))))) == set(RENAMED)


def test_an_old_name_is_read_with_a_warning_that_tells_the_new_one() -> None:
    found = row(Run().method("half", time=0.8))
    with pytest.warns(DeprecationWarning, match="verdict_forbidden"):
        assert found.struck is found.verdict_forbidden  # type: ignore[attr-defined]
